"""The first part of scripts/gpu.py: the tests of tests/gpu, and what came of each, kept as they end.

python scripts/gpu_check.py --out check.json [arguments of pytest]
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import pytest

TESTS = Path(__file__).resolve().parent.parent / "tests" / "gpu"

ORDER = ("step", "training", "pictures", "commands", "compiled")
"""Of the files, by importance: time may end before they do."""

TINY = "finite"
"""What is in the names of the few tests that are enough to see that this works."""


class Kept:
    """A plugin of pytest that writes what has come of the tests to `path` after each.

    {"collected": how many, "passed": how many, "failed": {name: reason}, "skipped": {reason: how many}, "seconds":
    {name: of those that took more than a second}, "figures": {name: what tests recorded}}.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.found: dict[str, Any] = {
            "collected": 0, "passed": 0, "failed": {}, "skipped": {}, "seconds": {}, "figures": {},
        }  # fmt: skip

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Called by pytest once it knows the tests."""
        self.found["collected"] = len(session.items)
        self.write()

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Called by pytest after each file."""
        if report.failed:
            self.found["failed"][report.nodeid] = str(report.longrepr).strip().splitlines()[-1]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Called by pytest after each phase of each test."""
        if report.failed:
            self.found["failed"][report.nodeid] = why(report)
        elif report.skipped:
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
            reason = reason.removeprefix("Skipped: ")
            self.found["skipped"][reason] = self.found["skipped"].get(reason, 0) + 1
        elif report.when == "call":
            self.found["passed"] += 1
        if report.when == "call":
            if report.duration > 1:
                self.found["seconds"][report.nodeid] = round(report.duration, 1)
            if report.user_properties:
                self.found["figures"][report.nodeid] = dict(report.user_properties)
        self.write()

    def write(self) -> None:
        """Write what is known."""
        self.path.write_text(json.dumps(self.found, indent=1))


def why(report: pytest.TestReport) -> str:
    """The first line of what went wrong."""
    crash = getattr(report.longrepr, "reprcrash", None)
    return (crash.message if crash else str(report.longrepr)).partition("\n")[0]


def main() -> int:
    """Run them; pytest's exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the JSON file to write")
    parser.add_argument("--tiny", action="store_true", help="a few of them")
    options, rest = parser.parse_known_args()
    files = [str(TESTS / f"test_{name}.py") for name in ORDER]
    chosen = ["-k", TINY] if options.tiny else []
    quiet = ["-q", "--no-header", "-p", "no:cacheprovider"]
    return int(pytest.main([*quiet, *files, *chosen, *rest], plugins=[Kept(options.out)]))


if __name__ == "__main__":
    sys.exit(main())
