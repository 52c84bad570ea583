"""ONNX files under onnxruntime against the nets in them: at other sizes than the export's, and while sampling."""

import json
import sys

import numpy as np
import pytest
import torch
from helpers.small import tiny

from diffunet import build, storage
from diffunet.diffusion.denoiser import bind
from diffunet.diffusion.samplers import euler, sample
from diffunet.errors import ResourceError, UsageError
from diffunet.interop import onnx

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

SIZES = [(1, 16, 16), (3, 17, 33), (2, 5, 5), (4, 8, 40), (2, 1, 1)]
"""The batch size, height and width of inputs."""

CONFIGS = {
    "labels, attention, residual, learned variance": {
        "model": {"multipliers": (1, 2), "attention_levels": (1,), "num_heads": 2, "resample": "residual",
                  "qk_norm": True},
        "data": {"class_names": ("cat", "dog")},
        "diffusion": {"schedule": "linear", "target": "epsilon", "learned_variance": True},
    },
    "asymmetric, added embedding, inpainting": {
        "model": {"multipliers": (1, 1.5, 2), "attention_levels": (2,), "resample": "asymmetric", "scale_shift": False,
                  "norm_groups": 4, "frequency_shift": 1, "checkpointing": True},
        "data": {"channels": 1},
        "diffusion": {"task": "inpaint", "target": "v"},
    },
    "six levels, augmentation, learned uncertainty": {
        "model": {"multipliers": (1, 1, 1, 1, 1, 1), "attention_levels": (5,)},
        "data": {"augment": 0.1},
        "diffusion": {"schedule": "edm", "target": "edm", "sigma_data": 0.6, "learned_uncertainty": True},
    },
    "the classic": {
        "model": {"net": "unet2015", "multipliers": (1, 2, 4), "num_blocks": 2, "attention_levels": ()},
        "data": {"class_names": ("cat", "dog")},
        "diffusion": {"target": "x0"},
    },
}  # fmt: skip
QUICK = "labels, attention, residual, learned variance"


def random_model(**sections):
    """Return a model in which all weights are random."""
    config = tiny(**sections)
    net = build.net(config if config.model.attention_levels else config.changed("model", attention_levels=()))
    torch.manual_seed(0)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return storage.Model(config, build.denoiser(config, net).eval().requires_grad_(False), 12)


class Session(torch.nn.Module):
    """An ONNX file that is called like the net."""

    def __init__(self, path, net):
        super().__init__()
        self.session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        self.num_classes = net.num_classes

    def forward(self, x, c_noise, label=None, augment=None):
        inputs = {"x": x.float().numpy(), "c_noise": c_noise.float().numpy()}
        if self.num_classes:
            inputs["label"] = (torch.full((len(x),), self.num_classes) if label is None else label).numpy()
        return torch.from_numpy(self.session.run(None, inputs)[0])


@pytest.fixture(
    scope="module", params=[QUICK, *(pytest.param(n, marks=pytest.mark.slow) for n in CONFIGS if n != QUICK)]
)
def exported(request, tmp_path_factory):
    model = random_model(**CONFIGS[request.param])
    path = tmp_path_factory.mktemp("onnx") / "net.onnx"
    onnx.write(model, path)
    return model, path, Session(path, model.denoiser.net)


def test_equal_at_any_batch_and_image_size(exported, parity):
    model, _, session = exported
    net = model.denoiser.net
    for batch, height, width in SIZES:
        x = torch.randn(batch, net.in_channels, height, width)
        c_noise = 1000 * torch.rand(batch)
        for label in (None, torch.arange(batch) % (net.num_classes + 1)) if net.num_classes else (None,):
            want = net(x, c_noise, label)
            off = (session(x, c_noise, label) - want).abs().max() / want.abs().max()
            parity(f"onnxruntime, {model.config.model.net}, {model.config.diffusion.target}", off.item(), 1e-4)


def test_inputs_and_outputs_are_named(exported):
    model, _, session = exported
    net, config = model.denoiser.net, model.config
    names = {each.name: each.shape for each in session.session.get_inputs()}
    wanted = {"x": ["batch", net.in_channels, "height", "width"], "c_noise": ["batch"]}
    assert names == wanted | ({"label": ["batch"]} if config.data.class_names else {})
    assert list(names) == onnx.inputs(model)
    (answer,) = session.session.get_outputs()
    meaning = {"epsilon": "epsilon_and_variance", "v": "v", "edm": "edm", "x0": "x0"}[config.diffusion.target]
    assert (answer.name, answer.shape) == (meaning, ["batch", net.out_channels, "height", "width"])


def drawn(*shape):
    return torch.from_numpy(np.random.default_rng(0).normal(size=shape)).float()


def test_samples_as_the_net_in_our_denoiser(exported, parity):
    model, _, session = exported
    config = model.config
    sigmas = build.ladder(config.diffusion, model.denoiser.schedule, 6)
    noise = drawn(2, config.data.channels, 12, 9)
    label = torch.tensor([0, 1]) if config.data.class_names else None

    def last(denoiser):
        steps = sample(
            bind(denoiser, label), sigmas[0].float() * noise, sigmas, build.step(config.diffusion), lambda: noise
        )
        return list(steps)[-1][1]

    with torch.no_grad():
        ours, theirs = last(model.denoiser), last(build.denoiser(config, session))
    off = ((theirs - ours).abs().max() / ours.std()).item()
    parity(f"onnxruntime, {config.model.net}, sampling, {config.diffusion.target}", off, 1e-3)


def test_metadata_are_enough_to_sample_with(exported):
    """Euler with only numpy and onnxruntime, as onnx.py explains, gives what `samplers.euler` gives."""
    model, path, _ = exported
    config = model.config
    if config.diffusion.task == "inpaint":
        pytest.skip("generates with a mask, which `test_samples_as_the_net_in_our_denoiser` does")
    noise = drawn(3, config.data.channels, 8, 8)
    label = torch.tensor([0, 1, 2]) if config.data.class_names else None
    sigmas = build.ladder(config.diffusion, model.denoiser.schedule, config.diffusion.sample_steps)
    start = build.prior_mean(config) + sigmas[0].float() * noise
    with torch.no_grad():
        ours = list(sample(bind(model.denoiser, label), start, sigmas, euler(), lambda: noise))[-1][1]

    runtime = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    metadata = runtime.get_modelmeta().custom_metadata_map
    mean = np.array(json.loads(metadata["mean"]))[:, None, None]
    ladder = json.loads(metadata["ladder"])
    x = mean + ladder[0]["sigma"] * noise.numpy()
    for now, after in zip(ladder, [*ladder[1:], {"sigma": 0.0}], strict=True):
        inputs = {"x": (now["c_in"] * x).astype(np.float32), "c_noise": np.full(3, now["c_noise"], np.float32)}
        if json.loads(metadata["classes"]):
            inputs["label"] = np.array([0, 1, 2])
        (answer,) = runtime.run(None, inputs)
        denoised = now["c_skip"] * x + now["c_out"] * answer[:, : len(mean)]
        x = denoised + after["sigma"] / now["sigma"] * (x - denoised)
    np.testing.assert_allclose(x, ours, atol=1e-3 * ours.std().item())


def test_metadata_have_the_config(exported, tmp_path):
    """The metadata hold the config of the model folder, and nothing about the machine that wrote the file."""
    model, path, session = exported
    metadata = session.session.get_modelmeta().custom_metadata_map
    (tmp_path / storage.CONFIG).write_text(metadata["config"])
    assert storage.read_config(tmp_path) == model.config
    assert (metadata["step"], metadata["target"]) == ("12", model.config.diffusion.target)
    content = path.read_bytes()
    assert str(storage.__file__).encode() not in content
    assert b"layers.py" not in content
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.slow
def test_writes_over_one_that_is_there_and_with_a_second_file_for_large_weights(tmp_path, monkeypatch, capfd):
    model = random_model()
    path = tmp_path / "net.onnx"
    path.write_bytes(b"another")
    onnx.write(model, path)
    x, c_noise = torch.randn(1, 3, 8, 8), torch.tensor([3.0])
    want = model.denoiser.net(x, c_noise)
    torch.testing.assert_close(Session(path, model.denoiser.net)(x, c_noise), want, atol=1e-4, rtol=0)
    monkeypatch.setattr(onnx, "LARGEST", 1000)
    onnx.write(model, path)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["net.onnx", "net.onnx.data"]
    torch.testing.assert_close(Session(path, model.denoiser.net)(x, c_noise), want, atol=1e-4, rtol=0)
    assert capfd.readouterr() == ("", "")


def test_missing_packages_are_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(UsageError, match=r"pip install 'diffunet\[onnx\]'"):
        onnx.write(random_model(), tmp_path / "net.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_one_line_and_loses_nothing(tmp_path, monkeypatch):
    class Full:
        def save(self, path, external_data):
            raise OSError(28, "No space left on device")

    path = tmp_path / "net.onnx"
    path.write_bytes(b"before")
    monkeypatch.setattr(onnx, "_program", lambda model: Full())
    with pytest.raises(ResourceError, match="No space left"):
        onnx.write(random_model(), path)
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]
