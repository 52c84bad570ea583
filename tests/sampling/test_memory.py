"""How many images are sampled and filled in at once, and what happens where that is too many."""

import logging

import numpy as np
import pytest
import torch

import diffunet
from diffunet import build
from diffunet.compiler import Unavailable
from diffunet.errors import DivergedError, ResourceError, UsageError
from diffunet.nn import kernels as native

pytestmark = pytest.mark.seconds


@pytest.fixture
def pipe(run):
    return diffunet.load(run, device="cpu", dtype=torch.float32)


def arrays(pictures):
    return np.stack([np.asarray(picture, np.int16) for picture in pictures])


def holds(pipe, most, monkeypatch):
    """Let the device of a pipeline hold `most` images, and note how many it was given each time."""
    seen, forward = [], type(pipe.denoiser.net).forward

    def limited(self, x, *rest):
        seen.append(len(x))
        if len(x) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return forward(self, x, *rest)

    monkeypatch.setattr(type(pipe.denoiser.net), "forward", limited)
    return seen


def test_sampling_goes_on_with_half_the_batch_and_says_so(pipe, monkeypatch, caplog):
    wanted, told = arrays(pipe.sample(11)), []
    seen = holds(pipe, 3, monkeypatch)
    with caplog.at_level(logging.WARNING):
        found = arrays(pipe.sample(11, batch_size=10, on_step=lambda p: told.append((p.step, p.steps))))
    assert np.abs(found - wanted).max() <= 1
    assert seen[:3] == [10, 5, 2]
    assert [record.getMessage() for record in caplog.records] == [
        "out of memory; going on with 5 at a time", "out of memory; going on with 2 at a time",
    ]  # fmt: skip
    assert told[-1] == (24, 24)  # 6 batches of 4 steps


def test_where_not_even_one_fits_it_is_an_error(pipe, monkeypatch):
    holds(pipe, 0, monkeypatch)
    with pytest.raises(ResourceError, match="out of memory with one image at a time"):
        pipe.sample(5)


@pytest.mark.parametrize("method", ["mmps", "replace"])
def test_filling_in_goes_on_with_fewer(pipe, monkeypatch, caplog, method):
    picture = np.full((8, 8, 3), 128, np.uint8)
    hole = np.zeros((8, 8), bool)
    hole[2:6, 2:6] = True
    from PIL import Image

    image = Image.fromarray(picture)
    wanted = arrays(pipe.inpaint(image, hole, num=5, method=method, label="disc"))
    holds(pipe, 2, monkeypatch)
    with caplog.at_level(logging.WARNING):
        found = arrays(pipe.inpaint(image, hole, num=5, method=method, label="disc"))
    assert np.abs(found - wanted).max() <= 1
    assert "out of memory; going on with 2 at a time" in caplog.text


def test_tiles_go_on_with_fewer_windows(pipe, monkeypatch, caplog):
    from PIL import Image

    image, hole = Image.fromarray(np.full((32, 32, 3), 90, np.uint8)), np.zeros((32, 32), bool)
    hole[8:24, 8:24] = True
    wanted = arrays(pipe.inpaint(image, hole, method="replace", fit="tile", label="disc"))
    seen = holds(pipe, 4, monkeypatch)
    with caplog.at_level(logging.WARNING):
        found = arrays(pipe.inpaint(image, hole, method="replace", fit="tile", label="disc"))
    assert np.abs(found - wanted).max() <= 1
    assert "out of memory; going on with smaller pieces" in caplog.text
    assert min(seen) <= 4


@pytest.mark.parametrize("size", [64, 256])
def test_the_batch_is_what_is_counted_to_fit(pipe, monkeypatch, size):
    """On a device with little memory; guidance puts two images through the net for each."""
    pipe.config = pipe.config.changed("data", image_size=size)
    counted = build.footprint(pipe.config, pipe.how, learn=False)
    monkeypatch.setattr(type(pipe.how), "free_memory", lambda self: int(counted.peak(9) / 0.9))
    monkeypatch.setattr("diffunet.compute.SMALL", 0)
    with torch.inference_mode():  # in which a count of the way back would be an error
        assert pipe.fits(1, most=64) == 8
        assert pipe.fits(2, most=64) == 4
        assert pipe.fits(1, most=64, learn=True) < 8


def test_pictures_that_are_not_finite_are_an_error_and_no_black_squares(pipe):
    with torch.no_grad():
        pipe.denoiser.net.out[2].bias.fill_(float("inf"))
    with pytest.raises(DivergedError, match="float16 may be too narrow"):
        pipe.sample(1)


def test_sampling_takes_the_precision_that_training_takes(run, monkeypatch):
    from diffunet import compute

    monkeypatch.setattr(compute, "precision_of", lambda device: ("bf16", "for this test"))
    pipe = diffunet.load(run, device="cpu")
    assert (pipe.dtype, pipe.denoiser.net.stem.weight.dtype) == (torch.bfloat16, torch.bfloat16)
    assert diffunet.load(run, device="cpu", dtype=torch.float32).dtype is torch.float32
    with pytest.raises(UsageError, match=r"dtype is torch.float32, .*, not torch.float64"):
        diffunet.load(run, dtype=torch.float64)


def test_a_weaker_model_of_another_type_is_refused(run, pipe):
    weaker = diffunet.load(run, device="cpu", dtype=torch.bfloat16)
    with pytest.raises(UsageError, match=r"computes in torch.bfloat16, this one in torch.float32: load both alike"):
        pipe.sample(1, guidance=diffunet.Guidance(2.0, weaker))


def test_a_seed_of_numpy_is_as_pythons(pipe):
    assert np.array_equal(arrays(pipe.sample(1, seed=np.int64(3))), arrays(pipe.sample(1, seed=3)))


def test_likelihoods_go_on_with_fewer_images(pipe, monkeypatch, caplog):
    from diffunet.evaluation import bits_per_dimension

    images = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
    wanted = bits_per_dimension.ode(pipe, images, [0] * 5, steps=4).bits
    holds(pipe, 2, monkeypatch)
    with caplog.at_level(logging.WARNING):
        found = bits_per_dimension.ode(pipe, images, [0] * 5, steps=4).bits
    assert found == pytest.approx(wanted, rel=1e-5)
    assert "out of memory; going on with 2 at a time" in caplog.text


@pytest.mark.seconds
def test_a_net_that_cannot_be_compiled_is_one_line(run, monkeypatch):
    from torch._dynamo.exc import BackendCompilerFailed

    def fails(*rest):
        raise BackendCompilerFailed(lambda: None, RuntimeError("no C++ compiler was found"), None)

    pipe = diffunet.load(run, device="cpu", compile=True)
    monkeypatch.setattr(pipe.denoiser.net, "_compiled_call_impl", fails)
    with pytest.raises(UsageError, match=r"the net cannot be compiled: .*; do without"):
        pipe.sample(1)


@pytest.mark.slow
def test_kernels_give_the_same_pictures(run, pipe, monkeypatch):
    used, norm = [], native.norm
    monkeypatch.setattr(native, "norm", lambda *a, **k: used.append(a) or norm(*a, **k))
    try:
        native._loaded()
    except Unavailable as error:
        pytest.skip(str(error))
    found = diffunet.load(run, device="cpu", dtype=torch.float32, kernels=True).sample(3, seed=2)
    assert used
    assert np.abs(arrays(found) - arrays(pipe.sample(3, seed=2))).max() <= 1


def test_kernels_that_cannot_be_are_refused(run, monkeypatch):
    with pytest.raises(UsageError, match="for a net that is not compiled"):
        diffunet.load(run, device="cpu", compile=True, kernels=True)

    def ready(device):
        raise Unavailable("there is no C++ compiler (c++)")

    monkeypatch.setattr(native, "ready", ready)
    with pytest.raises(UsageError, match="no kernels of diffunet's own here: there is no C"):
        diffunet.load(run, device="cpu", kernels=True)


@pytest.mark.slow
def test_a_compiled_pipeline_gives_the_same_pictures_and_fills_up_its_last_batch(run, pipe):
    compiled, seen = diffunet.load(run, device="cpu", dtype=torch.float32, compile=True), []
    compiled.denoiser.net.register_forward_hook(lambda net, given, out: seen.append(len(out)))
    wanted = pipe.sample(7, batch_size=3, seed=2)
    found = compiled.sample(7, batch_size=3, seed=2)
    assert np.abs(arrays(found) - arrays(wanted)).max() <= 1
    assert len(found) == 7
    assert set(seen) == {3}


def test_a_pipeline_of_a_denoiser_whose_weights_are_cast_computes_in_their_type(run):
    half = diffunet.load(run, device="cpu", dtype=torch.bfloat16)
    again = diffunet.Pipeline(half.config, half.denoiser)
    assert again.dtype is torch.bfloat16
    assert np.array_equal(arrays(again.sample(2)), arrays(half.sample(2)))
