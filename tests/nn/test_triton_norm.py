"""The kernels for a GPU, run on the CPU by Triton's interpreter, against torch in float64."""

import os
import subprocess
import sys

import pytest
import torch

from diffunet import compiler
from diffunet.nn import kernels

pytest.importorskip("triton")

PROGRAM = """
import sys
import torch
import torch.nn.functional as F
from diffunet.nn import triton_norm

def made(*shape, dtype=torch.float32):
    layout = torch.channels_last if len(shape) == 4 else torch.contiguous_format
    return torch.randn(*shape).to(dtype).contiguous(memory_format=layout)

def check(b, c, h, w, groups, dtype, scaled, silu, dropout, tolerance):
    torch.manual_seed(0)
    x, gy = made(b, c, h, w, dtype=dtype) + 3, made(b, c, h, w, dtype=dtype)
    weight, bias, scale, shift = made(c), made(c), made(b, c), made(b, c)
    known = weight, bias, scale if scaled else None, shift if scaled else None
    options = groups, 1e-5, silu, dropout, torch.tensor(2**62 + 12345)
    # NaN shows what is not written.
    y, dx = torch.full_like(x, torch.nan), torch.full_like(x, torch.nan)
    stats, sums = torch.full((b, groups, 2), torch.nan), torch.full((b, 2, c), torch.nan)
    triton_norm.forward(x, y, stats, known, options)
    triton_norm.backward(x, gy, dx, sums, stats, known, options)

    exact = [each.double().requires_grad_() for each in (x, weight, bias, scale, shift)]
    z = F.group_norm(exact[0], groups, exact[1], exact[2], 1e-5)
    if scaled:
        z = z * (1 + exact[3][..., None, None]) + exact[4][..., None, None]
    z = F.silu(z) if silu else z
    if dropout:
        kept = y != 0
        share = kept.double().mean().item()
        assert abs(share - (1 - dropout)) < 4 * (dropout / kept.numel()) ** 0.5, share
        assert not torch.equal(kept[0], kept[-1])
        z = z * kept / (1 - dropout)
    z.backward(gy.double())
    gain = 1 + scale if scaled else 1
    pairs = [(y, z), (dx, exact[0].grad)]
    pairs += [((gain * sums[:, 1]).sum(0), exact[1].grad), ((gain * sums[:, 0]).sum(0), exact[2].grad)]
    if scaled:
        pairs += [(weight * sums[:, 1] + bias * sums[:, 0], exact[3].grad), (sums[:, 0], exact[4].grad)]
    for mine, true in pairs:
        off = ((mine.double() - true).abs().max() / true.square().mean().sqrt()).item()
        assert off <= tolerance, (b, c, dtype, off)

check(2, 40, 9, 7, 5, torch.float32, True, True, 0.0, 1e-4)
check(2, 48, 5, 3, 3, torch.float32, False, False, 0.0, 1e-4)
check(1, 12, 4, 4, 4, torch.float32, True, False, 0.0, 1e-4)
check(2, 32, 66, 64, 1, torch.float32, False, True, 0.0, 1e-4)  # more than a program takes at a time
check(3, 32, 8, 8, 2, torch.float32, True, True, 0.3, 1e-4)
check(2, 40, 9, 7, 5, torch.bfloat16, True, True, 0.0, 0.1)
check(2, 40, 9, 7, 5, torch.float16, True, True, 0.1, 0.02)
print("right")
"""


@pytest.mark.long
def test_they_compute_what_torch_does():
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True,
        timeout=300, check=False,
    )  # fmt: skip
    assert ended.stdout.strip() == "right", ended.stderr


def test_a_gpu_that_cannot_have_them_is_told_why(monkeypatch):
    with pytest.raises(compiler.Unavailable, match="they are for a CPU and for NVIDIA's GPUs, and the device is mps"):
        kernels.ready.__wrapped__(torch.device("mps"))
    monkeypatch.setattr(kernels, "_off", lambda dtype, device: 1 / 0)
    with pytest.raises(compiler.Unavailable, match="they cannot be built for this GPU: division by zero"):
        kernels.ready.__wrapped__(torch.device("cuda"))
    monkeypatch.setattr(kernels.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(compiler.Unavailable, match="triton, which builds them for a GPU, is not installed"):
        kernels.ready.__wrapped__(torch.device("cuda"))
