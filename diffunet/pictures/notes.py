"""The notes of a file, which is what it says beside the pixels: colour profile, EXIF, XMP and resolution.

They are carried from file to file. Pillow keeps them in `Image.info`, and few of its writers look there.
"""

import contextlib
import re
from typing import Any

from PIL import Image, PngImagePlugin

from diffunet.pictures.deep import WHITE_IS_ZERO

NAMES = ("icc_profile", "exif", "xmp", "dpi")  # in `Image.info`

_ORIENTATION, _EXIF, _GPS, _XMP, _PHOTOMETRIC = 0x0112, 0x8769, 0x8825, 700, 262
_DESCRIBING = (
    0x010E, 0x010F, 0x0110, _ORIENTATION, 0x011A, 0x011B, 0x0128, 0x0131, 0x0132, 0x013B, 0x013C, 0x4746, 0x8298,
    *range(0x9C9B, 0x9CA0),
)  # fmt: skip
"""EXIF tags of description, camera, resolution, software, time, author, rating and copyright. All others describe the
layout of their file, and would be wrong in another."""
_OFFSETS = (0x927C, 0xA005)  # tags that point to places in their file; maker notes may show what was erased since
_XMP_ORIENTATION = rb'tiff:Orientation="[0-9]"|<tiff:Orientation>[0-9]</tiff:Orientation>'
_LONGEST = 65_000  # bytes of a JPEG's segment
_SPACES = {b"GRAY": ("1", "L", "LA", "I;16", "I", "F"), b"CMYK": ("CMYK",), b"Lab ": ()}
"""The modes for which a profile is valid, by its colour space (its bytes 16 to 19); other profiles fit all modes."""


def cleaned(image: Image.Image) -> dict[str, Any]:
    """Return the notes of an image that was just opened, fit for a changed and turned picture.

    The orientation, thumbnails (which show what was erased) and whatever is damaged are left out.
    """
    notes = of(image)
    notes.pop("exif", None)
    with contextlib.suppress(Exception):  # the picture is sound, only its notes are not
        exif = _described(image.getexif())
        exif.pop(_ORIENTATION, None)
        if len(exif):
            notes["exif"] = exif.tobytes()
    if b"xmpGImg" in notes.get("xmp", b""):  # a thumbnail
        del notes["xmp"]
    elif "xmp" in notes:
        notes["xmp"] = re.sub(_XMP_ORIENTATION, b"", notes["xmp"])
    return notes


def of(image: Image.Image) -> dict[str, Any]:
    """Return the notes that an image has, by their names in `NAMES`: bytes, and the resolution as two floats."""
    # A PNG may have a text of one of these names, which is a str.
    notes: dict[str, Any] = {name: image.info[name] for name in NAMES if isinstance(image.info.get(name), bytes)}
    with contextlib.suppress(KeyError, TypeError, ValueError, ZeroDivisionError):
        across, down = map(float, image.info["dpi"])
        if 1 < across < 2**16 and 1 < down < 2**16:  # 1 is what Pillow writes into a TIFF without a resolution
            notes["dpi"] = (across, down)
    if image.info.get(WHITE_IS_ZERO) is True:
        notes[WHITE_IS_ZERO] = True
    return notes


def put(image: Image.Image, notes: dict[str, Any]) -> None:
    """Replace all notes of an image by these."""
    for name in (*NAMES, WHITE_IS_ZERO, "XML:com.adobe.xmp"):  # the last is what Pillow finds an orientation in
        image.info.pop(name, None)
    image.info.update(**notes)


def options(image: Image.Image, kind: str) -> dict[str, Any]:
    """Return the options with which Pillow's writer of the format `kind` writes the notes that the format can hold."""
    notes = of(image)
    stored = "RGB" if kind == "WEBP" and image.mode == "L" else image.mode
    if stored not in _SPACES.get(notes.get("icc_profile", b"")[16:20], (stored,)):
        del notes["icc_profile"]
    xmp, negative = notes.pop("xmp", None), notes.pop(WHITE_IS_ZERO, False)
    match kind:
        case "PNG":
            if len(notes.get("icc_profile", b"")) > PngImagePlugin.MAX_TEXT_CHUNK:
                del notes["icc_profile"]
            if xmp is not None:
                notes["pnginfo"] = PngImagePlugin.PngInfo()
                notes["pnginfo"].add_itxt("XML:com.adobe.xmp", xmp.decode("utf-8", "replace"))
        case "JPEG" | "WEBP":
            notes |= {} if xmp is None else {"xmp": xmp}
            notes = {name: value for name, value in notes.items() if kind == "WEBP" or len(value) <= _LONGEST}
        case "TIFF":
            notes |= _tags(notes.pop("exif", None), xmp, negative)
        case _:
            notes = {name: value for name, value in notes.items() if name == "dpi"}
    return {"icc_profile": None, **notes}  # without the None Pillow takes the image's own profile


def _tags(exif: bytes | None, xmp: bytes | None, negative: bool) -> dict[str, Any]:
    """Return the options for a TIFF. Pillow writes the tables of EXIF only into one that is not compressed."""
    tags = Image.Exif()
    with contextlib.suppress(Exception):
        original = Image.Exif()
        original.load(exif or b"")
        tags.load(_described(original).tobytes())  # loaded again, since the writer asks for tables by their places
    if xmp is not None:
        tags[_XMP] = xmp
    if negative:
        tags[_PHOTOMETRIC] = 0
    if _EXIF in tags or _GPS in tags:
        return {"exif": tags, "compression": None}
    return {"exif": tags} if len(tags) else {}


def _described(exif: Image.Exif) -> Image.Exif:
    """Return those tags that are true in any file."""
    kept = Image.Exif()
    kept.update({tag: exif[tag] for tag in _DESCRIBING if tag in exif})
    for table in (_EXIF, _GPS):
        if inside := {tag: value for tag, value in exif.get_ifd(table).items() if tag not in _OFFSETS}:
            kept[table] = inside
    return kept
