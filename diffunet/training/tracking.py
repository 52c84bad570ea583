"""Trackers of experiments: what metrics.jsonl holds and previews also go to tensorboard, wandb, mlflow and their like.

accelerate has one interface to all of them. What that leaves open is in `KINDS`: how a tracker goes on with a run, and
how it takes a picture. A tracker is a guest of the run. Where it fails, whatever it does and whenever, that is said
once, and the run goes on without it; it is called between steps, from which every draw is keyed anew, so that no bit of
the weights depends on it.
"""

import contextlib
import importlib.util
import json
import logging
import math
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker
from PIL.Image import Image

from diffunet import compute, files
from diffunet.config import Config
from diffunet.errors import Error
from diffunet.names import TrackerName
from diffunet.pictures import images
from diffunet.training.stop import SIGNALS

log = logging.getLogger(__name__)

FILE = "trackers.json"
"""The file of a run folder that says by which id each tracker knows the run."""

PROJECT, PREVIEW = "diffunet", "samples"
"""The project that runs are put into where the tracker's own variable names none, and the name of previews."""


@dataclass(frozen=True)
class Kind:
    """What accelerate's interface leaves open of a tracker.

    Args:
        variable: the tracker's own environment variable that names the project.
        options: keywords to begin a run with, or to go on with, given its folder, the steps that are done, and the id
            by which the tracker knows it (None for a new one).
        id_of: returns that id, given what accelerate calls the tracker's `tracker`; None where the folder is all.
        show: gives accelerate's tracker a preview, its file, and the step.
    """

    variable: str
    options: Callable[[Path, int, str | None], dict[str, Any]]
    id_of: Callable[[Any], str | None]
    show: Callable[[Any, Image, Path, int], Any]


def _listed(tracker: Any, picture: Image, path: Path, step: int) -> None:
    tracker.log_images({PREVIEW: [picture]}, step=step)


def _single(tracker: Any, picture: Image, path: Path, step: int) -> None:
    tracker.log_images({PREVIEW: picture}, step=step)


KINDS: dict[TrackerName, Kind] = {
    "tensorboard": Kind(
        "", lambda run, step, known: {"purge_step": step + 1}, lambda writer: None,
        lambda tracker, picture, path, step: tracker.log_images(
            {PREVIEW: images.to_array(picture, 3)[None]}, step=step, dataformats="NHWC"
        ),
    ),
    "wandb": Kind(
        "WANDB_PROJECT",
        lambda run, step, known: {"name": run.name, "dir": str(run), "id": known, "resume": known and "allow"},
        lambda started: started.id, _listed,
    ),
    "mlflow": Kind(
        "MLFLOW_EXPERIMENT_NAME", lambda run, step, known: {"run_name": run.name, "run_id": known},
        lambda started: started.info.run_id,
        lambda tracker, picture, path, step: tracker.log_artifact(str(path), PREVIEW),
    ),
    "aim": Kind("", lambda run, step, known: {"run_hash": known, "experiment": PROJECT}, lambda run: run.hash, _single),
    "swanlab": Kind(
        "SWANLAB_PROJECT",
        lambda run, step, known: {
            "experiment_name": run.name, "logdir": str(run / "swanlog"), "id": known, "resume": known and "allow"
        },
        lambda started: started.id, _listed,
    ),
    "dvclive": Kind(
        "", lambda run, step, known: {"dir": str(run / "dvclive"), "resume": step > 0}, lambda live: None,
        lambda tracker, picture, path, step: tracker.tracker.log_image(f"{PREVIEW}.png", picture),
    ),
    "comet_ml": Kind(
        "COMET_PROJECT_NAME", lambda run, step, known: {"experiment_key": known, "mode": "get_or_create"},
        lambda experiment: experiment.get_key(),
        lambda tracker, picture, path, step: tracker.tracker.log_image(str(path), PREVIEW, step=step),
    ),
    "clearml": Kind(
        "CLEARML_PROJECT", lambda run, step, known: {"task_name": run.name, "continue_last_task": known or False},
        lambda task: task.id, _single,
    ),
}  # fmt: skip


class Trackers:
    """The trackers of the run in the folder `run`, none of them until `begin` is called, on the main process."""

    def __init__(self, run: Path) -> None:
        self.run, self._trackers, self._known = run, dict[TrackerName, GeneralTracker](), dict[str, str]()
        self._untold: list[tuple[int, dict[str, float]]] = []

    def begin(self, names: Sequence[TrackerName], step: int, config: Config) -> None:
        """Begin with trackers, of which those that cannot begin are said and left out.

        Args:
            names: which.
            step, config: the steps that are done, and the resolved config, which new runs are given.
        """
        with contextlib.suppress(OSError, ValueError, AttributeError):
            self._known = {name: str(known) for name, known in json.loads((self.run / FILE).read_text()).items()}
        for name in names:
            with self._guarded(name):
                self._trackers[name] = self._started(name, step, config)

    def _started(self, name: TrackerName, step: int, config: Config) -> GeneralTracker:
        if importlib.util.find_spec(name) is None:
            raise ImportError(f"it is not installed (pip install {name})")
        kind, known, make = KINDS[name], self._known.get(name), LOGGER_TYPE_TO_CLASS[name]
        project, options = os.environ.get(kind.variable) or PROJECT, kind.options(self.run, step, known)
        if name == "tensorboard":
            tracker = make(name, str(self.run), **options)  # RUN/tensorboard
        elif make.requires_logging_directory:  # beside the runs, so that they are seen together
            tracker = make(self.run.name, str(self.run.parent), **options)
        else:
            tracker = make(project, **options)
        tracker.start()
        if known is None and name != "tensorboard":  # it would show its parameters as another run
            tracker.store_init_configuration(_flat(config))
        if (identity := kind.id_of(tracker.tracker)) is not None:
            self._known[name] = identity
            files.write_atomic(self.run / FILE, json.dumps(self._known, indent=1))
        return tracker

    def note(self, step: int, values: Mapping[str, float | list[float]]) -> None:
        """Keep the numbers of a step for `tell`: `name/i` of those in lists, and none that is not finite."""
        lists = {name: value if isinstance(value, list) else [value] for name, value in values.items()}
        numbers = {
            f"{name}/{i}" if isinstance(values[name], list) else name: value
            for name, several in lists.items() for i, value in enumerate(several) if math.isfinite(value)
        }  # fmt: skip
        self._untold.append((step, numbers))

    def tell(self) -> None:
        """Give trackers what was noted. They may take their time, so this comes after the step is saved."""
        told, self._untold = self._untold, []
        for step, numbers in told:
            for name, tracker in [*self._trackers.items()]:
                with self._guarded(name):
                    tracker.log(numbers, step=step)

    def show(self, step: int, picture: Image, path: Path) -> None:
        """Give trackers the preview of a step, which is in the file `path`, too."""
        for name, tracker in [*self._trackers.items()]:
            with self._guarded(name):
                KINDS[name].show(tracker, picture, path, step)

    def close(self) -> None:
        """End what the trackers still have to do."""
        for name, tracker in [*self._trackers.items()]:
            with self._guarded(name):
                tracker.finish()

    @contextlib.contextmanager
    def _guarded(self, name: TrackerName) -> Iterator[None]:
        """Let a tracker neither fail the run nor keep its signals; say why it failed, and switch it off."""
        can_handle = threading.current_thread() is threading.main_thread()
        handlers = {number: signal.getsignal(number) for number in SIGNALS} if can_handle else {}
        try:
            yield
        except Error:  # of ours: a signal has asked the run to end
            raise
        except (Exception, SystemExit) as error:
            self._trackers.pop(name, None)
            again = f" ({self.run / FILE} says with which of its runs it goes on)" if name in self._known else ""
            reason = compute.first_line(error) if str(error).strip() else type(error).__name__
            log.warning("%s tracks this run no longer: %s%s. Training goes on without it", name, reason, again)
        finally:
            for number, handler in handlers.items():
                if handler is not None and signal.getsignal(number) is not handler:
                    signal.signal(number, handler)


def _flat(config: Config) -> dict[str, Any]:
    """Return the options of a config by their names, section.option; lists as text."""
    content = config.model_dump(mode="json", exclude_none=True)
    return {
        f"{section}.{name}": value if isinstance(value, bool | int | float | str) else json.dumps(value)
        for section, options in content.items() for name, value in options.items()
    }  # fmt: skip
