"""The judge of `quality`: the images that are trained on and those that are kept back, and how samples are judged.

Features are those of a classifier of the judge's own (diffunet/evaluation/features.py), which learns once from the
training images, before any way is trained and with a seed of its own: their classes where the folder has subfolders,
else which way they are turned. No way meets it, and it has not seen the images that it compares samples with.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from diffunet.config import Config
from diffunet.data import folder
from diffunet.errors import DataError
from diffunet.evaluation.distances import Floats, frechet
from diffunet.evaluation.features import Trained, train_classifier
from diffunet.evaluation.neighbours import manifold, nearest
from diffunet.evaluation.reals import RealImages
from diffunet.pictures.images import Pixels

HELD_OUT = 2000
"""The most images that are kept back; never more than a third."""

LEAST = 60
"""The fewest images of a folder."""

COPIES = (0.01, 0.05)
"""The shares of images kept back that the limits of near copies are drawn at."""

DEALS = 20
"""The times that images are dealt to two hands and compared, for a mean with less noise."""


def split(data: Path, work: Path) -> tuple[Path, Path]:
    """Deal the images of a folder into `work`/training and `work`/held-out, and return both.

    They are links, or copies, in flat folders; the class of each, for the judge alone, is in `work`/classes.json. The
    same folder is always dealt in the same way.

    Raises:
        DataError: there are too few images.
    """
    paths = folder.list_images(data)[0]
    if len(paths) < LEAST:
        raise DataError(f"{data} has {len(paths)} images; this needs at least {LEAST}")
    order = np.random.Generator(np.random.Philox(key=[0, 0])).permutation(len(paths))
    parts = work / "training", work / "held-out"
    for part in parts:
        part.mkdir(parents=True)
    held = min(HELD_OUT, len(paths) // 3)
    classes: dict[str, str | None] = {}
    for place, n in enumerate(order):
        name = f"{place:07}"  # which says nothing of its class
        source = (data / folder.native(paths[n])).resolve()
        target = parts[place < held] / f"{name}{source.suffix.lower()}"
        try:
            os.link(source, target)
        except OSError:  # another disk, or one without links
            shutil.copyfile(source, target)
        classes[name] = folder.class_of(paths[n])
    (work / "classes.json").write_text(json.dumps(classes))
    return parts


def read(root: Path, image_size: int, classes: Mapping[str, str | None]) -> tuple[Pixels, NDArray[np.int64] | None]:
    """Return the images of a folder of `split`, uint8 [N H W 3], and the numbers of their classes, if there are any."""
    real = RealImages(Config().changed("data", image_size=image_size, reading=2), root)
    found = [classes[Path(path).stem] for path in real.dataset.files.paths]
    names = sorted({name for name in classes.values() if name is not None})
    pictures = real.gather(np.arange(len(found)))
    if len(names) < 2 or None in classes.values():
        return pictures, None
    return pictures, np.array([names.index(str(name)) for name in found])


@dataclass(frozen=True)
class Judge:
    """The real images, and the features by which samples are compared with them.

    Args:
        trained: the classifier whose features they are.
        training, held_out: images that are trained on and that are kept back, uint8 [N H W C] each.
        seed: of the deals.
    """

    trained: Trained
    training: Pixels
    held_out: Pixels
    real: Floats
    limits: tuple[float, ...]
    seed: int = 0

    def of(self, samples: Pixels) -> dict[str, float]:
        """Judge samples, uint8 [N H W C]: the excess, precision and recall, and the shares of near copies."""
        made = self.trained.features(samples)
        distance, floor = distances(made, self.real, self.seed)
        lies = manifold(made, self.real)
        assert lies is not None, "there are a third of LEAST images at least, and more samples"
        found = {
            "excess": distance - floor, "distance": distance, "real to real": floor, "precision": lies.precision,
            "recall": lies.recall,
        }  # fmt: skip
        apart = from_training(samples, self.training)
        return found | {
            f"copies {share:.0%}": float((apart < limit).mean())
            for share, limit in zip(COPIES, self.limits, strict=True)
        }


def make(work: Path, image_size: int, steps: int, seed: int = 0) -> Judge:
    """Return the judge of the folders that `split` has made in `work`; its weights are kept in `work`/judge.pt."""
    import torch

    classes = json.loads((work / "classes.json").read_text())
    training, labels = read(work / "training", image_size, classes)
    held_out, _ = read(work / "held-out", image_size, classes)
    trained = train_classifier(training, labels, seed=seed, steps=steps)
    torch.save(trained.classifier.state_dict(), work / "judge.pt")
    apart = from_training(held_out, training)
    limits = tuple(float(np.quantile(apart, share)) for share in COPIES)
    return Judge(trained, training, held_out, trained.features(held_out), limits, seed)


def from_training(pictures: Pixels, training: Pixels) -> Floats:
    """Return the Euclidean distance of each picture, or of its mirror image, to the nearest training image, [N].

    Mirrored because some ways mirror what they train on.
    """
    both, _ = nearest(np.concatenate([pictures, pictures[:, :, ::-1]]), lambda: [training])
    return np.minimum(*np.split(both, 2))


def distances(made: Floats, real: Floats, seed: int = 0) -> tuple[float, float]:
    """Return the Fréchet distance of samples' features [N D] to real ones [M D], and that of real ones to others.

    Real features are dealt into two hands of n = min(N, M / 2), again and again; n samples and the one hand are both
    compared with the other, so that what few images add to a distance is the same in both. The means are returned.
    """
    generator = np.random.Generator(np.random.Philox(key=[seed, 2]))
    n = min(len(made), len(real) // 2)
    found = []
    for _ in range(DEALS):
        hands, some = generator.permutation(len(real)), generator.permutation(len(made))[:n]
        one, other = real[hands[:n]], real[hands[n : 2 * n]]
        found.append((frechet(made[some], one), frechet(other, one)))
    distance, floor = np.mean(found, axis=0)
    return float(distance), float(floor)


def sheet(samples: Sequence[Pixels] | Pixels, path: Path, columns: int = 8) -> None:
    """Save the first samples as one picture, enlarged to be seen."""
    from PIL import ImageOps
    from PIL.Image import Resampling

    from diffunet.pictures import images

    picture = images.grid(list(samples[: columns * 6]), columns=columns)
    factor = max(1, 64 // samples[0].shape[0])
    images.save(ImageOps.scale(picture, factor, Resampling.NEAREST) if factor > 1 else picture, path)
