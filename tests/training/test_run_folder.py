"""The run folder: who may write to it, and that this is found out before any work is done."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile

import pytest
from helpers.commands import diffunet as command
from helpers.launching import PATIENCE, finish, start, wait_for
from helpers.small import tiny

from diffunet import build
from diffunet.config import read_toml
from diffunet.errors import CheckpointError, ResourceError, Stopped, UsageError
from diffunet.training import checkpoint, run_folder
from diffunet.training.loop import train

ENDLESS = {"steps": 10**6, "log_every": 1, "checkpoint_every": 10**6, "validate_every": 10**6, "previews": 0}
MAIN = "import sys; from diffunet.commands.cli import main; main(sys.argv[1:])"


@pytest.fixture
def no_work(monkeypatch):
    """Reading the images is work."""

    def dataset(*_, **__):
        raise AssertionError("work was begun")

    monkeypatch.setattr(build, "dataset", dataset)


@pytest.mark.parametrize("resume", [True, False])
def test_a_place_below_a_file_is_refused_first(folder, tmp_path, no_work, resume):
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file/run"):
        with pytest.raises(UsageError, match=f"--out {out} (exists|cannot be written)"):
            train(tiny(), folder, out, resume=resume)


@pytest.fixture
def read_only(tmp_path, run):
    """A mounted disk, with a run on it, that takes no more writes."""
    place = tmp_path / "disk"
    place.mkdir()
    if sys.platform != "linux" or os.geteuid() or subprocess.call(["mount", "-t", "tmpfs", "none", str(place)]):
        pytest.skip("mounting takes Linux, root and a system that allows it")
    shutil.copytree(run, place / "run")
    subprocess.check_call(["mount", "-o", "remount,ro", str(place)])
    yield place
    subprocess.check_call(["umount", str(place)])


def test_a_read_only_disk_is_refused_first(folder, read_only, no_work):
    for out, resume in ((read_only / "run", True), (read_only / "new", False)):
        with pytest.raises(UsageError, match=r"--out .* cannot be written: Read-only file system"):
            train(tiny(train={"steps": 20}), folder, out, resume=resume)


@pytest.mark.long
def test_a_folder_of_another_user_is_refused_first(folder, run, tmp_path):
    if not hasattr(os, "geteuid") or os.geteuid():
        pytest.skip("only root can become somebody else")
    shutil.copytree(run, tmp_path / "run")
    nobody = (
        "import os, sys\nfrom diffunet import build, errors\nimport diffunet, diffunet.training.loop\n"
        "from helpers import small\n"
        "os.setuid(65534)\n"
        "try: diffunet.train(small.tiny(train={'steps': 20}), sys.argv[1], sys.argv[2], resume=True)\n"
        "except errors.UsageError as error: print(error)\n"
    )
    for path in (tmp_path, *tmp_path.parents):
        if path.stat().st_uid == 0 and path.is_relative_to(tempfile.gettempdir()):
            path.chmod(path.stat().st_mode | 0o005)
    child = start(nobody, folder, tmp_path / "run", PYTHONPATH=os.pathsep.join(filter(None, sys.path)))
    said, complaint = child.communicate(timeout=PATIENCE)
    assert child.returncode == 0, complaint
    assert "cannot be written: Permission denied" in said


@pytest.mark.slow
def test_a_second_process_exits_4_and_a_dead_one_holds_nothing(folder, tmp_path):
    (tmp_path / "config.toml").write_text(tiny(train=ENDLESS).to_toml())
    words = ["train", folder, "--config", tmp_path / "config.toml", "--out", tmp_path / "run"]
    first = start(MAIN, *words)
    wait_for(lambda: (tmp_path / "run/metrics.jsonl").exists(), first)
    for options in ([], ["--resume"]):
        [code], said = finish([start(MAIN, *words, *options)])
        assert code == 4, said
        assert "another process is writing to" in said.strip().splitlines()[-1]
    assert json.loads((tmp_path / "run/status.json").read_text())["state"] == "running"
    with pytest.raises(CheckpointError, match="another process"):
        train(tiny(), folder, tmp_path / "run", resume=True)
    first.send_signal(signal.SIGKILL)
    first.communicate(timeout=PATIENCE)
    train(tiny(train={"steps": 2, "previews": 0}), folder, tmp_path / "run", resume=True)


def test_two_runs_in_one_process_are_two_as_well(folder, tmp_path):
    def again(progress):
        with pytest.raises(CheckpointError, match="another process"):
            train(tiny(), folder, tmp_path / "run", resume=True)

    train(tiny(train={"steps": 2}), folder, tmp_path / "run", on_step=again)


def test_what_a_killed_process_left_is_swept_away(folder, run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    left = [".config.toml.17.tmp", "model/.model.safetensors.17.tmp", "model/.tmpAbCdEf", "samples/.a.png.17.tmp"]
    for name in left:
        (tmp_path / "run" / name).write_bytes(b"half")
    half = tmp_path / "run/checkpoints/.step-00000009.17.tmp"
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half")
    train(tiny(train={"steps": 9}), folder, tmp_path / "run", resume=True)
    assert [path for path in (tmp_path / "run").rglob(".*") if path.name != ".lock"] == []


def test_checkpoints_that_are_gone_are_no_reason_to_begin_anew(folder, run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    shutil.rmtree(tmp_path / "run/checkpoints")
    with pytest.raises(CheckpointError, match=r"the checkpoints of .* are gone.*--init"):
        train(tiny(train={"steps": 9}), folder, tmp_path / "run", resume=True)


def test_before_its_first_checkpoint_a_run_may_change_everything(folder, tmp_path):
    """As after "out of memory ... try half of it": nothing was learned that the options would contradict."""

    def fail(*_):
        raise MemoryError

    with pytest.raises(ResourceError, match="with --batch-size 6: with --resume, try half of it"):
        train(tiny(), folder, tmp_path / "run", loss=fail)
    train(tiny(train={"batch_size": 3, "steps": 3}, model={"channels": 16}), folder, tmp_path / "run", resume=True)
    assert read_toml(tmp_path / "run/config.toml").train.batch_size == 3
    with pytest.raises(ResourceError) as begun:
        train(tiny(train={"batch_size": 3}, model={"channels": 16}), folder, tmp_path / "run", resume=True, loss=fail)
    assert "half" not in str(begun.value)
    assert "--train.grad-accumulation" in str(begun.value)


@pytest.mark.parametrize(
    ("section", "change", "wanted"),
    [
        ("train", {"batch_size": 3}, r"train\.batch_size = 6; it cannot become 3\. .*--train\.grad-accumulation 2 "),
        ("train", {"batch_size": 2}, r"--train\.grad-accumulation 3 divides each step into passes of 2 images"),
        ("train", {"batch_size": 12}, r"--init RUN --out OTHER --train\.batch-size"),
        ("data", {"fit": "pad"}, r"--init RUN --out OTHER --data\.fit"),
        ("model", {"channels": 12}, "begin another run with it"),
        ("diffusion", {"target": "v"}, "begin another run with it"),
    ],
)
def test_a_refusal_to_change_an_option_names_a_way_round(section, change, wanted):
    before = tiny().changed("train", grad_accumulation=1)
    with pytest.raises(UsageError, match=wanted):
        run_folder._same_run(before.changed(section, **change), before, done=0)


def test_what_ends_one_part_of_a_run_does_not_end_the_next(folder, tmp_path, caplog):
    """--train.stop-after ends it after the first step."""
    with pytest.raises(Stopped):
        train(tiny(train={"stop_after": 1e-9}), folder, tmp_path / "run")
    command("train", folder, "--out", tmp_path / "run", "--resume")
    command("train", folder, "--out", tmp_path / "again", "--config", tmp_path / "run/config.toml")
    assert [checkpoint.steps(tmp_path / run)[-1] for run in ("run", "again")] == [8, 8]


def test_a_run_that_is_made_longer_has_no_previews_of_steps_that_it_has_not_taken(folder, tmp_path, caplog):
    caplog.set_level("INFO")
    options = {"sample_every": 2, "previews": 1, "checkpoint_every": 2, "cooldown_from": 4, "keep_every": 2}
    train(tiny(train=options), folder, tmp_path / "run")
    (tmp_path / "run/samples/mine.png").touch()
    longer = tiny(train=options | {"steps": 20, "cooldown_from": 16})
    with pytest.raises(Stopped):
        train(longer, folder, tmp_path / "run", resume=True, on_step=lambda progress: False)
    names = sorted(path.name for path in (tmp_path / "run/samples").iterdir())
    assert names == ["mine.png", "step-00000002.png", "step-00000004.png"]
    assert "going on from step 4: later checkpoints are deleted (6, 8)" in caplog.text
