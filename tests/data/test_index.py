"""The index in columns against plain lists and dictionaries, and its text against damage and `sha256sum`."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import unicodedata
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.indices import index_of
from hypothesis import given, settings
from hypothesis import strategies as st

from diffunet.data import index as index_module
from diffunet.data.folder import ImageFile
from diffunet.data.index import Contents, Paths, index_hash, read_index, split

NAMES = st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1), unique=True)
ODD = [
    "a/plain.png",
    "two words.png",
    "new\nline.png",
    "re\rturn.png",
    "back\\slash.png",
    "\\n.png",
    "#.png",
    "日本.png",
]


def content(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def some(names: Sequence[str]) -> list[ImageFile]:
    """Files in the order of `names`; what is equal in a name up to a "+" has equal content."""
    return [
        ImageFile(name, content(name.split("+")[0]), 3 + n, 900 - n, "I;16B", "WEBP") for n, name in enumerate(names)
    ]


def write_index(path: Path, files: Sequence[ImageFile]) -> None:
    index_module.write_index(path, index_of(files))


def changes(*indices: Any) -> list[str]:
    return index_module.changes(*(one if isinstance(one, Contents) else index_of(one) for one in indices))


@given(NAMES)
def test_paths_are_a_sorted_list(names: list[str]) -> None:
    names.sort()
    paths = Paths.of(names)
    assert list(paths) == names == [paths[n] for n in range(len(paths))] == list(Paths(paths.blob))
    if names:
        assert paths[-1] == names[-1]
    with pytest.raises(IndexError):
        paths[len(names)]


@given(NAMES, st.randoms())
def test_places_and_take(names: list[str], random: Any) -> None:
    names.sort()
    few = sorted(random.sample(names, len(names) // 2))
    other = sorted([*few, *(name + "x" for name in names)])
    one, two = Paths.of(names), Paths.of(other)
    assert one.places_in(two).tolist() == [other.index(name) if name in other else -1 for name in names]
    assert one.places_in(one).tolist() == list(range(len(names)))
    assert list(one.take(np.array([names.index(name) for name in few], np.int64))) == few


def test_an_index_is_a_sequence_of_files() -> None:
    files = some(["b.png", "a/ä.png", "a-b/c.png"])
    index = index_of(files)
    ordered = sorted(files, key=lambda file: file.path)
    assert list(index) == ordered
    assert [*reversed(index)] == ordered[::-1]
    assert (index[-1], index[np.int64(1)]) == (ordered[2], ordered[1])
    assert files[0] in index
    with pytest.raises(IndexError):
        index[3]
    assert list(index_of([])) == []
    assert index.smaller_than(4, "crop") == 1
    assert index.smaller_than(5, "random") == 2


def plain_hash(files: Sequence[ImageFile]) -> str:
    digest = hashlib.sha256()
    for path, sha256 in sorted((file.path, file.sha256) for file in files):
        digest.update(f"{path}\0{sha256}\0".encode())
    return digest.hexdigest()


def plain_split(files: Sequence[ImageFile], fraction: float, cap: int) -> tuple[list[int], list[int]]:
    """The rule of `split`, with a dictionary of lists."""
    groups: dict[str, list[int]] = {}
    for n, file in enumerate(files):
        groups.setdefault(file.sha256, []).append(n)
    hashes = sorted(groups)
    below = [h for h in hashes if int(h[:13], 16) / 16**13 < fraction]
    held: list[int] = []
    if len(files) >= 20 and fraction > 0:
        for h in (below or hashes[:1])[: len(hashes) - 1]:
            if len(held) + len(groups[h]) <= cap:
                held += groups[h]
    return sorted({*range(len(files))} - {*held}), sorted(held)


@given(NAMES)
def test_hash_is_what_it_always_was(names: list[str]) -> None:
    files = some(names)
    assert index_hash(index_of(files)) == plain_hash(files)


@settings(deadline=None)
@given(
    st.integers(0, 60), st.integers(1, 5), st.floats(0, 1), st.one_of(st.integers(0, 12), st.just(10**6)), st.booleans()
)
def test_split_is_what_it_always_was(count: int, copies: int, fraction: float, cap: int, zeros: bool) -> None:
    # Contents that end in zero bytes, or differ in the last one only, are contents of their own.
    files = some([f"{n // copies}+{n}" for n in range(count)])
    if zeros:
        files += [replace(file, path=f"{n}", sha256=f"{n:02x}".ljust(64, "0")) for n, file in enumerate(files)]
        files += [replace(file, path=f"{n}", sha256=f"{n:02x}".rjust(64, "0")) for n, file in enumerate(files)]
    for given_files in (files, sorted(files, key=lambda file: file.path)):
        ours = split(index_of(given_files, ordered=False), fraction, cap)
        assert [part.dtype for part in ours] == [np.int64, np.int64]
        assert tuple(part.tolist() for part in ours) == plain_split(given_files, fraction, cap)


@settings(deadline=None)
@given(NAMES)
def test_what_is_written_is_read(tmp_path_factory: pytest.TempPathFactory, names: list[str]) -> None:
    path = tmp_path_factory.mktemp("index") / "index.txt"
    names = [unicodedata.normalize("NFC", name) for name in names]  # as paths of a data set are
    files = some([*{*names, *(name + "+copy" for name in names)}])
    write_index(path, files)
    index = read_index(path)
    expected = {file.path: file.sha256 for file in files}
    assert dict(index) == expected
    assert list(index.paths) == sorted(expected)
    assert changes(index, files) == changes(files, index) == []


def test_it_is_small_and_a_file_of_its_own(tmp_path: Path) -> None:
    files = some([f"folder {n % 7}/{n:05}.jpeg" for n in range(1000)])
    path = tmp_path / "index.txt"
    write_index(path, files)
    assert path.stat().st_size <= 100 * len(files) + sum(len(file.path) for file in files)
    write_index(path, files[:1])
    assert len(read_index(path)) == 1
    assert [*tmp_path.iterdir()] == [path]


@pytest.mark.skipif(sys.platform == "win32" or shutil.which("sha256sum") is None, reason="sha256sum and such names")
def test_sha256sum_understands_it(tmp_path: Path) -> None:
    files = []
    names = [name for name in ODD if "\r" not in name]  # which older versions of sha256sum do not escape
    for n, name in enumerate(names):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"{n}")
        files.append(ImageFile(name, content(f"{n}"), 1, 1, "L", "PNG"))
    write_index(tmp_path / "index.txt", files)
    command = ["sha256sum", "--check", "--strict", "index.txt"]
    assert subprocess.run(command, cwd=tmp_path, capture_output=True).returncode == 0
    (tmp_path / names[2]).write_text("other")
    assert subprocess.run(command, cwd=tmp_path, capture_output=True).returncode == 1


def test_every_damage_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "index.txt"
    write_index(path, some(ODD[2:6]))
    whole = path.read_bytes()
    harmed = [whole[:n] for n in range(len(whole))]
    harmed += [whole[:n] + bytes([whole[n] ^ 1 << n % 8]) + whole[n + 1 :] for n in range(len(whole))]
    lines = whole.splitlines(keepends=True)
    harmed += [b"".join([*lines[:1], *lines[2:]]), b"".join([lines[0], lines[2], lines[1], *lines[3:]])]
    harmed += [whole + b"x", whole + whole, bytes(len(whole)), b"\x93NUMPY", b"#" * 10_000_000]
    for content in harmed:
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"index\.txt: is (damaged|an index of version)"):
            read_index(path)
    with pytest.raises(OSError, match="No such file"):
        read_index(tmp_path / "gone.txt")


def test_a_newer_version_is_named(tmp_path: Path) -> None:
    (tmp_path / "index.txt").write_bytes(b"# diffunet index 23\nwhat nobody knows yet")
    with pytest.raises(ValueError, match=r"version 23.*reads 1"):
        read_index(tmp_path / "index.txt")


@pytest.mark.skipif(sys.platform == "win32", reason="no limit on the size of files")
@pytest.mark.seconds
def test_a_full_disk_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "index.txt"
    write_index(path, some(["old.png"]))
    program = f"""
import resource
from pathlib import Path
import numpy as np
from diffunet.data.index import FILE, Index, Paths, write_index
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
files = Index(Paths.of(f"{{n:03}}.png" for n in range(1000)), np.zeros(1000, FILE))
try:
    write_index(Path({str(path)!r}), files)
except OSError as error:
    print(error.strerror)
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert ended.stdout == "File too large\n", ended.stderr
    assert [*read_index(path).paths] == ["old.png"]
    assert [*tmp_path.iterdir()] == [path]


def test_changes_in_words() -> None:
    old = some(["a.png", "b.png", "c.png", "d.png"])
    assert changes(old, some(["a.png"])) == ["3 missing (b.png, c.png, d.png)"]
    new = [*old[:2], replace(old[2], sha256=content("else")), *some(["new\nline.png", "e.png", "f.png", "g.png"])]
    assert changes(old, new) == ["4 new (e.png, f.png, g.png, ...)", "1 missing (d.png)", "1 changed (c.png)"]
    moved = [replace(file, path=f"x/{file.path}") for file in old]
    assert changes(old, moved) == ["4 renamed (a.png to x/a.png, b.png to x/b.png, c.png to x/c.png, ...)"]
    assert changes(old, [*old, replace(old[0], path="copy.png")]) == ["1 new (copy.png)"], "the first is still there"
    assert changes([], old[:1]) == ["1 new (a.png)"]
    assert changes(old, []) == ["4 missing (a.png, b.png, c.png, ...)"]
    assert changes(some(["new\nline.png"]), []) == ["1 missing (new\\nline.png)"]
    assert changes(some([f"{n:04}" for n in range(1234)]), [])[0].startswith("1,234 missing (0000, ")


@given(
    st.dictionaries(st.sampled_from("abcdef"), st.integers(0, 3)),
    st.dictionaries(st.sampled_from("abcdef"), st.integers(0, 3)),
)
def test_changes_count_right(old: dict[str, int], new: dict[str, int]) -> None:
    files = ([ImageFile(path, content(f"{n}"), 1, 1, "L", "PNG") for path, n in each.items()] for each in (old, new))
    counts = {words.split()[1]: int(words.split()[0]) for words in changes(*files)}
    lost, added = [old[p] for p in old.keys() - new], [new[p] for p in new.keys() - old]
    renamed = sum(min(lost.count(n), added.count(n)) for n in range(4))
    expected = {
        "new": len(added) - renamed,
        "missing": len(lost) - renamed,
        "changed": sum(old[p] != new[p] for p in old.keys() & new),
        "renamed": renamed,
    }
    assert counts == {what: count for what, count in expected.items() if count}


@settings(deadline=None, max_examples=100)
@given(
    contents=st.lists(st.integers(0, 60), min_size=1, max_size=90), seed=st.integers(0, 1000), names=st.integers(1, 12),
    fraction=st.sampled_from([0.05, 0.3, 0.5]), cap=st.sampled_from([2, 1000]), grouped=st.booleans(),
)  # fmt: skip
def test_each_class_keeps_an_image_to_train_on_and_all_else_stays(contents, seed, names, fraction, cap, grouped):
    from diffunet.data import groups

    generator = np.random.default_rng(seed)
    files = [ImageFile(f"{n:03}", hashlib.sha256(f"{seed} {c}".encode()).hexdigest(), 9, 9, "L", "PNG")
             for n, c in enumerate(contents)]  # fmt: skip
    classes, images = generator.integers(0, names, len(files)), index_of(files)
    of = groups.Groups(tuple("abcdefgh"), generator.integers(-1, 8, len(files)))

    def sides(of_classes):
        if grouped:
            return groups.split(images, of, fraction, cap, of_classes)[:2]
        return split(images, fraction, cap, of_classes)

    (training, held_out), (plain, plain_held) = sides(classes), sides(None)
    assert set(classes[training]) == set(classes)
    assert sorted([*training, *held_out]) == [*range(len(files))]
    hashes = np.array([file.sha256 for file in images])
    assert not set(hashes[training]) & set(hashes[held_out])
    if set(classes[plain]) == set(classes):
        assert np.array_equal(held_out, plain_held)
    elif len(held_out) and set(held_out) & set(plain_held):
        assert set(held_out) < set(plain_held)  # only what had to be was taken out


def test_where_the_only_image_of_a_class_was_held_out_another_one_is():
    def digest(n):
        return hashlib.sha256(str(n).encode()).hexdigest()

    lowest = min(range(30), key=digest)
    files = index_of([ImageFile(f"{n:02}", digest(n), 9, 9, "L", "PNG") for n in range(30)])
    classes = (np.arange(30) == lowest).astype(np.int64)
    fraction = 1e-9  # one image at least
    assert split(files, fraction, 1000)[1].tolist() == [lowest]
    training, held_out = split(files, fraction, 1000, classes)
    second = sorted(range(30), key=digest)[1]
    assert held_out.tolist() == [second]
    assert lowest in training
