"""Folders of diffusers against diffusers itself, on random weights: nets, schedulers, files, in both directions."""

import json
import logging
import shutil
import zipfile
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from small import tiny

import diffunet
from diffunet import build, storage
from diffunet.config import Config, preset
from diffunet.diffusion import samplers
from diffunet.diffusion.denoiser import bind
from diffunet.diffusion.guidance import threshold
from diffunet.errors import CheckpointError, UsageError
from diffunet.interop import diffusers, diffusers_export, diffusers_weights
from diffunet.storage import Model
from diffunet.training.defaults import architecture

peer = pytest.importorskip("diffusers")

WEIGHTS = "diffusion_pytorch_model.safetensors"
DOWN, ATTENTION, RESIDUAL = "DownBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D"


def blocks(*down):
    """Options of a UNet2DModel with these blocks in its encoder, and their mirror image in its decoder."""
    up = [name.replace("Downsample", "Upsample").replace("Down", "Up") for name in reversed(down)]
    return {"down_block_types": list(down), "up_block_types": up}


GOOGLE = {
    "attention_head_dim": None, "downsample_padding": 0, "flip_sin_to_cos": False, "freq_shift": 1, "norm_eps": 1e-6,
    "act_fn": "silu", "center_input_sample": False, "mid_block_scale_factor": 1, "time_embedding_type": "positional",
}  # fmt: skip
"""What google/ddpm-* have in common."""

NETS = {
    "google/ddpm-cifar10-32": {
        **GOOGLE, **blocks(DOWN, ATTENTION, DOWN, DOWN), "sample_size": 32, "block_out_channels": (16, 32, 32, 32),
        "norm_num_groups": 8,
    },
    "google/ddpm-celebahq-256": {
        **GOOGLE, **blocks(DOWN, DOWN, DOWN, DOWN, ATTENTION, DOWN), "sample_size": 256, "norm_num_groups": 4,
        "block_out_channels": (8, 8, 16, 16, 32, 32),
    },
    "train_unconditional.py": {
        **blocks(DOWN, DOWN, DOWN, DOWN, ATTENTION, DOWN), "sample_size": 64, "norm_num_groups": 4,
        "block_out_channels": (8, 8, 16, 16, 32, 32), "layers_per_block": 2,
    },
    "their defaults": {"block_out_channels": (8, 16, 24, 32), "norm_num_groups": 4},
    "scale_shift": {
        **blocks(ATTENTION, DOWN), "block_out_channels": (16, 32), "norm_num_groups": 8, "attn_norm_num_groups": 8,
        "resnet_time_scale_shift": "scale_shift",
    },
    "scale_shift, no attention": {
        **blocks(DOWN, DOWN), "block_out_channels": (16, 32), "norm_num_groups": 8, "add_attention": False,
        "resnet_time_scale_shift": "scale_shift",
    },
    "residual": {
        **blocks(RESIDUAL, ATTENTION, RESIDUAL), "block_out_channels": (16, 16, 32), "norm_num_groups": 8,
        "downsample_type": "resnet", "upsample_type": "resnet", "downsample_padding": 0,
    },
    "plain blocks do not heed downsample_type": {
        **blocks(DOWN, DOWN, ATTENTION), "block_out_channels": (16, 16, 32), "norm_num_groups": 8,
        "downsample_type": "resnet",
    },
    "no attention": {
        **blocks(DOWN, DOWN), "block_out_channels": (16, 32), "norm_num_groups": 8, "add_attention": False,
        "attention_head_dim": 7,
    },
    "attention but in the middle": {
        **blocks(DOWN, ATTENTION), "block_out_channels": (16, 32), "norm_num_groups": 8, "add_attention": False,
    },
    "labels": {**blocks(DOWN, DOWN), "block_out_channels": (16, 32), "norm_num_groups": 8, "num_class_embeds": 5},
    "learned variance": {**blocks(DOWN, DOWN), "block_out_channels": (16, 32), "norm_num_groups": 8, "out_channels": 6},
    "odd widths": {**blocks(DOWN, ATTENTION, DOWN), "block_out_channels": (32, 48, 64), "norm_num_groups": 16},
    "old names of blocks": {
        **blocks("UNetResDownBlock2D", "UNetResAttnDownBlock2D"), "block_out_channels": (8, 16), "norm_num_groups": 4,
    },
    "narrower below": {**blocks(DOWN, DOWN), "block_out_channels": (24, 16), "norm_num_groups": 4},
    "one level": {**blocks(ATTENTION), "block_out_channels": (16,), "norm_num_groups": 4, "downsample_padding": 0},
    "many heads": {
        **blocks(ATTENTION, ATTENTION), "block_out_channels": (16, 32), "norm_num_groups": 4, "attention_head_dim": 2,
        "layers_per_block": 1,
    },
    "three layers, swish, grey": {
        **blocks(DOWN, ATTENTION), "block_out_channels": (16, 32), "norm_num_groups": 4, "layers_per_block": 3,
        "act_fn": "swish", "in_channels": 1, "out_channels": 1, "sample_size": [16, 16], "dropout": 0.3,
    },
    "transparency, asymmetric, freq_shift": {
        **blocks(DOWN, ATTENTION), "block_out_channels": (16, 32), "norm_num_groups": 4, "in_channels": 4,
        "out_channels": 4, "downsample_padding": 0, "freq_shift": 1,
    },
}  # fmt: skip


def randomise(net, seed=0):
    """Random weights everywhere, where it starts at zero too, such that the outputs are O(1)."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in net.named_parameters():
            fan_in = p[0].numel() if p.ndim > 1 else 10
            p.copy_(torch.randn(p.shape, generator=generator) * (1 / fan_in) ** 0.5)
            if "norm" in name and name.endswith("weight") and p.ndim == 1:
                p += 1
            if "class_embedding" in name or name.endswith("embedding.label.weight"):
                p *= fan_in**0.5
    return net.eval()


def theirs(options, seed=0):
    return randomise(peer.UNet2DModel(**options), seed)


def pipeline(folder, net, scheduler=None):
    if scheduler is None:
        learned = net.config.out_channels == 2 * net.config.in_channels
        scheduler = peer.DDPMScheduler(variance_type="learned_range" if learned else "fixed_small")
    peer.DDPMPipeline(net, scheduler).save_pretrained(folder)
    return folder


def ours(config, seed=0):
    """A model of ours with random weights."""
    net = randomise(build.net(config), seed)
    return Model(config, build.denoiser(config, net).eval().requires_grad_(False), 7)


@torch.no_grad()
def difference(unet, net, sizes=((16, 16), (16, 32)), classes=0):
    """The largest difference of the outputs of a UNet2DModel and a net of ours, their root mean square being 1."""
    worst = 0.0
    t = torch.tensor([0, 1, 517, 999])
    for height, width in sizes:
        x = torch.randn(1, unet.config.in_channels, height, width, generator=torch.Generator().manual_seed(3))
        x = x.expand(4, -1, -1, -1)
        label = torch.tensor([0, 0, 0, classes - 1]) if classes else None
        a, b = unet(x, t, label).sample, net(x, t.float(), label)
        size = a.square().mean().sqrt()
        assert 0.02 < size < 50
        assert (a[0] - a[2]).abs().max() > 1e-3 * size, "the timestep must count, or its embedding is not tested"
        worst = max(worst, ((a - b).abs().max() / size).item())
    return worst


def sizes(options):
    """A square and another shape that the net can halve."""
    unit = 2 ** (len(options["block_out_channels"]) - 1)
    return (max(8, unit), max(8, unit)), (max(8, 2 * unit), max(8, unit))


@pytest.mark.parametrize("name", NETS)
def test_nets_both_ways(tmp_path, name, parity):
    unet = theirs(NETS[name])
    model = diffusers.read(pipeline(tmp_path / "theirs", unet))
    classes = unet.config.num_class_embeds or 0
    parity(
        f"diffusers UNet2DModel, {name}, read", difference(unet, model.denoiser.net, sizes(NETS[name]), classes), 1e-5
    )
    widths = [round(model.config.model.channels * each) for each in model.config.model.multipliers]
    assert widths == list(unet.config.block_out_channels)
    storage.export_model(tmp_path / "model", model.config, model.denoiser.net.state_dict(), 0)
    assert storage.read_model(tmp_path / "model").config == model.config, "it is resolved"

    diffusers.write(model, tmp_path / "back")
    back = peer.UNet2DModel.from_pretrained(tmp_path / "back" / "unet").eval()
    parity(
        f"diffusers UNet2DModel, {name}, written",
        difference(back, model.denoiser.net, sizes(NETS[name]), classes),
        1e-5,
    )
    assert diffusers.read(tmp_path / "back").config == model.config
    (tmp_path / "back" / "diffunet.json").unlink()
    if not classes:
        again = diffusers.read(tmp_path / "back").config
        assert again == model.config, "their options alone say the same"


@pytest.mark.slow
def test_google_ddpm_cifar10_at_its_own_width(tmp_path):
    options = NETS["google/ddpm-cifar10-32"] | {"block_out_channels": (128, 256, 256, 256), "norm_num_groups": 32}
    unet = theirs(options)
    model = diffusers.read(pipeline(tmp_path, unet))
    assert sum(p.numel() for p in model.denoiser.net.parameters()) == 35_746_307  # as published
    assert difference(unet, model.denoiser.net) < 1e-5


def test_null_label_is_the_mean_and_guidance_is_refused(tmp_path):
    unet = theirs(NETS["labels"])
    model = diffusers.read(pipeline(tmp_path, unet))
    assert model.config.data.class_names == ("0", "1", "2", "3", "4")
    table = model.denoiser.net.embedding.label.weight
    assert torch.allclose(table[5], unet.class_embedding.weight.mean(dim=0), atol=1e-6)
    storage.export_model(tmp_path / "model", model.config, model.denoiser.net.state_dict(), 0)
    with pytest.raises(UsageError, match="guidance"):
        diffunet.load(tmp_path / "model", device="cpu").sample(1, guidance=2.0, steps=2)


# Files.


@pytest.fixture
def google(tmp_path):
    """A net like google/ddpm-cifar10-32, and a folder as on the hub, all at its root, without weights."""
    unet = theirs(NETS["google/ddpm-cifar10-32"])
    pipeline(tmp_path / "saved", unet, peer.DDPMScheduler(variance_type="fixed_large"))
    folder = tmp_path / "hub"
    folder.mkdir()
    (tmp_path / "saved" / "model_index.json").rename(folder / "model_index.json")
    (tmp_path / "saved" / "scheduler" / "scheduler_config.json").rename(folder / "scheduler_config.json")
    config = json.loads((tmp_path / "saved" / "unet" / "config.json").read_text())
    kept = ("_class_name", "in_channels", "out_channels", "layers_per_block", *NETS["google/ddpm-cifar10-32"])
    (folder / "config.json").write_text(json.dumps({name: config[name] for name in kept}))
    return unet, folder


OLD = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def old_names(weights, convolutions=False):
    renamed = {}
    for name, tensor in weights.items():
        for new, old in OLD.items():
            if f".{new}." in name:
                name = name.replace(f".{new}.", f".{old}.")
                if convolutions and tensor.ndim == 2:
                    tensor = tensor[:, :, None, None]
        renamed[name] = tensor.clone()
    assert renamed.keys() != weights.keys()
    return renamed


@pytest.mark.parametrize("convolutions", [False, True])
@pytest.mark.parametrize("kind", ["bin", "safetensors"])
def test_as_on_the_hub_with_old_names(google, kind, convolutions):
    unet, folder = google
    weights = old_names(unet.state_dict(), convolutions)
    if kind == "bin":
        torch.save(weights, folder / "diffusion_pytorch_model.bin")
    else:
        save_file(weights, folder / WEIGHTS)
    assert diffusers.is_folder(folder)
    model = diffusers.read(folder)
    assert difference(unet, model.denoiser.net) < 1e-5
    if not convolutions:  # theirs reads these names too
        assert difference(peer.UNet2DModel.from_pretrained(folder).eval(), model.denoiser.net) < 1e-5


def test_half_precision_where_there_is_nothing_else(google):
    unet, folder = google
    half = {name: tensor.half() for name, tensor in unet.state_dict().items()}
    save_file(half, folder / "diffusion_pytorch_model.fp16.safetensors")
    net = diffusers.read(folder).denoiser.net
    assert all(p.dtype == torch.float32 for p in net.parameters())
    unet.load_state_dict(half)
    assert difference(unet, net) < 1e-5
    torch.save(theirs(NETS["google/ddpm-cifar10-32"], seed=1).state_dict(), folder / "diffusion_pytorch_model.bin")
    assert difference(unet, diffusers.read(folder).denoiser.net) > 0.1, "full precision goes first"


def test_shards(google):
    unet, folder = google
    unet.save_pretrained(folder, max_shard_size="100KB")
    assert not (folder / WEIGHTS).exists()
    assert difference(unet, diffusers.read(folder).denoiser.net) < 1e-5
    shard = sorted(folder.glob("*-of-*.safetensors"))[1]
    content = shard.read_bytes()
    shard.unlink()
    with pytest.raises(CheckpointError, match=shard.name):
        diffusers.read(folder)
    shard.write_bytes(content)
    index = folder / f"{WEIGHTS}.index.json"
    for content in ("[]", "{}", '{"weight_map": {"a": "../x.safetensors"}}', '{"weight_map": {"a": 3}}'):
        index.write_text(content)
        with pytest.raises(CheckpointError, match="index"):
            diffusers.read(folder)


def test_net_alone_and_checkpoint_of_train_unconditional(tmp_path, caplog):
    unet, average = theirs(NETS["train_unconditional.py"]), theirs(NETS["train_unconditional.py"], seed=1)
    size = ((32, 32),)
    unet.save_pretrained(tmp_path / "alone")
    assert diffusers.is_folder(tmp_path / "alone")
    model = diffusers.read(tmp_path / "alone")
    assert difference(unet, model.denoiser.net, size) < 1e-5
    assert (model.config.diffusion.schedule, model.config.diffusion.target) == ("linear", "epsilon")
    assert "no scheduler" in caplog.text

    run = tmp_path / "run"
    pipeline(run, average, peer.DDPMScheduler(prediction_type="sample"))
    checkpoint = run / "checkpoint-500"
    unet.save_pretrained(checkpoint / "unet")
    from diffusers.training_utils import EMAModel

    EMAModel(average.parameters(), model_cls=peer.UNet2DModel, model_config=average.config).save_pretrained(
        checkpoint / "unet_ema"
    )
    for folder, net in ((run, average), (checkpoint, average), (checkpoint / "unet_ema", average)):
        assert diffusers.is_folder(folder)
        assert difference(net, diffusers.read(folder).denoiser.net, size) < 1e-5
    assert diffusers.read(checkpoint).config.diffusion.target == "x0", "the run's scheduler"
    assert difference(unet, diffusers.read(checkpoint / "unet").denoiser.net, size) < 1e-5


def test_folders_of_others_are_not_theirs(tmp_path, run):
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "empty", tmp_path / "none", run, run / "model", run / "config.toml"):
        assert not diffusers.is_folder(path)


# Schedulers.

SMALL = {**blocks(DOWN, DOWN), "block_out_channels": (8, 16), "norm_num_groups": 4, "sample_size": 8}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return pipeline(tmp_path_factory.mktemp("saved") / "small", theirs(SMALL))


@pytest.fixture
def small(saved, tmp_path):
    """A pipeline folder of theirs that a test may spoil."""
    return shutil.copytree(saved, tmp_path / "small")


@pytest.mark.parametrize(
    ("scheduler", "options", "wanted"),
    [
        ("DDPMScheduler", {}, {"schedule": "linear", "beta_range": None, "target": "epsilon", "threshold": "static"}),
        ("DDPMScheduler", {"clip_sample": False, "beta_end": 0.03}, {"beta_range": (1e-4, 0.03), "threshold": "none"}),
        ("DDPMScheduler", {"thresholding": True, "sample_max_value": 3.0}, {"threshold": "dynamic"}),
        ("DDPMScheduler", {"thresholding": True, "clip_sample": False}, {"threshold": "static"}),
        ("DDIMScheduler", {"beta_schedule": "squaredcos_cap_v2"}, {"schedule": "cosine", "threshold": "static"}),
        (
            "DDIMScheduler",
            {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "timestep_spacing": "trailing"},
            {"zero_snr": True, "target": "v"},
        ),
        ("PNDMScheduler", {"skip_prk_steps": True}, {"target": "epsilon", "threshold": "none"}),
        (
            "EulerDiscreteScheduler",
            {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
            {"schedule": "scaled-linear", "beta_range": None},
        ),
        ("EulerAncestralDiscreteScheduler", {}, {"schedule": "linear"}),
        ("HeunDiscreteScheduler", {}, {"schedule": "linear", "beta_range": (0.00085, 0.012)}),
        ("LMSDiscreteScheduler", {"num_train_timesteps": 500}, {"num_steps": 500, "beta_range": (1e-4, 0.02)}),
        ("DPMSolverMultistepScheduler", {"prediction_type": "sample"}, {"target": "x0"}),
        ("UniPCMultistepScheduler", {}, {"target": "epsilon"}),
        ("DEISMultistepScheduler", {}, {"target": "epsilon"}),
        ("DPMSolverSinglestepScheduler", {}, {"target": "epsilon"}),
        ("FlowMatchEulerDiscreteScheduler", {}, {"schedule": "flow", "target": "flow"}),
        ("FlowMatchHeunDiscreteScheduler", {}, {"schedule": "flow", "target": "flow"}),
    ],
)
def test_schedulers(small, scheduler, options, wanted):
    made = getattr(peer, scheduler)(**options)
    made.save_pretrained(small / "scheduler")
    config = diffusers.read_config(small)
    d = config.diffusion
    assert {name: getattr(d, name) for name in wanted} == wanted
    assert (d.sampler, d.sample_steps, d.mean, d.sigma_shift) == ("unipc", 15, (0, 0, 0), 1)
    if hasattr(made, "alphas_cumprod"):
        noise = build.schedule(config)
        alpha_bar = made.alphas_cumprod.double()[:-1]  # theirs ends with 0 or 2^-24 at zero terminal SNR
        assert torch.allclose(noise.alpha_bar[:-1], alpha_bar, rtol=1e-3, atol=1e-6)
    bare = {"_class_name": scheduler} | options  # and as a file that leaves out what is their default
    (small / "scheduler" / "scheduler_config.json").write_text(json.dumps(bare))
    assert diffusers.read_config(small) == config


# What cannot be read.


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("unet/config.json", {"_class_name": "UNet2DConditionModel"}, "UNet2DConditionModel"),
        ("unet/config.json", {"time_embedding_type": "fourier"}, "time_embedding_type 'fourier' cannot be said"),
        ("unet/config.json", {"time_embedding_dim": 48}, "time_embedding_dim 48"),
        ("unet/config.json", {"center_input_sample": True}, "center_input_sample True"),
        ("unet/config.json", {"mid_block_type": None}, "mid_block_type None"),
        ("unet/config.json", {"mid_block_scale_factor": 1.4}, "mid_block_scale_factor"),
        ("unet/config.json", {"act_fn": "gelu"}, "act_fn 'gelu'"),
        ("unet/config.json", {"class_embed_type": "timestep"}, "class_embed_type 'timestep'"),
        ("unet/config.json", {"norm_num_groups": None}, "norm_num_groups None"),
        ("unet/config.json", {"norm_num_groups": 3}, "cannot be normalised in 3 groups"),
        ("unet/config.json", {"attn_norm_num_groups": 8}, "attn_norm_num_groups 8"),
        ("unet/config.json", {"resnet_time_scale_shift": "scale_shift"}, "attn_norm_num_groups None"),
        ("unet/config.json", {"resnet_time_scale_shift": "spatial"}, "resnet_time_scale_shift 'spatial'"),
        ("unet/config.json", {"attention_head_dim": 3}, "attention_head_dim 3"),
        ("unet/config.json", {"downsample_padding": 2}, "downsample_padding 2"),
        ("unet/config.json", {"freq_shift": 2}, "freq_shift 2"),
        ("unet/config.json", {"down_block_types": ["SkipDownBlock2D", DOWN]}, "SkipDownBlock2D"),
        ("unet/config.json", {"down_block_types": ["UpBlock2D", DOWN]}, "there is no 'UpBlock2D'"),
        ("unet/config.json", {"down_block_types": [DOWN]}, "down_block_types"),
        ("unet/config.json", {"down_block_types": [ATTENTION, DOWN]}, "up_block_types"),
        ("unet/config.json", {"down_block_types": [RESIDUAL, DOWN]}, "down_block_types"),
        ("unet/config.json", {"sample_size": [32, 64]}, "sample_size"),
        ("unet/config.json", {"in_channels": 2}, "in_channels 2"),
        ("unet/config.json", {"out_channels": 1}, "out_channels 1"),
        ("unet/config.json", {"out_channels": 6}, "variance_type"),
        ("unet/config.json", {"layers_per_block": [1, 2]}, "layers_per_block"),
        ("unet/config.json", {"layers_per_block": 0}, "layers_per_block 0"),
        ("unet/config.json", {"block_out_channels": [-8, 16]}, "block_out_channels"),
        ("unet/config.json", {"block_out_channels": [10**9, 10**9]}, "block_out_channels"),
        ("unet/config.json", {"block_out_channels": [2048, 131072]}, "do not fit"),
        ("unet/config.json", {"block_out_channels": [8, 16] * 6}, "block_out_channels"),
        ("unet/config.json", {"block_out_channels": "wide"}, "block_out_channels 'wide'"),
        ("unet/config.json", {"block_out_channels": [16, 16]}, "do not fit: conv_in.bias is .8., not .16."),
        ("unet/config.json", {"num_class_embeds": 10**9}, "num_class_embeds"),
        ("unet/config.json", {"num_class_embeds": 10}, "class_embedding.weight is missing"),
        ("unet/config.json", {"norm_eps": float("nan")}, "norm_eps"),
        ("unet/config.json", {"new_option": 2}, "new_option 2 is not known here"),
        ("scheduler/scheduler_config.json", {"_class_name": "EDMEulerScheduler"}, "EDMEulerScheduler"),
        ("scheduler/scheduler_config.json", {"_class_name": "ScoreSdeVeScheduler"}, "ScoreSdeVeScheduler"),
        ("scheduler/scheduler_config.json", {"_class_name": 3}, "_class_name"),
        ("scheduler/scheduler_config.json", {"beta_schedule": "sigmoid"}, "beta_schedule 'sigmoid'"),
        ("scheduler/scheduler_config.json", {"beta_start": 2}, "beta_start 2"),
        ("scheduler/scheduler_config.json", {"trained_betas": [0.1, 0.2]}, "trained_betas"),
        ("scheduler/scheduler_config.json", {"prediction_type": "flow_prediction"}, "prediction_type"),
        ("scheduler/scheduler_config.json", {"predict_epsilon": False}, "predict_epsilon False"),
        ("scheduler/scheduler_config.json", {"rescale_betas_zero_snr": True}, "zero-snr"),
        ("scheduler/scheduler_config.json", {"variance_type": "learned_range"}, "variance_type 'learned_range'"),
        ("scheduler/scheduler_config.json", {"use_flow_sigmas": True}, "use_flow_sigmas True"),
        ("scheduler/scheduler_config.json", {"timestep_type": "continuous"}, "timestep_type 'continuous'"),
        ("scheduler/scheduler_config.json", {"num_train_timesteps": 10**9}, "num_train_timesteps"),
        ("scheduler/scheduler_config.json", {"snr_shift_scale": 3.0}, "snr_shift_scale 3.0 is not known here"),
        (
            "scheduler/scheduler_config.json",
            {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0},
            "shift 3.0 cannot be said here",
        ),
        ("model_index.json", {"vqvae": ["diffusers", "VQModel"]}, "vqvae"),
    ],
)
def test_refused_by_name(small, file, changes, message):
    content = json.loads((small / file).read_text())
    if changes.get("_class_name") == "FlowMatchEulerDiscreteScheduler":
        content = {}
    (small / file).write_text(json.dumps(content | changes))
    with pytest.raises(CheckpointError, match=message) as caught:
        diffusers.read(small)
    assert str(small) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("file", ["model_index.json", "unet/config.json", "scheduler/scheduler_config.json"])
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"3", b"\xff\xfe", b"null", b"[" * 100_000, b"{" + b" " * 2**25])
def test_damaged_json(small, file, content):
    (small / file).write_bytes(content)
    with pytest.raises(CheckpointError, match=Path(file).name):
        diffusers.read(small)


def test_missing_files(small):
    (small / "unet" / WEIGHTS).unlink()
    with pytest.raises(CheckpointError, match="has no weights"):
        diffusers.read(small)
    (small / "scheduler" / "scheduler_config.json").unlink()
    with pytest.raises(CheckpointError, match=r"scheduler_config\.json"):
        diffusers.read(small)
    (small / "unet" / "config.json").unlink()
    with pytest.raises(CheckpointError):
        diffusers.read(small)
    with pytest.raises(CheckpointError):
        diffusers.read(small / "nothing")


class Code:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (Path.touch, (self.marker,))


def damaged(kind, folder, weights):
    """Write weights that are not what they should be; what the message has to say."""
    path, binary = folder / WEIGHTS, folder / "diffusion_pytorch_model.bin"
    if kind == "truncated":
        save_file(weights, path)
        path.write_bytes(path.read_bytes()[:-1000])
        return "cannot be read"
    if kind == "huge":  # a header that claims 4 TiB
        header = json.dumps({"conv_in.weight": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}).encode()
        path.write_bytes(len(header).to_bytes(8, "little") + header)
        return "cannot be read"
    if kind == "not finite":
        weights["conv_in.bias"][3] = float("nan")
        save_file(weights, path)
        return "stem.bias is not finite"
    if kind == "integers":
        save_file(weights | {"conv_in.bias": torch.zeros(8, dtype=torch.int64)}, path)
        return "conv_in.bias is not of floating point"
    if kind == "both names":
        extra = {"mid_block.attentions.0.query.bias": torch.zeros(16)}
        save_file(weights | extra, path)
        return "old and new names"
    if kind == "extra":
        save_file(weights | {"encoder\n.weight": torch.zeros(3)}, path)
        return "is not of this model"
    if kind == "code":
        torch.save(weights | {"x": Code(folder / "marker")}, binary)
    elif kind == "expanded":  # one number as a matrix of 4 TiB
        torch.save(weights | {"conv_in.bias": torch.zeros(1).expand(2**40)}, binary)
    elif kind == "list":
        torch.save(list(weights.values()), binary)
    elif kind == "old torch":
        torch.save(weights, binary, _use_new_zipfile_serialization=False)
    elif kind == "text":
        binary.write_text("weights")
    elif kind == "compressed":
        torch.save(weights, folder / "plain")
        with zipfile.ZipFile(folder / "plain") as plain, zipfile.ZipFile(binary, "w", zipfile.ZIP_DEFLATED) as packed:
            for name in plain.namelist():
                packed.writestr(name, plain.read(name))
    else:
        torch.save(weights, binary)
        content = bytearray(binary.read_bytes())
        content[len(content) // 2 :] = b""
        binary.write_bytes(content)
    return "cannot be read"


@pytest.mark.parametrize(
    "kind",
    [
        "truncated", "huge", "not finite", "integers", "both names", "extra", "code", "expanded", "list", "old torch",
        "text", "compressed", "truncated bin",
    ],
)  # fmt: skip
def test_damaged_weights(small, kind):
    folder = small / "unet"
    weights = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    message = damaged(kind, folder, weights)
    with pytest.raises(CheckpointError, match=message) as caught:
        diffusers.read(small)
    assert "\n" not in str(caught.value)
    assert not (folder / "marker").exists(), "code of a file must not run"


# Ours, written.

NORM = {"norm_groups": 4, "channels": 8, "multipliers": (1, 2), "attention_levels": (1,), "attention_resolutions": (4,)}


def config(model=None, **sections):
    """A small config that diffusers can say, with changes."""
    changes = {"model": NORM | (model or {}), "data": {"classes": False}} | sections
    return tiny(**{"diffusion": {"schedule": "linear", "target": "epsilon"}} | changes)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"model": {"norm_groups": None}}, "model.norm-groups .*--model.norm-groups 32"),
        ({"model": {"qk_norm": True}}, "model.qk-norm"),
        ({"model": {"multipliers": (2, 2)}}, "model.multipliers"),
        ({"model": {"multipliers": (0.5, 1), "norm_groups": 2}}, "model.multipliers"),
        ({"model": {"attention_levels": (0, 1), "num_heads": 2}}, "model.num-heads"),
        ({"model": {"multipliers": (1, 3), "attention_levels": (0, 1), "head_channels": 12}}, "model.head-channels"),
        ({"model": {"multipliers": (1, 1, 1, 1, 1)}}, "data.image-size 8"),
        ({"diffusion": {"task": "inpaint", "schedule": "linear", "target": "epsilon"}}, "diffusion.task inpaint"),
        ({"diffusion": {"schedule": "edm", "target": "edm"}}, "diffusion.schedule edm"),
        ({"diffusion": {"schedule": "edm", "target": "v"}}, "diffusion.schedule edm"),
        ({"diffusion": {"schedule": "flow", "target": "v"}}, "diffusion.schedule flow with target v"),
        ({"diffusion": {"schedule": "cosine", "target": "flow"}}, "diffusion.target flow on schedule cosine"),
        ({"diffusion": {"schedule": "cosine", "target": "edm"}}, "diffusion.target edm"),
        ({"diffusion": {"sigma_shift": 2.0}}, "diffusion.sigma-shift 2"),
        ({"data": {"image_size": 128}, "diffusion": {}}, "diffusion.sigma-shift 2"),
        (
            {"diffusion": {"schedule": "linear", "target": "v", "num_steps": 500, "rescale_timesteps": True}},
            "diffusion.rescale-timesteps",
        ),
    ],
)
def test_what_they_cannot_say_is_refused(tmp_path, changed, message):
    with pytest.raises(UsageError, match=message) as caught:
        diffusers.write(ours(config(**changed)), tmp_path / "out")
    assert "train with" in str(caught.value) or "take" in str(caught.value) or "of 1000" in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_the_classic_is_refused(tmp_path):
    c = Config.model_validate(
        {"model": {"net": "unet2015", "channels": 8, "multipliers": (1, 2), "attention_levels": ()}}
    )
    model = ours(config())
    with pytest.raises(UsageError, match=r"model\.net unet2015"):
        diffusers.write(Model(c, model.denoiser, 0), tmp_path / "out")


@st.composite
def configs(draw):
    """Options of the net that a UNet2DModel can be."""
    levels = draw(st.integers(1, 3))
    first = draw(st.sampled_from([8, 16]))
    multipliers = [1, *(draw(st.sampled_from([1, 1.5, 2, 3])) for _ in range(levels - 1))]
    model = {
        "channels": first,
        "multipliers": multipliers,
        "num_blocks": draw(st.integers(1, 2)),
        "attention_levels": sorted(draw(st.sets(st.integers(0, levels - 1)))),
        "middle_attention": draw(st.booleans()),
        "norm_groups": draw(st.sampled_from([1, 2, 4])),
        "norm_eps": draw(st.sampled_from([1e-5, 1e-6, 1e-3])),
        "scale_shift": draw(st.booleans()),
        "resample": draw(st.sampled_from(["convolution", "asymmetric", "residual"])),
        "frequency_shift": draw(st.integers(0, 1)),
        **draw(st.sampled_from([{"num_heads": 1}, {"head_channels": 2}, {"head_channels": 4}, {"head_channels": 64}])),
    }
    learned = draw(st.booleans())
    names = tuple(f"class {i}" for i in range(draw(st.sampled_from([0, 0, 3]))))
    return Config.model_validate(
        {
            "model": model,
            "diffusion": {"schedule": "linear", "target": "epsilon", "learned_variance": learned, "mean": None},
            "data": {
                "image_size": 8, "channels": draw(st.sampled_from([1, 3, 4])), "class_names": names,
                "augment": draw(st.sampled_from([0.0, 0.1])),
            },
        }
    )  # fmt: skip


@settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(c=configs())
def test_any_net_that_they_can_be(tmp_path_factory, c):
    model, folder = ours(c), tmp_path_factory.mktemp("net")
    try:
        diffusers.write(model, folder)
    except UsageError as error:
        assume("heads of" not in str(error))
        raise
    unet = peer.UNet2DModel.from_pretrained(folder / "unet").eval()
    classes = len(c.data.class_names)
    assert difference(unet, model.denoiser.net, ((8, 8), (4, 12)), classes and classes + 1) < 1e-5
    back = diffusers.read(folder)
    assert back.config == c.changed("data", augment=0.0)
    weights = model.denoiser.net.state_dict()
    weights.pop("embedding.augment.weight", None)
    again = back.denoiser.net.state_dict()
    assert again.keys() == weights.keys()
    assert all(torch.equal(again[name], weights[name]) for name in weights)
    assert back.step == 7


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        (
            "diffusers",  # train_unconditional.py, where it is given no config
            {
                **blocks(DOWN, DOWN, DOWN, DOWN, ATTENTION, DOWN), "sample_size": 64,
                "block_out_channels": (128, 128, 256, 256, 512, 512), "layers_per_block": 2,
            },
        ),
        (
            "ddpm",
            NETS["google/ddpm-cifar10-32"] | {"block_out_channels": (128, 256, 256, 256), "norm_num_groups": 32},
        ),
    ],
)  # fmt: skip
def test_presets_are_their_nets(name, wanted):
    c = architecture(preset(name), torch.device("cpu"))
    with torch.device("meta"):
        net, unet = build.net(c), peer.UNet2DModel(**wanted)
        again = peer.UNet2DModel.from_config(diffusers_export.unet_options(c, net))
    shapes = {name: tensor.shape for name, tensor in unet.state_dict().items()}
    assert {name: tensor.shape for name, tensor in diffusers_weights.to_diffusers(net.state_dict()).items()} == shapes
    ignored = ("flip_sin_to_cos", "attn_norm_num_groups", "dropout")  # ours always; the same by another way; training
    for key, value in unet.config.items():
        if not key.startswith("_") and key not in ignored:
            assert json.dumps(again.config[key]) == json.dumps(value), key


def test_groups_left_open_that_are_one_number(tmp_path):
    """Groups of 16 channels, in a net that is narrower than two of them."""
    narrow = {"norm_groups": None, "multipliers": (1,), "attention_levels": (0,), "scale_shift": True}
    model = ours(config(model=narrow))
    diffusers.write(model, tmp_path)
    assert difference(peer.UNet2DModel.from_pretrained(tmp_path / "unet").eval(), model.denoiser.net) < 1e-5
    assert diffusers.read(tmp_path).config.model.norm_groups is None


def test_labels_the_last_is_null(tmp_path, caplog):
    c = config(data={"classes": True, "class_names": ("cat", "dog")})
    model = ours(c)
    diffusers.write(model, tmp_path)
    assert "labels" in caplog.text
    unet = peer.UNet2DModel.from_pretrained(tmp_path / "unet").eval()
    x, t = torch.randn(1, 3, 8, 8), torch.tensor([5])
    with torch.no_grad():
        assert (unet(x, t, torch.tensor([2])).sample - model.denoiser.net(x, t.float())).abs().max() < 1e-5
    pipe = peer.DDPMPipeline.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="class_labels should be provided"):
        pipe(num_inference_steps=2)
    assert diffusers.read(tmp_path).config == c


def test_folder_that_was_changed_since(tmp_path):
    diffusers.write(ours(config()), tmp_path)
    pipeline(tmp_path, peer.UNet2DModel.from_pretrained(tmp_path / "unet"))
    assert diffusers.read(tmp_path).step == 7, "theirs wrote the same net"
    file = tmp_path / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"prediction_type": "sample"}))
    with pytest.raises(CheckpointError, match=r"diffunet\.json .* prediction_type: delete it"):
        diffusers.read(tmp_path)
    pipeline(tmp_path, theirs(SMALL | {"norm_eps": 1e-4}))
    with pytest.raises(CheckpointError, match=r"diffunet\.json .* delete it"):
        diffusers.read(tmp_path)
    (tmp_path / "diffunet.json").unlink()
    assert diffusers.read(tmp_path).config.model.norm_eps == 1e-4
    for content in ("{}", '{"format": "diffunet", "version": 1, "config": {"model": {"layers": 3}}}', "["):
        (tmp_path / "diffunet.json").write_text(content)
        with pytest.raises(CheckpointError, match=r"diffunet\.json"):
            diffusers.read(tmp_path)


def test_a_full_disk_leaves_what_was_there(tmp_path, monkeypatch):
    from diffunet.errors import ResourceError

    diffusers.write(ours(config()), tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(diffusers.files, "write_atomic", full)
    with pytest.raises(ResourceError, match="No space left"):
        diffusers.write(ours(config(), seed=1), tmp_path)
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


# Sampling: DDPMPipeline on what was written, and our sampler with the same noise.


def their_chain(folder, steps):
    """What DDPMPipeline makes of seed 5, before it is clipped to an image; its timesteps, and the images."""
    pipe = peer.DDPMPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    assert not pipe.unet.training
    steps_made, step = [], pipe.scheduler.step

    def recording(*args, **options):
        steps_made.append(step(*args, **options))
        return steps_made[-1]

    pipe.scheduler.step = recording
    images = pipe(2, torch.Generator().manual_seed(5), steps, output_type="np").images
    return steps_made[-1].prev_sample, pipe.scheduler.timesteps, images


@torch.no_grad()
def our_chain(model, sigmas, sampler, start_scale):
    """Our sampler down `sigmas` from the same noise; `start_scale` takes their first x to ours."""
    generator = torch.Generator().manual_seed(5)

    def noise():
        return torch.randn(2, 3, 8, 8, generator=generator)

    denoise = bind(model.denoiser)
    if model.config.diffusion.threshold != "none":
        denoise = threshold(denoise, model.config.diffusion.threshold)
    return samplers.last(samplers.sample(denoise, noise() * start_scale, sigmas, sampler, noise))


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        pytest.param(
            {"schedule": "linear", "target": "epsilon", "threshold": "static"}, 1000, marks=pytest.mark.slow
        ),
        ({"schedule": "linear", "target": "epsilon", "num_steps": 50, "threshold": "static"}, 50),
        ({"schedule": "linear", "target": "epsilon", "num_steps": 50}, 50),
        ({"schedule": "linear", "target": "epsilon", "num_steps": 20, "threshold": "static"}, 20),
        ({"schedule": "linear", "target": "v", "beta_range": (1e-3, 0.3), "num_steps": 20}, 20),
        ({"schedule": "scaled-linear", "target": "x0", "num_steps": 100}, 20),
        ({"schedule": "cosine", "target": "v", "num_steps": 100}, 20),
        ({"schedule": "sigmoid", "target": "v", "num_steps": 100}, 20),
        ({"schedule": "cosine", "target": "x0", "num_steps": 100, "sigma_shift": 2.0}, 20),
        ({"schedule": "linear", "target": "v", "num_steps": 100, "zero_snr": True}, 20),
        ({"schedule": "sigmoid", "target": "v", "num_steps": 100, "zero_snr": True}, 20),
        ({"schedule": "linear", "target": "v", "num_steps": 1000, "rescale_timesteps": True}, 20),
        ({"schedule": "cosine", "target": "v", "num_steps": 20, "sampler": "ddpm-large"}, 20),
        ({"schedule": "cosine", "target": "v", "num_steps": 100, "sampler": "ddpm-large"}, 20),
        (
            {
                "schedule": "cosine", "target": "v", "num_steps": 100, "learned_variance": True,
                "sampler": "ddpm-learned",
            },
            20,
        ),
    ],
)  # fmt: skip
def test_their_pipeline_makes_what_ours_makes(tmp_path, options, steps, parity):
    c = config(diffusion=options)
    if c.diffusion.sampler == "unipc":
        c = c.changed("diffusion", sampler="ddpm")
    model = ours(c)
    diffusers.write(model, tmp_path)
    last, timesteps, images = their_chain(tmp_path, steps)
    noise = build.schedule(c)
    sigmas = torch.cat([noise.sigmas[timesteps], torch.zeros(1, dtype=torch.float64)])
    ladder = "trailing" if c.diffusion.sampler == "ddpm" else "leading"  # theirs draws noise last unless from t = 0
    assert torch.allclose(sigmas, build.ladder(build.sampling(c, ladder=ladder), noise, steps), rtol=1e-6)
    mine = our_chain(model, sigmas, build.step(c), (1 + sigmas[0] ** 2).sqrt())
    assert last.std() > 0.05
    tolerance = 2e-3 if c.diffusion.zero_snr else 2e-4  # theirs begins at sigma infinite, ours at 4096
    kind = f"{c.diffusion.schedule}{', zero-snr' if c.diffusion.zero_snr else ''}, {c.diffusion.sampler}"
    parity(f"diffusers DDPMPipeline, {kind}", ((mine - last).abs().max() / last.std()).item(), tolerance)
    assert abs(images - (mine / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()).max() < tolerance
    assert diffusers.read(tmp_path).config == c


def test_dynamic_threshold_is_theirs(tmp_path):
    diffusers.write(ours(config(diffusion={"schedule": "cosine", "target": "v", "threshold": "dynamic"})), tmp_path)
    scheduler = peer.DDPMPipeline.from_pretrained(tmp_path).scheduler
    x0 = torch.randn(1, 3, 8, 8) * 5  # beyond 1, as their sample_max_value would cut it by default
    clipped = scheduler._threshold_sample(x0)
    assert scheduler.config.thresholding
    assert (clipped.abs() < 0.9).float().mean() > 0.8
    (tmp_path / "diffunet.json").unlink()
    assert diffusers.read_config(tmp_path).diffusion.threshold == "dynamic"


def test_flow_through_their_pipeline(tmp_path, parity):
    c = config(diffusion={"schedule": "flow-logit-normal", "target": "flow"})
    model = ours(c)
    diffusers.write(model, tmp_path)
    last, timesteps, _ = their_chain(tmp_path, 10)
    t = timesteps.double() / 1000
    sigmas = torch.cat([build.schedule(c).sigma_at(t), torch.zeros(1, dtype=torch.float64)])
    mine = our_chain(model, sigmas, samplers.euler(0.0), 1 + sigmas[0])
    parity("diffusers DDPMPipeline, flow, euler", ((mine - last).abs().max() / last.std()).item(), 1e-4)
    (tmp_path / "diffunet.json").unlink()
    assert diffusers.read(tmp_path).config.diffusion.target == "flow"


def test_what_their_pipeline_does_otherwise_is_said(tmp_path, caplog):
    c = config(diffusion={"schedule": "scaled-linear", "target": "x0", "num_steps": 50, "mean": (0.5, 0.0, -0.4)})
    with caplog.at_level(logging.WARNING):
        diffusers.write(ours(c), tmp_path)
    assert "at most 50" in caplog.text
    assert "mean of the images" in caplog.text
