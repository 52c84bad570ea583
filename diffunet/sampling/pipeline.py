"""The Python API: load a model, sample from it, and fill in masked images."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Container, Iterable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from functools import partial
from math import ceil
from pathlib import Path
from typing import Any, Unpack

import torch

from diffunet import build, compute, draws, plain
from diffunet.compiler import Unavailable
from diffunet.compute import Compute
from diffunet.config import Config
from diffunet.defaults import own_defaults
from diffunet.diffusion import samplers, tiling
from diffunet.diffusion.denoiser import Denoiser
from diffunet.errors import UsageError
from diffunet.inpainting import filling, methods, part, regions
from diffunet.interop import models
from diffunet.nn import kernels as native
from diffunet.pictures import images
from diffunet.pictures.made import Picture, Pictures, source_of
from diffunet.sampling import conditions
from diffunet.sampling.batching import batches, in_batches
from diffunet.sampling.conditions import Guidance as Guidance
from diffunet.sampling.conditions import Label, SamplingOptions, refuse_unknown
from diffunet.sampling.watching import OnStep, Watch
from diffunet.sampling.watching import Progress as Progress

log = logging.getLogger(__name__)

INPAINT_BATCH = 16
"""The most fillings of the model's size that are made at a time."""


def load(
    model: str | Path, device: str | torch.device | None = None, dtype: torch.dtype | None = None, *,
    compile: bool = False, kernels: bool = False, net: build.NetFactory = build.net,
) -> Pipeline:  # fmt: skip
    """Load a model for sampling and inpainting.

    A program that does so on a CPU should set `OMP_WAIT_POLICY=PASSIVE` or `GOMP_SPINCOUNT=1000` before it imports
    torch, as the commands do: else it may take ten times as long where another program is busy.

    Args:
        model: a run folder, a model folder, a diffusers folder, a name of the hub (owner/name), or the short name of a
            model that comes with diffunet, such as emoji.
        device: where to compute; by default the best device that the machine has.
        dtype: the type of convolutions, products and attention. By default, as in training, torch.bfloat16 where the
            device has it natively, torch.float16 on older GPUs, else torch.float32.
        compile: put the net through `torch.compile`: the first picture of each size takes a minute or more, and all
            that follow less.
        kernels: use kernels of diffunet's own (nn/kernels.py), which a C++ compiler or Triton builds in some seconds,
            once. They are faster; the last bits of pictures differ.
        net: the function that makes the net of a model that was trained with `diffunet.train(net=...)`.

    Raises:
        CheckpointError: a model that is missing, damaged or of another kind.
        UsageError: a device that the machine does not have, another `dtype`, a net of your own without `net`, or
            kernels that cannot be used.
    """
    precision = "auto" if dtype is None else next((name for name, t in compute.PRECISIONS.items() if t is dtype), None)
    if precision is None:
        raise UsageError(f"dtype is torch.float32, torch.bfloat16 or torch.float16, not {plain.shown(dtype)}")
    plain.path("model", model)  # a web address is no path, whose slashes would be made fewer
    model, net = os.fspath(model), plain.function("net", net)
    compile, kernels = plain.flag("compile", compile), plain.flag("kernels", kernels)
    with torch.inference_mode(False), own_defaults():  # as in `Pipeline.working`
        how = replace(compute.choose(plain.device(device), precision, compiled=compile), native=kernels)
        if kernels:
            _refuse_without_kernels(how)
        read = models.read_model(model, net)
        for denoiser in filter(None, (read.denoiser, read.weaker)):
            how.prepare(denoiser, frozen=True)
            how.compile(denoiser.net)
        weaker = None if read.weaker is None else Pipeline(read.config, read.weaker, how, net)
        return Pipeline(read.config, read.denoiser, how, net, weaker)


def _refuse_without_kernels(how: Compute) -> None:
    """Raise UsageError where kernels of diffunet's own cannot be used."""
    if how.compiled:
        raise UsageError("kernels of diffunet's own are for a net that is not compiled")
    try:
        native.ready(how.device)
    except Unavailable as error:
        raise UsageError(f"there can be no kernels of diffunet's own here: {error}") from None


class Pipeline:
    """A model that is ready to sample and to inpaint.

    It computes on `device` in `dtype`, see `load`. Calls from several threads wait for each other. An exception leaves
    it usable.

    Args:
        config: the model's config, resolved.
        denoiser: the model with its weights; it is moved to the device of `how`.
        how: how to compute; by default on the denoiser's device, in the type that its weights are cast to, or float32.
        net: makes a net of this config, to estimate its memory; see `build.NetFactory`.
        weaker: a worse model of the same images, by which samples may be guided; see `conditions.chosen`.
    """

    def __init__(
        self, config: Config, denoiser: Denoiser, how: compute.Compute | None = None, net: build.NetFactory = build.net,
        weaker: Pipeline | None = None,
    ) -> None:  # fmt: skip
        if not isinstance(config, Config) or not isinstance(denoiser, torch.nn.Module):
            wrong = plain.shown(denoiser if isinstance(config, Config) else config)
            raise UsageError(f"a Pipeline is of a Config and a Denoiser, as diffunet.load makes it: {wrong}")
        self.config, self.denoiser = config, denoiser.eval().requires_grad_(False)
        if how is None:
            types = {parameter.dtype for parameter in denoiser.parameters()}
            cast = (name for name, dtype in compute.PRECISIONS.items() if dtype in types and name != "fp32")
            how = compute.choose(next(denoiser.parameters()).device, next(cast, "fp32"))
        self.how, self._net, self._lock, self.weaker = how, net, threading.RLock(), weaker
        self.device, self.dtype = how.device, how.dtype
        how.prepare(denoiser)

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
        self, num: int | None = None, *, seed: int = 0, labels: Label | Iterable[Label] = None,
        batch_size: int | None = None, noise: Any = None, start: Any = None, strength: float | None = None,
        on_step: OnStep | None = None, **options: Unpack[SamplingOptions],
    ) -> Pictures:  # fmt: skip
        """Generate `num` images, by default 16, or as many as there is `noise` for.

        Args:
            seed: image i of a seed starts from the same noise at any `num` and `batch_size`, on any device.
            labels: a class name or number, or one for each image (list, array, tensor); by default the classes in turn.
            batch_size: how many images to make at a time; by default as many as fit by estimate, up to where
                more is no faster. Where memory runs out, half of it is used from then on.
            noise: standard normal noise to start from in place of the seed's, an array or tensor [num C H W].
            start: a picture, in any form that `inpaint` takes, to make variations of; see `conditions.given_start`.
            strength: with `start`, the share of the steps that are taken, above 0 up to 1, by default a half: how far
                an image goes from it. Noise is added to the picture as of there (SDEdit, Meng et al. 2022).
            on_step: called after every step with a `Progress`; it cancels by returning False.
            options: how to sample; see `SamplingOptions`.

        Raises:
            UsageError: arguments of wrong types or with impossible values, or which this model cannot do.
            DataError: `start` is no picture.
            ResourceError: out of memory with one image at a time.
            DivergedError: the images are not finite, as where float16 is too narrow for the model.
            Cancelled: `on_step` returned False.
        """
        refuse_unknown("Pipeline.sample()", options, SamplingOptions)
        made = self.stream(
            num, seed=seed, labels=labels, batch_size=batch_size, noise=noise, start=start, strength=strength,
            on_step=on_step, **options,
        )  # fmt: skip
        return Pictures(made)

    @own_defaults()
    def stream(
        self, num: int | None = None, *, seed: int = 0, labels: Label | Iterable[Label] = None,
        batch_size: int | None = None, noise: Any = None, start: Any = None, strength: float | None = None,
        skip: Container[int] = (), on_step: OnStep | None = None, **options: Unpack[SamplingOptions],
    ) -> Iterator[Picture]:  # fmt: skip
        """Generate images as `sample` does, and yield each once its batch is made, so that memory holds one batch.

        Arguments are checked at once, and a batch is made when its first image is asked for.

        Args:
            skip: numbers of images that are not needed. They are not yielded, and a batch of such alone is not made;
                the others are, to the last bit, what they are without `skip`.
            num, seed, labels, batch_size, noise, start, strength, on_step, options: as for `sample`, with its errors.
        """
        refuse_unknown("Pipeline.stream()", options, SamplingOptions)
        shape = (self.channels, self.image_size, self.image_size)
        given = None if noise is None else conditions.given_noise(noise, shape)
        num = plain.integer("num", (16 if given is None else len(given)) if num is None else num)
        if given is not None and len(given) != num:
            raise UsageError(f"noise is for {len(given)} images, and num is {num}")
        seed, steps = plain.integer("seed", seed, least=0), plain.count("steps", options.get("steps"))
        classes = conditions.class_numbers(labels, num, self.class_names)
        named = {name: options.get(name) for name in ("sampler", "ladder", "threshold")}
        chosen = {name: plain.text(name, value) for name, value in named.items() if value is not None}
        d = build.sampling(self.config.diffusion, **chosen)
        if "sampler" in chosen and d.sampler.startswith("ddpm") and steps is None and d.sample_steps < 100:
            log.warning("sampler %s needs 100 to 1,000 steps; these are the model's %d", d.sampler, d.sample_steps)
        guidance = conditions.chosen(options.get("guidance"), self)
        denoise_for = conditions.denoising(self, guidance, d.threshold)
        sigmas = build.ladder(d, self.denoiser.schedule, steps or d.sample_steps)
        middle = build.prior_mean(self.config)
        if start is not None:
            share = plain.number("strength", 0.5 if strength is None else strength)
            middle = conditions.given_start(start, self.config.data)
            if not 0 < share <= 1:
                raise UsageError(f"strength is above 0 and at most 1, not {share:g}")
            sigmas = sigmas[-1 - conditions.steps_of(share, len(sigmas) - 1) :]
        elif strength is not None:
            raise UsageError("strength says how far to go from a picture, and there is no start")
        count = min(plain.count("batch_size", batch_size) or self.batch(guidance.scale != 1), num)
        step, watch = build.step(d), Watch(on_step)
        skip, planned = conditions.skipped(skip, num), 0

        def make(first: int, count: int) -> list[Picture]:
            nonlocal planned
            if count != planned:
                left = {(i - first) // count for i in range(first, num) if i not in skip}
                planned, watch.total = count, watch.done + len(left) * (len(sigmas) - 1)
            wanted = watch.images = range(first, min(first + count, num))
            if all(i in skip for i in wanted):
                return []
            # A compiled net sees batches of one size: the last is filled up with images that nobody asked for.
            batch = range(first, first + count) if self.how.compiled else wanted
            with self._at_work():
                draw = draws.streams(seed, batch, shape, self.device)
                label = None if classes is None else classes[[i % num for i in batch]].to(self.device)
                first_noise = draw()  # mean + sigma * noise: the distribution of real images at the first noise level
                if given is not None:
                    first_noise = given[[i % num for i in batch]].to(first_noise)
                x = middle.to(first_noise) + sigmas[0] * first_noise
                arrays = images.to_uint8(watch(samplers.sample(denoise_for(label), x, sigmas, step, draw)))
            return [
                Picture.of(images.from_array(array), conditions.picture_name(seed, i, classes, self.class_names))
                for i, array in zip(wanted, arrays, strict=True) if i not in skip
            ]  # fmt: skip

        def pictures() -> Iterator[Picture]:
            with compute.enough_memory("with one image at a time"):
                for batch in batches(num, count, make):
                    yield from batch

        return pictures()

    @own_defaults()
    def inpaint(
        self, image: Any, mask: Any = None, *,
        num: int = 1, seed: int = 0, method: str = "auto", fit: str = "auto", steps: int | None = None,
        jump_length: int | None = None, jump_n_sample: int | None = None, label: Label = None,
        guidance: float | Guidance | None = None, on_step: OnStep | None = None, **reading: Unpack[part.ReadingOptions],
    ) -> Pictures:  # fmt: skip
        """Fill in the masked part of an image; every pixel outside it comes back as it was.

        The results have the size of the image, and its mode where pixels of that mode can be set one by one. What is
        filled in is opaque, unless the model makes alpha and the image can hold it. Holes that
        are far from each other are filled in one by one. A hole that is the whole image is plain sampling, of the same
        images as `sample` gives for this seed.

        Args:
            image, mask, reading: the image and what of it to fill in; see `part.read` and `part.ReadingOptions`. An
                image is a path, a Pillow image, an array [H W] or [H W C], a tensor [C H W], an open binary file or
                bytes, see `given.picture`. One that `part.read` has returned is taken as it is, with its hole.
            num, seed: the number of different fillings; filling i of a seed starts from the same noise at any `num`.
            method: trained (the net has the known pixels as a condition: for a model trained with --task inpaint),
                repaint (resampling, Lugmayr et al. 2022), ddnm (Wang et al. 2022), mmps (gradients, Rozet et al. 2024),
                replace (known pixels pasted into every denoised image), or auto (trained if the model is, else mmps).
            fit: how the image meets the model's size: crop, tile, native or auto; see `regions.choose`.
            steps: of the ladder; repaint walks most of them several times, mmps takes a gradient in each of them.
            jump_length, jump_n_sample: how many steps repaint (or ddnm, as its time travel) goes back, and how often it
                walks each stretch. 250 steps with 10 and 10 are RePaint as published, 2,410 calls of the net.
            label: a class name or number. None fills in without a label, but where all is hole, as `sample` takes it.
            guidance, on_step: as for `sample`.

        Raises:
            DataError: an image or mask that cannot be read, or that is too large.
            UsageError: a hole of nothing; and what `sample` and `part.read` raise it for.
            ResourceError, DivergedError, Cancelled: as for `sample` and `part.read`.
        """
        refuse_unknown("Pipeline.inpaint()", reading, part.ReadingOptions)
        num, seed, steps = plain.integer("num", num), plain.integer("seed", seed, least=0), plain.count("steps", steps)
        jump_length = plain.count("jump_length", jump_length)
        jump_n_sample = plain.count("jump_n_sample", jump_n_sample)
        method, fit, watch = plain.text("method", method), plain.text("fit", fit), Watch(on_step)
        if isinstance(image, part.Masked) and (mask is not None or reading):
            raise UsageError("an image from part.read has its hole already: leave out the mask and what goes with it")
        masked = image if isinstance(image, part.Masked) else part.read(image, mask, **reading)
        if not isinstance(image, part.Masked):
            for line in masked.said:
                log.warning("%s", line)
        if not masked.hole.any():
            raise part.NothingToFill("there is nothing to fill in the image: its hole is empty")
        masked = replace(masked.like(build.ranges(self.config.data)), background=self.config.data.background)
        with compute.enough_memory(f"for {num} copies of the image: a smaller num, or image, takes less"):
            filled = [masked.picture.copy() for _ in range(num)]
        source = source_of(image)
        name = source.stem if source else "filled"
        made = Pictures(Picture.of(one, name if num == 1 else f"{name}-{i}", source) for i, one in enumerate(filled))
        guided = conditions.chosen(guidance, self)
        if label is None and guided.weaker is None and guided.scale != 1:
            raise UsageError(f"guidance {guided.scale:g} needs a label to go towards")
        choice = methods.Choice(method, steps, jump_length, jump_n_sample)
        with torch.inference_mode(False):  # gradients, which mmps takes, need tensors that were made outside of it
            choose = partial(methods.choose, self.config.diffusion, self.denoiser.schedule, choice)
            filler = filling.Filler(
                self.image_size, build.prior_mean(self.config), choose(), choose(below=filling.REFINE),
                conditions.denoising(self, guided, self.config.diffusion.threshold),
                conditions.class_number(label, self.class_names), watch, self.device,
            )  # fmt: skip
        parts = part.parts_for(self.config.data, masked, fit)
        first = parts[0].region
        if len(parts) == 1 and first.rows == first.columns == self.image_size and masked.hole[first.box].all():
            # Methods differ in what they do with known pixels, and here are none: all that is left of each is sampling,
            # on its own ladder. So take `sample`, whose ladder suits the model and whose images a user may know.
            log.info("nothing is known of the image: plain sampling")
            plainly = self.sample(num, seed=seed, labels=label, guidance=guidance, steps=steps, on_step=on_step)
            parts[0].paste(made, [images.to_array(one, self.channels) for one in plainly])
            return made
        fits = self.fits(2 if guided.scale != 1 else 1, learn=filler.whole.has_gradients, most=tiling.AT_ONCE)
        filler.at_once = max(1, fits)
        levels = [one.levels(self.image_size) for one in parts]
        chosen, calls = regions.summary([one.region for one in parts]), sum(map(filler.calls, levels))
        log.info("%s; %s, %d calls of the net a filling", chosen, filler.whole.method, calls)
        pixels = min(fits, INPAINT_BATCH) * self.image_size**2
        counts = [min(num, max(1, pixels // (one.region.rows * one.region.columns))) for one in parts]
        steps_of = [ceil(num / count) * filler.steps(each) for count, each in zip(counts, levels, strict=True)]
        for i, one in enumerate(parts):
            own_seed, later = draws.key_of("part", seed, i) if i else seed, sum(steps_of[i + 1 :])
            new = self._fill(filler, levels[i], num, own_seed, at_once=counts[i], later=later, watch=watch)
            one.paste(made, new)
        return made

    def _fill(
        self, filler: filling.Filler, levels: list[part.Part], num: int, seed: int, *, at_once: int, later: int,
        watch: Watch,
    ) -> list[images.Pixels]:  # fmt: skip
        """Return `num` fillings of a part, given its levels, `at_once` together; `later` steps follow for others."""
        made: list[images.Pixels] = []
        region = levels[-1].region

        def make(first: int, count: int) -> None:
            watch.total = watch.done + ceil((num - first) / count) * filler.steps(levels) + later
            watch.images, watch.box = range(first, min(first + count, num)), region.corners
            made.extend(filler.fill(levels, watch.images, seed))

        with self.working(f"with one filling of {region.columns}x{region.rows} at a time: fit crop takes less"):
            in_batches(num, at_once, make, filler.halve_windows if region.fit == "tile" else None)
        return made

    @contextmanager
    def working(self, needs: str) -> Iterator[None]:
        """Lock the net, with the pipeline's autocast whatever the caller's; `needs` ends an out-of-memory message."""
        with compute.enough_memory(needs), self._at_work():
            yield

    @contextmanager
    def _at_work(self) -> Iterator[None]:
        with (
            self._lock,
            torch.inference_mode(False),  # a caller's inference mode would forbid the gradients of mmps
            torch.no_grad(), own_defaults(), self.how.kernels(), self.how.autocast(), self.how.compiling(),
        ):  # fmt: skip
            yield

    def fits(self, copies: int = 1, *, learn: bool = False, most: int | None = None) -> int:
        """Return how many images can go through the net at once, `copies` of each, and back through it if `learn`.

        They are at most `most`, by default up to where more is no faster; see `Compute.at_once`.
        """
        counted = partial(build.footprint, self.config, self.how, learn=learn, make=self._net)  # this is slow
        return self.how.at_once(self.image_size, lambda n: counted().peak(n * copies), most)

    def batch(self, guided: bool) -> int:
        """Return how many images are sampled at a time where that is not said."""
        return max(1, self.fits(2 if guided else 1))

    def __repr__(self) -> str:
        """Return in one line the net, what it makes, and where it computes."""
        net, size, classes = self.denoiser.net, self.image_size, len(self.class_names)
        parts = (
            f"{type(net).__name__} of {sum(p.numel() for p in net.parameters()) / 1e6:.1f} M parameters",
            f"{size}x{size}", f"{self.channels} channels", f"{classes} classes" if classes else "",
            self.config.diffusion.task, f"{self.device} in {self.how.precision}",
        )  # fmt: skip
        return f"<Pipeline: {', '.join(filter(None, parts))}>"

    def __copy__(self) -> Pipeline:
        """Return the pipeline itself, which calls do not change."""
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Pipeline:
        """Return a pipeline with weights and a lock of its own: threads that use it do not wait for this one."""
        copied = Pipeline(
            self.config, deepcopy(self.denoiser, memo), self.how, self._net, deepcopy(self.weaker, memo)
        )  # fmt: skip
        self.how.compile(copied.denoiser.net)
        return copied

    def __reduce__(self) -> Any:
        """Refuse to be pickled."""
        raise UsageError("a Pipeline is not pickled: in another process, load the model there by diffunet.load")
