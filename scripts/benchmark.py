"""One command for speed and memory: how fast is diffunet, beside others, on this machine?

    python scripts/benchmark.py --out speed                       # all of it: about an hour on a CPU
    python scripts/benchmark.py step forward --seconds 60 --out speed
    python scripts/benchmark.py --tiny --device cpu --out speed   # in minutes: does it work?

The sub-benchmarks are step, forward, busy, sample, overheads, memory, processes, first-step, start and growth; each is
a module of scripts/benchmarks that says what it measures and how. Each runs in a process of its own, all with the same
number of threads and GOMP_SPINCOUNT=1000, as the commands of diffunet have it. Ways that are compared are taken in
turns (A B A B ...). Others are their own packages (`pip install -e .[bench]`); where one is missing, its rows say so.

In OUT are then speed.json (the machine, versions, the command, how busy the machine was before each part, all rows),
speed.md (a table) and, where matplotlib is installed, speed.png. OUT/NAME.jsonl are the rows of a part while it runs.
The exit code is 0 only where every measure that was asked for has all its rows, those of missing packages excepted. A
way that does not compute the same as the others has no figures and is a failure.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
from benchmarks import NAMES, report
from gpu import end

SCRIPTS = Path(__file__).resolve().parent

Found = dict[str, Any]

SPIN_COUNT = "1000"
"""Of GNU's OpenMP, as `diffunet.variables` sets it."""

QUIET = 0.1
"""Cores that may be busy with other things on a quiet machine."""

LONGEST = 3 * 3600.0
"""Seconds after which a sub-benchmark is taken to hang."""


def environment(work: Path) -> dict[str, str]:
    """Return the environment of all processes: this checkout, equal threads and spinning, a cache that goes away."""
    path = [SCRIPTS, SCRIPTS.parent, os.environ.get("PYTHONPATH")]
    variables = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    return variables | {
        "PYTHONPATH": os.pathsep.join(str(each) for each in path if each), "PYTHONUNBUFFERED": "1",
        "GOMP_SPINCOUNT": SPIN_COUNT, "KMP_BLOCKTIME": "1", "DIFFUNET_CACHE": str(work / "cache"),
        "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false",
    }  # fmt: skip


def busy() -> float:
    """Return the number of cores that are busy now, watched for a second."""
    return round(sum(psutil.cpu_percent(1.0, percpu=True)) / 100, 2)


def machine(device: str | None, variables: dict[str, str]) -> Found:
    """Return what everything runs on, or the "problem" with it."""
    command = [sys.executable, "-m", "benchmarks.machine", device or ""]
    ended = subprocess.run(command, env=variables, capture_output=True, text=True)
    if ended.returncode != 0:
        return {"problem": (ended.stderr.strip().splitlines() or ["it said nothing"])[-1]}
    found: Found = json.loads(ended.stdout.splitlines()[-1])["answer"]
    return found


def part(name: str, options: argparse.Namespace, work: Path, variables: dict[str, str]) -> Found:
    """Run a sub-benchmark, and return its "about", "planned" and "rows", how it "ended", and "busy_before"."""
    path, folder = options.out / f"{name}.jsonl", work / name
    folder.mkdir()
    given = {"device": options.device, "tiny": options.tiny, "seconds": options.seconds, "files": options.files}
    command = [sys.executable, "-m", "benchmarks", name, str(path), json.dumps(given | {"work": str(folder)})]
    before = busy()
    process = subprocess.Popen(command, env=variables, start_new_session=True)
    try:
        ended = f"exit code {process.wait(LONGEST)}"
    except subprocess.TimeoutExpired:
        ended = f"killed after {LONGEST:.0f} s"
    finally:
        end(process)
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
    path.unlink(missing_ok=True)
    first = lines[0] if lines else {"about": "", "planned": []}
    return {**first, "rows": lines[1:], "ended": ended, "busy_before": before}


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(NAMES)}; all by default")
    parser.add_argument("--out", type=Path, default=Path("speed"), help="a folder without a speed.json (%(default)s)")
    parser.add_argument("--tiny", action="store_true", help="tiny nets, few files, two rounds: to see that it works")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, mps; the best there is by default")
    parser.add_argument("--seconds", type=float, default=180.0, help="for the rounds of each NAME (%(default)g)")
    parser.add_argument("--files", type=int, default=100_000, help="growth: of the largest folder (%(default)s)")
    options = parser.parse_args(given)
    if unknown := set(options.names) - set(NAMES):
        parser.error(f"there is no {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}")
    options.names = [name for name in NAMES if name in options.names] or list(NAMES)
    options.out = options.out.resolve()
    if (options.out / "speed.json").exists():
        parser.error(f"--out {options.out} has a speed.json; name another folder")
    return options


def main() -> int:
    """Run what was asked for, one after the other, and keep what there is by now."""
    options = arguments()
    options.out.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that children are ended, too
    found: Found = {
        "command": shlex.join(["python", "scripts/benchmark.py", *sys.argv[1:]]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"), "spin_count": int(SPIN_COUNT), "quiet": QUIET,
        "parts": {},
    }  # fmt: skip
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        work = Path(folder)
        variables = environment(work)
        found["machine"] = machine(options.device, variables)
        print(json.dumps(found["machine"]), flush=True)
        if "problem" in found["machine"]:
            return 1
        for name in options.names:
            print(f"## {name}", flush=True)
            found["parts"][name] = part(name, options, work, variables)
            if (before := found["parts"][name]["busy_before"]) > QUIET:
                print(f"NOT QUIET: {before} cores were busy with other things before {name}", flush=True)
            (options.out / "speed.json").write_text(json.dumps(found, indent=1))
            (options.out / "speed.md").write_text("\n".join(report.lines(found)) + "\n")
    print("\n".join(report.lines(found)))
    if importlib.util.find_spec("matplotlib") is None:
        print("no speed.png: matplotlib is not installed (pip install -e .[bench])")
    else:
        report.draw(found, options.out / "speed.png")
    return 1 if any(list(report.problems(each)) for each in found["parts"].values()) else 0


if __name__ == "__main__":
    sys.exit(main())
