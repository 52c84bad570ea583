"""What a run is about to do, in lines for the person who waits."""

from collections import Counter
from collections.abc import Iterator

from diffunet import build, compute, names
from diffunet.config import Config, DataConfig, DiffusionConfig
from diffunet.data import findings
from diffunet.data.folder import printable
from diffunet.training import half_size, memory, parts
from diffunet.training.run import Run

MASKS = ("masks", "all_hole")
"""The options of the data that say by which masks a net learns to inpaint."""


def plan(run: Run, net: build.NetFactory) -> Iterator[str]:
    """Yield the lines: device, precision, images, model, memory, steps, and what to be careful about."""
    how, dataset, t, d, steps, share = run.how, run.dataset, run.config.train, run.config.data, run.expected, run.share
    training, processes, size = len(run.split.training), share.processes, d.image_size
    if gpu_is_idle := compute.warning():
        yield gpu_is_idle
    many = f" x {processes} processes" if processes > 1 else ""
    yield f"device: {compute.describe(how.device)}{many}; precision: {how.precision} ({how.why})"
    pays, why = compute.pays_to_compile(how, steps, t.minutes, t.deterministic)
    if t.compile == "on" or how.device.type == "cuda":
        as_asked = "compiled, as asked" if t.compile == "on" else "not compiled, as asked, or as it could not be"
        yield f"the net is {why if pays == (t.compile == 'on') else as_asked}"
    classes, found = f", {len(d.class_names)} classes" if d.class_names else "", run.classes
    bad = f", {len(dataset.rejected)} files skipped" if dataset.rejected else ""
    held_out = f"{len(run.split.held_out)} held out"
    yield f"images: {training} to train on, {held_out}{classes}{bad}; {size}x{size}, {d.channels} channels"
    if found is not None and found.note is not None:
        yield found.note
    if found is not None and d.balance:
        counts = Counter({name: n for name, n in found.counts().items() if n})
        (most, of_most), (least, of_least) = counts.most_common(1)[0], counts.most_common()[-1]
        yield (
            f"balance: each class is drawn equally often, so an image of {printable(least)} ({of_least:,}) "
            f"{of_most / of_least:.3g} times as often as one of {printable(most)} ({of_most:,})"
        )
    elif found is not None and (rare := findings.imbalance(found)) is not None:
        yield f"note: {rare}"
    yield from dataset.said
    if run.checkpoint is None and t.minutes is not None and t.steps is not None:
        yield f"note: train.minutes ({t.minutes:g}) decides nothing here, since train.steps says when the run ends"
    if (groups := run.split.groups) is not None:
        grouped = int((groups.places >= 0).sum())
        yield (
            f"groups: {grouped:,} of {len(groups.places):,} images are in {len(groups.names):,} groups; those of one "
            f"group are held out together{' and each group is drawn equally often' if d.balance_groups else ''}"
        )
    if run.config.diffusion.task == "inpaint":
        kind = f"random masks ({d.masks})" if d.mask_folder is None else f"the masks of {d.mask_folder}"
        yield f"it learns to inpaint, with {kind}; {d.all_hole:.0%} are all hole, so that it generates too"
    elif given := [name for name in MASKS if getattr(d, name) != DataConfig.model_fields[name].default]:
        options = ", ".join(f"--data.{name.replace('_', '-')}" for name in given)
        yield f"note: {options}: this net learns to generate, without masks; --task inpaint makes it learn to inpaint"
    yield from _without_effect(run.config)
    small = dataset.files.smaller_than(size, d.fit)
    if d.fit == "patch":
        of = "" if d.scales == (1.0,) else f", at scales {' '.join(f'{scale:g}' for scale in d.scales)}"
        yield (
            f"patches: windows of {size}x{size} anywhere in the pictures{of}: about {run.distinct:,} that do not "
            f"overlap; {small} of {len(dataset.files)} pictures are smaller than a window and are enlarged"
        )
        if d.cache == "off":
            yield "note: without a cache whole pictures are decoded for each window; --data.cache DIR is much faster"
    elif small > len(dataset.files) // 2:
        yield f"note: {small} of {len(dataset.files)} images are smaller than {size} pixels and are enlarged"
    price = memory.price(run.config, net)
    needed = memory.training_bytes(run.config, how, share.images_per_pass, net)
    yield (
        f"model: {price.parameters / 1e6:.1f} M parameters, {price.macs / 1e9:.2f} GMACs an image; "
        f"about {needed / 2**30:.1f} GiB to train{' (blocks checkpointed)' if run.config.model.checkpointing else ''}"
    )
    passes = "" if share.passes == 1 else f" in {share.passes} passes"
    if (at_once := parts.count(run.config, how, ours=net is build.net, alone=processes == 1)) > 1:
        passes += f", {at_once} parts of them at once"
    about = "about " if run.steps is None else ""
    yield (
        f"steps: {about}{steps} of {share.batch_size} images{passes}, "
        f"{steps * share.batch_size / training:.0f} times through them; time left is shown once some are done"
    )
    if run.steps is None and t.minutes is not None:
        falls = t.minutes * (1 - run.budget.cooldown)
        then = f"its number of steps is fixed, and its learning rate falls, from minute {falls:.3g} on"
        then = then if run.budget.cooldown else "its learning rate does not fall"
        yield f"the run takes {t.minutes:g} minutes: {then}; --resume --minutes M makes it longer"
    if half_size.applies(t, run.first_step):
        until = f"minute {(t.minutes or 0.0) * run.budget.half:.3g}"
        if t.half_size_until is not None:
            until = f"step {t.half_size_until}"
        yield (
            f"until {until} it trains at half of the size, {size // 2}x{size // 2}, where a step is up to four times "
            "as fast; validation losses and previews are at full size, and poor until then"
        )
    yield f"it sees about {steps * share.batch_size:,} images: {usual(steps * share.batch_size)}"
    if run.distinct < 1000:
        yield f"note: {training} images are few; --init MODEL, a model of similar images, helps"
    if t.stop_after is not None:
        yield f"the run is saved and ends after {t.stop_after:g} minutes; go on with --resume"


GIVES = (
    (3_000, "too few for more than colours and blobs"),
    (20_000, "enough for digits of 16 pixels; at 64 pixels for colours and blobs"),
    (100_000, "usually enough for simple images, such as drawings, and for the colours and textures of photographs"),
    (1_000_000, "usually enough for good drawings and small photographs whose subject one can often name"),
)
"""What runs of so many images gave here: those of samples/README.md, at 16 to 64 pixels."""


def usual(images: int) -> str:
    """Return in words what a run that sees so many images usually gives."""
    return next((words for most, words in GIVES if images < most), "more than any run that is described here has seen")


def _without_effect(config: Config) -> Iterator[str]:
    """Yield a note for each option of the diffusion that is not as by default, and goes with what was not chosen."""
    d = config.diffusion
    goes_with = {
        "num_steps": (f"the schedules {', '.join(names.DDPM_SCHEDULES)}", d.schedule in names.DDPM_SCHEDULES),
        "edm_log_mean": ("the schedule edm", d.schedule == "edm"),
        "edm_log_std": ("the schedule edm", d.schedule == "edm"),
        "min_snr_gamma": ("the weightings min-snr and soft-min-snr", d.weighting in ("min-snr", "soft-min-snr")),
        "p2_gamma": ("the weighting p2", d.weighting == "p2"),
        "sigmoid_bias": ("the weighting sigmoid", d.weighting == "sigmoid"),
        "label_dropout": ("models with classes", bool(config.data.class_names) or not d.label_dropout),
    }
    for name, (what, is_chosen) in goes_with.items():
        if not is_chosen and getattr(d, name) != DiffusionConfig.model_fields[name].default:
            yield f"note: --diffusion.{name.replace('_', '-')} has no effect here: it goes with {what}"
