"""A net of the user's own, from training to pictures: nothing of it is imported from a file."""

import shutil

import numpy as np
import pytest
import torch
from helpers.small import tiny
from torch import nn

import diffunet
from diffunet import build, storage
from diffunet.build import in_channels, out_channels
from diffunet.commands.cli import main
from diffunet.config import read_toml
from diffunet.errors import CheckpointError, Stopped, UsageError
from diffunet.training import checkpoint, memory


class Own(nn.Module):
    """Two convolutions that know the noise level and the label; none of the attributes that our nets have."""

    def __init__(self, channels: int, answers: int, classes: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, 16, 3, padding=1)
        self.label = nn.Embedding(classes + 1, 16)
        self.last = nn.Conv2d(16, answers, 3, padding=1)

    def forward(self, x, c_noise, label=None, augment=None):
        label = torch.full_like(c_noise, self.label.num_embeddings - 1).long() if label is None else label
        h = self.first(x) + self.label(label)[:, :, None, None]
        return self.last(torch.relu(h + c_noise[:, None, None, None] / 1000))


class Wide(Own):
    """The same with a kernel of 5 pixels, so that its weights have other shapes."""

    def __init__(self, channels: int, answers: int, classes: int) -> None:
        super().__init__(channels, answers, classes)
        self.first = nn.Conv2d(channels, 16, 5, padding=2)


def own(config):
    return Own(in_channels(config), out_channels(config), len(config.data.class_names))


@pytest.fixture(scope="module")
def trained(folder, tmp_path_factory):
    return diffunet.train(tiny(), folder, tmp_path_factory.mktemp("own") / "run", net=own).parent


def test_it_is_trained_counted_and_named(trained):
    config = read_toml(trained / "config.toml")
    assert config.model.custom.endswith("test_own_net.own")
    weights = storage.read_tensors(trained / "model/model.safetensors")[0]
    assert weights.keys() == own(config).state_dict().keys()
    net = own(config)
    assert memory.price(config, own).parameters == sum(parameter.numel() for parameter in net.parameters())


def test_the_same_random_start_and_the_same_bits_when_resumed(folder, trained, tmp_path):
    with pytest.raises(Stopped):
        diffunet.train(tiny(), folder, tmp_path / "parts", net=own, on_step=lambda p: p.step < 3)
    diffunet.train(tiny(), folder, tmp_path / "parts", net=own, resume=True)
    whole, parts = (
        storage.read_tensors(checkpoint.folder_of(run, 8) / "model.safetensors")[0]
        for run in (trained, tmp_path / "parts")
    )
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_it_samples_with_guidance_and_fills_in(trained, folder):
    pipe = diffunet.load(trained, net=own)
    plain, guided = (pipe.sample(2, seed=1, guidance=scale, steps=3, labels="disc") for scale in (1.0, 3.0))
    assert not np.array_equal(np.asarray(plain[0]), np.asarray(guided[0]))
    picture = folder / "disc/0.png"
    filled = pipe.inpaint(picture, box=(2, 2, 6, 6), steps=3, method="replace")[0]
    assert filled.size == (8, 8)
    assert pipe.fits() >= 1


def test_without_the_function_that_makes_it_nothing_is_done(trained, folder, tmp_path, capsys):
    with pytest.raises(UsageError, match=r"not one of diffunet's but .*test_own_net.own: give the function"):
        diffunet.load(trained)
    with pytest.raises(UsageError, match=r"the net of this model is .*test_own_net.own: give the function"):
        diffunet.train(tiny(train={"steps": 9}), folder, trained, resume=True)
    for words in (
        ["sample", trained, "--out", tmp_path / "x.png", "--num", 1],
        ["info", trained],
        ["convert", trained, tmp_path / "x.onnx"],
        ["train", folder, "--out", tmp_path / "more", "--init", trained],
        ["train", folder, "--out", tmp_path / "typed", "--model.custom", "somebody.elses"],
    ):
        with pytest.raises(SystemExit) as stop:
            main([str(word) for word in words])
        assert stop.value.code == 2, words
        assert "give the function that makes it" in capsys.readouterr().err
    assert not (tmp_path / "x.png").exists()


def test_another_net_is_refused(trained, run, folder, tmp_path):
    mine = shutil.copytree(run, tmp_path / "mine")  # a refusal is noted in the run's status
    with pytest.raises(CheckpointError, match=r"do not fit: first\.weight is"):
        diffunet.load(trained, net=lambda config: Wide(3, 3, 2))
    with pytest.raises(UsageError, match=r"has a net of diffunet's own, and net= was given: leave it out"):
        diffunet.load(run, net=lambda config: build.net(config))
    with pytest.raises(UsageError, match=r"has a net of diffunet's own, and net=.* was given: leave it out"):
        diffunet.train(tiny(train={"steps": 9}), folder, mine, resume=True, net=own)


@pytest.mark.parametrize("answers", [1, 4])
def test_an_output_of_another_shape_is_refused_where_broadcasting_would_hide_it(trained, folder, tmp_path, answers):
    def misfit(config):
        return Own(in_channels(config), answers, len(config.data.class_names))

    message = rf"the net answers \[2, {answers}, 8, 8\] to images \[2, 3, 8, 8\], not \[2, 3, 8, 8\]"
    with pytest.raises(UsageError, match=message):
        diffunet.train(tiny(), folder, tmp_path / "run", net=misfit)
    with pytest.raises(UsageError, match=message):
        diffunet.load(trained, net=misfit)


def test_another_function_is_named_in_the_log(trained, folder, tmp_path, caplog):
    def renamed(config):
        return own(config)

    options = {"net": renamed, "init": trained}
    diffunet.train(tiny(train={"steps": 1, "previews": 0}), folder, tmp_path / "run", **options)
    assert "was made with the net" in caplog.text
    assert "renamed" in caplog.text


def test_it_goes_on_from_another_run_of_the_same_net(trained, folder, tmp_path):
    diffunet.train(tiny(train={"steps": 1, "learning_rate": 1e-9}), folder, tmp_path / "more", net=own, init=trained)
    before, after = (
        storage.read_tensors(path)[0]
        for path in (trained / "model/model.safetensors", tmp_path / "more/checkpoints/step-00000001/model.safetensors")
    )
    assert all(torch.allclose(before[name], after[name], atol=1e-6) for name in before)


class Normed(Own):
    """With a batch norm, whose statistics are no parameters."""

    def __init__(self, channels: int, answers: int, classes: int) -> None:
        super().__init__(channels, answers, classes)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x, c_noise, label=None, augment=None):
        return super().forward(self.norm(x), c_noise, label, augment)


def test_statistics_of_a_batch_norm_are_learned(folder, tmp_path):
    def normed(config):
        return Normed(in_channels(config), out_channels(config), len(config.data.class_names))

    train = {"steps": 20, "checkpoint_every": 10}
    diffunet.train(tiny(train=train), folder, tmp_path / "run", net=normed)
    weights = storage.read_tensors(tmp_path / "run/model/model.safetensors")[0]
    assert weights["norm.num_batches_tracked"] == 20
    assert (weights["norm.running_var"] != 1).all()
    diffunet.load(tmp_path / "run", net=normed).sample(1)
