"""The script for a machine with a GPU: what it says came of its parts, what it refuses, and all of it on a CPU."""

import importlib.util
import io
import json
import subprocess
import sys
import tarfile
import time
from argparse import Namespace
from pathlib import Path

import numpy as np
import psutil
import pytest
from helpers.launching import wait_for
from PIL import Image

import diffunet

SCRIPTS = Path(__file__).parents[1] / "scripts"
sys.path.insert(0, str(SCRIPTS))  # gpu_speed imports what it shares with scripts/benchmark.py

pytestmark = pytest.mark.seconds


def script(name):
    """A script as a module, under a name that is no other's: tests/gpu is a folder."""
    spec = importlib.util.spec_from_file_location(f"script_{name}", SCRIPTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


gpu, gpu_run, gpu_speed = map(script, ("gpu", "gpu_run", "gpu_speed"))

ROW = {
    "net": "ddpm 32", "by": "diffusers", "what": "training", "precision": "bf16", "channels_last": True,
    "compiled": False, "batch": 128,
}  # fmt: skip
FORWARD = ROW | {"what": "forward"}
TIMED = {"images_per_second": 1234.5, "first_seconds": 61.04, "difference": 0.004}
DONE = {"image_size": 32, "loss": 0.5, "missing": [], "commands": {"train": "exit code 75, 3.0 s"}}


@pytest.mark.parametrize(
    ("part", "found", "expected"),
    [
        ("check", {"collected": 3, "passed": 2, "skipped": {"no GPU": 1}}, []),
        ("check", {}, ["no test passed"]),
        ("check", {"collected": 1, "passed": 0, "skipped": {"no GPU": 1}}, ["no test passed"]),
        ("check", {"collected": 4, "passed": 1, "failed": {"a": "b"}}, ["a: b", "2 tests were not reached"]),
        ("speed", {"rows": [ROW | TIMED], "planned": [ROW, FORWARD]}, []),
        ("speed", {"rows": [ROW | TIMED, FORWARD | {"missing": "No module named 'diffusers'"}]}, []),
        ("speed", {"rows": [FORWARD | {"missing": "No module named 'diffusers'"}]}, ["nothing was measured"]),
        (
            "speed", {"rows": [ROW | TIMED, FORWARD | {"failed": "out of memory"}]},
            ["ddpm 32 | diffusers | bf16 | channels last | eager | forward: out of memory"],
        ),
        ("run", DONE, []),
        ("run", {}, ["there is no everything"]),
        ("run", {"failed": "OSError: x", "missing": ["a", "b"]}, ["OSError: x", "there is no a, b"]),
    ],
)  # fmt: skip
def test_what_a_part_should_have_done(part, found, expected):
    assert list(gpu.problems(part, found)) == expected


def test_the_table_has_a_line_for_training_and_forward_and_names_what_came_too_late():
    rows = [ROW | TIMED, FORWARD | {"failed": "out of memory"}]
    found = {"rows": rows, "planned": [ROW, FORWARD, FORWARD | {"compiled": True}], "ended": "killed", "problems": []}
    lines = gpu.table({"machine": {"card": "A100"}, "parts": {"speed": found}})
    assert lines[0] == "card A100"
    [line] = [line for line in lines if line.startswith("| ddpm 32")]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells == [
        "ddpm 32", "diffusers", "bf16", "channels last", "eager", "128", "1,234", "", "61.0 s", "",
        "forward: out of memory; answers differ by 4e-03",
    ]  # fmt: skip
    assert all(line.count("|") == 12 for line in lines if line.startswith("|"))
    assert "- not reached in time, 1: ddpm 32, diffusers, bf16, channels last, compiled, forward" in lines


def test_the_table_of_check_and_run():
    found = {
        "passed": 1,
        "collected": 2,
        "failed": {"test": "why"},
        "skipped": {"no GPU": 3},
        "figures": {"t": {"a": 1}},
    }
    checked = found | {"ended": "exit code 1", "problems": ["test: why"]}
    trained = DONE | {"evaluate": ["excess: 1"], "ended": "exit code 0", "problems": []}
    lines = gpu.table({"parts": {"check": checked, "run": trained}})
    for line in ("- 1 passed of 2, 1 failed", "- 3 skipped: no GPU", "- a: 1", "- PROBLEM: test: why"):
        assert line in lines
    for line in ("- loss: 0.5", "- train: exit code 75, 3.0 s", "- excess: 1"):
        assert line in lines


def test_rows_come_by_importance_and_each_once():
    plan = gpu_speed.plan()
    assert len(set(plan)) == len(plan)
    assert plan[0] == gpu_speed.Case("default 64", "diffunet", "training")
    assert not any(case.compiled for case in plan[:14])
    assert plan[14] == gpu_speed.Case("default 64", "diffunet", "training", compiled=True)
    assert {case.net for case in plan if case.by == "diffusers"} == {"ddpm 32"}


def test_what_is_too_much_to_bring_back(tmp_path):
    (tmp_path / "model").mkdir()
    for i in range(8):
        (tmp_path / "model" / str(i)).write_bytes(b"a")
    assert gpu.too_much(tmp_path) == []
    (tmp_path / "ninth").touch()
    for name in "abcd":
        with (tmp_path / "model" / name).open("wb") as file:
            file.truncate(15_999_999)
    with (tmp_path / "ninth").open("wb") as file:
        file.truncate(16_000_000)
    assert gpu.too_much(tmp_path) == ["ninth has 16.0 MB", "13 files, not 8", "80.0 MB in all"]


def test_a_part_is_killed_with_its_children_and_what_it_said_stays(tmp_path):
    sleeps = "import time; time.sleep(60)"
    code = (
        f"import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', '{sleeps}']).pid, flush=True); {sleeps}"
    )
    job, began = gpu.Job(Namespace(), tmp_path, {}), time.monotonic()
    assert job.child([sys.executable, "-c", code], 3.0, tmp_path / "said").startswith("killed after 3 s")
    assert time.monotonic() - began < 30
    child = int((tmp_path / "said").read_text())
    wait_for(lambda: not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE)


def test_what_cannot_be_is_refused(tmp_path, capsys):
    for words, said in (
        (["--out", tmp_path / "new", "--parts", "speed,dance"], "there is no part dance"),
        (["--out", tmp_path / "new"], "run needs --data"),
        (["--out", tmp_path / "new", "--data", tmp_path / "nothing"], "is not there"),
        (["--out", SCRIPTS, "--parts", "speed"], "exists; name another folder"),
    ):
        with pytest.raises(SystemExit) as stop:
            gpu.arguments(list(map(str, words)))
        assert stop.value.code == 2
        assert said in capsys.readouterr().err


def pictures(folder, count, size):
    """Discs of many colours."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(count)
    y, x = np.mgrid[:size, :size]
    for i in range(count):
        image = np.full((size, size, 3), 255, np.uint8)
        image[(y - size / 2) ** 2 + (x - size / 2) ** 2 < generator.uniform(4, size**2 / 4)] = generator.integers(
            0, 255, 3
        )
        Image.fromarray(image).save(folder / f"{i}.png")


@pytest.mark.seconds
def test_images_tell_their_size_and_classes_and_the_net_has_at_most_7_million(tmp_path):
    pictures(tmp_path / "plain/inner", 2, 40)
    for name in ("a", "b"):
        pictures(tmp_path / "named/train" / name, 2, 32)
    plain, named = (gpu_run.unpacked(tmp_path / name, tmp_path / "none") for name in ("plain", "named"))
    assert (plain, named) == (tmp_path / "plain/inner", tmp_path / "named/train")
    assert (gpu_run.size_of(plain), gpu_run.classes_of(plain)) == (64, ())
    assert (gpu_run.size_of(named), gpu_run.classes_of(named)) == (32, ("a", "b"))
    for size in (32, 64):
        channels = gpu_run.widest(size, ("a", "b"))
        config = diffunet.Config.model_validate({"data": {"image_size": size}, "model": {"channels": channels}})
        assert 5e6 < gpu_run.parameters(config) <= 7e6
    words = gpu_run.training(named, 2.5, ["--train.compile", "on"], tiny=False, recipe=False)
    assert words[0] == "--classes"
    assert words[-2:] == ["--train.compile", "on"]
    assert words.count("--train.compile") == 1


def test_an_archive_lands_nowhere_else(tmp_path):
    with tarfile.open(tmp_path / "evil.tar.gz", "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("../outside.png"), io.BytesIO())
    with pytest.raises(tarfile.OutsideDestinationError):
        gpu_run.unpacked(tmp_path / "evil.tar.gz", tmp_path / "in")
    assert not (tmp_path / "outside.png").exists()


@pytest.mark.slow
def test_all_of_it_on_a_cpu(tmp_path):
    pictures(tmp_path / "pictures", 45, 24)
    with tarfile.open(tmp_path / "pictures.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "pictures", "pictures")
    command = [
        sys.executable, SCRIPTS / "gpu.py", "--data", tmp_path / "pictures.tar.gz", "--out", tmp_path / "out", "--tiny",
        "--device", "cpu",
    ]  # fmt: skip
    ended = subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=tmp_path)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    found = json.loads((tmp_path / "out/gpu.json").read_text())
    assert found["machine"]["device"] == "cpu"
    assert list(found["parts"]) == ["check", "speed", "run"]
    check, speed, run = found["parts"].values()
    assert [part["problems"] for part in (check, speed, run)] == [[], [], []]
    assert check["passed"] == check["collected"] > 0
    assert len(speed["rows"]) == len(speed["planned"])
    assert all(row["images_per_second"] > 0 or "missing" in row for row in speed["rows"])
    assert run["step"] == 4
    assert any(line.startswith("excess:") for line in run["evaluate"])
    assert gpu.too_much(tmp_path / "out") == []
    with tarfile.open(tmp_path / "out/gpu.tar.gz") as archive:
        names = set(archive.getnames())
        grid = Image.open(io.BytesIO(archive.extractfile("run/samples.png").read()))
        assert min(grid.size) >= 2 * 16
    assert {"run/metrics.jsonl", "run/config.toml", "run/inpainted.png", "run/evaluate.txt"} <= names
    assert not any("images/" in name or "cache/" in name for name in names)
    assert len(diffunet.load(tmp_path / "out/model", "cpu").sample(1)) == 1
    assert "## speed: as it should" in ended.stdout
