"""What training, sampling and evaluation ask of a device, held against what Apple's GPUs can do; none is here."""

import numpy as np
import pytest
import torch
from helpers.apple import Apple
from helpers.small import tiny
from safetensors.torch import load_file
from scipy import special

from diffunet import build, compute
from diffunet.diffusion import samplers
from diffunet.diffusion.losses import log_normal_cdf
from diffunet.diffusion.samplers import last
from diffunet.evaluation.features import train_classifier
from diffunet.inpainting import methods
from diffunet.training.learner import Learner
from diffunet.training.loop import train
from diffunet.training.optimizers import skip_by_themselves

pytestmark = pytest.mark.seconds

CPU = compute.choose("cpu", "fp32")
DDPM = {"schedule": "cosine", "target": "epsilon"}


def learner(**sections):
    train_ = {"batch_size": 4, "learning_rate": 1e-3, "ema_every": 0, "grad_accumulation": 1}
    config = tiny(**{"train": train_, **sections}).changed("data", class_names=("a", "b"))
    config = config.changed("model", attention_levels=(1,)).changed("diffusion", mean=(0.0,) * 3, sigma_data=0.5)
    denoiser = build.denoiser(config)
    return Learner(config, denoiser, CPU), denoiser, config


@pytest.mark.parametrize(
    "diffusion",
    [
        {}, {"learned_uncertainty": True}, {"task": "inpaint"}, {"schedule": "edm", "target": "edm"},
        DDPM, DDPM | {"learned_variance": True}, DDPM | {"weighting": "sigmoid"}, DDPM | {"weighting": "p2"},
        DDPM | {"learned_variance": True, "task": "inpaint"},
    ],
    ids=str,
)  # fmt: skip
def test_a_step_of_training(diffusion):
    made, *_ = learner(diffusion=diffusion, data={"augment": 0.0 if "task" in diffusion else 0.12})
    batch = made.imagined(4)
    made.step(0, [batch])  # tables that are kept are made on the CPU
    with Apple():
        outcome = made.step(1, [batch])
    assert outcome.loss.isfinite()


@pytest.mark.parametrize("sampler", build.SAMPLERS)
def test_every_sampler(sampler):
    _, denoiser, config = learner(diffusion=DDPM | {"learned_variance": True, "sampler": sampler})
    denoiser.eval().requires_grad_(False)
    sigmas = build.ladder(config.diffusion, denoiser.schedule, 4)
    x = sigmas[0].float() * torch.randn(2, 3, 8, 8)
    denoiser(x, sigmas[0])
    with Apple():
        x = last(samplers.sample(denoiser, x, sigmas, build.step(config.diffusion), lambda: torch.zeros(2, 3, 8, 8)))
    assert x.isfinite().all()


@pytest.mark.parametrize("method", ["repaint", "ddnm", "mmps", "replace"])
def test_every_way_to_fill_in(method):
    _, denoiser, config = learner()
    denoiser.eval().requires_grad_(False)
    way = methods.choose(config.diffusion, denoiser.schedule, methods.Choice(method, steps=3))
    keep, known = torch.arange(8) < 4, torch.zeros(2, 3, 8, 8)
    x = way.ladder[0].float() * torch.randn(2, 3, 8, 8)
    with Apple():
        x = last(way.walk(denoiser, known, keep, x, lambda: torch.zeros(2, 3, 8, 8)))
    assert x.isfinite().all()


def test_features_of_evaluate(monkeypatch):
    """Apple's GPUs have no float64: numbers come to the CPU first."""
    pictures = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3), dtype=np.uint8)
    trained = train_classifier(pictures, None, steps=2)
    wanted = trained.features(pictures)
    at_home, double = [], torch.Tensor.double

    def cpu(tensor):
        at_home.append(tensor.detach().clone())
        return at_home[-1]

    def refusing(tensor):
        if not any(tensor is each for each in at_home):
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64")
        return double(tensor)

    monkeypatch.setattr(torch.Tensor, "cpu", cpu)
    monkeypatch.setattr(torch.Tensor, "double", refusing)
    assert np.array_equal(trained.features(pictures), wanted)


def test_the_log_of_the_normal_distribution_and_its_slope():
    x = torch.cat([torch.linspace(-200, 12, 4241, dtype=torch.float64), torch.tensor([-1e4, -(2**0.5), 2**0.5, 40.0])])
    assert torch.allclose(log_normal_cdf(x), torch.from_numpy(special.log_ndtr(x.numpy())), rtol=1e-12, atol=1e-300)
    for dtype, rtol in ((torch.float64, 1e-6), (torch.float32, 1e-4)):
        at = x.to(dtype, copy=True).requires_grad_()
        log_normal_cdf(at).sum().backward()
        exact = np.exp(-(x.numpy() ** 2) / 2 - special.log_ndtr(x.numpy())) / np.sqrt(2 * np.pi)
        assert torch.allclose(at.grad.double(), torch.from_numpy(exact), rtol=rtol, atol=1e-30)


@pytest.fixture
def deaf(monkeypatch):
    """Fused AdamW that does not look at `found_inf`, as Apple's did not until June 2026."""
    step = torch.optim.AdamW.step

    def careless(self, *rest):
        self.found_inf = None
        return step(self, *rest)

    monkeypatch.setattr(torch.optim.AdamW, "step", careless)


def test_it_is_seen_whether_adamw_skips(deaf):
    assert not skip_by_themselves(torch.device("cpu"))


def test_adamw_skips_here():
    assert skip_by_themselves(torch.device("cpu"))


def test_a_step_that_is_not_finite_reaches_no_weight(deaf, folder, tmp_path):
    """By an optimizer that does not skip it itself, too: the same weights as by one that does."""
    calls = []

    def loss(denoised, x0, sigma):
        calls.append(1)
        value = (denoised.x0 - x0).square().mean(dim=(1, 2, 3))
        return value * float("nan") if len(calls) == 2 else value

    train(tiny(train={"steps": 3, "previews": 0}), folder, tmp_path / "run", loss=loss)
    weights = load_file(tmp_path / "run/checkpoints/step-00000003/model.safetensors")
    assert all(tensor.isfinite().all() for tensor in weights.values())
