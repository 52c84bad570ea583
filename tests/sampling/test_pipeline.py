"""The Python API on a real, tiny model."""

import math
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from helpers.small import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import diffunet
from diffunet import Cancelled, DataError, Guidance, UsageError, build
from diffunet.compute import is_out_of_memory
from diffunet.diffusion import samplers
from diffunet.inpainting import filling, masks, methods, part
from diffunet.names import LADDERS, SAMPLERS

pytestmark = pytest.mark.seconds


@pytest.fixture(scope="module")
def pipe(run):
    return diffunet.load(run, dtype=torch.float32)


@pytest.fixture(scope="module")
def inpainter(folder, tmp_path_factory):
    """A model trained to inpaint: every method goes with it."""
    out = tmp_path_factory.mktemp("inpainter") / "run"
    return diffunet.load(diffunet.train(tiny(diffusion={"task": "inpaint"}), folder, out))


def arrays(pictures):
    return [np.asarray(picture).astype(int) for picture in pictures]


def noise_picture(height, width, mode="RGB", seed=0):
    channels = {"L": (), "RGB": (3,), "RGBA": (4,), "LA": (2,)}[mode]
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, *channels), dtype=np.uint8)
    if mode in ("RGBA", "LA"):
        pixels[..., -1] = 255
    return Image.fromarray(pixels, mode)


def test_sampling_gives_what_was_asked_for(pipe):
    pictures = pipe.sample(5, steps=3)
    assert [picture.size for picture in pictures] == [(8, 8)] * 5
    assert {picture.mode for picture in pictures} == {"RGB"}
    assert not np.array_equal(*arrays(pictures[:2]))


def test_a_pipeline_is_a_line():
    line = repr(diffunet.load("emoji", "cpu", torch.float32))
    assert line == "<Pipeline: UNet of 6.7 M parameters, 64x64, 3 channels, 9 classes, inpaint, cpu in fp32>"


def test_an_image_does_not_depend_on_num_batch_size_or_the_others(pipe):
    whole = arrays(pipe.sample(5, steps=3, seed=4, labels="disc"))
    for batch_size in (1, 2, 5):
        for a, b in zip(
            whole, arrays(pipe.sample(5, steps=3, seed=4, labels="disc", batch_size=batch_size)), strict=True
        ):
            assert abs(a - b).max() <= 1
    assert abs(arrays(pipe.sample(2, steps=3, seed=4, labels="disc"))[1] - whole[1]).max() <= 1
    assert not np.array_equal(arrays(pipe.sample(1, steps=3, seed=5, labels="disc"))[0], whole[0])


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_with_and_without_guidance(pipe, variant, sampler):
    of = variant if sampler == "ddpm-learned" else pipe
    plain, strong = (of.sample(1, sampler=sampler, guidance=guidance, steps=3)[0] for guidance in (1.0, 4.0))
    assert np.asarray(plain).std() > 0
    assert plain.tobytes() != strong.tobytes()


@pytest.fixture(scope="module")
def variant(pipe):
    """Another model of the same images, not trained: its chain's variance and its uncertainty are learned."""
    changes = {"schedule": "cosine", "target": "v", "learned_variance": True, "learned_uncertainty": True}
    config = pipe.config.changed("diffusion", **changes)
    torch.manual_seed(0)
    denoiser = build.denoiser(config)
    for parameter in denoiser.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return diffunet.Pipeline(config, denoiser.requires_grad_(False))


def test_a_number_is_a_plain_guidance_and_one_is_off(pipe):
    guided = sampled(pipe, 0, guidance=3.0)
    assert np.array_equal(guided, sampled(pipe, 0, guidance=Guidance(3.0)))
    assert not np.array_equal(guided, sampled(pipe, 0))
    assert np.array_equal(sampled(pipe, 0), sampled(pipe, 0, guidance=Guidance(1.0)))


def test_guidance_in_an_interval_by_rescaling_and_by_a_weaker_model(pipe, variant):
    plain, guided = sampled(pipe, 0), sampled(pipe, 0, guidance=3.0)
    everywhere, nowhere = (Guidance(3.0, interval=interval) for interval in ((0.0, 1e10), (1e10, 1e11)))
    assert np.array_equal(sampled(pipe, 0, guidance=everywhere), guided)
    assert np.array_equal(sampled(pipe, 0, guidance=nowhere), plain)
    strong, rescaled = (sampled(pipe, 0, guidance=Guidance(100.0, rescale=rescale)) for rescale in (0.0, 1.0))
    assert not np.array_equal(strong, rescaled)
    itself = sampled(pipe, 0, guidance=Guidance(3.0, weaker=pipe))
    assert abs(np.array(itself) - plain).max() <= 1  # no way to go on
    weaker = sampled(pipe, 0, guidance=Guidance(3.0, weaker=variant))  # of another schedule and target
    assert not np.array_equal(weaker, plain)
    assert np.array_equal(sampled(pipe, 0, guidance=Guidance(3.0, variant, (1e10, 1e11))), plain)
    strong, rescaled = (sampled(pipe, 0, guidance=Guidance(9.0, variant, rescale=rescale)) for rescale in (0.0, 1.0))
    assert not np.array_equal(strong, rescaled)
    assert not np.array_equal(filled(pipe, 0, guidance=Guidance(3.0, weaker=variant)), filled(pipe, 0))


def test_repaint_walks_uniformly_in_time_whatever_the_ladder_of_samples(pipe, monkeypatch):
    seen, plain = [], samplers.sample
    monkeypatch.setattr(
        samplers, "sample", lambda d, x, sigmas, *rest: seen.append(sigmas) or plain(d, x, sigmas, *rest)
    )
    filled(pipe, 0, method="repaint")
    steps = sorted(set(seen[0].tolist()), reverse=True)
    t = torch.tensor(steps[:-1], dtype=torch.float64)
    assert torch.allclose(t / (1 + t), torch.tensor([1.0, 2 / 3, 1 / 3], dtype=torch.float64))  # flow's time


def test_guidance_needs_a_label_to_go_towards(pipe):
    with pytest.raises(UsageError, match="needs a label"):
        filled(pipe, 0, label=None, guidance=3.0)


def test_samplers_that_share_a_function_but_not_what_they_do(pipe):
    for one, other in (("ddpm", "ddpm-large"), ("dpm++2m", "dpm++2m-sde")):
        assert not np.array_equal(*(sampled(pipe, 0, sampler=name, ladder="trailing") for name in (one, other)))


def test_a_threshold_keeps_what_is_predicted_within_range(pipe):
    seen = {}
    for threshold in ("none", "static", "dynamic"):
        seen[threshold] = []
        pipe.sample(
            2, steps=3, guidance=30.0, threshold=threshold, sampler="euler",
            on_step=lambda progress, to=seen[threshold]: to.append(progress.denoised.abs().max().item()),
        )  # fmt: skip
    assert max(seen["none"]) > 1
    assert max(seen["static"]) <= 1
    assert max(seen["dynamic"]) <= 1


@pytest.mark.parametrize("ladder", LADDERS)
def test_every_ladder(pipe, ladder):
    default, other = (arrays(pipe.sample(8, steps=3, **chosen)) for chosen in ({}, {"ladder": ladder}))
    assert np.array_equal(other, default) == (ladder == "log-snr")  # what suits unipc


def test_what_is_chosen_in_the_config_is_the_default(pipe):
    chosen = {"sampler": "unipc", "ladder": "karras", "threshold": "static"}
    other = diffunet.Pipeline(pipe.config.changed("diffusion", **chosen), pipe.denoiser)
    assert np.array_equal(sampled(other, 0, guidance=4.0), sampled(pipe, 0, guidance=4.0, **chosen))


def test_labels_by_name_by_number_by_image_and_in_turn(pipe):
    turns = arrays(pipe.sample(2, steps=2))
    assert np.array_equal(turns, arrays(pipe.sample(2, steps=2, labels=["disc", "square"])))
    assert np.array_equal(turns, arrays(pipe.sample(2, steps=2, labels=[0, "1"])))
    with pytest.raises(UsageError, match="there is no class 'circle'; there are disc, square"):
        pipe.sample(1, labels="circle")
    with pytest.raises(UsageError, match="3 labels for 2 images"):
        pipe.sample(2, labels=[0, 0, 0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num": 0}, "num is at least 1, not 0"),
        ({"batch_size": -1}, "batch_size is at least 1, not -1"),
        ({"steps": 0}, "steps is at least 1, not 0"),
        ({"seed": -1}, "seed is at least 0, not -1"),
        ({"seed": 2**63}, "seed is .* below"),
        ({"guidance": float("nan")}, "guidance is a number, not nan"),
        ({"sampler": "magic"}, "unknown sampler 'magic'; there are ddpm"),
        ({"sampler": "ddpm-learned"}, "sampler ddpm-learned needs learned-variance"),
        ({"ladder": "leading", "steps": 1}, "ladder leading needs 2 steps"),
        ({"ladder": "rho"}, "unknown ladder 'rho'; there are trailing, leading, linspace, karras, log-snr"),
        ({"threshold": "soft"}, "unknown threshold 'soft'; there are none, static, dynamic"),
        ({"guidance": Guidance(math.inf)}, "guidance is a number, not inf"),
        ({"guidance": Guidance(2.0, rescale=1.5)}, "rescale of guidance is from 0 to 1, not 1.5"),
        ({"guidance": Guidance(2.0, rescale=math.nan)}, "rescale of guidance is from 0 to 1, not nan"),
        ({"guidance": Guidance(2.0, interval=(2.0, 1.0))}, "from a sigma to a larger one, not"),
        ({"guidance": Guidance(2.0, interval=(-1.0, 1.0))}, "from a sigma to a larger one, not"),
        ({"labels": "sqare"}, "no class 'sqare'; did you mean square"),
    ],
)
def test_arguments_that_cannot_be(pipe, arguments, message):
    with pytest.raises(UsageError, match=message):
        pipe.sample(**arguments)


def test_an_unknown_keyword_is_named(pipe):
    with pytest.raises(TypeError, match=r"Pipeline.sample\(\) got an unexpected keyword argument 'step'"):
        pipe.sample(1, steps=1, step=3)
    hole = np.eye(8, dtype=bool)
    for image in (noise_picture(8, 8), part.read(noise_picture(8, 8), hole)):
        with pytest.raises(TypeError, match=r"Pipeline.inpaint\(\) got an unexpected keyword argument 'invert'"):
            pipe.inpaint(image, hole, invert=True)


def test_guidance_that_a_model_cannot_have(pipe):
    def changed(section, **values):
        config = pipe.config.changed(section, **values)
        return diffunet.Pipeline(config, pipe.denoiser)

    with pytest.raises(UsageError, match="guidance 2 needs a model trained with label dropout; this one has none"):
        changed("diffusion", label_dropout=0.0).sample(1, guidance=2.0)
    without = changed("data", class_names=())
    with pytest.raises(UsageError, match="guidance 2 needs a model with classes, or a weaker model; this one has none"):
        without.sample(1, guidance=2.0)
    with pytest.raises(UsageError, match="not of the same images"):
        pipe.sample(1, guidance=Guidance(2.0, weaker=without))
    without.sample(1, steps=1, guidance=Guidance(2.0, weaker=without))


def test_watching(pipe):
    seen = []
    pipe.sample(3, steps=4, batch_size=2, on_step=lambda p: seen.append((p.step, p.steps, len(p.denoised))))
    assert seen == [(i + 1, 8, 2 if i < 4 else 1) for i in range(8)]


def sampled(pipe, seed, **options):
    return arrays(pipe.sample(2, steps=3, seed=seed, batch_size=2, **options))


def filled(pipe, seed, **options):
    hole = np.zeros((8, 8), bool)
    hole[2:6, 3:] = True
    return arrays(pipe.inpaint(noise_picture(8, 8, seed=seed), hole, steps=3, seed=seed, num=2, **options))


@pytest.mark.long
def test_eight_threads_at_once_get_what_each_gets_alone(pipe):
    """Sampling and filling in, mixed, with labels and guidance of their own; each thread keeps its own grad mode."""
    jobs = [
        *((sampled, seed, {"guidance": 1 + seed % 2}) for seed in range(8)),
        *((filled, seed, {"label": "disc" if seed % 2 else None}) for seed in range(8)),
    ]
    alone = [job(pipe, seed, **options) for job, seed, options in jobs]
    began = threading.Barrier(8)

    def work(thread):
        began.wait()
        got = []
        for n in range(len(jobs)):  # each thread in another order
            n = (n + 2 * thread) % len(jobs)
            job, seed, options = jobs[n]
            with torch.set_grad_enabled(thread % 2 == 0):
                got.append((n, job(pipe, seed, **options)))
                assert torch.is_grad_enabled() == (thread % 2 == 0)
        return got

    with ThreadPoolExecutor(8) as pool:
        for got in pool.map(work, range(8)):
            for n, pictures in got:
                assert np.array_equal(pictures, alone[n])


def cancels(progress):
    return progress.step < 2


def fails(progress):
    raise RuntimeError("mine")


def interrupted(progress):
    raise KeyboardInterrupt


@pytest.mark.parametrize("job", [sampled, filled])
@pytest.mark.parametrize(
    ("on_step", "error"), [(cancels, Cancelled), (fails, RuntimeError), (interrupted, KeyboardInterrupt)]
)
@pytest.mark.parametrize("surroundings", ["plain", "autocast", "inference"])
def test_it_is_left_as_it_was_found(pipe, job, on_step, error, surroundings):
    """Whatever ends a call, and whatever the caller is in: the same pictures after it, and nothing of the caller's."""
    before = job(pipe, 5)
    torch.manual_seed(1)
    state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    context = {
        "plain": lambda: torch.enable_grad(),
        "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
        "inference": torch.inference_mode,
    }[surroundings]()
    with context:
        grad, autocast = torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")
        with pytest.raises(error):
            job(pipe, 5, on_step=on_step)
        assert np.array_equal(job(pipe, 5), before)
        assert (torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")) == (grad, autocast)
        assert torch.is_inference_mode_enabled() == (surroundings == "inference")
    assert torch.equal(state, torch.get_rng_state())
    assert np.array_equal(numpy_state, np.random.get_state()[1])
    assert not any(parameter.requires_grad for parameter in pipe.denoiser.parameters())
    with ThreadPoolExecutor(1) as pool:  # the lock is free for others, too
        assert np.array_equal(pool.submit(job, pipe, 5).result(timeout=120), before)


@pytest.mark.parametrize("job", [sampled, filled])
def test_a_call_from_inside_on_step(pipe, job):
    before, other = job(pipe, 3), filled(pipe, 4)
    inner = []
    assert np.array_equal(job(pipe, 3, on_step=lambda p: inner.append(filled(pipe, 4))), before)
    assert inner
    assert all(np.array_equal(one, other) for one in inner)


def test_files_of_a_loaded_model_may_change_or_go(run, tmp_path):
    shutil.copytree(run / "model", tmp_path / "model")
    pipe = diffunet.load(tmp_path / "model")
    before = sampled(pipe, 1), filled(pipe, 1)
    for path in (tmp_path / "model").iterdir():
        path.write_bytes(b"\xff" * path.stat().st_size)  # in place: a mapped file would change under it
    assert np.array_equal(sampled(pipe, 1), before[0])
    shutil.rmtree(tmp_path / "model")
    assert np.array_equal(filled(pipe, 1), before[1])


CRAMPED = """
import resource, sys
import diffunet
pipe = diffunet.load(sys.argv[1], dtype=__import__('torch').float32)
before = [picture.tobytes() for picture in pipe.sample(2, steps=2)]
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**25, resource.RLIM_INFINITY))
many = pipe.sample(3000, batch_size=3000, steps=2)
assert [picture.tobytes() for picture in many[:2]] == before
print(len(many))
resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
assert [picture.tobytes() for picture in pipe.sample(2, steps=2)] == before
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a limit of memory that Linux keeps")
def test_out_of_memory_goes_on_with_half_and_says_so(run):
    words = [sys.executable, "-c", CRAMPED, str(run)]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "3000\n"
    assert "out of memory; going on with 1500 at a time" in done.stderr


@pytest.mark.parametrize(
    ("error", "is_it"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory."), True),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried"),
            True,
        ),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("std::bad_alloc"), True),
        (RuntimeError("[enforce fail a"), True),  # met on Linux: the message itself had no memory
        (RuntimeError(""), False),
        (RuntimeError("shape '[2]' is invalid for input of size 3"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_what_out_of_memory_is(error, is_it):
    assert is_out_of_memory(error) == is_it


@pytest.mark.parametrize("method", ["auto", *methods.METHODS])
@pytest.mark.parametrize("fit", ["auto", "crop", "native", "tile"])
@pytest.mark.parametrize(("size", "mode"), [((8, 8), "L"), ((9, 13), "RGB"), ((40, 31), "RGBA"), ((23, 8), "LA")])
def test_known_pixels_come_back_byte_for_byte_and_the_hole_changes(inpainter, method, fit, size, mode):
    picture = noise_picture(*size, mode)
    hole = masks.random_mask("box", *size, np.random.default_rng(1))
    filled = inpainter.inpaint(picture, hole, num=2, method=method, fit=fit, steps=3)
    before, after = np.asarray(picture), [np.asarray(image) for image in filled]
    for pixels in after:
        assert pixels.shape == before.shape
        assert np.array_equal(pixels[~hole], before[~hole])
        assert not np.array_equal(pixels[hole], before[hole])
    if mode in ("LA", "RGBA"):
        assert (after[0][..., -1] == 255).all()
    assert not np.array_equal(*after)


@settings(max_examples=40, deadline=None)
@given(st.data())
@pytest.mark.seconds
def test_known_pixels_are_exact_whatever_is_asked_for(inpainter, data):
    """Random sizes, modes, masks, methods and fits."""
    height, width = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 40))
    mode = data.draw(st.sampled_from(["L", "RGB", "RGBA", "LA", "I;16", "I", "F", "CMYK"]))
    fit = data.draw(st.sampled_from(["auto", "crop", "native"] + ["tile"] * (min(height, width) >= 8)))
    method = data.draw(st.sampled_from(methods.METHODS))
    kind, seed = data.draw(st.sampled_from(["mixed", "dots", *masks.KINDS])), data.draw(st.integers(0, 99))
    random = np.random.default_rng(seed)
    dots = random.random((height, width)) < 0.03
    dots[0, 0] |= not dots.any()
    hole = dots if kind == "dots" else masks.random_mask(kind, height, width, random)
    if mode in ("I;16", "I"):
        picture = Image.fromarray(random.integers(0, 65536, (height, width)).astype({"I": "<i4"}.get(mode, "<u2")))
    elif mode == "F":
        picture = Image.fromarray(random.random((height, width), np.float32))
    elif mode == "CMYK":
        picture = Image.fromarray(random.integers(0, 256, (height, width, 4), dtype=np.uint8), "CMYK")
    else:
        picture = noise_picture(height, width, mode, seed)
    feather, num = data.draw(st.sampled_from([0, 0, 2])), data.draw(st.integers(1, 2))
    before = np.asarray(picture)
    done = inpainter.inpaint(
        picture, hole, num=num, method=method, fit=fit, steps=data.draw(st.integers(1, 3)), feather=feather
    )
    assert len(done) == num
    for one in done:
        assert one.mode == picture.mode
        assert np.array_equal(np.asarray(one)[~hole], before[~hole])


@pytest.mark.parametrize("fit", ["crop", "native", "tile"])
def test_what_was_erased_does_not_matter(inpainter, fit):
    """A bright and a dark object under the same mask: the same filling, to the bit."""
    hole = np.zeros((30, 44), bool)
    hole[8:20, 10:33] = True
    for method in methods.METHODS:
        fillings = []
        for value in (0, 255):
            pixels = np.array(noise_picture(30, 44))
            pixels[hole] = value
            fillings.append(inpainter.inpaint(Image.fromarray(pixels), hole, fit=fit, method=method, steps=3)[0])
        assert np.array_equal(*fillings)


def test_transparency_is_the_hole_and_comes_back_opaque(pipe):
    pixels = np.array(noise_picture(8, 8, "RGBA"))
    pixels[2:5, 3:7, 3] = [0, 100, 254, 7]
    out = np.asarray(pipe.inpaint(Image.fromarray(pixels), steps=3)[0])
    hole = pixels[..., 3] < 250
    assert (out[hole][:, 3] == 255).all()
    assert np.array_equal(out[~hole], pixels[~hole])
    with pytest.raises(UsageError, match="no transparent part"):
        pipe.inpaint(noise_picture(8, 8))


def test_sixteen_bits_palette_and_one_bit(pipe, tmp_path):
    hole = np.zeros((8, 8), bool)
    hole[:, 4:] = True
    deep = np.random.default_rng(0).integers(0, 65536, (8, 8)).astype(np.uint16)
    out = np.asarray(pipe.inpaint(Image.fromarray(deep), hole, steps=2)[0])
    assert out.dtype == np.uint16
    assert np.array_equal(out[~hole], deep[~hole])
    for mode in ("P", "1"):
        picture = noise_picture(8, 8).convert(mode)
        filled = pipe.inpaint(picture, hole, steps=2)[0]
        assert np.array_equal(np.asarray(filled.convert("RGB"))[~hole], np.asarray(picture.convert("RGB"))[~hole])


def test_masks_of_other_habits(pipe, tmp_path):
    picture, hole = noise_picture(8, 8), np.zeros((8, 8), bool)
    hole[3:6, 2:7] = True
    expected = np.asarray(pipe.inpaint(picture, hole, steps=3)[0])
    Image.fromarray(hole).save(tmp_path / "mask.png")
    inverted = Image.fromarray(np.where(hole, 10, 240).astype(np.uint8))
    assert np.array_equal(np.asarray(pipe.inpaint(picture, tmp_path / "mask.png", steps=3)[0]), expected)
    assert np.array_equal(np.asarray(pipe.inpaint(picture, inverted, invert_mask=True, steps=3)[0]), expected)
    soft = hole.astype(np.float32) * 0.5
    blended = np.asarray(pipe.inpaint(picture, soft, soft_mask=True, steps=3)[0]).astype(int)
    before = np.asarray(picture).astype(int)
    assert np.array_equal(blended[~hole], before[~hole])
    assert abs(blended - (before + expected.astype(int)) / 2)[hole].max() <= 0.51
    with pytest.raises(UsageError, match=r"7x8.*8x8.*resize_mask=True"):
        pipe.inpaint(picture, np.ones((8, 7), bool))


def test_an_empty_mask_is_refused_and_what_was_understood_is_said(pipe, caplog):
    picture = noise_picture(8, 8)
    with pytest.raises(UsageError, match="nothing to fill in the image: the mask is black all over"):
        pipe.inpaint(picture, np.zeros((8, 8), bool))
    with pytest.raises(UsageError, match="nothing to fill"):
        pipe.inpaint(part.Masked(picture, np.zeros((8, 8), bool)))
    pipe.inpaint(picture, Image.fromarray(np.eye(8, dtype=np.uint8)), steps=1)
    assert "the mask: its values are 0 and 1, and 1 is filled" in caplog.text


def test_the_alpha_of_a_model_with_transparency(pipe, monkeypatch):
    """It is that of what is filled in, with a mask and without, and of the same pictures as `sample` where all is."""
    content = pipe.config.model_dump()
    content["data"]["channels"], content["diffusion"]["mean"] = 4, [0.0] * 4
    config = type(pipe.config).model_validate(content)
    torch.manual_seed(0)
    denoiser = build.denoiser(config)
    for parameter in denoiser.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    clear = diffunet.Pipeline(config, denoiser.requires_grad_(False))
    pixels = np.array(noise_picture(8, 8, "RGBA"))
    pixels[2:5, 3:7, 3] = 0
    whole = clear.inpaint(Image.fromarray(pixels), np.ones((8, 8), bool), num=2, seed=3)
    plain = clear.sample(2, seed=3)
    assert all(np.array_equal(a, b) for a, b in zip(whole, plain, strict=True))
    assert len(np.unique(np.asarray(plain[0])[..., 3])) > 5
    fill = filling.Filler.fill

    def painted(self, *arguments):
        made = [one.copy() for one in fill(self, *arguments)]
        for one in made:
            one[..., 3] = 77
        return made

    monkeypatch.setattr(filling.Filler, "fill", painted)
    for options, hole in (({"box": (0, 0, 4, 8)}, np.arange(8) < 4), ({}, pixels[..., 3] == 0)):
        out = np.asarray(clear.inpaint(Image.fromarray(pixels), steps=2, **options)[0])
        expected = np.where(np.broadcast_to(hole, (8, 8)), 77, pixels[..., 3])
        assert np.array_equal(out[..., 3], expected)


@pytest.mark.parametrize("method", methods.METHODS)
def test_a_full_mask_warns_and_is_plain_sampling(inpainter, method, caplog):
    everything = np.ones((8, 8), bool)
    for labels in (None, "disc"):
        for steps in (None, 3):
            filled = inpainter.inpaint(
                noise_picture(8, 8), everything, method=method, steps=steps, seed=2, label=labels, num=2
            )
            plain = inpainter.sample(2, seed=2, steps=steps, labels=labels)
            assert all(np.array_equal(a, b) for a, b in zip(filled, plain, strict=True))
    assert "invert_mask=True" in caplog.text


def test_holes_far_from_each_other_are_filled_one_by_one_at_full_resolution(pipe):
    """As if each were alone in the image."""
    picture, hole = noise_picture(70, 90), np.zeros((70, 90), bool)
    hole[3:6, 4:7] = hole[60:64, 80:84] = True
    both = np.asarray(pipe.inpaint(picture, hole, steps=3)[0])
    first = hole.copy()
    first[60:] = False
    alone = np.asarray(pipe.inpaint(picture, first, steps=3)[0])
    assert np.array_equal(both[:50], alone[:50])
    assert not np.array_equal(both[60:64, 80:84], np.asarray(picture)[60:64, 80:84])


def test_progress_over_regions_and_batches_counts_to_its_end(pipe):
    picture, hole = noise_picture(70, 90), np.zeros((70, 90), bool)
    hole[3:6, 4:7] = hole[60:64, 80:84] = True
    seen = []
    pipe.inpaint(picture, hole, steps=3, num=17, method="replace", on_step=lambda p: seen.append((p.step, p.steps)))
    assert seen == [(i + 1, 12) for i in range(12)]


def test_a_box_is_a_mask(pipe):
    picture, hole = noise_picture(20, 30), np.zeros((20, 30), bool)
    hole[3:9, 5:12] = True
    boxed, masked = (pipe.inpaint(picture, steps=2, **how)[0] for how in ({"box": (5, 3, 12, 9)}, {"mask": hole}))
    assert np.array_equal(boxed, masked)
    with pytest.raises(UsageError, match="30x20"):
        pipe.inpaint(picture, box=(5, 3, 31, 9))


@pytest.mark.seconds
def test_published_repaint_calls_the_net_2410_times(pipe):
    calls = count_calls(pipe, steps=250, jump_length=10, jump_n_sample=10, method="repaint")
    assert calls == 2410


def count_calls(pipe, **options):
    """Count the calls of the net in an inpainting; it computes nothing in them, which takes a tenth of the time."""
    calls = []

    def net(x, *_):
        calls.append(1)
        return x

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipe.denoiser.net, "forward", net)
        pipe.inpaint(noise_picture(8, 8), np.eye(8, dtype=bool), **options)
    return len(calls)


def test_inpainting_refuses_what_it_cannot_do(pipe, tmp_path):
    hole = np.ones((8, 8), bool)
    with pytest.raises(UsageError, match="unknown method"):
        pipe.inpaint(noise_picture(8, 8), hole, method="magic")
    with pytest.raises(UsageError, match="trained with --task inpaint"):
        pipe.inpaint(noise_picture(8, 8), np.eye(8, dtype=bool), method="trained")
    with pytest.raises(UsageError, match="replace does not jump"):
        pipe.inpaint(noise_picture(8, 8), np.eye(8, dtype=bool), method="replace", jump_length=3)
    for name in ("steps", "jump_length", "jump_n_sample"):
        with pytest.raises(UsageError, match=f"{name} is at least 1, not 0"):
            pipe.inpaint(noise_picture(8, 8), np.eye(8, dtype=bool), **{name: 0})
    with pytest.raises(UsageError, match="unknown fit"):
        pipe.inpaint(noise_picture(8, 8), hole, fit="stretch")
    with pytest.raises(UsageError, match="max_pixels is at least 1, not 0"):
        pipe.inpaint(noise_picture(8, 8), hole, max_pixels=0)
    (tmp_path / "x.png").write_text("no image")
    with pytest.raises(DataError, match=r"x\.png"):
        pipe.inpaint(tmp_path / "x.png", hole)
    noise_picture(40, 40).save(tmp_path / "whole.png")
    (tmp_path / "half.png").write_bytes((tmp_path / "whole.png").read_bytes()[:1500])
    with pytest.raises(DataError, match="damaged"):
        pipe.inpaint(Image.open(tmp_path / "half.png"), np.ones((40, 40), bool))


@pytest.mark.parametrize("given", ["path", "image"])
@pytest.mark.parametrize("large", ["image", "mask"])
def test_what_is_too_large_is_refused_before_it_is_decoded(pipe, tmp_path, given, large):
    """The file ends after its header, so that decoding it would say something else."""
    noise_picture(30, 20).save(tmp_path / "whole.png")
    (tmp_path / "large.png").write_bytes((tmp_path / "whole.png").read_bytes()[:60])
    large_one = tmp_path / "large.png" if given == "path" else Image.open(tmp_path / "large.png")
    arguments = (large_one, np.eye(30, 20)) if large == "image" else (noise_picture(8, 8), large_one)
    with pytest.raises(DataError) as refused:
        pipe.inpaint(*arguments, max_pixels=599)
    for piece in (large, "20 x 30", "599", "max_pixels"):
        assert piece in str(refused.value).replace("large.png", large)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "I;16"])
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("corner", [(0, 0), (70, 0), (25, 61), (70, 105)])
def test_only_the_hole_of_a_large_image_changes(pipe, mode, soft, corner):
    """The region is cut out and put back, wherever it lies."""
    if mode == "I;16":
        picture = Image.fromarray(np.random.default_rng(0).integers(0, 65536, (80, 120)).astype(np.uint16))
    else:
        picture = noise_picture(80, 120, mode)
    mask = np.zeros((80, 120), np.float32)
    mask[corner[0] : corner[0] + 10, corner[1] : corner[1] + 15] = 0.7
    before = np.asarray(picture)
    for one in pipe.inpaint(picture, mask, num=2, steps=2, soft_mask=soft):
        after = np.asarray(one)
        assert one.mode == picture.mode
        assert np.array_equal(after[mask == 0], before[mask == 0])
        assert (after[mask > 0] != before[mask > 0]).mean() > 0.4  # alpha stays
    assert np.array_equal(np.asarray(picture), before)


HUGE = """
import resource, sys
import numpy as np
from PIL import Image
import diffunet
pipe = diffunet.load(sys.argv[1])
picture = Image.effect_noise((6000, 6000), 50).convert("RGB")
mask = Image.new("L", picture.size)
mask.paste(255, (3000, 3000, 3020, 3020))
pipe.inpaint(picture.crop((0, 0, 60, 60)), mask.resize((60, 60)).point(lambda v: 255 * (v > 0)), steps=2)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
pipe.inpaint(picture, mask, steps=2)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / 6000**2)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts memory as Linux does")
@pytest.mark.seconds
def test_memory_of_a_large_image(run):
    """Bytes a pixel: 3 the picture that comes back, 4 and 1 the mask; a float copy of the picture alone would be 12."""
    done = subprocess.run([sys.executable, "-c", HUGE, str(run)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 12


def test_the_default_calls_the_net_a_twentieth_as_often_as_published_repaint(pipe):
    assert count_calls(pipe) <= 2410 / 20


def test_bf16_is_close(run, pipe):
    a, b = (arrays(p.sample(4, steps=4)) for p in (pipe, diffunet.load(run, dtype=torch.bfloat16)))
    assert np.mean([abs(x - y).mean() for x, y in zip(a, b, strict=True)]) < 4


def test_a_transparent_grey_of_16_bits_stays_declared(run, tmp_path):
    values = np.random.default_rng(0).integers(0, 2**16, (20, 30)).astype("<u2")
    Image.frombytes("I;16", (30, 20), values.tobytes()).save(tmp_path / "grey.png", transparency=int(values[0, 0]))
    hole = np.zeros((20, 30), bool)
    hole[5:9, 5:9] = True
    diffunet.load(run).inpaint(tmp_path / "grey.png", hole, steps=2)[0].save(tmp_path / "filled.png")
    filled = Image.open(tmp_path / "filled.png")
    assert filled.info["transparency"] == values[0, 0]
    assert np.array_equal(np.asarray(filled)[~hole], values[~hole])
