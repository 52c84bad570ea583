"""The section `diffusion`: noise, target, and how to sample by default."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator, Field, model_validator

from diffunet import names
from diffunet.config.fields import Beta, Rate, Section, Share


class DiffusionConfig(Section):
    """What is learned of noise, and how the model samples by default."""

    task: names.TaskName = "generate"
    """What the net learns: to generate, or to inpaint, for which it is told the known pixels and the hole. A model that
    inpaints generates, too."""
    schedule: names.ScheduleName = "flow-logit-normal"
    """Schedule of noise: which noise levels there are, and how often training meets each."""
    num_steps: Annotated[int, Field(ge=2, le=100_000)] = 1000
    """Steps of a DDPM schedule (linear, scaled-linear, cosine, sigmoid)."""
    beta_range: tuple[Beta, Beta] | None = None
    """First and last beta of the schedules linear and scaled-linear. If not given, they are as published, scaled to the
    number of steps."""
    rescale_timesteps: bool = False
    """Tell the net timesteps from 0 to 1,000, whatever --diffusion.num-steps is, as improved diffusion does."""
    zero_snr: bool = False
    """Change a DDPM schedule so that it ends in pure noise. The target epsilon cannot be learned then."""
    target: names.TargetName = "flow"
    """What the net predicts: the noise (epsilon), the clean image (x0), a mixture of both (v, flow), or EDM's scaled
    residual (edm)."""
    learned_variance: bool = False
    """Learn the variance of the steps of a DDPM schedule, too, for the sampler ddpm-learned and better likelihoods."""
    weighting: names.WeightingName = "simple"
    """Weighting of the noise levels in the loss."""
    min_snr_gamma: Rate = 5.0
    """Signal-to-noise ratio at which the weightings min-snr and soft-min-snr level off."""
    p2_gamma: Annotated[float, Field(ge=0, le=10)] = 1.0
    """Strength, 0 to 10, with which the weighting p2 turns the loss away from the least noise."""
    sigmoid_bias: Annotated[float, Field(ge=-20, le=20)] = 2.0
    """Log signal-to-noise ratio at which the weighting sigmoid has faded by half."""
    learned_uncertainty: bool = False
    """Learn how hard each noise level is, and make all of them count the same (EDM2)."""
    edm_log_mean: Annotated[float, Field(ge=-20, le=20)] = -1.2
    """Mean of log sigma in training with the schedule edm (EDM's P_mean)."""
    edm_log_std: Annotated[float, Field(gt=0, le=20)] = 1.2
    """Standard deviation of log sigma in training with the schedule edm (EDM's P_std)."""
    sigma_shift: Rate | None = None
    """Factor of every noise level sigma. If not given, it is the image size divided by 64, at least 1."""
    label_dropout: Share = 0.1
    """Share of the images, 0 to 1, that a model with classes learns without their label. Guidance needs some."""
    sampler: Annotated[names.SamplerName, BeforeValidator(names.canonical)] = "unipc"
    """Sampler that the model samples by unless it is told another."""
    sample_steps: Annotated[int, Field(ge=1, le=100_000)] = 15
    """Steps of the sampler unless it is told another number."""
    ladder: names.LadderName | None = None
    """How the steps of sampling are spaced. If not given, it is what suits the sampler: log-snr for unipc and dpm++2m,
    else trailing."""
    threshold: names.ThresholdName = "none"
    """What keeps the predicted clean image within its range, as strong guidance needs: nothing, clipping (static), or
    scaling back (dynamic)."""
    sigma_data: Rate | None = None
    """Standard deviation of the images' values, which lie in [-1, 1]. If not given, it is measured."""
    mean: tuple[Annotated[float, Field(ge=-1, le=1)], ...] | None = None
    """Mean of each channel of the images, in [-1, 1], round which sampling starts. If not given, it is measured."""

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
