"""A disk without room, a quota, a limit on the size of files, and one that fails."""

from __future__ import annotations

import errno
import os
import re
import subprocess

import pytest
from helpers.crashes.harness import (
    EVERY,
    GROWING,
    KINDS,
    START,
    THOROUGH,
    Crashes,
    Fault,
    config,
    differences,
    fresh,
    litter,
    newest,
    own_cache,
    reported,
    troubles,
    until,
)

import diffunet

NEED = re.compile(r"\b[1-9]\d*(\.\d+)? (KiB|MiB|GiB)\b")


def trouble_after(crashes, stage, base, wanted, reply, codes):
    """What is wrong with a run from `base` that a fault befell, or with going on from there."""
    run, words = stage / "run", own_cache(stage, base)
    if reply.signal or reply.code not in codes:
        last = " ".join(reply.message.strip().splitlines()[-3:])
        return f"it ended with signal {reply.signal}, code {reply.code}: {last}"
    if "\n" in reply.message:
        return f"several lines: {reply.message}"
    if reply.code and (left := litter(run)):
        return f"left lying: {left}"
    said = max(reported(run) or 0, 0 if base is None else START)
    if (newest(run) or 0) < said:
        return f"{said} was said to be saved, the newest checkpoint is {newest(run)}"
    trouble = differences(wanted, crashes.finish(stage, **words))
    return trouble or (f"left lying in the end: {left}" if (left := litter(run)) else None)


def check_of(crashes, base, wanted, operations, codes=(6,)):
    """A check that a fault is said in one line, leaves all whole, and that the run goes on afterwards."""

    def check(fault):
        stage = fresh(crashes.place / "full", base)
        reply = crashes.train(stage, fault, resume=base is not None, **own_cache(stage, base))
        path = operations[fault.at].path
        saving = reply.code == 6 and {"checkpoints", "model", "ema"} & {part.name for part in path.parents}
        if saving and fault.kinds != KINDS and not NEED.search(reply.message):
            return f"{operations[fault.at]}: it does not say how much is needed: {reply.message}"
        trouble = trouble_after(crashes, stage, base, wanted, reply, codes)
        return trouble and f"{operations[fault.at]}: {trouble}"

    return check


def shortages(operations, error, every):
    """No room from some operation on: each that grows a file, and for every second write after half of its bytes."""
    kinds = ("write", "allocate") if error == "EFBIG" else GROWING
    places = [number for number, operation in enumerate(operations) if operation.kind in kinds]
    for place, number in list(enumerate(places))[::every]:
        half = place % 2 and operations[number].kind == "write"
        yield Fault(number, "fail half way" if half else "fail from", getattr(errno, error), kinds)


@pytest.mark.parametrize("every", [67, pytest.param(THOROUGH, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "error", ["ENOSPC", *(pytest.param(error, marks=pytest.mark.slow) for error in ("EDQUOT", "EFBIG"))]
)
def test_no_room_from_some_operation_on(crashes, base, wanted, resumed, error, every):
    operations, _ = resumed
    faults = list(shortages(operations, error, every))
    print(f"{error}: {len(faults)} faults")
    found = troubles(faults, check_of(crashes, base, wanted, operations))
    assert not found, "\n".join(found)


@pytest.mark.parametrize("every", [67, pytest.param(THOROUGH, marks=pytest.mark.slow)])
def test_no_room_for_a_new_run(crashes, wanted, started, every):
    """Neither for the cache of its images, nor for its folder (which may be a usage error), nor for the rest."""
    operations = until(started[0], 2 * EVERY)
    faults = list(shortages(operations, "ENOSPC", every))
    print(f"ENOSPC: {len(faults)} faults")
    found = troubles(faults, check_of(crashes, None, wanted, operations, codes=(2, 6)))
    assert not found, "\n".join(found)


@pytest.mark.parametrize("every", [113, pytest.param(THOROUGH, marks=pytest.mark.slow)])
def test_one_operation_fails(crashes, base, wanted, resumed, every):
    """EIO, for example by a network file system that is away for a moment. What it hits may be of no importance."""
    operations, _ = resumed
    faults = [Fault(n, "fail once", errno.EIO) for n in range(0, len(operations), every)]
    print(f"EIO: {len(faults)} faults")
    found = troubles(faults, check_of(crashes, base, wanted, operations, codes=(0, 6)))
    assert not found, "\n".join(found)


def resume(crashes: Crashes, run, config_path, **words):
    """`diffunet train --resume`."""
    arguments = ["train", str(crashes.pictures), "--out", str(run), "--config", str(config_path), "--resume"]
    return crashes.ask("main", words=arguments, **words)


@pytest.fixture
def config_path(tmp_path):
    path = tmp_path / "config.toml"
    path.write_text(diffunet.Config.model_validate(config()).to_toml())
    return path


def complaint(reply):
    """The one line that a command ended with."""
    assert (reply.signal, reply.code) == (0, 6), reply
    lines = reply.output.strip().splitlines()
    assert [line.startswith("diffunet: ") for line in lines] == [False] * (len(lines) - 1) + [True], reply.output
    assert "Traceback" not in reply.output
    return lines[-1]


def test_a_limit_on_the_size_of_files(crashes, base, wanted, config_path):
    stage = fresh(crashes.place / "limited", base)
    # More than any file but the optimizer's.
    sizes = [path.stat().st_size for path in (stage / f"run/checkpoints/step-{START:08d}").iterdir()]
    said = complaint(resume(crashes, stage / "run", config_path, file_size_limit=max(sizes) - 1))
    assert NEED.search(said), said
    assert "File too large" in said
    assert newest(stage / "run") == START
    assert litter(stage / "run") == []
    assert differences(wanted, crashes.finish(stage)) is None


@pytest.mark.slow
@pytest.mark.parametrize("room", [0, 4, 32, 64, 100])  # KiB; a checkpoint and a model take about 116
def test_a_disk_that_is_really_full(crashes, base, wanted, config_path, tmp_path, room):
    if os.geteuid() != 0:
        pytest.skip("only root may mount a small disk")
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(disk)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"no small disk can be mounted here: {mounted.stderr.strip()}")
    try:
        stage = fresh(disk / "stage", base)
        usage = os.statvfs(disk)
        used = (usage.f_blocks - usage.f_bfree) * usage.f_frsize
        subprocess.run(["mount", "-o", f"remount,size={used + room * 1024}", str(disk)], check=True)
        said = complaint(resume(crashes, stage / "run", config_path))
        assert "No space left on device" in said
        assert newest(stage / "run") in (START, START + 2)
        assert litter(stage / "run") == []
        subprocess.run(["mount", "-o", "remount,size=16m", str(disk)], check=True)
        assert differences(wanted, crashes.finish(stage)) is None
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)
