"""Muon, against torch's own for matrices and against the singular value decomposition, and how a run learns by it."""

import math

import pytest
import torch
from helpers.runs import assert_same_run, stop_at
from helpers.small import tiny
from safetensors.torch import load_file

from diffunet import compute
from diffunet.config import Config, preset, preset_names
from diffunet.errors import Stopped, UsageError
from diffunet.nn.unet import UNet
from diffunet.nn.unet2015 import UNet2015
from diffunet.training import checkpoint, defaults, optimizers
from diffunet.training.loop import train
from diffunet.training.muon import SCALE, Muon, orthogonalised

QUIET = {"steps": 4, "previews": 0, "ema_every": 0}


@pytest.mark.parametrize("shape", [(8, 20), (6, 40), (40, 6)])
def test_a_step_equals_that_of_torchs_own_muon(shape):
    torch.manual_seed(0)
    start = torch.randn(shape)
    ours, theirs = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    muon = Muon([(ours, 1)], lr=0.02, weight_decay=0.1, dtype=torch.bfloat16)
    peer = torch.optim.Muon([theirs], lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for _ in range(5):
        ours.grad = torch.randn(shape)
        theirs.grad = ours.grad.clone()
        muon.step()
        peer.step()
    # Theirs sums gradients where ours averages them, and both iterate in bfloat16, which has three digits.
    assert (ours - theirs).norm() < 0.04 * (theirs - start).norm()


@pytest.mark.parametrize("shape", [(5, 5), (3, 7, 30), (2, 30, 7)])
def test_a_matrix_becomes_nearly_the_semi_orthogonal_one(shape):
    torch.manual_seed(0)
    matrices = torch.randn(shape)
    u, _, vt = torch.linalg.svd(matrices, full_matrices=False)
    found = orthogonalised(matrices)
    values = torch.linalg.svdvals(found)
    assert values.min() > 0.6
    assert values.max() < 1.25
    # The same singular vectors: U^T X V is diagonal.
    turned = u.mT @ found @ vt.mT
    assert (turned - torch.diag_embed(turned.diagonal(dim1=-2, dim2=-1))).abs().max() < 1e-3
    assert torch.equal(orthogonalised(torch.zeros(shape)), torch.zeros(shape))


@pytest.mark.parametrize("shape", [(32, 288), (2, 288, 32), (16, 31)])
@pytest.mark.parametrize("smallest", [0.1, 1e-3, 1e-6])
def test_it_is_the_iteration_as_published(shape, smallest):
    """Of singular values far apart, against the polynomial of each singular value in float64: on a CPU the iteration is
    on the Gram matrix where that is the smaller one."""
    torch.manual_seed(0)
    u, _, vt = torch.linalg.svd(torch.randn(shape, dtype=torch.float64), full_matrices=False)
    values = torch.logspace(0, math.log10(smallest), u.shape[-1], dtype=torch.float64).expand(*shape[:-2], -1)
    matrices = u * values[..., None, :] @ vt
    values = values / values.norm(dim=-1, keepdim=True)
    for _ in range(5):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    expected = u * values[..., None, :] @ vt
    found = orthogonalised(matrices.float())
    assert (found - expected).norm() < 1e-3 * expected.norm()


def test_convolutions_and_queries_keys_and_values_are_matrices():
    torch.manual_seed(0)
    conv, qkv = torch.nn.Parameter(torch.zeros(4, 3, 3, 3)), torch.nn.Parameter(torch.zeros(12, 4, 1, 1))
    muon = Muon([(conv, 1), (qkv, 3)], lr=1.0, weight_decay=0.0, dtype=torch.float32)
    conv.grad, qkv.grad = torch.randn(4, 3, 3, 3), torch.randn(12, 4, 1, 1) * torch.arange(1, 13)[:, None, None, None]
    muon.step()
    assert torch.linalg.svdvals(conv.flatten(1) / (SCALE * math.sqrt(27))).min() > 0.6
    for part in qkv[:, :, 0, 0].chunk(3):  # each by itself, whatever its length
        values = torch.linalg.svdvals(part / (SCALE * 2))
        assert values.min() > 0.3
        assert values.max() < 1.25


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_skipped_step_changes_nothing(value):
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(6, 4))
    muon = Muon([(weight, 1)], lr=0.1, weight_decay=0.1, dtype=torch.float32)
    weight.grad = torch.randn(6, 4)
    muon.found_inf = torch.zeros(())
    muon.step()
    before, momentum = weight.detach().clone(), muon.state[weight]["momentum_buffer"].clone()
    weight.grad = torch.full((6, 4), value)
    muon.found_inf = torch.ones(())
    muon.step()
    assert torch.equal(weight, before)
    assert torch.equal(muon.state[weight]["momentum_buffer"], momentum)
    weight.grad = torch.randn(6, 4)
    muon.found_inf = torch.zeros(())
    muon.step()
    assert weight.isfinite().all()
    assert not torch.equal(weight, before)


def test_it_learns_what_is_inside_the_blocks_and_adamw_the_rest():
    net = UNet(channels=16, multipliers=(1, 2), attention_levels=(1,), num_blocks=1, num_classes=3)
    config = tiny(train={"learning_rate": 1e-3, "optimizer": "muon"}).train
    adamw, muon = optimizers.of(config, net, compute.choose("cpu", "fp32"))
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    inside, outside = ({names[id(p)] for group in each.param_groups for p in group["params"]} for each in (muon, adamw))
    assert inside | outside == set(names.values())
    assert not inside & outside
    assert all(name.endswith(".weight") and name.split(".")[0] in ("down", "middle", "up") for name in inside)
    assert {
        "stem.weight",
        "embedding.label.weight",
        "embedding.mlp.0.weight",
        "down.0.blocks.0.res.norm1.weight",
    } <= outside
    assert not any(
        parameter.ndim > 1 for name, parameter in net.named_parameters() if name in outside and "blocks" in name
    )
    stacked = {names[id(p)]: group["stacked"] for group in muon.param_groups for p in group["params"]}
    assert (
        {name for name, number in stacked.items() if number == 3}
        == {name for name in stacked if "qkv" in name}
        != set()
    )


def test_a_net_that_does_not_say_its_matrices_is_refused():
    config = tiny(train={"learning_rate": 1e-3, "optimizer": "muon"}).train
    with pytest.raises(UsageError, match=r"muon: UNet2015 has no method"):
        optimizers.of(config, UNet2015(3, 3, base_channels=8, layers=1, time=True), compute.choose("cpu", "fp32"))


def test_a_run_by_default_learns_by_it_and_goes_on_exactly(folder, tmp_path):
    train(tiny(train=QUIET), folder, tmp_path / "whole")
    assert 'optimizer = "muon"' in (tmp_path / "whole/config.toml").read_text()
    moments = load_file(checkpoint.folder_of(tmp_path / "whole", 4) / "optimizer.safetensors")
    kinds = {name.rpartition(".")[2] for name in moments}
    assert kinds == {"momentum_buffer", "exp_avg", "exp_avg_sq", "step"}
    with pytest.raises(Stopped):
        train(tiny(train=QUIET), folder, tmp_path / "parts", on_step=stop_at(2))
    train(tiny(train=QUIET), folder, tmp_path / "parts", resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "parts", 4)


@pytest.mark.parametrize(
    ("asked", "found"), [({}, "muon"), ({"learning_rate": 2e-3}, "adamw"),
                         ({"learning_rate": 2e-3, "optimizer": "muon"}, "muon"), ({"optimizer": "adamw"}, "adamw")],
)  # fmt: skip
def test_a_rate_that_is_stated_alone_is_adamws(asked, found):
    """As in configs that were written before there was Muon, and in presets of papers."""
    assert resolved(Config().changed("train", steps=9, **asked)).train.optimizer == found


@pytest.mark.parametrize("name", [name for name in preset_names() if name not in ("default", "digits")])
def test_presets_of_papers_keep_adamw(name):
    assert resolved(preset(name)).train.optimizer == "adamw"


def resolved(config):
    how = compute.choose("cpu", "fp32")
    return defaults.resolve(config, images=9, class_names=(), mean=(0.0,) * 3, sigma_data=0.5, how=how)


def test_a_run_of_a_version_before_it_goes_on_with_adamw(folder, tmp_path):
    run = tmp_path / "run"
    train(tiny(train=QUIET | {"steps": 2, "optimizer": "adamw"}), folder, run)
    config = run / "config.toml"
    lines = config.read_text().splitlines(keepends=True)
    config.write_text("".join(line for line in lines if not line.startswith("optimizer")))
    with pytest.raises(UsageError, match=r"goes on with train\.optimizer = 'adamw'; it cannot become 'muon'"):
        train(tiny(train={"steps": 4, "optimizer": "muon"}), folder, run, resume=True)
    train(tiny(train={"steps": 4}), folder, run, resume=True)
    assert 'optimizer = "adamw"' in config.read_text()
    names = load_file(checkpoint.folder_of(run, 4) / "optimizer.safetensors")
    assert not any(name.endswith("momentum_buffer") for name in names)
