"""Filling in: what each walk starts from and is told of, in `Filler` and on images larger than the model."""

import numpy as np
import pytest
import torch
from helpers.small import tiny
from PIL import Image

import diffunet
from diffunet import Guidance, build, draws
from diffunet.diffusion.denoiser import Denoised
from diffunet.diffusion.tiling import windows
from diffunet.errors import UsageError
from diffunet.inpainting import filling, methods, part, regions
from diffunet.sampling import conditions

SIZE = 8
BATCH = range(2, 5)
MEAN = (0.1, -0.3, 0.5)
LADDERS = {"whole": torch.tensor([80.0, 1, 0], dtype=torch.float64), "refining": torch.tensor([0.5, 0.0])}


class Net(torch.nn.Module):
    """One convolution of random weights: it looks at all that it is given."""

    def __init__(self, channels):
        super().__init__()
        random = torch.Generator().manual_seed(0)
        self.weight = torch.nn.Parameter(0.3 * torch.randn(3, channels, 3, 3, generator=random))

    def forward(self, x, c_noise, label=None, augment=None):
        return torch.nn.functional.conv2d(x, self.weight, padding=1).tanh()


def untrained(task="generate"):
    config = tiny(data={"classes": False}, diffusion={"task": task, "threshold": "static"})
    return diffunet.Pipeline(config, build.denoiser(config, Net(3 if task == "generate" else 7)))


@pytest.fixture(scope="module")
def pipe():
    return untrained()


@pytest.fixture(scope="module")
def inpainter():
    return untrained("inpaint")


def noise(height, width, *channels, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, *channels), dtype=np.uint8)


@pytest.mark.parametrize(
    ("choice", "said"),
    [
        (("ddnm", None, 10), "jump_length 10 and jump_n_sample 1 in 50 steps"),
        (("ddnm", 10, 10, 2), "jump_length 10 and jump_n_sample 2 in 10 steps"),
        (("repaint", 9, 20), "jump_length 20"),
        (("repaint", None, 2, 1), "jump_n_sample 1"),
        (("repaint", 1, None, 3), "in 1 steps"),
    ],
)
def test_jumps_that_are_none_are_refused(choice, said, pipe):
    with pytest.raises(UsageError, match=said):
        methods.choose(pipe.config.diffusion, pipe.denoiser.schedule, methods.Choice(*choice))
    for few in (("ddnm", 1), ("repaint", 1), ("repaint", 9, None, 1)):
        way = methods.choose(pipe.config.diffusion, pipe.denoiser.schedule, methods.Choice(*few))
        assert (way.ladder.diff() < 0).all()
    way = methods.choose(pipe.config.diffusion, pipe.denoiser.schedule, methods.Choice("ddnm", 10, 9, 2))
    assert (way.ladder.diff() > 0).any()


def framed(height, width, thickness=4):
    """A hole along the top and the left edge; its region of tiles is the whole image."""
    hole = np.zeros((height, width), bool)
    hole[:thickness] = hole[:, :thickness] = True
    return hole


def floats(pixels):
    """uint8 [H W C] to [1 C H W] in [-1, 1]."""
    return torch.from_numpy(pixels.astype(np.float32)).permute(2, 0, 1)[None] / 127.5 - 1


def far_from(gap):
    """bool [H W]: the pixels that no window with a pixel of the gap has."""
    far = np.ones(gap.shape, bool)
    for top, left in windows(torch.from_numpy(gap), SIZE):
        far[top : top + SIZE, left : left + SIZE] = False
    return far


class Walks:
    """Two ways whose walks end in given images, and what each of them was given."""

    def __init__(self, ends, method="replace"):
        self.ends = list(ends)
        self.seen = []
        self.whole, self.refining = (self._way(name, method) for name in ("whole", "refining"))

    def _way(self, name, method):
        def walk(denoise, known, keep, x, noise):
            self.seen.append((name, denoise, known, keep, x, noise))
            return self.ends[len(self.seen) - 1]

        return methods.Method(method, LADDERS[name], 3, walk)

    def filler(self, pipe, label=None, denoise_for=None):
        denoise_for = denoise_for or conditions.denoising(pipe, Guidance(), pipe.config.diffusion.threshold)
        mean = torch.tensor(MEAN)[:, None, None]
        return filling.Filler(SIZE, mean, self.whole, self.refining, denoise_for, label, lambda x: x, pipe.device)


def levels_of(pixels, hole):
    [one] = part.parts(part.read(Image.fromarray(pixels), hole), SIZE, "tile")
    levels = one.levels(SIZE)
    assert len(levels) == 3
    return levels


def ends_of(levels, seed=7):
    """A random image for each level, some of it beyond white and black."""
    random = torch.Generator().manual_seed(seed)
    shapes = [(len(BATCH), 3, each.region.rows, each.region.columns) for each in levels]
    return [torch.randn(shape, generator=random) for shape in shapes]


def test_each_level_starts_from_the_one_before_with_noise_of_its_own(pipe, monkeypatch):
    pixels, hole = noise(24, 40, 3), framed(24, 40)
    levels = levels_of(pixels, hole)
    ends, seeds, streams = ends_of(levels), [], draws.streams

    def spied(seed, *arguments):
        seeds.append(seed)
        return streams(seed, *arguments)

    monkeypatch.setattr(draws, "streams", spied)
    walks = Walks(ends)
    filled = walks.filler(pipe).fill(levels, BATCH, 11)
    assert [name for name, *_ in walks.seen] == ["whole", "refining", "refining"]
    assert seeds[0] == 11
    assert len(set(seeds)) == 3
    pasted = None
    for level, seed, end, (name, _, known, keep, x, later) in zip(levels, seeds, ends, walks.seen, strict=True):
        cut, gap = level.cut(3)
        assert torch.allclose(known, floats(cut), atol=1e-6)
        assert np.array_equal(keep.expand(1, 1, *gap.shape)[0, 0], ~gap)
        own = streams(seed, BATCH, (3, *gap.shape))
        start = x - LADDERS[name][0] * own()
        if pasted is None:
            expected = torch.tensor(MEAN)[:, None, None]
        else:
            size = gap.shape[::-1]
            enlarged = [np.asarray(Image.fromarray(one).resize(size, Image.Resampling.BICUBIC)) for one in pasted]
            expected = torch.where(torch.from_numpy(gap), torch.cat([floats(one) for one in enlarged]), floats(cut))
        assert torch.allclose(start.float(), expected.expand_as(start).float(), atol=1e-4)
        assert torch.equal(later(), own()), "the walk goes on with the noise that comes next"
        clipped = np.rint((end.clamp(-1, 1).permute(0, 2, 3, 1).numpy() + 1) * 127.5).astype(np.uint8)
        pasted = np.where(gap[..., None], clipped, cut)
    assert np.array_equal(filled, pasted)


@pytest.mark.parametrize("method", ["replace", "trained"])
def test_each_level_tells_its_net_the_label_and_a_trained_one_what_is_known(method, pipe):
    pixels, hole = noise(24, 40, 3), framed(24, 40)
    levels, told = levels_of(pixels, hole), []

    def denoise_for(label, concat, wrap):
        told.append((label, concat))
        return lambda x, sigma: Denoised(x)

    Walks(ends_of(levels), method).filler(pipe, 1, denoise_for).fill(levels, BATCH, 0)
    assert len(told) == 3
    for level, (label, concat) in zip(levels, told, strict=True):
        assert label.tolist() == [1] * len(BATCH)
        if method == "replace":
            assert concat is None
            continue
        cut, gap = level.cut(3)
        expected = torch.cat([floats(np.where(gap[..., None], 127.5, cut)), torch.from_numpy(gap)[None, None]], dim=1)
        assert torch.allclose(concat, expected.expand(len(BATCH), -1, -1, -1), atol=1e-6)


@pytest.mark.seconds
def test_what_no_window_sees_is_known_and_has_no_slope(pipe):
    """Whatever x is there: else mmps goes by what a few far pixels would have to change."""
    pixels, hole = noise(24, 40, 3), framed(24, 40)
    levels = levels_of(pixels, hole)
    walks = Walks(ends_of(levels))
    walks.filler(pipe).fill(levels, BATCH, 0)
    _, denoise, known, _, _, _ = walks.seen[-1]
    far = torch.from_numpy(far_from(hole))
    assert 0 < far.float().mean() < 1
    x = (100 * torch.randn(3, 3, 24, 40, generator=torch.Generator().manual_seed(0))).requires_grad_()
    x0 = denoise(x, torch.tensor(0.5)).x0
    assert torch.equal(x0[..., far], known.expand_as(x0)[..., far])
    (slope,) = torch.autograd.grad(x0[..., far].sum() + x0[..., ~far].sum(), x)
    assert not slope[..., far].any()
    assert slope[..., ~far].any()


@pytest.mark.parametrize("method", methods.METHODS)
def test_what_on_step_sees_is_known_where_no_window_is(method, inpainter):
    pixels, hole, seen = noise(24, 40, 3), framed(24, 40), []
    inpainter.inpaint(
        Image.fromarray(pixels), hole, num=2, fit="tile", steps=4, method=method, on_step=lambda p: seen.append(p)
    )
    assert [p.step for p in seen] == [i + 1 for i in range(seen[0].steps)]
    full = [p.denoised for p in seen if p.denoised.shape[2:] == hole.shape]
    far, known = torch.from_numpy(far_from(hole)), floats(pixels)
    assert far.any()
    assert full
    assert all(torch.allclose(each[..., far], known[..., far].expand(2, -1, -1), atol=1e-6) for each in full)
    assert all((each.abs() <= 1.01).all() for each in (p.denoised for p in seen)), "NaN is not, either"


def wrong(kind):
    """Denoisers of [B 3 4 4] whose derivative is not that of any law of images."""
    mixing = torch.randn(48, 48, generator=torch.Generator().manual_seed(1))

    def denoise(x, sigma):
        match kind:
            case "as it is":
                return Denoised(x)
            case "rough":
                return Denoised((x + 0.01 * (50 * x).sin()).clamp(-1, 1))
            case _:
                return Denoised((x.flatten(1) @ mixing).unflatten(1, x.shape[1:]).tanh() + 0.3 * x)

    return denoise


@pytest.mark.parametrize("kind", ["as it is", "rough", "random"])
def test_mmps_stays_within_the_range_of_images_whatever_the_derivative(kind):
    config = tiny().changed("diffusion", sampler="euler", threshold="none")
    way = methods.choose(config.diffusion, build.schedule(config), methods.Choice("mmps", steps=6))
    known, keep = floats(noise(4, 4, 3)), torch.arange(16).view(4, 4) % 3 > 0
    own = draws.streams(0, range(2), (3, 4, 4))
    walked = list(way.walk(wrong(kind), known, keep, way.ladder[0] * own(), own))
    assert len(walked) == 6
    for _, _, denoised in walked:
        assert (denoised.x0.abs() <= 1).all()
        assert torch.equal(denoised.x0[..., keep], known.expand(2, -1, -1, -1)[..., keep])
    assert (walked[-1][1].abs() <= 1 + 1e-5).all()


@pytest.mark.parametrize("fit", ["crop", "tile"])
def test_equal_holes_get_different_fillings_and_the_same_again(pipe, fit):
    even, hole = Image.new("RGB", (90, 40), (90, 120, 150)), np.zeros((40, 90), bool)
    hole[16:24, 12:20] = hole[16:24, 68:76] = True
    found = regions.choose(hole, SIZE, fit)
    assert [(each.height, each.width) for each in found] == [(found[0].height, found[0].width)] * 2

    def fillings(seed):
        filled = pipe.inpaint(even, hole, fit=fit, method="replace", steps=3, seed=seed, num=2)
        return [np.asarray(one)[16:24, left : left + 8] for one in filled for left in (12, 68)]

    first = fillings(3)
    assert len({one.tobytes() for one in [*first, *fillings(4)]}) == 8
    assert np.array_equal(first, fillings(3))


@pytest.mark.seconds
def test_inference_mode_of_the_caller_changes_nothing(run):
    """mmps takes gradients, of a model that was loaded inside as of one that was loaded outside."""
    pixels, hole = Image.fromarray(noise(20, 24, 3)), framed(20, 24)
    wanted = {"method": "mmps", "fit": "tile", "steps": 3}
    outside = diffunet.load(run)
    expected = np.asarray(outside.inpaint(pixels, hole, **wanted)[0])
    with torch.inference_mode():
        inside = diffunet.load(run)
        assert np.array_equal(outside.inpaint(pixels, hole, **wanted)[0], expected)
        assert np.array_equal(inside.inpaint(pixels, hole, **wanted)[0], expected)
        assert torch.is_inference_mode_enabled()
    assert np.array_equal(inside.inpaint(pixels, hole, **wanted)[0], expected)


@pytest.mark.parametrize(
    ("mode", "erased"), [("F", (1e20, np.nan, np.inf, -np.inf, 0)), ("I", (60_000, -5, 2**31 - 1, 0))]
)
@pytest.mark.parametrize("fit", ["crop", "tile"])
def test_what_is_erased_of_32_bits_does_not_change_the_filling(mode, erased, fit, pipe):
    """Nor the brightness that is white."""
    values = noise(24, 24).astype(np.float32 if mode == "F" else np.int32)
    hole, fillings = framed(24, 24), []
    for value in erased:
        values[hole] = value
        picture = Image.fromarray(values)
        assert picture.mode == mode
        fillings.append(np.asarray(pipe.inpaint(picture, hole, fit=fit, method="replace", steps=2)[0]))
    assert all(np.array_equal(fillings[0], one) for one in fillings[1:])
    assert np.array_equal(fillings[0][~hole], values[~hole])
    assert 0 <= fillings[0].min() <= fillings[0].max() <= 255
    assert len(np.unique(fillings[0][hole])) > 10


@pytest.mark.parametrize("fit", ["auto", "tile", "native", "crop"])
def test_an_image_larger_than_the_model_of_which_nothing_is_known(pipe, fit):
    pixels = noise(20, 30, 3)
    whole = np.ones((20, 30), bool)
    one, two = (np.asarray(x) for x in pipe.inpaint(Image.fromarray(pixels), whole, fit=fit, steps=3, num=2))
    assert one.shape == pixels.shape
    for a, b in ((one, pixels), (two, pixels), (one, two)):
        assert (a != b).any(axis=2).mean() > 0.9
    other = pipe.inpaint(Image.fromarray(255 - pixels), whole, fit=fit, steps=3)[0]
    assert np.array_equal(other, one), "nothing of the image is in it"


def test_a_finer_level_is_walked_from_refine_on_as_the_whole_ladder_ends(pipe):
    whole, refining = (
        methods.choose(pipe.config.diffusion, pipe.denoiser.schedule, methods.Choice("replace", 15), below=below).ladder
        for below in (float("inf"), filling.REFINE)
    )
    assert refining.tolist() == [filling.REFINE, *(sigma for sigma in whole.tolist() if sigma < filling.REFINE)]
    assert whole[0] > 10 * filling.REFINE
    picture, told = Image.fromarray(noise(24, 40, 3)), []
    pipe.inpaint(picture, framed(24, 40), method="replace", fit="tile", steps=15, on_step=lambda p: told.append(p))
    rows = [p.denoised.shape[2] for p in told]
    assert [rows.count(each) for each in sorted(set(rows))] == [15, len(refining) - 1, len(refining) - 1]
