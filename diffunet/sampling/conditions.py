"""What the net is told beside the noisy image, and how hard it is pushed: labels, guidance, known pixels."""

from __future__ import annotations

import difflib
import math
import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, SupportsIndex

import torch
from torch import Tensor

from diffunet.config import Config
from diffunet.diffusion.denoiser import Conditional, Denoise, Denoiser, bind
from diffunet.diffusion.guidance import Pair, WithAndWithoutLabel, guided, threshold
from diffunet.errors import UsageError

Label = SupportsIndex | str | None
"""A class by name or number (any integer: Python's, numpy's, torch's), or None: none is told."""


class Model(Protocol):
    """A config, the denoiser that is of it, and the type that it computes in."""

    config: Config
    denoiser: Denoiser

    @property
    def dtype(self) -> torch.dtype: ...


@dataclass(frozen=True)
class Guidance:
    """How samples are pushed away from what a worse denoiser says.

    Args:
        scale: 1 is off.
        weaker: a model (a `Pipeline`) of the same images that is worse: smaller, or an earlier checkpoint of the same
            run (autoguidance, Karras et al. 2024). None: the model itself without the label (classifier-free guidance).
        interval: guide only where low < sigma <= high (Kynkäänniemi et al. 2024).
        rescale: 0 to 1, how far the deviation of a guided image is brought back (Lin et al. 2023).
    """

    scale: float = 1.0
    weaker: Model | None = None
    interval: tuple[float, float] | None = None
    rescale: float = 0.0


def guidance_of(given: float | Guidance) -> Guidance:
    """A bare number is a scale."""
    return given if isinstance(given, Guidance) else Guidance(given)


def number(label: Label, names: Sequence[str]) -> int | None:
    """Which class a label is, by name or number; the null label for None. None for a model without classes.

    Raises:
        UsageError: for a label that there is not.
    """
    if not names:
        if label is not None:
            raise UsageError("this model has no classes; train with --classes to have labels")
        return None
    if label is None:
        return len(names)
    if isinstance(label, str) and label in names:
        return names.index(label)
    place = _index(label)
    if place is not None and 0 <= place < len(names):
        return place
    close = difflib.get_close_matches(str(label), names, n=1)
    shown = ", ".join(names[:20]) + (" ..." if len(names) > 20 else "")
    hint = f"did you mean {close[0]}? " if close else ""
    raise UsageError(f"there is no class {label!r}; {hint}there are {shown}")


def _index(label: object) -> int | None:
    """The number that a label is, or None: "3" and every kind of integer, but neither "²" nor True."""
    if isinstance(label, str):
        return int(label) if label.isdecimal() and len(label) < 10 else None
    if isinstance(label, bool):
        return None
    try:
        return operator.index(label)  # type: ignore[arg-type]
    except (TypeError, ValueError, RuntimeError):
        return None


def numbers(labels: Label | Iterable[Label], num: int, names: Sequence[str]) -> Tensor | None:
    """The classes of `num` images, int64 [num]: of a label, one for each, or by default all classes in turn. None for a
    model without classes.

    Raises:
        UsageError: for a label that there is not, or another number of them.
    """
    if labels is None:
        return torch.arange(num) % len(names) if names else None
    if isinstance(labels, str) or _index(labels) is not None or not isinstance(labels, Iterable):
        several: list[Label] = [labels] * num  # type: ignore[list-item]
    else:
        several = list(labels)
    found = [number(label, names) for label in several]
    if len(several) != num:
        raise UsageError(f"{len(several)} labels for {num} images")
    return torch.tensor(found)


def denoising(model: Model, guidance: float | Guidance, config: Config) -> Callable[..., Denoise]:
    """From conditions to the denoiser that a sampler sees: with guidance, within the range that `config` keeps it to.

    Returns:
        (label [B] or None, concat [B C + 1 H W] or None, wrap or None) -> D, where `wrap` does something else to each
        net's denoiser first, such as `Tiled`.

    Raises:
        UsageError: for guidance that cannot be, or that this model cannot do.
    """
    g = guidance_of(guidance)
    if not math.isfinite(g.scale):
        raise UsageError(f"guidance is a number, not {g.scale}")
    if not 0 <= g.rescale <= 1:
        raise UsageError(f"the rescale of guidance is from 0 to 1, not {g.rescale:g}")
    if g.interval is not None and not 0 <= g.interval[0] < g.interval[1]:
        raise UsageError(f"the interval of guidance is from a sigma to a larger one, not {g.interval}")
    if g.weaker is not None:
        here, there = (next(each.denoiser.parameters()).device for each in (model, g.weaker))
        if here != there:
            raise UsageError(f"the weaker model is on {there}, this one on {here}: load it there")
        if model.dtype != g.weaker.dtype:
            raise UsageError(
                f"the weaker model computes in {g.weaker.dtype}, this one in {model.dtype}: load both alike"
            )
        ours, theirs = ((d.channels, d.image_size, d.class_names) for d in (model.config.data, g.weaker.config.data))
        if ours != theirs:
            raise UsageError("the weaker model is not of the same images: size, channels and classes have to be")
    elif g.scale != 1 and not model.config.data.class_names:
        raise UsageError(f"guidance {g.scale:g} needs a model with classes, or a weaker model; this one has none")
    elif g.scale != 1 and not model.config.diffusion.label_dropout:
        raise UsageError(f"guidance {g.scale:g} needs a model trained with label dropout; this one has none")

    null_label = len(model.config.data.class_names)

    def denoise_for(
        label: Tensor | None = None,
        concat: Tensor | None = None,
        wrap: Callable[[Denoiser], Conditional] | None = None,
    ) -> Denoise:
        ours = model.denoiser if wrap is None else wrap(model.denoiser)
        denoise = bind(ours, label, concat)
        if g.weaker is not None:
            worse = g.weaker.denoiser
            told = concat if worse.masked else None
            pair = Pair(denoise, bind(worse if wrap is None else wrap(worse), label, told))
            denoise = guided(pair, g.scale, g.interval, g.rescale)
        elif label is not None:
            denoise = guided(WithAndWithoutLabel(ours, label, null_label, concat), g.scale, g.interval, g.rescale)
        kind = config.diffusion.threshold
        return denoise if kind == "none" else threshold(denoise, kind)

    return denoise_for
