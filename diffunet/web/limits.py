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
    """What the page may ask of this machine."""

    max_body: Annotated[int, Field(ge=1, le=10_000)] = 64
    """Size of the largest file that is taken, in MB."""
    max_pixels: Annotated[int, Field(ge=1, le=10**12)] = 50_000_000
    """Pixels of the largest picture that is taken. Larger ones are refused before they are decoded."""
    max_jobs: Count = 8
    """Jobs that wait at most, beside the one that runs."""
    max_fillings: Count = 16
    """Fillings of a picture that are made at a time, at most."""
    max_generated: Count = 64
    """Pictures that are generated at a time, at most."""
    max_images: Count = 32
    """Pictures that are kept at most. The one that was not used for longest goes first."""
    max_files: Annotated[int, Field(ge=10, le=10**6)] = 1000
    """Size of all temporary files together, at most, in MB. The one that was not used for longest goes first."""
