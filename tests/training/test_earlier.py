"""The weaker model beside a model: which average it is, and that samples are guided by it."""

import shutil

import numpy as np
import pytest
import torch
from helpers.runs import stop_at
from helpers.small import tiny
from PIL import Image
from safetensors.torch import save_file

import diffunet
from diffunet import storage
from diffunet.commands.cli import main
from diffunet.errors import Stopped, UsageError
from diffunet.sampling import conditions
from diffunet.sampling.pipeline import Guidance
from diffunet.training import earlier
from diffunet.training.loop import train


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory):
    """A run of 40 steps without classes that keeps averages from step 2 on."""
    path = tmp_path_factory.mktemp("earlier") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(earlier, "FIRST", 2)
        train(config(), folder, path)
    return path


def config(**options):
    return tiny(
        data={"classes": False},
        diffusion={"sample_steps": 12},
        train={"steps": 40, "checkpoint_every": 40, "learning_rate": 5e-3, "ema_every": 10} | options,
    )


def test_the_weaker_model_is_the_average_nearest_to_an_eighth_of_the_run(run, folder, tmp_path):
    assert sorted(path.name for path in (run / "earlier").iterdir()) == [
        f"step-{step:08d}.safetensors" for step in (2, 4, 8, 16, 32)
    ]
    weights, about = storage.read_tensors(run / "model/weaker.safetensors")
    assert about == {"step": "4"}  # of 2, 4, 8, ... the nearest to 5
    assert all(tensor.dtype == torch.bfloat16 for tensor in weights.values())
    with pytest.raises(Stopped):
        train(config(), folder, tmp_path / "run", on_step=stop_at(3))
    exact, _ = storage.read_tensors(tmp_path / "run/checkpoints/step-00000004/ema.safetensors")
    assert all(torch.equal(weights[name], exact[name].bfloat16()) for name in exact)


def test_old_averages_go_and_a_run_too_short_has_none(run):
    assert [step for step in range(1, 600) if earlier.is_due(step)] == [64, 128, 256, 512]
    assert earlier.nearest(run, 600) is None  # 75 is more than twice 32
    assert earlier.nearest(run, 500).stem == "step-00000032"


def test_a_resumed_run_forgets_averages_of_later_steps(tmp_path):
    (tmp_path / "earlier").mkdir()
    for step in (2, 4, 8):
        (tmp_path / f"earlier/step-{step:08d}.safetensors").touch()
    earlier.forget_after(tmp_path, 4)
    assert len(list((tmp_path / "earlier").iterdir())) == 2


def test_a_scale_for_a_model_without_classes_is_of_the_weaker_model(run):
    pipe = diffunet.load(run)
    plain, guided = pipe.sample(2), pipe.sample(2, guidance=2.0)
    asked = Guidance(2.0, pipe.weaker, conditions.OWN_INTERVAL)
    assert same(guided, pipe.sample(2, guidance=asked))
    assert same(plain, pipe.sample(2, guidance=None))
    assert not same(guided, plain)
    # A guided D, written out: D_weaker + scale (D - D_weaker).
    x, sigma = torch.randn(2, 3, 8, 8), torch.tensor(1.0)
    better, worse = (each.denoiser(x, sigma).x0 for each in (pipe, pipe.weaker))
    d = conditions.denoising(pipe, conditions.chosen(2.0, pipe), "none")()(x, sigma).x0
    assert torch.allclose(d, worse + 2.0 * (better - worse), atol=1e-5)
    far = torch.tensor(10.0)
    assert torch.equal(conditions.denoising(pipe, asked, "none")()(x, far).x0, pipe.denoiser(x, far).x0)


def test_holes_are_filled_with_it_too(run):
    pipe, image = diffunet.load(run), np.full((8, 8, 3), 100, np.uint8)
    mask = np.zeros((8, 8), bool)
    mask[2:6, 2:6] = True

    def filled(**options):
        return pipe.inpaint(Image.fromarray(image), Image.fromarray(mask), method="replace", steps=6, **options)

    assert not same(filled(guidance=3.0), filled())


def test_a_model_without_one_is_not_guided_and_cannot_be(run, tmp_path):
    storage.export_model(tmp_path / "model", storage.read_config(run / "model"), storage.read_tensors(
        run / "model/model.safetensors")[0], 40)  # fmt: skip
    pipe = diffunet.load(tmp_path / "model")
    assert same(pipe.sample(1), diffunet.load(run).sample(1, guidance=1))
    with pytest.raises(UsageError, match="needs a model with classes, or a weaker model"):
        pipe.sample(1, guidance=2.0)


def same(a, b):
    return all(np.array_equal(*pair) for pair in zip(a, b, strict=True))


@pytest.mark.parametrize("how", ["cut", "of another net", "not finite"])
def test_a_damaged_one_is_said_and_left_out(run, tmp_path, caplog, how):
    shutil.copytree(run / "model", tmp_path / "model")
    path = tmp_path / "model/weaker.safetensors"
    tensors, _ = storage.read_tensors(path)
    if how == "cut":
        path.write_bytes(path.read_bytes()[:-9])
    elif how == "of another net":
        save_file({"weight": torch.zeros(2)}, path)
    else:
        save_file({name: tensor.float() * torch.inf for name, tensor in tensors.items()}, path)
    pipe = diffunet.load(tmp_path / "model")
    assert "cannot be guided by it" in caplog.text
    assert same(pipe.sample(1), diffunet.load(run).sample(1, guidance=1))
    with pytest.raises(UsageError, match="needs a model with classes, or a weaker model"):
        pipe.sample(1, guidance=2.0)


def test_what_leaves_the_weaker_model_out_says_so(run, folder, tmp_path, capsys, caplog):
    caplog.set_level("INFO")
    for words in (["--ema", "0.1"], []):
        name = "-".join(words) or "plain"
        with pytest.raises(SystemExit) as ended:
            main([str(word) for word in ("convert", run, tmp_path / name, *words)])
        assert not ended.value.code
        said = "without weaker.safetensors" in capsys.readouterr().err
        assert said == bool(words)
        assert (tmp_path / name / "weaker.safetensors").exists() == (not words)
    train(config(steps=1), folder, tmp_path / "run", init=run)
    assert "without the weaker model" in caplog.text
