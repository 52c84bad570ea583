"""The Python API: load a model, sample from it, fill in masked images."""

from __future__ import annotations

import difflib
import logging
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from PIL.Image import Image
from torch import Tensor

from diffunet import build, devices, draws, storage
from diffunet.config import Config
from diffunet.data import images, part, regions
from diffunet.diffusion import samplers
from diffunet.diffusion.denoiser import Denoise, Denoised, Denoiser, bind
from diffunet.diffusion.guidance import Pair, WithAndWithoutLabel, guided, threshold
from diffunet.diffusion.inpainting import keep_known, resample_ladder
from diffunet.errors import Cancelled, UsageError

log = logging.getLogger(__name__)

REPAINT_STEPS, REPAINT_VISITS = 40, 5
"""Steps of the default ladder, and how often each stretch of a fifth of it is walked: 168 calls of the net."""

INPAINT_BATCH = 16
"""Fillings at a time."""

Label = int | str | None


@dataclass(frozen=True)
class Guidance:
    """How samples are pushed away from what a worse denoiser says.

    Args:
        scale: 1 is off.
        weaker: a model of the same images that is worse: smaller, or an earlier checkpoint of the same run
            (autoguidance, Karras et al. 2024). None: the model itself without the label (classifier-free guidance).
        interval: guide only where low < sigma <= high (Kynkäänniemi et al. 2024).
        rescale: 0 to 1, how far the deviation of a guided image is brought back (Lin et al. 2023).
    """

    scale: float = 1.0
    weaker: Pipeline | None = None
    interval: tuple[float, float] | None = None
    rescale: float = 0.0


@dataclass(frozen=True)
class Progress:
    """What `on_step` is told: `step` of `steps` is done, and what the images look like to the model by now.

    `denoised` is [B C H W] in [-1, 1], of the batch at work.
    """

    step: int
    steps: int
    denoised: Tensor


OnStep = Callable[[Progress], Any]
"""Returning False cancels."""


def load(model: str | Path, device: str | torch.device | None = None, dtype: torch.dtype | None = None) -> Pipeline:
    """Load a model for sampling and inpainting.

    Args:
        model: a run folder or a model folder.
        device: the best there is by default.
        dtype: torch.bfloat16 runs the net in it, faster where it is native; float32 by default.

    Raises:
        CheckpointError: for a model that is missing, damaged or of another kind.
        UsageError: for a device that is not there.
    """
    read = storage.read_model(model)
    return Pipeline(read.config, read.denoiser.to(devices.device(None if device is None else str(device))), dtype)


class Pipeline:
    """A model, ready to use. Calls from several threads wait for each other; an exception leaves it usable.

    Args:
        config: the model's, resolved.
        denoiser: with its weights, where it is to run.
        dtype: see `load`.
    """

    def __init__(self, config: Config, denoiser: Denoiser, dtype: torch.dtype | None = None) -> None:
        self.config = config
        self.denoiser = denoiser.eval()
        self.dtype = dtype
        self._lock = threading.RLock()
        if self.device.type == "cpu":  # measured: convolutions take half the time so
            denoiser.to(memory_format=torch.channels_last)

    @property
    def device(self) -> torch.device:
        """Where the net is."""
        return next(self.denoiser.parameters()).device

    @property
    def image_size(self) -> int:
        """Height and width that the model was trained at."""
        return self.config.data.image_size

    @property
    def channels(self) -> int:
        """1 grey, 3 RGB, 4 RGBA."""
        return self.config.data.channels

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes, empty for a model without."""
        return self.config.data.class_names

    def sample(
        self,
        num: int = 16,
        *,
        seed: int = 0,
        labels: Label | Sequence[Label] = None,
        guidance: float | Guidance = 1.0,
        sampler: str | None = None,
        steps: int | None = None,
        ladder: str | None = None,
        threshold: str | None = None,
        batch_size: int | None = None,
        on_step: OnStep | None = None,
    ) -> list[Image]:
        """Generate images.

        Args:
            num: how many.
            seed: image i of a seed starts from the same noise at any `num` and `batch_size`, on any device.
            labels: a class name or number, or one for each image; by default the classes in turn.
            guidance: scale of classifier-free guidance, 1 is off; needs a model with classes. Or a `Guidance`.
            sampler: ddpm, ddpm-large, ddpm-learned, ddim, euler, euler-ancestral, heun, dpm++2m, dpm++2m-sde, unipc.
            steps: of the sampler.
            ladder: how they are spaced: trailing, leading, linspace, karras, log-snr; see `DiffusionConfig.ladder`.
            threshold: none, static or dynamic: what keeps the predicted image within its range. These four are the
                config's by default.
            batch_size: images at a time.
            on_step: called after every step; returning False cancels.

        Raises:
            UsageError: for arguments that cannot be.
            ResourceError: out of memory.
            Cancelled: when `on_step` said so.
        """
        _natural(num=num, batch_size=batch_size, seed=seed)
        numbers = self._labels(labels, num)
        config = build.sampling(self.config, sampler=sampler, ladder=ladder, threshold=threshold)
        denoise_for = self._guidance(guidance, config)
        step, sigmas = build.step(config), self._ladder(steps, config)
        batch_size = batch_size or (64 if self.device.type == "cuda" else 16)
        shape = (self.channels, self.image_size, self.image_size)
        batches = [range(first, min(first + batch_size, num)) for first in range(0, num, batch_size)]
        done: list[Image] = []
        with self.working(f"with batch_size {batch_size} and num {num}: a smaller batch_size takes less"):
            for place, batch in enumerate(batches):
                noise = draws.streams(seed, batch, shape, self.device)
                label = None if numbers is None else numbers[batch.start : batch.stop].to(self.device)
                walk = samplers.sample(denoise_for(label), self._start(noise(), sigmas), sigmas, step, noise)
                x = self._watch(walk, on_step, place * (len(sigmas) - 1), len(batches) * (len(sigmas) - 1))
                done += [images.from_array(array) for array in images.to_uint8(x)]
        return done

    def inpaint(
        self,
        image: Image | str | Path,
        mask: Image | NDArray[Any] | str | Path | None = None,
        *,
        num: int = 1,
        seed: int = 0,
        method: str = "auto",
        fit: str = "auto",
        steps: int | None = None,
        label: Label = None,
        guidance: float | Guidance = 1.0,
        invert_mask: bool = False,
        soft_mask: bool = False,
        max_pixels: int = images.MAX_PIXELS,
        on_step: OnStep | None = None,
    ) -> list[Image]:
        """Fill in the masked part of an image; every pixel outside it comes back as it was.

        Args:
            image: of any mode and size; a path is opened, and turned as its EXIF says.
            mask: white (at least half) = fill, of the image's size; by default what is not opaque is filled.
            num: different fillings.
            seed: filling i of a seed starts from the same noise at any `num`.
            method: repaint (resampling, Lugmayr et al. 2022), replace (one walk, known pixels pasted into every
                denoised image), or auto (repaint).
            fit: crop (a region round the hole, at the model's size), native (the whole image), or auto.
            steps: of the ladder; repaint walks most of them five times. The default is 168 calls of the net.
            label, guidance: as for `sample`; without a label, none is told.
            invert_mask: black = fill.
            soft_mask: blend by the mask's grey; exact where it is 0.
            max_pixels: larger images and masks are refused, before they are decoded.
            on_step: called after every step; returning False cancels.

        Returns:
            `num` images of the input's size, and of its mode where pixels of that mode can be set one by one.

        Raises:
            UsageError: arguments that cannot be; no mask; a mask of another size.
            DataError: an image or mask that cannot be read, or that is too large.
            ResourceError: out of memory.
            Cancelled: when `on_step` said so.
        """
        _natural(num=num, seed=seed, max_pixels=max_pixels)
        picture, hole, weight = part.read(image, mask, invert_mask, soft_mask, max_pixels)
        if not hole.any():
            return [picture.copy() for _ in range(num)]
        share = float(hole.mean())
        if share > 0.9:
            log.warning("the mask fills %.0f%% of the image; for masks with black = fill: --invert-mask", 100 * share)
        region = regions.choose(hole, self.image_size, fit)
        if fit == "auto" and (region.fit != "native" or hole.shape != (self.image_size, self.image_size)):
            log.info("%s", region)
        cut = part.Part(picture, hole, weight, region, mask is None)
        pixels, gap = cut.cut(self.channels)
        walk_of, ladder = self._method(method, steps)
        denoise_for = self._guidance(guidance, self.config)
        g = guidance if isinstance(guidance, Guidance) else Guidance(guidance)
        if label is None and g.weaker is None and g.scale != 1:
            raise UsageError(f"guidance {g.scale:g} needs a label to go towards")
        names = self.class_names
        if label is not None and not names:
            raise UsageError("this model has no classes; train with --classes to have labels")
        number = self._number(label) if names else None
        batches = [range(first, min(first + INPAINT_BATCH, num)) for first in range(0, num, INPAINT_BATCH)]
        filled: list[images.Pixels] = []
        at_once = f"{len(batches[0])} fillings of {region.columns}x{region.rows} at a time"
        with self.working(f"with {at_once}: a smaller num, or fit crop, takes less"):
            known = images.to_float(torch.from_numpy(pixels[None]).to(self.device))
            keep = torch.from_numpy(~gap).to(self.device)
            for place, batch in enumerate(batches):
                told = None if number is None else torch.full((len(batch),), number, device=self.device)
                noise = draws.streams(seed, batch, known.shape[1:], self.device)
                walk = walk_of(denoise_for(told), known, keep, self._start(noise(), ladder), noise)
                x = self._watch(walk, on_step, place * (len(ladder) - 1), len(batches) * (len(ladder) - 1))
                filled += list(images.to_uint8(x))
        return cut.paste(filled)

    def _method(
        self, method: str, steps: int | None
    ) -> tuple[Callable[..., Iterator[tuple[int, Tensor, Denoised]]], Tensor]:
        """A way to fill in, as a function that begins the walk, and the ladder that it walks."""
        if method in ("auto", "repaint"):
            uniform = build.sampling(self.config, ladder="trailing")  # in time, as RePaint walks
            plain = self._ladder(REPAINT_STEPS if steps is None else steps, uniform)
            ladder = resample_ladder(plain, max(1, (len(plain) - 1) // 5), REPAINT_VISITS)
            return lambda denoise, known, keep, x, noise: samplers.sample(
                keep_known(denoise, known, keep, noise), x, ladder, samplers.euler(eta=1.0), noise
            ), ladder
        if method == "replace":
            ladder = self._ladder(steps, self.config)
            step = build.step(self.config)
            return lambda denoise, known, keep, x, noise: samplers.sample(
                keep_known(denoise, known, keep), x, ladder, step, noise
            ), ladder
        raise UsageError(f"unknown method {method!r}; there are auto, repaint and replace")

    # What sampling and inpainting share.

    @contextmanager
    def working(self, needs: str) -> Iterator[None]:
        """Alone with the net, in the pipeline's autocast, not the caller's. `needs`: as `enough_memory`."""
        half = self.dtype not in (None, torch.float32)
        with (
            devices.enough_memory(needs),
            self._lock,
            torch.no_grad(),
            torch.autocast(self.device.type, self.dtype, enabled=half),
        ):
            yield

    def _ladder(self, steps: int | None, config: Config) -> Tensor:
        steps = config.diffusion.sample_steps if steps is None else steps
        _natural(steps=steps)
        return build.ladder(config, self.denoiser.schedule, steps)

    def _start(self, noise: Tensor, ladder: Tensor) -> Tensor:
        """Pure noise round the mean of the images: what a real image looks like at the first sigma."""
        return build.prior_mean(self.config).to(noise) + ladder[0] * noise

    def _labels(self, labels: Label | Sequence[Label], num: int) -> Tensor | None:
        """int64 [num], or None for a model without classes."""
        names = self.class_names
        if not names:
            if labels is not None:
                raise UsageError("this model has no classes; train with --classes to have labels")
            return None
        if labels is None:
            return torch.arange(num) % len(names)
        several = [labels] * num if isinstance(labels, int | str) else list(labels)
        if len(several) != num:
            raise UsageError(f"{len(several)} labels for {num} images")
        return torch.tensor([self._number(label) for label in several])

    def _number(self, label: Label) -> int:
        names = self.class_names
        if label is None:
            return len(names)  # the null label
        if isinstance(label, str) and label in names:
            return names.index(label)
        if isinstance(label, str) and label.isdigit():
            label = int(label)
        if isinstance(label, int) and 0 <= label < len(names):
            return label
        close = difflib.get_close_matches(str(label), names, n=1)
        shown = ", ".join(names[:20]) + (" ..." if len(names) > 20 else "")
        hint = f"did you mean {close[0]}? " if close else ""
        raise UsageError(f"there is no class {label!r}; {hint}there are {shown}")

    def _guidance(self, guidance: float | Guidance, config: Config) -> Callable[[Tensor | None], Denoise]:
        """From labels to a denoiser with guidance, within the range that the config keeps it to."""
        g = guidance if isinstance(guidance, Guidance) else Guidance(guidance)
        if not math.isfinite(g.scale):
            raise UsageError(f"guidance is a number, not {g.scale}")
        if not 0 <= g.rescale <= 1:
            raise UsageError(f"the rescale of guidance is from 0 to 1, not {g.rescale:g}")
        if g.interval is not None and not 0 <= g.interval[0] < g.interval[1]:
            raise UsageError(f"the interval of guidance is from a sigma to a larger one, not {g.interval}")
        if g.weaker is not None:
            if g.weaker.device != self.device:
                raise UsageError(f"the weaker model is on {g.weaker.device}, this one on {self.device}: load it there")
            ours, theirs = ((p.channels, p.image_size, p.class_names) for p in (self, g.weaker))
            if ours != theirs:
                raise UsageError("the weaker model is not of the same images: size, channels and classes have to be")
        elif g.scale != 1 and not self.class_names:
            raise UsageError(f"guidance {g.scale:g} needs a model with classes, or a weaker model; this one has none")
        elif g.scale != 1 and not self.config.diffusion.label_dropout:
            raise UsageError(f"guidance {g.scale:g} needs a model trained with label dropout; this one has none")

        def denoise_for(label: Tensor | None) -> Denoise:
            denoise = bind(self.denoiser, label)
            if g.weaker is not None:
                denoise = guided(Pair(denoise, bind(g.weaker.denoiser, label)), g.scale, g.interval, g.rescale)
            elif label is not None:
                denoise = guided(WithAndWithoutLabel(self.denoiser, label), g.scale, g.interval, g.rescale)
            kind = config.diffusion.threshold
            return denoise if kind == "none" else threshold(denoise, kind)

        return denoise_for

    def _watch(
        self, walk: Iterator[tuple[int, Tensor, Denoised]], on_step: OnStep | None, before: int, total: int
    ) -> Tensor:
        """Walk to the end, telling `on_step`, and give the last x."""
        x: Tensor | None = None
        for i, x, denoised in walk:  # noqa: B007
            if on_step is not None and on_step(Progress(before + i + 1, total, denoised.x0.float())) is False:
                raise Cancelled(f"cancelled after step {before + i + 1} of {total}")
        assert x is not None, "a ladder has at least two sigmas"
        return x.float()


def _natural(**values: int | None) -> None:
    """Raises UsageError for a number that is too small, or too large for anything."""
    for name, value in values.items():
        least = 0 if name == "seed" else 1
        if value is not None and not least <= value < 2**63:
            raise UsageError(f"{name} is at least {least}{' and below 2**63' if value > 0 else ''}, not {value}")
