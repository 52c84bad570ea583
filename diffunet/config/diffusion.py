"""The section `diffusion`: noise, target, and how to sample by default."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator, Field, model_validator

from diffunet import names
from diffunet.config.fields import Beta, Rate, Section, Share


class DiffusionConfig(Section):
    """The process: noise, target, and how to sample by default."""

    task: names.TaskName = "generate"
    """What the net learns: to generate, or to inpaint, told known pixels and the hole; that model generates too."""
    schedule: names.ScheduleName = "flow-logit-normal"
    """Which noise levels there are, and how often training meets each."""
    num_steps: Annotated[int, Field(ge=2, le=100_000)] = 1000
    """Steps of a DDPM schedule (linear, scaled-linear, cosine, sigmoid)."""
    beta_range: tuple[Beta, Beta] | None = None
    """First and last beta of linear and scaled-linear; theirs as published, scaled to the number of steps."""
    rescale_timesteps: bool = False
    """Tell the net timesteps from 0 to 1,000 whatever num-steps is (improved diffusion)."""
    zero_snr: bool = False
    """Change a DDPM schedule so that it ends in pure noise (not with target epsilon)."""
    target: names.TargetName = "flow"
    """What the net predicts."""
    learned_variance: bool = False
    """Learn the variance of a DDPM schedule's steps too, for the sampler ddpm-learned and better likelihoods."""
    weighting: names.WeightingName = "simple"
    """How noise levels count in the loss."""
    min_snr_gamma: Rate = 5.0
    """Where min-snr and soft-min-snr cap the signal-to-noise ratio."""
    p2_gamma: Annotated[float, Field(ge=0, le=10)] = 1.0
    """How strongly p2 turns the loss away from the least noise."""
    sigmoid_bias: Annotated[float, Field(ge=-20, le=20)] = 2.0
    """Where sigmoid fades out, in log SNR."""
    learned_uncertainty: bool = False
    """Learn how hard each noise level is, and make them count the same."""
    edm_log_mean: Annotated[float, Field(ge=-20, le=20)] = -1.2
    """Mean of log sigma in training (EDM's P_mean)."""
    edm_log_std: Annotated[float, Field(gt=0, le=20)] = 1.2
    """Deviation of log sigma in training (EDM's P_std)."""
    sigma_shift: Rate | None = None
    """Multiplies every sigma; image size / 64 above 64 pixels, else 1."""
    label_dropout: Share = 0.1
    """Share of images trained without their label; guidance needs some."""
    sampler: Annotated[names.SamplerName, BeforeValidator(names.canonical)] = "unipc"
    """Default sampler."""
    sample_steps: Annotated[int, Field(ge=1, le=100_000)] = 15
    """Default number of sampling steps."""
    ladder: names.LadderName | None = None
    """How those steps are spaced; by default what suits the sampler: log-snr for unipc and dpm++2m, else trailing."""
    threshold: names.ThresholdName = "none"
    """Keep the predicted clean image within its range: clip it, or scale it back (dynamic), as large guidance needs."""
    sigma_data: Rate | None = None
    """Standard deviation of the images in [-1, 1]; measured."""
    mean: tuple[Annotated[float, Field(ge=-1, le=1)], ...] | None = None
    """Mean of each channel in [-1, 1]; measured. Sampling starts round it."""

    @model_validator(mode="after")
    def _check(self) -> DiffusionConfig:
        if self.schedule.startswith("flow") and self.target == "epsilon":
            raise ValueError("target epsilon cannot be learned of pure noise, where flow begins; take flow, v or x0")
        if self.zero_snr and self.target == "epsilon":
            raise ValueError("zero-snr starts from pure noise, of which target epsilon cannot be learned; take v or x0")
        if self.beta_range is not None and self.schedule not in ("linear", "scaled-linear"):
            raise ValueError(f"beta-range is of the schedules linear and scaled-linear, not {self.schedule}")
        if self.beta_range is not None and self.beta_range[0] > self.beta_range[1]:
            raise ValueError(f"beta-range falls from {self.beta_range[0]} to {self.beta_range[1]}; betas rise")
        for name in ("zero_snr", "learned_variance", "rescale_timesteps"):
            if getattr(self, name) and self.schedule not in names.DDPM_SCHEDULES:
                option, known = name.replace("_", "-"), ", ".join(names.DDPM_SCHEDULES)
                raise ValueError(f"{option} is of a DDPM schedule ({known}), not {self.schedule}")
        if self.sampler == "ddpm-learned" and not self.learned_variance:
            raise ValueError("sampler ddpm-learned needs learned-variance")
        return self
