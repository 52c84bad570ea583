"""The formats of image files that are read, in data folders and for inpainting, and what other files are."""

import importlib.util
import io
import re

FORMATS = {
    "PNG": (".png", ".apng"), "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"), "WEBP": (".webp",), "BMP": (".bmp",),
    "TIFF": (".tif", ".tiff"), "GIF": (".gif",), "AVIF": (".avif",), "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    "JPEG2000": (".jp2", ".j2k"), "TGA": (".tga",),
}  # fmt: skip
"""The endings by Pillow's name of a format. Files are opened by their content; a format without its row is refused."""

HEIF = (".heic", ".heif")
"""Endings of files that are read where the package pillow-heif is installed."""

HAS_HEIF = importlib.util.find_spec("pillow_heif") is not None

EXTENSIONS = tuple(extension for extensions in FORMATS.values() for extension in extensions) + HEIF * HAS_HEIF

UNSUPPORTED = (
    *HEIF * (not HAS_HEIF), ".svg", ".psd", ".jxl", ".ico", ".exr", ".hdr", ".pcx", ".eps", ".ai", ".xcf", ".kra",
    ".raw", ".cr2", ".cr3", ".nef", ".arw", ".dng", ".orf", ".rw2", ".raf",
)  # fmt: skip
"""Endings of other images: such files are listed as unusable, where files of other kinds are passed over."""

_NO_HEIF = "HEIC is read where pillow-heif is installed (pip install pillow-heif); or convert it to PNG or JPEG"
_FOOTER = b"TRUEVISION-XFILE."  # of TGA; older files of that format say nowhere what they are


def unsupported(extension: str) -> str:
    """Return the reason why a file with one of the endings `UNSUPPORTED` is not read."""
    return _NO_HEIF if extension in HEIF else f"{extension} is not supported; convert it to PNG or JPEG"


def to_try(content: bytes, name: str = "") -> tuple[str, ...]:
    """Return Pillow's names of the formats that a file may have, by its content, and by its name for TGA alone."""
    if HAS_HEIF and _brand(content) in _HEIC:
        import pillow_heif

        pillow_heif.register_heif_opener()
        return ("HEIF", "AVIF")
    is_tga = content[-18:-1] == _FOOTER or name.lower().endswith(FORMATS["TGA"])
    return tuple(kind for kind in FORMATS if kind != "TGA" or is_tga)


_HEIC = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_STARTS = {
    b"%PDF": "a PDF", b"PK\x03\x04": "a ZIP archive", b"PK\x05\x06": "a ZIP archive", b"Rar!": "a RAR archive",
    b"7z\xbc\xaf": "a 7z archive", b"\x1f\x8b": "packed by gzip", b"8BPS": "a Photoshop file",
    b"\xff\x0a": "a JPEG XL file", b"\0\0\0\x0cJXL ": "a JPEG XL file", b"v/1\x01": "an OpenEXR file",
    b"#?RADIANCE": "a Radiance HDR file", b"SIMPLE  =": "a FITS file", b"\x93NUMPY": "a NumPy array",
    b"\x89HDF": "an HDF5 file", b"\x1aE\xdf\xa3": "a video", b"\0\0\1\0": "an icon (ICO)", b"gimp xcf": "a GIMP file",
    b"FUJIFILMCCD-RAW": "a raw file of a camera", b"IIU\0": "a raw file of a camera", b"%!PS": "a PostScript file",
}  # fmt: skip
_TEXTS = (
    (rb"version https://git-lfs", "a pointer of Git LFS and not the picture itself; git lfs pull fetches it"),
    (rb"(\S*/)?annex/objects/", "a pointer of git-annex and not the picture itself; git annex get fetches it"),
    (rb"(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)?(<!doctype svg[^>]*>\s*)?<svg", "an SVG drawing; convert it to PNG"),
    (rb"(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)?<(!doctype )?html", "a web page (HTML) and not a picture"),
)
_DAMAGED = {
    b"\x89PNG": "a PNG", b"\xff\xd8": "a JPEG", b"GIF8": "a GIF", b"BM": "a BMP", b"\xff\x4f\xff\x51": "a JPEG 2000",
    b"\0\0\0\x0cjP  ": "a JPEG 2000",
}  # fmt: skip


def _brand(content: bytes) -> bytes:
    return content[8:12] if content[4:8] == b"ftyp" else b""


def reason(content: bytes) -> str:
    """Return what the content of a file is that no reader of pictures takes, in words, as the reason for that."""
    if not content.strip(b"\0"):
        return "holds nothing but zeros, as a download that was broken off does"
    if brand := _brand(content):
        if brand in _HEIC:
            return _NO_HEIF if not HAS_HEIF else "damaged: a HEIC file that cannot be opened"
        return "damaged: an AVIF file that cannot be opened" if brand in (b"avif", b"avis") else "a video or its like"
    start = content[:2000].lstrip(b"\xef\xbb\xbf \t\r\n")
    for pattern, words in _TEXTS:
        if re.match(pattern, start, re.IGNORECASE | re.DOTALL):
            return words
    if content[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+") and (words := _tiff(content)):
        return words
    if content[:4] == b"RIFF":
        return "damaged: a WEBP that cannot be opened" if content[8:12] == b"WEBP" else "a sound or a video (RIFF)"
    if content[128:132] == b"DICM":
        return "a DICOM file; convert it to PNG or TIFF of 16 bits"
    for signature, words in _STARTS.items():
        if content.startswith(signature):
            return f"{words}, which is not read"
    for signature, words in _DAMAGED.items():
        if content.startswith(signature):
            return f"damaged: {words} that is cut off or whose beginning is broken"
    return "not an image, or one of an unknown format"


def _tiff(content: bytes) -> str:
    """Return the layout of a TIFF that Pillow does not read, or "" where it cannot be told."""
    from PIL import TiffImagePlugin

    try:
        tags = TiffImagePlugin.ImageFileDirectory_v2(content[:16] if content[2:4] in (b"+\0", b"\0+") else content[:8])
        file = io.BytesIO(content)
        file.seek(tags.next)
        tags.load(file)
        _, bands, bits = tags[256], int(tags.get(277, 1)), tags.get(258, (1,))  # without a width it is none
        number = {1: "", 2: " signed", 3: " floating-point"}[(tags.get(339, (1,)) or (1,))[0]]
    except Exception:
        return "damaged: a TIFF that is cut off or whose beginning is broken"
    each = f"{bits[0]}{number} bits" if len({*bits}) == 1 else "unequal bits"
    advice = "keep the one that is grey, or the three of RGB" if bands > 4 else "convert it to 8 or 16 bits, or PNG"
    return f"a TIFF with {bands} band{'s' * (bands > 1)} of {each}, which is not read; {advice}"
