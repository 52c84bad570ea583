"""Commands and Python take the same MODELs: our models, folders of diffusers and names on the hub."""

import shutil

import numpy as np
import pytest
import torch
from helpers.small import tiny

import diffunet
from diffunet.commands.cli import main
from diffunet.config import read_toml
from diffunet.errors import CheckpointError, UsageError
from diffunet.interop import hub, models

diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")


def command(*words):
    """Return the exit code of a command."""
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in words])
    return stop.value.code or 0


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    """Return a pipeline folder that diffusers saved."""
    torch.manual_seed(0)
    net = diffusers.UNet2DModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
    )
    folder = tmp_path_factory.mktemp("theirs") / "pipeline"
    diffusers.DDPMPipeline(net, diffusers.DDPMScheduler()).save_pretrained(folder)
    return folder


def test_a_folder_of_diffusers_is_a_model(theirs, tmp_path):
    pipe = diffunet.load(theirs)
    pictures = pipe.sample(2, steps=3)
    assert [picture.size for picture in pictures] == [(8, 8)] * 2
    assert command("sample", theirs, "--out", tmp_path / "two.png", "--grid", "--num", 2, "--steps", 3) == 0
    pictures[0].save(tmp_path / "one.png")
    assert command("inpaint", theirs, tmp_path / "one.png", "--box", "1,1,5,5", "--out", tmp_path / "filled.png") == 0
    assert (np.asarray(pipe.inpaint(pictures[0], box=(1, 1, 5, 5))[0])[6:] == np.asarray(pictures[0])[6:]).all()


def test_there_and_back(theirs, tmp_path):
    ours, again = tmp_path / "ours", tmp_path / "again"
    assert command("convert", theirs, ours) == 0
    assert command("convert", ours, again, "--to", "diffusers") == 0
    net = diffusers.DDPMPipeline.from_pretrained(again).unet
    before = diffusers.DDPMPipeline.from_pretrained(theirs).unet
    x, t = torch.randn(2, 3, 8, 8), torch.tensor([3, 700])
    with torch.no_grad():
        assert torch.allclose(net(x, t).sample, before(x, t).sample, atol=1e-6)
    assert models.read_config(again) == models.read_config(ours)


def test_a_run_starts_from_it(theirs, folder, tmp_path):
    config = tiny(model={"channels": None, "multipliers": None, "attention_resolutions": (16, 8), "num_blocks": None})
    out = tmp_path / "run"
    diffunet.train(config.changed("train", steps=1), folder, out, init=theirs)
    assert diffunet.load(out).config.model.norm_groups == 4


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--to", "diffunet", "--private"], "--private goes with --to hub"),
        (["--flags", "--image_size 64"], "are of a .pt"),
        (["--step", "3"], "--step goes with --ema"),
        (["--to", "diffuser"], "did you mean diffusers"),
    ],
)
def test_options_that_do_not_go_together(theirs, tmp_path, capsys, words, says):
    assert command("convert", theirs, tmp_path / "out", *words) == UsageError.exit_code
    assert says in capsys.readouterr().err


def test_a_pt_needs_its_flags(tmp_path, capsys):
    torch.save({}, tmp_path / "model.pt")
    assert command("convert", tmp_path / "model.pt", tmp_path / "out") == UsageError.exit_code
    assert "--flags" in capsys.readouterr().err


def test_names_of_the_hub_and_mistyped_paths(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(hub, "pull", lambda name: asked.append(name) or tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    with pytest.raises(CheckpointError, match="there is no model runs/phtos"):
        models.find("runs/phtos")
    assert asked == []
    with pytest.raises(CheckpointError):
        models.find("somebody/cats")
    assert asked == ["somebody/cats"]


def test_a_folder_of_another_form_is_not_written_into(theirs, tmp_path, capsys):
    ours, other = tmp_path / "ours", tmp_path / "other"
    assert command("convert", theirs, ours) == 0
    assert command("convert", theirs, other, "--to", "diffusers") == 0
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert command("convert", ours, other, "--overwrite") == UsageError.exit_code
    assert command("convert", theirs, ours, "--to", "diffusers", "--overwrite") == UsageError.exit_code
    assert "does not make another form" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert command("convert", ours, ours.with_name("third"), "--to", "diffusers") == 0
    assert command("convert", theirs, ours, "--overwrite") == 0


def test_what_init_takes_of_a_model_of_others(theirs, folder, tmp_path, caplog):
    config = tiny(model={"channels": None, "multipliers": None, "attention_resolutions": (16, 8), "num_blocks": None})
    out = tmp_path / "run"
    with caplog.at_level("INFO", "diffunet"):
        diffunet.train(config.changed("train", steps=1), folder, out, init=theirs)
    d = diffunet.load(out).config.diffusion
    assert d.target == "epsilon"
    assert d.label_dropout == 0.1  # theirs was trained without, and guidance needs it
    assert d.mean != (0, 0, 0)
    assert "mean" not in caplog.text


def test_a_run_goes_on_without_the_model_that_it_began_from(theirs, folder, tmp_path):
    gone = shutil.copytree(theirs, tmp_path / "gone")
    config = tiny(model={"channels": None, "multipliers": None, "attention_resolutions": (16, 8), "num_blocks": None})
    out = tmp_path / "run"
    diffunet.train(config.changed("train", steps=1), folder, out, init=gone)
    shutil.rmtree(gone)
    stored = read_toml(out / "config.toml")
    diffunet.train(stored.changed("train", steps=2), folder, out, init=gone, resume=True)
    assert models.read_model(out).step == 2


@pytest.mark.parametrize("address", ["somebody/cats", "https://huggingface.co/somebody/cats"])
def test_an_address_is_a_name(address, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert hub.is_name(address)
    assert not hub.is_name("https://elsewhere.org/somebody/cats")


def test_a_folder_that_may_not_be_read_is_one_line(monkeypatch):
    def locked(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(models.Path, "exists", locked)  # for root, file permissions lock nothing
    with pytest.raises(CheckpointError, match="locked/model cannot be read: Permission denied"):
        models.find("locked/model")
