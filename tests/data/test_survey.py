"""The survey of a folder that `diffunet check` prints."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from diffunet.data.findings import describe
from diffunet.data.survey import survey


def picture(
    path: Path, size: tuple[int, int] = (8, 6), colour: int | tuple[int, ...] = (1, 2, 3), mode: str = "RGB"
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path)


def test_survey_counts(tmp_path: Path) -> None:
    picture(tmp_path / "x" / "wide.png", (100, 20), (255, 0, 0))
    picture(tmp_path / "x" / "copy.png", (100, 20), (255, 0, 0))
    picture(tmp_path / "y" / "alpha.png", (30, 30), (9, 9, 9, 100), "RGBA")
    picture(tmp_path / "y" / "opaque.png", (30, 40), (9, 9, 9, 255), "RGBA")
    picture(tmp_path / "y" / "grey.jpg", (200, 100), 7, "L")
    (tmp_path / "y" / "broken.png").write_bytes(b"")
    (tmp_path / "z.heic").write_bytes(b"x")
    seen: list[tuple[int, int]] = []
    surveyed = survey(tmp_path, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(n, 6) for n in range(1, 7)]
    assert surveyed.classes == {"x": 2, "y": 3}
    assert surveyed.size_range() == ((30, 30), (100, 30), (200, 100))
    assert surveyed.elongated == 2
    assert [surveyed.smaller_than(31, fit) for fit in ("crop", "random", "pad")] == [4, 4, 1]
    assert surveyed.transparent == 1
    assert not surveyed.all_grey
    assert [r.path for r in surveyed.rejected] == ["y/broken.png", "z.heic"]
    text = describe(surveyed, image_size=64)
    for part in (
        "5 images",
        "formats      PNG 4, JPEG 1\n",
        "modes        RGB 2, RGBA 2, L 1\n",
        "duplicates   1 repeat another file exactly\n",
        "subfolders   2: y 3, x 2\n",
        "--data.channels 4",
        "--classes",
        "y/broken.png: empty file",
        "smallest 30 x 30",
    ):
        assert part in text, text


def test_grey_pictures_are_seen_whatever_their_mode(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (9, 9, 1), dtype=np.uint8)
    Image.fromarray(noise.repeat(3, 2)).save(tmp_path / "rgb.png")
    Image.fromarray(noise[..., 0]).save(tmp_path / "l.png")
    surveyed = survey(tmp_path)
    assert surveyed.all_grey
    assert "--data.channels 1" in describe(surveyed)
    assert "--classes" not in describe(surveyed)


def test_long_lists_are_cut(tmp_path: Path) -> None:
    picture(tmp_path / "good.png")
    for n in range(25):
        (tmp_path / f"bad{n:02}.png").write_bytes(b"no")
    text = describe(survey(tmp_path))
    assert "bad19.png" in text
    assert "bad20.png" not in text
    assert text.endswith("... and 5 more")


def test_nothing_usable_is_still_described(tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"no")
    assert "0 images can be used, 1 files cannot" in describe(survey(tmp_path))
