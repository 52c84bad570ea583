"""What each net is told: of labels, known pixels and windows, with a weaker model beside the main one."""

from functools import partial

import numpy as np
import pytest
import torch
from helpers.small import tiny
from PIL import Image

import diffunet
from diffunet import Guidance, build
from diffunet.diffusion.tiling import Tiled
from diffunet.errors import UsageError
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
