"""`torch.compile` of the nets: one graph with no breaks, at any batch size, and the same numbers."""

import logging
import shutil

import pytest
import torch

from diffunet.nn.unet import UNet
from diffunet.nn.unet2015 import UNet2015

SMALL = {"channels": 8, "multipliers": (1, 2), "num_blocks": 1, "head_channels": 4, "attention_levels": ()}

NETS = {
    "attention, labels, augmentation": {"attention_levels": (1,), "num_classes": 3, "augment_channels": 4},
    "asymmetric, normalised queries": {"resample": "asymmetric", "qk_norm": True},
    "residual, learned variance, dropout": {"resample": "residual", "out_channels": 6, "dropout": 0.5, "num_heads": 2},
    "checkpointing, added embedding": {"checkpointing": True, "scale_shift": False},
}

# Without dropout, which checkpointing draws anew for its second pass unless torch's own backends compile it.
ALL = {name: value for each in NETS.values() for name, value in each.items()} | {"dropout": 0.0}


def awake(net):
    """Zero-initialised layers hide mistakes: give every parameter a value."""
    torch.manual_seed(0)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return net


def arguments(net, batch, height=7, width=10):
    """Inputs, as precise as the net."""
    dtype = next(net.parameters()).dtype
    given = {"x": torch.randn(batch, 3, height, width, dtype=dtype), "c_noise": 1000 * torch.rand(batch)}
    if net.num_classes:
        given["label"] = torch.arange(batch) % (net.num_classes + 1)
    if net.embedding.augment is not None:
        given["augment"] = torch.randn(batch, net.embedding.augment.in_features, dtype=dtype)
    return given


def answer_and_gradients(call, net, given):
    """The answer [B C H W], and the gradient of each parameter after a backward pass from its square."""
    net.zero_grad()
    torch.manual_seed(1)  # of dropout
    answer = call(**given)
    answer.square().mean().backward()
    return answer.detach(), {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}


MAKERS = {name: lambda options=options: UNet(**SMALL | options) for name, options in NETS.items()} | {
    "all at once": lambda: UNet(**SMALL | ALL),
    "classic": lambda: UNet2015(3, 3, 2, 8, "same", time=True, num_classes=3),
}
QUICK = ("all at once", "classic")


class Counted:
    """A backend that changes nothing and counts the graphs."""

    def __init__(self):
        self.graphs = 0

    def __call__(self, graph, example):
        self.graphs += 1
        return graph


@pytest.fixture(autouse=True)
def _fresh():
    """Nothing compiled before; and no trace of the compiler for pytest to keep, which takes half of the time."""
    trace = logging.getLogger("torch.__trace")
    torch._dynamo.reset()
    trace.disabled = True
    yield
    trace.disabled = False
    torch._dynamo.reset()


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in MAKERS]
)
@pytest.mark.long
def test_one_graph_in_training(name):
    """`fullgraph` refuses a break; and the same numbers and gradients, with dropout too."""
    net = awake(MAKERS[name]()).double().train()
    given = arguments(net, 3)
    backend = Counted()
    answer, gradients = answer_and_gradients(torch.compile(net, fullgraph=True, backend=backend), net, given)
    wanted, wanted_gradients = answer_and_gradients(net, net, given)
    assert backend.graphs == 1
    torch.testing.assert_close(answer, wanted, atol=1e-10, rtol=0)
    torch.testing.assert_close(gradients, wanted_gradients, atol=1e-10, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*NETS, "classic"])
def test_one_graph_for_all_sizes(name):
    net = awake(MAKERS[name]()).eval()
    backend = Counted()
    compiled = torch.compile(net, fullgraph=True, dynamic=True, backend=backend)
    with torch.no_grad():
        for batch, height, width in ((2, 9, 12), (3, 8, 8), (5, 7, 7), (4, 16, 6), (6, 5, 32)):
            given = arguments(net, batch, height, width)
            torch.testing.assert_close(compiled(**given), net(**given), atol=1e-6, rtol=1e-5)
    assert backend.graphs == 1


@pytest.mark.slow
@pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++", "cl"))), reason="no C++ compiler")
def test_compiled_for_real():
    """torch's own backend: another order of sums, the same numbers."""
    net = awake(MAKERS["attention, labels, augmentation"]()).train()
    compiled = torch.compile(net, fullgraph=True)
    for batch in (3, 5):  # the second is compiled for any batch
        given = arguments(net, batch)
        answer, gradients = answer_and_gradients(compiled, net, given)
        wanted, wanted_gradients = answer_and_gradients(net, net, given)
        torch.testing.assert_close(answer, wanted, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(gradients, wanted_gradients, atol=1e-5, rtol=1e-5)
