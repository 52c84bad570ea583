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
    """What the net is made of."""

    net: names.NetName = "unet"
    """Net that is trained: the time-conditioned UNet, or the classic one of 2015 with a time embedding."""
    channels: Annotated[int, Field(ge=4, le=2048)] | None = None
    """Feature channels at full size. If not given, they are chosen by the image size, the minutes and the device."""
    multipliers: Annotated[tuple[Multiplier, ...], Field(min_length=1, max_length=10)] | None = None
    """Feature channels of each level, as multiples of those at full size. If not given, they are chosen by the image
    size. The net unet2015 takes 1 2 4 and so on alone."""
    num_blocks: Annotated[int, Field(ge=1, le=16)] | None = None
    """Residual blocks of each level. If not given, they are chosen by the minutes and the device, else 2."""
    attention_resolutions: tuple[Positive, ...] = (16, 8)
    """Sizes of feature maps, in pixels, that get self-attention; of a size that there is not, the nearest one."""
    attention_levels: tuple[Annotated[int, Field(ge=0, le=9)], ...] | None = None
    """Levels that get self-attention, in place of sizes; 0 is the full size. If not given, they follow from
    --model.attention-resolutions."""
    middle_attention: bool | None = None
    """Whether there is self-attention between the two blocks of the middle. If not given, the minutes and the device
    decide, else there is."""
    head_channels: Annotated[int, Field(ge=1, le=4096)] = 64
    """Channels of an attention head."""
    num_heads: Annotated[int, Field(ge=1, le=1024)] | None = None
    """Attention heads, however many channels each has then. If not given, there are as many as --model.head-channels
    makes."""
    qk_norm: bool = False
    """Normalise the queries and keys of attention."""
    norm_groups: Annotated[int, Field(ge=1, le=1024)] | None = None
    """Groups of each GroupNorm, 32 in DDPM and its like. If not given, groups have 16 channels, which is faster on a
    CPU."""
    norm_eps: Annotated[float, Field(gt=0, le=1)] = 1e-5
    """Number that GroupNorm adds to the variance, so that it never divides by 0."""
    scale_shift: bool = True
    """Scale and shift features by the noise level, as ADM does; without, it is added to them, as in DDPM."""
    resample: names.ResampleName = "convolution"
    """How feature maps are halved and doubled: by a convolution, by one that pads asymmetrically (DDPM), or inside
    residual blocks (ADM)."""
    frequency_shift: Annotated[int, Field(ge=0, le=1)] = 0
    """Shift of the frequencies of the time embedding: 1 gives those of DDPM."""
    dropout: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Probability of dropout in residual blocks. If not given, it is 0.1 below 5,000 images, else 0."""
    checkpointing: bool | None = None
    """Whether the net keeps less for the backward pass, which saves memory and takes about a third more time. If not
    given, it does above 128 pixels where memory needs it."""
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
