"""Classes from folders, tables, dataset.json and names: all of them say the same of the same images."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import numpy as np
import pytest

from diffunet.data import labels
from diffunet.errors import DataError, UsageError

PATHS = ["cat_0.png", "cat_1.png", "dog_2.png", "owl_3.png"]
CLASSES = ["cat", "cat", "dog", "owl"]


def named(found: labels.Labels) -> list[str]:
    return [found.names[place] for place in found.places]


FILES = [
    (
        "metadata.jsonl",
        "".join(json.dumps({"file_name": p, "label": c}) + "\n" for p, c in zip(PATHS, CLASSES, strict=True)),
        "",
    ),
    ("metadata.csv", "file_name,label\n" + "".join(f"{p},{c}\n" for p, c in zip(PATHS, CLASSES, strict=True)), ""),
    ("metadata.tsv", "file\tn\tlabel\n" + "".join(f"{p}\t1\t{c}\n" for p, c in zip(PATHS, CLASSES, strict=True)), ""),
    ("dataset.json", json.dumps({"labels": [[p, c] for p, c in zip(PATHS, CLASSES, strict=True)]}), ""),
    ("dataset.json", json.dumps({"labels": dict(zip(PATHS, CLASSES, strict=True))}), ""),
    (
        "kinds.csv",
        "file_name,a,kind\n" + "".join(f"./{p},1,{c} \n" for p, c in zip(PATHS, CLASSES, strict=True)),
        ":kind",
    ),
    (
        "kinds.jsonl",
        "".join(json.dumps({"file": p, "x": [1], "k": c}) + "\n" for p, c in zip(PATHS, CLASSES, strict=True)),
        ":k",
    ),
]


@pytest.mark.parametrize(("name", "text", "column"), FILES)
def test_a_table_says_what_folders_say(tmp_path: Path, name: str, text: str, column: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    folders = labels.find(tmp_path, [f"{c}/{p}" for p, c in zip(PATHS, CLASSES, strict=True)])
    said = labels.find(tmp_path, PATHS, name + column)
    assert named(said) == named(folders) == CLASSES
    assert said.names == folders.names == ("cat", "dog", "owl")
    assert said.hash() == folders.hash()
    assert (said.rule, folders.rule) == (name + column, None)
    elsewhere = labels.find(tmp_path / "other", PATHS, f"{tmp_path / name}{column}")
    assert named(elsewhere) == CLASSES
    if not column:  # it is found by itself, and that is said
        found = labels.find(tmp_path, PATHS)
        assert named(found) == CLASSES
        assert found.rule == name
        assert name in str(found.note)


@pytest.mark.parametrize(
    ("paths", "rule", "wanted"),
    [
        (PATHS, r"(.+)_\d+", CLASSES),
        (["x/cat.7.jpg", "x/dog.1.jpg"], r"(.+)\.\d+", ["cat", "dog"]),
        (["x/cat.7.jpg", "y/cat.1.jpg"], r"^(\w)/", ["x", "y"]),  # with a slash it is the path
        (["a1.png", "b1.png"], "[ab]", ["a", "b"]),
    ],
)
def test_names_say_it(paths: list[str], rule: str, wanted: list[str]) -> None:
    assert named(labels.find(Path("nothing"), paths, rule)) == wanted


def test_whole_numbers_are_names_and_one_form_of_unicode_is_compared(tmp_path: Path) -> None:
    decomposed = unicodedata.normalize("NFD", "grün.png")
    rows = [{"file_name": "grün.png", "label": 3}, {"file_name": "sub\\b.png", "label": 10.0}]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    assert named(labels.find(tmp_path, [decomposed, "sub/b.png"])) == ["3", "10"]


def test_what_a_source_says_comes_first(tmp_path: Path) -> None:
    given = dict(zip(PATHS, ["x", "y", "x", "y"], strict=True))
    assert named(labels.find(tmp_path, PATHS, given=given)) == ["x", "y", "x", "y"]
    assert named(labels.find(tmp_path, PATHS, r"(.+)_", given=given)) == CLASSES
    with pytest.raises(DataError, match=r"1 of 4 images have no class by the data \(owl_3\.png\)"):
        labels.find(tmp_path, PATHS, given={**given, "owl_3.png": None})


def test_folders_stay_classes_where_a_table_says_others_and_parts_of_edm_are_none(tmp_path: Path) -> None:
    paths = ["00000/a.png", "00000/b.png", "00001/c.png"]
    content = {"labels": [["00000/a.png", 4], ["00000/b.png", 0], ["00001/c.png", 4]]}
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    assert named(labels.find(tmp_path, paths)) == ["4", "0", "4"]
    assert named(labels.find(tmp_path, paths, "folders")) == ["00000", "00000", "00001"]
    (tmp_path / "metadata.csv").write_text("file_name,label\n00000/a.png,x\n00000/b.png,y\n00001/c.png,x\n")
    found = labels.find(tmp_path, paths)
    assert named(found) == ["00000", "00000", "00001"]
    assert "--data.labels metadata.csv takes them" in str(found.note)
    (tmp_path / "metadata.csv").write_text("file_name,text\n00000/a.png,x\n")
    (tmp_path / "dataset.json").write_text('{"labels": null}')
    assert labels.find(tmp_path, paths).note is None


def test_rows_of_no_image_are_counted(tmp_path: Path) -> None:
    lines = "".join(f"{path},{name}\n" for path, name in zip(PATHS, CLASSES, strict=True))
    (tmp_path / "t.csv").write_text("file_name,label\n" + lines + "gone.png,cat\n")
    assert "1 of its 5 rows are of no image" in str(labels.find(tmp_path, PATHS, "t.csv").note)


WRONG = [
    (
        [f"{c}_{n}.png" for c in ("cat", "dog", "owl") for n in range(2)],
        None,
        r"'\(\.\+\)_\\d\+' makes 3 classes of names such as cat_0\.png \(cat, dog, owl\)",
    ),
    (["a.png", "b.png"], None, r"Put the images of each class into a subfolder.*metadata\.csv.*for cat_12\.png"),
    (["cat/a.png", "dog/b.png", "c.png"], None, r"1 of 3 images lie in no class folder \(c\.png\)"),
    (["cat/a.png", "cat/b.png"], None, "at least two subfolders with images, and there is only 'cat'"),
    ([*PATHS, "x.png"], r"(.+)_\d+", r"1 of 5 images have no class by the pattern .* \(x\.png\)"),
    (PATHS, "zebra", r"4 of 4 images have no class by the pattern 'zebra'"),
]


@pytest.mark.parametrize(("paths", "rule", "message"), WRONG)
def test_what_is_missing_is_said_with_its_remedy(
    tmp_path: Path, paths: list[str], rule: str | None, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        labels.find(tmp_path, paths, rule)


BAD = [
    ("none.csv", None, r"none\.csv cannot be read: No such file"),
    (
        "x.csv",
        "file_name,a,b\ncat_0.png,1,2\n",
        r"no column 'label' of classes; its columns are file_name, a, b; .*:COL",
    ),
    ("x.csv", "file_name,label\ncat_0.png,a\ncat_0.png,b\n", r"has cat_0\.png in the classes a and b"),
    ("x.jsonl", '{"file_name": "cat_0.png", "label": ["a"]}\n', r"has \['a'\] for cat_0\.png, and one name is needed"),
    ("x.jsonl", "[1]\n", "its line 1 is no JSON object"),
    ("x.jsonl", "{\n", "cannot be read"),
    ("x.json", '{"labels": null}', r"has no labels; they look like"),
    ("x.json", '{"labels": [1]}', "1 is no pair of a path and a label"),
    ("x.json", '{"labels": [["cat_0.png", [0, 1]]]}', r"\[0, 1\] for cat_0\.png"),
]


@pytest.mark.parametrize(("name", "text", "message"), BAD)
def test_what_is_wrong_with_a_table_is_said(tmp_path: Path, name: str, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(UsageError, match=message):
        labels.find(tmp_path, PATHS, str(name))


def test_a_table_of_other_images_and_images_without_a_row(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("file_name,label\nz.png,a\n")
    with pytest.raises(DataError, match=r"no row of .*t\.csv has the class of an image .* named like cat_0\.png"):
        labels.find(tmp_path, PATHS, "t.csv")
    (tmp_path / "t.csv").write_text("file_name,label\ncat_0.png,a\ncat_1.png,b\ndog_2.png,\n")
    with pytest.raises(DataError, match=r"2 of 4 images have no class by t\.csv \(dog_2\.png, owl_3\.png\)"):
        labels.find(tmp_path, PATHS, "t.csv")


def test_numbers_among_other_names() -> None:
    found = labels.find(Path(), PATHS, r"(.+)_")
    assert found.numbers(("owl", "cat")).tolist() == [1, 1, -1, 0]
    assert found.known(("dog", "owl", "cat")).tolist() == [2, 2, 0, 1]
    assert found.counts() == {"cat": 2, "dog": 1, "owl": 1}
    with pytest.raises(DataError, match="1 of 4 images are of none of the 2 classes that are known: dog 1"):
        found.known(("owl", "cat"))
    assert found.places.dtype == np.int64
