"""Nets of diffusers and of diffunet with random weights, folders as diffusers writes them, and how outputs differ."""

import pytest
import torch
from helpers.small import tiny

from diffunet import build
from diffunet.storage import Model

peer = pytest.importorskip("diffusers")

WEIGHTS = "diffusion_pytorch_model.safetensors"
DOWN, ATTENTION, RESIDUAL = "DownBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D"


def blocks(*down):
    """Return the options of a UNet2DModel with these blocks in its encoder, and their mirror image in its decoder."""
    up = [name.replace("Downsample", "Upsample").replace("Down", "Up") for name in reversed(down)]
    return {"down_block_types": list(down), "up_block_types": up}


GOOGLE = {
    "attention_head_dim": None, "downsample_padding": 0, "flip_sin_to_cos": False, "freq_shift": 1, "norm_eps": 1e-6,
    "act_fn": "silu", "center_input_sample": False, "mid_block_scale_factor": 1, "time_embedding_type": "positional",
}  # fmt: skip
"""The options that all of google/ddpm-* share."""

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
    """Give a net random weights everywhere, also where they start at zero, so that its outputs are of order 1."""
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
    """Return a UNet2DModel with random weights."""
    return randomise(peer.UNet2DModel(**options), seed)


def pipeline(folder, net, scheduler=None):
    """Write a DDPMPipeline of diffusers into a folder, and return the folder."""
    if scheduler is None:
        learned = net.config.out_channels == 2 * net.config.in_channels
        scheduler = peer.DDPMScheduler(variance_type="learned_range" if learned else "fixed_small")
    peer.DDPMPipeline(net, scheduler).save_pretrained(folder)
    return folder


def ours(config, seed=0):
    """Return a model of diffunet's with random weights, at step 7."""
    net = randomise(build.net(config), seed)
    return Model(config, build.denoiser(config, net).eval().requires_grad_(False), 7)


@torch.no_grad()
def difference(unet, net, sizes=((16, 16), (16, 32)), classes=0):
    """Return the largest difference of outputs of a UNet2DModel and of our net, relative to their root mean square."""
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
    """Return a square and another shape that the net can halve at every level."""
    unit = 2 ** (len(options["block_out_channels"]) - 1)
    return (max(8, unit), max(8, unit)), (max(8, 2 * unit), max(8, unit))


SMALL = {**blocks(DOWN, DOWN), "block_out_channels": (8, 16), "norm_num_groups": 4, "sample_size": 8}

NORM = {"norm_groups": 4, "channels": 8, "multipliers": (1, 2), "attention_levels": (1,), "attention_resolutions": (4,)}


def config(model=None, **sections):
    """Return a small config that diffusers has words for too, with changes by section as in `tiny`."""
    changes = {"model": NORM | (model or {}), "data": {"classes": False}} | sections
    return tiny(**{"diffusion": {"schedule": "linear", "target": "epsilon"}} | changes)
