"""The report of one or several runs, one HTML file with state, curves, pictures and facts.

It asks for nothing outside itself, and so works from a disk and by mail. Its policy (CSP) lets only the scripts and the
style run that are hashed here.
"""

import base64
import hashlib
import json
import shlex
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from diffunet import files
from diffunet.config import Config
from diffunet.data.folder import printable
from diffunet.errors import DataError
from diffunet.evaluation.markup import Html, joined, table, tag
from diffunet.evaluation.run_curves import CHARTS, curves, words
from diffunet.evaluation.run_reading import IMAGES, NEAREST, Reading, evenly, moment, number, text
from diffunet.pictures.thumbnails import Thumbnail, thumbnail
from diffunet.version import __version__

NAME = "report.html"
"""The name of the page within a run folder."""

PAGE = Path(__file__).parent / "page"
SCRIPTS, STYLES = ("uPlot.iife.min.js", "report.js"), ("uPlot.min.css", "report.css")

MOST = 8
"""The most runs of one page, which has as many colours."""

FILM, FRAMES = 1_400_000, 24
"""The bytes of all previews of a page, and the most of one run."""

SHEET = 350_000
"""The bytes of all pictures of one of the other kinds."""

LISTED = 200
"""The most rows of a list, of all runs together."""


def write(runs: Sequence[Reading], path: Path, unfilled: Mapping[Path, str] | None = None) -> None:
    """Write the report of some runs, at most `MOST`, as one file of less than 4 MB.

    Args:
        runs, path: what is known of the runs, and the file, which then holds all of it, or what it held before.
        unfilled: of a run folder the reason why no held-out images were filled in now.

    Raises:
        OSError: the file cannot be written.
    """
    files.write_atomic(path, page(runs, unfilled))


def page(runs: Sequence[Reading], unfilled: Mapping[Path, str] | None = None) -> str:
    """Return the report as HTML; see `write`."""
    assert 1 <= len(runs) <= MOST, len(runs)
    many, names = len(runs), _names(runs)
    films = [_film(run, many) for run in runs]
    body = [
        _section("State", names, map(_state, runs)),
        _section("Previews", names, map(_preview, films), _scrubber(), half=True),
        _section(
            "Images as the net sees them", names, (_sheet(run, IMAGES, _seen(run), many) for run in runs), half=True
        ),
        _section("Curves", (), [_charts(runs, names)]),
        _section(
            "Held-out images, masked and filled", names,
            (_fillings(run, (unfilled or {}).get(run.folder), many) for run in runs),
        ),
        _section("Samples beside their nearest training images", names, (_nearest(run, many) for run in runs)),
        _section("Data", names, (_data(run, many) for run in runs)),
        _section("Options that are not the defaults", names, (_options(run.config) for run in runs)),
        _section("What is missing here", names, map(_missing, runs)),  # the last, when all has been looked for
    ]  # fmt: skip
    written = tag("p", f"Written {moment(time.time())} by diffunet {__version__}.", class_="quiet")
    head = tag("header", tag("h1", "Report of ", tag("b", ", ".join(names))), written)
    data = [
        {"name": name, "curves": curves(run, many), "film": [[step, shot.address] for step, shot in film]}
        for name, run, film in zip(names, runs, films, strict=True)
    ]
    return _document("Report of " + ", ".join(names), joined([head, tag("main", *body)]), data)


def _document(title: str, body: Html, data: Any) -> str:
    """Return a whole document, in which nothing but our own scripts and style is let run or ask for anything."""
    scripts, styles = _contents(SCRIPTS), _contents(STYLES)
    # In a script's element "<" could end it, or open a comment, whatever quotes it stands in.
    told = json.dumps({"runs": data, "charts": [each._asdict() for each in CHARTS]}).replace("<", "\\u003c")
    head = [
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy()),
        tag("meta", name_="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name_="color-scheme", content="light dark"),
        tag("title", title),
        *(tag("style", Html(style)) for style in styles),
    ]
    end = [tag("script", Html(told), type="application/json", id="data"), *(tag("script", Html(s)) for s in scripts)]
    return "<!doctype html>\n" + tag("html", tag("head", *head), tag("body", body, *end), lang="en") + "\n"


def policy() -> str:
    """Return what a browser lets the page do: run our own scripts and style, and show the pictures within it."""
    return (
        "default-src 'none'; img-src data:; base-uri 'none'; form-action 'none'; "
        f"script-src {_hashes(SCRIPTS)}; style-src {_hashes(STYLES)}"
    )


def _contents(names: Sequence[str]) -> list[str]:
    return [(PAGE / name).read_text(encoding="utf-8") for name in names]


def _hashes(names: Sequence[str]) -> str:
    contents = _contents(names)
    digests = (base64.b64encode(hashlib.sha256(content.encode()).digest()).decode() for content in contents)
    return " ".join(f"'sha256-{digest}'" for digest in digests)


def _names(runs: Sequence[Reading]) -> list[str]:
    """Return a short name of each run that tells it from the others."""
    names = [run.name for run in runs]
    return [
        printable(name if names.count(name) == 1 else str(run.folder)) for name, run in zip(names, runs, strict=True)
    ]


def _section(
    heading: str, names: Sequence[str], parts: Iterable[Html], *above: Html, half: bool = False
) -> Html:  # fmt: skip
    """Return a section with the parts of the runs of these names, or nothing where no run has anything to say in it.

    Of one run, two neighbours that are `half` of the width stand beside each other.
    """
    some = [(n, part) for n, part in enumerate(parts) if part]
    if not some:
        return Html()
    several = len(names) > 1
    made = [tag("div", *([tag("h3", _dot(n), names[n])] if several else []), part, class_="part") for n, part in some]
    within = tag("div", *made, class_="parts" if several else None)
    return tag("section", tag("h2", heading), *above, within, class_="half" if half and not several else None)


def _dot(n: int) -> Html:
    return tag("span", class_=f"dot c{n}")


def facts(run: Reading) -> list[tuple[str, str]]:
    """Return what is known of how far a run is and of what it learns, each with its name."""
    env, c, step, steps = run.begun.get("environment"), run.config, run.step, run.steps
    env = env if isinstance(env, dict) else {}
    rows: list[tuple[str, str]] = [("Step", f"{step:,}" + (f" of {steps:,}" if steps else ""))]
    if run.seconds is not None:
        rows.append(("Time taken", _duration(run.seconds)))
    if (left := run.seconds_left()) is not None:
        rows.append(("Time left", f"about {_duration(left)}"))
    if run.heard is not None:
        rows.append(("Last heard of", moment(run.heard)))
    if device := text(env.get("device")):
        rows.append(("Device", ", ".join(filter(None, (device, text(env.get("precision")))))))
    if run.speed is not None:
        rows.append(
            ("Speed", f"{run.speed:,.0f} images a second" if run.speed >= 10 else f"{run.speed:.2g} images a second")
        )
    if c is not None:
        task = "generate and inpaint" if c.diffusion.task == "inpaint" else "generate"
        rows += [("Image size", f"{c.data.image_size} pixels, {c.data.channels} channels"), ("Task", task)]
    if (model_step := number(run.status.get("model_step"))) is not None and int(model_step) != step:
        rows.append(("Model", f"the average of step {int(model_step):,}, of least validation loss"))
    return rows


def _state(run: Reading) -> Html:
    state, share = run.state, _share(run)
    bar = [tag("progress", value=f"{share:.4f}", max=1, aria_label="share of the run that is done")] if share else []
    said = [tag("p", error[:1000], class_="alert")] if (error := text(run.status.get("error"))) else []
    if state == "stopped" and (reason := text(run.status.get("reason"))):
        said.append(tag("p", f"Stopped: {reason[:1000]}", class_="quiet"))
    shown = [tag("div", tag("dt", name), tag("dd", value)) for name, value in facts(run)]
    known = state if state in ("starting", "running", "done", "stopped", "diverged", "failed") else "unknown"
    return joined([
        tag("p", tag("span", state[:80], class_=f"chip {known}")), *bar, *said, tag("dl", *shown, class_="facts"),
        *_commands(run),
    ])  # fmt: skip


def _share(run: Reading) -> float:
    """Return how much of a run is done, from 0 to 1."""
    if run.state == "done":
        return 1.0
    if run.steps:
        return min(1.0, run.step / run.steps)
    minutes = None if run.config is None else run.config.train.minutes
    return min(1.0, run.seconds / (60 * minutes)) if minutes and run.seconds else 0.0


def _commands(run: Reading) -> Iterator[Html]:
    """Yield what to type next."""
    data, out = text(run.begun.get("data")) or "DATA", str(run.folder)
    words = [f"diffunet train {_typed(data)} --out {_typed(out)} --resume"]
    say = "Go on with it:"
    if run.state == "done":
        t = None if run.config is None else run.config.train
        longer = f" --minutes {2 * t.minutes:g}" if t and t.minutes else f" --steps {2 * max(1, run.step)}"
        words, say = [f"diffunet sample {_typed(out)} --out samples.png --grid", words[0] + longer], "Use it, or go on:"
    yield tag("p", say, class_="quiet")
    yield tag("pre", "\n".join(words))


def _typed(word: str) -> str:
    return word if word == "DATA" else shlex.quote(printable(word))


def _film(run: Reading, runs: int) -> list[tuple[int, Thumbnail]]:
    shots, unreadable = [], 0
    for step, path in evenly(run.previews, max(4, FRAMES // runs)):
        try:
            shots.append((step, thumbnail(path, FILM // FRAMES if runs <= 6 else FILM // (4 * runs))))
        except DataError:
            unreadable += 1
    if unreadable:
        run.missing.append(f"{unreadable} of the previews cannot be read.")
    return shots


def _preview(film: Sequence[tuple[int, Thumbnail]]) -> Html:
    if not film:
        return Html()
    step, last = film[-1]
    return tag("figure", _img(last, f"samples after step {step:,}"), tag("figcaption", f"Step {step:,}"), class_="film")


def _scrubber() -> Html:
    note = tag("p", "Samples from the same noise every time: a film of learning.", class_="quiet")
    play = tag("button", "Play", type="button", id="play")
    slider = tag("input", type="range", min=0, max=0, step=1, aria_label="step of the previews", id="scrubber")
    return tag("div", note, tag("div", play, slider), class_="scrub", hidden=True)


def _img(picture: Thumbnail, words: str) -> Html:
    small = "pixels" if max(picture.width, picture.height) < 480 else None
    return tag("img", src=picture.address, width=picture.width, height=picture.height, alt=words, class_=small)


def _charts(runs: Sequence[Reading], names: Sequence[str]) -> Html:
    said = [
        tag("p", *([_dot(n), names[n], ": "] if len(runs) > 1 else []), " ".join(words(run)))
        for n, run in enumerate(runs)
        if run.lines
    ]
    nothing = tag("noscript", tag("p", "The curves need JavaScript, which is off."))
    return joined([*said, tag("div", id="charts"), nothing])


def _seen(run: Reading) -> str:
    words = "The first images of training, cropped, mirrored and augmented as the net sees them."
    if run.config is None or run.config.diffusion.task != "inpaint":
        return words
    return f"{words} What is coloured over is hole, which the net learns to fill in."


def _sheet(run: Reading, name: str, words: str, runs: int) -> Html:
    if not (run.folder / name).exists():
        return Html()
    try:
        picture = thumbnail(run.folder / name, SHEET // runs)
    except DataError as error:
        run.missing.append(f"{name} {error}.")
        return Html()
    return tag("figure", _img(picture, words), tag("figcaption", words))


def _fillings(run: Reading, why_none: str | None, runs: int) -> Html:
    inpaints = run.config is not None and run.config.diffusion.task == "inpaint"
    if not inpaints and not run.fillings:
        return Html()
    rows = []
    for kind, path in run.fillings.items():
        try:
            picture = thumbnail(path, SHEET // runs // len(run.fillings))
            rows.append(tag("figure", _img(picture, f"mask {kind}"), tag("figcaption", kind)))
        except DataError as error:
            run.missing.append(f"{path.name} {error}.")
    parts = list[Html]()
    if rows:
        note = (
            "For each kind of mask: an image that training did not see, what is left of it, and what the model fills "
            f"in, as it was after step {run.filled:,}."
        )
        parts = [tag("p", note, class_="quiet"), tag("div", *rows, class_="rows")]
    if why_none is not None:
        parts.append(tag("p", f"{'No newer ones' if rows else 'There are none'}: {why_none[:1000]}", class_="quiet"))
    elif run.filled < (number(run.status.get("model_step")) or run.step):
        hint = f"{'Newer ones' if rows else 'They'} take the time of some fillings, and come where they are asked for:"
        parts += [tag("p", hint, class_="quiet"), tag("pre", f"diffunet report {_typed(str(run.folder))}")]
    return joined(parts)


def _nearest(run: Reading, runs: int) -> Html:
    picture = _sheet(run, NEAREST, "Samples, each beside the training image that is nearest to it.", runs)
    figures = [(str(name)[:80], value) for name, value in run.evaluation.items() if number(value) is not None]
    if not figures:
        return picture
    shown = figures[: max(1, LISTED // runs)]
    return joined([picture, table(("Figure", "Value"), [(name, f"{value:.6g}") for name, value in shown])])


def _data(run: Reading, runs: int) -> Html:
    facts, limit = run.begun.get("images"), max(1, LISTED // runs)
    if not isinstance(facts, dict):
        return Html()
    rows: list[tuple[str, str]] = []
    for name, label in (("images", "Images"), ("training", "To train on"), ("held_out", "Held out")):
        if (value := number(facts.get(name))) is not None:
            rows.append((label, f"{int(value):,}"))
    sizes = facts.get("sizes")
    for name, size in sizes.items() if isinstance(sizes, dict) else ():
        if isinstance(size, list) and len(size) == 2 and None not in map(number, size):
            rows.append((f"{str(name)[:20].capitalize()} size", f"{int(size[0])} x {int(size[1])} pixels"))
    for name, label in (("copies", "Exact copies of another"), ("rejected", "Cannot be used")):
        if (value := number(facts.get(name))) is not None:
            rows.append((label, f"{int(value):,}"))
    parts = [tag("dl", *(tag("div", tag("dt", name), tag("dd", value)) for name, value in rows), class_="facts")]
    notes = facts.get("notes")
    parts += [tag("p", str(each)[:300], class_="quiet") for each in (notes if isinstance(notes, list) else [])[:10]]
    counts = facts.get("classes")
    if isinstance(counts, dict) and counts:
        parts.append(_list("Classes", ("Class", "Images"), list(counts.items()), len(counts), limit))
    reasons, total = facts.get("reasons"), number(facts.get("rejected"))
    pairs = [each for each in reasons if isinstance(each, list) and len(each) == 2] if isinstance(reasons, list) else []
    if pairs:
        parts.append(_list("Files that cannot be used", ("File", "Why"), pairs, int(total or len(pairs)), limit))
    return joined(parts)


def _list(title: str, head: Sequence[str], rows: Sequence[Sequence[Any]], total: int, limit: int) -> Html:
    """Return a list that is open where it is short, and says how many more there are."""
    shown = [[printable(str(each))[:200] for each in row] for row in rows[:limit]]
    more = [tag("p", f"... and {total - len(shown):,} more", class_="quiet")] if total > len(shown) else []
    name = tag("summary", f"{title} ({total:,})")
    return tag("details", name, table(head, shown), *more, open=len(shown) <= 12)


def _options(config: Config | None) -> Html:
    if config is None:
        return Html()
    rows = []
    for section, values in config.model_dump(mode="json").items():
        fields = getattr(Config(), section).model_dump(mode="json")
        rows += [
            (f"--{section}.{name}".replace("_", "-"), _value(value), _value(fields[name]))
            for name, value in values.items()
            if value != fields[name]
        ]
    note = tag("p", "Chosen by you, or for your images, minutes and device.", class_="quiet")
    listed = tag("details", tag("summary", f"Options ({len(rows)})"), table(("Option", "Here", "Default"), rows))
    return joined([note, listed])


def _value(value: Any) -> str:
    if value is None:
        return "chosen for you"
    written = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return written if len(written) <= 120 else f"{written[:100]} ... {written[-15:]}"


def _missing(run: Reading) -> Html:
    if not run.missing:
        return Html()
    return tag("ul", *(tag("li", printable(each)[:400]) for each in run.missing))


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
