"""The U-Net of 2015: against the paper's figure, against the same net written out, and as a diffusion backbone."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from diffunet.nn.cost import cost
from diffunet.nn.unet import UNet
from diffunet.nn.unet2015 import UNet2015, input_size, margin, nearest_sizes, output_size


def tiny(**options):
    return UNet2015(**{"in_channels": 2, "out_channels": 3, "layers": 2, "base_channels": 4} | options)


def tiny_timed(**options):
    return tiny(**{"in_channels": 3, "padding": "same", "time": True} | options)


def awake(net):
    """Layers that start at zero hide mistakes: give every parameter a value."""
    torch.manual_seed(0)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.2)
    return net.eval()


def reference(weights, x, layers, same=False, e=None):
    """Figure 1 of the paper, written out on a net's weights; `e` is what a net with time was told."""

    def convs(x, name):
        for conv in ("conv1", "conv2"):
            if same:
                x = F.pad(x, (1, 1, 1, 1))
            x = F.conv2d(x, weights[f"{name}.{conv}.weight"], weights[f"{name}.{conv}.bias"])
            if conv == "conv1" and e is not None:
                told = e @ weights[f"{name}.embedding.weight"].T + weights[f"{name}.embedding.bias"]
                x = x + told[:, :, None, None]
            x = x.clamp(min=0)
        return x

    maps = []
    for level in range(layers):
        x = convs(x, f"down.{level}.convs")
        maps.append(x)
        height, width = x.shape[2:]
        if same:  # an odd size goes on by what can never be the largest
            x = F.pad(x, (0, width % 2, 0, height % 2), value=-math.inf)
        else:
            assert height % 2 == width % 2 == 0
        x = torch.stack([x[..., i::2, j::2] for i in (0, 1) for j in (0, 1)]).amax(0)
    x = convs(x, "bottleneck")
    for k in range(layers):
        kernel, bias = weights[f"up.{k}.up.weight"], weights[f"up.{k}.up.bias"]  # [C C' 2 2]
        up = torch.zeros(len(x), kernel.shape[1], 2 * x.shape[2], 2 * x.shape[3], dtype=x.dtype)
        for i in (0, 1):
            for j in (0, 1):
                up[..., i::2, j::2] = torch.einsum("bchw,cd->bdhw", x, kernel[:, :, i, j]) + bias[:, None, None]
        skip = maps.pop()
        if same:
            up = up[:, :, : skip.shape[2], : skip.shape[3]]
        else:
            cut = (skip.shape[2] - up.shape[2]) // 2, (skip.shape[3] - up.shape[3]) // 2
            skip = skip[:, :, cut[0] : skip.shape[2] - cut[0], cut[1] : skip.shape[3] - cut[1]]
        x = convs(torch.cat([skip, up], dim=1), f"up.{k}.convs")
    return F.conv2d(x, weights["out.weight"], weights["out.bias"])


@pytest.mark.parametrize(
    ("layers", "size"), [(0, (9, 5)), (1, (18, 20)), (2, (44, 52)), (3, (92, 100)), (4, (188, 204))]
)
def test_without_padding_it_is_the_papers_net(layers, size, device):
    net = awake(tiny(layers=layers)).double()
    x = torch.randn(2, 2, *size).double()
    expected = reference(net.state_dict(), x, layers)
    assert expected.shape == (2, 3, *(n - 2 * margin(layers) for n in size))
    torch.testing.assert_close(net(x).detach(), expected)


@given(layers=st.integers(0, 4), height=st.integers(1, 40), width=st.integers(1, 40))
@settings(max_examples=60, deadline=None)
def test_padded_any_height_and_width_come_out_as_they_went_in(layers, height, width):
    net = awake(tiny(layers=layers, base_channels=2, padding="same"))
    x = torch.randn(1, 2, height, width)
    answer = net(x).detach()
    assert answer.shape == (1, 3, height, width)
    torch.testing.assert_close(answer, reference(net.state_dict(), x, layers, same=True), atol=1e-4, rtol=1e-4)


def test_sizes_of_every_step_are_those_of_figure_1():
    with torch.device("meta"):
        rows = cost(UNet2015(), 572, 572, time=False).rows
    assert [(row.name, row.shape[0], row.shape[1]) for row in rows if row.shape[1] == row.shape[2]] == [
        ("down.0.convs", 64, 568),
        ("down.0.pool", 64, 284),
        ("down.1.convs", 128, 280),
        ("down.1.pool", 128, 140),
        ("down.2.convs", 256, 136),
        ("down.2.pool", 256, 68),
        ("down.3.convs", 512, 64),
        ("down.3.pool", 512, 32),
        ("bottleneck", 1024, 28),
        ("up.0.up", 512, 56),
        ("up.0.convs", 512, 52),
        ("up.1.up", 256, 104),
        ("up.1.convs", 256, 100),
        ("up.2.up", 128, 200),
        ("up.2.convs", 128, 196),
        ("up.3.up", 64, 392),
        ("up.3.convs", 64, 388),
        ("out", 2, 388),
    ]


def test_cost_counts_what_the_formulas_say():
    net = tiny_timed(layers=1)
    counted = cost(net, 9, 7)
    macs = {row.name: row.macs for row in counted.rows}
    assert macs["down.0.convs"] == 9 * 7 * 9 * (3 * 4 + 4 * 4) + 16 * 4  # two convolutions, and the embedding's share
    assert macs["up.0.up"] == 10 * 8 * 8 * 4  # of a map of 5x4, each answer by one 2x2 kernel's one place
    assert macs["out"] == 9 * 7 * 4 * 3
    assert sum(macs.values()) == counted.macs
    assert counted.parameters == sum(parameter.numel() for parameter in net.parameters())


@pytest.mark.parametrize(("layers", "base"), [(0, 4), (2, 8), (4, 64)])
def test_number_of_parameters(layers, base):
    def conv(c_in, c_out, k):
        return k * k * c_in * c_out + c_out

    expected = conv(base, 2, 1)
    for level in range(layers + 1):
        c = base * 2**level
        expected += conv(c // 2 if level else 1, c, 3) + conv(c, c, 3)  # contracting
        if level < layers:
            expected += conv(2 * c, c, 2) + conv(2 * c, c, 3) + conv(c, c, 3)  # expansive
    net = UNet2015(layers=layers, base_channels=base, device="meta")
    assert sum(parameter.numel() for parameter in net.parameters()) == expected


def test_weights_start_as_the_paper_says():
    torch.manual_seed(0)
    net = UNet2015(layers=2, base_channels=32)
    incoming = {nn.Conv2d: lambda m: m.in_channels * m.kernel_size[0] ** 2, nn.ConvTranspose2d: lambda m: m.in_channels}
    seen = 0
    for name, module in net.named_modules():
        if type(module) not in incoming:
            continue
        std = math.sqrt(2 / incoming[type(module)](module))
        n = module.weight.numel()
        assert module.weight.std().item() == pytest.approx(std, rel=5 / math.sqrt(2 * n)), name
        assert abs(module.weight.mean().item()) < 5 * std / math.sqrt(n), name
        assert not module.bias.any(), name
        seen += 1
    assert seen == 2 * 5 + 2 + 1
    x = torch.randn(1, 128, 50, 50)  # N counted by what it is for: the variance that comes of a variance of 1 is 2
    assert net.up[0].up(x).var().item() == pytest.approx(2, rel=0.2)
    assert net.bottleneck.conv2(x)[..., 1:-1, 1:-1].var().item() == pytest.approx(2, rel=0.2)


def passes(size, layers):
    """Walk a size down and up by the paper's rules: what is left, or None where it cannot work."""
    skips = []
    for _ in range(layers):
        size -= 4
        if size < 2 or size % 2:
            return None
        skips.append(size)
        size //= 2
    size -= 4
    for skip in reversed(skips):
        if size < 1 or (skip - 2 * size) % 2:
            return None
        size = 2 * size - 4
    return size if size > 0 else None


@pytest.mark.parametrize("layers", range(6))
def test_sizes_that_work_are_those_that_the_papers_rules_let_through(layers):
    sizes = {size: left for size in range(900) if (left := passes(size, layers))}
    for size in range(1, 600):
        below = max((n for n in sizes if n <= size), default=None)
        assert nearest_sizes(size, layers) == (below, min(n for n in sizes if n >= size))
        if size in sizes:
            assert output_size(size, layers) == sizes[size] == size - 2 * margin(layers)
        else:
            with pytest.raises(ValueError, match=f"^{size} pixels cannot pass {layers} poolings"):
                output_size(size, layers)
    for wanted in range(1, 300):
        assert input_size(wanted, layers) == min(size for size, left in sizes.items() if left >= wanted)


def test_the_papers_own_sizes():
    assert (output_size(572, 4), margin(4), input_size(388, 4)) == (388, 92, 572)
    assert nearest_sizes(580, 4) == (572, 588)


@pytest.mark.parametrize(
    ("size", "said"),
    [
        ((571, 572), "571x572 .* by its height: the nearest that can are 556 and 572"),
        ((572, 580), "572x580 .* by its width: the nearest that can are 572 and 588"),
        ((100, 572), "100x572 .* by its height: the smallest that can is 188"),
    ],
)
def test_sizes_that_cannot_work_are_refused_with_those_that_can(size, said):
    net = UNet2015(base_channels=1, device="meta")
    with pytest.raises(ValueError, match=said):
        net(torch.empty(1, 1, *size, device="meta"))


def test_an_answer_depends_on_the_pixels_that_the_paper_says_and_no_others():
    """Intervals walked back by hand; with means for maxima and weights above 0, every dependence has a slope."""
    layers = 2
    net = tiny(in_channels=1, out_channels=1, base_channels=1)
    for parameter in net.parameters():
        nn.init.constant_(parameter, 0.5)
    for down in net.down:
        down.pool = nn.AvgPool2d(2)
    x = torch.zeros(1, 1, 60, 60, dtype=torch.float64, requires_grad=True)
    answer = net.double()(x)[0, 0]

    def back(wanted, size, level=0):  # of the map that enters a level, those that `wanted` of what leaves it needs
        grown = {i + d for i in wanted for d in range(5)}
        if level == layers:
            return grown
        pooled = (size - 4) // 2
        crop = ((size - 4) - 2 * (pooled - 2 * margin(layers - level - 1))) // 2
        below = back({i // 2 for i in grown}, pooled, level + 1)
        skip = {i + crop for i in grown} | {2 * i + d for i in below for d in (0, 1)}
        return {i + d for i in skip for d in range(5)}

    for pixel in (0, 1, 2, 7, len(answer) - 1):
        (slope,) = torch.autograd.grad(answer[pixel, 0], x, retain_graph=True)
        assert set(slope[0, 0].sum(1).nonzero()[:, 0].tolist()) == back({pixel}, 60)
    assert back({0}, 60) | back({len(answer) - 1}, 60) >= {0, 59}


@pytest.mark.parametrize("padding", ["valid", "same"])
def test_encode_and_decode_on_their_own(padding, device):
    net = awake(tiny(padding=padding))
    x = torch.randn(1, 2, 52, 60)
    bottleneck, skips = net.encode(x)
    assert len(skips) == 2
    assert bottleneck.shape[1] == 16
    assert [skip.shape[1] for skip in skips] == [4, 8]
    torch.testing.assert_close(net.down[1].convs(F.max_pool2d(skips[0], 2)), skips[1])  # as they were before pooling
    assert torch.equal(net.decode(bottleneck, skips), net(x))
    for wrong in ([net.down[i].pool(skip) for i, skip in enumerate(skips)], [skip[..., 1:] for skip in skips]):
        with pytest.raises(ValueError, match="does not go with an up-convolved map"):
            net.decode(bottleneck, wrong)
    with pytest.raises(ValueError, match="shorter"):
        net.decode(bottleneck, skips[1:])


def test_dropout_is_at_the_end_of_the_contracting_path(device):
    torch.manual_seed(0)
    net = tiny(base_channels=16, padding="same", dropout=0.3).train()
    x = torch.randn(1, 2, 40, 40)
    (a, a_skips), (b, b_skips) = net.encode(x), net.encode(x)
    whole, _ = net.eval().encode(x)
    assert all(torch.equal(*pair) for pair in zip(a_skips, b_skips, strict=True))
    assert not torch.equal(a, b)
    assert (a[whole > 0] == 0).float().mean().item() == pytest.approx(0.3, abs=0.05)


def test_without_time_there_is_nothing_to_tell(device):
    net = tiny()
    x = torch.randn(1, 2, 44, 44)
    for told in (
        {"c_noise": torch.ones(1)},
        {"label": torch.zeros(1, dtype=torch.int64)},
        {"augment": torch.ones(1, 9)},
    ):
        with pytest.raises(ValueError, match="time=False"):
            net(x, **told)
    for options in ({"num_classes": 2}, {"augment_channels": 9}, {"uncertainty": True}):
        with pytest.raises(ValueError, match="time=True"):
            tiny(**options)
    with pytest.raises(ValueError, match="c_noise"):
        tiny_timed()(torch.randn(1, 3, 8, 8))


@pytest.mark.parametrize("layers", [0, 3])
def test_with_time_every_pair_of_convolutions_is_told(layers, device):
    net = awake(tiny_timed(layers=layers, num_classes=2)).double()
    x, label = torch.randn(2, 3, 13, 22).double(), torch.tensor([0, 2])
    e = net.embedding(torch.tensor([3.0, 700.0]), label)
    expected = reference(net.state_dict(), x, layers, same=True, e=e)
    torch.testing.assert_close(net(x, torch.tensor([3.0, 700.0]), label).detach(), expected.detach())


def test_with_time_it_starts_as_zero_and_uses_every_parameter(device):
    net = tiny_timed(num_classes=4, augment_channels=9)
    told = torch.tensor([1.0, 500.0]), torch.tensor([0, 4]), torch.randn(2, 9)
    x = torch.randn(2, 3, 9, 9)
    assert net(x, *told).abs().max() == 0
    awake(net)(x, *told).square().sum().backward()
    unused = [name for name, parameter in net.named_parameters() if parameter.grad is None or not parameter.grad.any()]
    assert unused == []


def test_with_time_it_is_called_as_the_unet_is(device):
    net = awake(tiny_timed(num_classes=3, uncertainty=True))
    other = UNet(in_channels=3, channels=4, multipliers=(1, 2), num_classes=3, uncertainty=True, attention_levels=())
    for name in ("in_channels", "out_channels", "num_classes", "null_label"):
        assert getattr(net, name) == getattr(other, name)
    assert {name for name in net.state_dict() if name.startswith(("embedding.", "uncertainty."))} == {
        name for name in other.state_dict() if name.startswith(("embedding.", "uncertainty."))
    }
    x, t, label = torch.randn(3, 3, 11, 7), torch.tensor([0.0, 10.0, 999.0]), torch.tensor([0, 1, 3])
    together = net(x, t, label)
    for i in range(3):
        torch.testing.assert_close(net(x[i : i + 1], t[i : i + 1], label[i : i + 1]), together[i : i + 1])
    assert torch.equal(net(x, t), net(x, t, torch.full((3,), net.null_label)))
    assert not torch.allclose(net(x, t), net(x, t + 1))
    assert net.uncertainty(torch.zeros(3)).shape == (3,)


@pytest.mark.parametrize("time", [False, True])
@pytest.mark.seconds
def test_copies_compiles_and_goes_in_bfloat16(time):
    net = awake(tiny_timed(num_classes=2) if time else tiny(in_channels=3))
    told = (torch.tensor([1.0, 9.0]), torch.tensor([0, 2])) if time else ()
    compiled = torch.compile(net, fullgraph=True, backend="eager")
    x = torch.randn(2, 3, *((17, 23) if time else (44, 52)))
    expected = net(x, *told)
    assert torch.equal(copy.deepcopy(net)(x, *told), expected)
    torch.testing.assert_close(compiled(x, *told), expected)
    with torch.autocast("cpu", torch.bfloat16):
        low = net(x, *told)
    assert (low.float() - expected).abs().max() < 0.05 * expected.abs().max()


def test_device_is_where_the_parameters_are_made():
    options = {"time": True, "num_classes": 2, "augment_channels": 3, "uncertainty": True, "padding": "same"}
    net = UNet2015(device="meta", **options)
    with torch.device("meta"):
        other = UNet2015(**options)
        here = UNet2015(device="cpu", layers=1, base_channels=2)
    assert {parameter.device.type for parameter in [*net.parameters(), *other.parameters()]} == {"meta"}
    assert {parameter.device.type for parameter in here.parameters()} == {"cpu"}
    assert net(torch.empty(2, 1, 33, 20, device="meta"), torch.empty(2, device="meta")).shape == (2, 2, 33, 20)
