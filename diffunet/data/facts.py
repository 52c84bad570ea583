"""What files say of their pixels and beside them, counted over a data set, and in words for `check` and `train`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from diffunet.pictures import deep, profiles, ranges
from diffunet.pictures.opening import Decoded
from diffunet.pictures.ranges import Range, Ranges

FACTS = np.dtype([(name, "<i4") for name in ("deep", "pages", "bands", "profile", "clipped")])
"""A `Facts` as a part of a table's row."""

CLIPPED = 0.01
"""The share of an image's pixels beyond its range above which it is counted."""

_STATES = ("none", "converted", "ignored")


class Facts(NamedTuple):
    """What is counted of an image: numbers, all 0 for an ordinary one.

    `deep` is 1 for integers of more than 8 bits and 2 for floats; `pages` and `bands` are how many of the file are not
    used; `profile` is 1 where colours are converted from it, and 2 where it is ignored; `clipped` is 1 where more than
    `CLIPPED` of the pixels lie beyond the range.
    """

    deep: int = 0
    pages: int = 0
    bands: int = 0
    profile: int = 0
    clipped: int = 0


def of(decoded: Decoded, range: Range | None, *, every_page: bool) -> Facts:
    """Return what is counted of an image whose values become 0 and 255 by `range`."""
    image, kind = decoded.image, deep.kind_of(decoded.image)
    pages = 0 if every_page else decoded.pages - 1
    clipped = range is not None and kind is not None and ranges.beyond(image, range) > CLIPPED
    return Facts(
        0 if kind is None else 1 + deep.KINDS.index(kind), pages, decoded.bands, _STATES.index(profiles.state(image)),
        int(clipped),
    )  # fmt: skip


def table(facts: Sequence[Facts]) -> NDArray[np.void]:
    """Return facts as a table of type `FACTS`."""
    return np.array(list(facts), FACTS)


def said(facts: NDArray[np.void], found: Ranges, given: Ranges = ranges.UNKNOWN) -> list[str]:
    """Return in lines what is worth saying of a data set: a table of type `FACTS`, and the ranges of its images, of
    which those that were `given` are to be of use."""
    lines = []
    kinds = [kind for n, kind in enumerate(deep.KINDS, 1) if (facts["deep"] == n).any()]
    if given != ranges.UNKNOWN and not any(getattr(given, kind) for kind in kinds):
        lines.append(
            "the range that is given (--data.range, --data.int-range or --data.float-range) has no effect, as no image "
            "has values of its kind"
        )
    for n, kind in enumerate(deep.KINDS, 1):
        many, range = int((facts["deep"] == n).sum()), getattr(found, kind)
        if many and range is not None:
            what = "integers of more than 8 bits" if kind == "integers" else "floats"
            lines.append(f"{_images(many)} {what}, {ranges.words(kind, range)} (--data.range LOW HIGH says another)")
    if many := int(facts["clipped"].sum()):
        lines.append(f"{_images(many)} values beyond that range, which are clipped")
    if more := int(facts["pages"].sum()):
        many = int((facts["pages"] > 0).sum())
        lines.append(
            f"{many:,} {'files have' if many > 1 else 'file has'} {more:,} more page{'s' * (more > 1)} that "
            f"{'are' if more > 1 else 'is'} not used: --data.pages all"
        )
    if many := int((facts["profile"] == 1).sum()):
        lines.append(f"{_images(many)} a colour profile, from which colours are converted to sRGB")
    if many := int((facts["profile"] == 2).sum()):
        lines.append(f"{_images(many)} a colour profile that is damaged or of other colours, and is ignored")
    if many := int((facts["bands"] > 0).sum()):
        lines.append(f"{_images(many)} bands beside colours and alpha, such as near infrared, which are not used")
    return lines


def _images(many: int) -> str:
    return f"{many:,} {'images have' if many > 1 else 'image has'}"
