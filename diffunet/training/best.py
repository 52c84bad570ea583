"""The average of least validation loss, for a run of few images, which sooner or later learns them by heart.

Up to then the validation loss falls, and after it the samples become copies (Bonnaire et al. 2025, "Why Diffusion
Models Don't Memorize"). RUN/best is a model folder with that average.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from diffunet import storage
from diffunet.config import Config
from diffunet.errors import ResourceError

SMALL = 5000
"""A run with fewer images to train on keeps the average of least validation loss."""

RISEN = 1.02
"""How many times the least validation loss the last one has to be for the model to be the average of the least."""

FOLDER = "best"


@dataclass
class Best:
    """The least validation loss of a run, and the step after which it was measured; at first infinity, after step 0."""

    run: Path
    loss: float = math.inf
    step: int = 0

    @classmethod
    def of(cls, run: Path, state: Mapping[str, Any]) -> "Best":
        """Return what is known at the checkpoint that a run goes on from, whose plain values are `state`.

        RUN/best says it itself, as the validation of a step comes after its checkpoint. One of a later step does not
        count, as it will be measured again; but where a run that has ended is made longer, it goes on from before its
        cool-down, and what it has reached in that stays the least until there is less.
        """
        step = storage.weights_step(run / FOLDER) or 0
        if not step or (step > state.get("step", 0) and not storage.is_finished(run / "model")):
            return cls(run)
        loss = storage.validation_loss(run / FOLDER)
        if loss is None:  # a development version before 0.2.0 noted it in the checkpoint alone
            noted, loss = state.get("best", (0, math.inf))
            if noted != step:
                return cls(run)
        return cls(run, loss, step)

    def state(self) -> dict[str, Any]:
        """Return the values for a checkpoint."""
        return {"best": (self.step, self.loss)} if self.step else {}

    def note(self, loss: float, step: int, config: Config, weights: Mapping[str, Tensor]) -> None:
        """Keep the averaged weights after a step if their validation loss is the least.

        Raises:
            ResourceError: the disk does not take them.
        """
        if loss < self.loss:
            try:
                storage.write_model(self.run / FOLDER, config, weights, step, loss=loss)
            except ResourceError as error:
                raise ResourceError(f"{error} and use --resume: earlier checkpoints are whole") from None
            self.loss, self.step = loss, step

    def is_better_than(self, loss: float) -> bool:
        """Return whether the loss has risen so far above the least one that the average of that is to be preferred."""
        return loss > self.loss + (RISEN - 1) * abs(self.loss)  # a loss that is a likelihood may be negative

    def weights(self) -> dict[str, Tensor]:
        """Return the averaged weights of least loss; raise CheckpointError if the file is damaged or gone."""
        return storage.read_tensors(self.run / FOLDER / storage.WEIGHTS)[0]
