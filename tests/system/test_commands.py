"""The commands as people type them: what they print, where they write, and how they refuse."""

import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from diffunet.cli import COMMANDS, main

TRAIN = (
    "--image-size 8 --classes --steps 4 --batch-size 4 --model.channels 8 --model.multipliers 1 2 --train.previews 2"
)


def diffunet(*words, code=0):
    """Run a command in this process."""
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in words])
    assert stop.value.code == code


def refused(capsys, *words, code=2):
    """Run a command that must end with `code`, its complaint in one line, the last; gives that line."""
    capsys.readouterr()
    diffunet(*words, code=code)
    lines = capsys.readouterr().err.strip().splitlines()
    assert [line.startswith("diffunet: ") for line in lines] == [False] * (len(lines) - 1) + [True], lines
    assert "Traceback" not in "".join(lines)
    return lines[-1]


def process(*words, **options):
    return subprocess.run(
        [sys.executable, "-m", "diffunet", *map(str, words)], capture_output=True, text=True, **options
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example_and_imports_no_torch(command):
    code = (
        "import sys; from diffunet.cli import main\n"
        f"try: main([{command!r}, '--help'])\n"
        "finally: print('torch' in sys.modules, 'numpy' in sys.modules)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert f"Example: diffunet {command}" in said
    assert said.strip().endswith("False False")


def test_no_command_and_a_wrong_one(capsys):
    diffunet()
    said = capsys.readouterr().out
    assert all(command in said for command in COMMANDS)
    assert "did you mean train" in refused(capsys, "trian")


@pytest.fixture(scope="module")
def trained(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "run"
    diffunet("train", folder, "--out", out, *TRAIN.split())
    return out


def test_training_says_what_it_does(folder, tmp_path, caplog, capsys):
    diffunet("train", folder, "--out", tmp_path / "run", *TRAIN.split())
    for words in ("device: ", "precision: ", "images: ", "2 classes", "parameters", "steps: 4 of 4 images"):
        assert words in caplog.text
    assert f"done: {tmp_path / 'run' / 'model'}" in capsys.readouterr().out
    diffunet("train", folder, "--out", tmp_path / "run", "--resume", "--steps", "6")
    assert json.loads((tmp_path / "run/status.json").read_text())["step"] == 6


def test_sampling_to_a_grid_a_file_and_a_folder(trained, tmp_path, capsys):
    diffunet("sample", trained, "--out", tmp_path / "grid.png", "--grid", "--num", 4, "--steps", 2)
    assert Image.open(tmp_path / "grid.png").size == (22, 22)
    diffunet("sample", trained, "--out", tmp_path / "one.png", "--num", 1, "--steps", 2, "--label", "square")
    assert Image.open(tmp_path / "one.png").size == (8, 8)
    diffunet("sample", trained / "model", "--out", tmp_path / "many", "--num", 3, "--steps", 2, "--guidance", 2)
    assert sorted(path.name for path in (tmp_path / "many").iterdir()) == [
        "0-00000-disc.png", "0-00001-square.png", "0-00002-disc.png",
    ]  # fmt: skip
    for words, why in (
        (["--out", tmp_path / "many"], "exists"),
        (["--out", tmp_path / "grid.png", "--grid"], "exists"),
        (["--out", tmp_path / "x.png", "--num", 2], "--grid or --num 1"),
        (["--out", tmp_path / "folder", "--grid"], "a grid is one picture"),
        (
            ["--out", tmp_path / "x.png", "--num", 1, "--label", "cat"],
            "no class 'cat'; there are disc, square",
        ),
        (["--out", tmp_path / "x.png", "--num", 1, "--sampler", "magic"], "magic"),
        (["--out", tmp_path / "x.png", "--num", 1, "--stepps", "3"], "--steps"),
        (["--num", 1], "--out"),
    ):
        assert why in refused(capsys, "sample", trained, *words)
    assert "no model" in refused(
        capsys, "sample", tmp_path / "nothing", "--out", tmp_path / "x.png", "--num", 1, code=4
    )


def test_inpainting_files(trained, tmp_path, capsys):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    hole = np.zeros((20, 30), bool)
    hole[5:9, 10:16] = True
    Image.fromarray(pixels).save(tmp_path / "a.png")
    Image.fromarray(pixels[::-1].copy()).save(tmp_path / "b.webp", lossless=True)
    Image.fromarray(hole).save(tmp_path / "mask.png")
    mask = ["--mask", tmp_path / "mask.png", "--steps", 3]
    diffunet("inpaint", trained, tmp_path / "a.png", *mask, "--out", tmp_path / "out.png")
    out = np.asarray(Image.open(tmp_path / "out.png"))
    assert np.array_equal(out[~hole], pixels[~hole])
    assert not np.array_equal(out[hole], pixels[hole])
    diffunet("inpaint", trained, tmp_path / "a.png", tmp_path / "b.webp", *mask, "--out", tmp_path / "all", "--num", 2)
    assert sorted(path.name for path in (tmp_path / "all").iterdir()) == ["a-0.png", "a-1.png", "b-0.png", "b-1.png"]
    first = ["inpaint", trained, tmp_path / "a.png"]
    assert "exists" in refused(capsys, *first, *mask, "--out", tmp_path / "out.png")
    assert "--lossy-ok" in refused(capsys, *first, *mask, "--out", tmp_path / "out.jpg")
    assert "no transparent part" in refused(capsys, *first, "--out", tmp_path / "o.png")
    assert "give a folder" in refused(capsys, *first, *mask, "--num", 2, "--out", tmp_path / "o.png")
    (tmp_path / "text.png").write_text("words")
    assert "text.png" in refused(
        capsys, "inpaint", trained, tmp_path / "text.png", *mask, "--out", tmp_path / "o.png", code=3
    )


def test_check_prepare_info_evaluate(trained, folder, tmp_path, capsys):
    diffunet("prepare", "digits", tmp_path / "digits", "--limit", 50)
    assert len(list((tmp_path / "digits").rglob("*.png"))) == 50
    (tmp_path / "digits/0/broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    diffunet("check", tmp_path / "digits")
    said = capsys.readouterr().out
    assert "broken.png" in said
    assert "--classes" in said
    assert "digits" in refused(capsys, "prepare", "digit", tmp_path / "x")
    for what in (trained, "default", "digits"):
        diffunet("info", what, "--image-size", 16)
        said = capsys.readouterr().out
        for words in ("stem", "parameters", "MACs", "memory", "sampling"):
            assert words in said
    diffunet("evaluate", trained, folder, "--num", 8, "--steps", 2)
    said = capsys.readouterr().out
    assert "feature distance" in said
    assert "excess" in said
    assert "neither a model nor a preset" in refused(capsys, "info", "nothing")


def test_training_refuses_in_one_line(folder, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "used").mkdir()
    (tmp_path / "used/file").touch()
    out = ["--out", tmp_path / "run"]
    assert "no images" in refused(capsys, "train", tmp_path / "empty", *out, code=3)
    assert "exists" in refused(capsys, "train", folder, "--out", tmp_path / "used")
    assert "greater than or equal to 4, not 2" in refused(capsys, "train", folder, *out, "--image-size", "2")
    assert "--data.image-size" in refused(capsys, "train", folder, *out, "--data.image-size", "2")
    assert "--batch-size" in refused(capsys, "train", folder, *out, "--batch-sise", "2")
    assert "there is no preset" in refused(capsys, "train", folder, *out, "--preset", "nothing")
    refused(capsys, "train", folder, *out, "--train.precision", "fp16")


def test_a_signal_saves_everything_and_exits_75(folder, tmp_path):
    command = [sys.executable, "-m", "diffunet", "train", str(folder), "--out", str(tmp_path / "run"), *TRAIN.split()]
    command += ["--steps", "1000000", "--train.log-every", "1"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as child:
        deadline = time.monotonic() + 120
        metrics = tmp_path / "run/metrics.jsonl"
        while not (metrics.exists() and metrics.read_text()) and time.monotonic() < deadline:
            time.sleep(0.05)
        child.send_signal(signal.SIGTERM)
        said = child.communicate(timeout=120)[1]
    assert child.returncode == 75, said
    status = json.loads((tmp_path / "run/status.json").read_text())
    assert (status["state"], status["exit_code"], status["reason"]) == ("stopped", 75, "SIGTERM")
    assert (tmp_path / f"run/checkpoints/step-{status['step']:08d}/manifest.json").exists()
    assert said.strip().splitlines()[-1].endswith("with everything saved; go on with --resume")


def test_a_closed_pipe_is_no_traceback():
    command = f'"{sys.executable}" -m diffunet --help | head -1'
    said = subprocess.run(command, shell=True, capture_output=True, text=True, check=True)
    assert said.stderr == ""


@pytest.mark.slow
def test_the_demo_reaches_what_it_promises(tmp_path):
    command = [sys.executable, "-m", "diffunet", "demo", "--out", str(tmp_path / "demo")]
    said = subprocess.run(command, capture_output=True, text=True)
    assert said.returncode == 0, said.stderr
    agreement, ratio, copies = said.stdout.strip().splitlines()[-3:]
    assert float(agreement.removeprefix("agreement: ").rstrip("%")) >= 95
    assert float(ratio.removeprefix("variance ratio: ")) >= 0.7
    share, real = copies.removeprefix("near copies: ").rstrip(")").split(" (held-out reals ")
    assert float(share.rstrip("%")) <= float(real.rstrip("%"))
    assert (tmp_path / "demo/samples.png").exists()
    assert (tmp_path / "demo/inpainted.png").exists()
