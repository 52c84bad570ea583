"""diffunet's own kernels on a CPU, against torch's functions in float64, and how they are built, kept and left out."""

import copy
import os
import subprocess
import sys
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from diffunet import compiler, compute
from diffunet.nn import kernels
from diffunet.nn.layers import Attention, Conv, GroupNorm, ResBlock
from diffunet.nn.unet import UNet

pytestmark = pytest.mark.seconds


@pytest.fixture(autouse=True, scope="module")
def built():
    """The library, or a skip: without a compiler, nets are computed by torch alone."""
    try:
        kernels._loaded()
    except compiler.Unavailable as error:
        pytest.skip(str(error))
    kernels.ready(torch.device("cpu"))  # what is built and is wrong is a failure, and no reason to skip


def channels_last(*shape, mean=0.0, dtype=torch.float32):
    return (torch.randn(*shape) + mean).to(dtype).contiguous(memory_format=torch.channels_last)


def off_by(mine, exact):
    """The largest difference, beside what rounding to bfloat16 makes, as a share of the root mean square."""
    rounding = 2**-8 * exact.abs() if mine.dtype is torch.bfloat16 else 0
    return (((mine.double() - exact).abs() - rounding).max() / exact.square().mean().sqrt()).item()


def exactly(function, tensors, slope):
    """Outcome and gradients of a function in float64."""
    tensors = [None if tensor is None else tensor.detach().double().requires_grad_() for tensor in tensors]
    y = function(*tensors)
    return [y, *torch.autograd.grad(y, [tensor for tensor in tensors if tensor is not None], slope.double())]


def reference(x, groups, weight, bias, scale, shift, silu):
    h = F.group_norm(x, groups, weight, bias, 1e-5)
    h = h if scale is None else h * (1 + scale[..., None, None]) + shift[..., None, None]
    return F.silu(h) if silu else h


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("silu", [False, True])
@pytest.mark.parametrize("conditioned", [False, True])
@pytest.mark.parametrize(
    "shape_groups",
    [((3, 64, 8, 8), 4), ((1, 50, 7, 5), 5), ((2, 96, 1, 1), 96), ((2, 33, 13, 9), 1), ((5, 72, 4, 20), 3)],
    ids=str,
)
def test_norm_is_torchs_up_to_rounding(shape_groups, conditioned, silu, dtype):
    """With a mean far from 0, where sums of squares lose their digits."""
    torch.manual_seed(0)
    (b, c, h, w), groups = shape_groups
    x = channels_last(b, c, h, w, mean=5.0, dtype=dtype).requires_grad_()
    weight, bias = torch.randn(c, requires_grad=True), torch.randn(c, requires_grad=True)
    given = [x, weight, bias, *(torch.randn(b, c, requires_grad=True) for _ in range(2 if conditioned else 0))]
    slope = channels_last(b, c, h, w, dtype=dtype)
    y = kernels.norm(x, groups, weight, bias, 1e-5, *given[3:], silu=silu)
    mine = [y, *torch.autograd.grad(y, given, slope)]
    exact = exactly(lambda x, w, b, s=None, t=None: reference(x, groups, w, b, s, t, silu), given, slope)
    assert y.dtype == dtype
    assert y.is_contiguous(memory_format=torch.channels_last)
    variance_is_0 = c == groups and h * w == 1
    for name, a, b in zip(("y", "x", "weight", "bias", "scale", "shift"), mine, exact, strict=False):
        if variance_is_0 and name in ("x", "weight"):  # both are 0 but for rounding
            assert a.abs().max() < 1e-2
        else:  # without variance, x is multiplied by 1 / sqrt(epsilon)
            assert off_by(a, b) < (1e-3 if variance_is_0 else 1e-4), name


def test_norm_keeps_what_is_not_finite():
    x = channels_last(2, 16, 4, 4)
    x[0, 0, 0, 0] = torch.nan
    for dtype in (torch.float32, torch.bfloat16):
        y = kernels.norm(x.to(dtype), 2, torch.ones(16), torch.zeros(16), 1e-5, silu=True)
        assert y[0, :8].isnan().all()
        assert y[0, 8:].isfinite().all()
        assert y[1].isfinite().all()


def test_silu_is_exact_far_out():
    """exp must neither overflow nor lose digits: the norm is the identity here, up to its epsilon."""
    x = torch.linspace(-120, 120, 4097)[None, None, :, None] / 40
    h = (x - x.mean()) / x.var(correction=0).sqrt()
    for factor in (1.0, 60.0):
        y = kernels.norm(x, 1, torch.tensor([factor]), torch.zeros(1), 0.0, silu=True)
        exact = F.silu(factor * h.double())
        assert ((y - exact).abs() <= 4e-6 * exact.abs().clamp(min=factor * 1e-5)).all()


# Dropout


def mask_of(p, seed, shape=(4, 32, 16, 16)):
    """What is kept, where nothing is 0 by itself."""
    torch.manual_seed(seed)
    x = torch.rand(shape, generator=torch.Generator().manual_seed(1)) + 1
    return kernels.norm(x, 1, torch.full((shape[1],), 1e-3), torch.ones(shape[1]), 1e-5, dropout=p) != 0


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_dropout_drops_its_share_everywhere(p):
    kept = torch.stack([mask_of(p, seed) for seed in range(8)]).float()  # [seed B C H W]
    for axis in range(5):
        means = kept.mean([n for n in range(5) if n != axis])
        deviation = (p * (1 - p) * kept.shape[axis] / kept.numel()) ** 0.5
        assert ((means - (1 - p)).abs() < 5 * deviation).all(), axis


def test_masks_have_nothing_in_common():
    """Of neighbours along every axis, of images and of seeds: n independent bits correlate by about 1/sqrt(n)."""
    seeds = torch.stack([mask_of(0.5, seed) for seed in range(6)]).float() - 0.5
    for axis in range(5):
        a, b = seeds.narrow(axis, 0, seeds.shape[axis] - 1), seeds.narrow(axis, 1, seeds.shape[axis] - 1)
        assert abs((a * b).mean() * 4) < 5 / a.numel() ** 0.5
    for a, b in pairwise(seeds.flatten(1)):
        for shift in (1, 32, 512):
            assert abs((a[shift:] * b[:-shift]).mean() * 4) < 5 / a.numel() ** 0.5


def test_dropout_comes_from_torchs_generator():
    assert mask_of(0.3, 5).equal(mask_of(0.3, 5))
    assert not mask_of(0.3, 5).equal(mask_of(0.3, 6))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_dropout_and_its_gradient_are_those_of_its_mask(dtype):
    torch.manual_seed(0)
    x, slope = channels_last(3, 40, 6, 6, dtype=dtype).requires_grad_(), channels_last(3, 40, 6, 6, dtype=dtype)
    weight, bias = torch.ones(40, requires_grad=True), torch.full((40,), 3.0, requires_grad=True)
    y = kernels.norm(x, 5, weight, bias, 1e-5, silu=True, dropout=0.25)
    kept = (y != 0).double()
    assert 0.7 < kept.mean() < 0.8
    mine = [y, *torch.autograd.grad(y, [x, weight, bias], slope)]
    exact = exactly(lambda x, w, b: reference(x, 5, w, b, None, None, True) * kept / 0.75, [x, weight, bias], slope)
    for a, b in zip(mine, exact, strict=True):
        assert off_by(a, b) < 1e-4


def test_a_checkpointed_block_drops_the_same_again():
    def gradients(checkpointed):
        torch.manual_seed(0)
        block = ResBlock(32, 32, 16, dropout=0.3)
        torch.nn.init.normal_(block.conv2.weight, std=0.1)
        compute.Compute(torch.device("cpu"), native=True, channels_last=True).prepare(block)
        x, e = channels_last(2, 32, 8, 8).requires_grad_(), torch.randn(2, 16)
        torch.manual_seed(1)
        y = checkpoint(block, x, e, use_reentrant=False) if checkpointed else block(x, e)
        return torch.autograd.grad(y.square().sum(), [x, *block.parameters()])

    assert all(a.equal(b) for a, b in zip(gradients(False), gradients(True), strict=True))


# Convolution


@pytest.mark.parametrize(
    "shape", [(2, 16, 16, 8, 8), (3, 40, 17, 5, 9), (1, 3, 70, 4, 4), (9, 33, 64, 3, 2), (2, 64, 32, 30, 1)], ids=str
)
def test_conv_is_torchs_up_to_rounding(shape, monkeypatch):
    """At sizes that are no multiples of 4, several chunks, and channels that are no multiples of anything."""
    monkeypatch.setattr(kernels, "ROWS", 8)
    monkeypatch.setattr(kernels, "WORKSPACE", 2**12)
    torch.manual_seed(0)
    b, c, c_out, h, w = shape
    x, slope = channels_last(b, c, h, w).requires_grad_(), channels_last(b, c_out, h, w)
    weight = torch.randn(c_out, c, 3, 3).div(3 * c**0.5).requires_grad_()
    bias = torch.randn(c_out, requires_grad=True)
    y = kernels.conv(x, weight, bias)
    mine = [y, *torch.autograd.grad(y, [x, weight, bias], slope)]
    exact = exactly(lambda x, w, b: F.conv2d(x, w, b, padding=1), [x, weight, bias], slope)
    for a, b in zip(mine, exact, strict=True):
        assert off_by(a, b) < 1e-4
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert off_by(kernels.conv(x, weight, None), F.conv2d(x.double(), weight.double(), padding=1)) < 1e-4


def test_conv_gives_only_the_gradients_that_are_wanted():
    x, weight = channels_last(1, 16, 8, 8), torch.randn(16, 16, 3, 3)
    (only,) = torch.autograd.grad(kernels.conv(x.requires_grad_(), weight, None).sum(), [x])
    assert only.shape == x.shape
    x.requires_grad_(False)
    (only,) = torch.autograd.grad(kernels.conv(x, weight.requires_grad_(), None).sum(), [weight])
    assert only.shape == weight.shape


def test_which_convolutions_are_taken():
    """Float32 alone: under autocast to bfloat16, the transform would lose digits."""
    x, weight = channels_last(4, 32, 16, 16), torch.randn(32, 32, 3, 3)
    assert kernels.conv_applies(x, weight)
    assert not kernels.conv_applies(x.double(), weight.double())
    assert not kernels.conv_applies(x.bfloat16(), weight.bfloat16())
    assert not kernels.conv_applies(x.to("meta"), weight.to("meta"))
    assert not kernels.conv_applies(x[:1, :, :4, :4], weight)  # too few tiles
    assert not kernels.conv_applies(channels_last(99, 32, 1, 1), weight)  # a tile is mostly padding
    assert not kernels.conv_applies(channels_last(4, 3, 16, 16), torch.randn(32, 3, 3, 3))
    with torch.autocast("cpu", torch.bfloat16):
        assert not kernels.conv_applies(x, weight)


# Layers and nets


def awake(net):
    torch.manual_seed(0)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return net


def answer(net, x, **given):
    torch.manual_seed(2)
    y = net(x, torch.linspace(0, 900, len(x)), **given)
    return [y.detach(), *torch.autograd.grad(y.float().square().mean(), list(net.parameters()), allow_unused=True)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("scale_shift", [False, True])
def test_a_net_answers_and_learns_as_without(dtype, scale_shift, monkeypatch):
    torch.manual_seed(0)
    plain = awake(UNet(channels=32, multipliers=(1, 2), num_blocks=1, attention_levels=(1,), scale_shift=scale_shift))
    plain.out[2].bias.data.zero_()
    native = copy.deepcopy(plain)
    x = torch.randn(4, 3, 20, 16)  # 20 tiles an image
    how = compute.Compute(torch.device("cpu"), "fp32" if dtype is torch.float32 else "bf16", channels_last=True)
    how.prepare(plain)
    compute.Compute(torch.device("cpu"), channels_last=True, native=True).prepare(native)
    assert {m.native_kernels for m in native.modules() if isinstance(m, Conv | GroupNorm)} == {True}
    used = []
    for name in ("norm", "conv"):
        function = getattr(kernels, name)
        monkeypatch.setattr(kernels, name, lambda *a, f=function, n=name, **k: used.append(n) or f(*a, **k))
    with how.autocast():
        theirs = answer(plain, x)
        assert not used
        mine = answer(native, x)
    assert set(used) == ({"norm", "conv"} if dtype is torch.float32 else {"norm"})
    for a, b in zip(mine, theirs, strict=True):
        assert off_by(a, b.double()) < (1e-3 if dtype is torch.float32 else 0.3)


def test_a_layer_without_native_is_torchs():
    """Bit for bit: what was trained before stays what it was."""
    torch.manual_seed(0)
    x, scale, shift = channels_last(2, 32, 8, 8), torch.randn(2, 32), torch.randn(2, 32)
    norm, conv = awake(GroupNorm(2, 32)), awake(Conv(32, 16))
    assert norm(x, scale, shift, silu=True).equal(reference(x, 2, norm.weight, norm.bias, scale, shift, True))
    assert conv(x).equal(F.conv2d(x, conv.weight, conv.bias, padding=1))
    assert Attention(32).norm.native_kernels is False


def test_bits_do_not_depend_on_threads():
    x, slope = channels_last(5, 48, 12, 12), channels_last(5, 48, 12, 12)

    def outcome():
        given = x.clone().requires_grad_(), torch.ones(48, requires_grad=True), torch.zeros(48, requires_grad=True)
        torch.manual_seed(0)
        y = kernels.norm(given[0], 3, *given[1:], 1e-5, silu=True, dropout=0.1)
        return [y, *torch.autograd.grad(y, given, slope)]

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = outcome()
        torch.set_num_threads(3)
        assert all(a.equal(b) for a, b in zip(one, outcome(), strict=True))
    finally:
        torch.set_num_threads(before)


def test_thirty_shapes_in_any_order_have_the_same_bits(monkeypatch):
    """Nothing is built for a shape, and nothing is remembered of those before."""
    monkeypatch.setattr(compiler, "_build", lambda *_: pytest.fail("built again"))
    torch.manual_seed(0)
    norm, conv = awake(GroupNorm(4, 32)), awake(Conv(32, 24))
    norm.native_kernels = conv.native_kernels = True
    images = [channels_last(3 + n % 4, 32, 16 + n, 24 + 3 * (n % 5)) for n in range(30)]

    def outcomes(order):
        found = {}
        for n in order:
            x = images[n].clone(memory_format=torch.preserve_format).requires_grad_()
            assert kernels.conv_applies(x, conv.weight)
            y = conv(norm(x, silu=True))
            found[n] = y, *torch.autograd.grad(y.square().sum(), [x, norm.weight, conv.weight])
        return [tensor for n in range(30) for tensor in found[n]]

    upwards, downwards = outcomes(range(30)), outcomes(reversed(range(30)))
    assert all(a.equal(b) for a, b in zip(upwards, downwards, strict=True))


@pytest.mark.parametrize("wrong", ["norm", "conv"])
def test_kernels_that_are_wrong_are_not_used(monkeypatch, wrong):
    """As a compiler or a memory may make them: for training and for sampling, which both ask for the library first."""
    right = getattr(kernels, wrong)
    monkeypatch.setattr(kernels, wrong, lambda *a, **k: right(*a, **k) * 1.01)
    with pytest.raises(compiler.Unavailable, match="wrong on this machine, off by"):
        kernels.ready.__wrapped__(torch.device("cpu"))


def test_a_default_device_is_not_meant_for_kernels():
    """Where others would be made on a GPU, or nowhere, as here."""
    x, weight = channels_last(4, 32, 16, 16).requires_grad_(), torch.randn(32, 32, 3, 3, requires_grad=True)
    ones = torch.ones(32)
    with torch.device("meta"):
        y = kernels.conv(kernels.norm(x, 4, ones, ones, 1e-5, dropout=0.1), weight, None)
        gradients = torch.autograd.grad(y.sum(), [x, weight])
    assert {each.device.type for each in (y, *gradients)} == {"cpu"}


# Building


def in_a_child(code, **variables):
    environment = {**os.environ, **{name: str(value) for name, value in variables.items()}}
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300, check=False
    )


LOAD = """
import torch
from diffunet.compiler import Unavailable
from diffunet.nn import kernels
try:
    kernels.ready(torch.device("cpu"))
    print(kernels._loaded()._name)
except Unavailable as error:
    print("unavailable:", error)
"""


def test_a_library_is_built_once_and_again_for_another_source(tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFUNET_CACHE", str(tmp_path))
    source = tmp_path / "tiny.cpp"
    source.write_text('extern "C" int seven() { return 7; }')
    assert compiler.library.__wrapped__(source).seven() == 7
    (first,) = (tmp_path / "native").iterdir()
    stamp = first.stat().st_mtime_ns
    assert compiler.library.__wrapped__(source).seven() == 7
    assert first.stat().st_mtime_ns == stamp
    source.write_text('extern "C" int seven() { return 8; }')
    assert compiler.library.__wrapped__(source).seven() == 8
    assert len(list((tmp_path / "native").iterdir())) == 2


@pytest.mark.parametrize(
    ("text", "reason"),
    [("no such thing;", "does not take the kernels"), ("#error why not", "why not")],
)
def test_a_source_that_does_not_compile(tmp_path, monkeypatch, text, reason):
    monkeypatch.setenv("DIFFUNET_CACHE", str(tmp_path / "cache"))
    (tmp_path / "bad.cpp").write_text(text)
    with pytest.raises(compiler.Unavailable, match=reason):
        compiler.library.__wrapped__(tmp_path / "bad.cpp")
    assert list((tmp_path / "cache" / "native").iterdir()) == []


def test_no_compiler_is_said(tmp_path):
    ended = in_a_child(LOAD, CXX="no-such-compiler", DIFFUNET_CACHE=tmp_path)
    assert ended.stdout == "unavailable: there is no C++ compiler (no-such-compiler)\n"


@pytest.mark.slow
def test_a_cache_that_cannot_be_written_is_no_hindrance(tmp_path):
    (tmp_path / "file").write_text("")
    ended = in_a_child(LOAD, DIFFUNET_CACHE=tmp_path / "file", TMPDIR=tmp_path)
    assert ended.stdout.startswith(str(tmp_path / "diffunet-")), ended
