"""Features by which images are compared: those of a small classifier, trained on the spot on real images.

It needs no weights from elsewhere. Where a folder has classes it learns these; else it learns which way an image is
turned (Gidaris et al. 2018), for which it has to look at the same things.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from diffunet import draws
from diffunet.nn.layers import group_norm
from diffunet.pictures import images

VERSION = 1
"""Of how a classifier is made and learns; features of another version are others."""

WIDTH = 64
"""Features of an image: few, so that a thousand images are enough to estimate their covariance well."""


class Classifier(nn.Module):
    """A few convolutions, each of which halves the size down to 4 or less, a mean, and a linear layer."""

    def __init__(self, channels: int, image_size: int, num_classes: int) -> None:
        super().__init__()
        parts: list[nn.Module] = [nn.Conv2d(channels, 32, 3, padding=1)]
        width = 32
        while image_size > 4:
            following = min(128, width * 2)
            parts += [group_norm(width), nn.SiLU(), nn.Conv2d(width, following, 3, stride=2, padding=1)]
            width, image_size = following, (image_size + 1) // 2
        parts += [group_norm(width), nn.SiLU(), nn.Conv2d(width, WIDTH, 3, padding=1)]
        self.body = nn.Sequential(*parts)
        self.head = nn.Linear(WIDTH, num_classes)

    def features(self, x: Tensor) -> Tensor:
        """Return the features of images [B C H W] in [-1, 1], [B WIDTH]."""
        return F.silu(self.body(x)).mean(dim=(2, 3))

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of images [B C H W] in [-1, 1], [B classes]."""
        return self.head(self.features(x))


@dataclass(frozen=True)
class Trained:
    """A trained classifier, what it learned ("classes" or "turns"), and its accuracy on images it did not see."""

    classifier: Classifier
    learned: str
    accuracy: float
    device: torch.device

    def features(self, pictures: NDArray[np.uint8]) -> NDArray[np.float64]:
        """Return the features of images, uint8 [N H W C] -> float64 [N WIDTH]."""
        return self._in_parts(self.classifier.features, pictures).astype(np.float64)

    def predict(self, pictures: NDArray[np.uint8]) -> NDArray[np.int64]:
        """Return the classes that the classifier takes images for, uint8 [N H W C] -> int64 [N]."""
        return self._in_parts(lambda x: self.classifier(x).argmax(1), pictures)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return what `of_arrays` makes the same classifier of: its weights, by name, and its accuracy."""
        weights = {name: value.cpu().numpy() for name, value in self.classifier.state_dict().items()}
        return {**weights, "accuracy": np.array(self.accuracy)}

    @classmethod
    def of_arrays(cls, arrays: Mapping[str, NDArray[Any]], image_size: int, learned: str, device: torch.device) -> Self:
        """Return the classifier of images of a size that `arrays` has given.

        Raises:
            KeyError, IndexError, TypeError, RuntimeError: they are not those of such a classifier.
        """
        weights = {name: torch.from_numpy(value) for name, value in arrays.items() if name != "accuracy"}
        with torch.random.fork_rng():
            net = Classifier(weights["body.0.weight"].shape[1], image_size, len(weights["head.bias"]))
        net.load_state_dict(weights)
        return cls(net.to(device).eval().requires_grad_(False), learned, float(arrays["accuracy"]), device)

    @torch.no_grad()
    def _in_parts(self, compute: Callable[[Tensor], Tensor], pictures: NDArray[np.uint8]) -> NDArray[Any]:
        parts = np.array_split(pictures, max(1, len(pictures) // 256))
        floats = (images.to_float(torch.from_numpy(part)).to(self.device) for part in parts)
        return np.concatenate([compute(x).cpu().numpy() for x in floats])


def train_classifier(
    pictures: NDArray[np.uint8], labels: NDArray[np.int64] | None, *, seed: int = 0, steps: int = 600, batch: int = 64,
    device: torch.device | None = None, on_step: Callable[[int, int], None] | None = None,
) -> Trained:  # fmt: skip
    """Train a classifier on real images.

    Args:
        pictures: uint8 [N H W C], square.
        labels: int64 [N]; with None it learns to tell the four turns of an image.
        seed: seed of its weights and batches; the same seed gives the same features.
        steps, batch: optimizer steps, and the images of each.
        device, on_step: where to compute, the CPU by default; and what is called with (step, steps).
    """
    device = device or torch.device("cpu")
    num_classes = 4 if labels is None else int(labels.max()) + 1
    with torch.random.fork_rng():
        torch.manual_seed(draws.seed_of("classifier", seed))
        net = Classifier(pictures.shape[-1], pictures.shape[1], num_classes).to(device)
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3, weight_decay=0.02)
    held_out = np.arange(len(pictures)) % 10 == 0  # to measure its accuracy
    train, test = np.flatnonzero(~held_out), np.flatnonzero(held_out)

    def batch_of(chosen: NDArray[np.int64], generator: np.random.Generator) -> tuple[Tensor, Tensor]:
        x = pictures[chosen]
        if labels is None:
            y = generator.integers(4, size=len(chosen))
            x = np.stack([np.rot90(image, turns) for image, turns in zip(x, y, strict=True)])
        else:
            y = labels[chosen]
        return images.to_float(torch.from_numpy(np.ascontiguousarray(x))).to(device), torch.from_numpy(y).to(device)

    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 2e-3 * (1 - step / steps)
        generator = draws.generator(seed, step, 0)
        x, y = batch_of(train[generator.integers(len(train), size=batch)], generator)
        loss = F.cross_entropy(net(x), y, label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if on_step is not None:
            on_step(step + 1, steps)
    net.eval().requires_grad_(False)
    tests = (batch_of(part, draws.generator(seed, steps, 0)) for part in np.array_split(test, max(1, len(test) // 256)))
    right = sum(int((net(x).argmax(1) == y).sum()) for x, y in tests)
    return Trained(net, "turns" if labels is None else "classes", right / max(1, len(test)), device)
