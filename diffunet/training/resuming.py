"""What a run that goes on has in common with the one that stopped, and what may have changed meanwhile."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from diffunet import build, compute
from diffunet.config import Config, DataConfig, TrainConfig
from diffunet.data import index
from diffunet.data.dataset import Dataset
from diffunet.data.folder import printable
from diffunet.data.groups import Split
from diffunet.data.labels import Labels
from diffunet.data.listing import composed
from diffunet.errors import DataError, UsageError
from diffunet.inpainting.own_masks import OwnMasks
from diffunet.training import run_folder

log = logging.getLogger(__name__)


def expected_steps(state: Mapping[str, Any], before: float | None, minutes: float | None) -> int:
    """Return about how many steps a run has that goes on with `minutes`, from what its checkpoint expects `before`."""
    expected, share = int(state.get("expected_steps", 0)), 1.0
    if minutes is not None and before is not None:
        share = minutes / before
    elif minutes is not None and state.get("seconds"):
        expected, share = state["step"], 60 * minutes / state["seconds"]
    return max(1, round(expected * share))


def refuse_shorter(asked: TrainConfig, stored: TrainConfig, state: Mapping[str, Any], run: Path) -> None:
    """Raise UsageError where a run is asked to end before the point that its newest checkpoint has reached.

    It would go back to the checkpoint before its learning rate fell, and replace its model by one that learned less.
    """
    minutes = float(state.get("seconds", 0.0)) / 60
    fewer_steps = asked.steps not in (None, stored.steps) and state["step"] >= (asked.steps or 0)
    fewer_minutes = asked.minutes not in (None, stored.minutes) and minutes >= (asked.minutes or 0)
    if fewer_steps or fewer_minutes:
        raise UsageError(
            f"{run} has done {state['step']} steps in {minutes:.3g} minutes already, and --steps and --minutes are "
            "those of the whole run: give more to make it longer"
        )


def with_environment(config: Config, environment: dict[str, Any]) -> Config:
    """Take precision, threads and compile, which diffunet 0.1 left open, from the checkpoint's environment."""
    noted: dict[str, Any] = {}
    if config.train.precision == "auto" and environment.get("precision") in compute.PRECISIONS:
        noted["precision"] = environment["precision"]
    if config.train.threads is None and type(environment.get("threads")) is int:
        noted["threads"] = max(1, environment["threads"])
    if config.train.compile == "auto":
        noted["compile"] = environment.get("compile", "off")
    if config.train.kernels == "auto":
        noted["kernels"] = "off" if environment.get("kernels", "off") == "off" else "on"
    return config.changed("train", **noted)


def with_net(config: Config, net: build.NetFactory, *, resumed: bool) -> Config:
    """Note a user's own net in the config; raise UsageError if the run or model that it goes on from has another."""
    name = None if net is build.net else f"{net.__module__}.{getattr(net, '__qualname__', type(net).__qualname__)}"
    before = config.model.custom
    if (resumed or before is not None) and (name is None) != (before is None):
        raise UsageError(
            f"the net of this model is {before}: give the function that makes it to diffunet.train, net=..."
            if before is not None
            else f"this model has a net of diffunet's own, and net={name} was given: leave it out"
        )
    if name is not None and before not in (None, name):
        log.warning("this model was made with the net %s, and goes on with %s", before, name)
    return config if name is None else config.changed("model", custom=name)


def log_differences(before: dict[str, Any], now: dict[str, Any]) -> None:
    """Warn that bits may differ from those of a run that was not stopped, where the environment has changed."""
    shared = [name for name in now if name in before]  # diffunet 0.1 noted fewer of them
    changes = [f"{name} was {before[name]}, is {now[name]}" for name in shared if before[name] != now[name]]
    if changes:
        log.warning("resuming sees the same images and noise, but bits may differ: %s", "; ".join(changes))


def log_earlier_reading(config: Config) -> None:
    """Say of a run of diffunet 0.1 that its images are read as they were then."""
    if (config.data.reading or 1) == 1:
        log.info(
            "this run reads images as diffunet 0.1 did (data.reading = 1): colour profiles are not minded, and what is "
            "white in images of more than 8 bits is guessed for each; a new run does better"
        )


def refuse_too_many_rejected(dataset: Dataset, most: float, data: Path) -> None:
    """Log the files of the folder `data` that cannot be used; raise DataError if their share is above `most`."""
    rejected = dataset.rejected
    for file in rejected[:20]:
        log.warning("skipped %s: %s", printable(file.path), file.reason)
    if len(rejected) > 20:
        log.warning("... and %d more files skipped (diffunet check lists them)", len(rejected) - 20)
    total = len(rejected) + len(dataset.files)
    if len(rejected) > most * total:
        raise DataError(
            f"{len(rejected)} of the {total} images in {data} cannot be used, such as {printable(rejected[0].path)} "
            f"({rejected[0].reason}): mend or remove them (diffunet check lists them), or allow it by "
            f"--data.max-rejected (now {most:g})"
        )


def refuse_other_images(state: dict[str, Any], dataset: Dataset, run: Path, data: Path, accept: bool) -> None:
    """Raise DataError for images that are not those which the run began with, or, with `accept`, only warn."""
    if state["index_hash"] == dataset.index_hash:
        return
    path = run / run_folder.IMAGES
    try:
        before = index.read_index(path)
        changes = "; ".join(index.changes(before, dataset.files))
        if not changes and dataset.classes is None and index.index_hash(before) == dataset.index_hash:
            log.warning("names of images are compared in one Unicode form now: they may come in another order")
            return
        changes = changes or ("their labels" if dataset.classes is not None else "in ways not on record")
    except (OSError, ValueError):
        changes = f"{path}, which lists them, cannot be read"
    if not accept:
        raise DataError(
            f"the images in {data} are not those that this run began with ({changes}): put them back, or go on with "
            "them as they are by --accept-new-data"
        )
    log.warning("going on with other images (%s): from here on, not as the run would have been", changes)


def same_split(state: Mapping[str, Any], data: DataConfig, dataset: Dataset, classes: Labels | None) -> Split:
    """Return the split of a run; one that goes on with the same images keeps that which it began with.

    Up to 0.2.0.dev0 all images of a class could be held out.
    """
    split = build.split(data, dataset.files, classes)
    if classes is None or state.get("index_hash") != dataset.index_hash:
        return split
    before = build.split(data, dataset.files)
    if before.hash() == split.hash() or state.get("split_hash", before.hash()) != before.hash():
        return split
    trained = set(classes.places[before.training].tolist())
    lost = ", ".join(printable(name) for n, name in enumerate(classes.names) if n not in trained)
    log.warning("this run holds out every image of %s and goes on so: a new run trains on one at least", lost)
    return before


def refuse_other_names(stated: Sequence[str], found: Sequence[str]) -> None:
    """Raise UsageError where names of classes that a new run states, if any, are not those of its images."""
    if stated and sorted(map(composed, stated)) != sorted(found):
        listed = [", ".join(map(printable, some[:8])) + ", ..." * (len(some) > 8) for some in (stated, found)]
        raise UsageError(
            f"data.class_names are {listed[0]}, and the images are of the classes {listed[1]}: leave the names out, as "
            "of a config, or give these in the order that you want (--data.class-names)"
        )


def refuse_other_labels(
    state: Mapping[str, Any], dataset: Dataset, classes: Labels | None, rule: str | None, accept: bool
) -> None:
    """Raise DataError where the same images have other labels than before, or, with `accept`, only warn."""
    if classes is None or state["index_hash"] != dataset.index_hash:
        return
    if state.get("labels_hash", classes.hash()) == classes.hash():
        return
    if not accept:
        raise DataError(
            f"the labels of the images are not those that this run began with: put {rule} (data.labels) back as it "
            "was, or go on with it as it is by --accept-new-data"
        )
    log.warning("going on with other labels of the same images: from here on, not as the run would have been")


def refuse_other_split(state: dict[str, Any], dataset: Dataset, split: Split, rule: str | None, accept: bool) -> None:
    """Raise DataError where of the same images others are held out or drawn than before, or, with `accept`, only warn.

    Of other images the split is another one as a matter of course, and diffunet 0.1 did not note it.
    """
    is_same = state.get("split_hash", split.hash()) == split.hash()
    is_same = is_same and state.get("groups_hash", split.groups_hash()) == split.groups_hash()
    if state["index_hash"] != dataset.index_hash or is_same:
        return
    if rule is None:
        held_out = "the folders of the data set say now what is held out, which was drawn when this run began"
        if not accept:
            raise DataError(f"{held_out}: begin a new run, or go on with it as it is by --accept-new-data")
        log.warning("%s: some images that are held out have been trained on", held_out)
        return
    if not accept:
        raise DataError(
            f"the groups of images are not those that this run began with, so that others would be held out or "
            f"drawn: put {rule} (data.group) back as it was, or go on with it as it is by --accept-new-data"
        )
    log.warning("going on with other groups of images: some that are held out now have been trained on")


def own_masks(config: Config, run: Path, data: Path, *, accept: bool, resumed: bool) -> OwnMasks | None:
    """Return the masks of one's own that the run learns to inpaint with, if any.

    Raises:
        UsageError: the task is another one, or they lie within the data, and would be trained on.
        DataError: they are not those that the run began with, and `accept` does not say to go on with them.
    """
    if config.data.mask_folder is None:
        return None
    root, path = Path(config.data.mask_folder), run / run_folder.MASKS
    if config.diffusion.task != "inpaint":
        raise UsageError("data.mask_folder has the masks of --task inpaint, and this run has another task")
    if root.resolve().is_relative_to(data.resolve()):
        raise UsageError(f"data.mask_folder: {root} lies within {data}, so that masks would be images: move it out")
    found = OwnMasks(root, config.data.image_size)
    if resumed and path.is_file() and path.read_text(encoding="utf-8") != found.index:
        if not accept:
            raise DataError(
                f"the masks in {root} are not those that this run began with ({path} lists them): put them back, or go "
                "on with them as they are by --accept-new-data"
            )
        log.warning("going on with other masks: from here on, not as the run would have been")
    log.info("%d masks of %s are drawn from", len(found), root)
    return found
