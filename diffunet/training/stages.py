"""The stages of a run whose end is open: by the clock it goes to full size, and later its rate begins to fall.

Both are decided for all processes, and are in RUN/config.toml from then on, so that they are repeated exactly.
"""

import logging

from diffunet.training import processes
from diffunet.training.learner import Learner
from diffunet.training.run import Run

log = logging.getLogger(__name__)

LATE = 10**12
"""More steps than any run has."""


def grow(run: Run, learner: Learner, done: int) -> None:
    """Let the run go on at full size from now, `done` steps, on."""
    _change(run, learner, half_size_until=done)
    if run.is_main:
        size = run.config.data.image_size
        log.info("from step %d on it trains at full size, %dx%d", done, size, size)


def cool(run: Run, learner: Learner, done: int) -> None:
    """Let the learning rate fall from now, `done` steps, on, and fix the number of steps for all processes."""
    budget = run.budget
    if not budget.cooldown:  # the minutes are over, and the rate does not fall
        _change(run, learner, steps=done + 1, cooldown_from=done + 1)
        return
    if budget.minutes is not None and budget.elapsed >= 60 * budget.minutes:
        log.warning(
            "the %g minutes are over before the learning rate has fallen: reading images and getting ready count, "
            "too; give the run more minutes",
            budget.minutes,
        )
    steps = processes.smallest(budget.steps(done) if run.is_main else LATE, run.processes)
    _change(run, learner, steps=steps, cooldown_from=done)
    if run.is_main:
        log.info("the learning rate falls from step %d on, and the run ends after step %d", done, steps)


def _change(run: Run, learner: Learner, **values: int) -> None:
    """Give the config of a run other values in its section train, and write it."""
    run.config = run.status.config = learner.config = run.config.changed("train", **values)
    if run.is_main:
        run.write_config()
