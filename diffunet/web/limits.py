"""What the page may ask of the machine that serves it."""

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

Count = Annotated[int, Field(ge=1, le=10**6)]

MASK_PIXELS = 16_000_000
"""Masks of larger pictures are drawn smaller, and resized as `--resize-mask` does."""

# The docstrings below are what `diffunet web --help` shows.


@dataclass(frozen=True)
class Limits:
    """These options bound what the page may ask of this machine."""

    max_body: Annotated[int, Field(ge=1, le=10_000)] = 64
    """The largest file that is taken, in MB."""
    max_pixels: Annotated[int, Field(ge=1, le=10**12)] = 50_000_000
    """Larger pictures are refused, before they are decoded."""
    max_jobs: Count = 8
    """So many jobs wait at most, beside the one that runs."""
    max_fillings: Count = 16
    """So many fillings of a picture are made at a time, at most."""
    max_generated: Count = 64
    """So many pictures are generated at a time, at most."""
    max_images: Count = 32
    """So many pictures are kept, at most; the one that was not used for longest goes first."""
    max_files: Annotated[int, Field(ge=10, le=10**6)] = 1000
    """All temporary files together are so large at most, in MB; likewise."""
