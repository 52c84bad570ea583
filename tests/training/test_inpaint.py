"""Runs that learn to inpaint: their masks, resumed to the bit, begun from other models, and what they learn."""

import json
import logging

import numpy as np
import pytest
import torch
from helpers.launching import finish, launch
from helpers.small import tiny
from PIL import Image
from safetensors.torch import load_file

import diffunet
from diffunet import build, storage
from diffunet.commands.cli import main
from diffunet.config import read_toml
from diffunet.diffusion.denoiser import condition
from diffunet.errors import Stopped, UsageError
from diffunet.training import checkpoint, transfer
from diffunet.training.batches import Batches, Share
from diffunet.training.loop import train


def inpainting(**sections):
    """A tiny config that learns to inpaint."""
    return tiny(**sections | {"diffusion": {"task": "inpaint"} | sections.get("diffusion", {})})


@pytest.fixture(scope="module")
def inpainter(folder, tmp_path_factory):
    """A finished run that learned to inpaint."""
    out = tmp_path_factory.mktemp("runs") / "inpainter"
    train(inpainting(), folder, out)
    return out


@pytest.fixture
def batches(folder):
    """`batches(masks, rank, processes, passes, ...)`: of 12 images a step."""
    config = tiny()
    dataset, schedule = build.dataset(config.data, folder), build.schedule(config)

    def make(masks, rank=0, processes=1, passes=1, *, augment=0.0, batch_size=12, **more):
        options = {"fit": "random", "flip": True, "augment": augment, "class_names": ("disc", "square")} | more
        share = Share(7, batch_size, passes, rank, processes)
        return Batches(dataset, np.arange(40), schedule, share, tiny(data=options).data, 0.5, masks)

    return make


@pytest.mark.parametrize("augment", [0.0, 0.3])
def test_masks_change_no_other_draw_and_are_the_same_however_a_step_is_divided(batches, augment):
    seen = []
    for step in (0, 5):
        [plain] = batches(None, augment=augment).step(step)
        [whole] = batches("mixed", augment=augment).step(step)
        assert plain.keep is None
        for name in ("images", "sigma", "label", *(["augment"] if augment else [])):
            assert torch.equal(getattr(plain, name), getattr(whole, name))
        parts = [part for rank in range(2) for part in batches("mixed", rank, 2, 3, augment=augment).step(step)]
        assert torch.equal(torch.cat([part.keep for part in parts]), whole.keep)
        assert whole.keep.dtype == torch.bool
        assert whole.keep.shape == (12, 1, 8, 8)
        assert torch.equal(whole.to(torch.device("cpu")).keep, whole.keep)
        seen.append(whole.keep)
    assert not torch.equal(*seen)
    assert len({mask.numpy().tobytes() for mask in seen[0]}) > 6


def test_masks_are_of_the_kind_asked_for_and_a_tenth_is_all_hole(batches):
    [batch] = batches("half", batch_size=2000).step(3)
    known = batch.keep.float().mean((1, 2, 3))
    assert set(known.tolist()) == {0.0, 0.5}
    assert 140 < (known == 0).sum() < 260  # of 2,000: 200 and 4.5 deviations
    corners = batch.keep[:, 0, ::7, ::7].flatten(1)[known > 0]
    assert len(corners.unique(dim=0)) == 4  # upper, lower, left, right


def test_the_share_that_is_all_hole_is_the_one_asked_for(batches):
    shares = []
    for share in (0.0, 0.5, 1.0):
        [batch] = batches("half", batch_size=2000, all_hole=share).step(3)
        shares.append((~batch.keep).all(dim=(1, 2, 3)).float().mean().item())
    assert (shares[0], shares[2]) == (0.0, 1.0)
    assert abs(shares[1] - 0.5) < 0.05  # 4.5 deviations


def test_masks_of_the_held_out_images_are_the_same_every_time(batches):
    first, again = (batches("mixed").held_out(np.arange(9)) for _ in range(2))
    assert torch.equal(first.keep, again.keep)
    assert first.keep.shape == (9, 1, 8, 8)
    assert torch.equal(first.keep[:4], batches("mixed").held_out(np.arange(4)).keep)
    assert not torch.equal(first.keep, batches("mixed").step(0)[0].keep[:9])
    assert batches(None).held_out(np.arange(9)).keep is None


@pytest.mark.parametrize("accumulation", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_a_run_resumes_to_the_bit_and_cannot_change_what_it_learns(folder, tmp_path, accumulation):
    config = inpainting(train={"grad_accumulation": accumulation}, data={"augment": 0.3})
    train(config, folder, tmp_path / "whole")
    with pytest.raises(Stopped):
        train(config, folder, tmp_path / "stopped", on_step=lambda progress: progress.step < 5)
    for section, name, value in (("diffusion", "task", "generate"), ("data", "masks", "box")):
        with pytest.raises(UsageError, match=rf"{section}\.{name} = .*; it cannot become '{value}'"):
            train(config.changed(section, **{name: value}), folder, tmp_path / "stopped", resume=True)
    train(config, folder, tmp_path / "stopped", resume=True)
    for name in ("model", "ema", "optimizer"):
        whole, stopped = (
            load_file(checkpoint.folder_of(tmp_path / run, 8) / f"{name}.safetensors") for run in ("whole", "stopped")
        )
        assert all(torch.equal(whole[key], stopped[key]) for key in whole)
    lines = [[json.loads(line) for line in (tmp_path / run / "metrics.jsonl").open()] for run in ("whole", "stopped")]
    held_out = [[line["validation_loss"] for line in some if "validation_loss" in line] for some in lines]
    assert len(held_out[0]) == 2
    assert held_out[0] == held_out[1]


def test_a_loss_of_ones_own_sees_the_known_pixels_in_training_and_validation(folder, tmp_path):
    """Of half images half of the pixels are right; where all is hole, next to none."""
    right = {"training": [], "validation": []}

    def own(denoised, x0, sigma):
        where = "training" if torch.is_grad_enabled() else "validation"
        right[where] += (denoised.x0 == x0).float().mean((1, 2, 3)).tolist()
        return (denoised.x0 - x0).square().mean((1, 2, 3))

    config = inpainting(train={"steps": 4, "previews": 0}, data={"masks": "half", "held_out": 0.3})
    train(config, folder, tmp_path / "run", loss=own)
    assert len(right["training"]) == 4 * 6
    for shares in right.values():
        assert sum(abs(share - 0.5) < 0.05 for share in shares) > len(shares) / 2


@pytest.mark.slow
def test_two_processes_learn_what_one_does(folder, tmp_path):
    config = inpainting(train={"precision": "fp32", "previews": 0}, model={"dropout": 0.0})
    (tmp_path / "config.toml").write_text(config.to_toml())
    train(config, folder, tmp_path / "one")
    codes, said = finish(launch(2, [folder, "--config", tmp_path / "config.toml", "--out", tmp_path / "two"]))
    assert codes == [0, 0], said
    one, two = (load_file(tmp_path / name / "model/model.safetensors") for name in ("one", "two"))
    assert all(torch.allclose(one[key], two[key], atol=2e-4) for key in one)


def test_such_a_model_samples_and_says_what_it_is(folder, inpainter):
    config = read_toml(inpainter / "config.toml")
    assert (config.diffusion.task, config.data.masks) == ("inpaint", "mixed")
    pipe = diffunet.load(inpainter, device="cpu")
    assert pipe.denoiser.net.stem.weight.shape[1] == 2 * 3 + 1
    pictures = np.stack([np.asarray(picture) for picture in pipe.sample(4, seed=1)])
    assert pictures.shape == (4, 8, 8, 3)
    assert Image.open(inpainter / "samples/step-00000008.png").size == (2 * 8 + 3 * 2, 2 * 8 + 3 * 2)


@pytest.mark.long
def test_on_the_command_line(folder, tmp_path, capsys):
    words = (
        "train", folder, "--out", tmp_path / "run", "--task", "inpaint", "--data.masks", "half", "--image-size", 8,
        "--steps", 2, "--batch-size", 4, "--model.channels", 8, "--model.multipliers", 1, 2, "--train.previews", 0,
    )  # fmt: skip
    for more, code in ((["--data.cache", "off"], 0), (["--resume", "--steps", 3], 0), (["--task", "paint"], 2)):
        with pytest.raises(SystemExit) as stop:
            main([str(word) for word in (*words, *more)])
        assert stop.value.code == code
    assert read_toml(tmp_path / "run/config.toml").diffusion.task == "inpaint"
    said = capsys.readouterr().err
    assert "learns to inpaint, with random masks (half)" in said
    assert "--task takes one of generate, inpaint, not 'paint'; did you mean inpaint?" in said


# Begun from another model.


def begun(config, init):
    """The net of a run of `config` before its first step, as a denoiser."""
    torch.manual_seed(9)
    with_like = transfer.like_model(config, init).changed("data", class_names=("disc", "square"))
    denoiser = build.denoiser(with_like)
    transfer.copy_weights(init, denoiser.net, with_like)
    return denoiser.eval()


def some(n=5):
    """Images, sigmas, labels, and masks."""
    generator = torch.Generator().manual_seed(0)
    x, known = (torch.randn(n, 3, 8, 8, generator=generator) for _ in range(2))
    keep = torch.rand(n, 1, 8, 8, generator=generator) < 0.5
    return x, torch.logspace(-1, 1, n), torch.arange(n) % 3, condition(known, keep)


@torch.no_grad()
def test_begun_from_a_plain_model_it_first_says_the_same_whatever_it_is_told(run):
    x, sigma, label, told = some()
    plain, ours = storage.read_model(run).denoiser, begun(inpainting(), run)
    said = plain(x, sigma, label).x0
    for concat in (None, told):
        assert torch.allclose(ours(x, sigma, label, concat).x0, said, atol=1e-5)


def test_begun_from_a_plain_model_it_learns_to_listen(folder, run, tmp_path):
    train(inpainting(train={"steps": 3}), folder, tmp_path / "run", init=run)
    weight = load_file(checkpoint.folder_of(tmp_path / "run", 3) / "model.safetensors")["stem.weight"]
    assert (weight[:, 3:].flatten(2).abs().amax(2) > 0).all()  # known pixels and mask, to every channel


@torch.no_grad()
def test_begun_from_a_model_that_inpaints(inpainter, caplog):
    caplog.set_level(logging.INFO)
    x, sigma, label, told = some()
    old = storage.read_model(inpainter).denoiser
    assert torch.equal(begun(inpainting(), inpainter)(x, sigma, label, told).x0, old(x, sigma, label, told).x0)
    assert "learned to" not in caplog.text
    plain = begun(tiny(), inpainter)
    assert "learned to inpaint, and this run to generate" in caplog.text
    assert plain.net.in_channels == 3
    all_hole = torch.cat([x, condition(x, torch.zeros(5, 1, 8, 8, dtype=torch.bool))], dim=1)
    first, then = old.net.stem(all_hole), plain.net.stem(x)
    assert torch.allclose(first[..., 1:-1, 1:-1], then[..., 1:-1, 1:-1], atol=1e-5)  # the border is padded
    rest = [name for name in plain.net.state_dict() if not name.startswith("stem")]
    assert all(torch.equal(plain.net.state_dict()[name], old.net.state_dict()[name]) for name in rest)


@pytest.mark.slow
@torch.no_grad()
def test_what_is_known_tells_what_is_not(tmp_path):
    """Images of one grey each: of noise that hides it, D says the grey of the other half, where it is told that."""
    (tmp_path / "greys").mkdir()
    for i in range(64):
        Image.new("RGB", (8, 8), (4 * i,) * 3).save(tmp_path / f"greys/{i}.png")
    config = inpainting(
        train={"steps": 300, "batch_size": 16, "learning_rate": 3e-3, "previews": 0},
        data={"classes": False, "masks": "half"},
        model={"dropout": 0.0},
    )
    with torch.enable_grad():
        train(config, tmp_path / "greys", tmp_path / "run")
    denoiser = storage.read_model(tmp_path / "run").denoiser
    grey = torch.linspace(-0.9, 0.9, 7)[:, None, None, None].expand(7, 3, 8, 8)
    keep = torch.zeros(7, 1, 8, 8, dtype=torch.bool)
    keep[..., :4] = True
    sigma = torch.full((7,), 50.0)
    x = grey + 50 * torch.randn(7, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    told, blind = (denoiser(x, sigma, None, concat).x0 for concat in (condition(grey, keep), None))
    off = [(said - grey)[..., 4:].mean((1, 2, 3)).square().mean().sqrt() for said in (told, blind)]
    assert off[0] < 0.2
    assert off[1] > 0.4  # the greys' deviation is 0.6
