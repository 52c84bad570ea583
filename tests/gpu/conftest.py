"""Everything once on a GPU, in two minutes: a handful of steps and pictures of tiny nets.

    .venv/bin/pytest tests/gpu                              where there is a GPU
    DIFFUNET_TEST_DEVICE=cpu .venv/bin/pytest tests/gpu     to mend the tests themselves without one

Where there is neither they are skipped.
"""

import os

import pytest
import torch
from helpers.small import tiny

from diffunet import build, variables
from diffunet.training import defaults
from diffunet.training.learner import Learner
from diffunet.training.loop import train

ASKED = "DIFFUNET_TEST_DEVICE"

KINDS = {
    "plain": {},
    "inpaint": {"diffusion": {"task": "inpaint"}},
    # Of a DDPM schedule, whose levels are a table, and with the variational bound in its loss.
    "variance": {"diffusion": {"schedule": "cosine", "target": "v", "learned_variance": True}},
    # All that a step can have.
    "everything": {
        "diffusion": {"task": "inpaint", "learned_uncertainty": True},
        "data": {"augment": 0.5},
        "train": {"grad_accumulation": 2},
    },
}
"""What configs have beside what all tiny ones have."""


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
def config_of():
    """`config_of(kind, **train)`: one of `KINDS`, with values of its section train."""

    def make(kind="plain", **train):
        config = tiny(**KINDS[kind])
        return config.changed("train", **train) if train else config

    return make


@pytest.fixture(scope="session")
def learner_of(device):
    """`learner_of(config, how, loss)`: a `Learner` as training makes it, of two classes, ready for a step."""

    def make(config, how, loss=None):
        passes = config.train.grad_accumulation or 1
        config = defaults.resolve(
            config.changed("train", grad_accumulation=passes), images=40, class_names=("disc", "square"),
            mean=(0.0,) * config.data.channels, sigma_data=0.5, how=how,
        )  # fmt: skip
        torch.manual_seed(0)
        denoiser = build.denoiser(config)
        how.prepare(denoiser)
        return Learner(config, denoiser, how, loss)

    return make


@pytest.fixture(scope="session")
def trained(device, config_of, folder, tmp_path_factory):
    """`trained(kind)`: a run of one of `KINDS` on the device, the same for all tests."""
    runs = {}

    def make(kind):
        if kind not in runs:
            runs[kind] = tmp_path_factory.mktemp("gpu") / kind
            train(config_of(kind), folder, runs[kind], device=device)
        return runs[kind]

    return make
