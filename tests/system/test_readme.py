"""What the README tells people to type runs as written, in the order in which it stands; only runs are made short."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffunet.cli import main

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
SHORT = "--model.channels 8 --model.num-blocks 1 --batch-size 4 --train.previews 4"


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.fixture
def home(tmp_path, monkeypatch):
    """The folders and pictures that the README speaks of."""
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(0)
    for folder in ("photos", "animals/cat", "animals/dog"):
        Path(folder).mkdir(parents=True)
        for i in range(30):
            Image.fromarray(generator.integers(0, 256, (70, 80, 3), dtype=np.uint8)).save(f"{folder}/{i}.png")
    photo = generator.integers(0, 256, (90, 120, 4), dtype=np.uint8)
    photo[..., 3] = 255
    Image.fromarray(photo).convert("RGB").save("holiday.png")
    hole = np.zeros((90, 120), bool)
    hole[30:50, 40:60] = True
    Image.fromarray(hole).save("holiday-mask.png")
    photo[hole, 3] = 0
    Image.fromarray(photo).save("cut-out.png")


def short(words, reached):
    """A training command with few steps and a small net; a run that goes on goes on by one step."""
    out = words[words.index("--out") + 1]
    if "--steps" in words:
        at = words.index("--steps")
        words = words[:at] + words[at + 2 :]
    reached[out] = reached.get(out, 1) + 1
    words = [*words, "--steps", str(reached[out])]
    if "--resume" not in words and "--init" not in words:
        words += shlex.split(SHORT)
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
    for path in ("grid.png", "cats.png", "mended.png", "choices/holiday-3.png", "filled.png", "digits.png"):
        assert Image.open(path).size
    assert len(list(Path("pictures").iterdir())) == 100
    known = np.asarray(Image.open("holiday-mask.png").convert("L")) < 128
    before, after = (np.asarray(Image.open(path)) for path in ("holiday.png", "mended.png"))
    assert np.array_equal(before[known], after[known])

    namespace = {}  # of one session
    for block in blocks("python"):
        small = '{"train": {"steps": 2, "batch_size": 4}, "model": {"channels": 8}, "data": {"image_size": 16}}'
        exec(re.sub(r"model_validate\(.*\)\n", f"model_validate({small})\n", block), namespace)
    assert Path("one.png").exists()
    assert Path("runs/charbonnier/model/model.safetensors").exists()


def test_what_the_readme_points_to_exists():
    root = Path(__file__).parents[2]
    links = re.findall(r"\]\((?!http)([^)#]+)\)", README) + re.findall(r"`((?:diffunet|scripts)/[\w/]+\.py)`", README)
    links += re.findall(r'src="([^"]+)"', README)
    assert links
    assert [link for link in links if not (root / link).exists()] == []
