"""Everything once on a GPU, in two minutes: a handful of steps and pictures of tiny nets.

    .venv/bin/pytest tests/gpu                              where there is a GPU
    DIFFUNET_TEST_DEVICE=cpu .venv/bin/pytest tests/gpu     to mend the tests themselves without one

Where there is neither they are skipped.
"""

import os

import pytest
import torch
from small import tiny

from diffunet import build, compute, variables
from diffunet.config import Config
from diffunet.training import defaults
from diffunet.training.learner import Learner
from diffunet.training.loop import train

ASKED = "DIFFUNET_TEST_DEVICE"

EVERYTHING = {
    "diffusion": {"task": "inpaint", "learned_uncertainty": True},
    "data": {"augment": 0.5},
    "train": {"grad_accumulation": 2},
}
"""A config in which a step has all that a step can have."""

VARIANCE = {"diffusion": {"schedule": "cosine", "target": "v", "learned_variance": True}}
"""One of a DDPM schedule, whose levels are a table, and with the variational bound in its loss."""


@pytest.fixture(scope="session")
def device():
    """The name of the device that everything is computed on."""
    name = os.environ.get(ASKED, "cuda")
    if ASKED not in os.environ and not torch.cuda.is_available():
        pytest.skip(f"no GPU is here; {ASKED}=cpu runs these tests on the CPU")
    with pytest.MonkeyPatch.context() as patch:
        if "CUBLAS_WORKSPACE_CONFIG" not in os.environ:
            patch.setenv("CUBLAS_WORKSPACE_CONFIG", "")  # so that it is taken back at the end
            del os.environ["CUBLAS_WORKSPACE_CONFIG"]
        variables.deterministic()  # before anything is computed: it is read only once
        yield name


@pytest.fixture(scope="session")
def cuda(device):
    """The same, where it is CUDA."""
    if not device.startswith("cuda"):
        pytest.skip(f"only CUDA can show this, and {device} is not it")
    return device


@pytest.fixture(scope="session")
def learner_of(device):
    """`learner_of(precision, loss, **sections)`: a `Learner` of a tiny net of two classes, ready for a step."""

    def make(precision="auto", loss=None, **sections):
        return learner(tiny(**sections), compute.choose(device, precision), loss)

    return make


def learner(config: Config, how: compute.Compute, loss=None) -> Learner:
    """A `Learner` of a config, as training makes it."""
    passes = config.train.grad_accumulation or 1
    config = defaults.resolve(
        config.changed("train", grad_accumulation=passes), images=40, class_names=("disc", "square"),
        mean=(0.0,) * config.data.channels, sigma_data=0.5, how=how,
    )  # fmt: skip
    torch.manual_seed(0)
    denoiser = build.denoiser(config)
    how.prepare(denoiser)
    return Learner(config, denoiser, how, loss)


@pytest.fixture(scope="session")
def trained(device, folder, tmp_path_factory):
    """`trained(name, **sections)`: a run of `tiny(**sections)` on the device; once for a name."""
    runs = {}

    def make(name, **sections):
        if name not in runs:
            runs[name] = tmp_path_factory.mktemp("gpu") / name
            train(tiny(**sections), folder, runs[name], device=device)
        return runs[name]

    return make
