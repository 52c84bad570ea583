"""What is computed here beside what others compute from the same weights and noise: each pair, its largest difference.

    python3 scripts/parity.py                samplers, nets both ways, ONNX; two minutes
    python3 scripts/parity.py -k adm         only pairs whose test's name has "adm"

It does its own set-up, runs the tests of tests/parity and tests/interop, and prints what they compared and how far it
was allowed to differ; it fails where they do. What must be installed for a pair and is not is listed at the end.
"""

from __future__ import annotations

import os
import subprocess
import sys

import environment

CHILD = "DIFFUNET_PARITY"
"""Set in the process that has every package."""


def main(arguments: list[str]) -> int:
    """Run the tests and print their pairs; 1 where one differs too much."""
    if CHILD not in os.environ:
        command = [str(environment.python("test")), __file__, *arguments]
        return subprocess.call(command, cwd=environment.ROOT, env={"OMP_NUM_THREADS": "2", **os.environ, CHILD: "1"})
    import pytest

    pairs = Pairs()
    quiet = ["-q", "--no-header", "--no-summary", "--disable-warnings", "-m", "not slow"]
    pytest.main([*quiet, "tests/parity", "tests/interop", *arguments], plugins=[pairs])
    return pairs.show()


class Pairs:
    """What the fixture `parity` of the tests was told: (pair, difference, limit)."""

    def __init__(self) -> None:
        self.worst: dict[str, tuple[float, float]] = {}
        self.failed: dict[str, str] = {}
        self.skipped: dict[str, int] = {}

    def pytest_runtest_logreport(self, report) -> None:  # type: ignore[no-untyped-def]
        """Called by pytest after each phase of each test."""
        if report.failed:
            self.failed[report.nodeid] = _why(report)
        if report.skipped:
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
            self.skipped[reason] = self.skipped.get(reason, 0) + 1
        if report.when == "call":
            for name, value in report.user_properties:
                if name == "parity":
                    pair, difference, limit = value
                    if difference >= self.worst.get(pair, (-1.0, limit))[0]:
                        self.worst[pair] = (difference, limit)

    def pytest_collectreport(self, report) -> None:  # type: ignore[no-untyped-def]
        """Called by pytest after each file."""
        if report.failed:
            self.failed[report.nodeid] = _why(report)
        if report.skipped:
            self.skipped[str(report.longrepr[2])] = 1

    def show(self) -> int:
        """Print; the exit code."""
        width = max(map(len, self.worst), default=4)
        print(f"{'pair':<{width}}   largest difference   allowed")
        for pair, (difference, limit) in sorted(self.worst.items()):
            print(f"{pair:<{width}} {difference:20.1e} {limit:9.0e}{'' if difference < limit else '   TOO LARGE'}")
        for reason, count in self.skipped.items():
            print(f"not compared ({count} tests): {reason.removeprefix('Skipped: ')}")
        for name, why in self.failed.items():
            print(f"FAILED {name}: {why}")
        print(f"{len(self.worst)} pairs, {len(self.failed)} failures")
        return 1 if self.failed or not self.worst else 0


def _why(report) -> str:  # type: ignore[no-untyped-def]
    """The first line of what went wrong."""
    crash = getattr(report.longrepr, "reprcrash", None)
    return (crash.message if crash else str(report.longrepr)).partition("\n")[0]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
