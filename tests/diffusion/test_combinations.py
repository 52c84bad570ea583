"""No function knows two of {target, sampler, guidance, inpainting}: they all go with each other."""

import ast
import itertools
from pathlib import Path

import pytest
import torch

from diffunet import build, draws
from diffunet.diffusion import samplers
from diffunet.diffusion.denoiser import EDM, X0, Denoiser, Epsilon, Flow, V, bind
from diffunet.diffusion.guidance import Pair, WithAndWithoutLabel, guided, threshold
from diffunet.diffusion.known_pixels import keep_known
from diffunet.diffusion.schedules import DDPMSchedule, karras
from diffunet.names import SAMPLERS

TARGETS = {"epsilon": Epsilon(), "x0": X0(), "v": V(), "flow": Flow(), "edm": EDM(0.5)}
FIRST_ORDER = ("ddpm", "ddpm-large", "ddpm-learned", "euler")
GUIDANCE = {
    "none": lambda strong, weak, label: bind(strong, label),
    "classifier-free": lambda strong, weak, label: guided(WithAndWithoutLabel(strong, label, Net.null_label), 2.0),
    "interval and rescale": lambda strong, weak, label: guided(
        WithAndWithoutLabel(strong, label, Net.null_label), 3.0, interval=(0.5, 5.0), rescale=0.7
    ),
    "autoguidance": lambda strong, weak, label: guided(Pair(bind(strong, label), bind(weak, label)), 2.0),
}
INPAINTING = ("none", "replace", "with noise")


class Net(torch.nn.Module):
    """As small as can be with labels and a learned variance."""

    null_label = 2

    def __init__(self, seed):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.weight = torch.nn.Parameter(0.3 * torch.randn(2, 1, 3, 3, generator=generator))
        self.label = torch.nn.Parameter(torch.randn(3, generator=generator))

    def forward(self, x, c_noise, label=None, augment=None):
        told = self.label[label][:, None, None, None] + c_noise[:, None, None, None] / 1000
        return torch.tanh(torch.nn.functional.conv2d(x, self.weight, padding=1) + told)


@pytest.mark.seconds
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_full_product(sampler):
    """Targets x samplers x guidance x inpainting: finite everywhere, and known pixels exact where there are any."""
    ladder, label = karras(0.05, 20.0, 3), torch.tensor([0, 1])
    generator = torch.Generator().manual_seed(0)
    known, keep = (torch.rand(2, 1, 4, 4, generator=generator) for _ in range(2))
    keep = keep < 0.5
    step, ends = build.SAMPLERS[sampler].make(), []
    for target, guide, inpainting in itertools.product(TARGETS, GUIDANCE, INPAINTING):
        if inpainting == "with noise" and sampler not in FIRST_ORDER:
            continue
        strong, weak = (
            Denoiser(Net(seed), TARGETS[target], DDPMSchedule(), learned_variance=True).requires_grad_(False)
            for seed in (0, 1)
        )
        denoise = threshold(GUIDANCE[guide](strong, weak, label), "dynamic")
        noise = draws.streams(0, range(2), (1, 4, 4))
        if inpainting != "none":
            denoise = keep_known(denoise, known, keep, noise if inpainting == "with noise" else None)
        end = samplers.last(samplers.sample(denoise, ladder[0] * noise(), ladder, step, noise))
        where = f"{target}, {guide}, {inpainting}"
        assert end.isfinite().all(), where
        assert (end.abs() <= 1).all(), where  # the last step gives D itself
        assert inpainting == "none" or torch.equal(end[keep], known[keep]), where
        ends.append((where, end))
    for (one, a), (other, b) in itertools.combinations(ends, 2):
        assert not torch.equal(a, b), (one, other)  # each part had its say


DIFFUSION = Path(samplers.__file__).parent

KNOWS = {
    # What each may import of diffunet.diffusion. Those three know what a denoiser looks like, and not each other.
    "schedules": {},
    "denoiser": {"schedules": {"Schedule"}},
    "samplers": {"denoiser": {"Denoise", "Denoised"}},
    "known_pixels": {"denoiser": {"Denoise", "Denoised"}, "samplers": {"State", "Step", "StepResult"}},
    "guidance": {"denoiser": {"Conditional", "Denoise", "Denoised", "bind"}},
    "tiling": {"denoiser": {"Condition", "Denoised", "Denoiser"}},
}


@pytest.mark.parametrize("module", KNOWS)
def test_what_each_module_knows(module):
    found = {}
    for node in ast.walk(ast.parse((DIFFUSION / f"{module}.py").read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("diffunet.diffusion."):
            found.setdefault(node.module.rpartition(".")[2], set()).update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        assert not (isinstance(node, ast.ImportFrom) and node.level), "relative imports would go unseen"
        assert not any(name.startswith("diffunet.diffusion") for name in names)
    assert found.keys() <= KNOWS[module].keys()
    assert all(found[name] <= KNOWS[module][name] for name in found)


@pytest.mark.parametrize("module", ["samplers", "known_pixels", "guidance", "tiling"])
def test_no_target_is_named_outside_the_denoiser(module):
    words = {node.id for node in ast.walk(ast.parse((DIFFUSION / f"{module}.py").read_text())) if hasattr(node, "id")}
    words |= {
        node.attr for node in ast.walk(ast.parse((DIFFUSION / f"{module}.py").read_text())) if hasattr(node, "attr")
    }
    assert not words & {"Epsilon", "X0", "V", "Flow", "EDM", "c_skip", "c_out", "c_in", "target"}
