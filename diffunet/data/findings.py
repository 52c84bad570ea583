"""What `diffunet check` says of a folder, in rows: each a name, words for people, and plain values for programs."""

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from diffunet.data import groups, index, labels
from diffunet.data.cache import Layout, megabytes
from diffunet.data.folder import printable
from diffunet.data.index import FILE, Index, Paths, row
from diffunet.data.labels import Labels
from diffunet.data.survey import Survey
from diffunet.errors import Error

LISTED = 20
"""The most files that cannot be used which the text names."""

ADVICE = 3
"""The most options that are suggested."""

RARE = 1 / 3
"""A class is rare that has less than this share of the images that it would have were all classes equally large."""


class Row(NamedTuple):
    """A finding: the key of its values in `plain`, lines for people (none: nothing to say), and the plain values."""

    name: str
    lines: Sequence[str]
    data: Any


class Advice(NamedTuple):
    """An option that a folder asks for, as it is typed, and why."""

    option: str
    why: str


@dataclass(frozen=True)
class Plan:
    """How the folder is to be trained on: the options of the data that findings depend on, see `config.DataConfig`.

    `given` has the names of those that were asked for, which need no advice.
    """

    layout: Layout
    classes: bool = False
    labels: str | None = None
    balance: bool = False
    group: str | None = None
    held_out: float = 0.05
    max_rejected: float = 0.1
    caching: bool = True
    given: Collection[str] = ()


def rows(survey: Survey, plan: Plan) -> list[Row]:
    """Return all findings, in the order in which they are told."""
    total, size = len(survey.images), plan.layout.image_size
    usable = f"{total:,} images can be used, {len(survey.rejected):,} files cannot"
    head = f"{printable(str(survey.root))}: {'; '.join([usable, *survey.left_out.of_other_kinds()])}"
    found = [Row("folder", (head,), str(survey.root)), Row("images", (), total)]
    found.append(Row("passed_over", list(survey.left_out.lines(others=False)), survey.left_out.plain()))
    if total:
        smallest, middle, largest = survey.size_range()
        small, medium, large = (f"{width} x {height}" for width, height in (smallest, middle, largest))
        formats, modes = (Counter(getattr(image, name) for image in survey.images) for name in ("format", "mode"))
        below, long, copies = survey.smaller_than(size, plan.layout.fit), survey.elongated, survey.copies
        sizes = {"smallest": smallest, "median": middle, "largest": largest}
        found += [
            Row("formats", (_counts(formats),), dict(formats)),
            Row("modes", (_counts(modes),), dict(modes)),
            Row("sizes", (f"smallest {small}, median {medium}, largest {large}",), sizes),
            Row("smaller", (f"{below:,} are smaller than {size} pixels and would be enlarged",), below),
            Row("elongated", (f"{long:,} have one side more than twice the other",), long),
            Row("transparent", (f"{survey.transparent:,}",), survey.transparent),
            Row("grey", (), survey.all_grey),
            Row("duplicates", (f"{copies:,} repeat another file exactly",), copies),
            Row("notes", survey.said, list(survey.said)),
            Row("subfolders", (_subfolders(survey),), {n: c for n, c in survey.classes.items() if n is not None}),
        ]
        files = _index(survey)
        classes, row_of_classes = _classes(survey, files.paths, plan)
        found += [*row_of_classes, _split(files, classes, plan), _cache(survey, plan)]
        advice = list(_advice(survey, classes, plan))[:ADVICE]
        words = [f"{each.option:<23} {each.why}" for each in advice]
        found.append(Row("try", words, [each._asdict() for each in advice]))
    return [*found, *_rejected(survey, plan)]


def text(found: Sequence[Row]) -> str:
    """Return findings for people: the first row without its name, files that cannot be used last."""
    (head, *_), listed = found[0].lines, found[-1]
    lines = [f"  {each.name.replace('_', ' '):<12} {line}" for each in found[1:-1] for line in each.lines]
    return "\n".join([head, *lines, *listed.lines])


def plain(found: Sequence[Row]) -> dict[str, Any]:
    """Return findings for programs, as JSON can express them."""
    return {each.name: each.data for each in found}


def describe(survey: Survey, image_size: int = 64) -> str:
    """Return the findings for people, for training at `image_size` pixels and otherwise without options."""
    return text(rows(survey, Plan(Layout(image_size, 3, "crop", (255, 255, 255), 1.0))))


def imbalance(classes: Labels) -> str | None:
    """Say in one line which classes have few images beside the others; None where none has."""
    counts, total = classes.counts(), len(classes.places)
    rare = [name for name in classes.names if counts[name] * len(counts) < RARE * total]
    if not rare:
        return None
    least = min(rare, key=lambda name: counts[name])
    percent = 100 * counts[least] / total
    share = f"{printable(least)} has {percent:.{0 if percent >= 1 else 2}f}% of the images"
    if len(rare) > 1:
        share = f"{len(rare)} of {len(counts)} classes have few images, such as {share}"
    return f"{share}: --data.balance draws each class equally often"


def _index(survey: Survey) -> Index:
    return Index(Paths.of(image.path for image in survey.images), np.array([row(i) for i in survey.images], FILE))


def _counts(counter: Counter[str], limit: int = 8) -> str:
    shown = ", ".join(f"{name} {n:,}" for name, n in counter.most_common(limit))
    return shown + (f", and {len(counter) - limit} others" if len(counter) > limit else "")


def _subfolders(survey: Survey) -> str:
    named = Counter({printable(name): n for name, n in survey.classes.items() if name is not None})
    loose = survey.classes[None]
    if not named:
        return "none"
    return f"{len(named)}: {_counts(named)}" + (f"; {loose:,} images in none" if loose else "")


def _classes(survey: Survey, paths: Paths, plan: Plan) -> tuple[Labels | None, list[Row]]:
    """Return the classes that there are or could be, and what to say of them."""
    asked = plan.classes or plan.labels is not None
    try:
        found = labels.find(survey.root, paths, plan.labels, given=survey.labels, beside=survey.beside)
    except Error as error:
        return None, [Row("classes", (str(error),), {"error": str(error)})] if asked else [Row("classes", (), None)]
    counts = found.counts()
    shown = Counter({printable(name): n for name, n in counts.items()})
    where = [f"{len(counts)}: {_counts(shown)}"] if asked or found.rule is not None else []
    rare = None if plan.balance else imbalance(found)
    values = {"rule": found.rule or labels.FOLDERS, "counts": dict(counts), "note": found.note, "rare": rare}
    return found, [Row("classes", [*where, *filter(None, (found.note, rare))], values)]


def _split(files: Index, classes: Labels | None, plan: Plan) -> Row:
    places = classes.places if classes is not None and (plan.classes or plan.labels is not None) else None
    try:
        training, held_out, _ = groups.divide(files, plan.group, plan.held_out, index.HELD_OUT_MAX, places)
    except Error as error:
        return Row("split", (str(error),), {"error": str(error)})
    said = f"{len(training):,} to train on, {len(held_out):,} held out"
    return Row("split", (said,), {"training": len(training), "held_out": len(held_out)})


def _cache(survey: Survey, plan: Plan) -> Row:
    layout = plan.layout
    shapes = (layout.shape(image.height, image.width) for image in survey.images)
    size = layout.channels * sum(rows * columns for rows, columns in shapes)
    said = f"{megabytes(size)} of decoded images" if plan.caching else "none is kept: images are decoded at each step"
    return Row("cache", (said,), {"bytes": size if plan.caching else 0})


def _advice(survey: Survey, classes: Labels | None, plan: Plan) -> Iterator[Advice]:
    """Yield the options that a folder asks for, the most useful ones first."""
    total, given, size = len(survey.images), plan.given, plan.layout.image_size
    asked, short = plan.classes or plan.labels is not None, survey.size_range()[1]
    if classes is not None and not asked and not survey.is_divided:
        what = "subfolders" if classes.rule is None else f"classes in {classes.rule}"
        yield Advice("--classes", f"the {len(classes.names)} {what} become labels")
    elif classes is not None and imbalance(classes) is not None and not plan.balance:
        yield Advice("--data.balance", "draws each class equally often")
    elif classes is None and not asked and (guess := labels.guess(image.path for image in survey.images)) is not None:
        yield Advice(f"--data.labels '{guess.pattern}'", f"the {len(guess.classes)} names before numbers become labels")
    if "channels" not in given:
        if survey.transparent:
            yield Advice("--data.channels 4", "keeps transparency, which is otherwise laid over --data.background")
        elif survey.all_grey:
            yield Advice("--data.channels 1", "no image has any colour")
    if "image_size" not in given and survey.smaller_than(size, plan.layout.fit) > total / 2:
        smaller = max(8, short[1] // 8 * 8)
        yield Advice(f"--image-size {smaller}", f"most images are smaller than {size}")
    if "fit" not in given:
        if survey.elongated > total / 4:
            yield Advice("--data.fit pad", "many images are long, and a centre crop loses much of them")
        elif total < 100 and min(short) >= 8 * size:
            yield Advice("--data.fit patch", "few large images: if they are textures, learn windows of them")
    if total < 100:
        yield Advice("--init MODEL", "so few images are better learned from a trained model")


def _rejected(survey: Survey, plan: Plan) -> list[Row]:
    kinds: dict[str, list[str]] = {}
    for file in survey.rejected:
        kinds.setdefault(kind_of(file.reason), []).append(file.path)
    lines, total = [], len(survey.images) + len(survey.rejected)
    if kinds:
        lines.append(
            f"{len(survey.rejected):,}: {_counts(Counter({kind: len(paths) for kind, paths in kinds.items()}))}"
        )
    if len(survey.rejected) > plan.max_rejected * total:
        lines.append(f"too many for training to begin: mend them, or raise --data.max-rejected ({plan.max_rejected:g})")
    listed = [f"  {file.path}: {file.reason}" for file in survey.rejected[:LISTED]]
    if listed:
        listed.insert(0, "Files that cannot be used:")
    if len(survey.rejected) > LISTED:
        listed.append(f"  ... and {len(survey.rejected) - LISTED:,} more")
    files = [{"path": file.path, "reason": file.reason} for file in survey.rejected]
    return [Row("left_out", lines, {kind: len(paths) for kind, paths in kinds.items()}), Row("rejected", listed, files)]


def kind_of(reason: str) -> str:
    """Return what a reason has in common with others of its kind: its words before details."""
    return min((reason.partition(mark)[0] for mark in (":", ";", " (", ",")), key=len)
