"""`diffunet status`: runs by hand in every state, and a real one that is watched and stopped."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from helpers.commands import diffunet, refused
from helpers.launching import finish, start, wait_for
from helpers.run_folders import line, run_folder

from diffunet import files
from diffunet.commands import status

BEGUN = {"version": 1, "environment": {"device": "Abacus 3"}}


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Below `runs`: one at work, one that has died, one that is done, and one, deeper, that has failed."""
    monkeypatch.chdir(tmp_path)
    lines = [line(step) for step in (50, 100)]
    for name in ("at-work", "dead"):
        run_folder(Path("runs", name), lines=lines, begun=BEGUN)
    run_folder(Path("runs/done"), lines=lines, status={"state": "done", "step": 200, "steps": 200})
    failed = {"state": "failed", "step": 3, "steps": 200, "error": "out of ink"}
    run_folder(Path("runs/more/failed"), status=failed)
    Path("runs/empty").mkdir()
    saved = Path("runs/dead/checkpoints/step-00000080/manifest.json")
    saved.parent.mkdir(parents=True)
    saved.write_text("{}")
    os.utime(saved, (time.time() - 7200,) * 2)
    with files.lock(Path("runs/at-work/.lock"), wait=False):
        yield Path("runs")


def told(capsys, *words):
    capsys.readouterr()
    diffunet("status", *words)
    return capsys.readouterr().out


def test_all_runs_here_are_in_a_table(runs, capsys):
    head, *rows = told(capsys).splitlines()
    assert head.split() == ["run", "state", "step", "left", "loss", "images/s", "device", "checkpoint"]
    # Two lines 50 steps and 25 seconds apart: of the 100 steps that are left each takes half a second.
    assert [row.split() for row in rows[:4]] == [
        ["runs/at-work", "running", "100/200", "50", "s", "0.0100", "8", "Abacus", "3", "-"],
        ["runs/dead", "died", "100/200", "-", "0.0100", "8", "Abacus", "3", "2.0", "h", "ago"],
        ["runs/done", "done", "200/200", "-", "0.0100", "8", "-", "-"],
        ["runs/more/failed", "failed", "3/200", "-", "-", "-", "-", "-"],
    ]
    assert rows[4:] == ["runs/more/failed: out of ink"]


def test_a_program_gets_objects(runs, capsys):
    found = {each["run"]: each for each in json.loads(told(capsys, "--json"))}
    assert [each["state"] for each in found.values()] == ["running", "died", "done", "failed"]
    assert found["runs/at-work"]["seconds_left"] == 50
    assert found["runs/dead"]["checkpoint_step"] == 80
    assert 7200 <= found["runs/dead"]["checkpoint_seconds"] < 7300
    assert found["runs/more/failed"]["why"] == "out of ink"


def test_runs_are_named_or_found_below_a_folder(runs, capsys):
    assert [each["run"] for each in json.loads(told(capsys, "runs/done", "runs/more", "--json"))] == [
        "runs/done", "runs/more/failed",
    ]  # fmt: skip
    assert "no such folder" in refused(capsys, "status", "nowhere")
    assert "there is none below it" in refused(capsys, "status", "runs/empty")
    assert "take one" in refused(capsys, "status", "--watch", "--json")


def test_a_place_without_runs_is_no_error(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert told(capsys) == "there are no runs in runs; diffunet train makes them there, and RUN names others\n"
    assert told(capsys, "--json") == "[]\n"


def test_only_what_is_at_work_is_asked_to_stop(runs, capsys):
    assert "needs the RUN" in refused(capsys, "status", "--stop")
    assert "runs/dead (died)" in refused(capsys, "status", "runs/dead", "--stop")
    assert told(capsys, "runs", "--stop").startswith("runs/at-work: asked to save everything")
    assert sorted(Path("runs").rglob("stop")) == [Path("runs/at-work/stop")]
    assert json.loads(told(capsys, "runs/at-work", "--json"))[0]["state"] == "stopping"


def test_a_run_that_ends_meanwhile_is_left_without_a_request(runs, capsys, monkeypatch):
    held = iter([True, False])
    monkeypatch.setattr(files, "is_locked", lambda path: next(held))
    diffunet("status", "runs/at-work", "--stop")
    assert "has just ended" in capsys.readouterr().err
    assert not Path("runs/at-work/stop").exists()


def test_where_locks_tell_nothing_a_run_is_what_it_says(runs, capsys, monkeypatch):
    monkeypatch.setattr(files, "is_locked", lambda path: None)
    assert json.loads(told(capsys, "runs/dead", "--json"))[0]["state"] == "running"


def test_watching_ends_with_the_last_run(runs, capsys, monkeypatch):
    monkeypatch.setattr(status, "SECONDS", 0.01)
    state = Path("runs/at-work/status.json")
    ended = json.dumps({"state": "done", "step": 200, "steps": 200})
    threading.Timer(0.5, lambda: files.write_atomic(state, ended)).start()
    tables = told(capsys, "runs/at-work", "--watch").split("run ")[1:]
    assert ["running" in table for table in tables] == [True, False]
    assert "done" in tables[-1]


def test_ctrl_c_ends_watching(runs, capsys, monkeypatch):
    def interrupted(seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr(time, "sleep", interrupted)
    diffunet("status", "--watch", code=128 + signal.SIGINT)
    assert capsys.readouterr().err == "diffunet: interrupted\n"


def test_it_imports_no_torch(runs):
    code = (
        "import sys\nfrom diffunet.commands.cli import main\n"
        "try: main(['status'])\nexcept SystemExit as end: assert end.code == 0\n"
        "print('torch' in sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stderr == "False\n"


@pytest.mark.long
def test_a_real_run_is_stopped_with_everything_saved(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code = (
        "import sys; from helpers.small import tiny; from diffunet.commands.cli import main\n"
        "open('tiny.toml', 'w').write(tiny(train={'steps': 10**6}).to_toml())\n"
        "main(['train', sys.argv[1], '--config', 'tiny.toml', '--out', 'runs/real'])"
    )
    run = start(code, folder, PYTHONPATH=str(Path(__file__).parents[1]))
    wait_for(lambda: status.of(Path("runs/real")).step > 0 if Path("runs/real/config.toml").exists() else False, run)
    assert status.of(Path("runs/real")).state == "running"
    diffunet("status", "runs/real", "--stop", "--watch")
    assert finish([run])[0] == [75]
    [one] = json.loads(told(capsys, "--json"))
    assert (one["state"], one["why"]) == ("stopped", "the file runs/real/stop")
    assert one["checkpoint_step"] == one["step"] > 0
    assert not Path("runs/real/stop").exists()
