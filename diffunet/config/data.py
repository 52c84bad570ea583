"""The section `data`: the images."""

from __future__ import annotations

import os
import re
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from diffunet import names
from diffunet.config.fields import Byte, Section, Share, Value


class DataConfig(Section):
    """Which images are learned, and how they are seen."""

    image_size: Annotated[int, Field(ge=4, le=4096)] = 64
    """Height and width, in pixels, that the model is trained at."""
    channels: Literal[1, 3, 4] = 3
    """Channels of the images: 1 is grey, 3 is RGB, 4 is RGB with transparency."""
    fit: names.FitName = "crop"
    """How images meet the size of the model, never stretched. crop takes the middle of the image made as small as fits;
    random takes a slightly smaller piece of it, anywhere; pad takes all of it, on the background; patch takes windows
    anywhere, at the image's own resolution, for textures, microscopes and satellites."""
    scales: Annotated[tuple[Annotated[float, Field(gt=0, le=1)], ...], Field(min_length=1, max_length=16)] = (1.0,)
    """Scales, above 0 and up to 1, at which --data.fit patch takes windows, in turn at random; 1 is the image's own
    resolution."""
    background: tuple[Byte, Byte, Byte] = (255, 255, 255)
    """Colour behind transparent pixels and of the padding: red, green and blue, 0 to 255."""
    range: tuple[Value, Value] | None = None
    """Values, LOW HIGH, that are black and white in images of more than 8 bits. If not given, they are found from all
    images."""
    int_range: tuple[Value, Value] | None = None
    """Values, LOW HIGH, that are black and white in images of whole numbers of more than 8 bits alone. If not given,
    they are found."""
    float_range: tuple[Value, Value] | None = None
    """Values, LOW HIGH, that are black and white in images of floating-point numbers alone. If not given, they are
    found."""
    pages: names.PagesName = "first"
    """Which pages of a stack, or frames of an animation, are images: the first, or all."""
    reading: Literal[1, 2] | None = None
    """Way in which files are read. 2 minds colour profiles, ranges and what TIFFs say; 1 is as in diffunet 0.1. If not
    given, new runs take 2."""
    flip: bool | None = None
    """Whether images are mirrored at random. If not given, they are below 5,000 images, unless left and right differ in
    them, as in writing."""
    augment: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Probability, below 1, of each random change (flip, turn, scale, stretch, shift) of which the net is told; 0.12
    suits few images."""
    masks: names.MasksName = "mixed"
    """Kind of random masks by which inpainting is learned."""
    mask_folder: str | None = None
    """Folder of masks, white = fill, by which inpainting is learned in place of random ones. They are turned and
    mirrored at random."""
    all_hole: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Share of the images, 0 to 1, of which a net that learns to inpaint is told nothing, so that it learns to
    generate, too."""
    classes: bool = False
    """Train by class: subfolders are classes, or what --data.labels says."""
    labels: str | None = None
    """Where the classes of images are found: a column of a table, FILE.csv:COLUMN (.tsv, .jsonl; the column `label` if
    none is named), a dataset.json as of EDM, what the first parentheses of a regular expression match in the images'
    names, such as '(.+)_[0-9]+', or "folders" for subfolders. If not given, they are subfolders, else such a file in
    DATA."""
    balance: bool = False
    """Draw each class equally often, however many images it has."""
    balance_groups: bool = False
    """Draw each group of --data.group equally often, however many variants it has. An image without a group is one of
    its own."""
    class_names: tuple[str, ...] = ()
    """Names of the classes, in the order of their numbers. If not given, they are found."""
    held_out: Annotated[float, Field(ge=0, le=0.5)] = 0.05
    """Share of the images, 0 to 0.5, that is kept for validation: at most 1,000 images, and none of fewer than 20."""
    group: str | None = None
    """Which images belong together, such as variants of one picture, and are held out together or not at all: a column
    of a table, FILE.tsv:COLUMN or FILE.csv:COLUMN, or what the first parentheses of a regular expression match in the
    images' paths, such as 'emoji_u([0-9a-f]+)'."""
    max_rejected: Share = 0.1
    """Share of the files, 0 to 1, that may be unusable. Above it, training does not begin."""
    cache: str | None = None
    """Folder for decoded images; "off" decodes them every time. If not given, it is in the user's cache folder."""

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
