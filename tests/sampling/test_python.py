"""The Python API from a program's side: values of any type, noise, variations, streams, copies; on a small net."""

import copy
import io
import itertools
import pathlib
import pickle
import threading

import numpy as np
import pytest
import torch
from helpers.small import tiny
from PIL import Image

import diffunet
from diffunet import Cancelled, Config, Guidance, UsageError, build, draws

pytestmark = pytest.mark.seconds


class Net(torch.nn.Module):
    """One convolution of random weights, which nothing can learn from."""

    def __init__(self):
        super().__init__()
        weights = 0.3 * torch.randn(3, 3, 3, 3, generator=torch.Generator().manual_seed(0))
        self.weight = torch.nn.Parameter(weights)

    def forward(self, x, c_noise, label=None, augment=None):
        shift = 0 if label is None else label[:, None, None, None] / 3
        return torch.nn.functional.conv2d(x, self.weight, padding=1).tanh() + shift


@pytest.fixture(scope="module")
def pipe():
    config = tiny(data={"class_names": ("cat", "dog")}, diffusion={"sample_steps": 3})
    return diffunet.Pipeline(config, build.denoiser(config, Net()))


PICTURE, HOLE = Image.new("RGB", (8, 8), "red"), np.eye(8, dtype=bool)


def pixels(pictures):
    return np.stack([np.asarray(picture) for picture in pictures])


# Seeds and counts.


@pytest.mark.parametrize("seed", [np.int64(3), np.uint8(3), np.arange(5)[3], torch.tensor(3), 3.0, np.float32(3)])
def test_a_seed_is_a_number_whatever_its_type(pipe, seed):
    assert np.array_equal(pixels(pipe.sample(2, seed=seed)), pixels(pipe.sample(2, seed=3)))
    ours, theirs = (pixels(pipe.inpaint(PICTURE, box=(1, 1, 6, 6), seed=s)) for s in (seed, 3))
    assert np.array_equal(ours, theirs)


@pytest.mark.parametrize("seed", [None, True, 1.5, "3", np.True_])
def test_a_seed_that_is_none(pipe, seed):
    for call in (lambda: pipe.sample(1, seed=seed), lambda: pipe.inpaint(PICTURE, HOLE, seed=seed)):
        with pytest.raises(UsageError, match="seed is a whole number, not"):
            call()


def test_draws_take_plain_keys_alone():
    for function in (draws.seed_of, draws.key_of):
        for part in (np.int64(3), True, 3.0):
            with pytest.raises(AssertionError):
                function("image", part)


ODD = [
    True, 1.5, float("nan"), -1, 10**30, "x", b"x", [1, 2], {"a": 1}, {1}, object(), np.array([1.0, 2]), np.array("x"),
    np.float32(1.5), torch.tensor([1.0, 2]), torch.empty(2, device="meta"), lambda a, b: 1, int, 1j, range(3),
    memoryview(b"abc"), torch.float32, Ellipsis, pathlib.Path("none"), io.BytesIO(b"x"),
]  # fmt: skip


def refuses(call, *may):
    """Each odd value works or is refused in words."""
    refused = 0
    for value in ODD:
        try:
            call(value)
        except diffunet.Error:
            refused += 1
        except may:
            pass
    assert refused > len(ODD) / 2


SAMPLING = "num seed labels batch_size noise start guidance sampler steps ladder threshold"
INPAINTING = (
    "image num seed method fit steps label guidance box invert_mask soft_mask feather resize_mask max_pixels"
)  # fmt: skip


@pytest.mark.parametrize("name", SAMPLING.split())
def test_odd_values_for_sampling(pipe, name):
    refuses(lambda value: pipe.sample(**{"num": 1, "steps": 1, name: value}))


@pytest.mark.parametrize("name", ["scale", "weaker", "interval", "rescale"])
def test_odd_values_in_guidance(pipe, name):
    refuses(lambda value: pipe.sample(1, steps=1, guidance=Guidance(**{"scale": 2.0, name: value})))


@pytest.mark.parametrize("name", INPAINTING.split())
def test_odd_values_for_inpainting(pipe, name):
    usual = {"image": PICTURE, "mask": None if name == "box" else HOLE, "steps": 1, "method": "replace"}
    refuses(lambda value: pipe.inpaint(**{**usual, name: value}))


@pytest.mark.long
def test_odd_values_elsewhere(pipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a value that is a name of a folder makes one
    refuses(lambda value: pipe.sample(1, steps=1, on_step=value), TypeError)  # a function of other arguments
    refuses(diffunet.load)
    for name in ("device", "dtype", "net", "compile", "kernels"):
        refuses(lambda value, name=name: diffunet.load(tmp_path / "none", **{name: value}))
    for name in ("config", "data", "out", "net", "loss", "resume", "init", "accept_new_data", "device", "on_step"):
        usual = {"config": Config(), "data": tmp_path / "none", "out": tmp_path / "out"}
        refuses(lambda value, name=name, usual=usual: diffunet.train(**{**usual, name: value}))
    refuses(Config)
    refuses(Config.model_validate)
    refuses(lambda value: Config(data=value))
    refuses(lambda value: Config(data={"image_size": value}))
    refuses(lambda value: Config().changed(value, image_size=8))
    refuses(lambda value: diffunet.save(value, tmp_path / "x.png"))
    refuses(lambda value: diffunet.save(PICTURE, value))
    refuses(lambda value: diffunet.Pipeline(value, pipe.denoiser))
    refuses(lambda value: diffunet.Pipeline(pipe.config, value))
    with pytest.raises(UsageError, match="model is a path"):
        diffunet.load(None)


def test_numbers_that_are_whole_and_corners_that_are_floats(pipe):
    assert len(pipe.sample(2.0, steps=np.int64(2), batch_size=torch.tensor(1))) == 2
    exact = pipe.inpaint(PICTURE, box=(1, 2, 6, 7), steps=2)
    for box in ((1.0, 2.0, 6.0, 7.0), [1, 2, 6, 7], np.array([1, 2, 6, 7]), torch.tensor([1, 2, 6, 7])):
        assert np.array_equal(pixels(pipe.inpaint(PICTURE, box=box, steps=2)), pixels(exact))
    for box in ((1, 2, 6), "1,2,6,7", (1, 2, 6, 7.5)):
        with pytest.raises(UsageError, match="box"):
            pipe.inpaint(PICTURE, box=box)
    assert pipe.sample(1, guidance=None, steps=1)


def test_labels_of_any_kind(pipe):
    expected = pixels(pipe.sample(2, labels=["dog", "cat"]))
    for labels in ([1, 0], np.array([1, 0]), torch.tensor([1, 0]), (np.int64(1), "cat"), iter(["1", 0.0])):
        assert np.array_equal(pixels(pipe.sample(2, labels=labels)), expected)
    with pytest.raises(UsageError, match="more labels for 2 images"):
        pipe.sample(2, labels=itertools.cycle([0, 1]))


@pytest.mark.parametrize("form", ["array", "tensor", "bytes", "file", "path"])
def test_images_of_any_form_are_filled_alike(pipe, form, tmp_path):
    colours = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    path = tmp_path / "a.png"
    Image.fromarray(colours).save(path)
    given = {
        "array": colours, "tensor": torch.from_numpy(colours).permute(2, 0, 1).float() / 255,
        "bytes": path.read_bytes(), "file": io.BytesIO(path.read_bytes()), "path": str(path),
    }[form]  # fmt: skip
    expected = pixels(pipe.inpaint(Image.fromarray(colours), HOLE, steps=2))
    assert np.array_equal(pixels(pipe.inpaint(given, HOLE, steps=2)), expected)
    mask = io.BytesIO()
    Image.fromarray(HOLE).save(mask, "PNG")
    for opened in (mask, mask.getvalue()):
        assert np.array_equal(pixels(pipe.inpaint(given, opened, steps=2)), expected)


# Progress, and cancelling it.


@pytest.mark.parametrize("kind", [bool, np.bool_, torch.tensor, int])
def test_any_false_value_cancels(pipe, kind):
    with pytest.raises(Cancelled, match="cancelled after step 2 of 3"):
        pipe.sample(1, on_step=lambda progress: kind(progress.step < 2))


def test_progress_says_which_images_are_at_work(pipe):
    seen = []
    pictures = pipe.sample(5, batch_size=2, on_step=seen.append)
    assert [progress.images for progress in seen] == [range(2)] * 3 + [range(2, 4)] * 3 + [range(4, 5)] * 3
    assert [(progress.step, progress.steps) for progress in seen] == [(i + 1, 9) for i in range(9)]
    assert all(len(p.images) == len(p.denoised) == len(p.noisy) for p in seen)
    last = ((seen[2].noisy + 1) * 127.5).round().clamp(0, 255).permute(0, 2, 3, 1).numpy()  # sigma 0
    assert np.array_equal(pixels(pictures[:2]), last)
    seen.clear()
    pipe.inpaint(PICTURE, HOLE, num=3, steps=1, on_step=seen.append)
    assert seen[-1].images == range(3)


# Noise, variations, streams.


def test_noise_of_ones_own(pipe):
    noise = draws.streams(7, range(4), (3, 8, 8))()
    expected = pixels(pipe.sample(4, seed=7))
    for given in (noise, noise.numpy(), noise.double()):
        assert np.array_equal(pixels(pipe.sample(noise=given)), expected)
    assert np.array_equal(pixels(pipe.sample(4, noise=noise, batch_size=3)), expected)
    turned = pixels(pipe.sample(4, noise=noise.flip(0), labels=0))
    assert np.array_equal(turned, pixels(pipe.sample(4, noise=noise, labels=0))[::-1])
    for wrong, words in (
        (noise[:, :2], r"noise is \[num 3 8 8\]"), (noise[0], "noise is"), (noise[:3], "for 3 images, and num is 4"),
        (noise * np.nan, "not finite"), (noise.long(), "of floats"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=words):
            pipe.sample(4, noise=wrong)


def test_variations_go_further_from_the_picture_with_more_strength(pipe):
    start = Image.fromarray(np.random.default_rng(1).integers(0, 256, (30, 40, 3), dtype=np.uint8))
    same = np.asarray(start.crop((5, 0, 35, 30)).resize((8, 8), Image.Resampling.BICUBIC)).astype(int)
    found = [pixels(pipe.sample(2, steps=20, start=start, strength=share)).astype(int) for share in (0.05, 0.4, 0.9)]
    distance = [abs(one - same).mean() for one in found]
    assert distance == sorted(distance)
    assert not np.array_equal(found[1][0], found[1][1])
    for strength in (0, 1.01, "much"):
        with pytest.raises(UsageError, match="strength is"):
            pipe.sample(1, start=start, strength=strength)


def test_a_stream_makes_a_batch_when_it_is_asked_for(pipe):
    steps = []
    stream = pipe.stream(6, batch_size=2, seed=4, on_step=steps.append)
    assert steps == []
    first = next(stream)
    assert len(steps) == 3
    other = threading.Thread(target=pipe.sample, args=(1,))  # it does not hold the pipeline meanwhile
    other.start()
    other.join(60)
    assert not other.is_alive()
    assert torch.is_grad_enabled()
    everything = [first, *stream]
    assert np.array_equal(pixels(everything), pixels(pipe.sample(6, batch_size=2, seed=4)))
    assert [picture.name for picture in everything[:3]] == ["4-00000-cat", "4-00001-dog", "4-00002-cat"]
    with pytest.raises(UsageError):
        pipe.stream(0)  # at once


def test_what_is_skipped_is_not_made_and_changes_nothing_else(pipe):
    everything, steps = pipe.sample(7, batch_size=2, sampler="ddpm"), []
    some = list(pipe.stream(7, batch_size=2, sampler="ddpm", skip={0, 1, 2, 6}, on_step=steps.append))
    assert [picture.name for picture in some] == [everything[i].name for i in (3, 4, 5)]
    assert np.array_equal(pixels(some), pixels([everything[i] for i in (3, 4, 5)]))
    assert [(progress.step, progress.steps) for progress in steps] == [(i + 1, 6) for i in range(6)]
    for skip in (np.array([0, 1, 2, 6]), torch.tensor([0, 1, 2, 6]), iter([0, 1, 2, 6])):
        assert [picture.name for picture in pipe.stream(7, steps=1, skip=skip)] == [picture.name for picture in some]
    assert [*pipe.stream(7, steps=1, skip=range(7))] == []
    for skip in (3, "12", None):
        with pytest.raises(UsageError, match="skip holds the numbers of images, not"):
            pipe.stream(7, skip=skip)


def test_an_ancestral_sampler_with_the_steps_of_another_is_said(pipe, caplog):
    for options in ({}, {"sampler": "heun"}, {"sampler": "ddpm", "steps": 2}):
        pipe.stream(1, **options)
    diffunet.Pipeline(pipe.config.changed("diffusion", sampler="ddpm"), pipe.denoiser).stream(1)
    assert caplog.text == ""
    pipe.stream(1, sampler="euler-ancestral")
    assert "sampler ddpm needs 100 to 1,000 steps; these are the model's 3" in caplog.text


def test_names_of_fillings(pipe, tmp_path):
    PICTURE.save(tmp_path / "holiday.png")
    two = pipe.inpaint(tmp_path / "holiday.png", HOLE, num=2, steps=1)
    assert [path.name for path in two.save(tmp_path / "out")] == ["holiday-0.png", "holiday-1.png"]
    with Image.open(tmp_path / "holiday.png") as opened:
        [one] = fillings = pipe.inpaint(opened, HOLE, steps=1)
    assert one.name == "holiday"
    before = (tmp_path / "holiday.png").read_bytes()
    with pytest.raises(UsageError, match=r"holiday\.png is the image that was filled in, and would be replaced"):
        fillings.save(tmp_path)
    assert (tmp_path / "holiday.png").read_bytes() == before
    assert fillings.save(tmp_path / "out") == [tmp_path / "out/holiday.png"]
    assert fillings.save(tmp_path / "holiday.png") == [tmp_path / "holiday.png"]  # by its own name
    assert pipe.inpaint(np.asarray(PICTURE), HOLE, steps=1)[0].name == "filled"


# The pipeline itself, and what is around it.


def test_a_copy_has_weights_of_its_own(pipe):
    before, copied = pixels(pipe.sample(2)), copy.deepcopy(pipe)
    assert np.array_equal(pixels(copied.sample(2)), before)
    for parameter in copied.denoiser.parameters():
        parameter.zero_()
    assert not np.array_equal(pixels(copied.sample(2)), before)
    assert np.array_equal(pixels(pipe.sample(2)), before)
    assert np.array_equal(pixels(copy.copy(pipe).sample(2)), before)


def test_a_pipeline_is_not_pickled(pipe):
    for write in (pickle.dumps, lambda it: torch.save(it, io.BytesIO())):
        with pytest.raises(UsageError, match="load the model there"):
            write(pipe)


@pytest.fixture(params=["type", "device"])
def elsewhere(request):
    """A program that has set torch's defaults."""
    if request.param == "type":
        torch.set_default_dtype(torch.float64)
    else:
        torch.set_default_device("meta")
    yield request.param
    torch.set_default_dtype(torch.float32)
    torch.set_default_device(None)


def test_defaults_of_torch_that_a_program_has_set(run, folder, tmp_path, elsewhere):
    loaded = diffunet.load(run, device="cpu", dtype=torch.float32)
    found = pixels(loaded.sample(2)), pixels(loaded.inpaint(PICTURE, HOLE, steps=2))
    model = diffunet.train(tiny(train={"steps": 2, "validate_every": 2}), folder, tmp_path / "run", device="cpu")
    if elsewhere == "type":
        assert torch.get_default_dtype() == torch.float64
    else:
        assert torch.get_default_device().type == "meta"
    torch.set_default_dtype(torch.float32)
    torch.set_default_device(None)
    again = diffunet.load(run, device="cpu", dtype=torch.float32)
    assert np.array_equal(pixels(again.sample(2)), found[0])
    assert np.array_equal(pixels(again.inpaint(PICTURE, HOLE, steps=2)), found[1])
    diffunet.train(tiny(train={"steps": 2, "validate_every": 2}), folder, tmp_path / "plain", device="cpu")
    ours, plain = (diffunet.load(path).sample(1, seed=1) for path in (model, tmp_path / "plain"))
    assert np.array_equal(pixels(ours), pixels(plain))


def test_a_dict_is_a_config_and_a_typo_in_one_is_told_in_words(folder, tmp_path):
    content = tiny(train={"steps": 1}).model_dump(exclude_unset=True)
    assert diffunet.train(content, str(folder), str(tmp_path / "run")).is_dir()
    typo = {"data": {"imagesize": 64}}
    for call in (lambda: Config.model_validate(typo), lambda: Config(**typo), lambda: diffunet.train(typo, folder, "x"),
                 lambda: Config.model_validate_json('{"data": {"imagesize": 64}}')):  # fmt: skip
        with pytest.raises(UsageError, match=r"no option data.imagesize; did you mean data.image_size\?"):
            call()
    with pytest.raises(UsageError, match="a config does not change"):
        Config().train.steps = 3
    assert Config(data={"cache": tmp_path, "image_size": np.int64(32)}).data.cache == str(tmp_path)
    with pytest.raises(UsageError, match="data is a path"):
        diffunet.train(Config(), [folder / "disc/0.png"], tmp_path / "other")


def test_training_stops_by_any_false_value(folder, tmp_path):
    with pytest.raises(diffunet.Stopped, match=r"step [23] of 8"):
        diffunet.train(tiny(), folder, tmp_path / "run", on_step=lambda progress: np.bool_(progress.step < 2))
