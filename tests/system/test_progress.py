"""Progress: time left is told once it is known, by what was measured, in a terminal and without one."""

import io
import sys

import pytest
from rich import progress as bars

from diffunet.commands import progress
from diffunet.commands.progress import FEWEST, RECENT, SOONEST, Pace


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


def worked(pace, steps, total, seconds, first=1):
    """What `pace` says after each of some steps that take `seconds` each."""
    said = []
    for done in range(first, first + steps):
        pace.clock.now += seconds
        said.append(pace.left(done, total))
    return said


def test_what_comes_before_the_first_step_is_not_counted():
    pace = Pace(Clock())
    pace.clock.now += 3600  # images were read and the net was compiled
    assert worked(pace, 1 + FEWEST, 1000, 2.0) == [None] * FEWEST + [2.0 * (1000 - 1 - FEWEST)]


@pytest.mark.parametrize("seconds", [0.01, 0.5, 100.0])
def test_nothing_is_said_before_enough_updates_and_seconds(seconds):
    said = worked(Pace(Clock()), 1000, 2000, seconds)
    unknown = sum(left is None for left in said)
    assert unknown - 1 < max(FEWEST, SOONEST / seconds) + 1
    assert unknown >= FEWEST
    assert (unknown + 1) * seconds > SOONEST
    assert None not in said[unknown:]
    assert said[unknown:] == pytest.approx([seconds * (2000 - done) for done in range(unknown + 1, 1001)])


def test_a_resumed_run_counts_from_its_first_step():
    said = worked(Pace(Clock()), 10, 10_000, 2.0, first=9001)
    assert said[-1] == pytest.approx(2.0 * (10_000 - 9010))


def test_it_goes_by_the_recent_pace_in_bounded_memory():
    pace = Pace(Clock())
    worked(pace, 20_000, 10**6, 0.1)
    assert len(pace._points) < 110
    said = worked(pace, int(2 * RECENT), 10**6, 1.0, first=20_001)
    assert said[-1] == pytest.approx(1.0 * (10**6 - 20_000 - int(2 * RECENT)))


def test_one_slow_step_does_not_fool_slow_work():
    """Where each step takes longer than what counts as recent, it still goes by several."""
    pace = Pace(Clock())
    worked(pace, 10, 1000, 2 * RECENT)
    [left] = worked(pace, 1, 1000, 8 * RECENT, first=11)
    assert left < 5 * RECENT * (1000 - 11)


def test_another_part_of_the_work_is_measured_anew():
    pace = Pace(Clock())
    assert worked(pace, 10, 10, 5.0)[-1] == 0
    assert worked(pace, 4, 10, 1.0) == [None, None, None, pytest.approx(6.0)]  # as many units as before
    assert worked(pace, 4, 1000, 2.0, first=20) == [None, None, None, pytest.approx(2.0 * (1000 - 23))]


def test_updates_without_progress_are_no_estimate():
    """As the demo, whose units are seconds, has several in a second."""
    pace = Pace(Clock())
    for _ in range(100):
        pace.clock.now += 1
        assert pace.left(0, 10) is None


@pytest.fixture
def shown(monkeypatch):
    """Standard error of a kind, and what is written to it."""

    def stream(terminal):
        written = io.StringIO()
        written.isatty = lambda: terminal
        monkeypatch.setattr(sys, "stderr", written)
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setenv("COLUMNS", "120")
        return written

    return stream


@pytest.mark.parametrize("terminal", [True, False])
def test_time_left_is_shown_once_it_is_known(shown, monkeypatch, terminal):
    written, clock = shown(terminal), Clock()
    monkeypatch.setattr(progress, "EVERY", 0.0)
    update = bars.Progress.update  # it is drawn ten times a second: here at each update
    monkeypatch.setattr(bars.Progress, "update", lambda bar, task, **how: update(bar, task, refresh=True, **how))
    texts = []
    with progress.progress("training", clock=clock) as show:
        clock.now += 3600
        for done in range(1, 8):
            clock.now += 60
            show(done, 1000, "loss 0.5")
            texts.append(written.getvalue())
            written.seek(0)
            written.truncate()
    assert all(f"{done}" in text and "loss 0.5" in text for done, text in enumerate(texts, 1))
    assert ["left" in text for text in texts] == [False] * FEWEST + [True] * (7 - FEWEST)
    assert "16.6 h left" in texts[FEWEST + 1]
    assert "h left" not in texts[0]
    if not terminal:
        assert texts[FEWEST - 1] == "training: 3 of 1000, loss 0.5\n"
        assert texts[FEWEST] == "training: 4 of 1000, loss 0.5, 16.6 h left\n"
