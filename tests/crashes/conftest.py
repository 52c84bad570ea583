"""A run to be crashed, and what it should come to."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
from helpers.crashes.harness import START, Crashes, fresh


@pytest.fixture(scope="session")
def crashes(folder):
    """The process that forks runs."""
    memory = Path("/dev/shm")  # a third less time than on a disk, and what is lost with power is worked out anyway
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as place:
        found = Crashes(Path(place).resolve(), folder)
        yield found
        found.close()


@pytest.fixture(scope="session")
def base(crashes):
    """The stage of a run that was stopped at step START."""
    stage = fresh(crashes.place / "base", None)
    reply = crashes.train(stage, resume=False, stop=START)
    assert reply.code == 75, reply
    return stage


@pytest.fixture(scope="session")
def wanted(crashes, base):
    """What the uninterrupted run comes to."""
    stage = fresh(crashes.place / "whole", None)
    reply = crashes.finish(stage, resume=False)
    assert reply.code == 0, reply
    return reply.outcome


@pytest.fixture(scope="session")
def resumed(crashes, base):
    """(operations, stage) of the resumed run, to its end."""
    return crashes.watched(base)


@pytest.fixture(scope="session")
def started(crashes):
    """(operations, stage) of a run from nothing, with the cache of its images, to its end."""
    return crashes.watched(None)
