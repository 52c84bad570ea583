"""What `diffunet train --dry-run` prints: a config with all that was chosen, and why, in comments above it."""

from collections.abc import Iterator

from diffunet import build, compute
from diffunet.config import Config
from diffunet.data.cache import Stored, megabytes
from diffunet.data.dataset import Dataset
from diffunet.data.folder import printable
from diffunet.training import best, defaults, half_size, memory, parts, recipe
from diffunet.training.plan import plan
from diffunet.training.run import Run

LISTED = 100
"""The most files that cannot be used of which each is named."""


def text(asked: Config, run: Run, init: str | None = None) -> str:
    """Return the resolved config of a run as TOML, below comments with the facts and the reasons.

    As the config of a run it chooses the same again.

    Args:
        asked: the config as it was, with None for what was left open.
        run: it, as `opening.foreseen` yields it.
        init: the model whose weights it starts from.
    """
    each = recipe.seconds_per_step(half_size.without(run.config), run.how, build.net, run.processes.num_processes)
    lines = [
        "What this run would do, with the config below; nothing is trained yet.",
        *plan(run, build.net),
        *_images(run),
        *_reasons(asked, run, each, init),
        *_costs(run, each),
    ]
    return "".join(f"# {printable(line)}\n" for line in lines) + "\n" + run.config.to_toml()


def _images(run: Run) -> Iterator[str]:
    rejected = run.dataset.rejected
    yield f"usable: {len(run.dataset.files):,} images; rejected: {len(rejected):,}"
    yield from (f"  {file.path}: {file.reason}" for file in rejected[:LISTED])
    if len(rejected) > LISTED:
        yield f"  and {len(rejected) - LISTED:,} more"
    if run.classes is not None:
        yield "classes: " + ", ".join(f"{name} ({count:,})" for name, count in run.classes.counts().items())


def _reasons(asked: Config, run: Run, each: float, init: str | None) -> Iterator[str]:
    """Yield of each choice what it is, and why: by the speed of the device, where a full-size step takes `each` s."""
    config, batch, size = run.config, run.share.batch_size, run.config.data.image_size
    m, t, few = config.model, config.train, run.distinct < defaults.SMALL
    seen, clock = run.expected * batch, run.config.train.minutes
    yield f"speed: {batch / each:.3g} images a second, measured with this net, {each:.3g} s a step at full size"
    net = f"net: {m.channels} channels x {' '.join(map(str, m.multipliers or ()))}"
    net += "" if m.num_blocks is None else f", {m.num_blocks} blocks a level"
    if init is not None:
        yield f"{net}, as {init} has it"
    elif asked.model.channels is not None:
        yield f"{net}, as asked"
    elif m.net != "unet":
        yield f"{net}, by the image size"
    elif clock is None:
        yield f"{net}, by the image size and the device, since --steps says nothing of time"
    else:
        enough = recipe.enough(memory.price(config).parameters)
        smallest = m.channels == recipe.LADDER[0].channels
        yield (
            f"{net}: the {'smallest that there is' if smallest else 'largest that pays'}; it does so from about "
            f"{enough:,.0f} images on, and in {clock:g} minutes sees about {seen:,}"
        )
    if isinstance(asked.train.batch_size, int):
        yield f"batch: {batch}, as asked"
    elif asked.train.batch_size == "auto":
        yield f"batch: {batch}, what fits into memory"
    elif clock is None:
        yield f"batch: {batch}, by the image size and the device"
    else:
        yield (
            f"batch: {batch}, so that there are about {recipe.STEPS_AT_LEAST:,} steps or more ({run.expected:,}), "
            f"or larger where that costs little; {recipe.SMALLEST} to {recipe.largest_batch(config)} at {size} pixels"
        )
    if asked.train.cpu_parts is None and run.how.device.type == "cpu":
        trial = ", what was fastest in a trial" if clock is not None and (t.threads or 1) > 1 else ""
        at_once = parts.count(config, run.how, ours=True, alone=run.share.processes == 1)
        yield f"parts of a batch that are computed at once: {at_once}{trial}"
    suited = f"for {t.optimizer} and a net of {m.channels} channels"
    suited += (
        f" in a run of {run.expected:,} steps" if (t.learning_rate or 0) < defaults.rate_for(run.config, 1) else ""
    )
    rate = "as asked" if asked.train.learning_rate is not None else suited
    yield f"learning rate: {t.learning_rate:g}, {rate}; it falls over the last {t.cooldown or 0:.0%}"
    if asked.train.half_size is None and asked.train.half_size_until is None:
        first = f"for {t.half_size:.0%} of the time" if t.half_size else "no"
        yield (
            f"half of the size first: {first}; it pays from {recipe.HALF_FROM} pixels on, in runs of minutes that see "
            f"at most {recipe.HALF_UP_TO:,} images, where the net allows it"
        )
    many = f"{run.distinct:,} images, {'fewer' if few else 'no fewer'} than {best.SMALL:,}"
    if asked.data.flip is None:
        why = ", but left and right differ in them" if few and not config.data.flip else ""
        yield f"mirrored: {'yes' if config.data.flip else 'no'}: {many}{why}"
    if asked.model.dropout is None:
        yield f"dropout: {m.dropout:g}: {many}"


def _costs(run: Run, each: float) -> Iterator[str]:
    how, t = run.how, run.config.train
    needed = memory.training_bytes(run.config, how, run.share.images_per_pass)
    free = how.free_memory()
    yield f"memory: about {megabytes(needed)} of {megabytes(free)} that {compute.describe(how.device)} has free"
    yield f"cache: {_cache(run.dataset)}"
    if t.minutes is not None:
        yield f"time: {t.minutes:g} minutes"
    else:
        yield f"time: about {half_size.cost(t) * each / 60:.3g} minutes, with no previews and checkpoints counted"


def _cache(dataset: Dataset) -> str:
    if not isinstance(dataset.images, Stored):
        return "none; each image is decoded whenever it is needed"
    place = dataset.images.place
    return f"{megabytes(place.stat().st_size)} of decoded images, in {place.parent}, kept for training"
