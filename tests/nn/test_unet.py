"""The UNet: shapes, sizes, and its parts against other ways to compute the same."""

import math

import pytest
import torch
import torch.nn.functional as F

from diffunet import compute
from diffunet.nn.cost import cost
from diffunet.nn.footprint import footprint
from diffunet.nn.layers import Attention, Embedding, sinusoids
from diffunet.nn.unet import UNet
from diffunet.training.ema import Average, exponential


def tiny(**options):
    return UNet(
        **{"in_channels": 3, "channels": 8, "multipliers": (1, 2, 2), "num_blocks": 1, "head_channels": 4} | options
    )


def awake(net):
    """Zero-initialised layers hide mistakes: give every parameter a value."""
    torch.manual_seed(0)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return net.eval()


@pytest.mark.parametrize("size", [(16, 16), (17, 23), (1, 1), (5, 64), (3, 2)])
def test_any_height_and_width(size, device):
    net = awake(tiny())
    assert net(torch.randn(2, 3, *size), torch.tensor([0.0, 999.0])).shape == (2, 3, *size)


def test_starts_as_zero_and_uses_every_parameter(device):
    net = tiny(num_classes=4)
    x, t, label = torch.randn(2, 3, 9, 9), torch.tensor([1.0, 500.0]), torch.tensor([0, 4])
    assert net(x, t, label).abs().max() == 0
    awake(net)(x, t, label).square().sum().backward()
    unused = [name for name, parameter in net.named_parameters() if parameter.grad is None or not parameter.grad.any()]
    assert unused == []


def test_images_of_a_batch_do_not_see_each_other(device):
    net = awake(tiny(num_classes=3))
    x, t, label = torch.randn(3, 3, 11, 7), torch.tensor([0.0, 10.0, 999.0]), torch.tensor([0, 1, 3])
    together = net(x, t, label)
    for i in range(3):
        assert torch.allclose(net(x[i : i + 1], t[i : i + 1], label[i : i + 1]), together[i : i + 1], atol=1e-5)


def test_noise_level_and_label_matter_and_no_label_is_the_null_label(device):
    net = awake(tiny(num_classes=3))
    x = torch.randn(1, 3, 8, 8)

    def at(t, label):
        return net(x, torch.tensor([t]), label)

    assert not torch.allclose(at(998.0, None), at(999.0, None))
    assert not torch.allclose(at(5.0, torch.tensor([0])), at(5.0, torch.tensor([1])))
    assert torch.equal(at(5.0, None), at(5.0, torch.tensor([net.null_label])))


def peak(net, size):
    """Bytes that an image keeps at the worst moment of training."""
    return max(footprint(net, size, size, torch.float32, "cpu", learn=True).per_image)


@pytest.mark.seconds
def test_checkpointing_changes_memory_and_nothing_else(device):
    plain, thrifty = awake(tiny()), tiny(checkpointing=True)
    thrifty.load_state_dict(plain.state_dict())
    x, t = torch.randn(2, 3, 8, 8), torch.tensor([1.0, 2.0])
    for net in (plain, thrifty):
        net.train()(x, t).square().mean().backward()
    for a, b in zip(plain.parameters(), thrifty.parameters(), strict=True):
        assert torch.allclose(a.grad, b.grad, atol=1e-6)
    assert peak(tiny(checkpointing=True), 32) < peak(tiny(), 32) / 2


@pytest.mark.parametrize("qk_norm", [False, True])
def test_attention_is_softmax_of_products(qk_norm, device):
    layer = awake(Attention(8, heads=2, qk_norm=qk_norm))
    x = torch.randn(2, 8, 3, 5)
    q, k, v = layer.qkv(layer.norm(x)).flatten(2).chunk(3, dim=1)  # each [B 8 N]
    heads = []
    for head in range(2):
        part = slice(4 * head, 4 * head + 4)
        a, b = q[:, part].transpose(1, 2), k[:, part].transpose(1, 2)  # [B N 4]
        if qk_norm:
            eps = torch.finfo(torch.float32).eps
            a = a / (a.square().mean(-1, keepdim=True) + eps).sqrt() * layer.q_norm.weight
            b = b / (b.square().mean(-1, keepdim=True) + eps).sqrt() * layer.k_norm.weight
        weights = (a @ b.transpose(1, 2) / math.sqrt(4)).softmax(-1)  # [B N N]
        heads.append((weights @ v[:, part].transpose(1, 2)).transpose(1, 2))
    expected = x + layer.out(torch.cat(heads, dim=1).view_as(x))
    assert torch.allclose(layer(x), expected, atol=1e-5)


def test_heads_that_do_not_divide_are_refused(device):
    with pytest.raises(ValueError, match="heads"):
        Attention(10, heads=3)


def test_sinusoids_tell_neighbouring_timesteps_apart_and_are_the_papers(device):
    e = sinusoids(torch.tensor([0.0, 998.0, 999.0]), 8)
    assert e.dtype == torch.float32
    assert torch.equal(e[0], torch.tensor([1.0, 1, 1, 1, 0, 0, 0, 0]))
    assert (e[1] - e[2]).abs().max() > 0.5
    assert e[2, 1].item() == pytest.approx(math.cos(999 / 10), abs=1e-4)  # frequencies 1, 1/10, 1/100, 1/1000


def test_embedding_keeps_timesteps_apart_under_autocast(device):
    net = awake(tiny())
    x = torch.randn(1, 3, 8, 8)
    with torch.autocast(device.type, torch.bfloat16):
        a, b = (net.embedding(torch.tensor([t])) for t in (999.0, 1000.0))
        assert not torch.equal(a, b)
        assert net(x, torch.tensor([5.0])).isfinite().all()


def test_a_learned_uncertainty_is_a_part_of_the_net_that_does_not_touch_its_answer(device):
    net, plain = tiny(uncertainty=True), tiny()
    assert plain.uncertainty is None
    log_snr = torch.linspace(-20, 20, 9)
    assert torch.equal(net.uncertainty(log_snr), torch.zeros(9))  # every noise level counts 1 at the start
    awake(net)
    assert net.state_dict().keys() - plain.state_dict().keys() == {"uncertainty.weight"}
    assert any(parameter is net.uncertainty.weight for parameter in net.parameters())
    x, t = torch.randn(2, 3, 8, 8), torch.tensor([1.0, 500.0])
    before, logvar = net(x, t), net.uncertainty(log_snr)
    i = torch.arange(32)  # by its formula: sines and cosines of the log SNR at 32 frequencies from 1 to nearly 1e-4
    angles = log_snr[:, None] * 10_000.0 ** (-i / 32)
    assert torch.allclose(logvar, torch.cat([angles.cos(), angles.sin()], dim=1) @ net.uncertainty.weight, atol=1e-4)
    with torch.autocast(device.type, torch.bfloat16):
        assert torch.equal(net.uncertainty(log_snr), logvar)  # float32 all the same
    with torch.no_grad():
        net.uncertainty.weight.add_(1)
    assert torch.equal(net(x, t), before)


def test_an_average_of_weights_has_the_uncertainty_too(device):
    net = awake(tiny(uncertainty=True))
    ema = Average(net, exponential(halflife=100, ramp=1.0, batch=10))
    start = net.uncertainty.weight.detach().clone()
    with torch.no_grad():
        net.uncertainty.weight.add_(1)
    ema.update()  # the half-life is the 10 images seen
    assert torch.allclose(ema.net.uncertainty.weight, start + 0.5)


def test_cost_counts_what_the_formulas_say():
    net = tiny()
    counted = cost(net, 16, 16)
    assert counted.parameters == sum(p.numel() for p in net.parameters())
    stem = next(row for row in counted.rows if row.name == "stem")
    assert stem.shape == (8, 16, 16)
    assert stem.macs == 16 * 16 * 3 * 8 * 9
    assert sum(row.macs for row in counted.rows) == counted.macs
    assert all(p.device.type == "cpu" for p in net.parameters())


class Two(torch.nn.Module):
    """A convolution of 3 to 4 channels and SiLU."""

    in_channels = 3

    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 4, 1)

    def forward(self, x, c_noise):
        return F.silu(self.conv(x))


def test_memory_of_a_layer_known_by_hand():
    weights, c_noise = 4 * (3 * 4 + 4), 4
    used = footprint(Two(), 10, 10, torch.float32, "cpu", learn=False)
    # The most is alive in SiLU: the input (3 channels), what the convolution says (4) and SiLU's own (4).
    assert used.peak(5) == weights + 5 * ((3 + 4 + 4) * 100 * 4 + c_noise)
    # On the way back: input, both outputs, and three pictures of 4 channels of the square's slope. Scalars stay, too.
    learned = footprint(Two(), 10, 10, torch.float32, "cpu", learn=True)
    assert learned.peak(5) - weights == 5 * ((3 + 5 * 4) * 100 * 4 + c_noise) + 8
    assert learned.parameters == 16


@pytest.mark.seconds
def test_memory_is_counted_in_the_types_of_autocast():
    at = {
        (precision, device): footprint(tiny(), 32, 32, precision, device, learn=True).per_image
        for precision in (torch.float32, torch.bfloat16) for device in ("cpu", "cuda")
    }  # fmt: skip
    assert at[torch.float32, "cpu"] == at[torch.float32, "cuda"]
    # Norms are float32 on CUDA alone, so that more is kept there; the rest takes half.
    assert max(at[torch.bfloat16, "cpu"]) < max(at[torch.bfloat16, "cuda"]) < max(at[torch.float32, "cpu"])


def test_labels_begin_as_those_of_torch():
    torch.manual_seed(3)
    theirs = torch.nn.Sequential(
        torch.nn.Linear(8, 16), torch.nn.SiLU(), torch.nn.Linear(16, 16), torch.nn.Embedding(5, 16)
    )
    torch.manual_seed(3)
    assert torch.equal(Embedding(8, 16, num_classes=4).label.weight, theirs[3].weight)


@pytest.mark.parametrize("learn", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_memory_counted_is_memory_allocated(precision, learn):
    """The same walk on the CPU, where torch's profiler adds up what is allocated and freed: within 5%."""
    how, batch = compute.choose("cpu", precision), 4
    if precision == "bf16" and compute.precision_of(how.device)[0] != "bf16":
        pytest.skip("this CPU computes bfloat16 by copies that no other device makes")
    net = awake(tiny(channels=32)).train(learn).requires_grad_(learn)
    how.prepare(net, frozen=not learn)

    def walk():
        with how.autocast():
            out = net(torch.zeros(batch, 3, 32, 32), torch.ones(batch))
        if learn:
            out.float().square().sum().backward()

    walk()  # libraries make themselves ready
    net.zero_grad()
    with torch.profiler.profile(profile_memory=True) as seen:
        walk()
    at, most = 0, 0
    for event in seen.profiler.kineto_results.events():
        if event.name() == "[memory]":
            at += event.nbytes()
            most = max(most, at)
    counted = footprint(net, 32, 32, how.dtype, "cpu", learn=learn).peak(batch)
    assert most + sum(p.nbytes for p in net.parameters()) == pytest.approx(counted, rel=0.05)
