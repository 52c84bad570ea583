"""What a run does and leaves behind."""

import json
import tomllib

import numpy as np
import pytest
import torch
from PIL import Image
from small import tiny

import diffunet
from diffunet import draws, storage
from diffunet.config import Config
from diffunet.errors import UsageError
from diffunet.training import defaults
from diffunet.training.ema import EMA
from diffunet.training.loop import train


def test_what_a_run_leaves_behind(run, folder):
    assert sorted(path.name for path in run.iterdir() if not path.name.startswith(".")) == [
        "checkpoints", "config.toml", "images.index", "metrics.jsonl", "model", "samples", "status.json",
    ]  # fmt: skip
    config = Config.model_validate(tomllib.loads((run / "config.toml").read_text()))
    assert config.data.class_names == ("disc", "square")
    pixels = np.stack([np.asarray(Image.open(path)) for path in folder.rglob("*.png")]) / 127.5 - 1
    assert config.diffusion.mean == pytest.approx(pixels.mean(axis=(0, 1, 2)))
    assert config.diffusion.sigma_data == pytest.approx(pixels.std(), rel=1e-3)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").open()]
    assert [line["step"] for line in lines if "loss" in line] == [2, 3, 4, 6, 8]
    assert lines[0]["learning_rate"] == pytest.approx(3e-4 * 2 / 3)
    assert any("validation_loss" in line for line in lines)
    status = json.loads((run / "status.json").read_text())
    assert (status["state"], status["step"], status["exit_code"]) == ("done", 8, 0)
    assert Image.open(run / "samples/step-00000008.png").size == (2 * 8 + 3 * 2, 2 * 8 + 3 * 2)
    _, metadata = storage.read_tensors(run / "model/model.safetensors")
    assert metadata == {"step": "8", "config": config.hash()}


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
    ema = EMA(net, halflife=40.0, ramp=0.1)
    expected, batch = net.weight.detach().clone(), 4
    for step in range(50):
        with torch.no_grad():
            net.weight.add_(torch.randn_like(net.weight))
        ema.update(net, step, batch, torch.tensor(0.0))
        beta = 0.5 ** (batch / min(40.0, 0.1 * (step + 1) * batch))
        expected = beta * expected + (1 - beta) * net.weight.detach()
        assert torch.allclose(ema.net.weight, expected, atol=1e-6)
        if step == 0:
            assert torch.allclose(ema.net.weight, net.weight, atol=1e-2)
    before = ema.net.weight.clone()
    ema.update(net, 50, batch, torch.tensor(1.0))  # a skipped step
    assert torch.equal(before, ema.net.weight)


def test_defaults_are_sensible_on_little_and_much_and_fit_a_small_card():
    for device, images in (("cpu", 100), ("cpu", 100_000), ("cuda", 100), ("cuda", 100_000)):
        for size in (16, 32, 64, 128, 256):
            config = defaults.resolve(
                Config().changed("data", image_size=size), images=images, class_names=(), mean=(0.0,) * 3,
                sigma_data=0.5, device=torch.device(device), precision="bf16",
            )  # fmt: skip
            assert config.data.flip == (images < 5000)
            assert (config.model.dropout > 0) == (images < 5000)
            assert 1 <= config.train.batch_size <= 256
            assert config.train.steps >= 10_000
    with pytest.raises(UsageError, match="must divide by 2 processes x 2 passes"):
        defaults.resolve(
            tiny(train={"batch_size": 6, "grad_accumulation": 2}), images=9, class_names=(), mean=(0.0,) * 3,
            sigma_data=0.5, device=torch.device("cpu"), precision="fp32", processes=2,
        )  # fmt: skip


def test_batches_are_the_draws_that_the_design_names(folder, tmp_path):
    from diffunet import build
    from diffunet.training.batches import Batches

    config = tiny()
    data = build.dataset(config, folder)
    schedule = build.schedule(config)

    def batches(rank, processes, passes):
        return Batches(
            data, np.arange(40), data.labels(("disc", "square")), 2, 0.5, schedule, 7, 12, passes, rank, processes, 8,
            "crop", True, (255, 255, 255), pin=False,
        )  # fmt: skip

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
