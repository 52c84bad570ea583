"""Muon, an optimizer for matrices (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon).

The gradient of a convolution or a linear layer is nearly of low rank, so that a step along it changes a few directions
much and most of them hardly. In place of the momentum M = U S V^T Muon takes about U V^T, the nearest semi-orthogonal
matrix, which changes all directions alike. A convolution [out in k k] is the matrix [out, in k k]. On a diffusion UNet
this reached 18% less loss than AdamW (arXiv 2510.19376); samples/recipe.md has what it is worth here.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

MOMENTUM = 0.95
"""The share of the momentum that each step keeps, and that Nesterov's step takes of it."""

COEFFICIENTS, ITERATIONS = (3.4445, -4.7750, 2.0315), 5
"""The polynomial of the Newton-Schulz iteration, and how often it is applied: of Jordan et al. 2024."""

WIDE = 2
"""From so many times as many columns as rows on, the iteration is on matrices of the rows alone, which is less work."""

SCALE = 0.2
"""The root mean square of the elements of a step at rate 1. It is about that of AdamW, so that one rate suits both (Liu
et al. 2025, "Muon is Scalable for LLM Training", section 2.2)."""


class Muon(torch.optim.Optimizer):
    """Muon with Nesterov's momentum, for weights of two dimensions or more.

    Like torch's fused AdamW it changes nothing where its attribute `found_inf` [] is 1, and does not wait for the
    device to know.

    Args:
        weights: the weights, each with the number of matrices of equal size that its rows are a stack of: 3 where one
            layer makes queries, keys and values.
        lr, weight_decay: the learning rate; the share of a weight that a step takes away at rate 1.
        dtype: the type in which the Newton-Schulz iteration is computed.
    """

    def __init__(
        self, weights: Iterable[tuple[Tensor, int]], lr: float, weight_decay: float, dtype: torch.dtype
    ) -> None:
        alike: dict[tuple[int, ...], list[Tensor]] = {}  # weights of one shape are computed at once
        for weight, stacked in weights:
            alike.setdefault((stacked, *weight.shape), []).append(weight)
        groups: list[dict[str, Any]] = [{"params": same, "stacked": key[0]} for key, same in alike.items()]
        super().__init__(groups, {"lr": lr, "weight_decay": weight_decay})
        self.dtype = dtype
        self.found_inf: Tensor | None = None

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Change the weights by their gradients, unless `found_inf` is 1."""
        for group in self.param_groups:
            weights: list[Tensor] = group["params"]
            gradients = [weight.grad for weight in weights if weight.grad is not None]
            assert len(gradients) == len(weights), "every weight has a gradient, see DenoisingLoss"
            momenta = [self._momentum(weight) for weight in weights]
            step: Tensor | float = -group["lr"]
            if (skipped := self.found_inf) is not None:
                # A momentum that moves towards itself stays as it is, to the bit, and a step times 0 is none.
                pairs = zip(momenta, gradients, strict=True)
                gradients = [torch.where(skipped > 0, momentum, gradient) for momentum, gradient in pairs]
                step = step * (1 - skipped)
            torch._foreach_lerp_(momenta, gradients, 1 - MOMENTUM)
            ahead = torch.stack(torch._foreach_lerp(gradients, momenta, MOMENTUM))  # [n rows ...]
            matrices = ahead.flatten(2).unflatten(1, (group["stacked"], -1))  # [n stacked rows columns]
            change = orthogonalised(matrices, self.dtype) * (step * (SCALE * max(matrices.shape[-2:]) ** 0.5))
            if group["weight_decay"]:
                torch._foreach_mul_(weights, 1 + step * group["weight_decay"])
            torch._foreach_add_(weights, list(change.reshape(ahead.shape)))

    def _momentum(self, weight: Tensor) -> Tensor:
        state = self.state[weight]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(weight)
        momentum: Tensor = state["momentum_buffer"]
        return momentum


def orthogonalised(matrices: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return about U V^T, float32, for each of `matrices` = U S V^T [... rows columns], computed in `dtype`.

    Its singular values lie between about 0.7 and 1.2 where those of `matrices` are above some percent of their norm,
    and below where they are smaller; it is 0 where `matrices` is. Newton-Schulz iterations need products of matrices
    alone.
    """
    a, b, c = COEFFICIENTS
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = (x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)).to(dtype)
    if x.shape[-1] >= WIDE * x.shape[-2] and x.device.type == "cpu" and dtype == torch.float32:
        x = _factor(x @ x.mT) @ x
    else:
        for _ in range(ITERATIONS):
            gram = x @ x.mT
            x = a * x + (b * gram + c * (gram @ gram)) @ x
    return (x.mT if tall else x).float()


def _factor(gram: Tensor) -> Tensor:
    """Return what the iterations multiply X by, [... n n], from its Gram matrix X X^T [... n n].

    Each multiplies X by a polynomial of its Gram matrix, so that only matrices of n x n need be multiplied. Rounding is
    that of squared singular values: 4e-4 of the result in float32, where the iteration itself is off by 0.3. In
    bfloat16, or where products of float32 are rounded as on GPUs, it would be too much.
    """
    a, b, c = COEFFICIENTS
    identity = torch.eye(gram.shape[-1], device=gram.device, dtype=gram.dtype)
    factor = identity
    for _ in range(ITERATIONS):
        polynomial = a * identity + b * gram + c * (gram @ gram)
        factor, gram = polynomial @ factor, polynomial @ gram @ polynomial
    return factor
