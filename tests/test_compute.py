"""The room that decides how nets are computed."""

import logging
import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from diffunet import compute, ranks, variables
from diffunet.compute import Compute
from diffunet.errors import UsageError
from diffunet.nn.layers import Attention
from diffunet.nn.unet import UNet
from diffunet.training import opening

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def small():
    torch.manual_seed(0)
    net = UNet(channels=8, multipliers=(1, 2), num_blocks=1, attention_levels=(1,), num_classes=2)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.1)
    return net.requires_grad_(False)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_weights_cast_once_give_the_same_bits_as_weights_cast_at_every_call(precision):
    net, how = small(), Compute(CPU, precision, channels_last=True)
    x, t, label = torch.randn(2, 3, 8, 8), torch.tensor([1.0, 999.0]), torch.tensor([0, 2])
    how.prepare(net)
    with how.autocast():
        before = net(x, t, label)
    how.prepare(net, frozen=True)
    kinds = {name: parameter.dtype for name, parameter in net.named_parameters()}
    assert kinds["stem.weight"] == kinds["embedding.mlp.0.bias"] == how.dtype
    assert kinds["out.0.weight"] == kinds["embedding.label.weight"] == torch.float32
    with how.autocast():
        assert torch.equal(net(x, t, label), before)


def test_weights_that_learn_stay_float32():
    net, how = small(), Compute(CPU, "bf16")
    how.prepare(net)
    assert {parameter.dtype for parameter in net.parameters()} == {torch.float32}


def test_fp32_is_fp32_inside_autocast_of_others():
    with torch.autocast("cpu", torch.bfloat16), Compute(CPU, "fp32").autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype is torch.float32


def test_what_fits():
    how = Compute(CPU)
    assert how.fits(lambda n: 10 * n, most=64, free=100) == 8  # a tenth of the memory is left alone
    assert how.fits(lambda n: 10 * n, most=4, free=100) == 4
    assert how.fits(lambda n: 91 * n, most=4, free=100) == 0
    assert how.fits(lambda n: 0, free=1) == compute.WORTH["cpu"]
    assert 0 < how.free_memory() <= compute.memory(CPU)


@pytest.mark.parametrize(
    ("capability", "chosen"), [((9, 0), "bf16"), ((8, 0), "bf16"), ((7, 5), "fp16"), ((6, 1), "fp32")]
)
def test_the_precision_is_that_of_the_card_that_is_meant(monkeypatch, capability, chosen):
    """An H100, an A100, a T4 or 16xx or 20xx, a 10xx; beside another one, which torch has as its current device."""
    cards = {"cuda:0": (0, 0), "cuda:1": capability}
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: cards[str(device)])
    assert compute.precision_of(torch.device("cuda:1"))[0] == chosen


def test_kernels_on_cuda_and_that_they_come_back():
    def flags():
        cudnn = torch.backends.cudnn
        return (
            torch.get_float32_matmul_precision(), cudnn.benchmark, cudnn.deterministic,
            torch.are_deterministic_algorithms_enabled(),
        )  # fmt: skip

    before = flags()
    with Compute(CUDA).kernels():
        assert flags() == ("high", False, False, False)
    with Compute(CUDA).kernels(deterministic=True):
        assert flags() == ("high", False, True, True)
    assert flags() == before
    with Compute(CPU).kernels():
        assert flags() == before
    one, two = Compute(CUDA).kernels(), Compute(CUDA).kernels()  # in two threads, as it were
    one.__enter__()
    two.__enter__()
    one.__exit__(None, None, None)
    assert flags() == ("high", False, False, False)
    two.__exit__(None, None, None)
    assert flags() == before
    with Compute(CUDA).kernels(deterministic=True), Compute(CUDA).kernels():  # a preview within such a run
        assert flags() == ("high", False, True, True)
    assert flags() == before


def test_a_torch_without_cuda_is_told_no_address_that_ages(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(compute.shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    said = compute.warning()
    assert "https://pytorch.org/get-started/locally/" in said
    assert "whl/cu" not in said


def test_threads_are_those_asked_for_and_come_back():
    before = torch.get_num_threads()
    for asked in {1, compute.cores()}:
        with compute.use_threads(asked) as count:
            assert torch.get_num_threads() == count == asked
    with compute.use_threads(4096) as count:  # of a larger machine
        assert count == compute.cores()
    with compute.use_threads(None) as count:
        assert count == before
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("qk_norm", [False, True])
def test_attention_takes_a_fused_kernel(monkeypatch, channels_last, qk_norm):
    """Fused kernels need the numbers of a token side by side. torch itself says which kernel it would take."""
    seen = []

    def spied(q, k, v):
        seen.append((torch._fused_sdp_choice(q, k, v), q.stride(-1), k.stride(-1), v.stride(-1)))
        return v

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", spied)
    layer, x = Attention(64, heads=2, qk_norm=qk_norm), torch.randn(2, 64, 8, 8)
    if channels_last:
        layer, x = layer.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
    layer(x)
    assert seen == [(torch.nn.attention.SDPBackend.FLASH_ATTENTION.value, 1, 1, 1)]


# Variables that libraries read when they are loaded.


@pytest.mark.parametrize(
    ("given", "set_"),
    [
        ({}, {"GOMP_SPINCOUNT": "1000", "KMP_BLOCKTIME": "1"}),
        ({"GOMP_SPINCOUNT": "7"}, {"GOMP_SPINCOUNT": "7", "KMP_BLOCKTIME": "1"}),
        ({"KMP_BLOCKTIME": "infinite"}, {"GOMP_SPINCOUNT": "1000", "KMP_BLOCKTIME": "infinite"}),
        ({"OMP_WAIT_POLICY": "active"}, {"GOMP_SPINCOUNT": None, "KMP_BLOCKTIME": None}),
    ],
)
def test_threads_that_wait_sleep_unless_told_otherwise(monkeypatch, given, set_):
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    variables.wait_asleep()
    assert {name: os.environ.get(name) for name in set_} == set_


WITHOUT_TORCH = """
import os, sys, types

def train(*_, **__):
    print({names!r}, [os.environ.get(name) for name in {names!r}], file=sys.stderr)

loop = types.ModuleType("diffunet.training.loop")
loop.train, loop.TrainProgress = train, None
sys.modules["diffunet.training.loop"] = loop
from diffunet.commands.cli import main
try:
    main(["train", "photos", "--out", "run", {options}])
finally:
    print("torch" in sys.modules, file=sys.stderr)
"""


@pytest.mark.parametrize(("options", "wanted"), [("", "None"), ("'--train.deterministic'", "':4096:8'")])
def test_the_command_sets_them_before_torch_is_imported(tmp_path, options, wanted):
    names = ["GOMP_SPINCOUNT", "CUBLAS_WORKSPACE_CONFIG"]
    code = WITHOUT_TORCH.format(names=names, options=options)
    clean = {name: value for name, value in os.environ.items() if name not in (*names, "OMP_WAIT_POLICY")}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=clean, capture_output=True, text=True)
    assert f"['1000', {wanted}]" in done.stderr, done.stderr
    assert done.stderr.strip().endswith("False")


def test_in_python_it_is_said_where_it_is_too_late(monkeypatch, caplog):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")  # so that what is set is taken back
    for used, given, said in ((True, None, 1), (False, None, 0), (True, ":16:8", 0)):
        monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
        if given is not None:
            monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", given)
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda used=used: used)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            opening._prepare_determinism()
        assert len(caplog.records) == said
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == (given or ":4096:8")


# Where a process trains.


@pytest.fixture
def two_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(compute, "find_device", lambda name: torch.device(name))
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "ACCELERATE_USE_CPU"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_the_device_of_one_process(two_gpus):
    asked = [(None, "cuda:0"), ("cuda", "cuda:0"), ("cuda:1", "cuda:1"), ("cpu", "cpu")]
    assert [str(ranks.device(name)) for name, _ in asked] == [wanted for _, wanted in asked]
    two_gpus.setenv("ACCELERATE_USE_CPU", "true")
    assert str(ranks.device(None)) == "cpu"


def test_the_device_of_each_of_several(two_gpus):
    two_gpus.setenv("WORLD_SIZE", "2")
    two_gpus.setenv("LOCAL_RANK", "1")
    assert str(ranks.device(None)) == str(ranks.device("cuda")) == "cuda:1"
    with pytest.raises(UsageError, match="--device cuda:1 would be the GPU of every process"):
        ranks.device("cuda:1")


def test_more_processes_than_gpus_is_one_line(two_gpus):
    two_gpus.setenv("WORLD_SIZE", "4")
    two_gpus.setenv("LOCAL_RANK", "2")
    with pytest.raises(UsageError, match="process 3 of this machine has no GPU of its own, as torch sees 2"):
        ranks.device(None)


def test_a_device_that_is_not_there_is_refused():
    for name in ("cuda:99", "meta", "tpu"):
        with pytest.raises(UsageError, match=f"--device '{name}' cannot be used"):
            compute.find_device(name)


@pytest.mark.parametrize(
    ("device", "steps", "minutes", "deterministic", "pays", "why"),
    [
        ("cpu", 10**6, 600, False, False, "not compiled: on cpu only where asked for"),
        ("cuda", 10**6, 600, True, False, "--train.deterministic is on"),
        ("cuda", 19_999, None, False, False, "pays from about 20,000 steps on"),
        ("cuda", 20_000, None, False, True, "which 20,000 steps earn back"),
        # Small nets make so many steps in a few minutes, of which compiling would take one.
        ("cuda", 10**6, 19, False, False, "pays from about 20 minutes on"),
        ("cuda", 10, 20, False, True, "which 20 minutes earn back"),
    ],
)
def test_long_runs_on_cuda_are_compiled(monkeypatch, device, steps, minutes, deterministic, pays, why):
    monkeypatch.setattr(compute.importlib.util, "find_spec", lambda name: object())
    found = compute.pays_to_compile(compute.Compute(torch.device(device)), steps, minutes, deterministic)
    assert found[0] is pays
    assert why in found[1]
    monkeypatch.setattr(compute.importlib.util, "find_spec", lambda name: None)
    assert not compute.pays_to_compile(compute.Compute(torch.device(device)), steps, minutes, deterministic)[0]
