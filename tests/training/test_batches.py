"""Reading batches ahead: the same bytes however it is done, in bounded memory, and no thread that stays."""

import threading
import time
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch
from helpers.small import tiny

from diffunet import build, compute
from diffunet.data.groups import Groups
from diffunet.errors import DataError
from diffunet.inpainting.own_masks import MaskStore
from diffunet.training import batches as module
from diffunet.training.batches import Batches, Share
from diffunet.training.loop import train


class Watched:
    """Images that note which were asked for, and call `meet` before each."""

    def __init__(self, images, meet=lambda index: None):
        self.images, self.meet, self.asked = images, meet, []

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        self.asked.append(index)
        self.meet(index)
        return self.images[index]


@pytest.fixture
def batches(folder):
    """`batches(cache, meet)`: of 4 images a step, without a cache or with the user's own."""

    def make(cache="off", meet=lambda index: None):
        options = {"fit": "random", "flip": True, "augment": 0.3, "class_names": ("disc", "square"), "cache": cache}
        config = tiny(data=options)
        dataset = build.dataset(config.data, folder)
        watched = replace(dataset, images=Watched(dataset.images, meet))
        return Batches(watched, np.arange(40), build.schedule(config), Share(7, 4, 2), config.data, 0.5, "mixed")

    return make


def helpers():
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(("batches", "decoding"))]


def content(steps):
    names = ("images", "label", "sigma", "augment", "keep")
    return [
        (n, batch.start, *(getattr(batch, name).numpy().tobytes() for name in names))
        for n, some in steps
        for batch in some
    ]


@pytest.fixture
def on_device(folder):
    """`on_device(rank, processes, passes)`: batches of 24 whose images and masks are in stores, drawn by groups."""
    options = {"flip": True, "augment": 0.3, "class_names": ("disc", "square"), "balance_groups": True, "group": "x"}
    config = tiny(data=options, diffusion={"task": "inpaint"})
    dataset, schedule = build.dataset(config.data, folder), build.schedule(config)
    stock, store = MaskStore.drawn("mixed", 8, 7), torch.zeros(37, 8, 8, 3, dtype=torch.uint8)
    groups = Groups(tuple("abcdefg"), np.arange(40) ** 2 % 11 - 4)

    def make(rank=0, processes=1, passes=1, batch=24, flip=True):
        share, data = Share(7, batch, passes, rank, processes), config.data.model_copy(update={"flip": flip})
        return Batches(
            dataset, np.arange(3, 40), schedule, share, data, 0.25, "mixed", stock, store=store, groups=groups
        )

    return make


@pytest.mark.parametrize(("processes", "passes"), [(1, 3), (2, 1), (3, 4), (4, 2)])
def test_batches_are_the_same_however_a_step_is_divided_and_wherever_a_run_begins(on_device, processes, passes):
    whole = on_device()
    for step in (0, 1, 2, 1000):
        [batch] = whole.step(step)
        parts = [part for rank in range(processes) for part in on_device(rank, processes, passes).step(step)]
        assert [part.start for part in parts] == list(range(0, 24, 24 // len(parts)))
        for name in ("images", "label", "sigma", "augment", "keep"):
            assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(batch, name)), name


def test_flips_and_dropped_labels_are_as_many_as_asked_for_and_independent(on_device):
    [batch] = on_device(batch=8000).step(5)
    rows, mirrored = batch.images.unbind(1)
    dropped = (batch.label == 2).double()
    five = 5 / 8000**0.5
    assert abs(mirrored.double().mean() - 0.5) < five * 0.5
    assert abs(dropped.mean() - 0.25) < five * 0.25 * 3**0.5
    columns = [
        mirrored,
        dropped,
        batch.sigma.log(),
        batch.keep.double().mean((1, 2, 3)),
        *(batch.augment[:, :3] != 0).T,
    ]
    assert np.abs(np.corrcoef(np.stack([column.double().numpy() for column in columns])) - np.eye(7)).max() < five
    [plain] = on_device(batch=8000, flip=False).step(5)
    assert torch.equal(plain.images[:, 0], rows)
    assert not plain.images[:, 1].any()


@pytest.mark.parametrize("cache", [None, "off"])
@pytest.mark.parametrize("ahead", [1, 3, 20])
def test_batches_are_the_same_however_far_ahead_they_are_read(batches, monkeypatch, ahead, cache):
    plain = batches(None)
    wanted = content((step, plain.step(step)) for step in range(5, 17))
    monkeypatch.setattr(module, "AHEAD", ahead)
    monkeypatch.setattr(compute, "cores", lambda: 4)
    assert content(islice(batches(cache).steps(5), 12)) == wanted
    assert helpers() == []


def test_without_a_cache_all_cores_decode_at_a_time(batches, monkeypatch):
    monkeypatch.setattr(compute, "cores", lambda: 4)
    together = threading.Barrier(2)  # a pass has two images: each waits until the other is asked for
    found = batches("off", lambda index: together.wait(timeout=60))
    assert len(list(islice(found.steps(0), 3))) == 3
    assert len(found.held_out(np.arange(4)).images) == 4
    assert len(found.all_images(torch.device("cpu"))) == 40


def test_only_so_many_steps_are_read_ahead(batches):
    found = batches("off")
    with_thread = found.steps(0)
    for taken in range(1, 6):
        next(with_thread)
        time.sleep(0.05)
        assert len(found.dataset.images.asked) <= 4 * (taken + module.AHEAD)
    with_thread.close()


def test_closing_reads_no_more_and_leaves_no_thread(batches, monkeypatch):
    monkeypatch.setattr(compute, "cores", lambda: 2)
    wait = threading.Event()
    found = batches("off", lambda index: wait.wait(60) if len(found.dataset.images.asked) > 4 else None)
    steps = found.steps(0)
    next(steps)
    while len(found.dataset.images.asked) < 6:  # two images are asked for, and come when `wait` is set
        time.sleep(0.01)
    threading.Timer(0.2, wait.set).start()
    steps.close()
    assert helpers() == []
    assert len(found.dataset.images.asked) == 6  # neither the other images of that step nor the steps after it


@pytest.mark.parametrize("cache", [None, "off"])
def test_what_cannot_be_read_is_said_at_its_step_and_not_before(batches, cache):
    def vanish(index):
        if len(found.dataset.images.asked) > 12:
            raise DataError(f"image {index} is gone")

    found, seen = batches(cache, vanish), []

    def learn():
        for step, _ in found.steps(0):
            time.sleep(0.02)
            seen.append(step)

    with pytest.raises(DataError, match="is gone"):
        learn()
    assert seen == [0, 1, 2]
    assert helpers() == []


@pytest.mark.parametrize("cache", [None, "off"])
def test_no_thread_outlives_a_run_that_fails(folder, tmp_path, cache):
    def fail(progress):
        if progress.step == 3:
            raise KeyError("ours")

    with pytest.raises(KeyError) as held:  # its traceback keeps all that the run had
        train(tiny(data={"cache": cache}), folder, tmp_path / "run", on_step=fail)
    assert held
    assert helpers() == []
