"""The minutes that a run may take: when its cool-down begins, and after how many steps it ends.

Until then the end of the run is open, and nothing that it computes depends on where that will be. From then on the
number of steps is fixed and in RUN/config.toml, so that what remains is repeated exactly.
"""

from dataclasses import dataclass, field
from time import monotonic

FEWEST = 3
"""The steps after which the time of a step is known; those before them have costs that come once."""


def now() -> float:
    """Return the seconds of a clock that does not move when the time of day is set."""
    return monotonic()


@dataclass
class Budget:
    """The time of a run, of all its parts between stops together.

    Args:
        minutes, cooldown: the minutes that the run may take, None where they are not limited, and the share of them
            that the cool-down takes.
        before, began: the seconds that its earlier parts took, and when this part began (`now`).
    """

    minutes: float | None
    cooldown: float
    before: float
    began: float
    _first: tuple[int, float] | None = field(default=None, init=False)

    @property
    def elapsed(self) -> float:
        """The seconds that the run has taken: those of its earlier parts, and those since this part began."""
        return self.before + now() - self.began

    def note(self, done: int) -> None:
        """Take note that `done` steps of the run are done, after each step of this part."""
        if self._first is None:
            self._first = done, now()

    def per_step(self, done: int) -> float | None:
        """Return the seconds of a step with all that comes between steps; None as long as too few are done."""
        if self._first is None or done - self._first[0] < FEWEST:
            return None
        return (now() - self._first[1]) / (done - self._first[0])

    def cools(self, done: int) -> bool:
        """Return whether it is time for the cool-down to begin after `done` steps."""
        if self.minutes is None or self.per_step(done) is None:
            return False
        return self.elapsed >= 60 * self.minutes * (1 - self.cooldown)

    def steps(self, done: int) -> int:
        """Return the number of steps after which the minutes are over, at the pace up to now, but one more at least."""
        assert self.minutes is not None, "only such a run has an open end"
        each = self.per_step(done)
        return done + 1 if not each else done + max(1, round((60 * self.minutes - self.elapsed) / each))
