"""What an earlier version wrote loads for ever; what a later one wrote is refused by its number."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import diffunet
from diffunet import draws, storage
from diffunet.config import read_toml
from diffunet.data import index
from diffunet.errors import CheckpointError, UsageError
from diffunet.training import checkpoint

FIXTURES = Path(__file__).parent / "fixtures"
OLD = sorted(path.name for path in FIXTURES.iterdir() if path.is_dir() and not path.name.startswith("_"))


@pytest.fixture(params=OLD)
def old(request, tmp_path):
    """A copy of a run of an earlier version."""
    shutil.copytree(FIXTURES / request.param, tmp_path / "old")
    return tmp_path / "old"


def test_there_is_one_for_each_version():
    assert [f"v{n}" for n in range(1, storage.VERSION + 1)] == OLD


def streams_of_0_1(seed, images, shape, device):
    """The noise of diffunet 0.1, by torch's generator and 32 bits of a seed."""
    sources = [torch.Generator().manual_seed(draws.seed_of("image", seed, i)) for i in images]
    return lambda: torch.stack([torch.randn(*shape, generator=source) for source in sources])


def test_its_model_gives_the_picture_that_it_gave(old, monkeypatch):
    monkeypatch.setattr(draws, "streams", streams_of_0_1)
    pipe = diffunet.load(old / "run", device="cpu", dtype=torch.float32)
    assert pipe.class_names == ("bright", "dark")
    picture, before = (
        np.asarray(image, np.int16) for image in (pipe.sample(1, seed=1)[0], Image.open(old / "sample.png"))
    )
    assert np.abs(picture - before).max() <= 2  # another processor may round otherwise


def test_its_weights_are_those_that_it_had(old):
    weights = load_file(old / "run/model/model.safetensors")
    mine = diffunet.load(old / "run", device="cpu", dtype=torch.float32).denoiser.net.state_dict()
    assert weights.keys() == mine.keys()
    assert all(torch.equal(weights[name], mine[name]) for name in weights)


@pytest.mark.seconds
def test_its_run_goes_on(old, caplog):
    assert dict(index.read_index(old / "run/images.index")) == {
        path.relative_to(old / "data").as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in (old / "data").rglob("*.bmp")
    }
    config = read_toml(old / "run/config.toml").changed("train", steps=5)
    diffunet.train(config, old / "data", old / "run", resume=True)
    assert checkpoint.steps(old / "run") == [4, 5]
    before, after = (load_file(checkpoint.folder_of(old / "run", n) / "optimizer.safetensors") for n in (4, 5))
    assert before.keys() == after.keys()
    assert {name: float(value) for name, value in after.items() if name.endswith(".step")} == {
        name: float(value) + 1 for name, value in before.items() if name.endswith(".step")
    }


def test_what_was_written_before_there_were_versions_is_of_the_first(old):
    config = old / "run/config.toml"
    config.write_text(config.read_text().replace("version = 1\n", ""))
    folder = checkpoint.folder_of(old / "run", 4)
    rewrite(folder, lambda state: state.pop("version"))
    (old / "run/images.index").unlink()
    diffunet.train(read_toml(config).changed("train", steps=5), old / "data", old / "run", resume=True)


def rewrite(folder, change):
    """Change the state of a checkpoint, and its manifest with it."""
    state = json.loads((folder / "state.json").read_text())
    change(state)
    content = json.dumps(state).encode()
    (folder / "state.json").write_bytes(content)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["state.json"] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_a_later_checkpoint_is_refused_by_its_number_and_not_skipped(old):
    rewrite(checkpoint.folder_of(old / "run", 4), lambda state: state.update(version=7))
    config = read_toml(old / "run/config.toml")
    with pytest.raises(CheckpointError, match=r"step-00000004 is of version 7; this diffunet reads 1: update it"):
        diffunet.train(config, old / "data", old / "run", resume=True)


def test_a_later_config_and_model_are_refused_by_their_number(old):
    config, model = old / "run/config.toml", old / "run/model/config.json"
    config.write_text(config.read_text().replace("version = 1\n", "version = 7\n"))
    with pytest.raises(UsageError, match=r"is of version 7; this diffunet reads 1: update it .*config\.toml"):
        read_toml(config)
    model.write_text(model.read_text().replace('"version": 1', '"version": 7'))
    with pytest.raises(CheckpointError, match=r"config\.json is of version 7; this diffunet reads 1: update it"):
        diffunet.load(old / "run")
    path = old / "run/images.index"
    path.write_text(path.read_text().replace("# diffunet index 1", "# diffunet index 7"))
    with pytest.raises(ValueError, match="version 7"):
        index.read_index(path)
