"""`diffunet inpaint` and `diffunet masks` from file to file: what is paired with what, written where, and refused."""

import struct
import zlib
from typing import get_args, get_type_hints

import numpy as np
import pytest
from helpers.commands import diffunet
from helpers.complaints import at_least, check
from PIL import Image, ImageCms

from diffunet.commands import folders, inpaint, options, outputs
from diffunet.inpainting import masks, methods, part, regions

MAGENTA = (255, 0, 255)
FAST = ("--steps", 2, "--method", "replace")


def refused(capsys, *words, code=2):
    """Run a command that must end with `code` before anything is done; gives its one line."""
    capsys.readouterr()
    diffunet(*words, code=code)
    said = capsys.readouterr()
    [line] = said.err.strip().splitlines()
    assert said.out == ""
    return line


@pytest.fixture
def no_model(monkeypatch):
    """For what has to be found out before one is loaded."""

    def load(*_):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(options, "load", load)


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def write(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)


def read(path):
    with Image.open(path) as image:
        return np.asarray(image)


def box(height, width, x0, y0, x1, y1):
    hole = np.zeros((height, width), bool)
    hole[y0:y1, x0:x1] = True
    return hole


def files(root):
    return sorted(
        str(path.relative_to(root)) for path in root.rglob("*") if path.is_file() and path.name != "made.jsonl"
    )


@pytest.fixture
def album(tmp_path):
    """Three images of different sizes, one in a subfolder, and masks of their names."""
    sizes = {"a.png": (10, 12), "b.bmp": (16, 9), "deep/a.png": (8, 8)}
    holes = {}
    for seed, (name, (height, width)) in enumerate(sizes.items()):
        holes[name] = box(height, width, 2, 3, 5 + seed, 6)
        write(tmp_path / "images" / name, noise(height, width, 3, seed=seed))
        write((tmp_path / "masks" / name).with_suffix(".png"), holes[name])
    return tmp_path, holes


def test_a_folder_with_a_folder_of_masks(model, album, capsys):
    root, holes = album
    diffunet("inpaint", model, root / "images", "--mask", root / "masks", "--out", root / "out", *FAST)
    assert files(root / "out") == ["a.png", "b.png", "deep/a.png"]
    for name, hole in holes.items():
        before, after = read(root / "images" / name), read((root / "out" / name).with_suffix(".png"))
        assert np.array_equal(before[~hole], after[~hole])
        assert not np.array_equal(before[hole], after[hole])
    assert capsys.readouterr().out.splitlines()[-1] == f"3 images in {root / 'out'}"


def test_a_folder_with_one_box(model, album):
    root, _ = album
    diffunet("inpaint", model, root / "images", "--box", "1,2,4,7", "--out", root / "out", *FAST)
    assert files(root / "out") == ["a.png", "b.png", "deep/a.png"]
    for name in ("a.png", "deep/a.png"):
        before, after = read(root / "images" / name), read(root / "out" / name)
        changed = (before != after).any(axis=2)
        assert not changed[~box(*changed.shape, 1, 2, 4, 7)].any()
        assert changed[2:7, 1:4].mean() > 0.8


def test_a_missing_mask_is_named_before_a_model_is_loaded(album, no_model, capsys):
    root, _ = album
    (root / "masks/deep/a.png").unlink()
    words = ("inpaint", "MODEL", root / "images", "--mask", root / "masks", "--out", root / "out")
    line = refused(capsys, *words, code=3)
    assert "deep/a" in line
    assert "b.bmp" not in line
    assert not (root / "out").exists()


def test_a_broken_image_among_many_costs_only_itself(model, album, capsys):
    root, _ = album
    sound = (root / "images/b.bmp").read_bytes()
    (root / "images/b.bmp").write_bytes(sound[: len(sound) // 2])
    write(root / "masks/deep/a.png", np.ones((5, 8), bool))  # of another size than its image
    words = ("inpaint", model, root / "images", "--mask", root / "masks", "--out", root / "out", *FAST)
    diffunet(*words, code=3)
    said = capsys.readouterr()
    assert files(root / "out") == ["a.png"]
    assert said.out.splitlines()[-1] == f"1 image in {root / 'out'}"
    complaints = said.err.splitlines()
    assert any("b.bmp: damaged" in line for line in complaints)
    assert any("5" in line and "8x8" in line and "--resize-mask" in line for line in complaints)
    assert complaints[-1].startswith("diffunet: 2 of 3 images could not be filled: ")
    assert "b.bmp" in complaints[-1]
    diffunet("inpaint", model, root / "images/b.bmp", "--box", "1,1,3,3", "--out", root / "one.png", code=3)


def test_several_fillings_and_their_sheet(model, tmp_path):
    pixels, hole = noise(12, 10, 3), box(12, 10, 3, 2, 7, 8)
    write(tmp_path / "photo.png", pixels)
    write(tmp_path / "mask.png", hole)
    words = ("inpaint", model, tmp_path / "photo.png", "--mask", tmp_path / "mask.png", *FAST)
    diffunet(*words, "--out", tmp_path / "out", "--num", 3)
    assert files(tmp_path / "out") == ["photo-0.png", "photo-1.png", "photo-2.png", "photo-sheet.png"]
    fillings = [read(tmp_path / f"out/photo-{i}.png") for i in range(3)]
    assert len({one.tobytes() for one in fillings}) == 3
    sheet = read(tmp_path / "out/photo-sheet.png")
    shown = np.where(hole[..., None], np.array(MAGENTA, np.uint8), pixels)
    expected = np.full((12 + 4, 4 * 10 + 5 * 2, 3), 255, np.uint8)
    for i, one in enumerate([shown, *fillings]):
        expected[2:14, 2 + 12 * i : 12 + 12 * i] = one
    assert np.array_equal(sheet, expected)
    diffunet(*words, "--out", tmp_path / "one", "--num", 1)
    assert files(tmp_path / "one") == ["photo.png"]
    assert np.array_equal(read(tmp_path / "one/photo.png"), fillings[0])


COLOUR = (200, 100, 50)
GREY = 150
MODES = {
    # a picture of one colour, and that colour on a sheet; a black and a white pixel of 32 bits are lost there
    "L": (Image.new("L", (90, 60), GREY), (GREY,) * 3),
    "LA": (Image.merge("LA", [Image.new("L", (90, 60), v) for v in (0, 105)]), (GREY,) * 3),  # over white
    "RGB": (Image.new("RGB", (90, 60), COLOUR), COLOUR),
    "RGBA": (Image.new("RGBA", (90, 60), (*COLOUR, 255)), COLOUR),
    "CMYK": (Image.new("CMYK", (90, 60), (55, 155, 205, 0)), COLOUR),
    "I;16": (Image.fromarray(np.full((60, 90), GREY * 257, np.uint16)), (GREY,) * 3),
    "I": (Image.fromarray(np.array([0, 102_000, *[400 * GREY] * 5398], np.int32).reshape(60, 90)), (GREY,) * 3),
    "F": (Image.fromarray(np.full((60, 90), GREY / 255, np.float32)), (GREY,) * 3),
}


@pytest.mark.parametrize("mode", MODES)
def test_a_sheet_shows_every_mode(mode, monkeypatch):
    picture, colour = MODES[mode]
    assert picture.mode == mode
    monkeypatch.setattr(outputs, "SHEET_WIDTH", 90)
    hole = box(60, 90, 30, 20, 60, 40)
    filled = picture.copy()
    filled.paste(Image.new(mode, (2, 2), 1), (0, 0))
    sheet = outputs.sheet(part.Masked(picture, hole), [filled, picture])
    assert (sheet.mode, sheet.size) == ("RGB", (3 * 30 + 4 * 2, 20 + 2 * 2))
    for tile in range(3):
        at = 2 + tile * 32
        assert np.abs(np.subtract(sheet.getpixel((at + 25, 15)), colour)).max() <= 1
        middle = sheet.getpixel((at + 15, 2 + 10))
        assert middle == MAGENTA if tile == 0 else np.abs(np.subtract(middle, colour)).max() <= 1


def test_a_sheet_of_large_or_many_pictures_stays_readable():
    large = Image.new("RGB", (3000, 1500), COLOUR)
    sheet = outputs.sheet(part.Masked(large, np.zeros((1500, 3000), bool)), [large, large])
    assert sheet.size == (3 * 666 + 4 * 2, 333 + 2 * 2)
    small = Image.new("L", (10, 20), GREY)
    sheet = outputs.sheet(part.Masked(small, np.zeros((20, 10), bool)), [small] * 15)
    assert sheet.size == (4 * 10 + 5 * 2, 4 * 20 + 5 * 2)


def profile():
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def test_a_jpeg_that_lies_on_its_side_keeps_its_profile_and_notes(model, tmp_path):
    notes = Image.Exif()
    notes[0x0112] = 6  # to be turned by a quarter
    notes[0x010F] = "A camera"
    write(tmp_path / "photo.jpg", noise(24, 16, 3), exif=notes, icc_profile=profile())
    stored = Image.open(tmp_path / "photo.jpg")
    upright = np.asarray(stored.transpose(Image.Transpose.ROTATE_270))
    diffunet("inpaint", model, tmp_path / "photo.jpg", "--box", "2,3,6,9", "--num", 2, "--out", tmp_path / "out", *FAST)
    for name in ("photo-0.png", "photo-1.png"):
        with Image.open(tmp_path / "out" / name) as after:
            assert after.size == (24, 16)
            assert after.info["icc_profile"] == stored.info["icc_profile"]
            assert after.getexif()[0x010F] == "A camera"
            assert after.getexif().get(0x0112, 1) == 1
            known = ~box(16, 24, 2, 3, 6, 9)
            assert np.array_equal(np.asarray(after)[known], upright[known])
    with Image.open(tmp_path / "out/photo-sheet.png") as sheet:
        assert sheet.info["icc_profile"] == stored.info["icc_profile"]


def test_feather_blends_within_the_hole(model, tmp_path):
    pixels, hole = noise(16, 16, 3), box(16, 16, 2, 2, 14, 14)
    write(tmp_path / "photo.png", pixels)
    words = ("inpaint", model, tmp_path / "photo.png", "--box", "2,2,14,14", *FAST)
    diffunet(*words, "--out", tmp_path / "hard.png")
    diffunet(*words, "--out", tmp_path / "soft.png", "--feather", 4)
    before, hard, soft = (x.astype(int) for x in (pixels, read(tmp_path / "hard.png"), read(tmp_path / "soft.png")))
    assert np.array_equal(soft[~hole], before[~hole])
    assert np.array_equal(soft[7:9, 7:9], hard[7:9, 7:9])
    edge = hole & ~box(16, 16, 3, 3, 13, 13)
    assert np.abs(soft - before)[edge].mean() < 0.5 * np.abs(hard - before)[edge].mean()
    assert (np.abs(soft - before) <= np.abs(hard - before) + 1).all()


def test_a_mask_of_another_size_only_where_it_is_asked_for(model, tmp_path, capsys):
    write(tmp_path / "photo.png", noise(16, 20, 3))
    write(tmp_path / "mask.png", box(8, 10, 2, 2, 5, 6))
    words = ("inpaint", model, tmp_path / "photo.png", "--mask", tmp_path / "mask.png", "--out", tmp_path / "out.png")
    line = refused(capsys, *words, *FAST)
    for piece in ("10x8", "20x16", "--resize-mask)"):
        assert piece in line
    assert not (tmp_path / "out.png").exists()
    diffunet(*words, *FAST, "--resize-mask")
    changed = (read(tmp_path / "photo.png") != read(tmp_path / "out.png")).any(axis=2)
    assert changed[4:12, 4:10].mean() > 0.8
    assert not changed[~box(16, 20, 3, 3, 11, 13)].any()


@pytest.mark.parametrize(
    ("mode", "kept_as", "refused_as"),
    [
        ("CMYK", ".tif", ".png"),
        ("F", ".tif", ".png"),
        ("I", ".tif", ".webp"),
        ("I;16", ".png", ".webp"),  # which Pillow would write, all white
        ("RGBA", ".png", ".bmp"),
        ("L", ".png", None),
    ],
)
def test_a_mode_is_kept_in_a_file_that_can_hold_it(mode, kept_as, refused_as, model, tmp_path, capsys):
    before = Image.fromarray(noise(10, 10, 4), mode) if mode in ("CMYK", "RGBA") else Image.fromarray(noise(10, 10))
    if mode == "I;16":
        before = Image.fromarray(noise(10, 10).astype(np.uint16) * 250)
    before = before if before.mode == mode else before.convert(mode)
    before.save(tmp_path / "photo.tif")
    words = ("inpaint", model, tmp_path / "photo.tif", "--box", "2,2,6,6", *FAST)
    diffunet(*words, "--out", tmp_path / "out")
    assert files(tmp_path / "out") == [f"photo{kept_as}"]
    with Image.open(tmp_path / f"out/photo{kept_as}") as after:
        assert after.mode == mode
        known = ~box(10, 10, 2, 2, 6, 6)
        assert np.array_equal(np.asarray(after)[known], np.asarray(before)[known])
    if refused_as is not None:
        assert f"take {kept_as}" in refused(capsys, *words, "--out", tmp_path / f"x{refused_as}")


def png_of_16_bits(pixels):
    """A PNG, uint16 [H W 3], which Pillow does not write."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 16, 2, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def test_colours_of_16_bits_stay_so(model, tmp_path, capsys):
    (tmp_path / "photo.png").write_bytes(png_of_16_bits(np.random.default_rng(0).integers(0, 2**16, (10, 10, 3))))
    words = ("inpaint", model, tmp_path / "photo.png", "--box", "2,2,6,6", *FAST, "--out")
    assert "take .png" in refused(capsys, *words, tmp_path / "x.tif")
    diffunet(*words, tmp_path / "out", "--num", 2)
    assert (tmp_path / "out/photo-1.png").read_bytes()[24] == 16
    assert Image.open(tmp_path / "out/photo-sheet.png").size == (3 * 10 + 4 * 2, 14)


def test_masks_of_each_kind(tmp_path, capsys):
    out = tmp_path / "masks"
    diffunet("masks", out, "--num", 30, "--width", 40, "--height", 24)
    assert capsys.readouterr().out == f"30 masks in {out}\n"
    names = files(out)
    assert [name[:5] for name in names] == [f"{i:05d}" for i in range(30)]
    assert {name[6:-4] for name in names} == set(masks.KINDS)
    for name in names:
        with Image.open(out / name) as image:
            assert (image.mode, image.size) == ("L", (40, 24))
            assert {value for _, value in image.getcolors()} == {0, 255}
    assert "exists" in refused(capsys, "masks", out)
    before = {name: (out / name).read_bytes() for name in names}
    diffunet("masks", out, "--num", 30, "--width", 40, "--height", 24, "--overwrite")
    assert {name: (out / name).read_bytes() for name in files(out)} == before
    diffunet("masks", tmp_path / "other", "--num", 3, "--seed", 1, "--kind", "box")
    assert files(tmp_path / "other") == ["00000-box.png", "00001-box.png", "00002-box.png"]
    drawn = read(tmp_path / "other/00000-box.png")
    assert drawn.shape == (256, 256)
    assert 0.08 < (drawn == 255).mean() < 0.37  # white is to be filled: 30 to 60% of each side
    assert len({(tmp_path / "other" / name).read_bytes() for name in files(tmp_path / "other")}) == 3


def test_masks_like_a_folder_go_with_that_folder(model, album, capsys):
    root, _ = album
    notes = Image.Exif()
    notes[0x0112] = 6
    write(root / "images/turned.jpg", noise(12, 20, 3), exif=notes)
    diffunet("masks", root / "drawn", "--like", root / "images", "--kind", "half")
    assert f"inpaint MODEL {root / 'images'} --mask {root / 'drawn'}" in capsys.readouterr().out
    assert files(root / "drawn") == ["a.png", "b.png", "deep/a.png", "turned.png"]
    assert read(root / "drawn/turned.png").shape == (20, 12)
    diffunet("inpaint", model, root / "images", "--mask", root / "drawn", "--out", root / "out", *FAST)
    for name in ("a.png", "deep/a.png"):
        before, after = read(root / "images" / name), read(root / "out" / name)
        known = read(root / "drawn" / name) == 0
        assert np.array_equal(before[known], after[known])
        assert 0.4 < known.mean() < 0.6
    assert "leave out --num" in refused(capsys, "masks", root / "new", "--like", root / "images", "--num", 3)
    assert "would replace an image" in refused(
        capsys, "masks", root / "images", "--like", root / "images", "--overwrite"
    )
    write(root / "images/a.bmp", noise(3, 3, 3))
    assert "several images would have the mask" in refused(capsys, "masks", root / "new", "--like", root / "images")
    (root / "images/a.bmp").unlink()
    (root / "images/a.png").write_bytes(b"words")
    diffunet("masks", root / "fewer", "--like", root / "images", code=3)
    assert files(root / "fewer") == ["b.png", "deep/a.png", "turned.png"]
    assert "1 of 4 images have no mask" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "pieces"),
    [
        ("--box 1,1,3,3 --mask MASK", ["--box and --mask"]),
        ("--box 1,2,3", ["--box takes four whole numbers", "'1,2,3'"]),
        ("--box 1,2,3,x", ["--box takes four whole numbers", "'1,2,3,x'"]),
        ("--box=-1,0,3,3", ["--box takes four whole numbers", "'-1,0,3,3'"]),
        ("--box 3,3,1,5", ["--box 3,3,1,5 is empty"]),
        ("--invert-mask", ["--invert-mask goes with --mask or --box"]),
        ("--soft-mask", ["--soft-mask", "no --mask"]),
        ("--box 1,1,3,3 --resize-mask", ["--resize-mask", "no --mask"]),
        ("--box 1,1,3,3 --mask-values 1", ["--mask-values", "no --mask"]),
        ("--box 1,1,3,3 --grow -1", ["--grow", at_least(0)]),
        ("--extend 1,2,3", ["--extend takes four whole numbers left,top,right,bottom", "'1,2,3'"]),
        ("--mask MASK --method replace --jump-length 3", ["--method replace", "--jump-length"]),
        ("--mask MASK --method mmps --jump-n-sample 3", ["--method mmps", "--jump-n-sample"]),
        ("--mask MASK --num 2", ["give a folder"]),
        ("--mask MASKS", ["MASKS"]),
        ("--mask MASK --feather -1", ["--feather", at_least(0)]),
        ("--mask MASK --jump-length 0", ["--jump-length", at_least(1)]),
        ("--mask MASK --fit squeeze", ["--fit takes one of auto, crop, native, tile"]),
    ],
)
def test_what_cannot_be_meant_is_refused_before_a_model_is_loaded(
    words, pieces, no_model, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "photo.png", noise(8, 8, 3))
    write(tmp_path / "MASK", box(8, 8, 2, 2, 4, 4), format="PNG")
    (tmp_path / "MASKS").mkdir()
    line = refused(
        capsys, "inpaint", "MODEL", "photo.png", "--out", "out.png", *words.split(), code=3 if "MASKS" in words else 2
    )
    check(line, pieces)
    assert files(tmp_path) == ["MASK", "photo.png"]


def test_what_only_the_image_and_the_model_tell(model, tmp_path, capsys):
    write(tmp_path / "photo.png", noise(8, 8, 3))
    words = ("inpaint", model, tmp_path / "photo.png", "--out", tmp_path / "out.png", "--box")
    assert "reaches outside the image, which is 8x8" in refused(capsys, *words, "1,1,9,3")
    assert "--task inpaint" in refused(capsys, *words, "1,1,3,3", "--method", "trained")
    assert "at least 8x8" in refused(capsys, "inpaint", model, small(tmp_path), *words[3:], "1,1,3,3", "--fit", "tile")


def small(folder):
    write(folder / "small.png", noise(7, 7, 3))
    return folder / "small.png"


def test_outputs_that_clash_or_exist_or_are_masks(album, no_model, capsys):
    root, _ = album
    first = ("inpaint", "MODEL")
    several = refused(
        capsys, *first, root / "images/a.png", root / "images/deep/a.png", "--box", "0,0,1,1", "--out", root / "out"
    )
    assert "a.png" in several
    masked = (*first, root / "images", "--mask", root / "masks", "--out")
    write(root / "out/deep/a.png", noise(2, 2))
    assert "exists" in refused(capsys, *masked, root / "out")
    write(root / "many/b-sheet.png", noise(2, 2))
    assert "b-sheet.png exists" in refused(capsys, *masked, root / "many", "--num", 2)
    assert "is a mask" in refused(capsys, *masked, root / "masks", "--overwrite")
    assert "one file for 3 pictures" in refused(capsys, *masked, root / "one.png")


def test_names_of_methods_fits_and_kinds_are_those_there_are():
    hints = get_type_hints(inpaint.inpaint)
    assert set(get_args(hints["method"])) == {"auto", *methods.METHODS}
    assert get_args(hints["fit"]) == regions.FITS
    assert set(get_args(get_type_hints(folders.masks)["kind"])) == {"mixed", *masks.KINDS}


def test_options_reach_the_pipeline(model, tmp_path, monkeypatch):
    from diffunet.inpainting import part
    from diffunet.sampling.pipeline import Pipeline

    seen, read = {}, part.read

    def reading(image, mask, **options):
        seen.update(options, image=image, mask=mask)
        return read(image, mask, **options)

    def inpaint(pipe, masked, **options):
        seen.update(options)
        return [masked.picture]

    monkeypatch.setattr(part, "read", reading)
    monkeypatch.setattr(Pipeline, "inpaint", inpaint)
    write(tmp_path / "photo.png", noise(16, 16, 3))
    write(tmp_path / "mask.png", box(8, 8, 2, 2, 4, 4))
    words = ("inpaint", model, tmp_path / "photo.png", "--out", tmp_path / "out.png", "--overwrite")
    diffunet(
        *words, "--mask", tmp_path / "mask.png", "--method", "ddnm", "--fit", "tile", "--steps", 7, "--jump-length", 3,
        "--jump-n-sample", 2, "--seed", 5, "--label", "disc", "--guidance", 2, "--invert-mask", "--soft-mask",
        "--resize-mask", "--feather", 4, "--max-pixels", 1000, "--mask-values", 255, 3.5, "--grow", 2, "--shrink", 1,
        "--extend", "1,2,3,4", "--range", -5, 5.5, "--page", 1,
    )  # fmt: skip
    del seen["on_step"]
    assert seen == {
        "image": tmp_path / "photo.png", "mask": tmp_path / "mask.png", "num": 1, "method": "ddnm", "fit": "tile",
        "steps": 7, "jump_length": 3, "jump_n_sample": 2, "seed": 5, "label": "disc", "guidance": 2.0, "box": None,
        "invert_mask": True, "soft_mask": True, "resize_mask": True, "feather": 4, "max_pixels": 1000,
        "mask_values": (255.0, 3.5), "grow": 2, "shrink": 1, "extend": (1, 2, 3, 4), "range": (-5.0, 5.5), "page": 1,
    }  # fmt: skip
    diffunet(*words, "--box", "1,2,3,4")
    assert (seen["box"], seen["mask"], seen["fit"], seen["method"]) == ((1, 2, 3, 4), None, "auto", "auto")


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_sheet_that_is_made_smaller_shows_nothing_of_what_was_erased(mode):
    """Not beside the hole, either, where pixels of it and known ones become one."""
    known = 100 + noise(400, 4000, *([3] if mode == "RGB" else [])) // 8
    hole = np.zeros((400, 4000), bool)
    hole[:, 1001] = hole[203] = hole[np.arange(400), np.arange(400)] = True
    filled = Image.fromarray(known)
    shown = []
    for value in (0, 255):
        pixels = known.copy()
        pixels[hole] = value
        shown.append(outputs.sheet(part.Masked(Image.fromarray(pixels), hole), [filled]))
    assert shown[0].size == (2 * 1000 + 3 * 2, 100 + 2 * 2)
    assert np.array_equal(*shown)
    [red, green, blue] = np.asarray(shown[0]).astype(int)[2 + 90, 2 + 250]
    assert min(red, blue) > green + 30, "the line is seen, in magenta"


def test_hidden_colours_make_no_difference_to_a_feather(model, tmp_path):
    clear = box(16, 16, 3, 3, 13, 13)
    for name, hidden in (("black", 0), ("white", 255)):
        pixels = noise(16, 16, 4)
        pixels[..., 3] = 255
        pixels[clear] = (hidden, hidden, hidden, 0)
        write(tmp_path / f"{name}.png", pixels)
        words = ("inpaint", model, tmp_path / f"{name}.png", "--out", tmp_path / f"{name}-out.png", *FAST)
        diffunet(*words, "--feather", 4)
    black, white = (read(tmp_path / f"{name}-out.png") for name in ("black", "white"))
    assert np.array_equal(black, white)
    assert (black[..., 3] == 255).all()
    assert np.array_equal(black[~clear], pixels[~clear])


def declared_clear(mode):
    """A picture one of whose colours is declared transparent, as PNG and GIF do it; a box of it has that colour."""
    picture = Image.new("RGB", (10, 10), (200, 100, 50)).convert(mode)
    clear = {"P": 7, "L": 3, "RGB": (1, 2, 3)}[mode]
    if mode == "P":
        picture = Image.new("P", (10, 10), 2)
        picture.putpalette([value for i in range(16) for value in (i, 2 * i, 3 * i)])
    picture.paste(clear, (2, 2, 6, 6))
    return picture, clear


@pytest.mark.parametrize(("mode", "given"), [("P", None), ("L", "--box"), ("RGB", None), ("RGB", "--box")])
def test_a_transparent_colour_is_alpha_in_a_file_that_can_hold_it(given, mode, model, tmp_path, monkeypatch, capsys):
    picture, clear = declared_clear(mode)
    picture.save(tmp_path / "photo.png", transparency=clear)
    picture.save(tmp_path / "plain.png")
    words = ("inpaint", model, tmp_path / "photo.png", *FAST, *(("--box", "3,3,8,8") if given else ()), "--out")
    with monkeypatch.context() as before_sampling:
        before_sampling.setattr(options, "load", lambda *_: pytest.fail("a model was loaded"))
        for suffix in (".bmp", ".jpg"):
            assert "take .png" in refused(capsys, *words, tmp_path / f"x{suffix}", "--lossy-ok")
            assert not set(outputs.held_by(tmp_path / "photo.png")) & {suffix, ".jpeg"}
    assert outputs.held_by(tmp_path / "plain.png") == ()
    diffunet(*words, tmp_path / "out")
    assert files(tmp_path / "out") == ["photo.png"]
    with Image.open(tmp_path / "out/photo.png") as after:
        assert after.mode == ("LA" if mode == "L" else "RGBA")
        alpha = np.asarray(after)[..., -1]
        clear = box(10, 10, 2, 2, 6, 6) & ~box(10, 10, 3, 3, 8, 8) if given else np.zeros((10, 10), bool)
        assert np.array_equal(alpha, np.where(clear, 0, 255)), "what was filled in is opaque"


def test_masks_among_the_images_and_results_among_them(model, tmp_path, capsys):
    """Cases of one folder for all, run twice: nothing is filled but the boxes of the masks."""
    hole, root = box(10, 12, 2, 3, 8, 7), tmp_path / "all"
    for name in "ab":
        write(root / f"{name}.jpg", noise(10, 12, 3))
        write(root / f"{name}_mask.png", hole * np.uint8(1))
    words = ("inpaint", model, root, "--mask", root, "--out", root / "mended", *FAST)
    for more in ((), ("--overwrite", "--seed", 1)):
        diffunet(*words, *more)
        said = capsys.readouterr()
        assert said.out.splitlines()[-1] == f"2 images in {root / 'mended'}"
        assert said.err.count("its values are 0 and 1, and 1 is filled") == 1
        assert "2 times: its values are N and N" in said.err
    assert files(root / "mended") == ["a.png", "b.png"]
    for name in "ab":
        changed = (read(root / f"{name}.jpg") != read(root / f"mended/{name}.png")).any(axis=2)
        assert np.array_equal(changed, hole) or (changed[hole].mean() > 0.9 and not changed[~hole].any())
    write(root / "a-0.png", noise(4, 4, 3))
    line = refused(capsys, *words[:2], root, "--box", "0,0,2,2", "--out", root, "--num", 2, "--overwrite")
    assert "a-0.png is an image, and would be replaced" in line


def test_nothing_to_fill_is_said_and_counted(model, album, capsys):
    root, _ = album
    write(root / "black.png", np.zeros((10, 12), np.uint8))
    words = ("inpaint", model, root / "images/a.png", "--out", root / "x.png", *FAST)
    line = refused(capsys, *words, "--mask", root / "black.png")
    check(line, ["nothing to fill in", "a.png", "black.png", "largest value is 0", "say --invert-mask"])
    assert "all of it" in refused(capsys, *words, "--box", "0,0,12,10", "--invert-mask")
    assert "may be labels" in refused(capsys, *words, "--mask", labels(root), code=3)
    assert "has no pixel of the value 9" in refused(capsys, *words, "--mask", labels(root), "--mask-values", 9)
    assert not (root / "x.png").exists()
    write(root / "masks/a.png", np.zeros((10, 12), np.uint8))
    write(root / "masks/deep/a.png", np.zeros((8, 8), np.uint8))
    diffunet("inpaint", model, root / "images", "--mask", root / "masks", "--out", root / "out", *FAST, code=3)
    said = capsys.readouterr()
    assert files(root / "out") == ["b.png"]
    assert [line for line in said.err.splitlines() if "nothing was to be filled in 2 of 3 images" in line]
    assert said.err.count("there is nothing to fill in") == 1
    diffunet(*words, "--mask", labels(root), "--mask-values", 100, 200, "--grow", 1, "--overwrite")
    changed = (read(root / "images/a.png") != read(root / "x.png")).any(axis=2)
    assert not changed[~box(10, 12, 1, 1, 9, 9)].any()
    assert changed[2:8, 2:8].mean() > 0.9


def labels(root):
    pixels = np.zeros((10, 12), np.uint8)
    pixels[2:8, 2:5], pixels[2:8, 5:8], pixels[:, 10:] = 100, 200, 255
    write(root / "labels.png", pixels)
    return root / "labels.png"


def test_options_in_messages_are_those_of_the_command_line():
    words = "say invert_mask=True, mask_values=255 or soft_mask=True in soft_mask.png; max_pixels=... lets it, grow=3"
    assert inpaint.as_typed(words) == (
        "say --invert-mask, --mask-values 255 or --soft-mask in soft_mask.png; --max-pixels ... lets it, --grow 3"
    )


def test_an_image_is_extended(model, tmp_path):
    pixels = noise(16, 20, 3)
    write(tmp_path / "photo.png", pixels)
    diffunet("inpaint", model, tmp_path / "photo.png", "--extend", "0,4,16,0", "--out", tmp_path / "wide.png", *FAST)
    after = read(tmp_path / "wide.png")
    assert after.shape == (20, 36, 3)
    assert np.array_equal(after[4:, :20], pixels)
    assert (after[:4].any(axis=2)).mean() > 0.9


def test_a_picture_that_is_too_small_for_the_scale_of_the_model_does_not_end_the_others(
    model, tmp_path, monkeypatch, capsys
):
    loaded = options.load

    def load(*given):
        pipe = loaded(*given)
        pipe.config = pipe.config.changed("data", fit="patch", scales=(0.5,))  # windows of 8 pixels are 16 of a picture
        return pipe

    monkeypatch.setattr(options, "load", load)
    for name, side in (("a", 24), ("b", 12), ("c", 24)):
        write(tmp_path / f"album/{name}.png", noise(side, side, 3))
        write(tmp_path / f"masks/{name}.png", box(side, side, 2, 2, 5, 5))
    words = ("inpaint", model, tmp_path / "album", "--mask", tmp_path / "masks", *FAST, "--fit", "tile")
    diffunet(*words, "--out", tmp_path / "out", code=3)
    assert "b.png" in capsys.readouterr().err
    assert files(tmp_path / "out") == ["a.png", "c.png"]
