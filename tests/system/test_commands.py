"""The commands as people type them: what they print, where they write, and how they refuse."""

import contextlib
import errno
import filecmp
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
from helpers.commands import diffunet
from helpers.complaints import FINITE, WHOLE, at_least, at_most, check, less_than, more_than
from PIL import Image

from diffunet.commands.cli import COMMANDS, main

ROOT = Path(__file__).parents[2]

TRAIN = (
    "--image-size 8 --classes --steps 4 --batch-size 4 --model.channels 8 --model.multipliers 1 2 --train.previews 2"
)


def refused(capsys, *words, code=2):
    """Run a command that must end with `code`, its complaint in one line, the last; gives that line."""
    capsys.readouterr()
    diffunet(*words, code=code)
    lines = capsys.readouterr().err.strip().splitlines()
    assert [line.startswith("diffunet: ") for line in lines] == [False] * (len(lines) - 1) + [True], lines
    assert "Traceback" not in "".join(lines)
    return lines[-1]


def test_what_there_is_is_told_before_anything_large_is_imported():
    """`diffunet --help` answers at once: what reads options, and torch, take seconds to import."""
    code = (
        "import sys\nfrom diffunet.commands import cli\n"
        "try: cli.main(['--help'])\nexcept SystemExit as end: assert end.code == 0\n"
        "print({'tyro', 'pydantic', 'numpy', 'torch'} & set(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stderr == "set()\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example_and_imports_no_torch(command):
    code = (
        "import sys; from diffunet.commands.cli import main\n"
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
        "0-00000-disc.png", "0-00001-square.png", "0-00002-disc.png", "made.jsonl",
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
    ):
        assert why in refused(capsys, "sample", trained, *words)
    assert "no model" in refused(
        capsys, "sample", tmp_path / "nothing", "--out", tmp_path / "x.png", "--num", 1, code=4
    )


def test_options_of_sampling_reach_the_model(trained, tmp_path, capsys, monkeypatch):
    from diffunet.sampling.pipeline import Guidance, Pipeline

    seen, plain = {}, Pipeline.stream

    def stream(pipe, *args, **options):
        seen.update(options)
        return plain(pipe, *args, **options)

    monkeypatch.setattr(Pipeline, "stream", stream)
    first = ["sample", trained, "--num", 1, "--steps", 3, "--guidance", 3, "--out"]
    diffunet(
        *first, tmp_path / "all.png", "--guidance-interval", 0.2, 5, "--guidance-rescale", 0.9, "--weaker",
        trained / "checkpoints/step-00000004", "--ladder", "karras", "--threshold", "dynamic", "--sampler", "unipc",
    )  # fmt: skip
    weaker = seen["guidance"].weaker
    assert weaker.image_size == 8
    assert seen["guidance"] == Guidance(3.0, weaker, (0.2, 5.0), 0.9)
    assert (seen["ladder"], seen["threshold"], seen["sampler"]) == ("karras", "dynamic", "unipc")
    new = tmp_path / "new.png"
    assert "ddpm-learned needs learned-variance" in refused(capsys, *first, new, "--sampler", "ddpm-learned")
    assert "from a sigma to a larger one" in refused(capsys, *first, new, "--guidance-interval", 5, 0.2)
    assert "no model" in refused(capsys, *first, new, "--weaker", tmp_path / "nothing", code=4)
    assert not new.exists()


def test_options_of_sampling_reach_evaluate(trained, folder, monkeypatch):
    from diffunet.sampling.pipeline import Guidance, Pipeline

    class SeenEnough(Exception):
        pass

    seen = {}

    def stream(pipe, *args, **options):
        seen.update(options)
        raise SeenEnough

    monkeypatch.setattr(Pipeline, "stream", stream)
    how = ["--guidance", 3, "--guidance-rescale", 0.9, "--ladder", "karras", "--threshold", "dynamic", "--steps", 7]
    with pytest.raises(SeenEnough):
        main([str(word) for word in ("evaluate", trained, folder, "--num", 8, "--sampler", "heun", *how)])
    assert seen["guidance"] == Guidance(3.0, None, None, 0.9)
    names = ("sampler", "steps", "ladder", "threshold")
    assert [seen[name] for name in names] == ["heun", 7, "karras", "dynamic"]


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
    assert sorted(path.name for path in (tmp_path / "all").iterdir()) == [
        "a-0.png", "a-1.png", "a-sheet.png", "b-0.png", "b-1.png", "b-sheet.png", "made.jsonl",
    ]  # fmt: skip
    first = ["inpaint", trained, tmp_path / "a.png"]
    assert "exists" in refused(capsys, *first, *mask, "--out", tmp_path / "out.png")
    assert "--lossy-ok" in refused(capsys, *first, *mask, "--out", tmp_path / "out.jpg")
    assert "no transparent part" in refused(capsys, *first, "--out", tmp_path / "o.png")
    assert "give a folder" in refused(capsys, *first, *mask, "--num", 2, "--out", tmp_path / "o.png")
    (tmp_path / "text.png").write_text("words")
    assert "text.png" in refused(
        capsys, "inpaint", trained, tmp_path / "text.png", *mask, "--out", tmp_path / "o.png", code=3
    )


@pytest.mark.slow
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
    how = ["--guidance", 2, "--guidance-interval", 0.1, 9, "--sampler", "unipc", "--ladder", "log-snr"]
    how += ["--likelihood", "ode", "--likelihood-num", 2, "--likelihood-steps", 4]
    diffunet("evaluate", trained, folder, "--num", 8, "--steps", 2, *how, "--threshold", "static")
    said = capsys.readouterr().out
    assert "bits per dimension" in said
    assert "feature distance" in said
    assert "excess" in said
    diffunet("evaluate", trained, folder, "--loss", "--num", 4)
    said = capsys.readouterr().out
    assert "loss: " in said
    written = json.loads((trained / "evaluation.json").read_text())
    assert (written["samples"], written["step"], written["nearest"]) == (8, 4, "nearest.png")
    assert written["loss_images"] <= 4
    assert Image.open(trained / "nearest.png").size == (4 * 10 + 2, 4 * 10 + 2)
    # The picture of a run goes with its figures, also where another file is asked for.
    diffunet("evaluate", trained, folder, "--num", 6, "--steps", 2, "--pairs", tmp_path / "mine.png")
    assert filecmp.cmp(trained / "nearest.png", tmp_path / "mine.png", shallow=False)
    assert Image.open(tmp_path / "mine.png").size == (3 * 10 + 2, 4 * 10 + 2)
    assert json.loads((trained / "evaluation.json").read_text())["nearest"] == "nearest.png"


@pytest.mark.slow
def test_figures_as_json_of_a_model_that_is_no_run_and_of_samples_of_anybody(trained, folder, tmp_path, capsys):
    before = sorted(path.name for path in (trained / "model").iterdir())
    pairs = ["--pairs", tmp_path / "pairs.png", "--json"]
    diffunet("evaluate", trained / "model", folder, "--num", 6, "--steps", 2, *pairs)
    found = json.loads(capsys.readouterr().out)
    assert (found["samples"], found["nearest"]) == (6, "pairs.png")
    assert Image.open(tmp_path / "pairs.png").size == (3 * 10 + 2, 4 * 10 + 2)
    assert sorted(path.name for path in (trained / "model").iterdir()) == before
    diffunet("sample", trained, "--out", tmp_path / "made", "--num", 6, "--steps", 2)
    capsys.readouterr()
    diffunet("evaluate", "--samples", tmp_path / "made", folder, "--json")
    of_folder = json.loads(capsys.readouterr().out)
    assert (of_folder["samples"], of_folder["data"], sorted(of_folder["classes"])) == (
        6,
        found["data"],
        ["disc", "square"],
    )


def test_without_weights_one_line_says_how_to_get_them(trained, folder, tmp_path, capsys, monkeypatch):
    pytest.importorskip("torch_fidelity")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    line = refused(capsys, "evaluate", trained, folder, "--metrics", "fid", code=4)
    assert "https://github.com/toshas/torch-fidelity" in line
    assert "--weights FILE" in line


def test_training_refuses_in_one_line(folder, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "used").mkdir()
    (tmp_path / "used/file").touch()
    out = ["--out", tmp_path / "run"]
    assert "no images" in refused(capsys, "train", tmp_path / "empty", *out, code=3)
    assert "exists" in refused(capsys, "train", folder, "--out", tmp_path / "used")


TRAIN_ = "train DATA --out NEW "
SAMPLE = "sample MODEL --out NEW.png --num 1 "
INPAINT = "inpaint MODEL PICTURE --out NEW.png "
BAD = [
    # what was typed, and what the line says: the option, the value, what is allowed, what is close
    (TRAIN_ + "--train.batch-sise 3", ["no option --train.batch-sise", "--train.batch-size?"]),
    (TRAIN_ + "--trian.steps 3", ["no option --trian.steps", "--train.steps?"]),
    (TRAIN_ + "--batch_sise=3", ["no option --batch-sise", "--batch-size?"]),
    (TRAIN_ + "--learning-rate 1", ["no option --learning-rate", "--train.learning-rate?"]),
    (TRAIN_ + "--channels 64", ["no option --channels", "--model.channels or --data.channels?"]),
    (TRAIN_ + "--zzz 3", ["no option --zzz", "diffunet train --help"]),
    ("train DATA --ot NEW", ["no option --ot", "--out?"]),
    (SAMPLE + "--stepps 3", ["no option --stepps", "--steps?"]),
    (TRAIN_ + "--train.steps abc", ["--train.steps takes a whole number", "'abc'"]),
    (TRAIN_ + "--train.steps=1.5", ["--train.steps takes a whole number", "'1.5'"]),
    (TRAIN_ + "--steps abc", ["--steps takes a whole number", "'abc'"]),
    (TRAIN_ + "--train.learning-rate fast", ["--train.learning-rate takes a number", "'fast'"]),
    (TRAIN_ + "--data.group 'emoji_u('", ["--data.group should be a regular expression", ".tsv or .csv", "'emoji_u('"]),
    (TRAIN_ + "--data.flip maybe", ["--data.flip takes True or False", "'maybe'"]),
    (SAMPLE + "--num 1e3", ["--num takes a whole number", "'1e3'"]),
    (SAMPLE + "--guidance much", ["--guidance takes a number", "'much'"]),
    (TRAIN_ + "--train.steps 0", ["--train.steps", at_least(1), "0"]),
    (TRAIN_ + "--steps 0", ["train.steps", at_least(1), "0"]),
    (TRAIN_ + "--image-size 2", ["data.image_size", at_least(4), "2"]),
    (TRAIN_ + "--data.image-size 5000", ["--data.image-size", at_most(4096), "5000"]),
    (TRAIN_ + "--train.batch-size 0", ["--train.batch-size", at_least(1), "'auto'", "0"]),
    (TRAIN_ + "--train.learning-rate -1", ["--train.learning-rate", more_than(0), "-1.0"]),
    (TRAIN_ + "--train.seed -1", ["--train.seed", at_least(0), "-1"]),
    (TRAIN_ + "--train.learning-rate nan", ["--train.learning-rate", FINITE, "nan"]),
    (TRAIN_ + "--train.clip inf", ["--train.clip", FINITE, "inf"]),
    (SAMPLE + "--num 0", ["--num", at_least(1), "0"]),
    (SAMPLE + "--num -3", ["--num", at_least(1), "-3"]),
    (SAMPLE + "--seed -1", ["--seed", at_least(0), "-1"]),
    (SAMPLE + f"--seed {2**63}", ["--seed", less_than(2**63), str(2**63)]),
    (SAMPLE + "--steps 0", ["--steps", at_least(1), "0"]),
    (SAMPLE + "--batch-size 0", ["--batch-size", at_least(1), "0"]),
    (SAMPLE + "--guidance nan", ["--guidance", FINITE, "nan"]),
    (INPAINT + "--num 0", ["--num", at_least(1), "0"]),
    (INPAINT + "--max-pixels 0", ["--max-pixels", at_least(1), "0"]),
    (INPAINT + "--box 1,1,3", ["--box takes four whole numbers", "'1,1,3'"]),
    (INPAINT + "--feather -1", ["--feather", at_least(0), "-1"]),
    ("masks NEW --kind stroke", ["--kind takes one of mixed, box, half,", "'stroke'"]),
    ("masks NEW --num 0", ["--num", at_least(1), "0"]),
    ("masks NEW --width 30000", ["--width", at_most(20000), "30000"]),
    ("evaluate MODEL DATA --num 1", ["--num", at_least(2), "1"]),
    ("evaluate MODEL DATA --likelihood-num 7", ["--likelihood-num", "go with --likelihood"]),
    ("evaluate MODEL DATA --loss --likelihood ode", ["--loss", "no samples", "--likelihood"]),
    ("evaluate MODEL DATA --loss --steps 3", ["--loss", "options of sampling"]),
    ("evaluate MODEL DATA --loss --metrics fid", ["--loss", "--metrics"]),
    ("evaluate MODEL DATA --metrics sfid", ["--metrics takes", "one of fid, kid, prc, is", "'sfid'"]),
    ("evaluate MODEL DATA --metrics", ["--metrics", at_least(1)]),
    ("evaluate MODEL DATA --weights DATA", ["--weights and --reals go with --metrics"]),
    ("evaluate MODEL DATA --metrics kid --reals DATA", ["--reals", "--metrics fid"]),
    ("evaluate MODEL DATA --pairs NEW.pdf", ["--pairs", ".png"]),
    ("evaluate --samples DATA", ["--samples FOLDER DATA"]),
    ("evaluate MODEL DATA --samples DATA", ["--samples takes the place of MODEL"]),
    ("evaluate DATA --samples DATA --num 5", ["--samples", "--num"]),
    ("train DATA --out NEW --steps 3 --minutes 3", ["--steps", "--minutes", "take one"]),
    ("train DATA --out NEW --train.steps 3 --train.minutes 3", ["--train.minutes", "--train.steps", "take one"]),
    ("evaluate MODEL DATA --threshold soft", ["--threshold", "dynamic", "'soft'"]),
    (SAMPLE + "--guidance-rescale 0.5", ["--guidance is 1", "--guidance-rescale"]),
    (SAMPLE + "--guidance 1 --guidance-rescale 0.5", ["--guidance is 1", "--guidance-rescale"]),
    (SAMPLE + "--guidance-rescale 2", ["--guidance-rescale", at_most(1), "2"]),
    (SAMPLE + "--ladder rho", ["--ladder", "karras", "'rho'"]),
    ("evaluate MODEL DATA --seed -1", ["--seed", at_least(0), "-1"]),
    ("check DATA --image-size 0", ["--image-size", at_least(4), "0"]),
    ("prepare digits NEW --limit 0", ["--limit", at_least(1), "0"]),
    ("info default --image-size 3", ["--image-size", at_least(4), "3"]),
    ("demo --out NEW --seconds nan", ["--seconds", FINITE, "nan"]),
    ("demo --out NEW --seconds -1", ["--seconds", more_than(0), "-1.0"]),
    (
        TRAIN_ + "--train.precision bf17",
        ["--train.precision takes one of auto, fp32, bf16, fp16", "'bf17'", "bf16?"],
    ),
    (TRAIN_ + "--data.channels 2", ["--data.channels takes one of 1, 3, 4", "'2'"]),
    (
        SAMPLE + "--sampler ddin",
        ["--sampler takes one of ddpm, ddpm-large, ddpm-learned, euler,", "(ddim is", "'ddin'", "ddim?"],
    ),
    (SAMPLE + "--precision fp8", ["--precision takes one of auto, fp32, bf16, fp16", "'fp8'"]),
    (INPAINT + "--method repait", ["--method takes one of auto, trained, repaint,", "'repait'", "repaint?"]),
    (INPAINT + "--fit stretch", ["--fit takes one of auto, crop, native, tile", "'stretch'"]),
    (TRAIN_ + "--train.betas 0.9", ["--train.betas takes 2 values, each a number", "'0.9'"]),
    (TRAIN_ + "--train.betas 0.9 0.8 0.7", ["'0.7' is one too many", "--train.betas takes 2 values"]),
    (TRAIN_ + "--train.betas 0.9 2", ["--train.betas", less_than(1), "2.0"]),
    (TRAIN_ + "--data.background 1 2", ["--data.background takes 3 values, each a whole number", "'1 2'"]),
    (TRAIN_ + "--model.multipliers", ["--model.multipliers", at_least(1)]),
    (TRAIN_ + "--model.multipliers 1 x", ["--model.multipliers takes values, each a whole number", "'1 x'"]),
    (TRAIN_ + "--model.multipliers 1 0", ["--model.multipliers", at_least(1), "0"]),
    (TRAIN_ + "--diffusion.schedule flow --diffusion.target epsilon", ["target epsilon", "take flow, v or x0"]),
    (TRAIN_ + "--preset digts", ["'digts'", "digits?", "default, diffusers, digits"]),
    (TRAIN_ + "--preset", ["--preset needs a value"]),
    (TRAIN_ + "--train.steps", ["--train.steps needs a whole number"]),
    (TRAIN_ + "--train.betas", ["--train.betas needs 2 values"]),
    ("sample MODEL --out", ["--out needs a value"]),
    ("train", ["DATA is missing (Folder of images"]),
    ("sample --out NEW", ["MODEL is missing"]),
    ("inpaint MODEL --out NEW", ["IMAGE is missing"]),
    ("evaluate MODEL", ["DATA is missing"]),
    ("check", ["DATA is missing"]),
    ("prepare digits", ["OUT is missing"]),
    ("masks", ["OUT is missing"]),
    ("info --image-size 8", ["MODEL_OR_PRESET is missing"]),
    (TRAIN_ + "more", ["'more' is one too many", "--out"]),
    ("inpaint MODEL DATA --out NEW --range 1", ["--range takes 2 values, each a number", "'1'"]),
    ("check DATA more", ["'more' is one too many", "diffunet check takes DATA"]),
    ("demo more", ["'more' is one too many", "diffunet demo takes none"]),
    ("sample MODEL --grid more --out NEW.png", ["'more' is one too many", "--grid takes no value"]),
    ("train DATA --out ''", ["--out is empty"]),
    (TRAIN_ + "--preset ''", ["--preset is empty"]),
    (TRAIN_ + "--config=", ["--config is empty"]),
    ("train '' --out NEW", ["an argument is empty"]),
    (INPAINT + "--mask ''", ["--mask is empty"]),
    ("check ''", ["an argument is empty"]),
    (SAMPLE + "--label cat", ["'cat'", "there are disc, square"]),
    (SAMPLE + "--label sqare", ["'sqare'", "square?"]),
    (SAMPLE + "--label 2", ["2", "there are disc, square"]),
    (SAMPLE + "--device gpu", ["--device", "'gpu'", "cpu, cuda"]),
    ("sample MODEL --out NEW.pgn --num 1", ["--out", "NEW.pgn", ".png .jpg"]),
    ("prepare digist NEW", ["'digist'", "did you mean digits", "cifar10"]),
    ("info defalt", ["defalt", "default?", "default, diffusers, digits"]),
    ("trian", ["'trian'", "train?"]),
    ("--verison", ["'--verison'", "--version?"]),
    ("frobnicate", ["'frobnicate'", "there are train, sample"]),
]


@pytest.mark.parametrize(("typed", "pieces"), BAD, ids=[typed for typed, _ in BAD])
def test_a_line_names_the_option_the_value_and_what_is_allowed(
    typed, pieces, trained, folder, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    given = {"MODEL": str(trained), "DATA": str(folder), "PICTURE": str(trained / "samples/step-00000004.png")}
    line = refused(capsys, *(given.get(word, word) for word in shlex.split(typed)))
    check(line, pieces)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "pieces"),
    [
        ("[train]\nbatch_sise = 3", ["train.batch_sise", "train.batch_size?"]),
        ("[trian]\nsteps = 3", ["trian", "train?"]),
        ("steps = 3", ["no option steps"]),
        ('[train]\nsteps = "abc"', ["train.steps", WHOLE, "'abc'"]),
        ("[train]\nsteps = 0", ["train.steps", at_least(1), "0"]),
        ("[train]\nlearning_rate = nan", ["train.learning_rate", FINITE, "nan"]),
        ('[train]\nprecision = "fp8"', ["train.precision", "'fp32', 'bf16' or 'fp16'", "'fp8'"]),
        ("[train]\nbetas = [0.9]", ["train.betas"]),
        ("[train]\nbetas = [0.9, 2]", ["train.betas", less_than(1), "2"]),
        ("train = 3", ["train", "3"]),
        ("[train", ["cannot be read"]),
        ("[train]\nsteps =", ["cannot be read"]),
    ],
)
def test_a_config_file_that_cannot_be_meant(content, pieces, folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("bad.toml").write_text(content)
    line = refused(capsys, *f"train {folder} --out run --config bad.toml".split())
    check(line, ["bad.toml", *pieces])
    assert not Path("run").exists()


# Where nothing can be written.


def writers(trained, out):
    """Each command that writes, told to write to the folder `out`, or to a picture in it."""
    picture = trained / "samples/step-00000004.png"
    hole = ["--box", "0,0,4,4"]
    return {
        "sample": ["sample", trained, "--out", out / "x.png", "--num", 1, "--steps", 2],
        "samples": ["sample", trained, "--out", out, "--num", 3, "--steps", 2],
        "inpaint": ["inpaint", trained, picture, *hole, "--out", out / "x.png", "--steps", 2],
        "inpaints": ["inpaint", trained, picture, *hole, "--out", out, "--steps", 2],
        "prepare": ["prepare", "digits", out, "--limit", 20],
        "masks": ["masks", out, "--num", 2],
        "demo": ["demo", "--out", out, "--seconds", 1],
    }


WRITERS = list(writers(Path(), Path()))


def refused_before_work(capsys, words, code=2):
    """The line; nothing was said before it."""
    line = refused(capsys, *words, code=code)
    assert capsys.readouterr().out == ""
    assert ("OUT" if words[0] in ("prepare", "masks") else "--out") in line
    return line


@pytest.mark.parametrize("command", WRITERS)
def test_a_parent_that_is_a_file(command, trained, tmp_path, capsys):
    (tmp_path / "file").write_text("here")
    line = refused_before_work(capsys, writers(trained, tmp_path / "file/new/deep")[command])
    assert f"{tmp_path / 'file'} is not a folder" in line
    assert (tmp_path / "file").read_text() == "here"


@pytest.mark.parametrize("command", WRITERS)
def test_a_folder_where_a_file_is_wanted_and_the_other_way_round(command, trained, tmp_path, capsys):
    if command == "sample":
        (tmp_path / "out/x.png").mkdir(parents=True)
        assert "is a folder" in refused_before_work(
            capsys, [*writers(trained, tmp_path / "out")[command], "--overwrite", "--grid"]
        )
    elif command == "inpaint":  # a folder where it is one
        (tmp_path / "out/x.png").mkdir(parents=True)
        diffunet(*writers(trained, tmp_path / "out")[command])
        assert [path.name for path in (tmp_path / "out/x.png").glob("*.png")] == ["step-00000004.png"]
    else:
        (tmp_path / "out").write_text("here")
        line = refused_before_work(capsys, writers(trained, tmp_path / "out")[command])
        assert "not a folder" in line
        assert (tmp_path / "out").read_text() == "here"


@contextlib.contextmanager
def mounted(folder, *options):
    """A small file system in memory."""
    folder.mkdir(exist_ok=True)
    mount = shutil.which("mount")
    command = [mount, "-t", "tmpfs", "-o", ",".join(options), "tmpfs", str(folder)]
    if mount is None or not sys.platform.startswith("linux") or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("file systems cannot be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("command", WRITERS)
def test_a_read_only_mount(command, trained, tmp_path, capsys):
    """Where permissions alone say that root may write."""
    with mounted(tmp_path / "disk", "ro") as disk:
        line = refused_before_work(capsys, writers(trained, disk / "new/deep")[command])
        assert "Read-only file system" in line


@contextlib.contextmanager
def as_nobody():
    """Root may write anywhere; nobody may not."""
    if os.name == "nt" or os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.skipif(os.name == "nt", reason="permissions of POSIX")
@pytest.mark.parametrize("command", WRITERS)
def test_a_folder_of_somebody_else(command, trained, capsys):
    with tempfile.TemporaryDirectory() as theirs:
        os.chmod(theirs, 0o555)
        with as_nobody():
            line = refused_before_work(capsys, writers(trained, Path(theirs) / "new")[command])
            assert "Permission denied" in line
        assert os.listdir(theirs) == []


@pytest.mark.skipif(os.name == "nt" or os.geteuid() != 0, reason="only root can become nobody")
def test_a_model_that_may_not_be_read(trained, capsys):
    with as_nobody():
        assert "Permission denied" in refused(capsys, "info", trained, code=4)


@pytest.mark.parametrize("command", ["sample", "inpaint"])
def test_a_name_that_is_too_long_for_its_temporary_file(command, trained, tmp_path, capsys):
    words = writers(trained, tmp_path)[command]
    words[words.index("--out") + 1] = tmp_path / f"{'n' * 245}.png"
    assert "name too long" in refused_before_work(capsys, words)


@pytest.mark.parametrize("command", WRITERS)
def test_a_disk_that_is_full_already(command, trained, tmp_path, capsys):
    with mounted(tmp_path / "disk", "size=1M") as disk:
        fill(disk, leave=0)
        line = refused_before_work(capsys, writers(trained, disk / "new")[command], code=6)
        assert "No space left on device" in line
        assert [path.name for path in disk.iterdir()] == ["filling"]


def fill(disk, leave):
    """Leave so many bytes free."""
    with open(disk / "filling", "wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"x" * 4096)
    os.truncate(disk / "filling", (disk / "filling").stat().st_size - leave)


@pytest.mark.parametrize("command", ["sample", "samples", "inpaint", "prepare", "demo"])
def test_a_disk_that_fills_up(command, trained, tmp_path, capsys):
    """Pictures of noise do not shrink: 32 kB are too few."""
    with mounted(tmp_path / "disk", "size=1M") as disk:
        old = disk / "new/x.png"
        (disk / "new").mkdir()
        words = writers(trained, disk / "new")[command]
        if command in ("sample", "inpaint"):
            old.write_bytes(b"what was there")
            words.append("--overwrite")
        if command == "sample":
            words[words.index("--num") + 1] = 400
            words.append("--grid")
        if command == "samples":
            words[words.index("--num") + 1] = 20
        if command == "inpaint":
            noise = np.random.default_rng(0).integers(0, 256, (150, 150, 3), dtype=np.uint8)
            Image.fromarray(noise).save(tmp_path / "noise.png")
            Image.fromarray(np.eye(150, dtype=bool)).save(tmp_path / "mask.png")
            words[2:5] = [tmp_path / "noise.png", "--mask", tmp_path / "mask.png"]
        fill(disk, leave=32768)
        line = refused(capsys, *words, code=6)
        assert "No space left on device" in line
        assert str(disk) in line
        left = sorted(path.name for path in disk.rglob("*"))
        if command in ("sample", "inpaint"):
            assert left == ["filling", "new", "x.png"]
            assert old.read_bytes() == b"what was there"
        elif command == "prepare":
            assert left == ["filling", "new"]
        assert [name for name in left if name.startswith(".") or "tmp" in name] == []


LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
from diffunet.commands.cli import main
main(sys.argv[1:])
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="limits of POSIX")
def test_a_file_that_may_not_be_so_large(trained, tmp_path):
    (tmp_path / "x.png").write_bytes(b"what was there")
    words = [*writers(trained, tmp_path)["sample"], "--overwrite"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", LIMITED, *map(str, words)], env=env, capture_output=True, text=True)
    assert done.returncode == 6, done.stderr
    assert done.stderr.splitlines()[-1].startswith(f"diffunet: {tmp_path / 'x.png'}")
    assert os.strerror(errno.EFBIG) in done.stderr
    assert "Traceback" not in done.stderr
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("x.png", b"what was there")]


def test_nothing_is_left_where_nothing_came_of_it(trained, tmp_path, capsys):
    words = writers(trained, tmp_path / "new/deep")["sample"]
    assert "no class" in refused(capsys, *words, "--label", "cat")
    assert list(tmp_path.iterdir()) == []
    diffunet(*words)
    assert (tmp_path / "new/deep/x.png").exists()
    assert "--out" in (line := refused(capsys, *words))
    assert "--overwrite" in line
    diffunet(*words, "--overwrite")


@pytest.mark.slow
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


@pytest.mark.slow
def test_the_demo_reaches_what_it_promises(tmp_path):
    command = [sys.executable, "-m", "diffunet", "demo", "--out", str(tmp_path / "demo")]
    command += ["--seconds", "100"]  # beside other tests; what it does in 60 s with the machine to itself
    said = subprocess.run(command, capture_output=True, text=True)
    assert said.returncode == 0, said.stderr
    agreement, ratio, copies = said.stdout.strip().splitlines()[-3:]
    assert float(agreement.removeprefix("agreement: ").rstrip("%")) >= 95
    assert float(ratio.removeprefix("variance ratio: ")) >= 0.7
    share, real = copies.removeprefix("near copies: ").rstrip(")").split(" (held-out reals ")
    assert float(share.rstrip("%")) <= float(real.rstrip("%"))
    assert (tmp_path / "demo/samples.png").exists()
    assert (tmp_path / "demo/inpainted.png").exists()
