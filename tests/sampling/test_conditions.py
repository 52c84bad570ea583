"""What each net is told: of labels, known pixels and windows, with a weaker model beside the main one."""

import io
import math
import shutil
from fractions import Fraction
from functools import partial

import numpy as np
import pytest
import torch
from helpers.small import tiny
from PIL import Image, ImageCms

import diffunet
from diffunet import Guidance, build, storage
from diffunet.diffusion.tiling import Tiled
from diffunet.errors import UsageError
from diffunet.pictures import images
from diffunet.sampling import conditions

SIZE = 8


class Net(torch.nn.Module):
    """One convolution of random weights."""

    def __init__(self, channels, seed):
        super().__init__()
        random = torch.Generator().manual_seed(seed)
        self.weight = torch.nn.Parameter(0.3 * torch.randn(3, channels, 3, 3, generator=random))

    def forward(self, x, c_noise, label=None, augment=None):
        return torch.nn.functional.conv2d(x, self.weight, padding=1).tanh()


def untrained(task, seed=0):
    config = tiny(data={"classes": False}, diffusion={"task": task})
    return diffunet.Pipeline(config, build.denoiser(config, Net(3 if task == "generate" else 7, seed)))


@pytest.fixture
def told():
    """What denoisers that are watched were called with: shapes of x, and `concat`."""
    calls, hooks = {}, []

    def watch(name, pipe):
        def note(_, given):
            x, _, _, concat = (*given, None, None)[:4]
            calls.setdefault(name, []).append((tuple(x.shape), concat))

        hooks.append(pipe.denoiser.register_forward_pre_hook(note))
        return pipe

    yield calls, watch
    for hook in hooks:
        hook.remove()


def filled(main, weaker, **options):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 24, 3), dtype=np.uint8)
    hole = np.zeros((20, 24), bool)
    hole[6:14, 7:15] = True
    options = {"steps": 2, "num": 2, "guidance": Guidance(2.0, weaker=weaker)} | options
    return main.inpaint(Image.fromarray(pixels), hole, **options)


@pytest.mark.parametrize("fit", ["tile", "crop"])
@pytest.mark.parametrize(
    ("task", "of_weaker", "method"),
    [
        ("inpaint", "inpaint", "trained"),
        ("inpaint", "generate", "trained"),
        ("inpaint", "inpaint", "replace"),
        ("generate", "inpaint", "replace"),
        ("generate", "generate", "mmps"),
    ],
)
@pytest.mark.seconds
def test_a_weaker_model_sees_windows_and_what_is_known_where_it_was_trained_to(task, of_weaker, method, fit, told):
    calls, watch = told
    main, weaker = watch("main", untrained(task)), watch("weaker", untrained(of_weaker))
    filled(main, weaker, method=method, fit=fit)
    assert len(calls["main"]) == len(calls["weaker"]) > 0
    for (shape, ours), (weakers, theirs) in zip(calls["main"], calls["weaker"], strict=True):
        assert shape == weakers
        assert shape[1:] == (3, SIZE, SIZE)
        assert (ours is not None) == (method == "trained")
        assert (theirs is not None) == (method == "trained" and of_weaker == "inpaint")
        if ours is not None:
            assert ours.shape == (shape[0], 4, SIZE, SIZE)
            hole = ours[:, 3:]
            assert torch.equal(hole, (hole > 0).float())
            assert not (ours[:, :3] * hole).any()
        if theirs is not None:
            assert torch.equal(ours, theirs)


def test_guidance_goes_away_from_what_the_weaker_model_says_of_all_windows():
    main, weaker = untrained("generate", 0), untrained("generate", 1)
    wrap = partial(Tiled, size=SIZE, wanted=torch.ones(20, 24, dtype=torch.bool))
    x, sigma = torch.randn(1, 3, 20, 24, generator=torch.Generator().manual_seed(0)), torch.tensor(1.0)
    with torch.no_grad():
        ours, theirs = (wrap(pipe.denoiser)(x, sigma).x0 for pipe in (main, weaker))
        guided = conditions.denoising(main, Guidance(2.5, weaker=weaker), "none")(None, None, wrap)(x, sigma).x0
    assert (ours - theirs).abs().mean() > 0.1
    assert torch.allclose(guided, theirs + 2.5 * (ours - theirs), atol=1e-5)


@pytest.mark.parametrize(
    "label", [1, "1", np.int64(1), np.uint8(1), torch.tensor(1), np.array(1), "b", 1.0, np.float32(1)]
)
def test_a_label_of_any_kind_of_integer(label):
    assert conditions.class_number(label, ("a", "b", "c")) == 1
    assert conditions.class_numbers(label, 2, ("a", "b", "c")).tolist() == [1, 1]


@pytest.mark.parametrize(
    "labels",
    [[2, "a"], (2, 0), np.array([2, 0]), np.array(["c", "a"]), torch.tensor([2, 0]), np.array([2, 0], np.uint8),
     iter([2, 0])],
    ids=lambda labels: type(labels).__name__,
)  # fmt: skip
def test_labels_as_a_list_an_array_or_a_tensor(labels):
    assert conditions.class_numbers(labels, 2, ("a", "b", "c")).tolist() == [2, 0]


@pytest.mark.parametrize(
    "label",
    ["²", "\uff11\uff12", True, np.True_, 1.5, np.float32(0.5), b"a", torch.tensor([0, 1]), -1, 3, "d", "9" * 5000],
)
def test_a_label_that_there_is_not_is_one_line(label):
    with pytest.raises(UsageError, match="there is no class"):
        conditions.class_number(label, ("a", "b", "c"))


def test_a_start_is_read_as_training_reads_its_images(tmp_path, caplog):
    """The same file as a start and through the data set: transparency, values of more than 8 bits."""
    clear = np.full((8, 8, 4), 200, np.uint8)
    clear[:4, :, 3] = 0
    Image.fromarray(clear).save(tmp_path / "clear.png")
    Image.fromarray(np.full((8, 8), 250, np.uint16)).save(tmp_path / "deep.png")
    for name, changes in (("clear", {"background": (10, 20, 30)}), ("deep", {"int_range": (0.0, 4095.0)})):
        data = tiny(data={"classes": False, "held_out": 0.0, "reading": 2, **changes}).data
        (tmp_path / name).mkdir()
        for copy in "ab":
            shutil.copy(tmp_path / f"{name}.png", tmp_path / name / f"{copy}.png")
        learned = build.dataset(data.model_copy(update={"cache": "off"}), tmp_path / name).images[0]
        start = conditions.given_start(tmp_path / f"{name}.png", data)
        assert np.abs(images.to_uint8(start[None])[0].astype(int) - learned).max() <= 1, name
    assert caplog.text == ""


def test_a_start_has_the_colours_of_its_profile(tmp_path):
    """Red by its numbers, and blue by its profile, whose red and blue are exchanged."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    profile = profile.replace(b"rXYZ", b"tmpX").replace(b"bXYZ", b"rXYZ").replace(b"tmpX", b"bXYZ")
    Image.new("RGB", (8, 8), "red").save(tmp_path / "x.png", icc_profile=profile)
    for reading, colour in ((2, (0, 0, 255)), (1, (255, 0, 0))):
        start = conditions.given_start(tmp_path / "x.png", tiny(data={"classes": False, "reading": reading}).data)
        assert np.abs(images.to_uint8(start[None])[0, 4, 4].astype(int) - colour).max() <= 2


def test_only_the_first_frame_of_a_start_is_taken_and_that_is_said(tmp_path, caplog):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(path := tmp_path / "x.gif", save_all=True, append_images=frames[1:])
    for start in (path, path.read_bytes(), io.BytesIO(path.read_bytes())):
        caplog.clear()
        found = conditions.given_start(start, tiny(data={"classes": False}).data)
        assert found[0].min() > 0.9
        name = path if start is path else "start"
        assert f"{name} has 2 pages or frames: the first is taken" in caplog.text


@pytest.mark.parametrize("scales", [(1.0, 0.25), (0.5,)])
def test_a_start_is_as_large_as_the_pictures_that_the_model_saw(scales, tmp_path):
    """A window in the middle, at the largest scale, or all of it on its background: cut out and padded here by hand."""
    pixels = np.random.default_rng(0).integers(0, 256, (24, 36, 3), dtype=np.uint8)
    data = tiny(data={"classes": False, "fit": "patch", "scales": scales}).data
    side = round(SIZE / max(scales))
    middle = Image.fromarray(pixels).resize(
        (round(36 * max(scales)), round(24 * max(scales))), Image.Resampling.BICUBIC
    )
    top, left = (middle.height - SIZE) // 2, (middle.width - SIZE) // 2
    window = np.asarray(middle)[top : top + SIZE, left : left + SIZE].astype(int)
    assert side * max(scales) == SIZE
    found = images.to_uint8(conditions.given_start(pixels, data)[None])[0]
    assert np.abs(found - window).max() <= 1
    padded = np.full((SIZE, SIZE, 3), (9, 8, 7), np.uint8)
    padded[2:6] = 100
    data = tiny(data={"classes": False, "fit": "pad", "background": (9, 8, 7)}).data
    found = images.to_uint8(conditions.given_start(np.full((20, 40, 3), 100, np.uint8), data)[None])[0]
    assert np.array_equal(found, padded)


def test_a_start_is_turned_as_its_exif_says(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "x.png", exif=exif)
    for start in (tmp_path / "x.png", Image.open(tmp_path / "x.png")):
        found = images.to_uint8(conditions.given_start(start, tiny(data={"classes": False}).data)[None])[0]
        assert np.array_equal(found, np.rot90(pixels, -1))


def test_a_strength_is_a_share_of_the_steps():
    """By fractions, of which floats such as 0.55 * 100 are off."""
    for steps in (1, 15, 50, 100, 1000):
        for percent in range(1, 101):
            wanted = math.ceil(Fraction(percent, 100) * steps)
            assert conditions.steps_of(percent / 100, steps) == wanted
    assert conditions.steps_of(1e-12, 10) == 1


@pytest.mark.parametrize("dropout", [0.1, 0.0])
def test_no_label_is_the_mean_of_the_labels_where_it_was_never_learned(dropout, model, tmp_path):
    folder, name = storage.find_model(model), "embedding.label.weight"
    weights, _ = storage.read_tensors(folder / "model.safetensors")
    config = storage.read_config(folder).changed("diffusion", label_dropout=dropout)
    storage.export_model(tmp_path / "model", config, weights, 1)
    net = diffunet.load(tmp_path / "model", "cpu", torch.float32).denoiser.net
    *rows, null = weights[name]
    expected = null if dropout else sum(rows) / len(rows)
    assert torch.allclose(net.embedding.label.weight[-1], expected, atol=1e-6)
    assert torch.equal(net.embedding.label.weight[:-1], weights[name][:-1])


@pytest.mark.parametrize("off", [{"weaker": untrained("generate")}, {"interval": (0.2, 4.0)}, {"rescale": 0.5}])
def test_what_goes_with_guidance_is_refused_where_there_is_none(off):
    with pytest.raises(UsageError, match="guidance of scale 1 is none"):
        conditions.chosen(Guidance(**off), untrained("generate"))
