"""The averages after 64, 128, 256 ... steps, one of which becomes the weaker model by which samples are guided.

Karras et al. 2024, "Guiding a Diffusion Model with a Bad Version of Itself" (autoguidance): a model of the same kind
that has learned for a shorter time errs in the same way, only more, so that going away from it mends what both get
wrong. RUN/earlier/step-00001024.safetensors is the average after step 1,024, in bfloat16. In a run that begins at half
of its image size it has seen no other; it helped all the same (samples/recipe.md, "Guidance").
"""

import math
from pathlib import Path

import torch
from torch import nn

from diffunet import files, storage
from diffunet.errors import ResourceError

FOLDER = "earlier"

FIRST, OLDEST = 64, 32
"""The first step whose average is kept, and how many times fewer steps than now the oldest that is kept has."""

SHARE, NEAR = 1 / 8, 2.0
"""The share of the run after which the weaker model is to be, and by which factor it may be off."""


def is_due(step: int) -> bool:
    """Return whether the average after a step is kept: of the powers of two from `FIRST` on."""
    return step >= FIRST and step & (step - 1) == 0


def write(run: Path, step: int, average: nn.Module) -> None:
    """Keep the average after a step, and delete those that are too old; raise ResourceError for a full disk."""
    path = run / FOLDER / f"step-{step:08d}.safetensors"
    weights = {name: tensor.to(torch.bfloat16) for name, tensor in average.state_dict().items()}
    try:
        storage.write_tensors(path, weights, {"step": str(step)})
    except OSError as error:
        raise ResourceError(
            f"the average {path} could not be written: {error.strerror or error}; make room and use --resume: "
            "checkpoints are whole"
        ) from None
    for old, its_step in _stored(run):
        if its_step * OLDEST < step:
            old.unlink()


def forget_after(run: Path, step: int) -> None:
    """Delete the averages of steps after the one that a run goes on from, and what a crash has left behind."""
    files.sweep(run / FOLDER)
    for path, written in _stored(run):
        if written > step:
            path.unlink()


def nearest(run: Path, step: int) -> Path | None:
    """Return the file of the average nearest to `SHARE` of `step` steps, by their ratio; None if none is near."""
    ratios = [(abs(math.log(written / (SHARE * step))), path) for path, written in _stored(run)]
    ratio, path = min(ratios, default=(math.inf, None))
    return path if ratio <= math.log(NEAR) else None


def _stored(run: Path) -> list[tuple[Path, int]]:
    paths = (run / FOLDER).glob("step-*.safetensors")
    return [(path, int(path.stem[5:])) for path in sorted(paths) if path.stem[5:].isdigit()]
