"""What came of it, as a table and as bars, and what went wrong."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

Found = dict[str, Any]

KNOWN = frozenset({
    "measure", "way", "unit", "reference", "better", "median", "from_to", "rounds", "ratio", "ratio_from_to", "wanted",
    "failed", "missing",
})  # fmt: skip
"""What of a row is in the table, or in speed.json alone; the rest is said below the table."""


def problems(part: Found) -> Iterator[str]:
    """Yield why a sub-benchmark did not do what it should; nothing where it did. A missing package is no reason."""
    if part["ended"] != "exit code 0":
        yield f"ended with {part['ended']}"
    if not part["planned"]:
        yield "nothing was measured"
    rows = {(row["measure"], row["way"]): row for row in part["rows"]}
    for measure, way in part["planned"]:
        row = rows.get((measure, way), {"failed": "there is no row"})
        if "failed" in row or not ("median" in row or "missing" in row):
            yield f"{measure} | {way}: {row.get('failed', 'there are no figures')}"


def lines(found: Found) -> list[str]:
    """Return everything in lines of Markdown."""
    machine = found["machine"]
    versions = ", ".join(f"{name} {version or 'missing'}" for name, version in machine["versions"].items())
    text = [
        f"`{found['command']}`, {found['date']}", "",
        f"{machine.get('gpu') or machine['cpu']}: {machine['cores']} cores, {machine['threads']} threads, "
        f"{', '.join(machine['flags']) or 'no special instructions'}, {machine['memory_gib']} GiB; "
        f"diffunet computes in {machine['chosen']}. GOMP_SPINCOUNT={found['spin_count']}. {versions}.", "",
    ]  # fmt: skip
    for name, part in found["parts"].items():
        if part["busy_before"] > found["quiet"]:
            text += [f"**THE MACHINE WAS NOT QUIET before {name}: {part['busy_before']} cores were busy.**", ""]
    for name, part in found["parts"].items():
        about = part["about"].strip().splitlines()
        text += [f"## {name}", "", *about[:1], ""]
        text += ["| measure | way | median (from to) | ratio (from to) | wanted |", "|---" * 5 + "|"]
        text += [table_line(row) for row in part["rows"]] + [""]
        columns = part.get("columns", [])
        if columns:
            text += [f"| way | {' | '.join(columns)} |", "|---" * (1 + len(columns)) + "|"]
            text += [f"| {row['way']} | {' | '.join(cells(row, columns))} |" for row in part["rows"]] + [""]
        text += [f"- {row['measure']} | {row['way']}: {said}" for row in part["rows"] if (said := rest(row, columns))]
        text += [f"- PROBLEM: {problem}" for problem in problems(part)] + [""]
    return text


def table_line(row: Found) -> str:
    """Return a row of the table: measure, way, median, ratio to the reference, and what is wanted."""
    figure = "FAILED" if "failed" in row else "missing" if "missing" in row else ""
    if "median" in row:
        figure = f"{number(row['median'])} {row['unit']} {span(row['from_to'])}".strip()
    ratio = f"{number(row['ratio'])} {span(row['ratio_from_to'])}" if "ratio" in row else ""
    if row["way"] == row["reference"]:
        ratio = "reference"
    return f"| {row['measure']} | {row['way']} | {figure} | {ratio} | {wanted(row)} |"


def wanted(row: Found) -> str:
    """Return what is wanted of a row, in words, and whether it is so."""
    if "wanted" not in row:
        return ""
    goal = row["wanted"]
    limits = [f"at {name} {number(goal[name])}" for name in ("least", "most") if name in goal]
    what = "ratio" if goal["of"] == "ratio" else row["unit"]
    text = f"{' and '.join(limits)} ({what})"
    if goal["of"] not in row:
        return text
    value = row[goal["of"]]
    return f"{text}: {'yes' if goal.get('least', value) <= value <= goal.get('most', value) else 'NO'}"


def cells(row: Found, columns: Collection[str]) -> list[str]:
    """Return what a row says under columns; nothing where it says nothing."""
    return [shown(row[name]) if name in row else "" for name in columns]


def rest(row: Found, columns: Collection[str] = ()) -> str:
    """Return what else a row says, that is not under columns."""
    parts = [row[name] for name in ("failed", "missing") if name in row]
    others = {name: value for name, value in row.items() if name not in KNOWN and name not in columns}
    return "; ".join([*parts, *(f"{name} {shown(value)}" for name, value in others.items())])


def shown(value: Any) -> str:
    """Return a fact in words: of a table x -> y each pair."""
    if isinstance(value, dict):
        return ", ".join(f"{key}: {shown(each)}" for key, each in value.items())
    return number(value) if isinstance(value, int | float) else str(value)


def span(pair: list[float]) -> str:
    """Return the least and the most, in brackets."""
    return f"({number(pair[0])} to {number(pair[1])})"


def number(value: float) -> str:
    """Return a number with three digits, and no fewer than it has before the point."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def draw(found: Found, path: Path) -> None:
    """Draw bars: a panel for each measure with a bar for each way, from its least to its most a line."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    panels: dict[str, list[Found]] = {}
    for name, part in found["parts"].items():
        for row in part["rows"]:
            if "median" in row:
                panels.setdefault(f"{name}: {row['measure']}, {row['unit']} ({row['better']} is better)", []).append(
                    row
                )
    if not panels:
        return
    heights = [1 + len(rows) for rows in panels.values()]
    figure, axes = pyplot.subplots(
        len(panels), figsize=(9, 0.33 * sum(heights)), height_ratios=heights, squeeze=False, layout="constrained"
    )
    for one, (title, rows) in zip(axes[:, 0], panels.items(), strict=True):
        values = [row["median"] for row in rows]
        off = [[abs(row["from_to"][end] - row["median"]) for row in rows] for end in (0, 1)]
        colours = ["C0" if row["way"] == row["reference"] else "C7" for row in rows]
        bars = one.barh([row["way"] for row in rows], values, xerr=off, color=colours, ecolor="black")
        one.bar_label(bars, [number(value) for value in values], padding=3, fontsize=8)
        one.margins(x=0.1)
        one.invert_yaxis()
        one.set_title(title, fontsize=9, loc="left")
        one.tick_params(labelsize=8)
        one.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
