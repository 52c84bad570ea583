"""What every optimizer step changes and a checkpoint holds: weights, their averages, the optimizers' moments."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from diffunet import storage
from diffunet.training import optimizers
from diffunet.training.ema import Average


@dataclass(frozen=True)
class State:
    """The net that learns, its optimizers, and the averages of its weights, of which sampling uses the first."""

    net: nn.Module
    optimizers: tuple[torch.optim.Optimizer, ...]
    averages: tuple[Average, ...]

    @property
    def ema(self) -> Average:
        """Return the average that sampling uses."""
        return self.averages[0]

    @property
    def power(self) -> tuple[Average, ...]:
        """Return the averages that are stored along the run, for `convert --ema`."""
        return self.averages[1:]

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """Return all tensors, by the file of a checkpoint that they belong to and by name."""
        moments: dict[str, Tensor] = {}
        for name, parameter in self.net.named_parameters():
            for optimizer in self.optimizers:
                moments |= {f"{name}.{key}": value for key, value in optimizer.state.get(parameter, {}).items()}
        power = {  # by relative width and name, such as "0.050.stem.weight" and "0.050.updates"
            f"{average.name}.{name}": tensor
            for average in self.power
            for name, tensor in {"updates": torch.tensor(average.updates), **average.net.state_dict()}.items()
        }
        content = {"model": self.net.state_dict(), "ema": self.ema.net.state_dict(), "optimizer": moments}
        return content | ({"power": power} if power else {})

    def moments(self) -> list[Tensor]:
        """Return the tensors of the optimizers, none before the first step."""
        kept = (state for optimizer in self.optimizers for state in optimizer.state.values())
        return [tensor for state in kept for tensor in state.values()]

    @torch.no_grad()
    def finite(self) -> bool:
        """Return whether all numbers are finite; this waits for the device."""
        tensors = [tensor for file in self.tensors().values() for tensor in file.values()]
        device = next(self.net.parameters()).device
        return bool(torch.stack([tensor.isfinite().all().to(device) for tensor in tensors]).all())

    @torch.no_grad()
    def load(self, folder: Path, step: int) -> None:
        """Copy the tensors of a checkpoint of `step` into place; raise CheckpointError if they are of another net.

        Memory layouts stay as they are, since the bits of every later step depend on them.
        """
        for optimizer in self.optimizers:
            optimizers.begin(optimizer)
        for name, own in self.tensors().items():
            stored, _ = storage.read_tensors(folder / f"{name}.safetensors", own)
            for key, tensor in own.items():
                tensor.copy_(stored[key])
        self.ema.updates = step
        for average in self.power:
            # A run of diffunet 0.1 did not count steps that were skipped, so that this may be less than `step`.
            average.updates = int(stored[f"{average.name}.updates"])
