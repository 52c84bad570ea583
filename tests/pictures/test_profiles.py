"""Colours by their profiles, against littlecms through Pillow's own call and against sums worked out by hand."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, ImageCms

from diffunet.pictures import images, profiles

RNG = np.random.default_rng(0)
NOISE = RNG.integers(0, 256, (12, 9, 3), dtype=np.uint8)
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
EXCHANGED = SRGB.replace(b"rXYZ", b"tmpX").replace(b"bXYZ", b"rXYZ").replace(b"tmpX", b"bXYZ")


def wide(gamma: float = 2.2) -> bytes:
    """A profile as that of Adobe RGB: a plain gamma, and sRGB's primaries with a greener green."""
    tags = {
        b"wtpt": xyz(0.9642, 1.0, 0.8249), b"rXYZ": xyz(0.6097, 0.3111, 0.0195), b"gXYZ": xyz(0.2053, 0.6257, 0.0609),
        b"bXYZ": xyz(0.1492, 0.0632, 0.7446),
        **dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve(gamma)),
    }  # fmt: skip
    return icc(b"RGB ", tags)


def grey(gamma: float) -> bytes:
    return icc(b"GRAY", {b"wtpt": xyz(0.9642, 1.0, 0.8249), b"kTRC": curve(gamma)})


def xyz(*values: float) -> bytes:
    return b"XYZ \0\0\0\0" + b"".join(round(value * 65536).to_bytes(4, "big") for value in values)


def curve(gamma: float) -> bytes:
    return b"curv\0\0\0\0\0\0\0\1" + round(gamma * 256).to_bytes(2, "big") + b"\0\0"


def icc(space: bytes, tags: dict[bytes, bytes]) -> bytes:
    place, table, content = 128 + 4 + 12 * len(tags), len(tags).to_bytes(4, "big"), b""
    for name, data in tags.items():
        table += name + (place + len(content)).to_bytes(4, "big") + len(data).to_bytes(4, "big")
        content += data
    head = bytes(4) + b"lcms\x02\x10\0\0mntr" + space + b"XYZ " + bytes(12) + b"acsp" + bytes(28)
    head += xyz(0.9642, 1.0, 0.8249)[8:] + bytes(128)
    whole = head[:128] + table + content
    return (len(whole)).to_bytes(4, "big") + whole[4:]


def with_profile(image: Image.Image, profile: bytes, kind: str = "TIFF") -> Image.Image:
    out = io.BytesIO()
    image.save(out, kind, icc_profile=profile)
    return images.open_image(out.getvalue())


@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("profile", [EXCHANGED, wide()])
def test_colours_become_what_littlecms_says(profile: bytes, kind: str, channels: int) -> None:
    alpha = RNG.integers(0, 256, (12, 9), dtype=np.uint8)
    plain = Image.fromarray(NOISE if channels == 3 else np.dstack([NOISE, alpha]))
    out = io.BytesIO()
    plain.save(out, kind, icc_profile=profile, **({"lossless": True, "exact": True} if kind == "WEBP" else {}))
    image = images.open_image(out.getvalue())
    expected = ImageCms.profileToProfile(
        Image.fromarray(NOISE), ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB")
    )
    got = images.to_array(image, channels, srgb=True)
    assert np.array_equal(got[..., :3], np.asarray(expected))
    assert np.array_equal(images.to_array(image, channels)[..., :3], NOISE), "only where it is asked for"
    if channels == 4:
        assert np.array_equal(got[..., 3], alpha)
    assert profiles.state(image) == "converted"


def test_grey_by_its_gamma() -> None:
    values = np.arange(256, dtype=np.uint8).reshape(16, 16)
    linear = (values / 255.0) ** 1.0
    expected = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055) * 255
    for image in (Image.fromarray(values), Image.fromarray(values.astype(np.uint16) * 257)):
        got = images.to_array(with_profile(image, grey(1.0)), 1, srgb=True)[..., 0]
        assert np.abs(got - expected).max() <= 2


def test_srgb_costs_nothing_and_damage_is_ignored() -> None:
    rgb, black = Image.fromarray(NOISE), Image.fromarray(NOISE[..., 0])
    for image, profile, state in (
        (rgb, SRGB, "none"), (rgb, b"no profile at all", "ignored"), (rgb, SRGB[:200], "ignored"),
        (rgb, grey(2.2), "ignored"), (black, SRGB, "none"), (black, wide(1.0), "converted"),
    ):  # fmt: skip
        image = image.copy()
        image.info["icc_profile"] = profile
        assert profiles.state(image) == state
        if state != "converted":
            assert profiles.of(image) is None
            assert np.array_equal(images.to_array(image, 3, srgb=True), images.to_array(image, 3))


def test_there_and_back() -> None:
    image = with_profile(Image.fromarray(NOISE // 8 + 100), wide())
    profile = profiles.of(image, both_ways=True)
    assert profile is not None
    back = profile.from_srgb(profile.to_srgb(image))
    assert np.abs(np.asarray(back).astype(int) - np.asarray(image)).max() <= 2


def lut(inputs: int, nodes: np.ndarray) -> bytes:
    """A table of a profile (lut8Type) from uint8 [nodes ... , outputs] on a regular grid of `inputs` dimensions."""
    outputs, straight = nodes.shape[-1], bytes(range(256))
    matrix = b"".join((65536 * (n % 4 == 0)).to_bytes(4, "big") for n in range(9))
    head = b"mft1\0\0\0\0" + bytes([inputs, outputs, nodes.shape[0], 0]) + matrix
    return head + straight * inputs + nodes.tobytes() + straight * outputs


def inks() -> bytes:
    """A profile of a printer of simple inks: what is not absorbed by C, M, Y and K is seen, as sRGB."""
    amounts = np.stack(np.meshgrid(*[np.linspace(0, 1, 9)] * 4, indexing="ij"), axis=-1)
    light = np.rint(255 * (1 - amounts[..., :3]) * (1 - amounts[..., 3:])).astype(np.uint8)
    to_lab = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
    lab = ImageCms.applyTransform(Image.fromarray(light.reshape(1, -1, 3)), to_lab)
    assert lab is not None
    seen = np.asarray(lab).reshape(*light.shape).copy()
    seen[..., 1:] ^= 128  # Pillow stores a and b with a sign, a profile with 128 as their zero
    grid = np.stack(np.meshgrid(*[np.linspace(0, 255, 17).round()] * 3, indexing="ij"), axis=-1).astype(np.uint8)
    grid[..., 1:] ^= 128
    back = ImageCms.buildTransform(ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), "LAB", "RGB")
    rgb = ImageCms.applyTransform(Image.frombytes("LAB", (17**3, 1), grid.tobytes()), back)
    assert rgb is not None
    cmy = 255 - np.asarray(rgb).reshape(17, 17, 17, 3)
    tags = {
        b"wtpt": xyz(0.9642, 1.0, 0.8249),
        b"A2B0": lut(4, seen),
        b"B2A0": lut(3, np.dstack([cmy.reshape(17, -1, 3), np.zeros((17, 289, 1), np.uint8)]).reshape(17, 17, 17, 4)),
    }
    whole = icc(b"CMYK", tags)
    return whole[:12] + b"prtrCMYKLab " + whole[24:]


def test_cmyk_there_and_back() -> None:
    """By simple inks a colour is about what Pillow makes of CMYK without a profile, which multiplies them."""
    content = RNG.integers(0, 200, (12, 9, 4), dtype=np.uint8)
    content[..., 3] //= 4
    out = io.BytesIO()
    Image.fromarray(content, "CMYK").save(out, "TIFF", icc_profile=inks())
    image = images.open_image(out.getvalue())
    assert profiles.state(image) == "converted"
    light = 255 * (1 - content[..., :3] / 255) * (1 - content[..., 3:] / 255)
    got = images.to_array(image, 3, srgb=True)
    assert np.abs(got - light).mean() < 5
    profile = profiles.of(image, both_ways=True)
    assert profile is not None
    back = profile.from_srgb(Image.fromarray(got))
    assert back.mode == "CMYK"
    assert np.abs(np.asarray(profile.to_srgb(back)).astype(int) - got).mean() < 5
