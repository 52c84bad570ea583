"""Samples in a folder by anybody, and the figures of a whole evaluation: in the report, as JSON, in a run."""

import json
import re
import shutil
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

import diffunet
from diffunet import guides
from diffunet.errors import DataError
from diffunet.evaluation import figures, reference
from diffunet.evaluation.features import train_classifier
from diffunet.evaluation.reals import RealImages
from diffunet.evaluation.report import denoising, evaluate, evaluate_samples
from diffunet.evaluation.samples import Samples
from diffunet.sampling import conditions


@pytest.fixture(autouse=True)
def _brief(monkeypatch):
    """Classifiers learn for 30 steps, not 600, where what they learn does not matter."""
    monkeypatch.setattr(reference, "train_classifier", partial(train_classifier, steps=30))


@pytest.fixture
def copied(folder, tmp_path):
    """The real images themselves, twelve of them, as samples: a model that has learned by heart."""
    for n, path in enumerate(sorted(folder.rglob("*.png"))[::3][:12]):
        (tmp_path / "made").mkdir(exist_ok=True)
        shutil.copy(path, tmp_path / "made" / f"0-{n:05}-{path.parent.name}.png")
    return tmp_path / "made"


def test_samples_of_a_folder_are_compared_at_their_size_and_by_their_classes(folder, copied):
    samples = Samples(copied, folder)
    assert (samples.config.data.image_size, samples.config.data.channels) == (8, 3)
    names = sorted(path.name for path in copied.iterdir())
    assert [samples.config.data.class_names[n] for n in samples.labels] == [re.split("[-.]", name)[2] for name in names]
    pixels = np.stack([np.asarray(Image.open(copied / name)) for name in names])
    assert np.array_equal(samples.pictures(), pixels)
    report = evaluate_samples(copied, folder)
    found = report.figures()
    assert (found["samples"], found["reals"], found["compared"]) == (12, 40, 12)
    assert (found["copies"], found["nearest_distance"]) == (1, 0)
    assert found["held_out_copies"] is None
    assert sum(each["samples"] for each in found["classes"].values()) == 12
    shares = [each["agreement"] * each["samples"] for each in found["classes"].values()]
    assert sum(shares) / 12 == pytest.approx(found["agreement"])
    assert report.pairs.size == (6 * 10 + 2, 4 * 10 + 2)
    rows = np.asarray(report.pairs)
    assert np.array_equal(rows[2:10, 2:10], rows[12:20, 2:10]), "a sample stands above its nearest image"


def test_a_part_of_the_samples_is_drawn_where_there_are_more_than_a_third_of_reals(folder, copied):
    for n, path in enumerate(list(copied.iterdir())[:8]):
        shutil.copy(path, copied / f"1-{n:05}-{path.stem.split('-')[-1]}.png")
    found = evaluate_samples(copied, folder).figures()
    assert (found["samples"], found["compared"]) == (20, 13)


def test_samples_without_classes_that_fit_are_compared_without(folder, copied, caplog):
    caplog.set_level("INFO")
    next(copied.glob("*disc*")).rename(copied / "0-00099-zebra.png")
    report = evaluate_samples(copied, folder)
    assert "1 of 12 samples name no class of DATA" in caplog.text
    assert (report.num, report.agreement, report.classes) == (12, None, {})


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda made: Image.new("RGB", (9, 8)).save(made / "x.png"), "x.png is 9x8, and samples are square"),
        (lambda made: Image.new("RGB", (9, 9)).save(made / "x.png"), "one size.* 8 .*x.png 9"),
        (lambda made: (made / "x.png").write_bytes(b"\x89PNG\r\n\x1a\n"), "x.png cannot be used"),
        (
            lambda made: (made / "made.jsonl").write_text(json.dumps({"pictures": ["0-00000-disc.png"]}) + "\n"),
            "holds 1 pictures that diffunet made beside others",
        ),
        (lambda made: [path.unlink() for path in sorted(made.iterdir())[1:]], "one sample"),
    ],
)
def test_what_is_no_folder_of_samples_is_refused(spoil, why, folder, copied):
    spoil(copied)
    with pytest.raises(DataError, match=why):
        Samples(copied, folder)


def test_grey_samples_make_a_grey_comparison(folder, copied):
    for path in copied.iterdir():
        Image.open(path).convert("L").save(path)
    assert Samples(copied, folder).config.data.channels == 1


def test_real_images_are_read_as_a_new_run_reads_them(tmp_path):
    """12 bits in files of 16, which are 16 times too dark unless their range is found."""
    (tmp_path / "real").mkdir(), (tmp_path / "made").mkdir()
    values = np.random.default_rng(0).integers(0, 4096, (4, 8, 8)).astype(np.uint16)
    for n, picture in enumerate(values):
        Image.fromarray(picture).save(tmp_path / "real" / f"{n}.png")
        Image.fromarray((picture >> 4).astype(np.uint8)).save(tmp_path / "made" / f"{n}.png")
    real = RealImages(Samples(tmp_path / "made", tmp_path / "real").config, tmp_path / "real")
    assert np.array_equal(real.gather(np.arange(4))[..., 0], np.rint(values / 4095 * 255))


def test_every_figure_of_a_run_is_documented_and_the_readme_names_the_files(run, folder, tmp_path):
    pipe = diffunet.load(run)
    report = evaluate(pipe, folder, num=10, steps=2, likelihood="ode", likelihood_num=1, likelihood_steps=4)
    found = report.figures()
    assert json.loads(figures.text(found)) == json.loads(json.dumps(found))
    assert found["likelihood_error"] is None  # of one image there is no spread, and JSON has no nan
    assert list(found) == [name for name in figures.FIGURES if name in found]
    assert (found["samples"], found["compared"], found["reals"], found["seed"]) == (10, 10, 40, 0)
    assert 0 <= found["held_out_copies"] <= 1
    lines = "\n".join(report.lines())
    for words in ("samples: 10\n", "near copies of training images, by pixels", "held-out reals", "disc", "density"):
        assert words in lines
    assert f"`RUN/{figures.NAME}`" in guides.text("measuring")
    assert f"`RUN/{figures.PAIRS}`" in guides.text("measuring")


def test_figures_of_another_model_never_stay_in_a_run(run, folder, tmp_path):
    loss = denoising(diffunet.load(run), folder, num=4).figures() | {"model": "a", "step": 8}
    samples = {"samples": 3, "distance": 1.0, "model": "a", "step": 8, "data": loss["data"]}
    figures.write(tmp_path, samples | {"fid": 2.0})
    figures.write(tmp_path, loss)
    merged = json.loads((tmp_path / figures.NAME).read_text())
    assert (merged["fid"], merged["loss"]) == (2.0, loss["loss"])
    figures.write(tmp_path, samples)  # FID was of other samples
    again = json.loads((tmp_path / figures.NAME).read_text())
    assert "fid" not in again
    assert again["loss"] == loss["loss"]
    figures.write(tmp_path, samples | {"model": "b"})
    assert json.loads((tmp_path / figures.NAME).read_text()) == samples | {"model": "b"}
    (tmp_path / figures.NAME).write_text("[1")
    figures.write(tmp_path, samples)
    assert json.loads((tmp_path / figures.NAME).read_text()) == samples


def test_samples_of_classes_whose_names_differ_in_signs_are_told_apart(tmp_path):
    """`C#` and `C+` are both C_ in a file name: the pictures of `diffunet sample` have the number of the class then."""
    generator, names = np.random.default_rng(0), ("C#", "C+", "D")
    for name in names:
        (tmp_path / "real" / name).mkdir(parents=True)
        for i in range(8):
            Image.fromarray(generator.integers(0, 256, (8, 8, 3), np.uint8)).save(tmp_path / "real" / name / f"{i}.png")
    (tmp_path / "made").mkdir()
    classes = torch.arange(6) % 3
    backwards = names[::-1]  # a model may number them otherwise
    written = [conditions.picture_name(0, i, classes, backwards) for i in range(6)]
    assert len(set(written)) == 6
    for name in written:
        Image.fromarray(generator.integers(0, 256, (8, 8, 3), np.uint8)).save(tmp_path / "made" / f"{name}.png")
    assert list(Samples(tmp_path / "made", tmp_path / "real").labels) == [2, 1, 0, 2, 1, 0]
    assert sorted(Samples(tmp_path / "real", tmp_path / "real").labels) == [0] * 8 + [1] * 8 + [2] * 8
