"""What the README tells people to type runs as written, in the order in which it stands; only runs are made short."""

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
from helpers.launching import finish, wait_for
from PIL import Image

from diffunet.commands.cli import main

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
SHORT = "--model.channels 8 --batch-size 4 --train.previews 4 --train.ema-every 1"


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.fixture
def home(tmp_path, monkeypatch):
    """The folders and pictures that the README speaks of."""
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(0)
    for folder, count in (("photos", 30), ("animals/cat", 30), ("animals/dog", 30), ("album", 2)):
        Path(folder).mkdir(parents=True)
        for i in range(count):
            Image.fromarray(generator.integers(0, 256, (70, 80, 3), dtype=np.uint8)).save(f"{folder}/{i}.png")
    photo = generator.integers(0, 256, (90, 120, 4), dtype=np.uint8)
    photo[..., 3] = 255
    Image.fromarray(photo).convert("RGB").save("holiday.png")
    hole = np.zeros((90, 120), bool)
    hole[30:50, 40:60] = True
    Image.fromarray(hole).save("holiday-mask.png")
    photo[hole, 3] = 0
    Image.fromarray(photo).save("cut-out.png")
    Path("samples").mkdir()
    shutil.copy(Path(__file__).parents[2] / "samples/cut-out.png", "samples")


def short(words, reached):
    """A training command with few steps and a small net; a run that goes on goes on by one step."""
    out = words[words.index("--out") + 1]
    for option in {"--steps", "--minutes"} & {*words}:
        at = words.index(option)
        words = words[:at] + words[at + 2 :]
    reached[out] = reached.get(out, 1) + 1
    words = [*words, "--steps", str(reached[out])]
    if "--resume" not in words and "--init" not in words:
        words += shlex.split(SHORT) if "--model.norm-groups" not in words else shlex.split(SHORT.replace("8", "32"))
        words += ["--model.num-blocks", "1"] if "unet2015" not in words else []
    return words


@pytest.mark.slow
def test_every_command_of_the_readme_runs(home, capsys):
    commands = [line for block in blocks("bash") for line in block.splitlines() if line.startswith("diffunet ")]
    assert len(commands) >= 18
    reached = {}
    for line in commands:
        words = shlex.split(line, comments=True)[1:]
        if words[0] == "train":
            words = short(words, reached)
        with pytest.raises(SystemExit) as stop:
            main(words)
        assert stop.value.code == 0, (line, capsys.readouterr().err)
    for path in (
        "grid.png",
        "cats.png",
        "mended.png",
        "boxed.png",
        "better.png",
        "album-mended/1.png",
        "choices/holiday-3.png",
        "filled.png",
        "digits.png",
        "emoji.png",
        "emoji-filled.png",
    ):
        assert Image.open(path).size
    assert len(list(Path("pictures").glob("1-*.png"))) == 100
    known = np.asarray(Image.open("holiday-mask.png").convert("L")) < 128
    before, after = (np.asarray(Image.open(path)) for path in ("holiday.png", "mended.png"))
    assert np.array_equal(before[known], after[known])

    namespace = {}  # of one session
    for block in blocks("python"):
        small = '{"train": {"steps": 2, "batch_size": 4}, "model": {"channels": 8}, "data": {"image_size": 16}}'
        exec(re.sub(r"model_validate\(.*\)\n", f"model_validate({small})\n", block), namespace)
    assert Path("one.png").exists()
    assert len(list(Path("many").glob("*.png"))) == 100
    assert Path("runs/charbonnier/model/model.safetensors").exists()


SCHEDULER = {
    # As `diffunet` is installed, but with a small net and as many steps as are asked for.
    "diffunet": '#!/bin/sh\nexec "{python}" -m diffunet "$@" --steps $STEPS --train.log-every 1 '
    "--model.channels 8 --model.num-blocks 1 --batch-size 4 --train.previews 0\n",
    "scontrol": '#!/bin/sh\necho "$@" >> requeued\n',
}


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("bash") is None, reason="a batch file needs bash")
def test_the_slurm_file_requeues_what_was_stopped_and_nothing_else(home, tmp_path, monkeypatch):
    [script] = blocks("sbatch")
    Path("job.sh").write_text(script)
    Path("bin").mkdir()
    for name, content in SCHEDULER.items():
        Path("bin", name).write_text(content.format(python=sys.executable))
        Path("bin", name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
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


def test_what_the_readme_points_to_exists():
    root = Path(__file__).parents[2]
    links = re.findall(r"\]\((?!http|#)([^)#]+)\)", README) + re.findall(r"`((?:diffunet|scripts)/[\w/]+\.py)`", README)
    links += re.findall(r'src="([^"]+)"', README)
    assert links
    assert [link for link in links if not (root / link).exists()] == []
