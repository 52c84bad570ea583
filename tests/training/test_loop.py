"""What a run does and leaves behind."""

import json
import tomllib

import numpy as np
import pytest
import torch
from helpers.small import tiny
from PIL import Image

import diffunet
from diffunet import draws, storage
from diffunet.commands import arguments
from diffunet.compute import Compute
from diffunet.config import Config, preset
from diffunet.errors import UsageError
from diffunet.training import defaults, memory, transfer
from diffunet.training.ema import Average, exponential
from diffunet.training.loop import train


def test_what_a_run_leaves_behind(run, folder):
    assert sorted(path.name for path in run.iterdir() if not path.name.startswith(".")) == [
        "begun.json", "best", "checkpoints", "config.toml", "images.index", "images.png", "metrics.jsonl", "model",
        "report.html", "samples", "status.json",
    ]  # fmt: skip
    config = Config.model_validate(tomllib.loads((run / "config.toml").read_text()))
    assert config.data.class_names == ("disc", "square")
    pixels = np.stack([np.asarray(Image.open(path)) for path in folder.rglob("*.png")]) / 127.5 - 1
    assert config.diffusion.mean == pytest.approx(pixels.mean(axis=(0, 1, 2)))
    assert config.diffusion.sigma_data == pytest.approx(pixels.std(), rel=1e-3)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").open()]
    assert [line["step"] for line in lines if "loss" in line] == [2, 3, 4, 6, 8]
    assert lines[0]["learning_rate"] == pytest.approx(4e-3 * 2 / 3)
    assert any("validation_loss" in line for line in lines)
    status = json.loads((run / "status.json").read_text())
    assert (status["state"], status["step"], status["exit_code"]) == ("done", 8, 0)
    assert Image.open(run / "samples/step-00000008.png").size == (2 * 8 + 3 * 2, 2 * 8 + 3 * 2)
    _, metadata = storage.read_tensors(run / "model/model.safetensors")
    assert metadata == {"step": "8", "config": config.hash(), "finished": "yes"}


def test_the_written_config_makes_the_same_run(run, folder, tmp_path):
    train(Config.model_validate(tomllib.loads((run / "config.toml").read_text())), folder, tmp_path / "again")
    a, b = (storage.read_tensors(path / "model/model.safetensors")[0] for path in (run, tmp_path / "again"))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_training_leaves_the_callers_generators_alone(folder, tmp_path):
    torch.manual_seed(5)
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()
    train(tiny(train={"steps": 1, "previews": 1}), folder, tmp_path / "run")
    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(np.random.get_state()[1], numpy_before)


def test_accumulation_is_the_same_step(folder, tmp_path):
    options = {"model": {"dropout": 0.0}}
    nets = []
    for passes in (1, 3):
        config = tiny(train={"steps": 3, "grad_accumulation": passes, "precision": "fp32"}, **options)
        train(config, folder, tmp_path / str(passes))
        nets.append(storage.read_tensors(tmp_path / str(passes) / "checkpoints/step-00000003/model.safetensors")[0])
    for name in nets[0]:
        assert torch.allclose(nets[0][name], nets[1][name], atol=1e-5), name


@pytest.mark.long
def test_it_learns(folder, tmp_path):
    config = tiny(train={"steps": 150, "batch_size": 16, "learning_rate": 3e-3, "warmup": 10, "checkpoint_every": 150})
    train(config, folder, tmp_path / "run")
    losses = [line for line in map(json.loads, (tmp_path / "run/metrics.jsonl").open()) if "loss" in line]
    assert losses[-1]["loss"] < 0.6 * losses[0]["loss"]
    pipe = diffunet.load(tmp_path / "run")
    discs, squares = (
        np.mean([np.asarray(image).mean() for image in pipe.sample(8, labels=name, steps=10)])
        for name in ("disc", "square")
    )
    assert discs + 40 < squares  # discs are on dark, squares on bright


def test_a_loss_of_ones_own_that_leaves_the_uncertainty_alone_can_be_resumed(folder, tmp_path):
    def own(denoised, x0, sigma):
        return (denoised.x0 - x0).square().mean(dim=(1, 2, 3))

    for steps in (2, 3):
        config = tiny(diffusion={"learned_uncertainty": True}, train={"steps": steps, "previews": 0})
        train(config, folder, tmp_path / "run", loss=own, resume=steps == 3)
    assert diffunet.load(tmp_path / "run").config.diffusion.learned_uncertainty


def test_a_loss_of_ones_own(folder, tmp_path):
    seen = []

    def absolute(denoised, x0, sigma):
        seen.append((denoised.x0.shape, x0.min().item(), sigma.shape))
        return (denoised.x0 - x0).abs().mean(dim=(1, 2, 3))

    train(tiny(train={"steps": 1}), folder, tmp_path / "run", loss=absolute)
    assert seen[0][0] == (6, 3, 8, 8)
    assert seen[0][1] >= -1
    assert seen[0][2] == (6,)


def test_init_leaves_the_weighting_free_and_the_target_not(run, folder, tmp_path):
    config = tiny(diffusion={"weighting": "p2", "p2_gamma": 0.5}, train={"steps": 1, "previews": 0})
    train(config, folder, tmp_path / "run", init=run)
    found = diffunet.load(tmp_path / "run").config.diffusion
    assert (found.weighting, found.p2_gamma) == ("p2", 0.5)
    with pytest.raises(UsageError, match=r"--init takes diffusion\.target = 'flow'"):
        train(tiny(diffusion={"target": "v"}), folder, tmp_path / "other", init=run)


def test_init_takes_weights_and_matches_classes_by_name(run, folder, tmp_path):
    other = tmp_path / "pictures"
    for name in ("disc", "triangle", "zebra"):
        (other / name).mkdir(parents=True)
        for path in (folder / "disc").iterdir():
            (other / name / path.name).write_bytes(path.read_bytes())
    config = tiny(train={"steps": 1, "learning_rate": 1e-30})
    train(config, other, tmp_path / "run", init=run)
    before, after = (storage.read_tensors(path / "model/model.safetensors")[0] for path in (run, tmp_path / "run"))
    name = "embedding.label.weight"
    assert torch.allclose(after[name][0], before[name][0])  # disc
    assert torch.allclose(after[name][3], before[name][2])  # the null label
    assert after[name].shape[0] == 4
    assert all(torch.allclose(before[key], after[key]) for key in before if key != name)
    with pytest.raises(UsageError, match=r"--init takes model\.channels = 8"):
        train(tiny(model={"channels": 16}), folder, tmp_path / "clash", init=run)


def test_init_keeps_the_size_that_is_stated_though_it_is_the_default(run):
    assert transfer.like_model(preset("default"), run).data.image_size == 8
    assert transfer.like_model(preset("default"), run).model.dropout is None, "it depends on the number of images"
    assert transfer.like_model(preset("default").changed("data", image_size=64), run).data.image_size == 64
    base = preset("default")
    for words in (["--data.image-size", "64"], ["--data.image_size=64"]):
        assert transfer.like_model(arguments.stated(Config(**dict(base)), base, words), run).data.image_size == 64
    everything = Config.model_validate(base.model_dump())  # as tyro makes it: all fields count as set
    assert transfer.like_model(arguments.stated(everything, base, []), run).data.image_size == 8


def test_init_from_a_model_of_another_image_size(run, folder, tmp_path):
    config = tiny(train={"steps": 1, "learning_rate": 1e-30}, data={"image_size": 13})
    train(config, folder, tmp_path / "run", init=run)
    before, after = (storage.read_tensors(path / "model/model.safetensors")[0] for path in (run, tmp_path / "run"))
    assert all(torch.allclose(before[key], after[key]) for key in before)


@pytest.mark.parametrize(
    ("size", "levels"), [(64, (2, 3)), (32, (1, 2)), (28, (1, 2)), (48, (2, 3)), (16, (0, 1)), (5, ())]
)
def test_attention_goes_where_maps_are_nearest_to_what_was_asked_for(size, levels):
    config = defaults.architecture(Config().changed("data", image_size=size), torch.device("cpu"))
    assert config.model.attention_levels == levels


def test_ema_by_its_recursion():
    torch.manual_seed(0)
    net = torch.nn.Linear(3, 2)
    batch = 4
    ema, expected = Average(net, exponential(40.0, 0.1, batch)), net.weight.detach().clone()
    for step in range(50):
        with torch.no_grad():
            net.weight.add_(torch.randn_like(net.weight))
        ema.update()
        beta = 0.5 ** (batch / min(40.0, 0.1 * (step + 1) * batch))
        expected = beta * expected + (1 - beta) * net.weight.detach()
        assert torch.allclose(ema.net.weight, expected, atol=1e-6)
        if step == 0:
            assert torch.allclose(ema.net.weight, net.weight, atol=1e-2)


def resolved(config, *, device="cuda", images=100, gigabytes=1000, processes=1, precision="bf16", **others):
    """What `config` becomes on a device with so much free memory, which need not be there."""
    return defaults.resolve(
        config, images=images, class_names=(), mean=(0.0,) * 3, sigma_data=0.5, processes=processes,
        how=Compute(torch.device(device), precision), free=gigabytes * 2**30, **others,
    )  # fmt: skip


def sized(size, **train):
    return Config().changed("data", image_size=size).changed("train", **train)


COUNTED = {"grad_accumulation": 1, "ema_every": 0}
"""Options by which nothing is left to choose that depends on the memory that a net takes; counting it takes seconds."""


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_defaults_are_sensible_on_little_and_much(device):
    for images, size in ((100, 16), (100_000, 64), (100, 256)):
        config = resolved(sized(size, **COUNTED), device=device, images=images)
        assert config.data.flip == (images < 5000)
        assert not resolved(sized(size, **COUNTED), device=device, images=images, one_sided=True).data.flip
        assert (config.model.dropout > 0) == (images < 5000)
        assert config.train.precision == "bf16"


@pytest.mark.long
def test_the_batch_is_by_the_image_size_and_passes_by_memory():
    for size, batch in ((16, 128), (64, 128), (100, 64), (128, 64), (256, 32)):
        assert resolved(sized(size, grad_accumulation=1, ema_every=0)).train.batch_size == batch
    small, large = (resolved(sized(64), gigabytes=gigabytes) for gigabytes in (6, 75))
    assert small.train.batch_size == large.train.batch_size == 128
    assert small.train.learning_rate == large.train.learning_rate
    for config, free in ((small, 6), (large, 75)):
        how, one_pass = Compute(torch.device("cuda"), "bf16"), 128 // config.train.grad_accumulation
        assert memory.training_bytes(config, how, one_pass) < 0.9 * free * 2**30
    assert resolved(sized(64), gigabytes=75).train.grad_accumulation == 1
    assert resolved(sized(64), gigabytes=6).train.grad_accumulation > 1
    assert resolved(sized(64), device="cpu").train.batch_size == 32


@pytest.mark.slow
def test_blocks_are_checkpointed_above_128_pixels_where_a_card_is_small():
    assert resolved(sized(256), gigabytes=6).model.checkpointing
    assert not resolved(sized(256), gigabytes=75).model.checkpointing
    assert not resolved(sized(128), gigabytes=3).model.checkpointing
    classic = sized(256).changed("model", net="unet2015")
    assert not resolved(classic, gigabytes=3).model.checkpointing
    asked = sized(256).changed("model", checkpointing=False)
    assert not resolved(asked, gigabytes=6).model.checkpointing


def test_the_rate_is_by_the_width_of_the_net_and_what_is_said_stands():
    for channels, muon, adamw in (
        (32, 4e-3, 2e-3), (64, 4e-3, 2e-3), (96, 1e-3, 1e-3), (128, 1e-3, 1e-3), (192, 5e-4, 5e-4),
    ):  # fmt: skip
        config = sized(64, **COUNTED).changed("model", channels=channels)
        assert resolved(config).train.learning_rate == muon
        assert resolved(config.changed("train", optimizer="adamw")).train.learning_rate == adamw
        long = resolved(config.changed("train", optimizer="adamw", steps=10**6)).train
        assert long.learning_rate == adamw
    said = resolved(sized(64, learning_rate=1e-5, grad_accumulation=4, batch_size=64)).train
    assert (said.learning_rate, said.grad_accumulation, said.batch_size) == (1e-5, 4, 64)
    narrow = sized(64, batch_size="auto").changed("model", channels=32)
    assert (
        defaults.after_trial(narrow, 8, processes=4, steps=10**6).train.learning_rate == 2e-3
    )  # AdamW's, as nothing is resolved yet


@pytest.mark.parametrize(
    ("channels", "steps", "rate"),
    [
        (32, 1_500, 4e-3), (32, 3_000, 2.8e-3), (64, 6_000, 2e-3), (64, 24_000, 1e-3), (64, 10**6, 1e-3),
        (128, 10**6, 1e-3), (192, 10**6, 5e-4),
    ],
)  # fmt: skip
def test_muon_s_rate_is_lower_in_long_runs(channels, steps, rate):
    config = sized(64, **COUNTED).changed("model", channels=channels)
    assert resolved(config.changed("train", steps=steps)).train.learning_rate == rate
    timed = config.changed("train", steps=None, minutes=600)  # whose number of steps is only expected
    assert resolved(timed, expected=steps).train.learning_rate == rate


def test_a_batch_that_processes_and_passes_do_not_divide():
    assert resolved(sized(64, grad_accumulation=1), processes=3).train.batch_size == 144
    with pytest.raises(UsageError, match=r"by 2 processes x 2 passes; try 4 or 8, or --train.grad-acc.* 1"):
        resolved(sized(16, batch_size=6, grad_accumulation=2), processes=2)


def test_a_long_run_on_cuda_is_compiled_and_no_other():
    def chosen(device="cuda", **train):
        return resolved(sized(16, **COUNTED, **train), device=device).train.compile

    pytest.importorskip("triton")
    assert chosen(steps=100_000) == "on"
    assert chosen(steps=1000) == chosen(deterministic=True) == chosen(device="cpu") == "off"
    assert chosen(device="cpu", compile="on") == "on"


def test_passes_do_not_collapse_to_single_images(caplog):
    """Of three processes each would have had 43 images, a prime number."""
    for processes, gigabytes in ((3, 15), (7, 15), (3, 7)):
        config = resolved(sized(64), processes=processes, gigabytes=gigabytes).train
        each = config.batch_size // processes
        assert each % 8 == 0
        assert each // config.grad_accumulation >= 4
    assert "divides badly" not in caplog.text
    resolved(sized(64, batch_size=254), gigabytes=15)
    assert "--batch-size 254 divides badly: 127 passes of 2 images" in caplog.text


def test_averages_take_a_gigabyte_at_most():
    for channels, stored in ((16, 16), (128, 2), (512, 0)):
        config = resolved(sized(64, steps=1000, grad_accumulation=1).changed("model", channels=channels))
        every, pair = config.train.ema_every, 2 * 2 * memory.price(config).parameters
        assert stored == (1000 // every if every else 0) or stored == -(-1000 // every)
        assert stored * pair <= 10**9 < (stored + 1) * pair or stored == 16


def test_batches_are_the_draws_that_the_design_names(folder, tmp_path):
    from diffunet import build
    from diffunet.training.batches import Batches, Share

    config = tiny(data={"class_names": ("disc", "square"), "flip": True})
    data = build.dataset(config.data, folder)
    schedule = build.schedule(config)

    def batches(rank, processes, passes):
        return Batches(data, np.arange(40), schedule, Share(7, 12, passes, rank, processes), config.data, 0.5)

    for step in (0, 5):
        [whole] = batches(0, 1, 1).step(step)
        parts = [batch for rank in range(2) for batch in batches(rank, 2, 3).step(step)]
        assert torch.equal(torch.cat([batch.images for batch in parts]), whole.images)
        assert torch.equal(torch.cat([batch.sigma for batch in parts]), whole.sigma)
        assert torch.equal(torch.cat([batch.label for batch in parts]), whole.label)
        assert [batch.start for batch in parts] == [0, 2, 4, 6, 8, 10]
        indices = draws.order(7, np.arange(12) + 12 * step, 40)
        dropped = 0
        for place, index in enumerate(indices):
            picture = np.asarray(data.images[int(index)])
            mine = whole.images[place].numpy()
            assert np.array_equal(mine, picture) or np.array_equal(mine, picture[:, ::-1])
            dropped += whole.label[place].item() == 2
            assert whole.label[place].item() in (2, data.labels(("disc", "square"))[index])
        assert 0 < dropped < 12


@pytest.mark.parametrize("fit", ["crop", "pad"])
def test_images_that_lie_on_the_device_make_the_same_batches(folder, monkeypatch, fit):
    from dataclasses import replace

    from diffunet import build
    from diffunet.training.batches import Batches, Share

    options = {"fit": fit, "augment": 0.1, "class_names": ("disc", "square"), "flip": True}
    config = tiny(data=options, diffusion={"task": "inpaint"})
    data = build.dataset(config.data, folder)
    batches = Batches(data, np.arange(3, 40), build.schedule(config), Share(7, 12, 2), config.data, 0.5, "mixed")
    how = Compute(torch.device("cuda"))
    monkeypatch.setattr(Compute, "free_memory", lambda self: int(37 * 8 * 8 * 3 / 0.05) + 1)
    monkeypatch.setattr(
        Batches, "all_images", lambda self, device, made=Batches.all_images: made(self, torch.device("cpu"))
    )
    stored = batches.stored(how)
    assert stored.store.shape == (37, 8, 8, 3)
    for step in (0, 9):
        for plain, other in zip(batches.step(step), stored.step(step), strict=True):
            assert other.images.shape == (6, 2)
            a, b = plain.to(torch.device("cpu")), other.to(torch.device("cpu"))
            for name in ("images", "label", "sigma", "augment", "keep"):
                assert torch.equal(getattr(a, name), getattr(b, name)), name
    for kept in (
        replace(batches, data=config.data.model_copy(update={"fit": "random"})).stored(how),
        batches.stored(Compute(torch.device("cpu"))),
    ):
        assert kept.store is None
    monkeypatch.setattr(Compute, "free_memory", lambda self: int(37 * 8 * 8 * 3 / 0.05) - 100)
    assert batches.stored(how).store is None
