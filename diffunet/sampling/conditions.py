"""The options of sampling, and the conditions under which an image is denoised: its label, guidance, known pixels."""

from __future__ import annotations

import difflib
import logging
import math
from collections.abc import Callable, Container, Iterable, Mapping, Sequence, Sized
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, SupportsIndex, TypedDict

import torch
from torch import Tensor

from diffunet import build, plain
from diffunet.config import DataConfig
from diffunet.data import augment
from diffunet.data.cache import Layout
from diffunet.diffusion.denoiser import Conditional, Denoise, Denoiser, bind
from diffunet.diffusion.guidance import Pair, WithAndWithoutLabel, guided, threshold
from diffunet.errors import DataError, UsageError
from diffunet.pictures import given, images, made, opening

if TYPE_CHECKING:
    from diffunet.sampling.pipeline import Pipeline

log = logging.getLogger(__name__)

OWN_INTERVAL = (0.2, 4.0)
"""The noise levels between which a model is guided by the weaker model beside it: see samples/recipe.md."""

Label = SupportsIndex | str | None
"""A class by its name or by its number (an integer of Python, numpy or torch), or None for an image without a label."""


@dataclass(frozen=True)
class Guidance:
    """How samples are pushed away from the prediction of a worse denoiser.

    Args:
        scale: how far; 1 turns guidance off.
        weaker: a pipeline of the same images with a worse model: smaller, or an earlier checkpoint of the same run
            (autoguidance, Karras et al. 2024). None takes the model itself, without its label (classifier-free), or,
            where it has no classes, the weaker model beside it.
        interval: guide only where low < sigma <= high (Kynkäänniemi et al. 2024).
        rescale: 0 to 1, how far the standard deviation of a guided image is scaled back to the unguided one's (Lin et
            al. 2023).
    """

    scale: float = 1.0
    weaker: Pipeline | None = None
    interval: tuple[float, float] | None = None
    rescale: float = 0.0


class SamplingOptions(TypedDict, total=False):
    """How images are sampled: keywords of `Pipeline.sample` and of `evaluation.report.evaluate`.

    An option that is left out or None takes its value from the model's config.
    """

    guidance: float | Guidance | None
    """A scale or a `Guidance`; 1, the default, is off. See `chosen`."""
    sampler: str | None
    """ddpm, ddpm-large, ddpm-learned, ddim, euler, euler-ancestral, heun, dpm++2m, dpm++2m-sde or unipc."""
    steps: int | None
    """The number of steps that the sampler takes, at least 1."""
    ladder: str | None
    """How the steps are spaced: trailing, leading, linspace, karras or log-snr; see `DiffusionConfig.ladder`."""
    threshold: str | None
    """What keeps the denoised image within [-1, 1] at every step: none, static or dynamic."""


def refuse_unknown(function: str, options: Mapping[str, object], known: type) -> None:
    """Raise Python's TypeError for a keyword that the TypedDict `known` lacks: `**options` lets every name through."""
    for name in options:
        if name not in known.__annotations__:
            raise TypeError(f"{function} got an unexpected keyword argument {name!r}")


def chosen(guidance: float | Guidance | None, model: Pipeline) -> Guidance:
    """Return the guidance that a model is sampled with, in plain numbers; None is none.

    A scale for a model without classes, which cannot be guided by a label, is that of the weaker model beside it.

    Raises:
        UsageError: no number, no pipeline as the weaker model, or a scale of 1 with what only another one needs.
    """
    found = guidance if isinstance(guidance, Guidance) else Guidance(1.0 if guidance is None else guidance)
    found = Guidance(
        plain.number("guidance", found.scale), found.weaker,
        None if found.interval is None else plain.pair("the interval of guidance", found.interval),
        plain.number("the rescale of guidance", found.rescale, "from 0 to 1"),
    )  # fmt: skip
    if found.weaker is not None and not hasattr(found.weaker, "denoiser"):
        raise UsageError(f"the weaker model of guidance is one from diffunet.load, not {plain.shown(found.weaker)}")
    if found.scale == 1 and (found.weaker is not None or found.interval is not None or found.rescale):
        raise UsageError("guidance of scale 1 is none: its weaker, interval and rescale need another scale")
    if found.scale == 1 or found.weaker is not None or model.weaker is None or model.class_names:
        return found
    return replace(found, weaker=model.weaker, interval=found.interval or OWN_INTERVAL)


def class_number(label: Label, names: Sequence[str]) -> int | None:
    """Return the number of a label among the classes `names`, or the null label for None; None if there are no classes.

    Raises:
        UsageError: a label that the model does not have.
    """
    if label is None:
        return len(names) if names else None
    if not names:
        raise UsageError("this model has no classes; train with --classes to have labels")
    index = names.index(label) if isinstance(label, str) and label in names else _number_of(label)
    if index is not None and 0 <= index < len(names):
        return index
    close = difflib.get_close_matches(label, names, n=1) if isinstance(label, str) else []
    hint = "".join(f"did you mean {name}? " for name in close)
    listed = ", ".join(names[:20]) + (" ..." if len(names) > 20 else "")
    raise UsageError(f"there is no class {plain.shown(label)}; {hint}there are {listed}")


def _number_of(label: object) -> int | None:
    """Return the integer that a label is or spells ("3"); None for anything else, including True and "²"."""
    if isinstance(label, str):
        return int(label) if label.isdecimal() and len(label) < 10 else None
    try:
        return plain.integer("label", label, least=0)
    except UsageError:
        return None


def class_numbers(labels: Label | Iterable[Label], num: int, names: Sequence[str]) -> Tensor | None:
    """Return the classes of `num` images among `names`, int64 [num]; None if there are no classes.

    `labels` is one label for all images, or one for each of them, or None for all classes in turn.

    Raises:
        UsageError: a label that the model does not have, or another number of labels than of images.
    """
    if labels is None:
        return torch.arange(num) % len(names) if names else None
    one = isinstance(labels, str | bytes | Mapping | set) or getattr(labels, "ndim", None) == 0
    if one or not isinstance(labels, Iterable):
        labels = [labels] * num  # type: ignore[list-item]
    listed = list(islice(labels, num + 1))  # an iterator may go on for ever
    if len(listed) != num:
        found = str(len(labels)) if isinstance(labels, Sized) else str(len(listed)) if len(listed) < num else "more"
        raise UsageError(f"{found} labels for {num} images")
    numbers = [class_number(label, names) for label in listed]
    return torch.tensor(numbers) if names else None


def picture_name(seed: int, number: int, classes: Tensor | None, names: Sequence[str]) -> str:
    """Return the name, without suffix, of the file of an image of a seed; `classes` [num] are as of `class_numbers`."""
    label = len(names) if classes is None else int(classes[number])
    return f"{seed}-{number:05d}" + (f"-{made.file_names(tuple(names))[label]}" if label < len(names) else "")


def steps_of(strength: float, steps: int) -> int:
    """Return how many of `steps` a strength, above 0 up to 1, takes: its share of them, rounded up."""
    return max(1, math.ceil(strength * steps - 1e-9))  # in floats 0.55 * 100 is more than 55


def skipped(skip: Any, num: int) -> set[int]:
    """Return those of the numbers below `num` that are in `skip`. Raises UsageError where it cannot hold any."""
    try:
        skip = skip if isinstance(skip, Container) else set(skip)
        return {i for i in range(num) if i in skip}
    except Exception:
        raise UsageError(f"skip holds the numbers of images, not {plain.shown(skip)}") from None


def given_noise(noise: Any, shape: tuple[int, ...]) -> Tensor:
    """Return noise that a program gives, an array or tensor [num C H W] with `shape` = (C, H, W), as float32.

    Raises:
        UsageError: another shape, or values that are not finite numbers.
    """
    try:
        tensor = torch.as_tensor(noise, device="cpu").detach()
        if not tensor.is_floating_point():
            raise TypeError
        tensor = tensor.to(torch.float32)
    except Exception:
        raise UsageError(f"noise is an array or tensor of floats [num C H W], not {plain.shown(noise)}") from None
    if tensor.ndim != 4 or tuple(tensor.shape[1:]) != shape or not len(tensor):
        raise UsageError(f"noise is [num {' '.join(map(str, shape))}] for this model, not {[*tensor.shape]}")
    if not tensor.isfinite().all():
        raise UsageError("noise has values that are not finite")
    return tensor


def given_start(start: Any, data: DataConfig) -> Tensor:
    """Return a picture in any form of `given.picture` as a model of such `data` saw its images, a window in the middle.

    Size, colours, transparency and values of more than 8 bits become what they become in training. Of a file of several
    frames the first is taken, and a line says so.

    Returns:
        The picture at the model's size, float32 [C H W].
    """
    content, size, fit, background = given.bytes_of(start, "start"), data.image_size, data.fit, data.background
    picture = given.picture(start if content is None else content, "start")
    file, name = (picture, str(picture)) if isinstance(picture, Path) else (content, "start")
    if file is not None and (count := len(opening.page_places(file))) > 1:
        log.warning("%s has %d pages or frames: the first is taken", name, count)
    try:
        picture = images.open_image(picture) if isinstance(picture, Path) else given.upright(picture)
        srgb, range = data.reading == 2, build.ranges(data).of(picture)
        pixels = images.to_array(picture, data.channels, background, range, srgb=srgb)
    except (DataError, OSError, SyntaxError, ValueError) as error:  # an Image whose file is damaged shows it only now
        raise DataError(f"{name}: {error}") from None
    whole = Layout(size, data.channels, fit, background, 1.0, data.scales).arrange(pixels)
    return images.to_float(augment.square(whole, size, fit, background)[None])[0]


def denoising(model: Pipeline, guidance: Guidance, threshold_kind: str) -> Callable[..., Denoise]:
    """Return a function from conditions to the denoiser that a sampler sees, guided and kept within range.

    The function takes label [B] or None, concat [B C + 1 H W] or None, and `wrap`, which is applied
    first to each model's denoiser, to make it `Tiled` for instance. `threshold_kind` is "none" or one of `threshold`.

    Raises:
        UsageError: guidance with impossible values, or which this model cannot do.
    """
    _check_guidance(model, guidance)
    scale, weaker, interval, rescale = guidance.scale, guidance.weaker, guidance.interval, guidance.rescale
    null_label = len(model.config.data.class_names)

    def denoise_for(
        label: Tensor | None = None, concat: Tensor | None = None, wrap: Callable[[Denoiser], Conditional] | None = None
    ) -> Denoise:
        main = model.denoiser if wrap is None else wrap(model.denoiser)
        denoise = bind(main, label, concat)
        if weaker is not None:
            worse = weaker.denoiser if wrap is None else wrap(weaker.denoiser)
            pair = Pair(denoise, bind(worse, label, concat if weaker.denoiser.masked else None))
            denoise = guided(pair, scale, interval, rescale)
        elif label is not None:
            denoise = guided(WithAndWithoutLabel(main, label, null_label, concat), scale, interval, rescale)
        return denoise if threshold_kind == "none" else threshold(denoise, threshold_kind)

    return denoise_for


def _check_guidance(model: Pipeline, guidance: Guidance) -> None:
    scale, weaker, interval, data = guidance.scale, guidance.weaker, guidance.interval, model.config.data
    if not math.isfinite(scale):
        raise UsageError(f"guidance is a number, not {scale}")
    if not 0 <= guidance.rescale <= 1:
        raise UsageError(f"the rescale of guidance is from 0 to 1, not {guidance.rescale:g}")
    if interval is not None and not 0 <= interval[0] < interval[1]:
        raise UsageError(f"the interval of guidance is from a sigma to a larger one, not {interval}")
    if weaker is not None:
        device, its_device = (next(pipeline.denoiser.parameters()).device for pipeline in (model, weaker))
        if device != its_device:
            raise UsageError(f"the weaker model is on {its_device}, this one on {device}: load it there")
        if model.dtype != weaker.dtype:
            raise UsageError(f"the weaker model computes in {weaker.dtype}, this one in {model.dtype}: load both alike")
        if len({(d.channels, d.image_size, d.class_names) for d in (data, weaker.config.data)}) > 1:
            raise UsageError("the weaker model is not of the same images: size, channels and classes have to be")
    elif scale != 1 and not data.class_names:
        raise UsageError(f"guidance {scale:g} needs a model with classes, or a weaker model; this one has none")
    elif scale != 1 and not model.config.diffusion.label_dropout:
        raise UsageError(f"guidance {scale:g} needs a model trained with label dropout; this one has none")
