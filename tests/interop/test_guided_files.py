"""Files of guided-diffusion and improved-diffusion: their formats, damage, code in them, and other models."""

from __future__ import annotations

import math
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.openai_nets import (
    CASES,
    GUIDED,
    asked,
    read,
    state_dict,
)

from diffunet import storage
from diffunet.commands.cli import main
from diffunet.errors import CheckpointError
from diffunet.interop import guided_diffusion


@pytest.mark.parametrize("zipped", [True, False])
def test_half_precision_and_both_formats_of_torch(zipped, vectors, tmp_path):
    flags = CASES["one level"].flags
    content = {name: value.half() for name, value in state_dict(vectors, "one level").items()}
    torch.save(content, tmp_path / "model.pt", _use_new_zipfile_serialization=zipped)
    model = guided_diffusion.read(tmp_path / "model.pt", flags, GUIDED)
    stem = model.denoiser.net.stem.weight
    assert stem.dtype == torch.float32
    assert torch.equal(stem, content["input_blocks.0.0.weight"].float())


def test_nothing_of_the_file_stays_mapped(vectors, tmp_path):
    model = read(tmp_path, state_dict(vectors, "one level"), CASES["one level"].flags)
    before = {name: value.clone() for name, value in model.denoiser.net.state_dict().items()}
    path = tmp_path / "model.pt"
    path.write_bytes(bytes(path.stat().st_size))
    assert all(torch.equal(before[name], value) for name, value in model.denoiser.net.state_dict().items())


def test_written_as_a_model_folder(vectors, tmp_path):
    model = read(tmp_path, state_dict(vectors, "ADM"), CASES["ADM"].flags)
    storage.export_model(tmp_path / "model", model.config, model.denoiser.net.state_dict(), model.step)
    again = storage.read_model(tmp_path / "model")
    assert again.config == model.config
    x, t, labels = asked(CASES["ADM"], 1000)
    sigma = model.denoiser.schedule.sigmas[t].float()
    assert torch.equal(again.denoiser(x, sigma, labels).x0, model.denoiser(x, sigma, labels).x0)


class Malicious:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("zipped", [True, False])
def test_pickled_code_never_runs(zipped, tmp_path):
    content = {"time_embed.0.weight": Malicious(tmp_path / "ran")}
    torch.save(content, tmp_path / "model.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match="holds more than tensors, which is never run"):
        guided_diffusion.read(tmp_path / "model.pt", "", GUIDED)
    assert not (tmp_path / "ran").exists()


def test_files_that_are_no_state_dict(vectors, tmp_path):
    optimizer = {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 1e-4}]}
    for content in (optimizer, [torch.zeros(3)], torch.zeros(3), {1: torch.zeros(3)}):
        with pytest.raises(CheckpointError, match="is not a plain state dict of tensors"):
            read(tmp_path, content, "")
    for content in ({}, {"weight": torch.zeros(3)}):
        with pytest.raises(CheckpointError, match="is not a model of guided-diffusion or improved-diffusion"):
            read(tmp_path, content, "")
    with pytest.raises(CheckpointError, match="No such file"):
        guided_diffusion.read(tmp_path / "missing.pt", "", GUIDED)
    with pytest.raises(CheckpointError, match="cannot be read"):
        guided_diffusion.read(tmp_path, "", GUIDED)


def test_damaged_files(vectors, tmp_path):
    flags, path = CASES["one level"].flags, tmp_path / "model.pt"
    content = state_dict(vectors, "one level")
    torch.save(content, path)
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    path.write_bytes(flipped)
    with pytest.raises(CheckpointError, match="is damaged"):
        guided_diffusion.read(path, flags, GUIDED)
    for cut in (0, 100, len(whole) // 2, len(whole) - 10):
        path.write_bytes(whole[:cut])
        with pytest.raises(CheckpointError, match="cannot be read: it is cut short"):
            guided_diffusion.read(path, flags, GUIDED)
    content["out.0.weight"][0] = math.nan
    with pytest.raises(CheckpointError, match=r"are damaged: out\.0\.weight is not finite"):
        read(tmp_path, content, flags)


def test_files_that_are_larger_than_they_look(vectors, tmp_path):
    flags, content = CASES["one level"].flags, state_dict(vectors, "one level")
    torch.save(content, tmp_path / "plain.pt")
    path = tmp_path / "model.pt"
    with zipfile.ZipFile(tmp_path / "plain.pt") as plain, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for name in plain.namelist():
            packed.writestr(name, plain.read(name))
    with pytest.raises(CheckpointError, match="torch does not compress its files"):
        guided_diffusion.read(tmp_path / "model.pt", flags, GUIDED)
    content["time_embed.2.weight"] = torch.zeros(1).expand(content["time_embed.2.weight"].shape)
    with pytest.raises(CheckpointError, match="does not hold all values"):
        read(tmp_path, content, flags)


def test_super_resolution_and_classifier_are_refused(vectors, tmp_path):
    flags, content = CASES["one level"].flags, state_dict(vectors, "one level")
    classifier = {name: value for name, value in content.items() if not name.startswith("output_blocks.")}
    with pytest.raises(CheckpointError, match="is a classifier, which diffunet cannot use"):
        read(tmp_path, classifier, flags)
    content["input_blocks.0.0.weight"] = torch.zeros(96, 6, 3, 3)
    with pytest.raises(CheckpointError, match="is a super-resolution model, which diffunet cannot use"):
        read(tmp_path, content, flags)


def test_as_a_command_with_flags_in_one_word(vectors, tmp_path):
    """The command takes `--flags "--a 1 --b 2"`, whose value begins as an option does."""
    name = "ADM"
    torch.save(state_dict(vectors, name), tmp_path / "model.pt")
    words = ["convert", str(tmp_path / "model.pt"), str(tmp_path / "ours"), "--dialect", CASES[name].dialect]
    with pytest.raises(SystemExit) as stop:
        main([*words, "--flags", CASES[name].flags])
    assert not stop.value.code
    read = guided_diffusion.read(tmp_path / "model.pt", CASES[name].flags, CASES[name].dialect)
    assert storage.read_model(tmp_path / "ours").config == read.config
