"""The Python API: load a model, sample from it, and fill in masked images."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from math import ceil
from pathlib import Path
from typing import Any, Unpack

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
from diffunet.sampling.conditions import Label, SamplingOptions, check_counts, refuse_unknown

log = logging.getLogger(__name__)

INPAINT_BATCH = 16
"""The most fillings of the model's size that are made at a time."""


@dataclass(frozen=True)
class Progress:
    """What `on_step` receives: step `step` of `steps` is done, and the images of the batch look like `denoised`.

    `denoised` is the model's present prediction of them, [B C H W] in [-1, 1].
    """

    step: int
    steps: int
    denoised: Tensor


OnStep = Callable[[Progress], Any]
"""A function that is called after every step; it cancels by returning False."""


def load(
    model: str | Path,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    *,
    compile: bool = False,
    net: build.NetFactory = build.net,
) -> Pipeline:
    """Load a model for sampling and inpainting.

    A program that does so on a CPU should set `OMP_WAIT_POLICY` or `GOMP_SPINCOUNT=1000` before it imports torch, as
    the commands do: else it may take ten times as long where another program is busy.

    Args:
        model: a run folder, a model folder, a diffusers folder, or a name of the hub (owner/name).
        device: where to compute; by default the best device that the machine has.
        dtype: the type of convolutions, products and attention. By default, as in training, torch.bfloat16 where the
            device has it natively, torch.float16 on older GPUs, else torch.float32.
        compile: put the net through `torch.compile`: the first picture of each size takes a minute or more, and all
            that follow less.
        net: the function that makes the net of a model that was trained with `diffunet.train(net=...)`.

    Raises:
        CheckpointError: a model that is missing, damaged or of another kind.
        UsageError: a device that the machine does not have, another `dtype`, or a net of your own without `net`.
    """
    precision = "auto" if dtype is None else next((name for name, t in compute.PRECISIONS.items() if t is dtype), None)
    if precision is None:
        raise UsageError(f"dtype is torch.float32, torch.bfloat16 or torch.float16, not {dtype}")
    with torch.inference_mode(False):  # as in `Pipeline.working`
        how = compute.choose(device, precision, compiled=compile)
        read = models.read_model(model, net)
        how.prepare(read.denoiser, frozen=True)
        how.compile(read.denoiser.net)
        return Pipeline(read.config, read.denoiser, how, net)


class Pipeline:
    """A model that is ready to sample and to inpaint.

    Calls from several threads wait for each other. An exception leaves a pipeline usable.

    Args:
        config: the model's config, resolved.
        denoiser: the model with its weights; it is moved to the device of `how`.
        how: how to compute. By default on the device where the denoiser is, in the type that its weights are cast to,
            or float32.
        net: makes a net of this config, whose memory is counted; see `build.NetFactory`.
    """

    def __init__(
        self, config: Config, denoiser: Denoiser, how: Compute | None = None, net: build.NetFactory = build.net
    ) -> None:
        self.config = config
        self.denoiser = denoiser.eval().requires_grad_(False)
        if how is None:
            types = {parameter.dtype for parameter in denoiser.parameters()}
            cast = (name for name, dtype in compute.PRECISIONS.items() if dtype in types and name != "fp32")
            how = compute.choose(next(denoiser.parameters()).device, next(cast, "fp32"))
        self.how, self._net = how, net
        self._lock = threading.RLock()
        self.how.prepare(denoiser)

    @property
    def device(self) -> torch.device:
        """The device on which the net computes."""
        return self.how.device

    @property
    def dtype(self) -> torch.dtype:
        """The type in which the net computes; see `load`."""
        return self.how.dtype

    @property
    def image_size(self) -> int:
        """Height and width, in pixels, that the model was trained at."""
        return self.config.data.image_size

    @property
    def channels(self) -> int:
        """Channels of an image: 1 is grey, 3 RGB, 4 RGBA."""
        return self.config.data.channels

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the model's classes; empty for a model without classes."""
        return self.config.data.class_names

    def sample(
        self,
        num: int = 16,
        *,
        seed: int = 0,
        labels: Label | Iterable[Label] = None,
        batch_size: int | None = None,
        on_step: OnStep | None = None,
        **options: Unpack[SamplingOptions],
    ) -> list[Image]:
        """Generate images.

        Args:
            num: the number of images.
            seed: image i of a seed starts from the same noise at any `num` and `batch_size`, on any device.
            labels: a class name or number, or one for each image (a list, an array, a tensor); by default the classes
                in turn.
            batch_size: how many images to make at a time; by default as many as are worth it and counted to fit into
                free memory. Where memory runs out, half of it is used from then on.
            on_step: called after every step; it cancels by returning False.
            options: `guidance`, `sampler`, `steps`, `ladder` and `threshold`; see `SamplingOptions`.

        Raises:
            UsageError: arguments with impossible values, or which this model cannot do.
            ResourceError: out of memory with one image at a time.
            DivergedError: the images are not finite, as where float16 is too narrow for the model.
            Cancelled: `on_step` returned False.
        """
        refuse_unknown("Pipeline.sample()", options, SamplingOptions)
        check_counts(num=num, batch_size=batch_size, seed=seed)
        classes = conditions.class_numbers(labels, num, self.class_names)
        config = build.sampling(
            self.config, sampler=options.get("sampler"), ladder=options.get("ladder"),
            threshold=options.get("threshold"),
        )  # fmt: skip
        guidance = conditions.as_guidance(options.get("guidance", 1.0))
        denoise_for = conditions.denoising(self, guidance, config.diffusion.threshold)
        steps = options.get("steps")
        check_counts(steps=steps)
        sigmas = build.ladder(config, self.denoiser.schedule, config.diffusion.sample_steps if steps is None else steps)
        step = build.step(config)
        if batch_size is None:
            batch_size = max(1, self.fits(2 if guidance.scale != 1 else 1))
        shape = (self.channels, self.image_size, self.image_size)
        watch = _Watch(on_step)
        made: list[Image] = []

        def make(first: int, count: int) -> None:
            watch.total = watch.done + ceil((num - first) / count) * (len(sigmas) - 1)
            # A compiled net sees batches of one size: the last is filled up with images that nobody asked for.
            batch = range(first, first + count) if self.how.compiled else range(first, min(first + count, num))
            noise = draws.streams(seed, batch, shape, self.device)
            label = None if classes is None else classes[[i % num for i in batch]].to(self.device)
            first_noise = noise()  # round the mean of the images: what a real one looks like at the first noise level
            x = build.prior_mean(config).to(first_noise) + sigmas[0] * first_noise
            walk = samplers.sample(denoise_for(label), x, sigmas, step, noise)
            made.extend(images.from_array(array) for array in images.to_uint8(watch(walk, num - first)))

        with self.working("with one image at a time"):
            self.in_batches(num, min(batch_size, num), make)
        return made

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
        on_step: OnStep | None = None,
        **reading: Unpack[part.ReadingOptions],
    ) -> list[Image]:
        """Fill in the masked part of an image; every pixel outside it comes back as it was.

        Holes that are far from each other are filled in one by one. A hole that is the whole image is plain sampling,
        of the same images as `sample` gives for this seed.

        Args:
            image: an image of any mode and size, or the path of one. A path is opened, turned as its EXIF says, and
                keeps what that says but for thumbnails, which show what is erased; an Image keeps its `info`. Or what
                `part.read` returned, and then `mask` and `reading` are not looked at.
            mask: white (at least half) = fill, of the image's size; by default what is not opaque is filled.
            num: the number of different fillings.
            seed: filling i of a seed starts from the same noise at any `num`.
            method: trained (the net has the known pixels as a condition: for a model trained with --task inpaint),
                repaint (resampling, Lugmayr et al. 2022), ddnm (Wang et al. 2022), mmps (gradients, Rozet et al. 2024),
                replace (once down the ladder, known pixels pasted into every denoised image), or auto (trained where
                the model is, else mmps).
            fit: crop (a region round each hole, at the model's size), tile (the image's own resolution, by windows of
                the model's size), native (the whole image at once), or auto, by the sizes of image, hole and model.
            steps: of the ladder; repaint walks most of them several times, mmps also goes backwards at each.
            jump_length, jump_n_sample: how many steps repaint (or ddnm, as its time travel) goes back, and how often it
                walks each stretch. 250 steps with 10 and 10 are RePaint as published, 2,410 calls of the net.
            label, guidance: as for `sample`; None fills in without a label.
            on_step: called after every step; it cancels by returning False.
            reading: `box`, `invert_mask`, `soft_mask`, `feather`, `resize_mask` and `max_pixels`; see
                `part.ReadingOptions`.

        Returns:
            `num` images of the input's size, and of its mode where pixels of that mode can be set one by one.

        Raises:
            UsageError: arguments with impossible values; no mask; a mask of another size.
            DataError: an image or mask that cannot be read, or that is too large.
            ResourceError: out of memory.
            DivergedError: as for `sample`.
            Cancelled: `on_step` returned False.
        """
        refuse_unknown("Pipeline.inpaint()", reading, part.ReadingOptions)
        check_counts(
            num=num, seed=seed, max_pixels=reading.get("max_pixels"), steps=steps, jump_length=jump_length,
            jump_n_sample=jump_n_sample, feather=reading.get("feather"),
        )  # fmt: skip
        masked = image if isinstance(image, part.Masked) else part.read(image, mask, **reading)
        with compute.enough_memory(f"for {num} copies of the image: a smaller num, or image, takes less"):
            filled = [masked.picture.copy() for _ in range(num)]
        if not masked.hole.any():
            return filled
        share = float(masked.hole.mean())
        if share > 0.9:
            log.warning("the mask fills %.0f%% of the image; for masks with black = fill: --invert-mask", 100 * share)
        guidance = conditions.as_guidance(guidance)
        if label is None and guidance.weaker is None and guidance.scale != 1:
            raise UsageError(f"guidance {guidance.scale:g} needs a label to go towards")
        watch = _Watch(on_step)
        filler = self._filler(methods.Choice(method, steps, jump_length, jump_n_sample), label, guidance, watch)
        parts = part.parts(masked, self.image_size, fit)
        if len(parts) == 1 and parts[0].is_all_hole(self.image_size):
            # Methods differ in what they do with known pixels, and here are none: all that is left of each is sampling,
            # on its own ladder. So take `sample`, whose ladder suits the model and whose images a user may know.
            log.info("nothing is known of the image: plain sampling")
            made = self.sample(num, seed=seed, labels=label, guidance=guidance, steps=steps, on_step=on_step)
            parts[0].paste(filled, [images.to_array(one, self.channels) for one in made])
            return filled
        fits = self.fits(2 if guidance.scale != 1 else 1, learn=filler.whole.method == "mmps", most=AT_ONCE)
        filler.at_once = max(1, fits)
        levels = [one.levels(self.image_size) for one in parts]
        chosen, calls = regions.summary([one.region for one in parts]), sum(map(filler.calls, levels))
        log.info("%s; %s, %d calls of the net a filling", chosen, filler.whole.method, calls)
        fillings = self._fillings(filler, levels, num, seed, min(fits, INPAINT_BATCH), watch)
        for one, new in zip(parts, fillings, strict=True):
            one.paste(filled, new)
        return filled

    def _filler(self, choice: methods.Choice, label: Label, guidance: Guidance, watch: _Watch) -> Filler:
        with torch.inference_mode(False):  # as in `working`
            choose = partial(methods.choose, self.config, self.denoiser.schedule, choice)
            return Filler(
                self.image_size, build.prior_mean(self.config), choose(), choose(below=REFINE),
                conditions.denoising(self, guidance, self.config.diffusion.threshold),
                conditions.class_number(label, self.class_names), watch, self.device,
            )  # fmt: skip

    def _fillings(
        self, filler: Filler, parts: Sequence[list[part.Part]], num: int, seed: int, at_once: int, watch: _Watch
    ) -> Iterator[list[images.Pixels]]:
        """Yield `num` fillings of each part, which is a list of its levels.

        `at_once` fillings are made at a time if a part is of the model's size, fewer if it is larger.
        """
        sizes = [levels[-1].region.rows * levels[-1].region.columns for levels in parts]
        counts = [min(num, max(1, at_once * self.image_size**2 // size)) for size in sizes]
        steps = [filler.steps(levels) for levels in parts]
        for i, levels in enumerate(parts):
            later = sum(ceil(num / n) * s for n, s in zip(counts[i + 1 :], steps[i + 1 :], strict=True))
            made: list[images.Pixels] = []

            def make(first: int, count: int, i: int = i, later: int = later, made: list[images.Pixels] = made) -> None:
                watch.total = watch.done + ceil((num - first) / count) * steps[i] + later
                batch = range(first, min(first + count, num))
                made.extend(filler.fill(parts[i], batch, draws.key_of("part", seed, i) if i else seed))

            region = levels[-1].region
            with self.working(f"with one filling of {region.columns}x{region.rows} at a time: fit crop takes less"):
                self.in_batches(num, counts[i], make, filler.halve_windows if region.fit == "tile" else None)
            yield made

    # What sampling, inpainting and likelihoods share.

    @contextmanager
    def working(self, needs: str) -> Iterator[None]:
        """Hold the net alone, in the pipeline's autocast and not the caller's; for `needs` see `enough_memory`."""
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
        """Return how many images can go through the net at once, `copies` of each, and back through it if `learn`.

        They are no more than `most`, or than are worth it; see `Compute.at_once`.
        """

        def needed(n: int) -> int:
            return build.footprint(self.config, self.how, learn=learn, make=self._net).peak(n * copies)

        return self.how.at_once(self.image_size, needed, most)

    def in_batches(
        self, num: int, count: int, make: Callable[[int, int], None], smaller: Callable[[], bool] | None = None
    ) -> None:
        """Call `make(first, count)` for batch after batch until `num` images are made.

        Where memory runs out, `count` is halved from then on. With one image at a time `smaller`, which makes the work
        on each image smaller and returns whether it could, is the last resort.
        """
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


class _Watch:
    """Runs walks of a sampler to their end, one after another, and reports each of their steps to `on_step`."""

    def __init__(self, on_step: OnStep | None) -> None:
        self.on_step = on_step
        self.total = 0
        self.done = 0

    def __call__(self, walk: samplers.Walk, wanted: int | None = None) -> Tensor:
        """Return the last x of a walk, float32 [B C H W], of the first `wanted` images, or of all."""
        x: Tensor | None = None
        for _, x, denoised in walk:  # noqa: B007
            self.done += 1
            progress = Progress(self.done, self.total, denoised.x0[:wanted].float())
            if self.on_step is not None and self.on_step(progress) is False:
                raise Cancelled(f"cancelled after step {self.done} of {self.total}")
        assert x is not None, "a ladder has at least two sigmas"
        if not x[:wanted].isfinite().all():
            raise DivergedError(
                "the model's images are not finite: float16 may be too narrow for it (precision fp32 is not; in "
                "Python, dtype=torch.float32), or it is damaged"
            )
        return x[:wanted].float()
