"""What is told of each step of sampling while it goes on, how a caller ends it, and a bar that shows it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from diffunet import plain
from diffunet.diffusion import samplers
from diffunet.errors import Cancelled, DivergedError


@dataclass(frozen=True)
class Progress:
    """What `on_step` receives: step `step` of `steps` is done, of all batches together.

    The batch at work is of the images numbered `images`; those that it makes up to now look like `denoised`, the
    model's present prediction of them, [B C H W] in [-1, 1]. `noisy` is what it was predicted from, one step on. In
    inpainting they show the box (x0, y0, x1, y1) of the image, in its pixels, at the resolution that the net works at;
    `box` is None where they are whole images.
    """

    step: int
    steps: int
    denoised: Tensor
    noisy: Tensor
    images: range
    box: tuple[int, int, int, int] | None = None


OnStep = Callable[[Progress], Any]
"""A function that is called after every step; it cancels by returning False, or any false value but None."""


class Bar:
    """An `on_step` that draws a progress bar, in a notebook as one of its own, for sampling, inpainting and training.

        pipe.sample(16, on_step=diffunet.Bar())

    Args:
        title: what stands before the bar.
    """

    def __init__(self, title: str = "") -> None:
        self.title = plain.text("title", title)
        self._bar: Any = None

    def __call__(self, progress: Any) -> None:
        """Show that `progress.step` of `progress.steps` are done, and `progress.loss` where there is one."""
        if self._bar is not None and progress.step <= self._bar.n:  # the one before was cancelled
            self._bar.close()
            self._bar = None
        if self._bar is None:
            from tqdm.auto import tqdm

            self._bar = tqdm(desc=self.title or None, initial=progress.step - 1)  # a resumed run begins at thousands
        self._bar.total = progress.steps  # how many steps a run of so many minutes takes is found out on the way
        if (loss := getattr(progress, "loss", None)) is not None:
            self._bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
        self._bar.update(progress.step - self._bar.n)
        if progress.step >= progress.steps:
            self._bar.close()
            self._bar = None  # what comes next has a bar of its own


class Watch:
    """Runs walks of a sampler to their end, one after another, and reports each of their steps to `on_step`.

    `total` is the number of all steps, as far as it is known, `images` are those of the walk to come, and `box` is what
    they show of an image that is filled in.
    """

    def __init__(self, on_step: OnStep | None) -> None:
        self.on_step = None if on_step is None else plain.function("on_step", on_step)
        self.total, self.done, self.images = 0, 0, range(0)
        self.box: tuple[int, int, int, int] | None = None

    def __call__(self, walk: samplers.Walk) -> Tensor:
        """Return the last x of a walk, float32 [B C H W], of its first images, as many as there are in `images`."""
        x: Tensor | None = None
        wanted = len(self.images)
        for _, x, denoised in walk:
            self.done += 1
            if self.on_step is not None:
                now, noisy = denoised.x0[:wanted].float(), x[:wanted].float()
                progress = Progress(self.done, self.total, now, noisy, self.images, self.box)
                if not plain.goes_on(self.on_step(progress)):
                    raise Cancelled(f"cancelled after step {self.done} of {self.total}")
        assert x is not None, "a ladder has at least two sigmas"
        if not x[:wanted].isfinite().all():
            raise DivergedError(
                "the model's images are not finite: float16 may be too narrow for it (precision fp32 is not; in "
                "Python, dtype=torch.float32), or it is damaged"
            )
        return x[:wanted].float()
