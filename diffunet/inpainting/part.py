"""An image with a hole: reading it, cutting out the parts that go through the net, and putting the fillings back."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray
from PIL import Image as pillow
from PIL.Image import Image

from diffunet import plain
from diffunet.compute import enough_memory
from diffunet.config import DataConfig
from diffunet.errors import DataError, UsageError
from diffunet.inpainting import composite, masks, regions
from diffunet.inpainting.reading import read_mask
from diffunet.pictures import deep, given, images, opening, profiles
from diffunet.pictures.opening import TooLarge
from diffunet.pictures.ranges import UNKNOWN, Range, Ranges, beyond, own

log = logging.getLogger(__name__)
_EIGHT_OF_SIXTEEN = "%s has 16 bits a colour, of which 8 can be read"


class NothingToFill(UsageError):
    """The hole of an image is empty."""


@dataclass(frozen=True)
class Masked:
    """An image in one of the modes of `composite.editable`, the hole in it, bool [H W], and how to fill it.

    For `weight` see `composite.composite`. `said` is what a person should know of how the mask was understood, in lines
    that name options as Python does.
    """

    picture: Image
    hole: masks.Hole
    weight: masks.Mask | None = None
    said: tuple[str, ...] = ()

    ranges: Ranges = UNKNOWN
    """What is black and what is white in images of more than 8 bits, where that is known."""
    background: images.Colour = images.WHITE
    """The colour (RGB, 0 to 255) that a net sees where a known pixel is transparent."""

    @cached_property
    def range(self) -> Range | None:
        """The values that are black and white, where there are more than 8 bits: as `ranges` says.

        Where it does not, the known pixels decide, see `ranges.own`: what is erased is not looked at.
        """
        return self.ranges.of(self.picture) or own(self.picture, ~self.hole)

    def like(self, ranges: Ranges, whose: str = "the images that the model learned") -> Masked:
        """Return it with the `ranges` of other images, where its own are not known; warn if they do not fit it."""
        masked = replace(self, ranges=self.ranges.completed(ranges))
        range = masked.ranges.of(self.picture) if self.lacks_range else None
        if range is not None and (share := beyond(self.picture, range)) > 0.01:
            log.warning(
                    "%.0f%% of the image's values lie beyond %g and %g, black and white in %s: --range LOW HIGH says "
                    "other values", 100 * share, *range, whose,
                )  # fmt: skip
        return masked

    @property
    def lacks_range(self) -> bool:
        """Whether it has more than 8 bits, and nobody has said which values are black and white."""
        return deep.kind_of(self.picture) is not None and self.ranges.of(self.picture) is None


class ReadingOptions(TypedDict, total=False):
    """How an image and its mask are read: keywords of `read` and of `Pipeline.inpaint`."""

    box: tuple[int, int, int, int] | None
    """(x0, y0, x1, y1) in pixels, x1 and y1 not included: the hole, in place of a mask. None by default."""
    invert_mask: bool
    """The mask is black where it is to be filled; with a box, what is outside of it is the hole."""
    soft_mask: bool
    """The mask's grey is the weight of the filling, and all that is not 0 is hole."""
    mask_values: Sequence[float] | None
    """The values of the mask that are to be filled, of one with labels; see `reading.read_mask`."""
    grow: int
    """The hole is grown by so many pixels (a disc), as over the rim of a tightly masked thing."""
    shrink: int
    """The hole is shrunk by so many pixels, after it was grown: both together close gaps in it."""
    extend: tuple[int, int, int, int] | None
    """(left, top, right, bottom) in pixels: so much is added to the image's sides, and filled in."""
    feather: int
    """Over how many pixels inside the edge of the hole the image turns into the filling; see `masks.feather`."""
    resize_mask: bool
    """A mask of another size than the image is resized to it, in place of an error."""
    max_pixels: int
    """Larger images and masks are refused, before they are decoded; `images.MAX_PIXELS` by default."""
    range: tuple[float, float] | None
    """The values that are black and white in images of more than 8 bits; by default those of the images that the model
    learned, or else by the known pixels."""
    page: int | None
    """The page or frame, from 1 on, of a file that has several; the result is that page alone."""


@enough_memory("while the image and its mask are read: smaller ones take less")
def read(
    image: Any, mask: Any = None, *, box: tuple[int, int, int, int] | None = None,
    invert_mask: bool = False, soft_mask: bool = False, mask_values: Sequence[float] | None = None, grow: int = 0,
    shrink: int = 0, feather: int = 0, extend: tuple[int, int, int, int] | None = None, resize_mask: bool = False,
    max_pixels: int = images.MAX_PIXELS, range: tuple[float, float] | None = None, page: int | None = None,
) -> Masked:  # fmt: skip
    """Read an image of any mode and size, in any form of `given.picture`, such as a file's path, and the hole in it.

    It is turned as its EXIF says. A file keeps its EXIF but for thumbnails, which show the erased content; an Image
    keeps its `info`. The hole is that of a mask of the image's size, of any kind that `reading.read_mask` takes,
    or of a box, or without both what is transparent, which is filled in behind what shows of the image. The other
    arguments are `ReadingOptions`.

    Raises:
        UsageError: arguments that do not go together; no mask; a mask of another size; a box outside of the image; a
            file of several pages without `page`; NothingToFill, which is one, for an empty hole.
        DataError: an image or mask that cannot be read, or that is too large; a mask that may mean several things.
        ResourceError: out of memory.
    """
    max_pixels, feather = plain.integer("max_pixels", max_pixels), plain.integer("feather", feather, least=0)
    grow, shrink = plain.integer("grow", grow, least=0), plain.integer("shrink", shrink, least=0)
    invert_mask, soft_mask = plain.flag("invert_mask", invert_mask), plain.flag("soft_mask", soft_mask)
    resize_mask, box = plain.flag("resize_mask", resize_mask), plain_box(box)
    extend = plain_box(extend, "extend", "(left, top, right, bottom)")
    _refuse_options_without_a_mask(
        mask, box, invert_mask=invert_mask, soft_mask=soft_mask, mask_values=mask_values is not None,
        resize_mask=resize_mask,
    )  # fmt: skip
    page = plain.count("page", page)
    _refuse_other_page(image, page, "the image", mask)
    image = given.picture(image, max_pixels=max_pixels, page=page)
    range = None if range is None else plain.pair("range", range)
    if range is not None and not range[0] < range[1]:
        raise UsageError(f"range is two values, LOW below HIGH, not {range[0]:g} and {range[1]:g}")
    name = str(image) if isinstance(image, str | Path) else "the image"
    picture = composite.editable(_opened(image, name, max_pixels, page))
    if picture.info.get(deep.LOW, picture) is None:
        log.warning(_EIGHT_OF_SIXTEEN, name)
    width, height = picture.size
    soft, behind, said, lacking = False, False, list[str](), ""
    if range is not None and deep.kind_of(picture) is None:
        said.append(f"{name}: range=LOW says nothing of an image of 8 bits")
    if box is not None:
        grey: NDArray[Any] = masks.box_mask(box, height, width) != invert_mask
        lacking = "the box is all of it, and with invert_mask=True what is outside of it would be filled"
    elif mask is not None:
        mask_name, soft = f"mask {mask}" if isinstance(mask, str | os.PathLike) else "the mask", soft_mask
        if isinstance(mask, Image) and getattr(mask, "n_frames", 1) > 1:
            _refuse_other_page(mask, page, mask_name, None)
        source = _opened(mask, mask_name, max_pixels, page, is_mask=True) if isinstance(mask, Image) else mask
        grey, understood, lacking = read_mask(
            source, invert=invert_mask, soft=soft, values=mask_values, picture=picture, name=mask_name,
            max_pixels=max_pixels, page=page,
        )  # fmt: skip
        del source  # it may be large, and there are copies to come
        if grey.shape != (height, width):
            if not resize_mask:
                raise UsageError(
                    f"{mask_name} is {grey.shape[1]}x{grey.shape[0]}, and {name} {width}x{height}: make them one size, "
                    "or have the mask resized (resize_mask=True)"
                )
            grey = masks.resize_mask(grey, height, width)
        grey = masks.without_ringing(grey) if soft else masks.hole_of(grey)
        if understood:
            said.append(understood)
        if (share := float((grey > 0).mean())) > 0.9:
            hint = "white = fill: leave out invert_mask=True" if invert_mask else "black = fill: invert_mask=True"
            said.append(f"{mask_name} fills {share:.0%} of {name}; for masks with {hint}")
    elif (clear := masks.alpha_hole(picture)) is not None:
        grey, behind = clear, not grow and picture.mode in ("LA", "RGBA")
    elif extend is not None:
        grey = np.zeros((height, width), bool)
    else:
        raise UsageError(f"{name} has no transparent part to fill in: give a mask (white = fill)")
    if extend is None and not grey.any():
        raise NothingToFill(f"there is nothing to fill in {name}: {lacking}")
    picture, grey, added = (picture, grey, None) if extend is None else _extended(picture, grey, extend, max_pixels)
    grey = masks.grow(masks.grow(grey, grow), -shrink)
    if added is not None:
        grey[added] = 1
    hole, weight = grey > 0, grey if soft else None
    if not hole.any():
        raise NothingToFill(f"there is nothing to fill in {name}: shrink={shrink} leaves nothing of the hole")
    if behind:
        weight = np.broadcast_to(np.float32(0), hole.shape)  # what shows of the image stays
        if feather:
            said.append("feather does nothing here: what is transparent is filled, and blends by its own alpha")
    elif feather:
        rising = masks.feather(hole, feather)
        weight = rising if weight is None else np.minimum(weight, rising)
        if added is not None:
            weight[added] = 1
    stated = UNKNOWN if range is None else Ranges.stated(*range)
    return Masked(picture, hole, weight, tuple(said), stated)


def picture_of(path: Path, max_pixels: int = images.MAX_PIXELS) -> Image:
    """Return the picture of a file as `read` reads it, whatever its hole; raise as it does."""
    return composite.editable(_opened(path, str(path), max_pixels, None))


def _extended(
    picture: Image, grey: NDArray[Any], extend: tuple[int, int, int, int], max_pixels: int
) -> tuple[Image, NDArray[Any], masks.Hole]:
    """Return a picture and its mask or hole [H W] on a larger canvas, and where that is new, bool [H W].

    Raises UsageError for sides that are no numbers from 0 on, all 0, or too large together.
    """
    left, top, right, bottom = extend
    width, height = picture.width + left + right, picture.height + top + bottom
    if min(extend) < 0 or not any(extend):
        raise UsageError(f"extend is left, top, right, bottom: pixels from 0 on, and not all 0, not {tuple(extend)}")
    if width * height > max_pixels:
        raise UsageError(
            f"extend makes {width} x {height} pixels, and at most {max_pixels:,} are made; max_pixels=... allows more"
        )

    def on_canvas(layer: Image) -> Image:
        canvas = pillow.new(picture.mode, (width, height))
        canvas.info = dict(layer.info)
        canvas.paste(layer, (left, top))
        return canvas

    larger, low = on_canvas(picture), deep.low_of(picture)
    if low is not None:
        larger.info[deep.LOW] = on_canvas(low)
    added, around = np.ones((height, width), bool), np.ones((height, width), grey.dtype)
    within = slice(top, top + picture.height), slice(left, left + picture.width)
    added[within], around[within] = False, grey
    return larger, around, added


def plain_box(box: Any, name: str = "box", sides: str = "(x0, y0, x1, y1)") -> tuple[int, int, int, int] | None:
    """Return a box in Python's integers. Raises UsageError for anything but four whole numbers, or None."""
    if box is None:
        return None
    try:
        corners = [] if isinstance(box, str | bytes | dict | set) else list(box)
    except TypeError:
        corners = []
    if len(corners) != 4:
        raise UsageError(f"{name} is four whole numbers {sides}, not {plain.shown(box)}")
    one, two, three, four = (plain.integer(f"a side of {name}", corner, least=-(2**31)) for corner in corners)
    return one, two, three, four


def _refuse_options_without_a_mask(mask: Any, box: Any, **given: bool) -> None:
    """Raise UsageError for a mask and a box together, and for an option of what is not there."""
    if mask is not None and box is not None:
        raise UsageError("a mask and a box are both given, and one says what to fill in: leave one out")
    for option in (name for name, asked in given.items() if asked and mask is None):
        if option != "invert_mask":
            raise UsageError(f"{option} is about a mask, and there is none")
        if box is None:
            raise UsageError(f"{option} is about a mask or a box, and there is neither")


def _refuse_other_page(image: Any, page: int | None, name: str, mask: Any) -> None:
    """Raise UsageError where another page is asked for than the only one that a Pillow image, or an array, gives.

    An image that has one page goes with any page of a `mask`.
    """

    def is_file(given: Any) -> bool:
        return isinstance(given, str | os.PathLike | bytes | bytearray | memoryview) or hasattr(given, "read")

    here = image.tell() + 1 if isinstance(image, Image) else 1
    alone = getattr(image, "n_frames", 1) == 1
    if page is not None and page != here and not is_file(image) and not (alone and is_file(mask)):
        raise UsageError(f"{name} is given as page {here} alone, and page {page} is asked for: give its file")


def _opened(image: Image | str | Path, name: str, max_pixels: int, page: int | None, *, is_mask: bool = False) -> Image:
    """Return a decoded image, if its header says that it is small enough. Raises DataError that begins with `name`."""
    try:
        if isinstance(image, str | Path):
            return _page_of(Path(image), name, max_pixels, page)
        width, height = image.size
        if width * height > max_pixels:
            raise TooLarge(f"too large: {width} x {height} pixels, at most {max_pixels:,} are read")
        is_deep = deep.is_deep(image)  # before it is loaded, which forgets it
        image.load()
        if is_deep:
            log.warning(_EIGHT_OF_SIXTEEN + "; give the file instead", name)
        if (pages := int(getattr(image, "n_frames", 1))) > 1 and image.format != "MPO":
            log.warning("of the %d pages of %s only number %d is filled in and kept", pages, name, image.tell() + 1)
        if image.format == "TIFF":
            image, bands = opening.as_its_tags_say(image.copy(), image)
            if not is_mask:
                _refuse_bands(bands)
        return image if is_mask else given.upright(image)  # of a mask, its format counts, too
    except TooLarge as error:
        raise DataError(f"{name}: {error}; max_pixels=... lets larger ones through") from None
    except DataError as error:
        raise DataError(f"{name}: {error}") from None
    except (OSError, SyntaxError, ValueError) as error:  # an Image whose file is damaged, which shows only now
        raise DataError(f"{name}: damaged: {error}") from None


def _page_of(path: Path, name: str, max_pixels: int, page: int | None) -> Image:
    """Return the only page of a file, or number `page` of several, from 1 on; nothing of it is dropped unsaid."""
    content = images.read_bytes(path)
    place = opening.place_of_page(content, path.name, page, name)
    with images.decoding(content, name=path.name, max_pixels=max_pixels, page=place) as decoded:
        _refuse_bands(decoded.bands)
        return decoded.image


def _refuse_bands(count: int) -> None:
    if count:
        raise DataError(
            f"has {count} more band{'s' * (count > 1)} than its colours, such as near infrared, which the result would "
            "lack: save the colours as a file of their own"
        )


def parts(masked: Masked, size: int, fit: str = "auto", scale: float | None = None) -> list[Part]:
    """Return the parts that go through a net of images of `size`, see `regions.choose`; none if nothing is missing."""
    chosen = regions.choose(masked.hole, size, fit, scale) if masked.hole.any() else []
    return [Part(masked, region) for region in chosen]


def parts_for(data: DataConfig, masked: Masked, fit: str = "auto") -> list[Part]:
    """Return the parts that go through the net of a model that learned such `data`, as `parts` does.

    Raises:
        UsageError: an unknown `fit`, or one that a picture of this size does not go with.
    """
    scale = max(data.scales) if data.fit == "patch" else None
    return parts(masked, data.image_size, fit, scale)


@dataclass(frozen=True)
class Part:
    """A region of an image that goes through the net: only it is converted, since an image may have 100 megapixels."""

    masked: Masked
    region: regions.Region

    def cut(self, channels: int) -> tuple[images.Pixels, masks.Hole]:
        """Return the region's pixels, uint8 [rows columns C], and its hole, bool [rows columns], as the net sees them.

        Outside the hole that it returns, no pixel has a trace of what is in the hole of the image.
        """
        size, hole = (self.region.rows, self.region.columns), self.masked.hole[self.region.box]
        profile = profiles.of(self.masked.picture, both_ways=True)
        masked = self.masked
        pixels = images.to_array(
            self._crop(masked.picture), channels, masked.background, masked.range, srgb=profile is not None
        )
        if not self.region.resampled:
            return pixels, hole
        return masks.resize_known(pixels, hole, *size), masks.shrink(hole, *size)

    @enough_memory("while the image is put together: a smaller image, or a smaller num, takes less")
    def paste(self, pictures: Sequence[Image], filled: Sequence[images.Pixels]) -> None:
        """Put filling i, uint8 [rows columns C], into pictures[i], a copy of the masked picture, in place."""
        masked, region = self.masked, self.region
        hole = region.own(masked.hole)
        weight = None if masked.weight is None else masked.weight[region.box]
        for picture, one in zip(pictures, filled, strict=True):
            new = images.resize(one, region.height, region.width)
            part = composite.composite(self._crop(picture), new, hole, weight, masked.range)
            deep.paste(picture, part, (region.left, region.top))
            if "transparency" in picture.info and not images.has_alpha(picture):
                del picture.info["transparency"]  # of 16 bits, whose last transparent pixel was filled

    def levels(self, size: int) -> list[Part]:
        """Return coarser versions of this part, the coarsest first, and last the part itself: see `regions.pyramid`."""
        return [replace(self, region=level) for level in regions.pyramid(self.region, self.masked.hole, size)]

    def _crop(self, picture: Image) -> Image:
        rows, columns = self.region.box
        return deep.crop(picture, (columns.start, rows.start, columns.stop, rows.stop))
