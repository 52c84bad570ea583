"""The section `data`: the images."""

from __future__ import annotations

import os
import re
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from diffunet import names
from diffunet.config.fields import Byte, Section, Share, Value


class DataConfig(Section):
    """The images."""

    image_size: Annotated[int, Field(ge=4, le=4096)] = 64
    """Height and width that the model trains at."""
    channels: Literal[1, 3, 4] = 3
    """1 grey, 3 RGB, 4 RGB with transparency."""
    fit: names.FitName = "crop"
    """How images meet the size of the model. crop: made smaller until the short side fits, and the middle of the long
    one; random: the same, and slightly less of it, anywhere; pad: all of it, on the background; patch: windows of the
    model's size anywhere in it, at its own resolution, for textures, microscopes, satellites. Never stretched."""
    scales: Annotated[tuple[Annotated[float, Field(gt=0, le=1)], ...], Field(min_length=1, max_length=16)] = (1.0,)
    """With fit patch: the scales at which windows are taken, in turn at random; 1 is the image's own resolution."""
    background: tuple[Byte, Byte, Byte] = (255, 255, 255)
    """What shows through transparent pixels, and the padding: R G B."""
    range: tuple[Value, Value] | None = None
    """The values that are black and white in images of more than 8 bits: LOW HIGH; found from all of them."""
    int_range: tuple[Value, Value] | None = None
    """That of integers alone; found."""
    float_range: tuple[Value, Value] | None = None
    """That of floats alone; found."""
    pages: names.PagesName = "first"
    """Of stacks and animations take the first page, or make every page an image."""
    reading: Literal[1, 2] | None = None
    """How files are read: 2, in new runs, minds colour profiles, ranges and what TIFFs say; 1 is as in diffunet 0.1."""
    flip: bool | None = None
    """Mirror images at random; on below 5,000 images, unless left and right differ in them, as in writing."""
    augment: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Probability of each change (flip, turn, scale, stretch, shift) that the net is told of; for few images, 0.12."""
    masks: names.MasksName = "mixed"
    """Kind of random masks that inpainting is trained with."""
    mask_folder: str | None = None
    """Folder of masks, white = fill, that inpainting is trained with in place of random ones; they are turned and
    mirrored at random."""
    all_hole: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Share of the images of which a net that learns to inpaint is told nothing, so that it learns to generate too."""
    classes: bool = False
    """Subfolders are classes, or what --data.labels says."""
    labels: str | None = None
    """Classes from elsewhere than subfolders: a column of a table of the images, FILE.csv:COLUMN (.tsv, .jsonl; by
    default `label`), a dataset.json as of EDM, or what the first parentheses of a regular expression match in the
    images' names, such as '(.+)_[0-9]+'; "folders" for subfolders. By default subfolders, then such a file in DATA."""
    balance: bool = False
    """Draw each class equally often, however many images it has."""
    balance_groups: bool = False
    """Draw each group of --data.group equally often, however many variants it has; an image of no group is one."""
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

    @field_validator("range", "int_range", "float_range")
    @classmethod
    def _range(cls, range: tuple[float, float] | None) -> tuple[float, float] | None:
        if range is not None and not range[0] < range[1]:
            raise ValueError(f"should be two values, LOW below HIGH, not {range[0]:g} and {range[1]:g}")
        return range

    @field_validator("cache", "group", "labels", mode="before")
    @classmethod
    def _path(cls, value: Any) -> Any:
        return os.fspath(value) if isinstance(value, os.PathLike) else value

    @field_validator("group")
    @classmethod
    def _group(cls, rule: str | None) -> str | None:
        try:
            if rule is not None and names.group_file(rule) is None:
                re.compile(rule)
        except names.NO_EXPRESSION as error:
            raise ValueError(f"should be a regular expression, or a file that ends in .tsv or .csv ({error})") from None
        return rule

    @field_validator("labels")
    @classmethod
    def _labels(cls, rule: str | None) -> str | None:
        try:
            if rule is not None and names.label_file(rule) is None:
                re.compile(rule)
        except names.NO_EXPRESSION as error:
            kinds = ".tsv, .csv, .jsonl or .json"
            raise ValueError(f"should be a regular expression, or a file that ends in {kinds} ({error})") from None
        return rule

    @model_validator(mode="after")
    def _check(self) -> DataConfig:
        if self.fit != "patch" and self.scales != (1.0,):
            raise ValueError(f"scales are those of fit patch, and fit is {self.fit}")
        if self.balance_groups and self.group is None:
            raise ValueError("balance-groups needs groups: say with --data.group which images are of one group")
        if self.balance_groups and self.balance:
            raise ValueError("balance draws classes equally often, and balance-groups groups: take one of them")
        return self
