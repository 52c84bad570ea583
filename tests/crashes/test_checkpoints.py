"""Damaged checkpoints: named, skipped, and the run ends in the same bits; never a silent fresh start."""

from __future__ import annotations

import random
import shutil

import pytest
from helpers.crashes.harness import EVERY, START, config, differences, fresh

import diffunet
from diffunet import files
from diffunet.training import checkpoint

FILES = (
    "model.safetensors", "ema.safetensors", "optimizer.safetensors", "power.safetensors", "state.json", "manifest.json",
)  # fmt: skip


def damage(path, how):
    """Spoil a file."""
    content = bytearray(path.read_bytes())
    if how == "cut":
        content = content[: len(content) // 2]
    elif how == "emptied":
        content = bytearray()
    elif how == "zeroed":
        content = bytearray(len(content))
    else:
        bit = random.Random(path.name).randrange(8 * len(content))
        content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


@pytest.fixture
def resume(crashes, tmp_path):
    """`diffunet train --resume`, in a process of its own."""
    path = tmp_path / "config.toml"
    path.write_text(diffunet.Config.model_validate(config()).to_toml())

    def run(stage):
        words = ["train", str(crashes.pictures), "--out", str(stage / "run"), "--config", str(path), "--resume"]
        return crashes.ask("main", words=words)

    return run


def refused(reply):
    """The one line of a command that ended with code 4."""
    assert (reply.signal, reply.code) == (0, 4), reply
    lines = reply.output.strip().splitlines()
    assert lines[-1].startswith("diffunet: ")
    assert "Traceback" not in reply.output
    return lines[-1]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    "how", ["a bit flipped", *(pytest.param(how, marks=pytest.mark.slow) for how in ("cut", "emptied", "zeroed"))]
)
def test_a_damaged_file(crashes, base, wanted, resume, name, how):
    stage = fresh(crashes.place / "damaged", base)
    damage(checkpoint.folder_of(stage / "run", START) / name, how)
    reply = resume(stage)
    assert (reply.signal, reply.code) == (0, 0), reply
    warnings = [line for line in reply.output.splitlines() if f"step-{START:08d}" in line]
    assert warnings, reply.output
    assert name in warnings[0] or name == "manifest.json", warnings  # a wrong hash looks like a damaged file
    assert f"at step {START - EVERY}" in reply.output
    assert differences(wanted, crashes.finish(stage)) is None


@pytest.mark.parametrize("how", ["a bit flipped", "cut", "emptied", "zeroed"])
def test_all_damaged(crashes, base, resume, how):
    stage = fresh(crashes.place / "damaged", base)
    for step, name in zip(checkpoint.steps(stage / "run"), random.Random(how).sample(FILES, 2), strict=True):
        damage(checkpoint.folder_of(stage / "run", step) / name, how)
    before = files.sha256(stage / "run/model/model.safetensors")
    assert "no checkpoint" in refused(resume(stage))
    assert files.sha256(stage / "run/model/model.safetensors") == before
    assert len(checkpoint.steps(stage / "run")) == 2


@pytest.mark.parametrize("what", ["checkpoints", "checkpoints/*"])
def test_no_checkpoint_left_of_a_run_that_had_a_model(crashes, base, resume, what):
    stage = fresh(crashes.place / "damaged", base)
    for path in (stage / "run").glob(what):
        shutil.rmtree(path)
    before = files.sha256(stage / "run/model/model.safetensors")
    assert str(stage / "run") in refused(resume(stage))
    assert files.sha256(stage / "run/model/model.safetensors") == before


@pytest.mark.slow
def test_any_flipped_bit_of_a_manifest_is_noticed(crashes, base):
    """The other files are held by their hashes; the manifest has none."""
    stage = fresh(crashes.place / "damaged", base)
    path = checkpoint.folder_of(stage / "run", START) / "manifest.json"
    content = path.read_bytes()
    unnoticed = []
    for bit in range(8 * len(content)):
        spoilt = bytearray(content)
        spoilt[bit // 8] ^= 1 << bit % 8
        path.write_bytes(spoilt)
        if checkpoint.problem(path.parent) is None:
            unnoticed.append(bytes(spoilt[max(0, bit // 8 - 20) : bit // 8 + 20]))
    assert unnoticed == []
