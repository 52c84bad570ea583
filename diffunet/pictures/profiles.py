"""Colour profiles: from the colours of a file to sRGB, in which nets see images, and back.

Only profiles are looked at. What a PNG says in gAMA and cHRM is not: programs wrote them wrong for years.
"""

from __future__ import annotations

import contextlib
import functools
import io
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from PIL import Image, ImageCms

State = Literal["none", "converted", "ignored"]

SAME = 2
"""A profile by which no colour differs by more than so many steps of 255 from what it is without is taken as sRGB."""

_GREY = ("1", "L", "LA", "La", "I", "F")
_MODES = {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK"}
"""Pillow's mode for the colours of a profile, by its colour space."""


@dataclass(frozen=True)
class Profile:
    """A colour profile that is not sRGB; `mode` is that of its colours: RGB, L or CMYK."""

    mode: str
    into: Any
    back: Any

    def to_srgb(self, image: Image.Image) -> Image.Image:
        """Return an image of `mode` in sRGB, mode RGB."""
        converted = ImageCms.applyTransform(image, self.into)
        assert converted is not None
        return converted

    def from_srgb(self, image: Image.Image) -> Image.Image:
        """Return an image of mode RGB, in sRGB, in the colours of the profile."""
        converted = ImageCms.applyTransform(image, self.back)
        assert converted is not None
        return converted


def of(image: Image.Image, *, both_ways: bool = False) -> Profile | None:
    """Return the profile by which the colours of an image become sRGB, or None where they are that or are taken so.

    With `both_ways`, a profile that leads to sRGB alone, as those of scanners do, is None as well.
    """
    profile = _read(image)[0]
    return None if profile is not None and both_ways and profile.back is None else profile


def state(image: Image.Image) -> State:
    """Return whether the profile of an image is converted from, or ignored: damaged, or for other colours than its."""
    return _read(image)[1]


def _read(image: Image.Image) -> tuple[Profile | None, State]:
    content = image.info.get("icc_profile")
    if not isinstance(content, bytes) or not content or image.mode == "LAB":  # LAB says which colours it means
        return None, "none"
    colours = "CMYK" if image.mode == "CMYK" else "L" if image.mode in _GREY or image.mode.startswith("I") else "RGB"
    profile = _profile(content)
    if profile is None:
        return None, "none"
    if profile == "damaged" or profile.mode not in (colours, "RGB" if colours == "L" else colours):
        return None, "ignored"
    return profile, "converted"


@functools.lru_cache(maxsize=64)
def _profile(content: bytes) -> Any:
    """Return a profile, None where it is sRGB in effect, or "damaged"."""
    try:
        profile: Any = ImageCms.ImageCmsProfile(io.BytesIO(content))
        mode = _MODES[profile.profile.xcolor_space]
        srgb: Any = ImageCms.createProfile("sRGB")
        # By default littlecms computes curves of grey in too few steps: a linear one is 9 of 255 off in the dark.
        how: Any = {"flags": ImageCms.Flags.NOOPTIMIZE if mode == "L" else ImageCms.Flags.NONE}
        back = None
        with contextlib.suppress(ImageCms.PyCMSError):
            back = ImageCms.buildTransform(srgb, profile, "RGB", mode, **how)
        found = Profile(mode, ImageCms.buildTransform(profile, srgb, mode, "RGB", **how), back)
        return None if mode != "CMYK" and _is_srgb(found) else found
    except (ImageCms.PyCMSError, OSError, KeyError, ValueError, TypeError):
        return "damaged"


def _is_srgb(profile: Profile) -> bool:
    steps = np.linspace(0, 255, 17).round().astype(np.uint8)
    if profile.mode == "L":
        probe = Image.fromarray(np.arange(256, dtype=np.uint8)[None])
    else:
        probe = Image.fromarray(np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(1, -1, 3))
    before, after = (np.asarray(each).astype(int) for each in (probe.convert("RGB"), profile.to_srgb(probe)))
    return int(np.abs(before - after).max()) <= SAME
