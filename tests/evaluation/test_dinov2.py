"""FD-DINOv2 against the transformer of torch itself, with random weights in the published layout.

What these weights say is no number of any paper; that pictures, positions and weights reach the same network is what is
shown.
"""

import hashlib
import io
import math
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from diffunet.evaluation import dinov2, reference
from diffunet.evaluation.dinov2 import Dinov2, resampled
from diffunet.evaluation.features import train_classifier
from diffunet.evaluation.networks import Published
from diffunet.evaluation.report import evaluate_samples

pytest.importorskip("timm")

WIDTH, DEPTH, HEADS, PATCHES = 64, 3, 4, 37
SMALL = {"embed_dim": WIDTH, "depth": DEPTH, "num_heads": HEADS}


@pytest.fixture
def weights(tmp_path, monkeypatch):
    """Random weights of a small network under the names of the published file, and their hash in place of its."""
    generator = torch.Generator().manual_seed(0)

    def some(*shape, scale=0.3):
        return scale * torch.randn(*shape, generator=generator)

    found = {
        "cls_token": some(1, 1, WIDTH), "pos_embed": some(1, 1 + PATCHES**2, WIDTH), "mask_token": some(1, WIDTH),
        "patch_embed.proj.weight": some(WIDTH, 3, 14, 14), "patch_embed.proj.bias": some(WIDTH),
        "norm.weight": 1 + some(WIDTH), "norm.bias": some(WIDTH),
    }  # fmt: skip
    for n in range(DEPTH):
        block = f"blocks.{n}."
        for name in ("norm1", "norm2"):
            found |= {f"{block}{name}.weight": 1 + some(WIDTH), f"{block}{name}.bias": some(WIDTH)}
        for name, out, into in (
            ("attn.qkv", 3 * WIDTH, WIDTH), ("attn.proj", WIDTH, WIDTH), ("mlp.fc1", 4 * WIDTH, WIDTH),
            ("mlp.fc2", WIDTH, 4 * WIDTH),
        ):  # fmt: skip
            found |= {f"{block}{name}.weight": some(out, into, scale=into**-0.5), f"{block}{name}.bias": some(out)}
        found |= {f"{block}ls1.gamma": some(WIDTH, scale=1), f"{block}ls2.gamma": some(WIDTH, scale=1)}
    monkeypatch.setattr(dinov2, "VIT_L", SMALL)
    monkeypatch.setattr(Dinov2, "FEATURES", WIDTH)
    content = io.BytesIO()
    torch.save(found, content)
    path = tmp_path / "dinov2.pth"
    path.write_bytes(content.getvalue())
    known = hashlib.sha256(content.getvalue()).hexdigest()
    monkeypatch.setattr(Dinov2, "WEIGHTS", Dinov2.WEIGHTS._replace(sha256=known))
    return path, found


def by_torch(weights, pictures):
    """The class token's features of pictures, uint8 [N 224 224 3], by torch's own transformer.

    It knows no scales of its layers: these are multiplied into the weights that they follow.
    """
    x = torch.from_numpy(pictures).double() / 255
    x = (x - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    w = {name: value.double() for name, value in weights.items()}
    x = nn.functional.conv2d(x.permute(0, 3, 1, 2), w["patch_embed.proj.weight"], w["patch_embed.proj.bias"], stride=14)
    x = torch.cat([w["cls_token"].expand(len(x), 1, WIDTH), x.flatten(2).mT], dim=1)
    x = x + resampled(w["pos_embed"], 16)
    for n in range(DEPTH):
        block = nn.TransformerEncoderLayer(
            WIDTH, HEADS, 4 * WIDTH, dropout=0, activation="gelu", layer_norm_eps=1e-6, batch_first=True,
            norm_first=True, dtype=torch.float64,
        ).eval()  # fmt: skip
        own = {name.removeprefix(f"blocks.{n}."): value for name, value in w.items() if name.startswith(f"blocks.{n}.")}
        first, second = own.pop("ls1.gamma"), own.pop("ls2.gamma")
        names = {
            "attn.qkv.weight": "self_attn.in_proj_weight", "attn.qkv.bias": "self_attn.in_proj_bias",
            "attn.proj.weight": "self_attn.out_proj.weight", "attn.proj.bias": "self_attn.out_proj.bias",
            "mlp.fc1.weight": "linear1.weight", "mlp.fc1.bias": "linear1.bias",
            "mlp.fc2.weight": "linear2.weight", "mlp.fc2.bias": "linear2.bias",
        }  # fmt: skip
        for name, scale in (("attn.proj", first), ("mlp.fc2", second)):
            own[f"{name}.weight"], own[f"{name}.bias"] = (
                scale[:, None] * own[f"{name}.weight"],
                scale * own[f"{name}.bias"],
            )
        block.load_state_dict({names.get(name, name): value for name, value in own.items()})
        x = block(x)
    return nn.functional.layer_norm(x[:, 0], (WIDTH,), w["norm.weight"], w["norm.bias"], eps=1e-6).detach().numpy()


def pictures(num, size, seed):
    small = np.random.default_rng(seed).integers(0, 256, (num, 5, 5, 3), dtype=np.uint8)
    return np.stack(
        [np.asarray(Image.fromarray(each).resize((size, size), Image.Resampling.BICUBIC)) for each in small]
    )


def test_features_are_those_of_torch_s_own_transformer(weights):
    path, tensors = weights
    (network,) = Published(("fd-dinov2",), (path,)).load([Dinov2], torch.device("cpu"))
    some = pictures(3, 20, 0)
    steps = []
    (found,) = network.features(lambda n: some[n], 3, None, lambda *step: steps.append(step))
    large = np.stack([np.asarray(Image.fromarray(each).resize((224, 224), Image.Resampling.BICUBIC)) for each in some])
    expected = by_torch(tensors, large)
    assert found.shape == (3, WIDTH)
    assert found.dtype == np.float32
    assert np.abs(found - expected).max() < 2e-4
    assert np.abs(found[0] - found[1]).max() > 0.1  # what is compared depends on the picture
    assert steps == [(3, 3)]


def test_positions_are_resampled_as_by_the_published_code():
    """By Keys' kernel at the places that its factor gives: a factor of 16.1 / 37, and no antialiasing."""
    positions = torch.randn(1, 1 + PATCHES**2, 2, dtype=torch.float64)
    found = resampled(positions, 16)
    assert found.shape == (1, 257, 2)
    assert torch.equal(found[:, 0], positions[:, 0])
    square, a = positions[0, 1:].reshape(PATCHES, PATCHES, 2).numpy(), -0.75

    def kernel(t):
        t = abs(t)
        if t <= 1:
            return (a + 2) * t**3 - (a + 3) * t**2 + 1
        return a * t**3 - 5 * a * t**2 + 8 * a * t - 4 * a if t < 2 else 0.0

    def at(y, x):
        place = [(n + 0.5) * PATCHES / 16.1 - 0.5 for n in (y, x)]
        value = np.zeros(2)
        for j in range(math.floor(place[0]) - 1, math.floor(place[0]) + 3):
            for i in range(math.floor(place[1]) - 1, math.floor(place[1]) + 3):
                inside = square[np.clip(j, 0, PATCHES - 1), np.clip(i, 0, PATCHES - 1)]
                value += kernel(place[0] - j) * kernel(place[1] - i) * inside
        return value

    for y, x in ((0, 0), (3, 9), (15, 15), (15, 0)):
        assert np.allclose(found[0, 1 + 16 * y + x].numpy(), at(y, x), atol=1e-10)


def test_the_report_has_the_distance(weights, tmp_path, monkeypatch):
    monkeypatch.setattr(reference, "train_classifier", partial(train_classifier, steps=3))
    path, tensors = weights
    for name, num, seed in (("made", 12, 0), ("real", 40, 1)):
        (tmp_path / name).mkdir()
        for n, each in enumerate(pictures(num, 20, seed)):
            Image.fromarray(each).save(tmp_path / name / f"{n:03}.png")
    report = evaluate_samples(tmp_path / "made", tmp_path / "real", published=Published(("fd-dinov2",), (path,)))
    found = report.figures()
    means, covariances = [], []
    for num, seed in ((12, 0), (40, 1)):
        large = np.stack([
            np.asarray(Image.fromarray(each).resize((224, 224), Image.Resampling.BICUBIC))
            for each in pictures(num, 20, seed)
        ])  # fmt: skip
        features = by_torch(tensors, large)
        means.append(features.mean(0))
        covariances.append(np.cov(features, rowvar=False))
    root = torch.linalg.eigvals(torch.from_numpy(covariances[0] @ covariances[1])).sqrt().real.sum().item()
    distance = ((means[0] - means[1]) ** 2).sum() + np.trace(covariances[0]) + np.trace(covariances[1]) - 2 * root
    assert found["fd_dinov2"] == pytest.approx(distance, rel=1e-3)
    assert found["fd_dinov2_reals"] == 40
    assert any(line.startswith("FD-DINOv2: ") and "12 samples, 40 real images" in line for line in report.lines())
    assert "below 10,000 samples FD-DINOv2 is biased" in "".join(report.lines())
