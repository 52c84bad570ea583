"""One command for speed and memory: how fast is diffunet, beside others, on this machine?

    python scripts/benchmark.py --out speed                       # all of it: about an hour on a CPU
    python scripts/benchmark.py step forward --seconds 60 --out speed
    python scripts/benchmark.py --tiny --device cpu --out speed   # in minutes: does it work?
    python scripts/benchmark.py quality --data photos --minutes 30 --out quality   # whose pictures are better?

The sub-benchmarks are step, forward, busy, sample, overheads, memory, processes, first-step, start and growth; each is
a module of scripts/benchmarks that says what it measures and how. Each runs in a process of its own, all with the same
number of threads and GOMP_SPINCOUNT=1000, as the commands of diffunet have it. Ways that are compared are taken in
turns (A B A B ...). Others are their own packages (`pip install -e .[bench]`); where one is missing, its rows say so.

`quality` is run by itself, and only when it is named. It trains diffunet and others for the same MINUTES each, and has
options of its own; its files are called quality, and there are sheets of samples beside them.

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
from benchmarks import NAMES, QUALITY, report
from gpu import end

SCRIPTS = Path(__file__).resolve().parent

Found = dict[str, Any]

SPIN_COUNT = "1000"
"""Of GNU's OpenMP, as `diffunet.variables` sets it."""

QUIET = 0.1
"""Cores that may be busy with other things on a quiet machine."""

LONGEST = 3 * 3600.0
"""Seconds after which a sub-benchmark is taken to hang."""

TRAININGS = 20
"""The time of `quality` for each seed, as so many times its minutes: four trainings, and sampling by six ways."""


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
    longest = LONGEST
    if name == QUALITY:
        wish = {one: getattr(options, one) for one in ("minutes", "image_size", "samples", "seeds", "limit", "ways")}
        given["quality"] = wish | {"data": options.data and str(options.data), "out": str(options.out)}
        longest += options.seeds * 60 * options.minutes * TRAININGS
    command = [sys.executable, "-m", "benchmarks", name, str(path), json.dumps(given | {"work": str(folder)})]
    before = busy()
    process = subprocess.Popen(command, env=variables, start_new_session=True)
    try:
        ended = f"exit code {process.wait(longest)}"
    except subprocess.TimeoutExpired:
        ended = f"killed after {longest:.0f} s"
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
    quality = parser.add_argument_group("quality")
    own = (
        quality.add_argument(
            "--data", type=Path, help="a folder of images, 150 or more; scikit-learn's digits if not given"
        ),
        quality.add_argument("--minutes", type=positive, help="of each training (10; with --tiny 0.1)"),
        quality.add_argument("--image-size", type=int, help="in pixels, a multiple of 8 (32; of the digits 16)"),
        quality.add_argument("--samples", type=int, help="of each way (500; with --tiny 40)"),
        quality.add_argument("--seeds", type=int, help="trainings of each (1)"),
        quality.add_argument(
            "--ways", nargs="+", metavar="WAY", help="only ways whose names begin so, as in the table"
        ),
        quality.add_argument("--limit", help=argparse.SUPPRESS),
    )
    options = parser.parse_args(given)
    if unknown := set(options.names) - {*NAMES, QUALITY}:
        parser.error(f"there is no {', '.join(sorted(unknown))}; there are {', '.join(NAMES)} and {QUALITY}")
    options.stem = QUALITY if QUALITY in options.names else "speed"
    if QUALITY in options.names:
        if set(options.names) != {QUALITY}:
            parser.error(f"{QUALITY} is run by itself: it takes all cores for as long as it is told")
        usual = {"minutes": 0.1 if options.tiny else 10.0, "samples": 40 if options.tiny else 500, "seeds": 1}
        for name, value in (usual | {"limit": "--minutes {minutes}"}).items():
            if getattr(options, name) is None:
                setattr(options, name, value)
        if options.samples < 20 or options.seeds < 1:
            parser.error("--samples is at least 20, --seeds at least 1")
        if options.image_size is not None and (options.image_size < 8 or options.image_size % 8):
            parser.error(f"--image-size is a multiple of 8, not {options.image_size}")
        options.data = options.data and options.data.resolve()
    elif given_ones := [one.option_strings[0] for one in own if getattr(options, one.dest) is not None]:
        parser.error(f"{', '.join(given_ones)}: only for {QUALITY}")
    options.names = [name for name in (*NAMES, QUALITY) if name in options.names] or list(NAMES)
    options.out = options.out.resolve()
    if (options.out / f"{options.stem}.json").exists():
        parser.error(f"--out {options.out} has a {options.stem}.json; name another folder")
    return options


def positive(text: str) -> float:
    """Return a number above zero."""
    value = float(text)
    if not 0 < value < 1e6:
        raise ValueError(f"not above 0: {text}")
    return value


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
            (options.out / f"{options.stem}.json").write_text(json.dumps(found, indent=1))
            (options.out / f"{options.stem}.md").write_text("\n".join(report.lines(found)) + "\n")
    print("\n".join(report.lines(found)))
    if importlib.util.find_spec("matplotlib") is None:
        print(f"no {options.stem}.png: matplotlib is not installed (pip install -e .[bench])")
    else:
        report.draw(found, options.out / f"{options.stem}.png")
    return 1 if any(list(report.problems(each)) for each in found["parts"].values()) else 0


if __name__ == "__main__":
    sys.exit(main())
