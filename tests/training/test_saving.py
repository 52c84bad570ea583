"""Checkpoints by the clock; and those that a thread writes while training goes on, as on a GPU: never silent."""

import filecmp
import json
import logging
import threading
import time
from functools import partial

import pytest
import torch
from helpers.small import tiny
from safetensors import SafetensorError

from diffunet import storage
from diffunet.compute import Compute
from diffunet.config import read_toml
from diffunet.errors import DataError, DivergedError, ResourceError, Stopped
from diffunet.training import checkpoint, saving
from diffunet.training.loop import train

CONFIG = tiny(train={"cooldown": 0, "ema_every": 2, "keep_every": 3})


@pytest.fixture
def beside(monkeypatch):
    """Checkpoints are written by a thread on the CPU too."""
    monkeypatch.setattr(saving, "beside", lambda how, size: True)


@pytest.fixture
def before_writing(monkeypatch):
    """`before_writing(do)` calls `do(step)` before a checkpoint is written; the threads that wrote are returned."""
    writers, save = [], checkpoint.save

    def watch(do):
        def watched(run, step, *others):
            writers.append((step, threading.current_thread().name.partition("_")[0]))
            do(step)
            save(run, step, *others)

        monkeypatch.setattr(checkpoint, "save", watched)
        return writers

    return watch


def saving_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("saving")]


def assert_same(a, b, *steps):
    for step in steps:
        for name in ("model", "ema", "optimizer", "power"):
            x, y = (checkpoint.folder_of(run, step) / f"{name}.safetensors" for run in (a, b))
            assert filecmp.cmp(x, y, shallow=False), (step, name)


def status_of(run):
    return json.loads((run / "status.json").read_text())


@pytest.fixture(scope="module")
def plain(folder, tmp_path_factory):
    """A run whose checkpoints of steps 3, 6 and 8 were written in place."""
    out = tmp_path_factory.mktemp("plain") / "run"
    train(CONFIG, folder, out)
    return out


def test_a_checkpoint_has_the_values_of_its_step_although_training_goes_on(
    folder, plain, tmp_path, beside, before_writing
):
    went_on = threading.Event()

    def wait(step):
        assert step != 3 or went_on.wait(60)

    def on_step(progress):
        if progress.step == 5:  # two steps after the one that is being saved
            assert status_of(tmp_path / "run")["step"] == 0
            assert checkpoint.steps(tmp_path / "run") == []
            went_on.set()

    writers = before_writing(wait)
    train(CONFIG, folder, tmp_path / "run", on_step=on_step)
    assert writers == [(3, "saving"), (6, "saving"), (8, "MainThread")]
    assert_same(plain, tmp_path / "run", 3, 6, 8)
    assert storage.read_model(tmp_path / "run").step == 8
    assert saving_threads() == []


def test_a_run_that_is_stopped_and_resumed_is_exact(folder, plain, tmp_path, beside, before_writing):
    before_writing(lambda step: time.sleep(0.2))
    with pytest.raises(Stopped, match="at step 5"):
        train(CONFIG, folder, tmp_path / "run", on_step=lambda progress: progress.step < 4)
    assert saving_threads() == []
    assert checkpoint.steps(tmp_path / "run") == [3, 5]
    status = status_of(tmp_path / "run")
    assert (status["state"], status["step"]) == ("stopped", 5)
    train(CONFIG, folder, tmp_path / "run", resume=True)
    assert_same(plain, tmp_path / "run", 3, 6, 8)


def test_one_is_written_at_a_time_and_noted_when_it_is_whole(folder, tmp_path, beside, before_writing):
    at_work, seen = [], []

    def write(step):
        at_work.append(step)
        assert at_work == [step]
        seen.append((status_of(tmp_path / "run")["step"], checkpoint.steps(tmp_path / "run")))
        time.sleep(0.05)
        at_work.remove(step)

    before_writing(write)
    train(tiny(train={"checkpoint_every": 1, "steps": 5, "previews": 0}), folder, tmp_path / "run")
    assert seen == [(0, []), (1, [1]), (2, [1, 2]), (3, [2, 3]), (4, [3, 4])]


@pytest.mark.parametrize("when", ["at once", "late"])
def test_a_disk_that_fails_meanwhile_ends_the_run(folder, tmp_path, monkeypatch, beside, when):
    """At the next step where it fails at once, or at the next save, which waits for it."""
    save_file, reached = storage.save_file, []

    def full(tensors, path, *others):
        if path.parent.name.startswith(".step-00000006"):
            time.sleep(0.0 if when == "at once" else 1.0)
            raise SafetensorError("I/O error: No space left on device (os error 28)")
        save_file(tensors, path, *others)

    monkeypatch.setattr(storage, "save_file", full)

    def on_step(progress):
        reached.append(progress.step)
        if when == "at once":
            time.sleep(0.05)

    with pytest.raises(
        ResourceError, match=r"checkpoint of step 6 .*No space left.*earlier checkpoints are whole"
    ) as e:
        train(CONFIG, folder, tmp_path / "run", on_step=on_step)
    assert e.value.exit_code == 6
    assert reached[-1] in ((6, 7) if when == "at once" else (7, 8))
    status = status_of(tmp_path / "run")
    assert (status["state"], status["exit_code"]) == ("failed", 6)
    assert "No space left" in status["error"]
    assert checkpoint.steps(tmp_path / "run") == [3]
    assert checkpoint.newest(tmp_path / "run") == checkpoint.folder_of(tmp_path / "run", 3)
    assert storage.read_model(tmp_path / "run").step == 3
    assert not list((tmp_path / "run/checkpoints").glob(".*"))
    assert saving_threads() == []


def test_a_disk_that_fails_at_a_stop_is_no_stop(folder, tmp_path, beside, before_writing):
    def full(step):
        time.sleep(0.3)
        raise ResourceError("full")

    before_writing(full)
    with pytest.raises(ResourceError, match="full"):
        train(CONFIG, folder, tmp_path / "run", on_step=lambda progress: progress.step < 3)
    assert status_of(tmp_path / "run")["state"] == "failed"


def test_an_error_of_ours_waits_for_the_checkpoint_and_keeps_its_name(folder, tmp_path, beside, before_writing, caplog):
    def fail(step, progress):
        if progress.step == step:
            raise KeyError("ours")

    before_writing(lambda step: time.sleep(0.3))
    with pytest.raises(KeyError):
        train(CONFIG, folder, tmp_path / "whole", on_step=partial(fail, 3))
    assert checkpoint.steps(tmp_path / "whole") == [3]
    assert status_of(tmp_path / "whole")["state"] == "failed"

    def full(step):
        time.sleep(0.3)
        raise ResourceError("the disk is full")

    before_writing(full)
    with pytest.raises(KeyError):
        train(CONFIG, folder, tmp_path / "full", on_step=partial(fail, 3))
    assert checkpoint.steps(tmp_path / "full") == []
    assert "the disk is full" in caplog.text


def test_images_that_vanish_save_after_what_is_under_way(folder, tmp_path, beside, before_writing, monkeypatch):
    from diffunet.training.batches import Batches

    def step(self, number, *others, made=Batches.step):
        if number == 4:
            raise DataError("an image is gone")
        return made(self, number, *others)

    monkeypatch.setattr(Batches, "step", step)
    writers = before_writing(lambda step: time.sleep(0.3))
    with pytest.raises(DataError, match="an image is gone"):
        train(CONFIG, folder, tmp_path / "run")
    assert writers == [(3, "saving"), (4, "MainThread")]
    assert checkpoint.steps(tmp_path / "run") == [3, 4]
    assert status_of(tmp_path / "run")["state"] == "failed"


def test_a_run_that_diverges_names_the_checkpoint_that_was_being_written(folder, tmp_path, beside, before_writing):
    calls = []

    def loss(denoised, x0, sigma):
        calls.append(1)
        return (denoised.x0 - x0).square().mean(dim=(1, 2, 3)) * (float("nan") if len(calls) > 3 else 1.0)

    before_writing(lambda step: time.sleep(0.5))
    with pytest.raises(DivergedError, match="the checkpoint of step 3 is whole"):
        train(tiny(train={"max_skipped": 1, "log_every": 1, "previews": 0}), folder, tmp_path / "run", loss=loss)
    assert status_of(tmp_path / "run")["state"] == "diverged"


def test_where_it_pays_and_there_is_memory_for_a_copy(monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(Compute, "free_memory", lambda self: 2000 if self.device.type == "cpu" else 0)
    gpu = Compute(torch.device("cuda"))
    assert saving.beside(gpu, 1000)
    assert "copy" not in caplog.text
    assert not saving.beside(gpu, 1001)
    assert "a copy of 1 KiB is too large for the memory" in caplog.text
    assert not saving.beside(Compute(torch.device("cpu")), 1)


def test_without_memory_for_a_copy_it_is_written_in_place(folder, plain, tmp_path, beside, before_writing, monkeypatch):
    to = torch.Tensor.to

    def none_left(tensor, *arguments, **options):
        if options.get("copy"):
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory")
        return to(tensor, *arguments, **options)

    monkeypatch.setattr(torch.Tensor, "to", none_left)
    writers = before_writing(lambda step: None)
    train(CONFIG, folder, tmp_path / "run")
    assert {name for _, name in writers} == {"MainThread"}
    assert_same(plain, tmp_path / "run", 3, 6, 8)


def test_a_copy_is_as_a_file_has_it():
    weight = torch.arange(48.0).reshape(2, 3, 2, 4).to(memory_format=torch.channels_last)
    [copy] = saving.copied({"model": {"weight": weight}})["model"].values()
    assert copy.is_contiguous()
    assert torch.equal(copy, weight)
    assert copy.data_ptr() != weight.data_ptr()
    assert saving.size({"model": {"weight": weight, "more": weight[0]}}) == 4 * 72


@pytest.fixture
def clock(monkeypatch):
    """`clock(seconds)`: every look at the clock, of which there is one a step and one a save, takes so long."""

    def ticking(seconds):
        now = [0.0]

        def look():
            now[0] += seconds
            return now[0]

        monkeypatch.setattr(saving, "monotonic", look)

    return ticking


def test_a_checkpoint_is_due_when_minutes_have_passed_since_the_last_one(monkeypatch):
    now = [50.0]
    monkeypatch.setattr(saving, "monotonic", lambda: now[0])
    cadence, never = saving.Cadence(2.0), saving.Cadence(0.0)
    for seconds, due in ((119, False), (1, True), (0, False), (119, False), (1, True)):
        now[0] += seconds
        assert cadence.due() == due
    now[0] += 100
    cadence.restart()  # there was one by steps
    now[0] += 100
    assert not cadence.due()
    now[0] += 20
    assert cadence.due()
    now[0] += 1e9
    assert not never.due()


BY_CLOCK = CONFIG.changed("train", checkpoint_every=100, checkpoint_minutes=1.0, keep_every=1)


@pytest.mark.parametrize("written", ["in place", "beside"])
def test_checkpoints_by_the_clock_change_no_weights(folder, plain, tmp_path, clock, monkeypatch, written):
    monkeypatch.setattr(saving, "beside", lambda how, size: written == "beside")
    clock(60.0)
    train(BY_CLOCK, folder, tmp_path / "run")
    assert checkpoint.steps(tmp_path / "run") == [1, 2, 3, 4, 5, 6, 7, 8]
    assert_same(plain, tmp_path / "run", 3, 6, 8)


def test_checkpoints_by_the_clock_count_from_those_by_steps_and_may_change(folder, plain, tmp_path, clock):
    clock(25.0)
    config = BY_CLOCK.changed("train", checkpoint_every=2)
    train(config.changed("train", steps=4), folder, tmp_path / "run")
    assert checkpoint.steps(tmp_path / "run") == [2, 4]  # a minute never passes between two of them
    train(config.changed("train", checkpoint_every=100), folder, tmp_path / "run", resume=True)
    assert checkpoint.steps(tmp_path / "run") == [2, 4, 7, 8]
    train(config.changed("train", checkpoint_minutes=0.0, steps=9), folder, tmp_path / "run", resume=True)
    assert read_toml(tmp_path / "run/config.toml").train.checkpoint_minutes == 0
    assert_same(plain, tmp_path / "run", 8)


def test_a_crash_goes_on_from_the_checkpoint_by_the_clock(folder, plain, tmp_path, clock):
    def crash(progress):
        if progress.step == 5:
            raise KeyError("a crash")

    clock(20.0)
    with pytest.raises(KeyError):
        train(BY_CLOCK, folder, tmp_path / "run", on_step=crash)
    assert checkpoint.steps(tmp_path / "run") == [3]
    train(BY_CLOCK.changed("train", checkpoint_minutes=0.0), folder, tmp_path / "run", resume=True)
    assert checkpoint.steps(tmp_path / "run") == [3, 8]
    assert_same(plain, tmp_path / "run", 8)
