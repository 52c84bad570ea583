"""One UNet speaks for DDPM's, ADM's and diffusers' nets: its options, each against another way to compute the same.

That the nets as a whole are theirs is shown in tests/interop, against diffusers and OpenAI's code.
"""

import math

import pytest
import torch
import torch.nn.functional as F

from diffunet import build
from diffunet.config import Config, preset
from diffunet.errors import UsageError
from diffunet.nn.layers import Downsample, ResBlock, ResidualDownsample, ResidualUpsample, group_norm, sinusoids
from diffunet.nn.unet import UNet
from diffunet.training import defaults


def awake(net):
    """Zero-initialised layers hide mistakes: give every parameter a value."""
    torch.manual_seed(0)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return net.eval()


VARIANTS = {
    "ddpm": {"num_heads": 1, "norm_groups": 4, "scale_shift": False, "resample": "asymmetric", "frequency_shift": 1},
    "adm": {"head_channels": 4, "norm_groups": 4, "resample": "residual", "num_classes": 3},
    "no attention": {"attention_levels": (), "middle_attention": False},
    "widths of their own": {"multipliers": (0.5, 1, 1.5), "norm_groups": 4},
}


@pytest.mark.parametrize("size", [(16, 16), (17, 23), (1, 1), (3, 2)])
@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_any_height_and_width(options, size):
    net = awake(UNet(**{"channels": 8, "multipliers": (1, 2, 2), "num_blocks": 1} | options))
    assert net(torch.randn(2, 3, *size), torch.tensor([0.0, 999.0])).shape == (2, 3, *size)


@pytest.mark.parametrize(
    ("name", "millions", "classes"),
    [
        ("ddpm", 35.7, 0),  # Ho et al. 2020, appendix B
        ("adm", 295.9, 1000),  # Karras et al. 2024 (EDM2), table 3; 296 in Dhariwal & Nichol 2021
        ("diffusers", 113.7, 0),  # google/ddpm-celebahq-256
    ],
)
def test_presets_have_as_many_parameters_as_published(name, millions, classes):
    config = defaults.architecture(preset(name), torch.device("cpu"))
    config = config.changed("data", class_names=tuple(map(str, range(classes))))
    with torch.device("meta"):
        net = build.net(config)
    assert sum(parameter.numel() for parameter in net.parameters()) / 1e6 == pytest.approx(millions, abs=0.06)


def test_asymmetric_downsampling_pads_as_tensorflow_does():
    layer = awake(Downsample(4, asymmetric=True))
    for height, width in ((8, 8), (7, 10), (1, 5)):
        x = torch.randn(2, 4, height, width)
        rows, columns = math.ceil(height / 2), math.ceil(width / 2)
        down = max((rows - 1) * 2 + 3 - height, 0)  # TensorFlow's "SAME": half before, the odd one after
        right = max((columns - 1) * 2 + 3 - width, 0)
        padded = F.pad(x, (right // 2, right - right // 2, down // 2, down - down // 2))
        expected = F.conv2d(padded, layer.conv.weight, layer.conv.bias, stride=2)
        assert expected.shape[2:] == (rows, columns)
        assert torch.allclose(layer(x, torch.zeros(2, 1)), expected, atol=1e-6)


def test_residual_resampling_is_of_both_branches():
    block = awake(ResBlock(4, 4, 6, norm=lambda channels: group_norm(channels, 2)))
    x, e = torch.randn(2, 4, 6, 8), torch.randn(2, 6)
    mean = x.unfold(2, 2, 2).unfold(3, 2, 2).mean((4, 5))  # of 2x2

    def rest(h):  # what comes after the resampling, of the inner branch
        scale, shift = F.linear(e, block.embedding.weight, block.embedding.bias)[:, :, None, None].chunk(2, dim=1)
        h = block.norm2(block.conv1(h)) * (1 + scale) + shift
        return block.conv2(h * h.sigmoid())

    inner = block.norm1(x) * block.norm1(x).sigmoid()
    halved = mean + rest(inner.unfold(2, 2, 2).unfold(3, 2, 2).mean((4, 5)))
    assert torch.allclose(ResidualDownsample(block)(x, e), halved, atol=1e-5)
    twice = [each.repeat_interleave(2, 2).repeat_interleave(2, 3) for each in (x, inner)]
    assert torch.allclose(ResidualUpsample(block)(x, e, (12, 16)), twice[0] + rest(twice[1]), atol=1e-5)


def test_frequencies_of_ddpm_end_at_a_ten_thousandth():
    e = sinusoids(torch.tensor([500.0]), 8, shift=1)
    wanted = [500 / 10_000 ** (k / 3) for k in range(4)]
    assert e[0].tolist() == pytest.approx([*map(math.cos, wanted), *map(math.sin, wanted)], abs=1e-4)


def test_number_of_heads_and_of_groups():
    net = UNet(channels=32, multipliers=(1, 2), num_heads=4, norm_groups=8, norm_eps=1e-6, attention_levels=(0, 1))
    assert {part.heads for part in net.modules() if hasattr(part, "heads")} == {4}
    norms = [part for part in net.modules() if isinstance(part, torch.nn.GroupNorm)]
    assert {(norm.num_groups, norm.eps) for norm in norms} == {(8, 1e-6)}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"norm_groups": 7}, "7 groups"),
        ({"num_heads": 3}, "3 heads"),
        ({"multipliers": [1, 1.3], "norm_groups": 8}, "8 groups"),
    ],
)
def test_what_cannot_be_divided_is_refused(options, words):
    config = Config.model_validate({"model": {"channels": 16, "multipliers": [1, 2], "attention_levels": []} | options})
    with pytest.raises(UsageError, match=words):
        build.net(config)


@pytest.mark.parametrize(
    ("section", "option", "words"),
    [
        ("diffusion", {"schedule": "linear", "beta_range": (0.1, 0.01)}, "beta-range falls"),
        ("diffusion", {"schedule": "cosine", "beta_range": (0.01, 0.1)}, "not cosine"),
        ("model", {"multipliers": (0.01, 1)}, "0.25"),
    ],
)
def test_options_out_of_their_range(section, option, words):
    with pytest.raises(UsageError, match=words):
        Config().changed(section, **({"target": "v"} if section == "diffusion" else {}), **option)


def test_the_classic_has_no_options_of_the_other_net():
    with pytest.raises(UsageError, match="unet2015 has no qk-norm"):
        Config().changed("model", net="unet2015", qk_norm=True)
    with pytest.raises(UsageError, match="1 2 4"):
        Config().changed("model", net="unet2015", multipliers=(1, 2, 3))
