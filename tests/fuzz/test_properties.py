"""What holds for any config, any mask and any folder.

The examples are the same in every run. The environment variable DIFFUNET_EXAMPLES=30 takes 30 times as many, and others
each time.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
import tempfile
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from diffunet import config
from diffunet.config import Config
from diffunet.data import findings, survey
from diffunet.data.dataset import open_dataset
from diffunet.errors import DataError, Error, UsageError
from diffunet.inpainting import masks, part, regions
from diffunet.inpainting.reading import read_mask
from diffunet.pictures import images

MORE = int(os.environ.get("DIFFUNET_EXAMPLES", 0))


def examples(count: int) -> settings:
    """How far to look."""
    return settings(
        max_examples=count * max(1, MORE),
        deadline=None,
        derandomize=not MORE,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )


def is_line(words: str) -> None:
    """A person can read it, in a terminal too."""
    assert 0 < len(words) <= 1000, words
    assert words.isprintable(), words


# Configs.


def from_schema(schema: dict[str, Any], definitions: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Values that a JSON schema allows: of the kinds of schema that pydantic makes of our config."""
    if "$ref" in schema:
        return from_schema(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    if "anyOf" in schema:
        return st.one_of([from_schema(one, definitions) for one in schema["anyOf"]])
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    if "const" in schema:
        return st.just(schema["const"])
    match schema["type"]:
        case "object":
            fields = {name: from_schema(one, definitions) for name, one in schema["properties"].items()}
            return st.fixed_dictionaries({}, optional=fields)
        case "array" if "prefixItems" in schema:
            return st.tuples(*(from_schema(one, definitions) for one in schema["prefixItems"]))
        case "array":
            one = from_schema(schema["items"], definitions)
            return st.lists(one, min_size=schema.get("minItems", 0), max_size=schema.get("maxItems", 4)).map(tuple)
        case "integer":
            low, high = schema.get("minimum"), schema.get("maximum", schema.get("exclusiveMaximum", 2**63) - 1)
            return st.integers(low, min(high, 2**63 - 1))
        case "number":
            return st.floats(
                schema.get("minimum", schema.get("exclusiveMinimum")),
                schema.get("maximum", schema.get("exclusiveMaximum")),
                exclude_min="exclusiveMinimum" in schema,
                exclude_max="exclusiveMaximum" in schema,
                allow_nan=False,
                allow_infinity=False,
            )
        case "string":
            return st.text(max_size=8)
        case kind:
            return {"boolean": st.booleans(), "null": st.none()}[kind]


SCHEMA = Config.model_json_schema()
LIKELY = from_schema(SCHEMA, SCHEMA["$defs"])
SECTIONS = {name: list(field.annotation.model_fields) for name, field in Config.model_fields.items()}
NUMBERS = st.integers() | st.sampled_from([10**18, 2**63, -(2**64), 10**400]) | st.floats()
PLAIN = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text() | st.binary(max_size=9) | st.just("long " * 5000),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text() | st.integers(), inner, max_size=4),
    max_leaves=9,
)
NAMES = st.sampled_from([*SECTIONS, *(name for names in SECTIONS.values() for name in names)])
KEYS = NAMES | st.text() | st.sampled_from(["a[b", "[", "a.b", "two\nlines", "\x1b[31m", "x" * 5000, "", 7, None])


@st.composite
def any_config(draw: st.DrawFn) -> Any:
    """Anything; or a likely config with a few odd values and names."""
    if draw(st.integers(0, 9)) == 0:
        return draw(PLAIN | st.dictionaries(KEYS, PLAIN | st.dictionaries(KEYS, PLAIN)))
    content = draw(LIKELY)
    for _ in range(draw(st.integers(0, 3))):
        section = draw(st.sampled_from(list(SECTIONS)))
        place = content.setdefault(section, {}) if draw(st.integers(0, 4)) else content
        if isinstance(place, dict):
            place[draw(st.sampled_from(SECTIONS[section]) | KEYS)] = draw(PLAIN)
    return content


@examples(400)
@given(any_config())
def test_a_config_or_one_line_about_it(content: Any) -> None:
    try:
        found = config.validated(content, "here")
    except UsageError as error:
        is_line(str(error))
    else:
        assert isinstance(found, Config)


@examples(200)
@given(LIKELY)
def test_every_config_survives_its_file(content: dict[str, Any]) -> None:
    try:
        first = config.validated(content, "here")
    except UsageError:  # each value can be, and not all of them together
        assume(False)
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "config.toml"
        path.write_bytes(first.to_toml().encode())
        second = config.read_toml(path)
    assert second == first
    assert second.hash() == first.hash()
    assert second.to_toml() == first.to_toml()
    assert first.changed("data", cache="elsewhere").hash() == first.hash(), "the cache is no part of a model"


@examples(300)
@given(st.binary(max_size=60) | st.text(max_size=60).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_any_bytes_as_a_config_file(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "config.toml"
        path.write_bytes(content)
        try:
            config.read_toml(path)
        except UsageError as error:
            is_line(str(error))


@pytest.mark.parametrize(
    "text",
    [
        "[train]\nseed = " + "9" * 5000,
        "x = " + "[" * 100_000,
        "x = " + "{a=" * 5000,
        "a" * 5000 + " = 1",
        '"two\\nlines" = 1',
        '"a[b" = 1',
        '[model]\n"[" = 1',
        "[train]\nlearning_rate = nan",
        "[train]\nlearning_rate = 1979-05-27",
        "[data]\nclass_names = ['\\u202e']\nfit = \"\\u001b[31m\"",
    ],
    ids=["digits", "arrays", "tables", "name", "newline", "bracket", "inside", "nan", "date", "escapes"],
)
def test_config_files_that_were_too_much(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text(text, encoding="utf-8")
    with pytest.raises(UsageError) as caught:
        config.read_toml(tmp_path / "config.toml")
    is_line(str(caught.value))


def test_the_hash_is_that_of_every_process() -> None:
    code = (
        "from diffunet.config import preset, preset_names\n"
        "print([preset(name).changed('data', class_names=('a', 'é')).hash() for name in preset_names()])"
    )
    said = {
        subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in ("1", "2")
    }
    assert len(said) == 1


# Masks and pictures.

MODES = [
    "1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV", "I", "F", "I;16",
    "I;16B", "I;16L",
]  # fmt: skip
BYTES = {"1": 0, "LA": 2, "La": 2, "PA": 2, "RGB": 3, "YCbCr": 3, "LAB": 3, "HSV": 3, "RGBA": 4, "RGBa": 4, "RGBX": 4,
         "CMYK": 4, "I": 4, "F": 4, "I;16": 2, "I;16B": 2, "I;16L": 2}  # fmt: skip


@st.composite
def pictures(draw: st.DrawFn, longest: int = 40) -> Image.Image:
    """Of any mode, size and content, some with a transparent colour."""
    mode = draw(st.sampled_from(MODES))
    width, height = draw(st.integers(1, longest)), draw(st.integers(1, longest))
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    if mode == "F":
        scale = draw(st.sampled_from([1.0, 255.0, 1e30]))
        values = (generator.random((height, width)) * scale).astype(np.float32)
        values[generator.random(values.shape) < 0.1] = draw(st.sampled_from([0.0, -1.0, np.nan, np.inf]))
        return Image.fromarray(values)
    size = height * ((width + 7) // 8) if mode == "1" else height * width * BYTES.get(mode, 1)
    image = Image.frombytes(mode, (width, height), generator.bytes(size))
    if mode in ("P", "PA"):
        image.putpalette(generator.bytes(768))
    if mode in ("1", "L", "P", "RGB", "I;16") and draw(st.booleans()):
        first = image.getpixel((0, 0))
        alphas = st.just(generator.bytes(256)) if mode == "P" else st.just(first)
        image.info["transparency"] = draw(st.just(first) | alphas | PLAIN)
    return image


ARRAYS = hnp.arrays(
    hnp.scalar_dtypes() | st.sampled_from([np.dtype(object), np.dtype("uint8"), np.dtype("float32"), np.dtype(bool)]),
    hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=6)
    | st.tuples(st.integers(0, 6), st.integers(0, 6), st.sampled_from([1, 3, 4])),
)


@pytest.mark.filterwarnings("error")
@examples(400)
@given(ARRAYS, st.booleans())
def test_any_array_as_a_mask(array: np.ndarray, invert: bool) -> None:
    try:
        mask = read_mask(array, invert=invert).mask
    except DataError as error:
        is_line(str(error))
        return
    assert mask.size in (array.size / n for n in (1, 2, 3, 4))
    assert mask.dtype == np.float32
    assert ((mask >= 0) & (mask <= 1)).all()
    hole = masks.hole_of(mask)
    assert hole.shape == mask.shape
    assert hole.dtype == bool


@pytest.mark.filterwarnings("error")
@examples(200)
@given(pictures(), st.booleans())
def test_any_picture_as_a_mask(image: Image.Image, invert: bool) -> None:
    try:
        mask = read_mask(image, invert=invert, soft=True).mask
    except DataError as error:
        is_line(str(error))
        assert "transparency" in image.info or image.mode in ("I", "F"), image.mode
        return
    assert mask.shape == (image.height, image.width)
    assert ((mask >= 0) & (mask <= 1)).all()


def parts_of(masked: part.Masked, size: int, fit: str) -> list[part.Part]:
    """Its parts, or those of another fit where the image is too small for tiles."""
    small = min(masked.picture.size) < size
    return part.parts(masked, size, "crop" if small and fit == "tile" else fit)


@pytest.mark.filterwarnings("error")
@examples(250)
@given(pictures(), st.integers(0, 2**32), st.sampled_from([4, 8, 32]), st.sampled_from(regions.FITS), st.booleans())
def test_known_pixels_never_change(image: Image.Image, seed: int, size: int, fit: str, soft: bool) -> None:
    """What `Pipeline.inpaint` does to an image, with a net that answers noise."""
    generator = np.random.default_rng(seed)
    mask = masks.random_mask("mixed", image.height, image.width, generator) * (generator.random() if soft else 1)
    channels = 3 if seed % 2 else 1
    try:
        masked = part.read(image, mask, soft_mask=soft, feather=seed % 3)
        if seed % 5 and masks.alpha_hole(masked.picture) is not None:
            masked = part.read(image)
        before = images.to_array(image, 4, range=masked.range)  # in modes I and F, of what is known alone
    except DataError as error:
        is_line(str(error))
        assert "transparency" in image.info, image.mode
        return
    picture, hole = masked.picture, masked.hole
    assert picture.size == image.size
    filled = picture.copy()
    for one in parts_of(masked, size, fit):
        pixels, gap = one.cut(channels)
        assert pixels.shape == (one.region.rows, one.region.columns, channels)
        assert gap.shape == pixels.shape[:2]
        assert gap.any()
        one.paste([filled], [generator.integers(0, 256, pixels.shape, dtype=np.uint8)])
    assert filled.size == image.size
    assert filled.mode == picture.mode
    assert np.asarray(filled)[~hole].tobytes() == np.asarray(picture)[~hole].tobytes()
    after = images.to_array(filled, 4, range=masked.range)
    # Colours below what is transparent mean nothing, and premultiplied ones are rounded once.
    seen = ~hole & (before[..., 3] > 0)
    step = 2 + 255 // np.maximum(before[..., 3:][seen], 1) if image.mode in ("La", "RGBa") else 0
    assert (abs(after[seen].astype(int) - before[seen]) <= step).all()
    assert np.array_equal(after[~hole][:, 3], before[~hole][:, 3])
    if picture.mode in ("LA", "RGBA"):
        assert (after[hole][:, 3] == 255).all(), "what was filled in is opaque"


@examples(150)
@given(pictures(), st.integers(0, 2**32), st.sampled_from([4, 8, 32]), st.sampled_from(regions.FITS))
def test_nothing_of_the_hole_reaches_the_net(image: Image.Image, seed: int, size: int, fit: str) -> None:
    generator = np.random.default_rng(seed)
    try:
        one = images.to_array(image, 3)
    except DataError:
        assume(False)
    hole = masks.random_mask("mixed", image.height, image.width, generator)
    other = np.where(hole[..., None], generator.integers(0, 256, one.shape, dtype=np.uint8), one)
    both = (parts_of(part.read(Image.fromarray(pixels), hole), size, fit) for pixels in (one, other))
    for this, that in zip(*both, strict=True):
        (first, gap), (second, same) = this.cut(3), that.cut(3)
        assert np.array_equal(gap, same)
        assert np.array_equal(first[~gap], second[~gap])


@examples(100)
@given(st.integers(1, 30_000), st.integers(1, 30_000), st.sampled_from([16, 64, 256]), st.sampled_from(regions.FITS))
def test_no_region_is_more_than_memory(height: int, width: int, size: int, fit: str) -> None:
    height, width = (height, max(1, min(width, 200_000 // height)))
    try:
        [region] = regions.choose(np.ones((height, width), bool), size, fit)
    except UsageError as error:
        is_line(str(error))
        return
    assert region.rows * region.columns <= max(regions.NATIVE_PIXELS, size * size)


# Folders.


def picture_bytes(colour: int) -> bytes:
    """A small PNG."""
    with tempfile.TemporaryFile() as file:
        Image.new("RGB", (5, 4), (colour, 0, 9)).save(file, "PNG")
        file.seek(0)
        return file.read()


CONTENTS = [picture_bytes(1), picture_bytes(2), b"", b"no image", picture_bytes(3)[:40]]
ENDINGS = [".png", ".PNG", ".jpg", ".Tiff", ".gif", ".heic", ".SVG", ".txt", "", ".png.txt", "."]
STRANGE = [
    "two words", " led", "quo\"te'", "new\nline", "tab\t", "\x1b[31mred", "\x7f", "😀", "שלום\u202e", "e\u0301", "é",
    "ﬁ", "-rf", "--out", "...", "..a", ".hidden", "~", "$HOME", "%s{0}", "*?", "[a]", "a;b|c&d", "back\\slash",
    "CON", "x" * 250, "ü" * 120, "\u200b", "\ufeff", "__MACOSX", "\udcff", "nul\udc00"[:3], "#", "é" * 3 + "\u0301",
]  # fmt: skip
STEMS = st.sampled_from(STRANGE) | st.text(
    st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), max_size=6
)
FILES = st.tuples(st.lists(STEMS, max_size=2), STEMS, st.sampled_from(ENDINGS), st.sampled_from(CONTENTS))


def made(root: Path, tree: list[tuple[list[str], str, str, bytes]]) -> dict[str, bytes]:
    """Write what the file system takes of `tree`; relative paths and contents of the files."""
    found: dict[str, bytes] = {}
    for folders, stem, ending, content in tree:
        parts = [*folders, stem + ending]
        if any(part in ("", ".", "..") for part in parts):
            continue
        path = os.path.join(root, *parts)
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "xb") as file:
                file.write(content)
        except (OSError, ValueError):  # too long, taken by a folder, or a name that this system does not have
            continue
        found["/".join(parts)] = content
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="other file systems change names, or take two for one")
@examples(150)
@given(st.lists(FILES, min_size=1, max_size=8), st.lists(st.lists(STEMS, min_size=1, max_size=3), max_size=2))
def test_every_file_of_a_folder_is_used_or_refused(tree: Any, empty: list[list[str]]) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        for parts in empty:
            try:
                os.makedirs(os.path.join(root, *parts), exist_ok=True)
            except (OSError, ValueError):
                continue
        written = made(root, tree)
        seen = {
            path: content
            for path, content in written.items()
            if not any(part.startswith(".") or part == "__MACOSX" for part in path.split("/"))
        }
        ending = {path: os.path.splitext(path)[1].lower() for path in seen}
        candidates = [path for path in seen if ending[path] in (".png", ".jpg", ".tiff", ".gif")]
        unsupported = [path for path in seen if ending[path] in (".heic", ".svg")]
        candidates += [  # whose names say nothing, and whose first bytes are those of an image
            path
            for path, content in seen.items()
            if path not in (*candidates, *unsupported) and ending[path] != ".txt" and content.startswith(b"\x89PNG")
            if "#" not in ending[path] and not path.endswith("~")
        ]
        stems = {stem(path) for path in candidates}
        twins = [path for path in unsupported if stem(path) in stems]
        # An image whose name has a wrong ending is used, too; of two names that differ in form alone, one is.
        named = [path for path in (*candidates, *unsupported) if path not in twins and is_text(path)]
        sound = {composed(path) for path in named if seen[path] in (CONTENTS[0], CONTENTS[1])}
        try:
            found = survey.survey(root)
        except DataError as error:
            is_line(str(error))
            assert not sound
            assert not [path for path in candidates if is_text(path)]
            return
        assert len(found.images) == len(sound)
        assert found.left_out.twins.total() == len(twins)
        assert len(found.images) + len(found.rejected) == len(candidates) + len(unsupported) - len(twins)
        for rejected in found.rejected:
            is_line(rejected.path)
            is_line(rejected.reason)
        for line in findings.describe(found).split("\n"):
            assert line.isprintable(), line
        try:
            data = open_dataset(root, image_size=4, channels=3, fit="crop", cache="off")
        except DataError as error:
            is_line(str(error))
            assert not sound
            return
        assert sorted(file.path for file in data.files) == sorted(image.path for image in found.images)
        assert {(r.path, r.reason) for r in data.rejected} == {(r.path, r.reason) for r in found.rejected}
        assert {file.path for file in data.files} == sound
        assert all(data.images[i].shape == (4, 5, 3) for i in range(len(sound)))


def composed(path: str) -> str:
    """A path as text in Unicode's composed form."""
    return unicodedata.normalize("NFC", os.fsencode(path).decode(errors="replace"))


def stem(path: str) -> str:
    """What files of one picture have in common: the name without its ending, large and small letters alike."""
    return os.path.splitext(composed(path))[0].casefold()


def is_text(path: str) -> bool:
    """Whether a name has a UTF-8 form."""
    try:
        os.fsencode(path).decode()
    except UnicodeError:
        return False
    return True


LINKS = st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("abcd"), st.sampled_from("abcde.")), max_size=6)


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
@examples(60)
@given(LINKS)
def test_links_in_any_knot(links: list[tuple[str, str, str]]) -> None:
    """Folders a, b and c with a picture each and links among them: every real file is found once."""
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        for name in "abc":
            (root / name).mkdir()
            (root / name / f"{name}.png").write_bytes(CONTENTS[0])
        for where, name, target in links:
            link = root / where / f"link-{name}"
            if not link.is_symlink():
                link.symlink_to(root if target == "." else root / target)
        found = survey.survey(root)
        assert [image.path for image in found.images] == ["a/a.png", "b/b.png", "c/c.png"]
        assert found.rejected == ()


ODD = {"nan": math.nan, "huge": 10**5000, "long": "x" * 10**6, "many": ["deep"] * 1000, "name": {"a" * 5000: {}}}


@pytest.mark.parametrize("value", ODD.values(), ids=ODD)
def test_odd_values_everywhere_in_a_config(value: Any) -> None:
    for section, names in SECTIONS.items():
        for content in ({section: value}, *({section: {name: value}} for name in names)):
            try:
                config.validated(content, "here")
            except Error as error:
                is_line(str(error))
