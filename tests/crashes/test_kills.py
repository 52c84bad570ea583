"""SIGKILL at any instant: the run goes on from the newest whole checkpoint and ends as if nothing had been."""

from __future__ import annotations

import random
import subprocess
import sys
import time

import pytest
from helpers.crashes.harness import (
    EVERY,
    START,
    THOROUGH,
    Fault,
    config,
    differences,
    environment,
    fresh,
    litter,
    newest,
    own_cache,
    read_log,
    reported,
    spread,
    troubles,
    until,
)
from PIL import Image

import diffunet
from diffunet.training import checkpoint


def deaths(operations, numbers):
    """Faults that kill at operations: before each, and for a write also after half of its bytes."""
    for number in numbers:
        yield Fault(number, "kill before")
        if len(operations[number].content) > 1:
            yield Fault(number, "kill half way")


def left_whole(stage, base):
    """What is wrong with what a killed run left that had gone on from `base`."""
    step, said = newest(stage / "run"), max(reported(stage / "run") or 0, 0 if base is None else START)
    if (step or 0) not in (said, said + EVERY):
        return f"{said} was said to be saved, the newest checkpoint is {step}"
    return None


def ended_well(crashes, stage, wanted, **words):
    """What is wrong with a run that is resumed to its end."""
    trouble = differences(wanted, crashes.finish(stage, **words))
    if trouble is None and (left := litter(stage / "run")):
        trouble = f"left lying: {left}"
    for picture in (stage / "run/samples").glob("*.png"):
        Image.open(picture).load()
    return trouble


def survives(crashes, base, wanted, operations):
    """A check that a run, killed by a fault, goes on."""

    def check(fault):
        stage = fresh(crashes.place / "killed", base)
        reply = crashes.train(stage, fault, resume=base is not None, **own_cache(stage, base))
        assert reply.signal == 9, reply
        done = [operation.kind for operation in read_log(crashes.log)]
        assert done == [operation.kind for operation in operations[: fault.at]], "another crash than was meant"
        return left_whole(stage, base) or ended_well(crashes, stage, wanted, **own_cache(stage, base))

    return check


@pytest.mark.parametrize("every", [1009, pytest.param(THOROUGH, marks=pytest.mark.slow)])
@pytest.mark.long
def test_killed_at_every_operation_of_a_resumed_run(crashes, base, wanted, resumed, every):
    operations, _ = resumed
    points = list(deaths(operations, spread(operations, every)))
    print(f"{len(operations)} operations, {len(points)} crash points")
    found = troubles(points, survives(crashes, base, wanted, operations))
    assert not found, "\n".join(found)


@pytest.mark.parametrize("every", [101, pytest.param(THOROUGH, marks=pytest.mark.slow)])
@pytest.mark.long
def test_killed_at_every_operation_up_to_the_first_checkpoint(crashes, wanted, started, every):
    operations = until(started[0], 2 * EVERY)
    points = list(deaths(operations, range(0, len(operations), every)))
    print(f"{len(operations)} operations, {len(points)} crash points")
    found = troubles(points, survives(crashes, None, wanted, operations))
    assert not found, "\n".join(found)


@pytest.mark.parametrize("every", [151, pytest.param(2 * THOROUGH, marks=pytest.mark.slow)])
def test_killed_while_a_thread_writes_checkpoints(crashes, base, wanted, every):
    """As on a GPU. In which order the thread and the steps come to the disk is another one each time."""

    def trained(fault):
        stage = fresh(crashes.place / "killed", base)
        return stage, crashes.train(stage, fault, beside=True)

    def check(fault):
        stage, reply = trained(fault)
        assert reply.signal == 9, reply
        return left_whole(stage, base) or ended_well(crashes, stage, wanted, beside=True)

    _, reply = trained(Fault())
    assert (reply.signal, reply.code) == (0, 0), reply
    points = [Fault(n, "kill before") for n in range(0, len(read_log(crashes.log)), every)]
    print(f"{len(points)} crash points")
    found = troubles(points, check)
    assert not found, "\n".join(found)


@pytest.mark.slow
def test_killed_again_and_again(crashes, base, wanted, resumed):
    """Each resume is killed too."""
    operations, chance = resumed[0], random.Random(0)

    def check(numbers):
        stage, before = fresh(crashes.place / "killed", base), START
        for number in numbers:
            reply = crashes.train(stage, Fault(number, chance.choice(("kill before", "kill half way"))))
            if reply.signal != 9:  # it had got too far for that many operations, and is done
                assert (reply.signal, reply.code) == (0, 0), reply
            if (step := newest(stage / "run")) < before:
                return f"there was a checkpoint of step {before}, the newest is {step}"
            before = max(step, reported(stage / "run") or 0)
        return ended_well(crashes, stage, wanted)

    points = [[chance.randrange(len(operations) // 2) for _ in range(5)] for _ in range(20)]
    found = troubles(points, check)
    assert not found, "\n".join(found)


@pytest.mark.slow
def test_random_kills_of_a_real_process(crashes, folder, tmp_path):
    """While it starts, trains and saves; five of them (ten with DIFFUNET_EVERY=1), and then it ends as one without."""
    small, chance, deadline = config(steps=300, every=10), random.Random(0), time.monotonic() + 900
    variables = environment(crashes.place / "cache")
    (tmp_path / "config.toml").write_text(diffunet.Config.model_validate(small).to_toml())

    def train(run, *words):
        command = [sys.executable, "-m", "diffunet", "train", folder, "--out", run]
        return subprocess.Popen(
            [*command, "--config", tmp_path / "config.toml", *words],
            env=variables, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def wait_for(happens, process):
        while not happens() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.0005)

    whole, parts = tmp_path / "whole", tmp_path / "parts"
    process, began = train(whole), time.monotonic()
    wait_for((whole / "metrics.jsonl").exists, process)
    start_up = time.monotonic() - began
    said = process.communicate(timeout=600)[1]
    assert process.returncode == 0, said

    def saved():
        return max(checkpoint.steps(parts), default=0)

    def temporary():
        return set((parts / "checkpoints").glob(".*"))

    kinds, hit = ["start-up", "training", "training", "saving", "saving"] * (2 if THOROUGH == 1 else 1), []
    chance.shuffle(kinds)
    for kind in kinds:
        step, left = saved(), temporary()
        process = train(parts, *(["--resume"] if parts.exists() else []))
        if kind == "start-up":
            time.sleep(chance.uniform(0, start_up))
        else:
            wait_for(lambda step=step: saved() > step, process)
            time.sleep(chance.uniform(0, 0.3))
        if kind == "saving":
            wait_for(lambda left=left: temporary() - left, process)
            time.sleep(chance.uniform(0, 0.01))
        process.kill()
        process.communicate(timeout=60)
        assert process.returncode == -9, f"it had ended before it could be killed: {process.returncode}"
        hit.append(f"{kind} after step {saved()}{', in a checkpoint' if temporary() - left else ''}")
    print("; ".join(hit))
    assert newest(parts) is not None
    process = train(parts, "--resume")
    said = process.communicate(timeout=600)[1]
    assert process.returncode == 0, said

    options = {"step": 300, "config": small, "data": str(folder), "resume": True}
    outcomes = [crashes.ask("finish", run=str(run), **options) for run in (whole, parts)]
    assert differences(outcomes[0].outcome, outcomes[1]) is None
    for run in (whole, parts):
        command = [sys.executable, "-m", "diffunet", "sample", run, "--out", f"{run}.png", "--num", "1", "--seed", "7"]
        subprocess.run(command, env=variables, check=True, timeout=300)
    assert (tmp_path / "whole.png").read_bytes() == (tmp_path / "parts.png").read_bytes()


def test_a_checkpoint_is_written_in_many_operations(resumed):
    """Else the tests above would try little."""
    own = [operation for operation in resumed[0] if f"step-{START + EVERY:08d}" in str(operation.path)]
    assert {operation.kind for operation in own} >= {"create", "write", "fsync", "rename"}
    assert len(own) > 20
