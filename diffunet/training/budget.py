"""The minutes that a run may take: when it goes to full size, when its cool-down begins, after how many steps it ends.

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
        half, slower: the share of the minutes in which it may be at half of its image size, and how many times as long
            a step will take at full size, which is known better once there are such steps.
    """

    minutes: float | None
    cooldown: float
    before: float
    began: float
    half: float = 0.0
    slower: float = 4.0
    _first: tuple[int, float] | None = field(default=None, init=False)
    _last: float = field(default=0.0, init=False)
    _at_half: bool = field(default=False, init=False)

    @property
    def elapsed(self) -> float:
        """The seconds that the run has taken: those of its earlier parts, and those since this part began."""
        return self.before + now() - self.began

    def note(self, done: int, at_half: bool = False) -> None:
        """Take note that `done` steps of the run are done, after each step of this part, the last at that size."""
        self._last = now()
        if self._first is None or at_half != self._at_half:  # steps of another size say nothing of the pace
            self._first, self._at_half = (done, self._last), at_half

    def per_step(self, done: int) -> float | None:
        """Return the seconds of a step of the size of now, with all between steps; None while too few are done."""
        if self._first is None or done - self._first[0] < FEWEST:
            return None
        return (self._last - self._first[1]) / (done - self._first[0])

    def grows(self) -> bool:
        """Return whether it is time to go on at full size, at the latest that for the cool-down to begin."""
        if self.minutes is None or not self._at_half:
            return False
        return self.elapsed >= 60 * self.minutes * min(self.half, 1 - self.cooldown)

    def cools(self, done: int) -> bool:
        """Return whether it is time for the cool-down to begin after `done` steps; it does so at full size."""
        if self.minutes is None or self._at_half or self.per_step(done) is None:
            return False
        return self.elapsed >= 60 * self.minutes * (1 - self.cooldown)

    def steps(self, done: int) -> int:
        """Return the number of steps after which the minutes are over, at the pace up to now, but one more at least."""
        assert self.minutes is not None, "only such a run has an open end"
        each, left = self.per_step(done), 60 * self.minutes - self.elapsed
        if not each:
            return done + 1
        first = min(max(0.0, 60 * self.minutes * self.half - self.elapsed), left) if self._at_half else 0.0
        return done + max(1, round((first + (left - first) / (self.slower if self._at_half else 1.0)) / each))
