"""The training loss: `W(sigma) * c_out^2 * (net - target)^2`, which is `W * (D - x0)^2` without its cancellation.

A weighting W always weights (D - x0)^2, so that any target goes with any weighting.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from diffunet.diffusion.denoiser import Denoised, Denoiser

Weighting = Callable[[Tensor, Tensor], Tensor]
"""(sigma [B], c_out [B]) -> W [B]."""

Loss = Callable[[Denoised, Tensor, Tensor], Tensor]
"""A loss of one's own: (denoised, x0 [B C H W], sigma [B]) -> [B]."""


def simple() -> Weighting:
    """Every noise level of the net's own target counts the same: W = 1 / c_out^2.

    For epsilon that is 1 / sigma^2 (Ho et al. 2020, eq. 14), for v 1 + 1 / sigma^2, for EDM 1 / sigma^2 + 1 / sd^2.
    """
    return lambda sigma, c_out: c_out**-2


def min_snr(gamma: float = 5.0) -> Weighting:
    """W = min(SNR, gamma), SNR = 1 / sigma^2 (Hang et al. 2023, section 3.4)."""
    return lambda sigma, c_out: (sigma**-2).clamp(max=gamma)


def edm(sigma_data: float) -> Weighting:
    """W = 1 / sigma^2 + 1 / sd^2 (Karras et al. 2022, table 1), whatever the target."""
    return lambda sigma, c_out: sigma**-2 + sigma_data**-2


class DenoisingLoss(nn.Module):
    """`loss(x0, noise, sigma, label, ...) -> [B]`: noise, denoise, compare. The module that training wraps.

    Args:
        denoiser: what learns.
        weighting: see `Weighting`.
        own: a loss of one's own, used instead of the weighted square.
    """

    def __init__(self, denoiser: Denoiser, weighting: Weighting, own: Loss | None = None) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.weighting = weighting
        self.own = own

    def forward(
        self,
        x0: Tensor,
        noise: Tensor,
        sigma: Tensor,
        label: Tensor | None = None,
        concat: Tensor | None = None,
        augment: Tensor | None = None,
    ) -> Tensor:
        """Images and noise [B C H W], sigma [B], float32 on one device -> each image's mean weighted square [B]."""
        s = sigma[:, None, None, None]
        x = x0 + s * noise  # float32: in bfloat16 the faintest noise levels vanish
        if self.own is not None:
            return self.own(self.denoiser(x, sigma, label, concat, augment), x0, sigma)
        target = self.denoiser.target
        output = self.denoiser.output(x, sigma, label, concat, augment).float()
        error = (output - target.target(x0, noise, s)).square().mean(dim=(1, 2, 3))
        c_out = target.c_out(sigma)
        return self.weighting(sigma, c_out) * c_out**2 * error
