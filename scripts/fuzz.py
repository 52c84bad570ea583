"""Throw broken files at diffunet: images at `check` and at what training and inpainting read, archives and arrays as
DATA, models and runs at load.

    .venv/bin/python scripts/fuzz.py --images 10000 --models 2000 --seed 0
    .venv/bin/python scripts/fuzz.py --minutes 30 --seed 7

All has to end as success or as a `diffunet.Error` of one line: no crash, no hang, no traceback, and no small file that
takes much memory. What did not is kept with a note in the folder `--keep`, and the exit code is 1. Files are broken
here and read in child processes, so that a crash is seen; a seed and a number make the same file again.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import broken_images
import broken_models
import broken_sources
import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
CHILD = str(Path(__file__).with_name("fuzz_child.py"))
LONGEST = 1100
"""Characters of the last line of a command that refuses something."""
TRAIN = (
    "--image-size 8 --steps 2 --batch-size 2 --model.channels 4 --model.multipliers 1 --model.num-blocks 1 "
    "--train.previews 1 --train.checkpoint-every 1 --data.cache off"
)


@dataclass
class Report:
    """What was seen so far."""

    keep: Path
    seed: int
    accepted: Counter[str] = field(default_factory=Counter)
    refused: Counter[tuple[str, str]] = field(default_factory=Counter)
    commands: int = 0
    slowest: tuple[float, str] = (0.0, "nothing")
    failures: list[str] = field(default_factory=list)

    def result(self, kind: str, file: str, seconds: float, outcome: str, words: str) -> None:
        """What became of a file that was read."""
        self.slowest = max(self.slowest, (round(seconds, 2), file))
        if outcome == "refused":
            self.refused[kind, reason_class(words)] += 1
        elif outcome == "accepted":
            self.accepted[kind] += 1

    def failure(self, what: str, path: Path, words: str) -> None:
        """Keep what was not taken well, and say so."""
        name = f"{self.seed}-{path.name}"
        self.failures.append(f"{name}: {what}")
        self.keep.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            shutil.copytree(path, self.keep / name, dirs_exist_ok=True)
        else:
            shutil.copy(path, self.keep / name)
        with (self.keep / f"{name}.txt").open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(f"{what}\n{words}\n")
        print(f"FAILED {self.failures[-1]}\n{words[-2000:]}", flush=True)

    def lines(self) -> Iterator[str]:
        """For the person who waits."""
        for kind in sorted({kind for kind, _ in self.refused} | set(self.accepted)):
            reasons = Counter({words: n for (of, words), n in self.refused.items() if of == kind}).most_common()
            yield f"{kind}: {self.accepted[kind]:,} accepted, {sum(n for _, n in reasons):,} refused"
            yield from (f"  {n:6,} {words}" for words, n in reasons[:20])
            if len(reasons) > 20:
                yield f"  {sum(n for _, n in reasons[20:]):6,} for {len(reasons) - 20} other reasons"
        yield f"{self.commands} runs of the command; slowest file: {self.slowest[1]} with {self.slowest[0]} s"
        if (peak := peak_memory()) is not None:
            yield f"most memory of a process: {peak / 2**30:.2f} GiB"
        yield from (f"FAILED {line}" for line in self.failures)
        yield f"{len(self.failures)} failures" + (f", kept in {self.keep}" if self.failures else "")


def reason_class(words: str) -> str:
    """A complaint without its names and numbers."""
    words = re.sub(r"\S*[/\\]\S+", "FILE", words)
    words = re.sub(r"(b?'[^']*'|\"[^\"]*\")", "'...'", words)
    words = re.sub(r"\b(model|diffusion|data|train)\.\w+", "OPTION", words)
    return re.sub(r"-?\d[\d,.]*", "N", words)[:70]


def peak_memory() -> int | None:
    """Bytes, of the largest child that has ended; None where the system does not say."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


@dataclass(frozen=True)
class Children:
    """Starts processes, each within `limit` bytes of addresses (on Linux) and the seconds that it is given."""

    limit: int | None
    cache: Path

    def run(self, words: Sequence[str], seconds: float) -> tuple[int | None, str, str]:
        """Exit code (None after a hang), standard output and error."""
        environment = {
            **os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
            "PYTHONIOENCODING": "utf-8:backslashreplace", "OMP_NUM_THREADS": "1", "DIFFUNET_CACHE": str(self.cache),
        }  # fmt: skip
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            command = [sys.executable, "-X", "faulthandler", "-W", "ignore", *words]
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=environment)
            if self.limit and sys.platform == "linux":
                import resource

                with contextlib.suppress(ProcessLookupError):  # has ended already
                    resource.prlimit(process.pid, resource.RLIMIT_AS, (self.limit, self.limit))
            code: int | None = None
            try:
                code = process.wait(seconds)
            except subprocess.TimeoutExpired:
                if sys.platform != "win32":
                    process.send_signal(signal.SIGABRT)  # faulthandler says where it was
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        process.wait(20)
            finally:
                process.kill()
                process.wait()
            said = []
            for file in (out, err):
                file.seek(0)
                said.append(file.read().decode("utf-8", "backslashreplace"))
            return code, said[0], said[1]

    def diffunet(self, *words: str | Path, seconds: float) -> tuple[str | None, str]:
        """Run the command: what is wrong with how it ended, or None; and all that it said."""
        code, out, err = self.run(["-m", "diffunet", *map(str, words)], seconds)
        lines = err.strip().splitlines()
        problem = None
        if code is None:
            problem = f"hangs for {seconds:.0f} s"
        elif code not in (0, 2, 3, 4, 5, 6):
            problem = f"ends the process with {code}"
        elif "Traceback" in err or "Fatal Python error" in err:
            problem = "traceback"
        elif code and not (lines and lines[-1].startswith("diffunet: ") and len(lines[-1]) < LONGEST):
            problem = "refuses without a line that says why"
        return problem, f"$ diffunet {' '.join(map(str, words))}\n{out}\n{err}\nexit code {code}"


def read_all(children: Children, report: Report, what: str, folder: Path, deadline: float) -> list[Path]:
    """Every file (or model folder) of `folder` in a child; a new one goes on after the file that ended the last.

    Gives those that failed.
    """
    failed: list[Path] = []
    after, count = "", sum(1 for _ in folder.iterdir())
    while True:
        # A file has its own deadline in the child, which says where it hangs.
        code, out, err = children.run([CHILD, what, str(folder), after, str(deadline)], 3 * deadline + count)
        begun: str | None = None
        for kind, *message in map(json.loads, out.splitlines()):
            if kind == "begin":
                begun = message[0]
            elif kind == "end":
                name, seconds, outcome, words = message
                report.result(what, name, seconds, outcome, words)
                if outcome == "failed":
                    failed.append(folder / name)
                    report.failure(f"{what} fails", folder / name, words)
                after, begun = name, None
            elif message[0]:
                report.failure(f"{what} fails for all together", folder, message[0])
        if code == 0 and '\n["done"' in out:
            return failed
        how = "hangs" if code is None or "Timeout" in err else f"ends the process with {code}"
        if begun is None:
            report.failure(f"{what} {how} outside any file, after {after!r}", folder, err)
            return failed
        failed.append(folder / begun)
        report.failure(f"{what} {how}", folder / begun, err)
        after = begun


def check_all(children: Children, report: Report, folder: Path, deadline: float) -> None:
    """`diffunet check` of the folder, and where that goes wrong of halves of it, down to the file."""
    report.commands += 1
    paths = sorted(folder.iterdir())
    problem, said = children.diffunet("check", folder, seconds=deadline + len(paths))
    if problem is None:
        found = re.search(r": ([\d,]+) images can be used, ([\d,]+) files cannot", said)
        numbers = [int(number.replace(",", "")) for number in found.groups()] if found else []
        if sum(numbers) == len(paths):
            return
        problem = f"counts {numbers}, of {len(paths)} files"
    if len(paths) == 1:
        report.failure(f"check {problem}", paths[0], said)
        return
    before = len(report.failures)
    for half in (paths[: len(paths) // 2], paths[len(paths) // 2 :]):
        with tempfile.TemporaryDirectory(dir=folder.parent) as part:
            for path in half:
                shutil.copy(path, part)
            check_all(children, report, Path(part), deadline)
    if len(report.failures) == before:
        report.failure(f"check {problem}, with all files together only", folder, said)


def fuzz_images(
    children: Children, report: Report, sound: dict[str, bytes], numbers: range, home: Path, deadline: float
) -> None:
    """Break the images of these numbers and have them read."""
    folder = home / "images"
    folder.mkdir()
    for n in numbers:
        name, content = broken_images.broken(sound, np.random.default_rng([report.seed, 0, n]))
        (folder / f"{n:06}-{name}").write_bytes(content)
    for path in read_all(children, report, "read", folder, deadline):
        path.unlink()  # is known to fail; `check` is for the others
    check_all(children, report, folder, deadline)
    shutil.rmtree(folder)


def fuzz_sources(children: Children, report: Report, numbers: range, home: Path, deadline: float) -> None:
    """Break archives and arrays of these numbers and have them opened as DATA."""
    folder = home / "sources"
    folder.mkdir()
    sound = {kind: broken_sources.whole(kind) for kind in broken_sources.KINDS}
    for n in numbers:
        name, content = broken_sources.broken(sound, f"{report.seed} {n}")
        (folder / f"{n:06}-{name}").write_bytes(content)
    read_all(children, report, "open", folder, deadline)
    shutil.rmtree(folder)


def fuzz_models(
    children: Children, report: Report, run: Path, numbers: range, home: Path, deadline: float, every: int
) -> None:
    """Break models and runs of these numbers and have them loaded, one of `every` by the real command too."""
    folder = home / "models"
    folder.mkdir()
    for n in numbers:
        broken_models.broken(run, folder / f"{n:06}", np.random.default_rng([report.seed, 1, n]))
    read_all(children, report, "load", folder, deadline)
    for n in numbers[::every]:
        path = folder / f"{n:06}"
        report.commands += 1
        words: list[str | Path] = ["sample", path, "--out", home / "one.png", "--num", "1", "--steps", "1"]
        if (path / "checkpoints").is_dir():
            words = ["train", home / "data", "--out", path, "--resume", "--steps", "3"]
        problem, said = children.diffunet(*words, seconds=deadline)
        (home / "one.png").unlink(missing_ok=True)
        if problem:
            report.failure(f"{words[0]} {problem}", path, said)
    shutil.rmtree(folder)


def sound_run(children: Children, home: Path) -> Path:
    """A run of two steps, and its data beside it."""
    (home / "data").mkdir()
    for i in range(6):
        Image.new("RGB", (8, 8), (40 * i, 90, 9)).save(home / "data" / f"{i}.png")
    problem, said = children.diffunet("train", home / "data", "--out", home / "run", *TRAIN.split(), seconds=600)
    if problem or not (home / "run" / "model").is_dir():
        sys.exit(f"training what is to be broken: {problem}\n{said}")
    return home / "run"


def main(options: argparse.Namespace) -> int:
    """Rounds of images and models until the numbers or the minutes are reached."""
    report = Report(options.keep, options.seed)
    until = time.monotonic() + 60 * options.minutes if options.minutes else None
    with tempfile.TemporaryDirectory(prefix="diffunet-fuzz-", ignore_cleanup_errors=True) as temporary:
        home = Path(temporary)
        _, taken, _ = Children(None, home / "cache").run([CHILD, "size"], 600)
        limit = int(taken) + int(options.headroom * 2**30) if int(taken) else None
        children = Children(limit, home / "cache")
        allowed = f"{limit / 2**30:.1f} GiB of addresses a process" if limit else "no limit of memory on this system"
        print(f"seed {options.seed}, {allowed}", flush=True)
        sound = broken_images.sound()
        run = sound_run(children, home) if options.models or until else None
        for start in itertools.count(0, options.batch):
            if until is None:
                images, sources, models = (
                    range(min(start, total), min(start + options.batch, total))
                    for total in (options.images, options.sources, options.models)
                )
            else:
                images = range(start, start + options.batch)
                sources, models = images, range(start // 5, images.stop // 5)
            if images:
                fuzz_images(children, report, sound, images, home, options.deadline)
            if sources:
                fuzz_sources(children, report, sources, home, options.deadline)
            if models and run:
                fuzz_models(children, report, run, models, home, options.deadline, options.command_every)
            if until is not None:
                print(
                    f"{images.stop} images and archives, {models.stop} models, {len(report.failures)} failures",
                    flush=True,
                )
            if not (images or sources or models) or (until is not None and time.monotonic() > until):
                break
    print("\n".join(report.lines()), flush=True)
    return 1 if report.failures else 0


def parsed() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--sources", type=int, default=2_000)
    parser.add_argument("--models", type=int, default=2_000)
    parser.add_argument("--minutes", type=float, help="as many as there is time for, instead of these numbers")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", type=int, default=1000, help="files of a child process")
    parser.add_argument("--command-every", type=int, default=100, help="models, of which one goes to the real command")
    parser.add_argument("--deadline", type=float, default=180, help="seconds after which a file hangs")
    parser.add_argument("--headroom", type=float, default=5, help="GiB that a process may take for files")
    parser.add_argument("--keep", type=Path, default=ROOT / "out" / "fuzz", help="folder for what fails")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main(parsed()))
