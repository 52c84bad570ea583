"""The survey of a folder: what can be used, and what cannot and why. findings.py says what `diffunet check` tells."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median_low

from diffunet.data import facts, splits
from diffunet.data.arrays import Arrays
from diffunet.data.cache import content_of, forget_stack
from diffunet.data.folder import ImageFile, Progress, Rejected, class_of, in_order, page_of, printable, with_pages
from diffunet.data.listing import LeftOut
from diffunet.data.sources import Source, beside, open_source
from diffunet.errors import DataError
from diffunet.names import PagesName
from diffunet.pictures import images
from diffunet.pictures.deep import Kind
from diffunet.pictures.ranges import UNKNOWN, Histogram, Ranges, Tally, histogram_of

ROWS = 256
"""Rows that are looked at together, since an image may have hundreds of megapixels."""


@dataclass(frozen=True)
class Survey:
    """The files below `root`, how many images have a pixel which is not opaque, and whether none has any colour.

    `said` has lines about what the files say, see `facts.said`.
    """

    root: Path
    images: tuple[ImageFile, ...]
    rejected: tuple[Rejected, ...]
    transparent: int
    all_grey: bool
    left_out: LeftOut
    labels: dict[str, str] | None = None
    said: tuple[str, ...] = ()
    beside: dict[str, bytes] = field(default_factory=dict)

    @property
    def classes(self) -> Counter[str | None]:
        """The number of images in each class, which is a subfolder or a label; None counts those that are in none."""
        paths = [image.path for image in self.images]
        if self.labels is not None:
            return Counter(map(self.labels.get, paths))
        return Counter(map(class_of, map(splits.within(paths), paths)))

    @property
    def is_divided(self) -> bool:
        """Whether the top folders are parts of a data set, such as train and val."""
        return splits.find(image.path for image in self.images) is not None

    @property
    def copies(self) -> int:
        """The number of images that repeat another file exactly."""
        return len(self.images) - len({image.sha256 for image in self.images})

    @property
    def elongated(self) -> int:
        """The number of images whose long side is more than twice the short one."""
        return sum(max(i.width, i.height) > 2 * min(i.width, i.height) for i in self.images)

    def size_range(self) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
        """Return (width, height) of the smallest image by area, the medians of both sides, and the largest image."""
        by_area = sorted(((i.width, i.height) for i in self.images), key=lambda size: (size[0] * size[1], size))
        widths, heights = zip(*by_area, strict=True)
        return by_area[0], (median_low(widths), median_low(heights)), by_area[-1]

    def smaller_than(self, size: int, fit: str) -> int:
        """Return the number of images that would be enlarged: whose short side, or with fit "pad" whose long side, is
        below `size` pixels."""
        side = max if fit == "pad" else min
        return sum(side(image.width, image.height) < size for image in self.images)


def survey(
    root: Path, *, progress: Progress | None = None, ranges: Ranges = UNKNOWN, pages: PagesName = "first"
) -> Survey:
    """Decode every candidate of a source in full, and list what cannot be used. Raises DataError as `open_source`.

    `ranges` and `pages` are those of `dataset.open_dataset`.
    """
    source, found = open_source(root, ranges)
    paths, rejected = found.paths, list(found.rejected)
    paths = with_pages(source.read, paths) if pages == "all" else paths
    good: list[tuple[ImageFile, bool, bool]] = []
    tally = Tally()
    for done, result in enumerate(in_order(lambda path: _examine(source, path, pages == "all"), paths), 1):
        if isinstance(result, Rejected):
            rejected.append(result)
        else:
            good.append(result[:3])
            if (values := result[3]) is not None:
                tally.add(*values)
        if progress is not None:
            progress(done, len(paths))
    rejected.sort(key=lambda file: file.path)
    files, transparent, grey = zip(*good, strict=True) if good else ((), (), ())
    forget_stack()
    told, stated = facts.table([file.facts for file in files]), UNKNOWN if isinstance(source, Arrays) else ranges
    all_grey, said = bool(good) and all(grey), facts.said(told, ranges.completed(tally.ranges()), stated)
    return Survey(
        root, files, tuple(rejected), sum(transparent), all_grey, found.left_out, source.classes, tuple(said),
        beside(source, found),
    )  # fmt: skip


def _is_grey(pixels: images.Pixels) -> bool:
    """Return whether all pixels [rows columns 4] are grey but for transparent ones, where editors leave any colour."""
    return bool((pixels[..., 1:3] == pixels[..., :1])[pixels[..., 3] > 0].all())


def _examine(
    source: Source, path: str, every_page: bool
) -> tuple[ImageFile, bool, bool, tuple[Kind, Histogram] | None] | Rejected:
    """Return an image file, whether any of its pixels is not opaque, whether all are grey, and its deep values."""
    try:
        content, digest, page = content_of(source, path)
        with images.decoding(content, name=page_of(path)[0], page=page) as decoded:
            pixels = images.to_array(decoded.image, 4)
            grey = all(_is_grey(pixels[row : row + ROWS]) for row in range(0, len(pixels), ROWS))
            said = facts.of(decoded, None, every_page=every_page)
            image = ImageFile(path, digest, *decoded[1:5], said)
            return image, images.has_alpha(decoded.image), grey, histogram_of(decoded.image)
    except DataError as error:
        return Rejected(printable(path), str(error))
