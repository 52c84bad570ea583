"""Groups of images that are held out together, against a plain search for what hangs together; tables of all kinds."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.indices import index_of
from hypothesis import example, given, settings
from hypothesis import strategies as st

from diffunet import build
from diffunet.config import LATER, Config, DataConfig
from diffunet.data import groups, index
from diffunet.data.folder import ImageFile
from diffunet.data.groups import Groups
from diffunet.data.index import Paths
from diffunet.errors import UsageError


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def files_of(images: Sequence[tuple[str, str]]) -> list[ImageFile]:
    """Files of (path, content), sorted by path."""
    return sorted((ImageFile(p, digest(c), 9, 9, "L", "PNG") for p, c in images), key=lambda file: file.path)


def named(names: Sequence[str | None]) -> Groups:
    known = sorted({name for name in names if name})
    return Groups(tuple(known), np.array([known.index(name) if name else -1 for name in names], np.int64))


def parts(files: Sequence[ImageFile], names: Sequence[str | None]) -> list[list[int]]:
    """What hangs together by content or by name: one image, then all that share something with it, and so on."""
    found, left = list[list[int]](), list(range(len(files)))
    while left:
        part, contents, known = list[int](), {files[left[0]].sha256}, {names[left[0]]} - {None}
        while more := [n for n in left if files[n].sha256 in contents or names[n] in known]:
            part, left = part + more, [n for n in left if n not in more]
            contents |= {files[n].sha256 for n in more}
            known |= {names[n] for n in more} - {None}
        found.append(sorted(part))
    return found


def plain_split(files: Sequence[ImageFile], names: Sequence[str | None], fraction: float, cap: int) -> list[int]:
    """The rule of `groups.split` as it is told, one part after the other."""

    def key(part: list[int]) -> str:
        of_part = sorted({str(names[n]) for n in part if names[n] is not None}, key=str.encode)
        return digest(of_part[0]) if of_part else files[part[0]].sha256

    ordered = sorted(parts(files, names), key=key)
    if len(files) < 20 or fraction == 0 or len(ordered) < 2:
        return []
    most = min(cap, int(2 * fraction * len(files)))
    held: list[int] = []
    for part in ordered[:-1]:
        below = int(key(part)[:13], 16) / 16**13 < fraction
        if (below or 4 * len(held) < most) and len(held) + len(part) <= most:
            held += part
    if not held:  # the first that keeps to twice the share, or else the first of the smallest
        small = [part for part in ordered if len(part) <= most]
        smallest = sorted((part for part in ordered if len(part) <= cap), key=len)
        held = (small or smallest or [[]])[0]
    return sorted(held)


NAME = st.one_of(st.none(), st.sampled_from("abcdefghijklmnopqrstuvwxyz"))


@settings(deadline=None, max_examples=200)
@given(
    st.lists(st.tuples(NAME, st.integers(0, 60)), max_size=60),
    st.floats(0, 0.5),
    st.one_of(st.integers(0, 12), st.just(10**6)),
)
@example([("a", n) for n in range(30)], 0.5, 1000)
@example([("ab"[n % 2], n) for n in range(30)], 0.05, 1000)
@example([("ab"[n % 2], 0) for n in range(30)], 0.5, 1000)
@example([("abc"[min(n // 10, 2)], n) for n in range(40)], 0.05, 15)
def test_the_split_is_that_of_the_plain_rule(images: list[tuple[str | None, int]], fraction: float, cap: int) -> None:
    files = files_of([(f"{n:03}.png", f"{content}") for n, (_, content) in enumerate(images)])
    names = [name for name, _ in images]
    split = groups.split(index_of(files), named(names), fraction, cap)
    training, held = split.training.tolist(), split.held_out.tolist()
    assert [part.dtype for part in split[:2]] == [np.int64, np.int64]
    assert held == plain_split(files, names, fraction, cap)
    assert training == sorted({*range(len(files))} - {*held})
    together = parts(files, names)
    assert all({*part} <= {*held} or not {*part} & {*held} for part in together), "no part is on both sides"
    assert len(held) <= cap
    assert training or not files
    if len(files) >= 20 and fraction > 0 and len(together) > 1 and min(map(len, together)) <= cap:
        assert held, "one at least"


def emoji(tmp_path: Path, families: int = 300) -> tuple[list[ImageFile], list[str | None], Path]:
    """Files named like emoji in skin tones, with a table of the shape of theirs; every 50th has no row."""
    images, rows = [], []
    for family in range(families):
        for tone in range(1 + 5 * (family % 3 == 0)):
            name = f"emoji_u{family + 0x1F400:x}{f'_1f3f{tone + 10:x}' if tone else ''}.png"
            images.append((name, name))
            if family % 50:
                rows.append(f'{name}\t{family + 0x1F400:x}\t{"People" if family % 2 else "Flags"}\tan "odd name')
    path = tmp_path / "emoji-groups.tsv"
    path.write_text("\n".join(["file\tfamily\tgroup\tname", *rows]) + "\n", encoding="utf-8")
    files = files_of(images)
    wanted = [file.path[7:12] if int(file.path[7:12], 16) % 50 != 0x1F400 % 50 else None for file in files]
    return files, wanted, path


def names_found(files: Sequence[ImageFile], rule: str) -> list[str | None]:
    found = groups.find(Paths.of(file.path for file in files), rule)
    assert list(found.names) == sorted(found.names)
    return [found.names[n] if n >= 0 else None for n in found.places]


def test_a_table_like_that_of_the_emoji(tmp_path: Path) -> None:
    files, wanted, path = emoji(tmp_path)
    assert names_found(files, f"{path}:family") == names_found(files, str(path)) == wanted
    assert {*names_found(files, f"{path}:group")} == {"People", "Flags", None}
    split = build.split(DataConfig(group=f"{path}:family"), index_of(files))
    assert split.held_out.tolist() == plain_split(files, wanted, 0.05, 1000)
    assert 0.02 * len(files) < len(split.held_out) <= 0.1 * len(files)
    held, seen = ({files[n].path[7:12] for n in part} for part in split[:2])
    assert {family for family in held & seen if int(family, 16) % 50 != 0x1F400 % 50} == set()


def test_an_expression_names_groups(tmp_path: Path) -> None:
    files, _, _ = emoji(tmp_path)
    by_family = [file.path[7:12] for file in files]
    assert names_found(files, "emoji_u([0-9a-f]+)") == by_family
    assert names_found(files, "1f4[0-9a-f]+") == [name if name.startswith("1f4") else None for name in by_family]
    assert names_found(files_of([("a/x1.png", "1"), ("b/y2.png", "2")]), "^a/|(y)") == [None, "y"], "the first of them"


def test_a_side_stays_when_other_images_come_and_go() -> None:
    images = [(f"{n:04}.png", f"{n}") for n in range(900)]
    names = [f"{n // 3}" if n % 7 else None for n in range(900)]

    def held(places: Sequence[int]) -> set[str]:
        files = files_of([images[n] for n in places])
        split = groups.split(index_of(files), named([names[n] for n in places]), 0.2, 10_000)
        return {files[n].path for n in split.held_out}

    everything, part = held(range(900)), [n for n in range(900) if n % 4]
    assert held(part) == everything & {images[n][0] for n in part}
    assert 0.15 * 900 < len(everything) < 0.25 * 900


def test_without_groups_it_is_the_split_that_it_always_was(tmp_path: Path) -> None:
    files = index_of(emoji(tmp_path)[0])
    ours = build.split(DataConfig(), files)
    assert ours.groups is None
    for one, other in zip(ours[:2], index.split(files, 0.05, 1000), strict=True):
        assert one.tobytes() == other.tobytes()
    alone = groups.split(files, Groups((), np.full(len(files), -1, np.int64)), 0.2, 1000)
    assert alone.held_out.tolist() == index.split(files, 0.2, 1000)[1].tolist(), "images alone keep their side"


PATHS = ["a/1.png", "a/2.png", "b/1.png", "top.png"]

TABLES: list[tuple[str, str, str, list[str | None]]] = [
    ("plain.csv", "file,family\na/1.png,x\nb/1.png,x\n", "", ["x", None, "x", None]),
    ("bare.csv", "file,family\n2.png,x\ntop.png,x\n", "", [None, "x", None, "x"]),
    ("dots.csv", "file,family\n./a/1.png,x\n", "", ["x", None, None, None]),
    ("order.csv", "family,n,file_name\nx,1,a/1.png\ny,2,a/2.png\n", "", ["x", "y", None, None]),
    ("order.csv", "family,n,file_name\nx,1,a/1.png\ny,2,a/2.png\n", ":n", ["1", "2", None, None]),
    ("first.TSV", "image\tfamily\na/1.png\tx, \"y\n\na/2.png\n", "", ['x, "y', None, None, None]),
    ("quoted.csv", '\ufefffile,family\r\n"a/1.png","x, ""y"""\r\na/2.png,\r\n', "", ['x, "y"', None, None, None]),
    ("twice.csv", "file,family\na/1.png,x\na/1.png,x\n", "", ["x", None, None, None]),
    ("same.csv", "a,a,file\nx,y,a/1.png\n", "", ["x", None, None, None]),
    ("colon:csv.csv", "file,a:b\na/1.png,x\n", ":a:b", ["x", None, None, None]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "text", "column", "wanted"), TABLES)
def test_tables(tmp_path: Path, name: str, text: str, column: str, wanted: list[str | None]) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8", newline="")
    assert names_found(files_of([(path, path) for path in PATHS]), f"{tmp_path / name}{column}") == wanted


WRONG: list[tuple[str, bytes | None, str, str]] = [
    ("none.tsv", None, ":family", r"none\.tsv cannot be read: No such file"),
    (
        "x.csv",
        b"file,family,n\na/1.png,x,1\n",
        ":famly",
        r"has no column 'famly' of groups; its columns are file, family, n",
    ),
    (
        "x.csv",
        b"file,family,n\na/1.png,x,1\n",
        ":file",
        r"has no column 'file' of groups; its columns are file, family, n",
    ),
    ("x.csv", b"file,family,n\na/1.png,x,1\n", ":", r"has no column '' of groups"),
    ("x.tsv", b"file,family\na/1.png,x\n", "", r"has no column of groups; its columns are file,family"),
    ("x.csv", b"", "", r"has no column of groups"),
    ("x.csv", b"file,family\n", "", r"no row of .* has the group of an image in the folder"),
    ("x.csv", b"file,family\nother/1.png,x\n", "", r"no row of .* which are named like a/1\.png"),
    ("x.csv", b"file,family\n1.png,x\n", "", r"names 1\.png, which 2 folders have.*a/1\.png"),
    ("x.csv", b"file,family\na/1.png,x\na/1.png,y\n", "", r"has a/1\.png in the groups x and y"),
    ("x.csv", b"file,family\na/1.png,\xff\n", "", r"cannot be read: 'utf-8'"),
    ("x.csv", b'file,family\na/1.png,"x\n', "", r"cannot be read: unexpected end of data"),
    ("x.csv", b"file,family\na/1.png,\n", "", r"no row of .* has the group"),
]


@pytest.mark.parametrize(("name", "content", "column", "message"), WRONG)
def test_what_is_wrong_with_a_table_is_said(
    tmp_path: Path, name: str, content: bytes | None, column: str, message: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=message):
        groups.find(Paths.of(PATHS), f"{tmp_path / name}{column}")


@pytest.mark.parametrize("rule", ["zebra", "", "groups.txt:family", "()"])
def test_an_expression_that_finds_nothing_is_refused(rule: str) -> None:
    with pytest.raises(UsageError, match=r"finds no name in any path, such as a/1\.png"):
        groups.find(Paths.of(PATHS), rule)


@pytest.mark.parametrize("rule", ["emoji_u(", "*", "(?P<x>a)(?P<x>b)", "a{99999999999999999999}"])
def test_what_is_no_expression_is_refused_before_anything_is_done(rule: str) -> None:
    with pytest.raises(UsageError, match=r"data\.group: should be a regular expression, or a file .* not '"):
        Config().changed("data", group=rule)
    with pytest.raises(UsageError, match="is not a regular expression"):
        groups.find(Paths.of(PATHS), rule)


def test_a_file_that_is_gone_does_not_keep_a_config_from_being_read() -> None:
    config = Config().changed("data", group="gone(.tsv:a")
    assert config.data.group == "gone(.tsv:a"


def test_a_config_without_groups_has_the_hash_that_it_always_had() -> None:
    plain = Config().model_dump(mode="json", include={"model", "diffusion", "data"})
    for name in ("cache", *LATER):
        del plain["data"][name]
    assert Config().hash() == hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()
    assert Config().changed("data", group="a").hash() != Config().hash()


def test_hashes_of_splits_tell_them_apart(tmp_path: Path) -> None:
    files, _, path = emoji(tmp_path)
    rules: list[Any] = [None, f"{path}:family", f"{path}:group"]
    hashes = [build.split(DataConfig(group=rule), index_of(files)).hash() for rule in rules]
    assert len({*hashes}) == 3
    assert hashes == [build.split(DataConfig(group=rule), index_of(files)).hash() for rule in rules]
