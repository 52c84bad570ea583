"""The survey of a folder that `diffunet check` prints: what can be used, what cannot and why, and what to try."""

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median_low

from diffunet.data import facts
from diffunet.data.folder import ImageFile, Progress, Rejected, class_of, in_order, list_images, native, printable
from diffunet.errors import DataError
from diffunet.pictures import images
from diffunet.pictures.deep import Kind
from diffunet.pictures.ranges import Histogram, Tally, histogram_of


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
    said: tuple[str, ...] = ()

    @property
    def classes(self) -> Counter[str | None]:
        """The number of images in each subfolder of the root; None counts those that are in no subfolder."""
        return Counter(class_of(image.path) for image in self.images)

    @property
    def elongated(self) -> int:
        """The number of images whose long side is more than twice the short one."""
        return sum(max(i.width, i.height) > 2 * min(i.width, i.height) for i in self.images)

    def size_range(self) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
        """Return (width, height) of the smallest image by area, the medians of both sides, and the largest image."""
        by_area = sorted(((i.width, i.height) for i in self.images), key=lambda size: (size[0] * size[1], size))
        widths, heights = zip(*by_area, strict=True)
        return by_area[0], (median_low(widths), median_low(heights)), by_area[-1]

    def smaller_than(self, size: int) -> int:
        """Return the number of images whose short side is below `size` pixels, and which would be enlarged."""
        return sum(min(image.width, image.height) < size for image in self.images)


def survey(root: Path, *, progress: Progress | None = None) -> Survey:
    """Decode every candidate below `root` in full, and list what cannot be used. Raises DataError as `list_images`."""
    paths, rejected = list_images(root)
    good: list[tuple[ImageFile, bool, bool]] = []
    tally = Tally()
    for done, result in enumerate(in_order(lambda path: _examine(root, path), paths), 1):
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
    said = facts.said(facts.table([file.facts for file in files]), tally.ranges())
    return Survey(root, files, tuple(rejected), sum(transparent), bool(good) and all(grey), tuple(said))


def _examine(root: Path, path: str) -> tuple[ImageFile, bool, bool, tuple[Kind, Histogram] | None] | Rejected:
    """Return an image file, whether any of its pixels is not opaque, whether all are grey, and its deep values."""
    try:
        content = images.read_bytes(root / native(path))
        with images.decoding(content, name=path) as decoded:
            pixels = images.to_array(decoded.image, 4)
            visible = pixels[..., 3] > 0  # under transparent pixels editors leave any colour
            grey = bool((pixels[..., 1:3] == pixels[..., :1])[visible].all())
            said = facts.of(decoded, None, every_page=False)
            image = ImageFile(path, hashlib.sha256(content).hexdigest(), *decoded[1:5], said)
            return image, images.has_alpha(decoded.image), grey, histogram_of(decoded.image)
    except DataError as error:
        return Rejected(printable(path), str(error))


def describe(survey: Survey, image_size: int = 64) -> str:
    """Return the text that `diffunet check` prints, for training at `image_size` pixels."""
    total = len(survey.images)
    lines = [f"{printable(str(survey.root))}: {total:,} images can be used, {len(survey.rejected):,} files cannot"]
    if total:
        small, middle, large = (f"{width} x {height}" for width, height in survey.size_range())
        copies = total - len({image.sha256 for image in survey.images})
        lines += [
            f"  formats      {_counts(Counter(image.format for image in survey.images))}",
            f"  modes        {_counts(Counter(image.mode for image in survey.images))}",
            f"  sizes        smallest {small}, median {middle}, largest {large}",
            f"  below {image_size:<6} {survey.smaller_than(image_size):,} have a shorter side and would be enlarged",
            f"  elongated    {survey.elongated:,} have one side more than twice the other",
            f"  transparent  {survey.transparent:,}",
            f"  duplicates   {copies:,} repeat another file exactly",
            f"  subfolders   {_classes(survey)}",
            *(f"  note         {line}" for line in survey.said),
            *(f"  try          {advice}" for advice in _advice(survey, image_size)),
        ]
    if survey.rejected:
        lines.append("Files that cannot be used:")
        lines += [f"  {file.path}: {file.reason}" for file in survey.rejected[:20]]
        if len(survey.rejected) > 20:
            lines.append(f"  ... and {len(survey.rejected) - 20:,} more")
    return "\n".join(lines)


def _counts(counter: Counter[str], limit: int = 8) -> str:
    shown = ", ".join(f"{name} {n:,}" for name, n in counter.most_common(limit))
    return shown + (f", and {len(counter) - limit} others" if len(counter) > limit else "")


def _classes(survey: Survey) -> str:
    named = Counter({printable(name): n for name, n in survey.classes.items() if name is not None})
    loose = survey.classes[None]
    if not named:
        return "none"
    return f"{len(named)}: {_counts(named)}" + (f"; {loose:,} images in none" if loose else "")


def _advice(survey: Survey, image_size: int) -> Iterator[str]:
    total = len(survey.images)
    if len(survey.classes) > 1 and None not in survey.classes:
        yield f"--classes                the {len(survey.classes)} subfolders become labels"
    if survey.transparent:
        yield "--data.channels 4        keeps transparency, which is otherwise laid over --data.background"
    elif survey.all_grey:
        yield "--data.channels 1        no image has any colour"
    if survey.elongated > total / 4:
        yield "--data.fit pad           many images are long, and a centre crop loses much of them"
    if survey.smaller_than(image_size) > total / 2:
        smaller = max(8, survey.size_range()[1][0] // 8 * 8)
        yield f"--image-size {smaller:<11} most images are smaller than {image_size}"
    if total < 100:
        yield "--init MODEL             so few images are better learned from a trained model"
