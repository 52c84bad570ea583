"""An animation of how images come out of the noise."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from diffunet.errors import ResourceError, UsageError

if TYPE_CHECKING:
    from diffunet.pictures.images import Pixels
    from diffunet.ranks import Ranks
    from diffunet.sampling.pipeline import Progress

FORMATS = {".gif": "GIF", ".webp": "WEBP", ".png": "PNG"}
FRAMES, SHORT, LONG = 60, 100, 2000
"""About the most frames, and the milliseconds for which a frame and the last one are shown."""


class Film:
    """Collects what the images of all batches look like at each step, and writes it: a grid for each frame.

    Args:
        steps: the steps of an image, of which every one, or every second, third ... becomes a frame.
    """

    def __init__(self, steps: int) -> None:
        self.steps, self.every = steps, -(-steps // FRAMES)
        self._done: dict[range, int] = {}
        self._frames: dict[int, dict[int, Pixels]] = {}

    def and_tell(self, show: Callable[[int, int], None]) -> Callable[[Progress], None]:
        """Return an `on_step` that takes note of a step, and calls `show` with (steps done, of how many)."""

        def on_step(progress: Progress) -> None:
            self._note(progress)
            show(progress.step, progress.steps)

        return on_step

    def _note(self, progress: Progress) -> None:
        from diffunet.pictures import images

        done = self._done[progress.images] = self._done.get(progress.images, 0) + 1
        if done % self.every == 0 or done == self.steps:
            arrays = images.to_uint8(progress.denoised)
            self._frames.setdefault(done, {}).update(zip(progress.images, arrays, strict=True))

    def gather(self, ranks: Ranks, shape: tuple[int, int, int]) -> None:
        """Add what other processes have taken note of, of images [H W C] of this shape, on the main one."""
        import numpy as np

        frames = sorted(self._frames.items())
        mine = sorted(frames[0][1]) if frames else []
        pixels = b"".join(frame[i].tobytes() for _, frame in frames for i in mine)
        noted = ranks.gather(json.dumps([[done for done, _ in frames], mine]).encode())
        for content, theirs in zip(map(json.loads, noted), ranks.gather(pixels), strict=True):
            steps, numbers = content
            arrays = np.frombuffer(theirs, np.uint8).reshape(len(steps), len(numbers), *shape)
            for done, row in zip(steps, arrays, strict=True):
                self._frames.setdefault(done, {}).update(zip(numbers, row, strict=True))

    def save(self, out: Path) -> None:
        """Write the animation, whole or not at all. A full disk raises ResourceError."""
        from diffunet import files
        from diffunet.pictures import images

        grids = [images.grid([frame[i] for i in sorted(frame)]) for _, frame in sorted(self._frames.items())]
        shown, content = [SHORT] * (len(grids) - 1) + [LONG], io.BytesIO()
        kind = FORMATS[out.suffix.lower()]
        options = {"lossless": True} if kind == "WEBP" else {}
        grids[0].save(content, kind, save_all=True, append_images=grids[1:], duration=shown, loop=0, **options)
        try:
            files.write_atomic(out, content.getvalue())
        except OSError as error:
            raise ResourceError(f"{out} cannot be written: {error.strerror}; make room") from None


def refuse_still(out: Path) -> None:
    """Raise UsageError for a file that holds no animation."""
    if out.suffix.lower() not in FORMATS:
        raise UsageError(f"--animate: {out} holds no animation; take {', '.join(FORMATS)}")
