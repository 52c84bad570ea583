"""The section `data`: the images."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, field_validator

from diffunet import names
from diffunet.config.fields import Byte, Section, Share


class DataConfig(Section):
    """The images."""

    image_size: Annotated[int, Field(ge=4, le=4096)] = 64
    """Height and width that the model trains at."""
    channels: Literal[1, 3, 4] = 3
    """1 grey, 3 RGB, 4 RGB with transparency."""
    fit: names.FitName = "crop"
    """Images that are not square: centre crop, random crop, or pad with the background. Never stretched."""
    background: tuple[Byte, Byte, Byte] = (255, 255, 255)
    """What shows through transparent pixels, and the padding: R G B."""
    flip: bool | None = None
    """Mirror images at random; on below 5,000 images."""
    augment: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Probability of each change (flip, turn, scale, stretch, shift) that the net is told of; for few images, 0.12."""
    masks: names.MasksName = "mixed"
    """Kind of random masks that inpainting is trained with."""
    mask_folder: str | None = None
    """Folder of masks, white = fill, that inpainting is trained with in place of random ones; they are turned and
    mirrored at random."""
    classes: bool = False
    """Subfolders are classes."""
    class_names: tuple[str, ...] = ()
    """The classes; found."""
    held_out: Annotated[float, Field(ge=0, le=0.5)] = 0.05
    """Share of the images kept for validation, at most 1,000; none below 20 images."""
    group: str | None = None
    """Images of one group, such as variants of one picture, are held out together or not at all. Groups are named in a
    column of a table of the images, FILE.tsv:COLUMN or FILE.csv:COLUMN, or by what the first parentheses of a regular
    expression match in the images' paths, such as 'emoji_u([0-9a-f]+)'."""
    max_rejected: Share = 0.1
    """Share of the files that may be unusable; above it, training does not begin."""
    cache: str | None = None
    """Folder for decoded images ("off": decode every time); the user's cache folder."""

    @field_validator("group")
    @classmethod
    def _group(cls, rule: str | None) -> str | None:
        try:
            if rule is not None and names.group_file(rule) is None:
                re.compile(rule)
        except names.NO_EXPRESSION as error:
            raise ValueError(f"should be a regular expression, or a file that ends in .tsv or .csv ({error})") from None
        return rule
