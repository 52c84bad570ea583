"""Set up and run every check: ruff, mypy, the import contract, pytest.

    python3 scripts/test.py --fast   for the inner loop, under a minute on two cores: no mypy, and tests of a second
    python3 scripts/test.py          the quick suite, some minutes: before each commit
    python3 scripts/test.py --all    also long and slow tests and the page in a browser, most of an hour: for releases

With the variable CI the quick suite has the long tests and the page, too.

`--fast` is an option of pytest in this repository (tests/conftest.py says what it leaves out), so `pytest --fast` is
the same without the other checks; so is `--times`, which ends with a table of the seconds that each folder took.
Further arguments go to pytest: `python3 scripts/test.py tests/nn -k odd`. Tests run
in as many processes as there are cores, at most four (some take a gigabyte), with one thread each: `-n 0` runs them in
one.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time

import environment


def main(arguments: list[str]) -> int:
    python = str(environment.python("test"))
    everything, fast = "--all" in arguments, "--fast" in arguments
    rest = [argument for argument in arguments if argument != "--all"]
    # The page in a browser takes minutes, as the long tests do together: CI, where nobody waits, runs them each time.
    quick = "not slow" if os.environ.get("CI") else "not slow and not long and not page"
    chosen = [] if everything else ["-m", quick]
    # By stealing work, a process takes tests that stand together, which share what was made for one of them.
    workers = ["-n", "auto", "--maxprocesses", "4", "--dist", "worksteal"]
    slowest = ["--durations", "5", "--durations-min", "2"] if fast else []
    checks = {
        "ruff check": [python, "-m", "ruff", "check", "."],
        "ruff format": [python, "-m", "ruff", "format", "--check", "."],
        "mypy": [python, "-m", "mypy"],
        "import contract": [python, "-c", "from importlinter.cli import lint_imports_command as c; c()", "--no-cache"],
        "pytest": [python, "-m", "pytest", *chosen, *workers, *slowest, *rest],
    }
    if fast:
        del checks["mypy"]
    failed = []
    for name, command in checks.items():
        print(f"== {name}", flush=True)
        start = time.monotonic()
        # Threads of several processes that spin on the same cores slow each other many times.
        threads = {"OMP_NUM_THREADS": "1", "GOMP_SPINCOUNT": "1000"}
        code = subprocess.call(command, cwd=environment.ROOT, env={**threads, **os.environ})
        print(f"== {name}: {'ok' if code == 0 else 'FAILED'} in {time.monotonic() - start:.0f} s\n", flush=True)
        if code != 0:
            failed.append(name)
    print(f"failed: {', '.join(failed)}" if failed else "all checks passed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
