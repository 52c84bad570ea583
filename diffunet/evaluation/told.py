"""What an evaluation found: its figures for programs (figures.py says what each is), its lines for people."""

import json
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from PIL.Image import Image

from diffunet.evaluation.bits_per_dimension import Likelihood
from diffunet.evaluation.denoising import DenoisingError
from diffunet.evaluation.neighbours import Copies, Manifold
from diffunet.evaluation.networks import BIASED


class OfClass(NamedTuple):
    """The generated images of a class: how many, the share taken for it, their distance and that of as many real ones.

    A distance is None where there are fewer than two images of either kind.
    """

    samples: int
    agreement: float
    distance: float | None
    floor: float | None


class Memory(NamedTuple):
    """Near copies of training images by pixels and by features, and the picture of the nearest pairs."""

    pixels: Copies
    features: Copies
    pairs: Image


@dataclass(frozen=True)
class Report:
    """The Fréchet distance of `num` generated images to real ones, and of as many other real ones: the floor.

    Only numbers of the same data, `num` and seed compare. `learned` and `accuracy` are those of the classifier, see
    `Trained`; `agreement` is the share of generated images that it takes for their class. `likelihood`, where it was
    asked for, is of images that training held out, or else (`held_out` False) may have seen. `about` says of what the
    report is (samples, reals, seed, data), and `published` has the figures of published networks.
    """

    distance: float
    floor: float
    num: int
    learned: str
    accuracy: float
    agreement: float | None
    classes: dict[str, OfClass] = field(default_factory=dict)
    manifold: Manifold | None = None
    likelihood: Likelihood | None = None
    held_out: bool = False
    memory: Memory | None = None
    published: dict[str, Any] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def pairs(self) -> Image | None:
        """The picture of the samples that are nearest to a training image, where these were looked for."""
        return None if self.memory is None else self.memory.pairs

    @property
    def excess(self) -> float:
        """The distance above the floor: what of it chance and the number of images do not explain."""
        return self.distance - self.floor

    def figures(self) -> dict[str, Any]:
        """Return the report as an object of JSON, see `figures.FIGURES`."""
        found = self.about | {
            "compared": self.num, "features": self.learned, "accuracy": self.accuracy, "distance": self.distance,
            "floor": self.floor, "excess": self.excess, "agreement": self.agreement,
        }  # fmt: skip
        if self.classes:
            found["classes"] = {name: each._asdict() for name, each in self.classes.items()}
        if self.manifold is not None:
            found |= {f"feature_{name}": value for name, value in vars(self.manifold).items()}
        found |= self.published
        if (memory := self.memory) is not None:
            found |= {
                "copies": memory.pixels.share, "held_out_copies": memory.pixels.held_out,
                "feature_copies": memory.features.share, "held_out_feature_copies": memory.features.held_out,
                "nearest_distance": memory.pixels.median, "held_out_nearest_distance": memory.pixels.held_out_median,
            }  # fmt: skip
        if (bits := self.likelihood) is not None:
            found |= {
                "likelihood": bits.bits, "likelihood_error": bits.error, "likelihood_kind": bits.kind,
                "likelihood_images": bits.num, "likelihood_held_out": self.held_out,
            }  # fmt: skip
        return _as_json(found)

    def lines(self) -> list[str]:
        """Describe the report, for people."""
        what = "the classes" if self.learned == "classes" else "which way up images are"
        lines = [f"samples: {self.about['samples']:,}"] if self.about else []
        lines += [
            f"features: a small classifier that learned {what} ({self.accuracy:.1%} right on images it had not seen)",
            f"images compared: {self.num}",
            f"feature distance: {self.distance:.4f}",
            f"real to real:     {self.floor:.4f}",
            f"excess:           {self.excess:.4f}",
        ]
        if self.agreement is not None:
            lines.append(f"label agreement:  {self.agreement:.1%} of generated images are taken for their class")
        if self.manifold is not None:
            lines.append(f"by its features:  {_in_words(vars(self.manifold))}")
        lines += self._of_classes() + self._of_memory() + self._of_networks()
        if (likelihood := self.likelihood) is not None:
            unseen, seen = "that training on this folder holds out", "that it may have seen in training, which flatters"
            lines += [
                f"likelihood:       {likelihood.bits:.3f} +- {likelihood.error:.3f} bits per dimension "
                f"({likelihood.note}; {likelihood.num} images, {likelihood.calls} net calls each)",
                f"                  of images {unseen if self.held_out else seen}",
            ]
        return lines

    def _of_classes(self) -> list[str]:
        if not self.classes:
            return []
        wide = max(map(len, [*self.classes, "class"]))
        rows = [f"  {'class':<{wide}}  samples  agreement  distance  real to real"]
        for name, (samples, agreement, distance, floor) in self.classes.items():
            far, near = ("-" if each is None else f"{each:.4f}" for each in (distance, floor))
            rows.append(f"  {name:<{wide}}  {samples:>7}  {agreement:>9.1%}  {far:>8}  {near:>12}")
        return rows

    def _of_memory(self) -> list[str]:
        if self.memory is None:
            return []
        pixels, features, _ = self.memory
        lines = []
        for name, copies in (("pixels", pixels), ("features", features)):
            real = "" if copies.held_out is None else f" (held-out reals {copies.held_out:.1%})"
            lines.append(f"near copies of training images, by {name}: {copies.share:.1%}{real}")
        real = "" if pixels.held_out_median is None else f" (held-out reals {pixels.held_out_median:.1f})"
        lines.append(f"half of the samples are within {pixels.median:.1f} grey levels of a training image{real}")
        if pixels.held_out is None:
            lines.append("  nothing is known to be held out: all images of DATA count as training images")
        return lines

    def _of_networks(self) -> list[str]:
        found, lines = self.published, list[str]()
        for key, name in (("fid", "FID"), ("fd_dinov2", "FD-DINOv2")):
            if key not in found:
                continue
            reals = found[f"{key}_reals"]
            against = f"{reals:,} real images" if isinstance(reals, int) else f"the statistics in {reals}"
            lines.append(f"{name}: {found[key]:.4f} ({self.about['samples']:,} samples, {against})")
            if self.about["samples"] < BIASED:
                lines.append(
                    f"  below {BIASED:,} samples {name} is biased upwards, the more the fewer: it compares with no "
                    "paper's, and only with distances of as many samples"
                )
        if "kid" in found:
            lines.append(f"KID: {found['kid']:.6f} +- {found['kid_error']:.6f} (subsets of {found['kid_subset']:,})")
        if "precision" in found:
            lines.append(f"by Inception: {_in_words({name: found[name] for name in Manifold.__dataclass_fields__})}")
        if "inception_score" in found:
            lines.append(f"inception score: {found['inception_score']:.3f} +- {found['inception_score_error']:.3f}")
        return lines


def _as_json(found: dict[str, Any]) -> Any:
    """Return figures as JSON can hold them: with None for each number that is not finite."""
    return json.loads(json.dumps(found), parse_constant=lambda name: None)


def _in_words(shares: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.3f}" for name, value in shares.items())


@dataclass(frozen=True)
class Loss:
    """The errors of a denoiser on real images, whether training held these out, and the hash of DATA."""

    error: DenoisingError
    held_out: bool
    data: str

    pairs = None
    """There is no picture of pairs."""

    def figures(self) -> dict[str, Any]:
        """Return the errors as an object of JSON, see `figures.FIGURES`."""
        levels = [[round(sigma, 6), error] for sigma, error in zip(self.error.sigmas, self.error.errors, strict=True)]
        return _as_json({
            "data": self.data, "loss": self.error.loss, "loss_images": self.error.num, "loss_held_out": self.held_out,
            "loss_by_noise": levels,
        })  # fmt: skip

    def lines(self) -> list[str]:
        """Describe the errors, for people."""
        seen = [] if self.held_out else ["of images that it may have seen in training, which flatters"]
        return self.error.lines() + seen
