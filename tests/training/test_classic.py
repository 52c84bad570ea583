"""The classic U-Net as a backbone: the same loop, checkpoints, commands and Python as the other net."""

import numpy as np
import pytest
import torch
from helpers.small import tiny

import diffunet
from diffunet.commands import info
from diffunet.config import Config, preset
from diffunet.nn.unet2015 import UNet2015
from diffunet.training import defaults
from diffunet.training.loop import train


def classic(**sections):
    """As `tiny`, with the classic net."""
    model = {"net": "unet2015", "channels": 8, "multipliers": [1, 2]}
    content = tiny().model_dump(exclude_unset=True)
    for section, values in sections.items():
        content.setdefault(section, {}).update(values)
    return Config.model_validate(content | {"model": model})


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("classic") / "run"
    train(classic(), folder, out)
    return out


def test_trains_samples_and_inpaints(run):
    pipe = diffunet.load(run)
    assert isinstance(pipe.denoiser.net, UNet2015)
    assert pipe.denoiser.net.padding == "same"
    pictures = pipe.sample(2, steps=3)
    assert [picture.size for picture in pictures] == [(8, 8)] * 2
    picture = pictures[0]
    filled = pipe.inpaint(picture, box=(2, 2, 5, 6), steps=3)[0]
    same = np.asarray(filled) == np.asarray(picture)
    same[2:6, 2:5] = True
    assert same.all()


def test_resumes_where_it_stopped(run, folder, tmp_path):
    cut = tmp_path / "cut"
    steps = classic().train.steps
    train(classic(train={"steps": steps // 2}), folder, cut)
    train(classic(), folder, cut, resume=True)
    whole, resumed = (diffunet.load(out).denoiser.net.state_dict() for out in (run, cut))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_learns_to_inpaint_from_its_own_weights(run, folder, tmp_path):
    out = tmp_path / "inpainter"
    train(classic(diffusion={"task": "inpaint"}), folder, out, init=run)
    pipe = diffunet.load(out)
    assert pipe.denoiser.net.in_channels == 7
    assert pipe.inpaint(pipe.sample(1, steps=2)[0], box=(0, 0, 4, 4), steps=2)


def test_chosen_for_you():
    config = Config().changed("model", net="unet2015")
    sizes = {8: (1, 2), 16: (1, 2, 4), 32: (1, 2, 4, 8), 64: (1, 2, 4, 8, 16), 512: (1, 2, 4, 8, 16)}
    for size, multipliers in sizes.items():
        model = defaults.architecture(config.changed("data", image_size=size), torch.device("cpu")).model
        assert (model.multipliers, model.attention_levels) == (multipliers, ())


def test_info_shows_each_step(monkeypatch):
    monkeypatch.setattr(info, "_time", lambda *_: None)  # seconds
    lines = "\n".join(info.describe("unet2015", 512, "cpu"))
    shapes = [f"{64 * 2**k} x {512 // 2**k} x {512 // 2**k}" for k in range(5)]
    places = [lines.index(shape) for shape in shapes]
    assert places == sorted(places)
    assert sum(lines.count(f"down.{k}.pool") for k in range(4)) == 4
    assert sum(lines.count(f"up.{k}.up") for k in range(4)) == 4
    assert preset("unet2015").model.channels == 64
