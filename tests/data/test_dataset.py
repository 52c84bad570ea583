"""The decoded cache against plain decoding, against a fresh build, and against damage and company."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.indices import index_of
from PIL import Image

from diffunet.data import index
from diffunet.data.augment import gather
from diffunet.data.cache import Layout, decode_file
from diffunet.data.dataset import Dataset, open_dataset
from diffunet.data.folder import ImageFile
from diffunet.errors import DataError, UsageError

SIZES = [(16, 16), (40, 20), (20, 90), (7, 9), (300, 17), (33, 33)]  # width, height


@pytest.fixture
def root(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    for n, (width, height) in enumerate(SIZES):
        path = tmp_path / "data" / "ab"[n % 2] / f"{n}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (height, width, 3 + n % 2), dtype=np.uint8)).save(path)
    (tmp_path / "data" / "a" / "broken.png").write_bytes(b"broken")
    (tmp_path / "data" / "phone.heic").write_bytes(b"x")
    return tmp_path / "data"


def opened(root: Path, **options: Any) -> Dataset:
    settings: dict[str, Any] = {"image_size": 16, "channels": 3, "fit": "crop", "cache": root.parent / "cache"}
    return open_dataset(root, **{**settings, **options})


def folder_of(root: Path) -> Path:
    (folder,) = (root.parent / "cache").iterdir()
    return folder


def same(one: Dataset, two: Dataset) -> bool:
    pixels = all(np.array_equal(one.images[n], two.images[n]) for n in range(len(one.images)))
    facts = [(list(d.files), d.rejected, d.mean, d.sigma_data, d.index_hash, len(d.images)) for d in (one, two)]
    return pixels and facts[0] == facts[1]


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that were decoded."""
    from diffunet.data import dataset

    seen: list[str] = []

    def counted(root: Path, path: str, how: Layout, max_pixels: int) -> Any:
        seen.append(path)
        return decode_file(root, path, how, max_pixels)

    monkeypatch.setattr(dataset, "decode_file", counted)
    return seen


@pytest.mark.parametrize(
    ("fit", "shapes"),
    [
        ("crop", [(16, 16), (16, 32), (64, 16), (21, 16), (16, 64), (16, 16)]),
        ("random", [(18, 18), (18, 36), (72, 18), (23, 18), (18, 72), (18, 18)]),
        ("pad", [(16, 16), (8, 16), (16, 4), (16, 12), (1, 16), (16, 16)]),
    ],
)
def test_sizes(root: Path, fit: str, shapes: list[tuple[int, int]]) -> None:
    data = opened(root, fit=fit)
    by_name = {file.path.split("/")[1]: data.images[n].shape for n, file in enumerate(data.files)}
    assert [by_name[f"{n}.png"] for n in range(len(SIZES))] == [(*shape, 3) for shape in shapes]
    batch = gather(data.images, range(6), image_size=16, fit=fit)
    assert batch.shape == (6, 16, 16, 3)


def test_what_it_tells(root: Path) -> None:
    data = opened(root)
    assert [file.path for file in data.files] == ["a/0.png", "a/2.png", "a/4.png", "b/1.png", "b/3.png", "b/5.png"]
    assert [(f.width, f.height) for f in data.files] == [SIZES[n] for n in (0, 2, 4, 1, 3, 5)]
    assert [r.path for r in data.rejected] == ["a/broken.png", "phone.heic"]
    assert data.labels(("a", "b")).tolist() == [0, 0, 0, 1, 1, 1]
    assert data.labels(("a", "b")).dtype == np.int64
    with pytest.raises(DataError, match="3 of 6 images are of none of the 2 classes that are known: b 3"):
        data.labels(("a", "c"))


def test_right_size_is_not_resampled(root: Path) -> None:
    assert np.array_equal(opened(root).images[0], np.asarray(Image.open(root / "a" / "0.png")))


@pytest.mark.parametrize("fit", ["crop", "random", "pad"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_statistics_and_off(root: Path, fit: str, channels: int) -> None:
    data = opened(root, fit=fit, channels=channels, background=(10, 200, 30))
    batch = gather(data.images, range(6), image_size=16, fit=fit, background=(10, 200, 30))
    x = batch.reshape(-1, channels).astype(np.float64) / 127.5 - 1
    assert data.mean == pytest.approx(x.mean(0))
    assert data.sigma_data == pytest.approx(np.sqrt(((x - x.mean(0)) ** 2).mean()))
    assert same(data, opened(root, fit=fit, channels=channels, background=(10, 200, 30), cache="off"))


def test_a_second_opening_reads_nothing(root: Path, reads: list[str]) -> None:
    first = opened(root)
    assert len(reads) == 7
    reads.clear()
    again = opened(root)
    assert same(first, again)
    assert reads == ["a/broken.png"], "what failed is tried again"
    assert len([p for p in folder_of(root).iterdir() if p.name.startswith("pixels")]) == 1


def test_changes_are_read_and_the_result_equals_a_fresh_build(root: Path, reads: list[str]) -> None:
    old = opened(root)
    before = [np.array(old.images[n]) for n in range(6)]
    reads.clear()
    Image.new("RGB", (50, 50), (1, 2, 3)).save(root / "a" / "2.png")
    Image.new("RGB", (20, 20), (4, 5, 6)).save(root / "new.png")
    Image.new("RGB", (20, 20), (7, 8, 9)).save(root / "a" / "broken.png")
    (root / "b" / "1.png").unlink()
    changed = opened(root)
    assert sorted(set(reads)) == ["a/2.png", "a/broken.png", "new.png"]
    assert same(changed, opened(root, cache=root.parent / "other"))
    assert changed.index_hash != old.index_hash
    if sys.platform != "win32":
        assert all(np.array_equal(old.images[n], before[n]) for n in range(6)), "the old one stays mapped"
    assert len(list(folder_of(root).glob("pixels-*"))) == 1


def test_only_a_removal_is_seen(root: Path) -> None:
    opened(root)
    (root / "a" / "0.png").unlink()
    assert opened(root).files[0].path == "a/2.png"


def test_identity_is_path_and_content_not_time(root: Path, tmp_path: Path) -> None:
    data = opened(root)
    os.utime(root / "a" / "0.png", (1, 1))
    assert same(opened(root), data)
    shutil.copytree(root, tmp_path / "copy")
    assert opened(tmp_path / "copy").index_hash == data.index_hash
    (root / "a" / "0.png").rename(root / "a" / "00.png")
    assert opened(root).index_hash != data.index_hash


def test_options_have_caches_of_their_own(root: Path) -> None:
    for options in (
        {},
        {"image_size": 8},
        {"channels": 1},
        {"fit": "pad"},
        {"background": (0, 0, 0)},
        {"fit": "random"},
    ):
        opened(root, **options)
    opened(root, margin=1.5)  # means nothing to "crop"
    assert len(list((root.parent / "cache").iterdir())) == 6


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def garbage(path: Path) -> None:
    path.write_bytes(b"\x00{]")


@pytest.mark.parametrize("pattern", ["manifest.json", "index-*.npz", "pixels-*.bin"])
@pytest.mark.parametrize("harm", [cut, garbage, Path.unlink])
def test_a_damaged_cache_is_rebuilt(root: Path, pattern: str, harm: Any) -> None:
    fresh = opened(root, cache="off")
    opened(root)
    (victim,) = folder_of(root).glob(pattern)
    harm(victim)
    assert same(opened(root), fresh)
    assert same(opened(root), fresh)


def test_manifests_of_strange_content_are_no_cache(root: Path) -> None:
    fresh = opened(root)
    contents: list[Any] = [[], None, {}, {"generation": 3}, {"generation": "../x", "version": 1}]
    for content in contents:
        (folder_of(root) / "manifest.json").write_text(json.dumps(content))
        assert same(opened(root), fresh)


@pytest.mark.seconds
@pytest.mark.parametrize("pattern", ["manifest.json", "index-*.npz"])
def test_a_flipped_bit_or_a_lost_end_never_counts(root: Path, pattern: str) -> None:
    fresh = opened(root, cache="off")
    opened(root)
    (victim,) = folder_of(root).glob(pattern)
    whole = victim.read_bytes()
    for n in np.linspace(0, len(whole) - 1, 20).astype(int):
        for harmed in (
            whole[:n] + bytes([whole[n] ^ 1 << n % 8]) + whole[n + 1 :],
            whole[:n],
            whole[:n].ljust(len(whole), b"\0"),
        ):
            victim.write_bytes(harmed)
            assert same(opened(root), fresh)
            (victim,) = folder_of(root).glob(pattern)
            whole = victim.read_bytes()


@pytest.mark.parametrize("zeros", [True, False])
def test_damaged_pixels_are_never_used(root: Path, zeros: bool) -> None:
    fresh = opened(root, cache="off")
    first = opened(root)
    good = [first.images[n].copy() for n in range(6)]
    (victim,) = folder_of(root).glob("pixels-*.bin")
    content = bytearray(victim.read_bytes())
    place = good[0].size + good[1].size + 5  # in the third image
    if zeros:
        content[place:] = bytes(len(content) - place)
    else:
        content[place] ^= 4
    victim.write_bytes(content)
    data = opened(root)
    for n in (0, 1):
        assert np.array_equal(data.images[n], good[n])
    for _ in range(2):
        with pytest.raises(DataError, match=r"a/4\.png: its decoded form in .* is damaged; run the command again"):
            data.images[2]
    assert same(opened(root), fresh), "the next start decodes anew"
    assert same(opened(root), fresh)


def test_damaged_pixels_are_not_taken_over(root: Path) -> None:
    opened(root)
    (victim,) = folder_of(root).glob("pixels-*.bin")
    victim.write_bytes(bytes(victim.stat().st_size))
    Image.new("RGB", (20, 20), (4, 5, 6)).save(root / "new.png")
    assert same(opened(root), opened(root, cache="off"))
    assert len(list(folder_of(root).iterdir())) == 4


def test_a_clock_that_stands_still_or_jumps_back(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([5 * 10**18, 5 * 10**18, 10**18, 0])
    monkeypatch.setattr("time.time_ns", lambda: next(times))
    monkeypatch.setattr("time.time", lambda: next(times) / 1e9)
    held = []
    for colour in range(4):
        Image.new("RGB", (20, 20), (colour, 5, 6)).save(root / "new.png")
        os.utime(root / "new.png", ns=(1, 100 - colour))
        held.append(opened(root))
        assert held[-1].images[6][0, 0].tolist() == [colour, 5, 6]
        assert len(list(folder_of(root).iterdir())) == 4
    if sys.platform != "win32":
        assert [data.images[6][0, 0, 0] for data in held] == [0, 1, 2, 3], "old generations stay mapped"


def test_an_interrupted_build_leaves_the_old_cache(root: Path) -> None:
    fresh = opened(root)
    shutil.copy(root / "a" / "0.png", root / "a" / "1.png")

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        opened(root, progress=interrupt)
    assert len(list(folder_of(root).iterdir())) == 4
    (root / "a" / "1.png").unlink()
    assert same(opened(root), fresh)


BUILD = """
import sys
from pathlib import Path
from diffunet.data.dataset import open_dataset
data = open_dataset(Path(sys.argv[1]), image_size=16, channels=3, fit="crop", cache=Path(sys.argv[2]),
                    progress=lambda done, total: print("built"))
print(data.index_hash, sum(int(data.images[n].sum()) for n in range(len(data.images))))
"""


@pytest.mark.seconds
def test_two_processes_build_one_cache(root: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", BUILD, str(root), str(tmp_path / "cache")]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [process.communicate(timeout=120)[0].splitlines() for process in running]
    assert [process.returncode for process in running] == [0, 0]
    fresh = opened(root, cache="off")
    expected = f"{fresh.index_hash} {sum(int(fresh.images[n].sum()) for n in range(6))}"
    assert [lines[-1] for lines in outputs] == [expected] * 2
    assert sorted(lines.count("built") for lines in outputs) == [0, 7], "one built, the other waited"


SLOWLY = BUILD.replace('print("built")', '(print("half", flush=True), time.sleep(600)) if done == 4 else None').replace(
    "import sys", "import sys, time"
)


@pytest.mark.slow
def test_a_builder_is_killed_and_the_one_who_waits_goes_on(root: Path) -> None:
    arguments = [str(root), str(root.parent / "cache")]
    first = subprocess.Popen([sys.executable, "-c", SLOWLY, *arguments], stdout=subprocess.PIPE, text=True)
    assert first.stdout is not None
    try:
        assert first.stdout.readline() == "half\n"
        told = BUILD.replace("data =", "print('opening', flush=True)\ndata =")
        second = subprocess.Popen([sys.executable, "-c", told, *arguments], stdout=subprocess.PIPE, text=True)
        assert second.stdout is not None
        assert second.stdout.readline() == "opening\n"
        with pytest.raises(subprocess.TimeoutExpired):  # it cannot end while the first one holds the lock
            second.wait(timeout=1)
        assert len(list(folder_of(root).glob("pixels-*.bin"))) == 1, "only one builds"
    finally:
        first.kill()
        first.communicate()
    lines = second.communicate(timeout=120)[0].splitlines()
    assert lines.count("built") == 7
    fresh = opened(root, cache="off")
    assert lines[-1] == f"{fresh.index_hash} {sum(int(fresh.images[n].sum()) for n in range(6))}"
    assert len(list(folder_of(root).iterdir())) == 4, "what the killed one left is gone"


def test_what_a_killed_rebuild_left_goes_at_the_next_opening(root: Path) -> None:
    fresh = opened(root)
    for name in ("pixels-0123.bin", "index-0123.npz", ".index-0123.npz.77.tmp", ".manifest.json.77.tmp"):
        (folder_of(root) / name).write_bytes(b"half")
    assert same(opened(root), fresh)
    assert len(list(folder_of(root).iterdir())) == 4


FULL = """
import resource, sys
from pathlib import Path
from diffunet.data.dataset import open_dataset
from diffunet.errors import ResourceError
limit = int(sys.argv[3])
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    open_dataset(Path(sys.argv[1]), image_size=64, channels=3, fit="crop", cache=Path(sys.argv[2]))
except ResourceError as error:
    print(error)
"""


def fill(root: Path, cache: Path, limit: int) -> str:
    command = [sys.executable, "-c", FULL, str(root), str(cache), str(limit)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


@pytest.mark.skipif(sys.platform == "win32", reason="no limit on the size of files")
@pytest.mark.parametrize("limit", [30_000, pytest.param(200_000, marks=pytest.mark.slow)])
@pytest.mark.seconds
def test_no_room_for_the_cache(root: Path, limit: int) -> None:
    for n in range(20 if limit > 100_000 else 0):
        shutil.copy(root / "a" / "4.png", root / f"{n}.png")
    told = fill(root, root.parent / "cache", limit)
    assert told.count("\n") == 1
    for part in ("File too large", f"after {limit / 2**20:.1f} MiB of about ", "--data.cache off"):
        assert part in told, told
    assert [path.name for path in folder_of(root).iterdir()] == ["lock"], "nothing half is left"


@pytest.mark.skipif(sys.platform == "win32", reason="no limit on the size of files")
@pytest.mark.seconds
def test_no_room_for_a_rebuild_leaves_the_old_cache(root: Path) -> None:
    old = opened(root, image_size=64)
    before = sorted(path.name for path in folder_of(root).iterdir())
    Image.new("RGB", (640, 100)).save(root / "new.png")
    assert "File too large" in fill(root, root.parent / "cache", 100_000)
    assert sorted(path.name for path in folder_of(root).iterdir()) == before
    (root / "new.png").unlink()
    assert same(opened(root, image_size=64), old)


@pytest.mark.seconds
def test_a_full_disk(root: Path, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(small)]
    if sys.platform != "linux" or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("needs a small file system, which only root on Linux may mount")
    try:
        told = fill(root, small, 0)
        left = [path.name for path in small.rglob("*") if path.is_file()]
    finally:
        subprocess.run(["umount", str(small)], check=True)
    for part in ("the disk is full after 0.", "MiB of about 0.", "--data.cache off"):
        assert part in told, told
    assert left == ["lock"]


@pytest.mark.seconds
def test_the_data_may_go_while_the_cache_is_used(root: Path) -> None:
    data = opened(root)
    fresh = opened(root, cache="off")
    expected = [fresh.images[n] for n in range(6)]
    Image.new("RGB", (50, 50), (1, 2, 3)).save(root / "a" / "2.png")
    (root / "b" / "1.png").unlink()
    Image.new("RGB", (50, 50)).save(root / "new.png")
    command = [sys.executable, "-c", BUILD, str(root), str(root.parent / "cache")]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ended.stdout.splitlines()[-1].split()[0] != data.index_hash, "another process has rebuilt it"
    shutil.rmtree(root)
    if sys.platform != "win32":
        shutil.rmtree(root.parent / "cache")
    assert all(np.array_equal(data.images[n], expected[n]) for n in range(6))
    assert [file.path for file in data.files][:2] == ["a/0.png", "a/2.png"]
    with pytest.raises(DataError, match=r"a/0\.png: no such file"):
        fresh.images[0]


@pytest.mark.parametrize("cache", ["off", None])
def test_files_that_come_go_and_change_between_looking_and_reading(root: Path, cache: str | None) -> None:
    """Only a few files are read ahead of `progress`, so the last ones are changed in time."""
    for n in range(20):
        Image.new("RGB", (20, 20), (n, 0, 0)).save(root / f"{n:02}.png")
    root.joinpath("lost.png").write_bytes(root.joinpath("00.png").read_bytes())

    def meddle(done: int, total: int) -> None:
        if done == 1:
            (root / "lost.png").unlink()
            Image.new("RGB", (30, 30), (200, 0, 0)).save(root / "19.png")
            (root / "18.png").write_bytes(b"no image any more")
            (root / "added.png").write_bytes(b"")

    options = {} if cache is None else {"cache": cache}
    data = opened(root, progress=meddle, workers=1, **options)
    assert {r.path: r.reason for r in data.rejected if r.path in ("lost.png", "18.png", "added.png")} == {
        "lost.png": "no such file",
        "18.png": "not an image, or one of an unknown format",
    }
    paths = [file.path for file in data.files]
    assert data.files[paths.index("19.png")].width == 30
    assert data.images[paths.index("19.png")][0, 0].tolist() == [200, 0, 0]
    assert same(opened(root, **options), opened(root, cache="off"))


@pytest.mark.seconds
def test_memory_is_bounded_by_the_number_of_files(tmp_path: Path) -> None:
    """Second openings, from the cache, of 500 and of 3,000 files: what an image more costs."""
    Image.new("RGB", (8, 8)).save(tmp_path / "one.png")
    used = {}
    for count in (500, 3000):
        root = tmp_path / f"{count}" / "data"
        root.mkdir(parents=True)
        for n in range(count):
            os.link(tmp_path / "one.png", root / f"a photograph {n:05}.png")
        opened(root, image_size=8)
        tracemalloc.start()
        data = opened(root, image_size=8)
        used[count] = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert len(data.images) == count
    kept, peak = ((used[3000][n] - used[500][n]) / 2500 for n in (0, 1))
    assert kept < 200
    assert peak < 500


def test_progress_counts_files(root: Path) -> None:
    seen: list[tuple[int, int]] = []
    opened(root, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(n, 7) for n in range(1, 8)]


def test_off_writes_nothing_and_notices_changes(root: Path) -> None:
    data = opened(root, cache="off")
    assert not (root.parent / "cache").exists()
    Image.new("RGB", (16, 16)).save(root / "a" / "0.png")
    with pytest.raises(DataError, match=r"a/0\.png: has changed"):
        data.images[0]
    (root / "a" / "0.png").unlink()
    with pytest.raises(DataError, match=r"a/0\.png: no such file"):
        data.images[0]


def test_nothing_usable(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "x.png").write_bytes(b"no")
    for cache in (tmp_path / "cache", "off"):
        with pytest.raises(DataError, match=r"none of its 1 images.*x\.png: not an image"):
            opened(tmp_path / "data", cache=cache)
    assert [p.name for p in folder_of(tmp_path / "data").iterdir()] == ["lock"]


def test_options_that_cannot_be(root: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    for options in ({"fit": "stretch"}, {"channels": 2}, {"cache": tmp_path / "file"}):
        with pytest.raises(UsageError):
            opened(root, **options)


def test_where_the_cache_is(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIFFUNET_CACHE", str(tmp_path / "mine"))
    opened(root, cache=None)
    assert len(list((tmp_path / "mine").iterdir())) == 1
    (tmp_path / "file").write_bytes(b"x")
    monkeypatch.setenv("DIFFUNET_CACHE", str(tmp_path / "file" / "no"))  # as a home that cannot be written
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    opened(root, cache=None)
    assert len(list(tmp_path.glob("diffunet-cache-*/*/manifest.json"))) == 1
    if sys.platform == "linux":
        monkeypatch.delenv("DIFFUNET_CACHE")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
        opened(root, cache=None)
        assert len(list((tmp_path / "xdg" / "diffunet").iterdir())) == 1


def many(count: int, seed: int = 0) -> list[ImageFile]:
    generator = np.random.default_rng(seed)
    return [ImageFile(f"{n}.png", generator.bytes(32).hex(), 1, 1, "L", "PNG") for n in range(count)]


def split(files: list[ImageFile], fraction: float, cap: int) -> Any:
    return index.split(index_of(files, ordered=False), fraction, cap)


def test_split_is_a_partition_of_about_the_right_size() -> None:
    files = many(4000)
    train, held = split(files, 0.1, 10_000)
    assert sorted([*train, *held]) == list(range(4000))
    assert abs(len(held) - 400) < 5 * np.sqrt(360)
    assert max(files[n].sha256 for n in held) < min(files[n].sha256 for n in train)
    _, capped = split(files, 0.1, 50)
    assert sorted(files[n].sha256 for n in capped) == sorted(file.sha256 for file in files)[:50]


def test_split_knows_neither_order_nor_the_others() -> None:
    files = many(1000)
    held = {files[n].sha256 for n in split(files, 0.2, 10_000)[1]}
    backwards = files[::-1]
    assert {backwards[n].sha256 for n in split(backwards, 0.2, 10_000)[1]} == held
    half = files[:500]
    assert {half[n].sha256 for n in split(half, 0.2, 10_000)[1]} == held & {f.sha256 for f in half}


def test_split_keeps_copies_together() -> None:
    files = [*many(100), *many(100), *many(100)]
    train, held = split(files, 0.3, 50)
    assert not {files[n].sha256 for n in train} & {files[n].sha256 for n in held}
    assert 0 < len(held) <= 50
    assert len(held) % 3 == 0


def test_split_at_its_edges() -> None:
    assert len(split(many(19), 0.5, 100)[1]) == 0
    assert len(split(many(20), 0.0, 100)[1]) == 0
    assert len(split(many(20), 0.5, 0)[1]) == 0
    assert len(split(many(20), 1e-9, 100)[1]) == 1, "one at least"
    assert len(split(many(20), 1.0, 100)[0]) == 1
    assert len(split(many(1) * 30, 0.5, 100)[0]) == 30
    assert [len(part) for part in split([], 0.5, 100)] == [0, 0]
