"""What the README and the guides tell people to type runs as written, in their order; only runs are made short."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.documents import DOCUMENTS, ROOT, blocks, commands
from helpers.launching import finish, wait_for
from helpers.small import tiny
from PIL import Image

from diffunet.commands import info
from diffunet.commands.cli import main

SHORT = "--model.channels 8 --batch-size 4 --train.previews 4 --train.ema-every 1"
STEPS, MOST = 4, 60
"""The steps of the runs that are there beforehand, and the most samples that are made."""


@pytest.fixture(scope="module")
def there(tmp_path_factory):
    """The folders, pictures and finished runs that the README and the guides speak of."""
    from diffunet.training.loop import train

    root = tmp_path_factory.mktemp("home")
    generator = np.random.default_rng(0)
    for folder, count in (("photos", 30), ("animals/cat", 30), ("animals/dog", 30), ("album", 2)):
        (root / folder).mkdir(parents=True)
        for i in range(count):
            Image.fromarray(generator.integers(0, 256, (70, 80, 3), dtype=np.uint8)).save(root / f"{folder}/{i}.png")
    photo = generator.integers(0, 256, (90, 120, 4), dtype=np.uint8)
    photo[..., 3] = 255
    Image.fromarray(photo).convert("RGB").save(root / "holiday.png")
    hole = np.zeros((90, 120), bool)
    hole[30:50, 40:60] = True
    Image.fromarray(hole).save(root / "holiday-mask.png")
    photo[hole, 3] = 0
    Image.fromarray(photo).save(root / "cut-out.png")
    (root / "samples").mkdir()
    shutil.copy(ROOT / "samples/cut-out.png", root / "samples")
    for name, classes in (("photos", False), ("animals", True)):
        data = {"image_size": 16, "classes": classes}
        steps = {"steps": STEPS, "ema_every": 1, "previews": 0}
        train(tiny(data=data, train=steps), root / name, root / "runs" / name)
    return root


@pytest.fixture
def home(there, tmp_path, monkeypatch):
    """A copy of them, as the current folder."""
    shutil.copytree(there, tmp_path / "home")
    monkeypatch.chdir(tmp_path / "home")
    return tmp_path / "home"


def short(words, reached):
    """A training command with few steps and a small net; a run that goes on goes on by one step."""
    out = words[words.index("--out") + 1]
    for option in {"--steps", "--minutes"} & {*words}:
        at = words.index(option)
        words = words[:at] + words[at + 2 :]
    if "--resume" not in words and Path(out).exists():  # it was there beforehand, for documents that do not make it
        shutil.rmtree(out)
        reached.pop(out)
    reached[out] = reached.get(out, 1) + 1
    words = [*words, "--steps", str(reached[out])]
    if "--resume" not in words and "--init" not in words:
        words += shlex.split(SHORT) if "--model.norm-groups" not in words else shlex.split(SHORT.replace("8", "32"))
        words += ["--model.num-blocks", "1"] if "unet2015" not in words else []
    return words


def few(words):
    """A command that makes a few samples in place of many."""
    if "--num" in words and int(words[words.index("--num") + 1]) > MOST:
        words = [*words]
        words[words.index("--num") + 1] = str(MOST)
    return words


RUN = [name for name in DOCUMENTS if commands(name, "bash")]


@pytest.mark.slow
@pytest.mark.parametrize("name", RUN)
def test_every_command_of_a_document_runs(name, home, capsys, monkeypatch):
    monkeypatch.setattr(info, "WORTH_MEASURING", 1)  # one image a pass
    reached = {"runs/photos": STEPS, "runs/animals": STEPS}
    for words in commands(name, "bash"):
        words = short(words, reached) if words[0] == "train" else few(words)
        with pytest.raises(SystemExit) as stop:
            main(words)
        assert stop.value.code == 0, (words, capsys.readouterr().err)
        if "--out" in words:
            made = Path(words[words.index("--out") + 1])
            assert made.is_dir() or made.suffix in (".html", ".npz") or Image.open(made).size, words
    if name == "README":
        known = np.asarray(Image.open("holiday-mask.png").convert("L")) < 128
        before, after = (np.asarray(Image.open(path)) for path in ("holiday.png", "mended.png"))
        assert np.array_equal(before[known], after[known])
        assert len(list(Path("pictures").glob("1-*.png"))) == MOST


@pytest.mark.parametrize("name", [name for name in DOCUMENTS if blocks(name, "python")])
def test_the_python_of_a_document_runs(name, home):
    namespace = {}  # of one session
    for block in blocks(name, "python"):
        small = '{"train": {"steps": 2, "batch_size": 4}, "model": {"channels": 8}, "data": {"image_size": 16}}'
        exec(re.sub(r"model_validate\(.*\)\n", f"model_validate({small})\n", block), namespace)
    for picture in re.findall(r'"([\w-]+\.png)"\)\n', "".join(blocks(name, "python"))):
        assert Image.open(picture).size


def test_there_are_commands_that_run():
    assert sum(len(commands(name, "bash")) for name in RUN) >= 50
    assert len(commands("README", "bash")) >= 10


SCHEDULER = {
    # As `diffunet` is installed, but with a small net and as many steps as are asked for.
    "diffunet": '#!/bin/sh\nexec "{python}" -m diffunet "$@" --steps $STEPS --train.log-every 1 '
    "--model.channels 8 --model.num-blocks 1 --batch-size 4 --train.previews 0\n",
    "scontrol": '#!/bin/sh\necho "$@" >> requeued\n',
}


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("bash") is None, reason="a batch file needs bash")
def test_the_slurm_file_requeues_what_was_stopped_and_nothing_else(home, tmp_path, monkeypatch):
    shutil.rmtree("runs")
    [script] = blocks("many-gpus", "sbatch")
    Path("job.sh").write_text(script)
    Path("bin").mkdir()
    for name, content in SCHEDULER.items():
        Path("bin", name).write_text(content.format(python=sys.executable))
        Path("bin", name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{home / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "42")

    def job(steps):
        return subprocess.Popen(
            ["bash", "job.sh"], env=os.environ | {"STEPS": str(steps)}, stderr=subprocess.PIPE, text=True
        )

    first, metrics = job(10**6), Path("runs/photos/metrics.jsonl")
    wait_for(lambda: metrics.exists() and metrics.read_text(), first)
    first.send_signal(signal.SIGTERM)
    [code], said = finish([first])
    assert code == 75, said
    assert Path("requeued").read_text() == "requeue 42\n"
    step = json.loads(Path("runs/photos/status.json").read_text())["step"]
    [code], said = finish([job(step + 2)])
    assert code == 0, said
    assert f"resuming runs/photos at step {step}" in said
    assert Path("requeued").read_text() == "requeue 42\n"
    [code], said = finish([job(0)])  # an option that cannot be
    assert code == 2, said
    assert Path("requeued").read_text() == "requeue 42\n"
