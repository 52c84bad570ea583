"""The fast tier, the device that tests compute on, and a small folder of images with a run on it, for all rooms."""

import logging
import os
from collections import defaultdict
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
from helpers.small import tiny
from PIL import Image

from diffunet import variables

variables.wait_asleep()  # several processes test on few cores; before torch is imported

import torch  # noqa: E402

WITHOUT = ("commands", "crashes", "evaluation", "fuzz", "gpu", "interop", "page", "parity", "system", "training", "web")
"""The rooms that `--fast` leaves out: their tests train nets, start processes, or import other libraries, and loading
them alone takes seconds. test_whole_way.py goes once through what they look into."""


def pytest_addoption(parser):
    """Add `--fast` and `--times`."""
    parser.addoption(
        "--fast",
        action="store_true",
        help=f"only what takes a second: not slow, not long, not seconds, not {', '.join(WITHOUT)}",
    )
    parser.addoption("--times", action="store_true", help="print how many seconds the tests of each folder took")


def pytest_ignore_collect(collection_path, config):
    """Leave out whole rooms, before they are imported."""
    left_out = config.getoption("--fast") and collection_path in [Path(__file__).parent / room for room in WITHOUT]
    return True if left_out else None


def pytest_collection_modifyitems(config, items):
    """Leave out the marked tests of the other rooms."""
    if config.getoption("--fast"):
        marked = [item for item in items if any(map(item.get_closest_marker, ("slow", "long", "seconds")))]
        config.hook.pytest_deselected(items=marked)
        items[:] = [item for item in items if item not in marked]


def pytest_terminal_summary(terminalreporter, config):
    """Print a table of the seconds that each room took, if asked to: those of all processes, added up."""
    if not config.getoption("--times"):
        return
    rooms = defaultdict(lambda: [set(), 0.0])
    for reports in terminalreporter.stats.values():
        for report in reports:
            if hasattr(report, "duration") and hasattr(report, "nodeid"):
                room = PurePosixPath(report.nodeid.partition("::")[0]).parent
                rooms[room][0].add(report.nodeid)
                rooms[room][1] += report.duration
    terminalreporter.write_line("\n| folder | tests | seconds |\n|---|---|---|")
    for room, (tests, seconds) in sorted(rooms.items(), key=lambda each: -each[1][1]):
        terminalreporter.write_line(f"| {room} | {len(tests):,} | {seconds:,.0f} |")
    tests, seconds = sum(len(tests) for tests, _ in rooms.values()), sum(seconds for _, seconds in rooms.values())
    terminalreporter.write_line(f"| all | {tests:,} | {seconds:,.0f} |")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    """No test reads or writes the user's cache of decoded images."""
    monkeypatch.setenv("DIFFUNET_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(autouse=True)
def _own_messages():
    """A command that a test runs sets how the package logs, which is undone for the next test."""
    logger = logging.getLogger("diffunet")
    handlers, level = logger.handlers[:], logger.level
    yield
    logger.handlers[:] = handlers
    logger.setLevel(level)


@pytest.fixture(autouse=True, scope="session")
def _hurry():
    """Hundreds of runs of a second: they do not wait for the disk (crashes/ looks into that, in processes of its own),
    and their previews take few steps."""
    from diffunet.training import judging

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        patch.setattr(judging, "PREVIEW_STEPS", 3)
        yield


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    """Where a test computes: what it makes is made there. On CUDA float32 is float32, since formulas are held to it."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU")
    with torch.device(request.param) as found, torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield found


@pytest.fixture
def parity(record_property):
    """`parity(pair, difference, limit)`: asserts that a difference from what others compute is small, and tells
    scripts/parity.py, which prints all of them."""

    def check(pair: str, difference: float, limit: float) -> None:
        record_property("parity", (pair, float(difference), limit))
        assert difference < limit, pair

    return check


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """40 pictures of 8x8 in two classes: bright discs on dark, dark squares on bright."""
    root = tmp_path_factory.mktemp("pictures")
    generator = np.random.default_rng(0)
    for name, dark, bright in (("disc", 20, 230), ("square", 230, 20)):
        (root / name).mkdir()
        for i in range(20):
            y, x = np.mgrid[:8, :8]
            cy, cx = generator.uniform(2, 5, 2)
            inside = (y - cy) ** 2 + (x - cx) ** 2 < 5 if name == "disc" else (abs(y - cy) < 2) & (abs(x - cx) < 2)
            pixels = np.where(inside, bright, dark) + generator.integers(-10, 10, (8, 8))
            Image.fromarray(pixels.astype(np.uint8)).convert("RGB").save(root / name / f"{i}.png")
    return root


@pytest.fixture(scope="session")
def run(folder, tmp_path_factory):
    """A finished run on `folder`."""
    from diffunet.training.loop import train

    out = tmp_path_factory.mktemp("runs") / "run"
    train(tiny(), folder, out)
    return out


@pytest.fixture(scope="session")
def model(folder, tmp_path_factory):
    """A run of one step on `folder`, for what needs any model of 8x8 RGB in classes."""
    from diffunet.training.loop import train

    out = tmp_path_factory.mktemp("runs") / "run"
    train(tiny(train={"steps": 1, "previews": 0}), folder, out)
    return out


@pytest.fixture(scope="session")
def pipe(model):
    """The model of `model`, loaded on the CPU."""
    import diffunet

    return diffunet.load(model, "cpu")
