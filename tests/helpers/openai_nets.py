"""Nets of guided-diffusion and improved-diffusion: their flags, and weights and inputs by rules that need no files.

Their code was run once with these (tests/interop/record_guided_diffusion.py), and what it answered was recorded.
"""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from diffunet import storage
from diffunet.interop import guided_diffusion
from diffunet.interop.guided_diffusion import Dialect

VECTORS = Path(__file__).parents[1] / "interop/vectors/guided_diffusion.json"
LIMIT = 1e-5

GUIDED: Dialect = "guided-diffusion"
IMPROVED: Dialect = "improved-diffusion"


class Case(NamedTuple):
    """A small net: the repository it is of, its flags, and the height and width of the images that it gets."""

    dialect: Dialect
    flags: str
    size: tuple[int, int] = (8, 8)


CLASSES = 10  # theirs have 1,000; the recorder says 10 to their code

CASES = {
    "the defaults": Case(GUIDED, "--num_channels 32 --num_res_blocks 1 --attention_resolutions 32,16", (16, 8)),
    "ADM": Case(
        GUIDED,
        "--num_channels 32 --num_res_blocks 2 --channel_mult 1,2 --attention_resolutions 32 --num_head_channels 16 "
        "--resblock_updown True --use_new_attention_order True --class_cond True --learn_sigma True "
        "--noise_schedule cosine --dropout 0.1",
    ),
    "heads by width, old order": Case(
        GUIDED,
        "--num_channels 32 --num_res_blocks 1 --channel_mult 1,1,2 --attention_resolutions 64,16 "
        "--num_head_channels 16 --resblock_updown True --learn_sigma True --image_size 64",
        (12, 8),
    ),
    "first level at half the channels": Case(
        GUIDED,
        "--image_size=512 --num_channels=64 --num_res_blocks=1 --channel_mult=0.5,1,2 --attention_resolutions=128 "
        "--num_heads=2 --resblock_updown=True --class_cond=True",
    ),
    "one level": Case(
        GUIDED,
        "--image_size 32 --num_channels 96 --num_res_blocks 2 --channel_mult 1 --attention_resolutions 32 "
        "--num_heads 8 --use_new_attention_order True --use_scale_shift_norm False --predict_xstart True",
        (5, 7),
    ),
    "no attention but in the middle": Case(
        GUIDED,
        "--num_channels 32 --num_res_blocks 1 --channel_mult 1,2 --attention_resolutions 1000 --num_heads 1 "
        "--resblock_updown True --use_scale_shift_norm False --diffusion_steps 400 --rescale_timesteps yes",
    ),
    "improved, 4,000 steps": Case(
        IMPROVED,
        "--image_size 32 --num_channels 32 --num_res_blocks 1 --learn_sigma True --class_cond True "
        "--diffusion_steps 4000 --noise_schedule cosine --num_heads_upsample 4",
        (16, 16),
    ),
    "improved, embedding added": Case(
        IMPROVED,
        "--image_size 32 --num_channels 32 --num_res_blocks 1 --num_heads 1 --use_scale_shift_norm False "
        "--attention_resolutions 16 --rescale_learned_sigmas False --rescale_timesteps False --predict_xstart True",
        (16, 24),
    ),
}

PUBLISHED = {
    "64x64_diffusion": (
        GUIDED,
        "--attention_resolutions 32,16,8 --class_cond True --diffusion_steps 1000 --dropout 0.1 --image_size 64 "
        "--learn_sigma True --noise_schedule cosine --num_channels 192 --num_head_channels 64 --num_res_blocks 3 "
        "--resblock_updown True --use_new_attention_order True --use_fp16 True --use_scale_shift_norm True",
    ),
    "128x128_diffusion": (
        GUIDED,
        "--attention_resolutions 32,16,8 --class_cond True --diffusion_steps 1000 --image_size 128 --learn_sigma True "
        "--noise_schedule linear --num_channels 256 --num_heads 4 --num_res_blocks 2 --resblock_updown True "
        "--use_fp16 True --use_scale_shift_norm True",
    ),
    "256x256_diffusion_uncond": (
        GUIDED,
        "--attention_resolutions 32,16,8 --class_cond False --diffusion_steps 1000 --image_size 256 "
        "--learn_sigma True --noise_schedule linear --num_channels 256 --num_head_channels 64 --num_res_blocks 2 "
        "--resblock_updown True --use_fp16 True --use_scale_shift_norm True --classifier_scale 10.0 "
        "--classifier_path models/256x256_classifier.pt --batch_size 4 --num_samples 100 --timestep_respacing 250",
    ),
    "512x512_diffusion": (
        GUIDED,
        "--attention_resolutions 32,16,8 --class_cond True --diffusion_steps 1000 --image_size 512 --learn_sigma True "
        "--noise_schedule linear --num_channels 256 --num_head_channels 64 --num_res_blocks 2 --resblock_updown True "
        "--use_fp16 False --use_scale_shift_norm True",
    ),
    "imagenet64_uncond_100M_1500K": (
        IMPROVED,
        "--image_size 64 --num_channels 128 --num_res_blocks 3 --learn_sigma True "
        "--diffusion_steps 4000 --noise_schedule cosine --lr 1e-4 --batch_size 128",
    ),
    "cifar10_uncond_vlb_50M_500K": (
        IMPROVED,
        "--image_size 32 --num_channels 128 --num_res_blocks 3 --learn_sigma True --dropout 0.3 --diffusion_steps 4000 "
        "--noise_schedule cosine --use_kl True --lr 1e-4 --batch_size 128 --schedule_sampler loss-second-moment",
    ),
    "imagenet64_cond_270M_250K": (
        IMPROVED,
        "--image_size 64 --num_channels 192 --num_res_blocks 3 --learn_sigma True --class_cond True "
        "--diffusion_steps 4000 --noise_schedule cosine --rescale_learned_sigmas False --rescale_timesteps False",
    ),
    "lsun_uncond_100M_1200K_bs128": (
        IMPROVED,
        "--image_size 256 --num_channels 128 --num_res_blocks 2 --num_heads 1 --learn_sigma True "
        "--use_scale_shift_norm False --attention_resolutions 16 --diffusion_steps 1000 --noise_schedule linear "
        "--rescale_learned_sigmas False --rescale_timesteps False",
    ),
}
"""The flags of published models, as the READMEs of both repositories have them."""

PROCESSES = {
    f"{schedule}, {steps} steps{', rescaled' * rescaled}": (schedule, steps, rescaled)
    for schedule in ("linear", "cosine")
    for steps, rescaled in ((1000, False), (4000, True))
}
"""Noise schedules by name: kind, steps, and whether timesteps are rescaled. They are compared at `visited`."""


def visited(steps: int) -> list[int]:
    """Return some timesteps of a schedule, both ends among them."""
    return [0, 1, 2, steps // 7, steps // 3, steps // 2, steps - 30, steps - 2, steps - 1]


def fill(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Return uniform numbers of deviation 1 that depend on the name alone, so the same on every machine."""
    raw = hashlib.shake_256(name.encode()).digest(4 * math.prod(shape))
    uniform = (np.frombuffer(raw, "<u4").astype(np.float64) + 0.5) / 2**32
    return ((2 * uniform - 1) * math.sqrt(3)).reshape(shape)


def weight(name: str, shape: tuple[int, ...]) -> Tensor:
    """Return the values of a weight by its name, none of them zero.

    Their deviation is 1 / sqrt(fan in), that of label embeddings 1; the scales of norms lie round 1, biases round 0.
    """
    values = fill(name, shape)
    if len(shape) == 1:
        values = values / 10 + (1 if name.endswith(".weight") else 0)
    elif name != "label_emb.weight":
        values = values / math.sqrt(math.prod(shape[1:]))
    return torch.from_numpy(values.astype(np.float32))


def asked(case: Case, steps: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the inputs of a net: noisy images in their scaling [3 3 H W], three timesteps, and three labels."""
    x = torch.from_numpy(fill("x", (3, 3, *case.size)).astype(np.float32))
    return x, torch.tensor([steps // 20, steps // 4, steps - 1]), torch.tensor([0, 3, CLASSES - 1])


def some(values: Tensor, count: int = 90) -> list[float]:
    """Return about `count` numbers of a tensor, by a stride that is odd and so meets every channel and place."""
    step = max(1, values.numel() // count) | 1
    return [float(f"{value:.9g}") for value in values.flatten()[::step].tolist()]


def state_dict(vectors: dict[str, Any], name: str) -> dict[str, Tensor]:
    """Return all weights of a recorded net, by its names and shapes; a bias has a value for each row of its weight."""
    content = {}
    for module, shape in vectors[name]["weights"].items():
        content[f"{module}.weight"] = weight(f"{module}.weight", tuple(shape))
        if module != "label_emb":
            content[f"{module}.bias"] = weight(f"{module}.bias", tuple(shape[:1]))
    return content


def read(tmp_path: Path, content: object, flags: str, dialect: Dialect = GUIDED) -> storage.Model:
    """Save `content` as torch does, and return what diffunet reads from that file."""
    torch.save(content, tmp_path / "model.pt")
    return guided_diffusion.read(tmp_path / "model.pt", flags, dialect)


def difference(ours: Tensor, theirs: list[float], count: int = 90) -> float:
    """Return the largest difference between some of our numbers and theirs, recorded by `some`."""
    return max(abs(a - b) for a, b in zip(some(ours, count), theirs, strict=True))
