"""The power fails: whatever of the unsynced data and names the disk lost, a run goes on from what it said was saved."""

from __future__ import annotations

import hashlib
import json
import random

import pytest
from helpers.crashes import disk
from helpers.crashes.harness import EVERY, THOROUGH, differences, fresh, litter, newest, own_cache, until


def status_step(tree):
    """The step that RUN/status.json says is saved."""
    content = tree.get("run/status.json")
    status = json.loads(content) if content else {"state": "failed"}
    return status["step"] if status["state"] in ("running", "stopped", "done") else 0


def states(operations, root, base):
    """(description, step promised, tree): each state that the disk may be in, once, with the highest promise."""
    device, chance, found, promised = disk.Disk(root, base), random.Random(0), {}, 0
    for number, operation in enumerate([*operations, None]):
        promised = max(promised, status_step(device.seen()))
        at = "the end" if operation is None else f"{number} {operation}"
        for what, tree in device.after_power_loss(chance):
            key = hashlib.sha256(repr(sorted(tree.items())).encode()).digest()
            if key not in found or promised > found[key][1]:
                found[key] = f"before {at}: {what}", promised, tree
        if operation is not None:
            device.apply(operation)
    return list(found.values())


@pytest.mark.parametrize("start", ["resumed", "started"])
def test_the_operations_seen_are_all_that_there_are(request, crashes, base, start):
    """Doing again what the log says gives the very bytes that are there."""
    operations, stage = request.getfixturevalue(start)
    device = disk.Disk(stage, base if start == "resumed" else None)
    for operation in operations:
        device.apply(operation)
    assert device.seen() == disk.read(stage)


@pytest.mark.parametrize("start", ["resumed", pytest.param("started", marks=pytest.mark.slow)])
@pytest.mark.parametrize("every", [509, pytest.param(THOROUGH, marks=pytest.mark.slow)])
@pytest.mark.long
def test_power_loss(request, crashes, base, wanted, start, every):
    operations, root = request.getfixturevalue(start)
    if start == "started":  # what comes later is no different from a resumed run
        base, operations = None, until(operations, 3 * EVERY)
    found = states(operations, root, base)
    chosen = set(range(0, len(found), every))
    problems = []
    for place, (what, promised, tree) in enumerate(found):
        stage = fresh(crashes.place / "power", None)
        disk.write(tree, stage)
        try:
            step = newest(stage / "run")
        except Exception as error:
            problems.append(f"{what}: {error}")
            continue
        if (step or 0) < promised:
            problems.append(f"{what}: step {promised} was said to be saved, the newest is {step}")
        elif place in chosen:
            # Lines of metrics.jsonl are not fsynced: some may be lost.
            trouble = differences(wanted, crashes.finish(stage, **own_cache(stage, base)), but="metrics")
            left = litter(stage / "run")
            problems += [f"{what}: {trouble or left}"] if trouble or left else []
    print(f"{start}: {len(operations)} operations, {len(found)} states, {len(chosen)} of them resumed")
    assert not problems, "\n".join(problems)
