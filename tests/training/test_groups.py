"""Training whose held-out images are of whole groups: what is held out, what is said, what a resumed run refuses."""

import contextlib
import json
import shutil

import numpy as np
import pytest
import torch
from helpers.small import tiny
from PIL import Image

from diffunet import build
from diffunet.errors import DataError, UsageError
from diffunet.evaluation.reference import Reference
from diffunet.training import checkpoint
from diffunet.training.loop import train


@pytest.fixture
def pictures(tmp_path):
    """Forty pictures and a table of them, in which each has a variant of the same family."""
    root = tmp_path / "data"
    root.mkdir()
    generator = np.random.default_rng(0)
    for i in range(40):
        Image.fromarray(generator.integers(0, 256, (9, 9, 3), dtype=np.uint8)).save(root / f"u{i // 2:02}_{i % 2}.png")
    rows = [f"u{i // 2:02}_{i % 2}.png\tu{i // 2:02}\t{'ab'[i // 20]}" for i in range(38)]
    (tmp_path / "table.tsv").write_text("\n".join(["file\tfamily\thalf", *rows]))
    return root


def config(rule, steps=4, **train_options):
    return tiny(train={"steps": steps, **train_options}, data={"classes": False, "group": rule, "held_out": 0.2})


def held_out(config, root):
    dataset = build.dataset(config.data, root)
    return {dataset.files.paths[n] for n in build.split(config.data, dataset.files).held_out}


def newest_state(run):
    path = checkpoint.newest(run)
    return path / "state.json", json.loads((path / "state.json").read_text())


def test_variants_are_held_out_together_and_resuming_keeps_them(pictures, tmp_path, caplog, monkeypatch):
    caplog.set_level("INFO")
    monkeypatch.chdir(tmp_path)
    for rule, message in (("none.tsv:family", "none.tsv cannot be read"), ("zebra([0-9])", "finds no name")):
        with pytest.raises(UsageError, match=message):
            train(config(rule), pictures, tmp_path / "run")
    asked = config("table.tsv:family")
    train(asked, pictures, tmp_path / "run")
    assert "groups: 38 of 40 images are in 19 groups; those of one group are held out together" in caplog.text
    held = held_out(asked, pictures)
    assert f"images: {40 - len(held)} to train on, {len(held)} held out" in caplog.text
    alone = {"u19_0.png", "u19_1.png"}
    assert all(f"{name[:4]}{1 - int(name[4])}.png" in held for name in held - alone)
    assert held - alone
    _, labels, unseen = Reference(asked, pictures, 5, 0, torch.device("cpu")).for_likelihood(100)
    assert (labels, unseen) == (None, True)

    text = (tmp_path / "table.tsv").read_text()
    (tmp_path / "table.tsv").write_text(text.replace("half", "other"))  # a change that changes no side
    train(config("table.tsv:family", 5), pictures, tmp_path / "run", resume=True)
    train(config(None, 6), pictures, tmp_path / "run", resume=True)  # what is not asked for stays
    assert checkpoint.steps(tmp_path / "run")[-1] == 6


@pytest.mark.parametrize("rule", ["u([0-9]+)", "table.tsv:half"])
def test_resuming_with_another_rule_is_refused(pictures, tmp_path, monkeypatch, rule):
    monkeypatch.chdir(tmp_path)
    train(config("table.tsv:family"), pictures, tmp_path / "run")
    with pytest.raises(UsageError, match=r"--resume goes on with data\.group = 'table\.tsv:family'"):
        train(config(rule, 6), pictures, tmp_path / "run", resume=True)
    train(config(None), pictures, tmp_path / "plain")
    with pytest.raises(UsageError, match=r"--resume goes on with data\.group = None"):
        train(config(rule, 6), pictures, tmp_path / "plain", resume=True)


def test_another_table_of_the_same_name_is_refused_or_accepted(pictures, tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    train(config("table.tsv:family"), pictures, tmp_path / "run")
    before, table, longer = newest_state(tmp_path / "run"), tmp_path / "table.tsv", config("table.tsv:family", 6)
    lines = table.read_text().splitlines()
    gone = table.rename("moved.tsv")
    with pytest.raises(UsageError, match=r"data\.group: table\.tsv cannot be read: No such file"):
        train(longer, pictures, tmp_path / "run", resume=True)
    table.write_text("\n".join([lines[0], *(line.replace("\tu", "\tv") for line in lines[1:])]))
    with pytest.raises(DataError, match=r"put table\.tsv:family .* back as it was, or .* --accept-new-data") as refused:
        train(longer, pictures, tmp_path / "run", resume=True)
    assert "so that others would be held out" in str(refused.value)
    assert newest_state(tmp_path / "run") == before

    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    train(longer, pictures, tmp_path / "run", resume=True, accept_new_data=True)
    assert "going on with other groups of images" in caplog.text
    train(config("table.tsv:family", 7), pictures, tmp_path / "run", resume=True)  # they are its groups now
    shutil.copy(gone, table)
    train(longer, pictures, tmp_path / "copy", resume=True)
    assert checkpoint.steps(tmp_path / "copy")[-1] == 6


def test_other_groups_are_refused_where_images_are_drawn_by_them(pictures, tmp_path, monkeypatch):
    """Nothing is held out, so that the split says nothing of them."""
    monkeypatch.chdir(tmp_path)
    for balanced in (False, True):
        changes = {"held_out": 0.0, "balance_groups": balanced}
        run, text = tmp_path / f"run-{balanced}", (tmp_path / "table.tsv").read_text()
        train(config("table.tsv:family").changed("data", **changes), pictures, run)
        lines = text.splitlines()
        lines[1] = lines[1].replace("\tu00\t", "\talone\t")
        (tmp_path / "table.tsv").write_text("\n".join(lines))
        longer = config("table.tsv:family", 6).changed("data", **changes)
        with pytest.raises(DataError, match="or drawn") if balanced else contextlib.nullcontext():
            train(longer, pictures, run, resume=True)
        (tmp_path / "table.tsv").write_text(text)


def test_a_checkpoint_of_before_there_were_groups_resumes(pictures, tmp_path):
    train(config(None), pictures, tmp_path / "run")
    path, state = newest_state(tmp_path / "run")
    del state["split_hash"]
    path.write_text(json.dumps(state))
    manifest = json.loads((path.parent / "manifest.json").read_text())
    digest = checkpoint.files.sha256(path)
    manifest["state.json"] = {"bytes": path.stat().st_size, "sha256": digest}
    (path.parent / "manifest.json").write_text(json.dumps(manifest))
    text = (tmp_path / "run/config.toml").read_text()
    assert "group =" not in text
    train(config(None, 6), pictures, tmp_path / "run", resume=True)
    assert checkpoint.steps(tmp_path / "run")[-1] == 6
