"""The formats of image files that are read, in data folders and for inpainting, and the endings of their names."""

FORMATS = {
    "PNG": (".png",), "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"), "WEBP": (".webp",), "BMP": (".bmp",),
    "TIFF": (".tif", ".tiff"), "GIF": (".gif",),
}  # fmt: skip
"""The endings by Pillow's name of a format. Files are opened by their content; a format without its row is refused."""

EXTENSIONS = tuple(extension for extensions in FORMATS.values() for extension in extensions)

UNSUPPORTED = (
    ".heic", ".heif", ".avif", ".svg", ".psd", ".jxl", ".jp2", ".j2k", ".ico", ".tga", ".exr", ".hdr", ".ppm", ".pgm",
    ".pbm", ".pnm", ".pcx", ".eps", ".ai", ".xcf", ".kra", ".raw", ".cr2", ".cr3", ".nef", ".arw", ".dng", ".orf",
    ".rw2", ".raf",
)  # fmt: skip
"""Endings of other images: such files are listed as unusable, where files of other kinds are passed over."""
