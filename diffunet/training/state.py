"""What every optimizer step changes and a checkpoint holds: weights, their averages, the optimizer's moments."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from diffunet import storage
from diffunet.training.checkpoint import POWER
from diffunet.training.ema import Average


@dataclass(frozen=True)
class State:
    """The net that learns, its optimizer, and the averages of its weights.

    The first average is the one that sampling uses; any others are those that `convert --ema` is made from.
    """

    net: nn.Module
    optimizer: torch.optim.AdamW
    averages: tuple[Average, ...]

    @property
    def ema(self) -> Average:
        """Return the average that sampling uses."""
        return self.averages[0]

    @property
    def power(self) -> tuple[Average, ...]:
        """Return the averages that are stored along the run."""
        return self.averages[1:]

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """Return all tensors, by the file of a checkpoint that they belong to and by name."""
        moments: dict[str, Tensor] = {}
        for name, parameter in self.net.named_parameters():
            moments |= {f"{name}.{key}": value for key, value in self.optimizer.state[parameter].items()}
        content = {"model": self.net.state_dict(), "ema": self.ema.net.state_dict(), "optimizer": moments}
        return content | ({"power": self._power()} if self.power else {})

    def _power(self) -> dict[str, Tensor]:
        """Return the power averages by relative width and name, such as "0.050.stem.weight" and "0.050.updates"."""
        return {
            f"{average.name}.{name}": tensor
            for average in self.power
            for name, tensor in {"updates": torch.tensor(average.updates), **average.net.state_dict()}.items()
        }

    @torch.no_grad()
    def finite(self) -> bool:
        """Return whether all numbers are finite; this waits for the device."""
        tensors = [tensor for file in self.tensors().values() for tensor in file.values()]
        device = next(self.net.parameters()).device
        return bool(torch.stack([tensor.isfinite().all().to(device) for tensor in tensors]).all())

    def load(self, folder: Path, step: int) -> None:
        """Copy the tensors of a checkpoint of `step` into place.

        Memory layouts stay as they are, since the bits of every later step depend on them.

        Raises:
            CheckpointError: the tensors are of another net.
        """
        for name, module in (("model", self.net), ("ema", self.ema.net)):
            path = folder / f"{name}.safetensors"
            storage.load_weights(module, storage.read_tensors(path, module.state_dict())[0], path)
        path = folder / "optimizer.safetensors"
        wanted = {
            f"{name}.{key}": torch.zeros(()) if key == "step" else parameter
            for name, parameter in self.net.named_parameters()
            for key in ("step", "exp_avg", "exp_avg_sq")
        }
        moments, _ = storage.read_tensors(path, wanted)
        for name, parameter in self.net.named_parameters():
            self.optimizer.state[parameter] = {
                "step": moments[f"{name}.step"].to(parameter.device),
                **{
                    key: torch.zeros_like(parameter).copy_(moments[f"{name}.{key}"])
                    for key in ("exp_avg", "exp_avg_sq")
                },
            }
        self.ema.updates = step
        if self.power:
            averages, _ = storage.read_tensors(folder / POWER, self._power())
            for average in self.power:
                own = {name: averages[f"{average.name}.{name}"] for name in average.net.state_dict()}
                storage.load_weights(average.net, own, folder / POWER)
                # A run of diffunet 0.1 did not count steps that were skipped, so that this may be less than `step`.
                average.updates = int(averages[f"{average.name}.updates"])
