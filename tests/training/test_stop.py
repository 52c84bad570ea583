"""What ends a run on request: signals, the clock, a file, in real processes."""

import filecmp
import json
import os
import signal
import time

import pytest
from helpers.launching import finish, start, wait_for
from helpers.small import tiny

from diffunet.config import read_toml
from diffunet.errors import Stopped
from diffunet.training import checkpoint
from diffunet.training.loop import train
from diffunet.training.stop import Limits

ENDLESS = {
    "steps": 10**6, "log_every": 1, "checkpoint_every": 10**6, "validate_every": 10**6, "sample_every": 10**6,
    "ema_every": 10**6, "optimizer": "muon", "learning_rate": 4e-3,  # whose own choice goes by the steps
    "kernels": "off",  # a trial would choose by the time that something takes
}  # fmt: skip

MAIN = "import sys; from diffunet.commands.cli import main; main(sys.argv[1:])"


def endless(folder, tmp_path, code=MAIN, **train_options):
    """A run that only ends on request, begun."""
    (tmp_path / "config.toml").write_text(tiny(train=ENDLESS | train_options).to_toml())
    return start(code, "train", folder, "--config", tmp_path / "config.toml", "--out", tmp_path / "run")


def lines(tmp_path):
    path = tmp_path / "run/metrics.jsonl"
    return path.read_text().splitlines() if path.exists() else []


def assert_saved(tmp_path, reason):
    status = json.loads((tmp_path / "run/status.json").read_text())
    assert (status["state"], status["exit_code"], status["reason"]) == ("stopped", 75, reason)
    assert checkpoint.newest(tmp_path / "run") == checkpoint.folder_of(tmp_path / "run", status["step"])
    return status["step"]


@pytest.mark.parametrize(
    "name", ["SIGTERM", *(pytest.param(name, marks=pytest.mark.slow) for name in ("SIGINT", "SIGHUP"))]
)
@pytest.mark.long
def test_a_signal_ends_the_step_saves_and_exits_75(folder, tmp_path, name):
    child = endless(folder, tmp_path)
    wait_for(lambda: lines(tmp_path), child)
    child.send_signal(getattr(signal, name))
    [code], said = finish([child])
    assert code == 75, said
    assert said.strip().splitlines()[-1].endswith("with everything saved; go on with --resume")
    step = assert_saved(tmp_path, name)
    # It is the state of that step: a run that ends there by itself has the same.
    config = tiny(train=ENDLESS | {"steps": step})
    train(config, folder, tmp_path / "whole")
    a, b = (checkpoint.folder_of(tmp_path / run, step) / "manifest.json" for run in ("run", "whole"))
    a, b = (json.loads(path.read_text()) for path in (a, b))
    assert all(a[name] == b[name] for name in a if name.endswith(".safetensors"))


@pytest.mark.slow
def test_under_nohup_a_closed_terminal_does_not_matter(folder, tmp_path):
    child = endless(folder, tmp_path, "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN); " + MAIN)
    wait_for(lambda: lines(tmp_path), child)
    child.send_signal(signal.SIGHUP)
    before = len(lines(tmp_path))
    wait_for(lambda: len(lines(tmp_path)) > before + 5, child)
    child.send_signal(signal.SIGTERM)
    assert finish([child])[0] == [75]


ASLEEP = """
import sys, time
from diffunet import build
from diffunet.commands.cli import main
build.{name} = lambda *_, **__: (print("asleep", flush=True), time.sleep(600))
main(sys.argv[1:])
"""


@pytest.mark.long
def test_a_second_ctrl_c_ends_at_once(folder, tmp_path):
    # The first one waits for the end of the step, which does not come: the loss sleeps.
    code = """
import sys, time, diffunet
from diffunet.config import read_toml

def loss(denoised, x0, sigma):
    print("asleep", flush=True)
    while True:
        time.sleep(0.1)

diffunet.train(read_toml(sys.argv[4]), sys.argv[2], sys.argv[6], loss=loss)
"""
    child = endless(folder, tmp_path, code)
    assert child.stdout.readline() == "asleep\n"
    child.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert child.poll() is None
    child.send_signal(signal.SIGINT)
    [code], said = finish([child])
    assert code not in (0, 75), said
    assert "KeyboardInterrupt" in said
    assert checkpoint.newest(tmp_path / "run") is None


@pytest.mark.parametrize("name", ["dataset", pytest.param("denoiser", marks=pytest.mark.slow)])
@pytest.mark.long
def test_a_signal_before_the_first_step_is_no_failure(folder, tmp_path, name):
    child = endless(folder, tmp_path, ASLEEP.format(name=name))
    assert child.stdout.readline() == "asleep\n"
    child.send_signal(signal.SIGTERM)
    [code], said = finish([child])
    assert code == 75, said
    assert "nothing is lost" in said.strip().splitlines()[-1]
    assert json.loads((tmp_path / "run/status.json").read_text())["state"] == "stopped"
    # The same command again begins anew, and so does --resume.
    config = tiny(train={"steps": 2})
    train(config, folder, tmp_path / "run", resume=name == "dataset")


def test_a_signal_while_torch_is_imported_is_no_failure(folder, tmp_path):
    code = "import os, signal, sys\n" + (
        "class Finder:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'torch': os.kill(os.getpid(), signal.SIGTERM)\n"
        "sys.meta_path.insert(0, Finder())\n"
    )
    child = endless(folder, tmp_path, code + MAIN)
    [code], said = finish([child])
    assert code == 75, said
    assert "nothing is lost" in said


@pytest.mark.slow
def test_the_clock_ends_a_run_and_resuming_is_exact(folder, tmp_path):
    child = endless(folder, tmp_path, stop_after=0.01)
    [code], said = finish([child])
    assert code == 75, said
    assert "ends after 0.01 minutes" in said
    step = assert_saved(tmp_path, "--train.stop-after")
    assert read_toml(tmp_path / "run/config.toml").train.stop_after is None, "it is of this part of the run"
    options = {"steps": step + 3, "stop_after": 10.0}
    train(tiny(train=ENDLESS | options), folder, tmp_path / "run", resume=True)
    train(tiny(train=ENDLESS | options), folder, tmp_path / "whole")
    a, b = (checkpoint.folder_of(tmp_path / run, step + 3) / "ema.safetensors" for run in ("run", "whole"))
    assert filecmp.cmp(a, b, shallow=False)


@pytest.mark.slow
def test_a_file_ends_a_run_and_is_gone(folder, tmp_path):
    child = endless(folder, tmp_path)
    wait_for(lambda: lines(tmp_path), child)
    (tmp_path / "run/stop").touch()
    [code], said = finish([child])
    assert code == 75, said
    assert_saved(tmp_path, f"the file {tmp_path / 'run/stop'}")
    assert not (tmp_path / "run/stop").exists()


def test_a_clock_that_is_set_ends_no_run(tmp_path, monkeypatch):
    limits = Limits(tmp_path / "stop", 1.0)
    monkeypatch.setattr("time.time", lambda: 4e9)
    assert limits.reason() is None
    now = time.monotonic()
    monkeypatch.setattr("time.monotonic", lambda: now + 61)
    assert limits.reason() == "--train.stop-after"


@pytest.mark.parametrize("call", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_a_signal_inside_gradient_accumulation(folder, tmp_path, call):
    """It comes while the first or the second of two passes is computed; the step is finished."""
    config = tiny(train={"grad_accumulation": 2})
    calls = []

    def loss(denoised, x0, sigma):
        calls.append(1)
        if len(calls) == 4 + call and not (tmp_path / "parts/stop-was-sent").exists():
            (tmp_path / "parts/stop-was-sent").touch()
            os.kill(os.getpid(), signal.SIGTERM)
        return ((denoised.x0 - x0) ** 2).mean(dim=(1, 2, 3))

    with pytest.raises(Stopped, match="at step 3 of 8"):
        train(config, folder, tmp_path / "parts", loss=loss)
    train(config, folder, tmp_path / "parts", loss=loss, resume=True)
    (tmp_path / "whole").mkdir()
    calls = [1] * 100
    train(config, folder, tmp_path / "whole", loss=loss)
    for name in ("model", "ema", "optimizer"):
        a, b = (checkpoint.folder_of(tmp_path / run, 8) / f"{name}.safetensors" for run in ("parts", "whole"))
        assert filecmp.cmp(a, b, shallow=False)


@pytest.mark.slow
@pytest.mark.parametrize("what", ["sample_every", "validate_every"])
def test_a_stop_does_not_wait_for_previews_and_validation(folder, tmp_path, what):
    """They would take for ever here, and the run is saved and ended all the same."""
    code = """
import sys, time
from diffunet.diffusion import samplers
from diffunet.training import loop
from diffunet.commands.cli import main

def slow(*arguments, function=samplers.sample):
    for result in function(*arguments):
        print("at it", flush=True)
        yield result

samplers.sample = slow
validation = loop.validate

def for_ever(*arguments):
    print("at it", flush=True)
    while True:
        validation(*arguments)

loop.validate = for_ever
main(sys.argv[1:])
"""
    options = {what: 2, "previews": 16 if what == "sample_every" else 0, "log_every": 1}
    (tmp_path / "config.toml").write_text(tiny(train=ENDLESS | options, diffusion={"sample_steps": 100_000}).to_toml())
    child = start(code, "train", folder, "--config", tmp_path / "config.toml", "--out", tmp_path / "run")
    assert child.stdout.readline() == "at it\n"
    child.send_signal(signal.SIGTERM)
    child.stdout.read()
    [code], said = finish([child])
    assert code == 75, said
    assert assert_saved(tmp_path, "SIGTERM") == 3
