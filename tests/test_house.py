"""The house itself: how large the package and its modules are, and that all that is public has sentences about it."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

from diffunet import guides

PACKAGE = Path(__file__).parents[1] / "diffunet"

MOST_LINES = 32_000
"""The most lines of Python that the whole package may have; blank ones, comments and docstrings count."""

MOST_LINES_OF_A_MODULE = 410
"""The most lines that one file may have."""

MODULES = sorted(PACKAGE.rglob("*.py"))

AT_THE_TOP = {
    ".ci", ".dockerignore", ".gitattributes", ".github", ".gitignore", "CHANGELOG.md", "CITATION.cff",
    "CONTRIBUTING.md", "Dockerfile", "LICENSE", "README.md", "SECURITY.md", "diffunet", "pyproject.toml", "samples",
    "scripts", "tests",
}  # fmt: skip
"""All that lies at the top of the repository: who comes for the first time reads this list first."""

DEFINITIONS = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)

SENTENCE = re.compile(r"""\.[)"'`]*(\s|$)""")
"""The end of a sentence."""


def lines(path):
    return len(path.read_text(encoding="utf-8").splitlines())


def public(node, name):
    """Yield the dotted name and the node of a module or class, and of all public classes and functions within."""
    yield name, node
    for child in node.body:
        if isinstance(child, DEFINITIONS) and not child.name.startswith("_"):
            inside = f"{name}.{child.name}" if name else child.name
            yield from public(child, inside) if isinstance(child, ast.ClassDef) else [(inside, child)]


def complaints(path):
    """Say what is wrong with the docstrings of a module, in a list.

    A method needs none where another class of the module describes a method of that name: it implements a protocol.
    """
    nodes = [each for each in public(ast.parse(path.read_text(encoding="utf-8")), "") if each[1].body]
    described = {name.split(".")[-1] for name, node in nodes if "." in name and ast.get_docstring(node)}
    found = []
    for name, node in nodes:
        text, name = ast.get_docstring(node), name or "the module"
        if text is None:
            implements = "." in name and name.split(".")[-1] in described
            found += [] if implements else [f"{name} has no docstring"]
        elif text.startswith("Of "):
            found.append(f"{name} opens with 'Of', which is no sentence")
        elif not SENTENCE.search(text.split("\n\n")[0]):
            found.append(f"{name} has no full stop at the end of its first sentence")
    return found


def test_the_top_of_the_repository_has_few_names():
    try:
        tracked = subprocess.run(
            ["git", "ls-files"], cwd=PACKAGE.parent, check=True, capture_output=True, text=True
        ).stdout  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this is no checkout of git's")
    assert {line.partition("/")[0] for line in tracked.splitlines()} == AT_THE_TOP


def test_the_package_can_be_read_in_a_day():
    assert sum(map(lines, MODULES)) <= MOST_LINES


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_a_module_is_short_and_described(path):
    assert lines(path) <= MOST_LINES_OF_A_MODULE
    assert complaints(path) == []


ROOM = re.compile(r"^\| (?P<rooms>[^|]*) \| (?P<lines>[\d,]+) \|", re.M)


def room_lines(name):
    path = PACKAGE / name
    return sum(map(lines, path.rglob("*.py"))) if path.is_dir() else lines(path)


def test_the_floor_plan_in_the_guide_is_that_of_the_house():
    """Every room is in it, its lines are right within a tenth, and the reading order is short."""
    chapter = guides.text("extending").partition("## Read the code")[2]
    rows = {row["rooms"]: int(row["lines"].replace(",", "")) for row in ROOM.finditer(chapter)}
    assert len(rows) == 11
    named = {room: re.findall(r"`([\w.]+)/?`", room) for room in rows}
    there = {path.name for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    above = {name for names in named.values() for name in names}
    named["the ground"] = sorted(there - above - {"__init__.py", "__main__.py"})
    for room, names in named.items():
        counted = sum(room_lines(name) for name in names if (PACKAGE / name).exists() and name != "presets")
        assert abs(rows[room] - counted) <= counted / 10, (room, counted)
    order = re.findall(r"^\d\. (.*?) \((\d+) lines\)", chapter, re.M)
    read = [(re.findall(r"`([\w/.]+)`", paths), int(number)) for paths, number in order]
    assert len(read) >= 7
    for paths, number in read:
        assert abs(number - sum(lines(PACKAGE / path) for path in paths)) <= number / 10, paths
    assert sum(number for _, number in read) <= 2_500
