"""One command for a machine that has a GPU, and is at hand for minutes: does it run, how fast is it, what does it make?

    python3 scripts/gpu.py --data noto-emoji-128.tar.gz --out gpu
    python3 scripts/gpu.py --parts speed --site packages --out gpu

Nothing has to be installed but torch and what belongs to it: the checkout is put on the path, and before it `--site`, a
folder that the other packages were unpacked into (pip install --target). The parts, each in a process of its own with
its own time, so that none needs another to succeed:

- check: the tests of tests/gpu;
- speed: images a second in training and forward, one way and another (scripts/gpu_speed.py says which);
- run: train on `--data`, sample, fill in, judge (scripts/gpu_run.py says how).

In OUT are then gpu.json, with the card, the versions, the command and what came of each part; pictures, metrics, the
config and every word that was said, as gpu.tar.gz; and of run the model, with its weights in bf16. The exit code is 0
only where every part that was asked for did what it should. `--device cpu --tiny` shows in minutes, anywhere, that the
command itself works.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

SCRIPTS = Path(__file__).resolve().parent
PARTS = ("check", "speed", "run")

CHECK_AND_SPEED, CHECK = 180.0, 110.0
"""Seconds of the first two parts together, and of the first where the second is to follow."""

GRACE = 8.0
"""Seconds that a part has beyond its time to write what it has found."""

FILES, FILE_BYTES, ALL_BYTES = 8, 16 * 10**6, 60 * 10**6
"""What OUT may hold at most: fewer bytes than the second in a file, no more than the third in all."""

MACHINE = """
import json, platform, sys, torch
from diffunet import __version__, compute
how = compute.choose(sys.argv[1] or None)
print(json.dumps({
    "card": compute.describe(how.device), "device": how.device.type, "precision": f"{how.precision} ({how.why})",
    "torch": torch.__version__, "cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version(),
    "python": platform.python_version(), "diffunet": __version__,
}))
"""

Found = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """What all parts are told: the options, the folder `work` for what is not brought back, the environment."""

    options: argparse.Namespace
    work: Path
    variables: dict[str, str]

    def part(self, name: str, seconds: float) -> Found:
        """Do a part within its time: what it has found, "problems" of it, and how it "ended"."""
        folder = self.work / name
        folder.mkdir()
        options = self.options
        words: list[object] = [SCRIPTS / f"gpu_{name}.py"]
        if name == "run":
            words += [options.data, "--out", folder, f"--train={options.train}"]
        else:
            words += ["--out", folder / f"{name}.json"]
        words += [] if name == "check" else ["--seconds", max(1.0, seconds)]
        words += ["--device", options.device] if options.device and name != "check" else []
        words += ["--basetemp", folder / "tests"] if name == "check" else []
        words += ["--tiny"] if options.tiny else []
        words += ["--recipe"] if options.recipe and name == "run" else []
        print(f"{name}: at most {seconds:.0f} s", flush=True)
        ended = self.child([sys.executable, *map(str, words)], seconds + GRACE, folder / f"{name}.said.txt")
        kept = folder / f"{name}.json"
        try:
            found: Found = json.loads(kept.read_text())
        except (OSError, ValueError):
            found = {}
        found["ended"] = ended
        found["problems"] = list(problems(name, found))
        return found

    def child(self, command: list[str], seconds: float, said: Path) -> str:
        """Run a command, killed with all of its children when its time is over; how it ended."""
        began = time.monotonic()
        with said.open("w") as log:
            process = subprocess.Popen(
                command, cwd=SCRIPTS.parent, env=self.variables, stdout=log, stderr=subprocess.STDOUT,
                start_new_session=True,
            )  # fmt: skip
            try:
                how = f"exit code {process.wait(seconds)}"
            except subprocess.TimeoutExpired:
                how = f"killed after {seconds:.0f} s"
            finally:
                end(process)
        return f"{how}, {time.monotonic() - began:.1f} s"


def end(process: subprocess.Popen[bytes]) -> None:
    """Kill a process that leads a session of its own, and what it has begun."""
    try:
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
    except (ProcessLookupError, PermissionError):  # all of it has ended
        pass
    process.wait()


# What came of it


def problems(part: str, found: Found) -> Iterator[str]:
    """Why a part did not do what it should; nothing where it did."""
    if part == "check":
        failed, passed = found.get("failed", {}), found.get("passed", 0)
        yield from (f"{name}: {why}" for name, why in failed.items())
        if not passed:
            yield "no test passed"
        missing = found.get("collected", 0) - passed - len(failed) - sum(found.get("skipped", {}).values())
        if missing > 0:
            yield f"{missing} tests were not reached"
    elif part == "speed":
        rows = found.get("rows", [])
        yield from (f"{words(row)}: {row['failed']}" for row in rows if "failed" in row)
        if not any("images_per_second" in row for row in rows):
            yield "nothing was measured"
    else:
        if "failed" in found:
            yield found["failed"]
        missing = found.get("missing", ["everything"])
        if missing:
            yield f"there is no {', '.join(missing)}"


def words(row: Found, what: bool = True) -> str:
    """What a row of speed is of, without whether it is of training or forward unless `what`."""
    layout = "channels last" if row["channels_last"] else "NCHW"
    named = f"{row['net']} | {row['by']} | {row['precision']} | {layout} | "
    return named + ("compiled" if row["compiled"] else "eager") + (f" | {row['what']}" if what else "")


def table(found: Found) -> list[str]:
    """What came of everything, in lines of Markdown."""
    lines = [" | ".join(f"{name} {value}" for name, value in found.get("machine", {}).items()), ""]
    for part, what in found["parts"].items():
        lines += [f"## {part}: {'as it should' if not what['problems'] else 'NOT as it should'} ({what['ended']})", ""]
        lines += {"check": check_lines, "speed": speed_lines, "run": run_lines}[part](what)
        lines += [f"- PROBLEM: {problem}" for problem in what["problems"]] + [""]
    return lines


def check_lines(found: Found) -> list[str]:
    """Of check."""
    lines = [f"- {found.get('passed', 0)} passed of {found.get('collected', 0)}, {len(found.get('failed', {}))} failed"]
    lines += [f"- {count} skipped: {reason}" for reason, count in found.get("skipped", {}).items()]
    return lines + [f"- {name}: {each}" for each in found.get("figures", {}).values() for name, each in each.items()]


def speed_lines(found: Found) -> list[str]:
    """Of speed: a line for each net and way, with training and forward side by side."""
    rows: dict[str, dict[str, Found]] = {}
    for row in found.get("rows", []):
        rows.setdefault(words(row, what=False), {})[row["what"]] = row
    lines = [
        "| net | by | precision | layout | mode | batch | training, images/s | forward, images/s | first | memory | |",
        "|---" * 11 + "|",
    ]
    for name, pair in rows.items():
        speeds, notes = [], []
        for what in ("training", "forward"):
            row = pair.get(what, {})
            speeds.append(f"{row['images_per_second']:,.0f}" if "images_per_second" in row else "")
            notes += [f"{what}: {row[kind]}" for kind in ("failed", "missing") if kind in row]
        some = pair.get("training") or pair["forward"]
        if "difference" in some:
            notes.append(f"answers differ by {some['difference']:.0e}")
        first, memory = (f"{some[key]:.1f} {unit}" if key in some else "" for key, unit in UNITS.items())
        lines.append(f"| {name} | {some['batch']} | {' | '.join(speeds)} | {first} | {memory} | {'; '.join(notes)} |")
    done = {words(row) for row in found.get("rows", [])}
    late = [words(each).replace(" | ", ", ") for each in found.get("planned", []) if words(each) not in done]
    return lines + ([f"- not reached in time, {len(late)}: {'; '.join(late)}"] if late else [])


UNITS = {"first_seconds": "s", "gibibytes": "GiB"}


def run_lines(found: Found) -> list[str]:
    """Of run."""
    facts = ("command", "data", "image_size", "parameters", "step", "images_per_second", "loss", "validation_loss")
    lines = [f"- {name}: {found[name]}" for name in facts if name in found]
    lines += [f"- {name}: {how}" for name, how in found.get("commands", {}).items()]
    return lines + [f"- {line}" for line in found.get("evaluate", [])]


def bring(found: Found, work: Path, out: Path) -> None:
    """Write what there is by now to OUT: gpu.json, everything small in one archive, the model."""
    (out / "gpu.json").write_text(json.dumps(found, indent=1))
    with tarfile.open(out / "gpu.tar.gz", "w:gz") as archive:
        for path in sorted(work.rglob("*")):
            inside = path.relative_to(work)
            if path.is_file() and not set(inside.parts[:2]) & LEFT:
                archive.add(path, str(inside))
    if (work / "run" / "model").is_dir():
        shutil.copytree(work / "run" / "model", out / "model", dirs_exist_ok=True, ignore=too_large)


def too_large(folder: str, names: list[str]) -> list[str]:
    """Those of the files that are too large to be brought back."""
    return [name for name in names if (Path(folder) / name).stat().st_size >= FILE_BYTES]


LEFT = {"run-folder", "cache", "images", "model", "tests"}
"""Folders of a part that are too large for the archive, or come otherwise."""


def too_much(out: Path) -> list[str]:
    """What in OUT is beyond what may be brought back."""
    sizes = {path.relative_to(out).as_posix(): path.stat().st_size for path in out.rglob("*") if path.is_file()}
    found = [f"{name} has {size / 1e6:.1f} MB" for name, size in sizes.items() if size >= FILE_BYTES]
    if len(sizes) > FILES:
        found.append(f"{len(sizes)} files, not {FILES}")
    if sum(sizes.values()) > ALL_BYTES:
        found.append(f"{sum(sizes.values()) / 1e6:.1f} MB in all")
    return found


def environment(options: argparse.Namespace, work: Path) -> dict[str, str]:
    """Of the children: the packages of --site, then this checkout, then what there is; a cache that goes away."""
    path = [options.site, SCRIPTS.parent, os.environ.get("PYTHONPATH")]
    variables = os.environ | {
        "PYTHONPATH": os.pathsep.join(str(each) for each in path if each), "PYTHONUNBUFFERED": "1",
        "DIFFUNET_CACHE": str(work / "cache"),
    }  # fmt: skip
    if options.device:
        variables["DIFFUNET_TEST_DEVICE"] = options.device
    if options.device == "cpu":  # scripts that have no --device take the best there is
        variables["CUDA_VISIBLE_DEVICES"] = ""
    return variables


def machine(options: argparse.Namespace, variables: dict[str, str]) -> Found:
    """What everything is computed on and with; or the "problem" with it."""
    command = [sys.executable, "-c", MACHINE, options.device or ""]
    try:
        ended = subprocess.run(command, env=variables, cwd=SCRIPTS.parent, capture_output=True, text=True, timeout=120)
        found: Found = json.loads(ended.stdout.splitlines()[-1]) if ended.returncode == 0 else {}
    except (subprocess.TimeoutExpired, ValueError, IndexError) as error:
        return {"problem": f"{type(error).__name__}: {error}"}
    return found or {"problem": ended.stderr.strip().rpartition("\n")[2]}


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="a folder that is empty or not there")
    parser.add_argument("--parts", default=",".join(PARTS), help="those to do (%(default)s)")
    parser.add_argument("--data", type=Path, help="of run: a folder of images, or a .tar.gz of one")
    parser.add_argument(
        "--minutes", type=float, default=4.0,
        help=f"of run, all of it (%(default)g); check and speed have {CHECK_AND_SPEED / 60:g} together beside",
    )  # fmt: skip
    parser.add_argument("--site", type=Path, help="a folder of packages, put on the path before all others")
    parser.add_argument("--train", default="", help='of run: more words for diffunet train, such as "--batch-size 256"')
    parser.add_argument(
        "--recipe", action="store_true",
        help="of run: the net that the minutes ask for, in place of one of at most 7 million parameters; its weights "
        "are brought back only where they are small",
    )  # fmt: skip
    parser.add_argument("--device", help="cuda, cpu; the best there is by default, but check wants cuda unless told")
    parser.add_argument(
        "--tiny", action="store_true", help="tiny nets, few tests, one run: to see that the command works"
    )
    options = parser.parse_args(given)
    options.parts = options.parts.split(",")
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"there is no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    if "run" in options.parts and options.data is None:
        parser.error("run needs --data, a folder of images or an archive of one")
    for name in ("data", "site", "out"):
        if (path := getattr(options, name)) is not None:
            setattr(options, name, path.resolve())
            if name != "out" and not path.exists():
                parser.error(f"--{name} {path} is not there")
    if options.out.exists() and (not options.out.is_dir() or any(options.out.iterdir())):
        parser.error(f"--out {options.out} exists; name another folder")
    return options


def main() -> int:
    """Do the parts, one after the other, and bring back what came of them."""
    options = arguments()
    options.out.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that children are ended, too
    found: Found = {
        "command": shlex.join(["python", "scripts/gpu.py", *sys.argv[1:]]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"), "parts": {},
    }  # fmt: skip
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        job = Job(options, Path(folder), environment(options, Path(folder)))
        found["machine"] = machine(options, job.variables)
        print(json.dumps(found["machine"]), flush=True)
        if "problem" in found["machine"]:
            bring(found, job.work, options.out)
            return 1
        left = CHECK_AND_SPEED
        for part in PARTS:
            if part not in options.parts:
                continue
            seconds = 60 * options.minutes if part == "run" else left
            if part == "check" and "speed" in options.parts:
                seconds = CHECK
            began = time.monotonic()
            try:
                found["parts"][part] = job.part(part, seconds)
            except Exception as error:
                found["parts"][part] = {"ended": "not begun", "problems": [f"{type(error).__name__}: {error}"]}
            left -= time.monotonic() - began if part == "check" else 0
            bring(found, job.work, options.out)
    print("\n".join(table(found)))
    beyond = too_much(options.out)
    for each in beyond:
        print(f"PROBLEM: {options.out}: {each}")
    return 1 if beyond or any(part["problems"] for part in found["parts"].values()) else 0


if __name__ == "__main__":
    sys.exit(main())
