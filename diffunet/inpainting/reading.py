"""Reading masks as people have them: what is to be filled is found out and said, or asked for, and never guessed.

A mask may be white on black, labels, a shape on a transparent layer, coloured, deep or soft, or a photograph that was
taken by mistake. The same content is read alike from whatever it comes (`sources`), in this order:

1. A photograph is refused, the image itself among them.
2. A shape in the alpha channel, over one colour: what is opaque is filled.
3. Else a pixel's value is its largest channel; what is transparent is black.
4. Without loss, two values 0 and k, or flat ones that are all below a half, are labels: what is not 0 is filled.
5. Else what is at least half of white is filled; flat regions of grey are refused, since they may be labels.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from diffunet.errors import DataError, UsageError
from diffunet.inpainting.masks import RINGING, Mask
from diffunet.inpainting.sources import Content, content_of
from diffunet.pictures import given, images

NEAR = 1 / 8
"""Values this near to 0 or 1 are about black or white."""
FLAT_COLOURS = 64
"""The most colours of a drawing, apart from what mixes them along its edges."""
NIGHT = 24
"""The same, of what is dark and not black: a photograph of the night has more, all over."""
_HUES = 12
_CHROMA = 48  # of 255, from which on a pixel has a hue
_STRIP = 2**22  # pixels that are looked at together
_WINDOW = 128  # pixels; the colours of larger masks are looked at in 8 x 8 windows of this size
_WEIGHT = "soft_mask=True where its grey is meant as a weight"


class ReadMask(NamedTuple):
    """A mask, float32 [H W] in [0, 1] with 1 = fill, and words for it.

    `understood` says how it was read, and is empty where it is plainly white on black. `lacking` says why it may have
    nothing to fill, with what would mend that.
    """

    mask: Mask
    understood: str
    lacking: str


def read_mask(
    source: Any, *, invert: bool = False, soft: bool = False, values: Sequence[float] | None = None,
    picture: Image.Image | None = None, name: str | None = None, max_pixels: int = images.MAX_PIXELS,
    page: int | None = None,
) -> ReadMask:  # fmt: skip
    """Read a mask of any kind. The messages of its errors begin with its `name`; they name options as Python does.

    Args:
        source: the path of an image, its bytes or an open file, a Pillow image of any mode, an array or a nested list
            [H W] or [H W C] with 1 to 4 channels, or a tensor [H W] or [C H W], of booleans, integers or floats.
        invert: for masks with black = fill.
        soft: its grey is a weight, so that many greys are no sign of a photograph, nor flat ones of labels.
        values: the values that are to be filled, in place of all rules: indices of a palette, the alpha of a shape on a
            transparent layer, else the largest channel.
        picture: the image that is to be filled in.
        name: "mask PATH" or "the mask" where it is left out.
        max_pixels: larger files are refused before they are decoded.
        page: the page of a file that has several, from 1 on.

    Raises:
        DataError: what is no mask, or may mean two things.
        UsageError: `values` that are no numbers, or a file that is opened as text.
    """
    if name is None:
        name = f"mask {source}" if isinstance(source, str | os.PathLike) else "the mask"
    file = given.bytes_of(source, name)
    try:
        content = content_of(source if file is None else file, max_pixels, page, name)
        if picture is not None and values is None and not soft:
            _refuse_itself(content, picture)
        verb = "kept" if invert else "filled"
        clear = "" if content.alpha is None else "what is transparent in it counts as black"
        if (shape := _shape(content)) is not None:
            content, clear = Content(shape, lossless=content.lossless), f"what is opaque in it is {verb}"
            if values is None and not invert and _frames(shape):
                raise DataError(
                    "it is opaque at its border and clear inside, so that either may be meant: invert_mask=True fills "
                    "what is clear, mask_values=255 what is opaque"
                )
        content = content.over_black()
        if values is None:
            grey, understood, lacking = _read(content, soft, verb)
        else:
            grey, lacking = _valued(content, values)
            clear = understood = ""
    except DataError as error:
        hint = "; max_pixels=... lets larger ones through" if str(error).startswith("too large") else ""
        raise DataError(f"{name}: {error}{hint}") from None
    if invert:
        grey = np.subtract(1, grey, dtype=np.float32)
        lacking = "is white all over, and invert_mask=True keeps what is white; leave that out"
    words = "; ".join(filter(None, (clear, understood)))
    return ReadMask(grey, words and f"{name}: {words}", f"{name} {lacking}")


def _shape(content: Content) -> NDArray[np.uint8] | None:
    """Return the alpha of a shape of one colour on a transparent layer, None for a mask of another kind."""
    if content.alpha is None:
        return None
    for least in (128, 1):  # what is almost clear has its colour only roughly
        seen = content.colours[content.alpha >= least]
        if len(seen):
            low, high = seen.min(axis=0).astype(np.float64), seen.max(axis=0).astype(np.float64)
            full = _white(content.colours, anything=True)
            return content.alpha if (high - low).max() <= full * RINGING else None
    return content.alpha  # it is transparent all over


def _frames(alpha: NDArray[np.uint8]) -> bool:
    """Return whether the border is opaque, all but a twentieth of it, and something inside is clear."""
    border = np.concatenate([alpha[0], alpha[-1], alpha[:, 0], alpha[:, -1]])
    return bool((border >= 128).mean() >= 0.95 and (alpha < 128).any())


def _refuse_itself(content: Content, picture: Image.Image) -> None:
    """Raise DataError for a mask that is the image: the same values, by a million of its pixels or so."""
    if content.colours.shape[1::-1] != picture.size:
        return
    step = max(1, round((picture.width * picture.height / 2**20) ** 0.5))
    mine, its = (one[::step, ::step] for one in (content.colours, np.asarray(picture)))
    mine, its = (one if one.ndim == 3 else one[..., None] for one in (mine, its))
    its = its[..., :-1] if picture.mode in ("LA", "RGBA") else its
    if mine.dtype == np.uint16 and its.dtype == np.uint8:
        mine = mine >> 8  # of colours of 16 bits Pillow has the high bytes
    if its.shape[2] in (1, mine.shape[2]) and (its != its[:1, :1]).any() and (mine == its).all():
        remedy = "give a mask (white = fill)"
        if images.has_alpha(picture):
            remedy = "leave it out to fill what is transparent in the image"
        elif content.alpha is not None:
            remedy = "to fill what is transparent in it, give it as the image, without a mask"
        raise DataError(f"this is the image itself, and no mask; {remedy}, or say {_WEIGHT}")


class _Counts(NamedTuple):
    """The levels that a mask has, ascending, how many pixels are of each, how many of these lie flat, and white."""

    levels: NDArray[Any]
    every: NDArray[np.int64]
    flat: NDArray[np.int64]
    white: float

    @property
    def between(self) -> NDArray[np.bool_]:
        """Which levels are neither about black nor about white."""
        return (self.levels > NEAR * self.white) & (self.levels < (1 - NEAR) * self.white)


def _read(content: Content, soft: bool, verb: str) -> tuple[Mask, str, str]:
    """Return the mask of a content without alpha, how it was understood, and why it may have nothing to fill."""
    colours = content.colours
    shades = _shades(colours)
    white = _white(shades)
    if white == 1:
        shades = shades.clip(0, 1)
    counts = _counted(shades, white)
    if not soft:
        _refuse_photographs(colours, counts)
    top = float(counts.levels[-1])
    coloured = colours.ndim == 3 and _coloured(colours, white)
    words = ["its colours count by their largest channel"] if coloured else []
    lacking = f"is black all over (its largest value is {top:g}); where black = fill, say invert_mask=True"
    labels = content.lossless and top > 0 and (top <= RINGING * white if soft else _are_labels(counts))
    if labels and (found := _in_words(counts, content.made, verb)):
        words.append(found)
    elif colours.dtype == np.uint16 and white == 255 and top > 1:
        words.append("it has 16 bits and nothing above 255, which is taken as white")
    elif colours.dtype.kind == "f" and white > 1:
        words.append(f"its floats are up to {top:g}, and {white:g} is taken as white")
    if labels:
        return (shades != 0).astype(np.float32), "; ".join(words), lacking
    if not soft:
        _refuse_labels(content, counts)
        if coloured and counts.levels[0] >= white / 2:
            raise DataError(
                "all of it is bright, as red on white is, and all would be filled; draw on black, or say with "
                "mask_values=... which values are to be filled"
            )
    if top > 0:
        lacking = (
            f"has no value from half of white on: its largest is {top:g}, of {white:g}; soft_mask=True blends by its "
            "grey, mask_values=... says which values are to be filled"
        )
    return np.divide(shades, white, dtype=np.float32), "; ".join(words), lacking


def _shades(colours: NDArray[Any]) -> NDArray[Any]:
    if colours.ndim == 2:
        return colours
    return np.maximum(np.maximum(colours[..., 0], colours[..., 1]), colours[..., 2])


def _white(values: NDArray[Any], anything: bool = False) -> float:
    """Return the value that is white: the least of 1, 255, 65,535 and so on that holds all values.

    Integers begin with 255, floats with 1, which they may miss by a twentieth, as resized ones do. Raises DataError for
    what no mask has; negative values may be where `anything` may.
    """
    kind = values.dtype.kind
    if kind == "b":
        return 1.0
    low, top = float(values.min()), float(values.max())
    if not np.isfinite([low, top]).all():
        raise DataError("it has values that are not finite")
    if kind == "f" and low >= -0.05 and top <= 1.05:
        return 1.0
    if low < 0 and not anything:
        raise DataError(f"it has values below 0 (down to {low:g}); mask_values=... says which are to be filled")
    whole = kind != "f" or bool((values == np.rint(values)).all())
    fulls = (255.0, 65535.0, 2.0**31 - 1, 2.0**32 - 1, 2.0**63, 2.0**64)
    for full in fulls if whole else fulls[:2]:
        if top <= full:
            return full
    raise DataError(f"the values of a mask are False and True, 0 to 255 or 0.0 to 1.0, and its largest is {top:g}")


def _counted(shades: NDArray[Any], white: float) -> _Counts:
    """Count the levels of a mask [H W]; floats are counted in 65,536 steps."""
    levels: NDArray[Any]
    codes: NDArray[Any]
    if shades.dtype.kind == "f" and not (white > 1 and (shades == np.rint(shades)).all()):
        levels = np.arange(65536) / 65535 * white
        codes = np.rint(shades.clip(0, white) * (65535 / white)).astype(np.uint16)
    elif white <= 65535:
        levels, codes = np.arange(int(white) + 1), shades.astype(np.uint8 if white <= 255 else np.uint16, copy=False)
    else:
        levels, codes = np.unique(shades, return_inverse=True)
        codes = codes.reshape(shades.shape)
    every, flat = np.zeros((2, len(levels)), np.int64)
    step = max(1, _STRIP // codes.shape[1])
    for top in range(0, len(codes), step):
        every += np.bincount(codes[top : top + step].ravel(), minlength=len(levels))
    there = every > 0
    if np.count_nonzero(there) <= 2:  # all of a mask of two values counts as flat, which saves time
        return _Counts(levels[there], every[there], every[there], white)
    for top in range(0, len(codes), step):
        above, rows = max(0, top - 1), codes[top : top + step]
        level = _lies_flat(codes[above : top + step + 1])[top - above :][: len(rows)]
        flat += np.bincount(rows[level], minlength=len(levels))
    return _Counts(levels[there], every[there], flat[there], white)


def _lies_flat(pixels: NDArray[Any]) -> NDArray[np.bool_]:
    """Return which pixels of [H W] or [H W C] equal three or four of their four neighbours, bool [H W]."""
    below, right = pixels[1:] == pixels[:-1], pixels[:, 1:] == pixels[:, :-1]
    if pixels.ndim == 3:
        below, right = below.all(axis=2), right.all(axis=2)
    same = np.zeros(pixels.shape[:2], np.uint8)
    same[1:] += below
    same[:-1] += below
    same[:, 1:] += right
    same[:, :-1] += right
    return same >= 3


def _are_labels(counts: _Counts) -> bool:
    """Return whether what is not 0 is meant: two values 0 and k, one value alone, or flat ones below half of white."""
    levels, every, flat, white = counts
    dark = bool(levels[-1] < white / 2)
    if len(levels) == 1:
        return dark
    return bool(levels[0] == 0) and (len(levels) == 2 or (dark and bool(2 * flat[1:].sum() >= every[1:].sum())))


def _in_words(counts: _Counts, made: bool, verb: str) -> str:
    """Say how labels were read, where they are not plainly black and white, or 0 and 1 in an array."""
    top = float(counts.levels[-1])
    if (made and top == 1) or top >= (1 - NEAR) * counts.white:
        return ""
    if len(counts.levels) == 1:
        return f"its only value is {top:g}, and all of it is {verb}"
    if len(counts.levels) == 2:
        return f"its values are 0 and {top:g}, and {top:g} is {verb}"
    return f"its values are 0 to {top:g}, below half of white, and what is not 0 is {verb}"


def _valued(content: Content, values: Sequence[float]) -> tuple[Mask, str]:
    """Return the mask of what has one of some values, and why it may have nothing to fill.

    Of lossy files and of floats the values are about these: a sixteenth of white, or a five hundredth.
    """
    try:
        wanted = np.asarray(values, np.float64).ravel().tolist()
    except (TypeError, ValueError):
        wanted = []
    if not wanted:
        raise UsageError(f"mask_values are numbers, such as (1, 2), and not {values!r}")
    shades = _shades(content.colours)
    numbers, white = shades if content.indices is None else content.indices, _white(shades, anything=True)
    about = 0.0 if content.lossless and numbers.dtype.kind != "f" else white * (0.002 if content.lossless else RINGING)
    chosen = np.zeros(numbers.shape, bool)
    for value in wanted:
        chosen |= numbers == value if about == 0 else abs(numbers - np.float64(value)) <= about
    if chosen.any():
        return chosen.astype(np.float32), ""
    asked = " or ".join(f"{value:g}" for value in wanted)
    return chosen.astype(np.float32), f"has no pixel of the value {asked}; its values are {_listed(np.unique(numbers))}"


def _listed(numbers: NDArray[Any]) -> str:
    words = [f"{number:g}" for number in numbers.tolist()]
    return ", ".join(words if len(words) <= 12 else [*words[:10], "...", words[-1]])


def _refuse_photographs(colours: NDArray[Any], counts: _Counts) -> None:
    """Raise DataError for many colours of several hues, and where most is between black and white and not flat."""
    remedy = f"give a mask (white = fill), none to fill what is transparent in the image, or say {_WEIGHT}"
    if colours.ndim == 3 and _strange(colours, counts.white) > 0.01:
        raise DataError(f"this is a photograph, of many colours, and no mask; {remedy}")
    dim = (counts.levels > RINGING * counts.white) & (counts.levels < counts.white / 4)  # as at night
    for some, most in ((counts.between, FLAT_COLOURS), (dim, NIGHT)):
        levels = counts.levels if some is counts.between else counts.levels[some]
        rough = (counts.every - counts.flat)[some].sum()
        if len(levels) <= most or rough <= counts.every.sum() / 2:
            continue
        raise DataError(f"this is no mask: most of it is between black and white, as in a photograph; {remedy}")


def _refuse_labels(content: Content, counts: _Counts) -> None:
    """Raise DataError where more than a twentieth of what is not black is flat and of a grey, or all of it is dark."""
    levels, every, flat, white = counts
    seen = levels > RINGING * white
    regions = levels[(flat > 0) & (levels > NEAR * white)]
    light = len(regions) and regions[0] >= white / 2 and regions[-1] - regions[0] <= RINGING * white
    if light and levels[0] <= RINGING * white:
        return  # one light grey on black is as good as white
    dark = bool(RINGING * white < levels[-1] < white / 2) and flat[seen].sum() > every[seen].sum() / 2
    if dark or flat[counts.between].sum() > every[seen].sum() / 20:
        numbers = levels[flat > 0] if content.indices is None else np.unique(content.indices)
        raise DataError(
            f"its regions of grey may be labels (values {_listed(numbers)}); mask_values=... says which are to be "
            "filled, soft_mask=True blends by its grey"
        )


def _windows(colours: NDArray[Any], white: float) -> list[NDArray[np.uint8]]:
    """Return all of [H W 3], or windows from all over it, as uint8."""
    height, width = colours.shape[:2]
    parts = [colours]
    if height * width > 64 * _WINDOW**2:
        tops, lefts = (np.linspace(0, max(0, side - _WINDOW), 8).astype(int) for side in (height, width))
        parts = [colours[y : y + _WINDOW, x : x + _WINDOW] for y in tops for x in lefts]
    if colours.dtype == np.uint8:
        return parts
    return [np.rint((part * (255 / white)).clip(0, 255)).astype(np.uint8) for part in parts]


def _strange(colours: NDArray[Any], white: float) -> float:
    """Return the share of pixels whose hue no flat region has, as many pixels of a photograph, and few of a drawing.

    It is 0 where there are few colours. Where no hue is flat, the commonest is that of a soft brush.
    """
    all_of_it, level, total = set[int](), set[int](), 0
    even, rough = np.zeros((2, _HUES), np.int64)
    for part in _windows(colours, white):
        flat, hsv = _lies_flat(part), np.asarray(Image.fromarray(np.ascontiguousarray(part)).convert("HSV"))
        strong, sector = np.ptp(part, axis=2) >= _CHROMA, hsv[..., 0].astype(np.int64) * _HUES // 256
        even += np.bincount(sector[flat & strong], minlength=_HUES)
        rough += np.bincount(sector[~flat & strong], minlength=_HUES)
        packed = part.astype(np.int64) @ np.array([65536, 256, 1])
        all_of_it |= set(np.unique(packed)[: FLAT_COLOURS + 1].tolist())
        level |= set(np.unique(packed[flat])[: FLAT_COLOURS + 1].tolist())
        total += flat.size
    if len(all_of_it) <= FLAT_COLOURS:
        return 0.0
    if len(level) > FLAT_COLOURS:  # a smooth photograph is flat here and there
        even, rough = np.zeros_like(even), even + rough
    drawn = even > rough / 2
    drawn[rough.argmax()] |= not drawn.any()
    return float(rough[~(drawn | np.roll(drawn, 1) | np.roll(drawn, -1))].sum() / total)


def _coloured(colours: NDArray[Any], white: float) -> bool:
    """Return whether a hundredth of the pixels has a hue."""
    return bool(np.mean([(np.ptp(part, axis=2) >= _CHROMA).mean() for part in _windows(colours, white)]) > 0.01)
