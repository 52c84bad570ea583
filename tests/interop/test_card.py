"""The card of a model states what its config and its run state, and nothing else."""

import json
import re

import pytest
import yaml
from helpers.small import tiny

from diffunet import build, storage
from diffunet.data.index import read_index
from diffunet.interop.card import card, preview


def made(**sections):
    config = tiny(**{"model": {"attention_levels": (1,)}} | sections)
    return storage.Model(config, build.denoiser(config, build.net(config)), 0)


def rows(text):
    """Return the rows of all tables of a card, name -> value."""
    return dict(re.findall(r"^\| ([^|]+) \| (.*) \|$", text, re.MULTILINE))


def head(text):
    _, yaml_text, rest = text.split("---\n", 2)
    return yaml.safe_load(yaml_text), rest


def test_of_a_run(run):
    model = storage.read_model(run)
    text = card(model, run, "owner/pictures")
    about, rest = head(text)
    assert about == {
        "library_name": "diffunet", "pipeline_tag": "unconditional-image-generation",
        "tags": ["diffunet", "diffusion", "unet"],
    }  # fmt: skip
    assert rest.startswith("\n# pictures\n")
    assert "diffunet sample owner/pictures --out samples.png --grid" in rest
    assert 'diffunet.load("owner/pictures")' in rest
    assert "![Samples, drawn during training](samples.png)" in rest
    assert preview(run) == run / "samples" / "step-00000008.png"

    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = {line["step"]: line["validation_loss"] for line in metrics if "validation_loss" in line}
    assert set(losses) == {4, 8}
    best = min(losses, key=losses.get)
    values = rows(text)
    assert values["validation loss"] == (
        f"{losses[4]:.4g} at step 4, {losses[best]:.4g} at best (step {best}), {losses[8]:.4g} at the last"
    )
    assert values["optimizer steps"] == "8"
    assert values["images seen"] == "48, 6 a step"
    assert values["images in the folder"].startswith(f"{len(read_index(run / 'images.index'))},")
    assert values["parameters"] == f"{sum(p.numel() for p in model.denoiser.net.parameters()):,}"
    assert values["2 classes"] == "disc, square"
    environment = json.loads((run / "checkpoints" / "step-00000008" / "state.json").read_text())["environment"]
    assert environment["device"] in values["trained on"].replace("\\", "")


def test_the_newest_preview(tmp_path):
    assert preview(tmp_path) is None
    (tmp_path / "samples").mkdir()
    for name in ("step-00000900.png", "step-00001000.png", "other.png"):
        (tmp_path / "samples" / name).touch()
    assert preview(tmp_path).name == "step-00001000.png"


def test_of_an_earlier_step_nothing_that_came_after(run):
    model = storage.read_model(run)
    text = card(storage.Model(model.config, model.denoiser, 4), run)
    assert "step 8" not in text
    assert rows(text)["images seen"].startswith("24,")


def test_what_was_not_measured_is_not_said(tmp_path):
    text = card(made(), None, "a/b")
    for word in ("Training", "loss", "seen", "samples.png)", "seconds"):
        assert word not in text
    (tmp_path / "config.toml").write_text("")
    (tmp_path / "metrics.jsonl").write_text('{"step": 0, "validation_loss": null}\n[]\n{"step": 0, "vali')
    text = card(made(), tmp_path, "a/b")
    assert rows(text)["optimizer steps"] == "0"
    for word in ("loss", "seen", "samples.png)", "images in", "trained on"):
        assert word not in text


@pytest.mark.parametrize("name", ["a|b", "*cat*", "[x](http://y)", "<b>", "a\nb", "`code`", "$x$", "back\\slash", '"'])
def test_names_of_classes_are_shown_as_they_are(name):
    text = card(made(data={"class_names": (name, "plain")}))
    value = rows(text.replace("\\|", "PIPE"))["2 classes"].replace("PIPE", "\\|")
    shown = re.sub(r"\\([\\`*_\[\]<>|~&#$])", r"\1", value)  # as Markdown shows it
    assert shown == f"{' '.join(name.split())}, plain"
    assert not re.search(r"(?<!\\)[*`<>\[$]", value)
    (code,) = re.findall(r"pipe\.sample\((.*)\)$", text, re.MULTILINE)
    assert eval(f"dict({code})")["labels"] == name


def test_many_classes_are_cut():
    text = card(made(data={"class_names": tuple(f"class {n}" for n in range(150))}))
    assert rows(text)["150 classes"].endswith("class 99 and 50 more")


def test_says_what_the_net_predicts_and_how_to_sample():
    text = card(made(diffusion={"schedule": "linear", "target": "epsilon", "learned_variance": True, "sampler": "heun",
                                "sample_steps": 10, "task": "inpaint"}))  # fmt: skip
    values = rows(text)
    assert values["predicts"] == "epsilon, and the variance"
    assert values["noise schedule"] == "linear, 1,000 steps"
    assert values["samples by"] == "10 steps of heun (19 calls of the net)"
    assert "inpainting" in head(text)[0]["tags"]
