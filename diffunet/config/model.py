"""The section `model`: the net."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, model_validator

from diffunet import names
from diffunet.config.fields import Multiplier, Positive, Section

BOTH_NETS = ("net", "channels", "multipliers", "attention_resolutions", "dropout", "custom")
"""Options of `ModelConfig` that net unet2015 has or ignores; every other one belongs to the UNet alone."""

ABSENT: dict[str, Any] = {"attention_levels": (), "checkpointing": False, "num_blocks": 2, "middle_attention": True}
"""What a resolved config of net unet2015 may state of options that it does not have."""


class ModelConfig(Section):
    """The net."""

    net: names.NetName = "unet"
    """The time-conditioned UNet, or the classic of 2015 with a time embedding."""
    channels: Annotated[int, Field(ge=4, le=2048)] | None = None
    """Feature channels at full size; chosen by image size and device."""
    multipliers: Annotated[tuple[Multiplier, ...], Field(min_length=1, max_length=10)] | None = None
    """Times `channels`, one for each level; chosen by image size. Of unet2015 they are 1 2 4 and so on."""
    num_blocks: Annotated[int, Field(ge=1, le=16)] | None = None
    """Residual blocks of a level; chosen by minutes and device, else 2."""
    attention_resolutions: tuple[Positive, ...] = (16, 8)
    """Sizes of feature maps that get self-attention, or the nearest there are."""
    attention_levels: tuple[Annotated[int, Field(ge=0, le=9)], ...] | None = None
    """The same by level, 0 is full size; from the resolutions and the image size."""
    middle_attention: bool | None = None
    """Self-attention between the two blocks of the middle, too; chosen by minutes and device, else there is."""
    head_channels: Annotated[int, Field(ge=1, le=4096)] = 64
    """Channels of an attention head."""
    num_heads: Annotated[int, Field(ge=1, le=1024)] | None = None
    """Number of heads, whatever their channels; as many as head-channels makes."""
    qk_norm: bool = False
    """Normalise queries and keys."""
    norm_groups: Annotated[int, Field(ge=1, le=1024)] | None = None
    """Groups of GroupNorm, 32 in DDPM and all that came of it; by default groups of 16 channels, faster on a CPU."""
    norm_eps: Annotated[float, Field(gt=0, le=1)] = 1e-5
    """Of GroupNorm."""
    scale_shift: bool = True
    """The noise level scales and shifts features (True) or is added (False)."""
    resample: names.ResampleName = "convolution"
    """Halve and double by a convolution, by one that pads asymmetrically (DDPM), or inside residual blocks (ADM)."""
    frequency_shift: Annotated[int, Field(ge=0, le=1)] = 0
    """1 for DDPM's frequencies of the time embedding."""
    dropout: Annotated[float, Field(ge=0, lt=1)] | None = None
    """In residual blocks; 0.1 below 5,000 images, else 0."""
    checkpointing: bool | None = None
    """Keep less for the backward pass: less memory, about a third more time. On above 128 pixels where it is needed."""
    custom: str | None = None
    """Name of a net of your own, which diffunet.train(net=...) sets. It is printed and never imported."""

    @model_validator(mode="after")
    def _check(self) -> ModelConfig:
        if self.net == "unet2015":
            if self.multipliers is not None and self.multipliers != tuple(2**i for i in range(len(self.multipliers))):
                raise ValueError("net unet2015 doubles its channels at each level: multipliers are 1 2 4 and so on")
            for name, value in self:
                unset = ABSENT.get(name, ModelConfig.model_fields[name].default)
                if name not in BOTH_NETS and value not in (None, unset):
                    raise ValueError(f"net unet2015 has no {name.replace('_', '-')}")
        return self
