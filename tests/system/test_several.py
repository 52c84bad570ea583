"""Several processes that sample, fill in and evaluate as one does; the loss of one of them; and files of arrays."""

import filecmp
import json
import signal
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch
from helpers.launching import PATIENCE, finish, launch, wait_for
from PIL import Image

import diffunet
from diffunet import ranks
from diffunet.commands import outputs, records
from diffunet.commands.cli import main
from diffunet.errors import DivergedError

MAIN = "import sys; from diffunet.commands.cli import main; main(sys.argv[1:])"
OPTIONS = ["--batch-size", 4, "--steps", 2, "--device", "cpu"]


def command(*words, code=0):
    with pytest.raises(SystemExit) as exit:
        main([*map(str, words)])
    assert exit.value.code == code


def pictures(folder):
    return {path.name: path.read_bytes() for path in folder.rglob("*.png")}


def noted(folder):
    """The entries of made.jsonl, each of which is a whole line."""
    return [json.loads(line) for line in (folder / records.NAME).read_text().splitlines()]


# ---- arrays


@pytest.mark.seconds
def test_arrays_hold_the_pixels_of_the_pictures_and_their_classes(run, tmp_path):
    command("sample", run, "--out", tmp_path / "a.npz", "--num", 6, *OPTIONS)
    made = diffunet.load(run, device="cpu").sample(6, batch_size=4, steps=2)
    with np.load(tmp_path / "a.npz", allow_pickle=False) as found:
        assert found.files == ["arr_0", "arr_1"]
        assert found["arr_0"].dtype == np.uint8
        assert np.array_equal(found["arr_0"], np.stack([np.asarray(picture) for picture in made]))
        assert found["arr_1"].tolist() == [0, 1, 0, 1, 0, 1]
    command("sample", run, "--out", tmp_path / "a.npz", *OPTIONS, code=2)
    command("sample", run, "--out", tmp_path / "a.npz", *OPTIONS, "--num", 2, "--overwrite", "--label", "square")
    with np.load(tmp_path / "a.npz") as found:
        assert found["arr_1"].tolist() == [1, 1]
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]


@pytest.mark.parametrize("option", ["--grid", "--animate", "--resume"])
def test_what_does_not_go_with_arrays_is_refused(tmp_path, option, capsys):
    command("sample", "no-model", "--out", tmp_path / "a.npz", option, code=2)
    assert "a.npz" in capsys.readouterr().err


def test_arrays_are_written_batch_by_batch_and_as_numpy_does(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (70, 4, 4, 3), dtype=np.uint8)
    sizes = []

    def batches():
        for first in range(0, 70, 32):
            yield images[first : first + 32]
            sizes.append((tmp_path / "a.npz").exists())

    labels = np.arange(70)
    outputs.save_arrays(tmp_path / "a.npz", images.shape, batches(), labels)
    assert sizes == [False] * 3  # the name is there once it is whole
    np.savez(tmp_path / "b.npz", images, labels)
    for name in ("arr_0.npy", "arr_1.npy"):
        mine, numpys = (zipfile.ZipFile(tmp_path / file).read(name) for file in ("a.npz", "b.npz"))
        assert mine == numpys


def test_arrays_that_cannot_be_finished_leave_nothing(tmp_path):
    def batches():
        yield np.zeros((2, 4, 4, 3), np.uint8)
        raise DivergedError("not finite")

    with pytest.raises(DivergedError):
        outputs.save_arrays(tmp_path / "a.npz", (4, 4, 4, 3), batches(), None)
    assert [*tmp_path.iterdir()] == []


def test_a_folder_that_ends_in_npz_is_a_folder(tmp_path):
    (tmp_path / "b.npz").mkdir()
    answers = [outputs.is_arrays(name) for name in ("a.npz", "A.NPZ", "a.npz/", "a.png", tmp_path / "b.npz")]
    assert answers == [True, True, False, False, False]


# ---- several processes


@pytest.mark.slow
@pytest.mark.parametrize("words", [[], ["--grid"], ["--grid", "--animate"], ["--npz"]], ids=str)
def test_two_processes_sample_what_one_does(run, tmp_path, words):
    suffix = ".npz" if "--npz" in words else ".webp" if "--animate" in words else ".png" if words else ""
    words = ["--num", 11, "--seed", 5, *OPTIONS, *(word for word in words if word != "--npz")]
    command("sample", run, "--out", tmp_path / f"one{suffix}", *words)
    workers = launch(2, ["sample", run, "--out", tmp_path / f"two{suffix}", *words], code=MAIN)
    codes, said = finish(workers)
    assert codes == [0, 0], said
    one, two = tmp_path / f"one{suffix}", tmp_path / f"two{suffix}"
    if suffix:
        assert filecmp.cmp(one, two, shallow=False)
    else:
        assert pictures(one) == pictures(two)
        assert len(pictures(two)) == 11
        names = [name for entry in noted(two) for name in entry.get("pictures", [])]
        assert sorted(names) == sorted(pictures(two))
    assert said.count("11 images of 8x8") == 1  # one process prints


@pytest.mark.slow
def test_two_processes_fill_in_what_one_does_and_say_together_what_they_cannot(run, tmp_path):
    album = tmp_path / "album"
    album.mkdir()
    for i in range(5):
        pixels = np.random.default_rng(i).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(album / f"{i}.png")
    (album / "3.png").write_bytes((album / "3.png").read_bytes()[:60])
    words = [run, album, "--box", "2,2,5,5", "--num", 2, "--steps", 2, "--device", "cpu"]
    command("inpaint", *words, "--out", tmp_path / "one", code=3)
    codes, said = finish(launch(2, ["inpaint", *words, "--out", tmp_path / "two"], code=MAIN))
    assert codes == [3, 3], said
    assert said.count("1 of 5 images could not be filled") == 1
    assert len(pictures(tmp_path / "two")) == 4 * 3
    assert pictures(tmp_path / "one") == pictures(tmp_path / "two")
    assert {tuple(e["pictures"]): e["of"] for e in noted(tmp_path / "one") if "pictures" in e} == {
        tuple(e["pictures"]): e["of"] for e in noted(tmp_path / "two") if "pictures" in e
    }


@pytest.mark.slow
def test_two_processes_evaluate_what_one_does(run, folder, capsys):
    words = ["evaluate", run, folder, "--num", 12, "--steps", 2, "--device", "cpu"]
    # One process makes all 12 in one batch, and two make 6 each: the last bits may differ, the figures hardly.
    command(*words)
    one = capsys.readouterr().out
    workers = launch(2, words, code=MAIN)
    told = [worker.communicate(timeout=PATIENCE) for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], told
    assert told[1][0] == ""
    distances = [
        float(line.split()[-1])
        for text in (one, told[0][0])
        for line in text.splitlines()
        if line.startswith("feature d")
    ]
    assert distances[0] == pytest.approx(distances[1], rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_the_other_in_words_and_the_folder_is_completed(run, tmp_path, victim):
    words = ["--num", 300, "--seed", 1, *OPTIONS, "--sampler", "ddpm", "--steps", 8]
    out = tmp_path / "part"
    workers = launch(2, ["sample", run, "--out", out, *words], code=MAIN)
    wait_for(lambda: len(pictures(out)) > 40, *workers)
    workers[victim].send_signal(signal.SIGKILL)
    workers[victim].communicate(timeout=PATIENCE)
    _, said = workers[1 - victim].communicate(timeout=PATIENCE)
    assert workers[1 - victim].returncode == 6, said
    assert "Traceback" not in said
    assert "contact with another process was lost" in said.strip().splitlines()[-1]
    before = pictures(out)
    assert 40 < len(before) < 300
    codes, said = finish(launch(2, ["sample", run, "--out", out, *words], code=MAIN))
    assert codes == [0, 0], said
    assert f"{len(before)} of 300 are there" in said
    command("sample", run, "--out", tmp_path / "whole", *words)
    assert pictures(out) == pictures(tmp_path / "whole")
    assert pictures(out).items() >= before.items()
    assert [entry for entry in noted(out) if "options" in entry][1:] == []


@pytest.mark.slow
def test_torchrun_ends_with_a_code_of_its_own_and_names_the_process_that_failed(run, tmp_path):
    (tmp_path / "taken.png").touch()
    words = ["sample", run, "--out", tmp_path / "taken.png", "--grid", "--num", "4"]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "-m", "--", "diffunet"]
    ended = subprocess.run([*launcher, *map(str, words)], capture_output=True, text=True, timeout=PATIENCE)
    assert ended.returncode != 0
    assert ended.stderr.count("taken.png exists; choose another, or say --overwrite") == 1
    assert (tmp_path / "taken.png").read_bytes() == b""


TALKS = """
import sys
from diffunet import ranks
from diffunet.errors import UsageError, ResourceError

with ranks.together() as us:
    parts = us.gather(bytes([us.rank]) * (3 * us.rank))
    assert parts == ([b"", b"\\x01" * 3, b"\\x02" * 6] if us.is_main else []), parts
    assert us.share(lambda: {"rank": us.rank, "names": ["\\udcff", None]}) == {"rank": 0, "names": ["\\udcff", None]}
    assert us.smallest(7 - us.rank) == 5
    try:
        us.share(lambda: (_ for _ in ()).throw(UsageError("no such folder")))
    except UsageError as error:
        assert (str(error), error.told) == ("no such folder", not us.is_main)
    else:
        raise SystemExit("no error")
    parts = us.each(lambda: bytes([us.rank]))
    assert parts == ([b"\\x00", b"\\x01", b"\\x02"] if us.is_main else []), parts

    def one_fails():
        if us.rank:
            raise UsageError(f"no folder of {us.rank}")
        return b"done"

    for _ in range(2):
        try:
            us.each(one_fails)
        except UsageError as error:
            assert (str(error), error.told) == ("no folder of 1", us.rank != 1)
        else:
            raise SystemExit("no error")
    us.meet()
    try:
        if us.rank == 1:
            raise KeyError("a fault")
        us.meet()
    except RuntimeError:
        raise
raise SystemExit("it is not lost")
"""


@pytest.mark.slow
def test_processes_gather_share_and_notice_a_loss():
    workers = launch(3, [], code=TALKS)
    said = [worker.communicate(timeout=PATIENCE)[1] for worker in workers]
    assert [worker.returncode for worker in workers] == [1, 1, 1]
    assert "KeyError: 'a fault'" in said[1]
    for rank in (0, 2):
        assert "ResourceError: contact with another process was lost" in said[rank], said[rank]


def test_a_process_that_is_alone_needs_no_group():
    with ranks.together() as us:
        assert us == ranks.ALONE
        us.meet()
        assert (us.gather(b"x"), us.each(lambda: b"y"), us.share(lambda: 3), us.smallest(4)) == ([b"x"], [b"y"], 3, 4)
    assert not torch.distributed.is_initialized()
