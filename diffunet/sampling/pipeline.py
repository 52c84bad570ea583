"""The Python API: load a model, sample from it, fill in masked images."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from PIL.Image import Image
from torch import Tensor

from diffunet import build, compute, draws
from diffunet.compute import Compute
from diffunet.config import Config
from diffunet.diffusion import samplers
from diffunet.diffusion.denoiser import Denoiser
from diffunet.diffusion.tiling import AT_ONCE
from diffunet.errors import Cancelled, DivergedError, UsageError
from diffunet.inpainting import methods, part, regions
from diffunet.inpainting.filling import REFINE, Filler
from diffunet.interop import models
from diffunet.pictures import images
from diffunet.sampling import conditions
from diffunet.sampling.conditions import Guidance as Guidance
from diffunet.sampling.conditions import Label

log = logging.getLogger(__name__)

INPAINT_BATCH = 16
"""Fillings of the model's size at a time, at most."""


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


def load(
    model: str | Path,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    *,
    compile: bool = False,
) -> Pipeline:
    """Load a model for sampling and inpainting.

    A program that does so on a CPU should set `OMP_WAIT_POLICY` or `GOMP_SPINCOUNT=1000` before it imports torch, as
    the commands do: else it may take ten times as long where another program is busy.

    Args:
        model: a run folder, a model folder, a diffusers folder, or a name of the hub (owner/name).
        device: the best there is by default.
        dtype: of convolutions, products and attention. By default, as in training, torch.bfloat16 where the device has
            it natively, torch.float16 on older GPUs, else torch.float32.
        compile: put the net through `torch.compile`: the first picture of each size takes a minute or more, and all
            that follow less.

    Raises:
        CheckpointError: for a model that is missing, damaged or of another kind.
        UsageError: for a device that is not there, or another `dtype`.
    """
    precision = "auto" if dtype is None else next((name for name, t in compute.PRECISIONS.items() if t is dtype), None)
    if precision is None:
        raise UsageError(f"dtype is torch.float32, torch.bfloat16 or torch.float16, not {dtype}")
    with torch.inference_mode(False):  # as in `Pipeline.working`
        how = compute.choose(device, precision, compiled=compile)
        read = models.read_model(model)
        how.prepare(read.denoiser, frozen=True)
        how.compile(read.denoiser.net)
        return Pipeline(read.config, read.denoiser, how)


class Pipeline:
    """A model, ready to use. Calls from several threads wait for each other; an exception leaves it usable.

    Args:
        config: the model's, resolved.
        denoiser: with its weights; `how` brings it to its device.
        how: to compute; by default where the denoiser is, in the type that its weights are cast to, or float32.
    """

    def __init__(self, config: Config, denoiser: Denoiser, how: Compute | None = None) -> None:
        self.config = config
        self.denoiser = denoiser.eval().requires_grad_(False)
        if how is None:
            types = {parameter.dtype for parameter in denoiser.parameters()}
            cast = (name for name, dtype in compute.PRECISIONS.items() if dtype in types and name != "fp32")
            how = compute.choose(next(denoiser.parameters()).device, next(cast, "fp32"))
        self.how = how
        self._lock = threading.RLock()
        self.how.prepare(denoiser)

    @property
    def device(self) -> torch.device:
        """Where the net is."""
        return self.how.device

    @property
    def dtype(self) -> torch.dtype:
        """What it computes in, see `load`."""
        return self.how.dtype

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
        labels: Label | Iterable[Label] = None,
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
            labels: a class name or number, or one for each image (a list, an array, a tensor); the classes in turn if
                not given.
            guidance: scale of classifier-free guidance, 1 is off; needs a model with classes. Or a `Guidance`.
            sampler: one of `diffunet.names.SAMPLERS` or `ALIASES`, as README describes them.
            steps: of the sampler.
            ladder: how they are spaced: trailing, leading, linspace, karras, log-snr; see `DiffusionConfig.ladder`.
            threshold: none, static or dynamic: what keeps the predicted image within its range. These four are the
                config's by default.
            batch_size: images at a time; by default as many as are worth it and counted to fit into free memory. Where
                that proves too many, half of it is gone on with.
            on_step: called after every step; returning False cancels.

        Raises:
            UsageError: for arguments that cannot be.
            ResourceError: out of memory with one image at a time.
            DivergedError: the images are not finite, as where float16 is too narrow for the model.
            Cancelled: when `on_step` said so.
        """
        _natural(num=num, batch_size=batch_size, seed=seed)
        numbers = conditions.numbers(labels, num, self.class_names)
        config = build.sampling(self.config, sampler=sampler, ladder=ladder, threshold=threshold)
        denoise_for = conditions.denoising(self, guidance, config)
        step, sigmas = build.step(config), self._ladder(steps, config)
        if batch_size is None:
            batch_size = max(1, self.fits(2 if conditions.guidance_of(guidance).scale != 1 else 1))
        batch_size = min(batch_size, num)
        shape = (self.channels, self.image_size, self.image_size)
        watch = _Watch(on_step)
        done: list[Image] = []

        def make(first: int, count: int) -> None:
            watch.total = watch.done + -(-(num - first) // count) * (len(sigmas) - 1)
            # A compiled net sees batches of one size: the last is filled up with images that nobody asked for.
            batch = range(first, first + count) if self.how.compiled else range(first, min(first + count, num))
            noise = draws.streams(seed, batch, shape, self.device)
            label = None if numbers is None else numbers[[i % num for i in batch]].to(self.device)
            walk = samplers.sample(denoise_for(label), self._start(noise(), sigmas), sigmas, step, noise)
            done.extend(images.from_array(array) for array in images.to_uint8(watch(walk, num - first)))

        with self.working("with one image at a time"):
            self.in_batches(num, batch_size, make)
        return done

    def inpaint(
        self,
        image: Image | str | Path | part.Masked,
        mask: Image | NDArray[Any] | str | Path | None = None,
        *,
        num: int = 1,
        seed: int = 0,
        method: str = "auto",
        fit: str = "auto",
        steps: int | None = None,
        jump_length: int | None = None,
        jump_n_sample: int | None = None,
        label: Label = None,
        guidance: float | Guidance = 1.0,
        box: tuple[int, int, int, int] | None = None,
        invert_mask: bool = False,
        soft_mask: bool = False,
        feather: int = 0,
        resize_mask: bool = False,
        max_pixels: int = images.MAX_PIXELS,
        on_step: OnStep | None = None,
    ) -> list[Image]:
        """Fill in the masked part of an image; every pixel outside it comes back as it was.

        Holes that are far from each other are filled in one by one. One that is the whole image is plain sampling, of
        the same images as `sample` gives for this seed.

        Args:
            image: of any mode and size; a path is opened, turned as its EXIF says, and keeps what that says but for
                thumbnails, which show what is erased; an Image keeps its `info`. Or what `part.read` has made of
                an image and a mask, and the arguments about these are not looked at.
            mask: white (at least half) = fill, of the image's size; by default what is not opaque is filled.
            num: different fillings.
            seed: filling i of a seed starts from the same noise at any `num`.
            method: trained (the net is told the known pixels: of a model trained with --task inpaint), repaint
                (resampling, Lugmayr et al. 2022), ddnm (Wang et al. 2022), mmps (gradients, Rozet et al. 2024), replace
                (one walk, known pixels pasted into every denoised image), or auto (trained where the model is, else
                mmps).
            fit: crop (a region round each hole, at the model's size), tile (the image's own resolution, by windows of
                the model's size), native (the whole image at once), or auto, by the sizes of image, hole and model.
            steps: of the ladder; repaint walks most of them several times, mmps also goes backwards at each.
            jump_length, jump_n_sample: how many steps repaint (or ddnm, as its time travel) goes back, and how often it
                walks each stretch. 250 steps with 10 and 10 are RePaint as published, 2,410 calls of the net.
            label, guidance: as for `sample`; without a label, none is told.
            box: (x0, y0, x1, y1) in pixels, x1 and y1 not included: the hole, instead of a mask.
            invert_mask: black = fill.
            soft_mask: blend by the mask's grey; exact where it is 0.
            feather: pixels from the edge of the hole, inwards, over which old and new are blended.
            resize_mask: take a mask of another size to the image's.
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
        _natural(
            num=num, seed=seed, max_pixels=max_pixels, steps=steps, jump_length=jump_length,
            jump_n_sample=jump_n_sample, feather=feather,
        )  # fmt: skip
        masked = image
        if not isinstance(masked, part.Masked):
            masked = part.read(
                masked, mask, box=box, invert=invert_mask, soft=soft_mask, feather=feather, resize_mask=resize_mask,
                max_pixels=max_pixels,
            )  # fmt: skip
        with compute.enough_memory(f"for {num} copies of the image: a smaller num, or image, takes less"):
            filled = [masked.picture.copy() for _ in range(num)]
        if not masked.hole.any():
            return filled
        share = float(masked.hole.mean())
        if share > 0.9:
            log.warning("the mask fills %.0f%% of the image; for masks with black = fill: --invert-mask", 100 * share)
        g = conditions.guidance_of(guidance)
        if label is None and g.weaker is None and g.scale != 1:
            raise UsageError(f"guidance {g.scale:g} needs a label to go towards")
        watch = _Watch(on_step)
        with torch.inference_mode(False):  # as in `working`
            way = partial(
                methods.choose, self.config, self.denoiser.schedule, method, steps, jump_length, jump_n_sample
            )
            filler = Filler(
                self.config, way(), way(below=REFINE), conditions.denoising(self, g, self.config),
                conditions.number(label, self.class_names), watch, self.device,
            )  # fmt: skip
        parts = part.parts(masked, self.image_size, fit)
        if len(parts) == 1 and parts[0].is_all_hole(self.image_size):
            log.info("nothing is known of the image: plain sampling")
            made = self.sample(num, seed=seed, labels=label, guidance=g, steps=steps, on_step=on_step)
            parts[0].paste(filled, [images.to_array(one, self.channels) for one in made])
            return filled
        fits = self.fits(2 if g.scale != 1 else 1, learn=filler.whole.method == "mmps", most=AT_ONCE)
        filler = replace(filler, at_once=max(1, fits))
        levels = [each.levels(self.image_size) for each in parts]
        counts = [self._fillings(num, each.region, min(fits, INPAINT_BATCH)) for each in parts]
        walks = [filler.steps(each) for each in levels]
        took, calls = regions.summary([each.region for each in parts]), sum(map(filler.calls, levels))
        log.info("%s; %s, %d calls of the net a filling", took, filler.whole.method, calls)
        for place, each in enumerate(parts):
            new: list[images.Pixels] = []

            def make(first: int, count: int, place: int = place, new: list[images.Pixels] = new) -> None:
                later = sum(-(-num // n) * s for n, s in zip(counts[place + 1 :], walks[place + 1 :], strict=True))
                watch.total = watch.done + -(-(num - first) // count) * walks[place] + later
                batch = range(first, min(first + count, num))
                new.extend(filler.fill(levels[place], batch, draws.key_of("part", seed, place) if place else seed))

            def fewer_windows() -> bool:
                nonlocal filler
                halved = filler.at_once > 1
                filler = replace(filler, at_once=max(1, filler.at_once // 2))
                return halved

            tiled, size = each.region.fit == "tile", f"{each.region.columns}x{each.region.rows}"
            with self.working(f"with one filling of {size} at a time: fit crop takes less"):
                self.in_batches(num, counts[place], make, fewer_windows if tiled else None)
            each.paste(filled, new)
        return filled

    def _fillings(self, num: int, region: regions.Region, at_once: int) -> int:
        """How many fillings of a region to make at a time: fewer of larger ones."""
        return min(num, max(1, at_once * self.image_size**2 // (region.rows * region.columns)))

    # What sampling and inpainting share.

    @contextmanager
    def working(self, needs: str) -> Iterator[None]:
        """Alone with the net, in the pipeline's autocast, not the caller's. `needs`: as `enough_memory`."""
        with (
            compute.enough_memory(needs),
            self._lock,
            torch.inference_mode(False),  # mmps takes gradients, which the tensors of a caller's would not allow
            torch.no_grad(),
            self.how.kernels(),
            self.how.autocast(),
            self.how.compiling(),
        ):
            yield

    def fits(self, copies: int = 1, *, learn: bool = False, most: int | None = None) -> int:
        """How many images, `copies` of each, to put through the net at once, and back if `learn`: `Compute.at_once`."""

        def needed(n: int) -> int:
            return build.footprint(self.config, self.how, learn=learn).peak(n * copies)

        return self.how.at_once(self.image_size, needed, most)

    def in_batches(
        self, num: int, count: int, make: Callable[[int, int], None], smaller: Callable[[], bool] | None = None
    ) -> None:
        """Call `make(first, count)` until `num` are made. Where memory runs out half of `count` is gone on with, or
        with one at a time what `smaller` makes smaller; it says whether it did."""
        first = 0
        while first < num:
            try:
                make(first, count)
            except (MemoryError, RuntimeError) as error:
                halved = count > 1
                if not compute.is_out_of_memory(error) or not (halved or (smaller is not None and smaller())):
                    raise
                count = max(1, count // 2)
                log.warning("out of memory; going on with %s", f"{count} at a time" if halved else "smaller pieces")
                compute.give_back(error)
            else:
                first += count

    def _ladder(self, steps: int | None, config: Config) -> Tensor:
        steps = config.diffusion.sample_steps if steps is None else steps
        _natural(steps=steps)
        return build.ladder(config, self.denoiser.schedule, steps)

    def _start(self, noise: Tensor, ladder: Tensor) -> Tensor:
        """Pure noise round the mean of the images: what a real image looks like at the first sigma."""
        return build.prior_mean(self.config).to(noise) + ladder[0] * noise


class _Watch:
    """Walks to the end of one walk after another, telling `on_step`, and gives the last x [B C H W] of each."""

    def __init__(self, on_step: OnStep | None, total: int = 0) -> None:
        self.on_step = on_step
        self.total = total
        self.done = 0

    def __call__(self, walk: samplers.Walk, asked: int | None = None) -> Tensor:
        """Of the first images that are `asked` for; all by default."""
        x: Tensor | None = None
        for _, x, denoised in walk:  # noqa: B007
            self.done += 1
            told = Progress(self.done, self.total, denoised.x0[:asked].float())
            if self.on_step is not None and self.on_step(told) is False:
                raise Cancelled(f"cancelled after step {self.done} of {self.total}")
        assert x is not None, "a ladder has at least two sigmas"
        if not x[:asked].isfinite().all():
            raise DivergedError(
                "the model's images are not finite: float16 may be too narrow for it (precision fp32 is not; in "
                "Python, dtype=torch.float32), or it is damaged"
            )
        return x[:asked].float()


def _natural(**values: int | None) -> None:
    """Raises UsageError for a number that is too small, or too large for anything."""
    for name, value in values.items():
        least = 0 if name in ("seed", "feather") else 1
        if value is not None and not least <= value < 2**63:
            raise UsageError(f"{name} is at least {least}{' and below 2**63' if value > 0 else ''}, not {value}")
