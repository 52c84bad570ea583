"""What a file says of its image beside the pixels: colour profile, EXIF, XMP and resolution, from file to file.

Pillow keeps them in `Image.info`, and few of its writers look there.
"""

from __future__ import annotations

import contextlib
import re
from typing import Any

from PIL import Image, PngImagePlugin

NAMES = ("icc_profile", "exif", "xmp", "dpi")
"""In `Image.info`."""

_ORIENTATION, _EXIF, _GPS, _XMP = 0x0112, 0x8769, 0x8825, 700
_DESCRIBING = (
    0x010E, 0x010F, 0x0110, _ORIENTATION, 0x011A, 0x011B, 0x0128, 0x0131, 0x0132, 0x013B, 0x013C, 0x4746, 0x8298,
    *range(0x9C9B, 0x9CA0),
)  # fmt: skip
"""Tags of description, camera, resolution, software, time, author, rating and copyright; others say how a file is
laid out, and are wrong in another."""
_OFFSETS = (0x927C, 0xA005)
"""Maker notes, which may hold a thumbnail of what was erased, and another table: both point to places in their file."""
_TURNED = (rb'tiff:Orientation="[0-9]"', rb"<tiff:Orientation>[0-9]</tiff:Orientation>")
_LONGEST = 65_000  # bytes of a JPEG's segment
_SPACES = {b"GRAY": ("1", "L", "LA", "I;16", "I", "F"), b"CMYK": ("CMYK",), b"Lab ": ()}
"""The modes that a profile of a colour space, which its bytes 16 to 19 name, goes with, if not all."""


def cleaned(image: Image.Image) -> dict[str, Any]:
    """What a file that was just opened says, less how its picture is turned, and less thumbnails, which show what was
    erased; and less what is damaged."""
    said = of(image)
    said.pop("exif", None)
    with contextlib.suppress(Exception):  # the picture is sound, only its notes are not
        exif = _described(image.getexif())
        exif.pop(_ORIENTATION, None)
        if len(exif):
            said["exif"] = exif.tobytes()
    if b"xmpGImg" in said.get("xmp", b""):
        del said["xmp"]
    for turned in _TURNED:
        if "xmp" in said:
            said["xmp"] = re.sub(turned, b"", said["xmp"])
    return said


def of(image: Image.Image) -> dict[str, Any]:
    """What `NAMES` names, where an image has it: bytes, and the resolution as two floats."""
    said: dict[str, Any] = {
        name: image.info[name]
        for name in NAMES
        if isinstance(image.info.get(name), bytes)  # a PNG's text of that name is a str
    }
    with contextlib.suppress(KeyError, TypeError, ValueError, ZeroDivisionError):
        across, down = map(float, image.info["dpi"])
        if 1 < across < 2**16 and 1 < down < 2**16:  # 1 is what Pillow writes into a TIFF that says none
            said["dpi"] = (across, down)
    return said


def put(image: Image.Image, said: dict[str, Any]) -> None:
    """Let an image say this, and nothing else of `NAMES`."""
    for name in NAMES:
        image.info.pop(name, None)
    image.info.update(**said)


def options(image: Image.Image, kind: str) -> dict[str, Any]:
    """What Pillow's writer of a format is to be given, so that the file says what the image does, as far as it can."""
    said = of(image)
    stored = "RGB" if kind == "WEBP" and image.mode == "L" else image.mode
    if stored not in _SPACES.get(said.get("icc_profile", b"")[16:20], (stored,)):
        del said["icc_profile"]
    xmp = said.pop("xmp", None)
    match kind:
        case "PNG":
            if xmp is not None:
                said["pnginfo"] = PngImagePlugin.PngInfo()
                said["pnginfo"].add_itxt("XML:com.adobe.xmp", xmp.decode("utf-8", "replace"))
        case "JPEG" | "WEBP":
            said |= {} if xmp is None else {"xmp": xmp}
            said = {name: value for name, value in said.items() if kind == "WEBP" or len(value) <= _LONGEST}
        case "TIFF":
            said |= _tags(said.pop("exif", None), xmp)
        case _:
            said = {name: value for name, value in said.items() if name == "dpi"}
    return {"icc_profile": None, **said}  # None: or Pillow takes what was left out here from the image


def _tags(exif: bytes | None, xmp: bytes | None) -> dict[str, Any]:
    """Options for a TIFF; Pillow writes tables of EXIF only into one that is not compressed."""
    tags = Image.Exif()
    with contextlib.suppress(Exception):
        given = Image.Exif()
        given.load(exif or b"")
        tags.load(_described(given).tobytes())  # the writer asks for tables by where they are
    if xmp is not None:
        tags[_XMP] = xmp
    if _EXIF in tags or _GPS in tags:
        return {"exif": tags, "compression": None}
    return {"exif": tags} if len(tags) else {}


def _described(given: Image.Exif) -> Image.Exif:
    """Its tags that go with any file."""
    kept = Image.Exif()
    for tag in _DESCRIBING:
        if tag in given:
            kept[tag] = given[tag]
    for table in (_EXIF, _GPS):
        inside = {tag: value for tag, value in given.get_ifd(table).items() if tag not in _OFFSETS}
        if inside:
            kept[table] = inside
    return kept
