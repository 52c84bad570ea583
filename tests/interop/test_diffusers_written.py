"""Our models written as folders of diffusers: refused options, nets of other options, and its pipeline's samples."""

import json
import logging

import pytest
import torch
from helpers.unets import ATTENTION, DOWN, NETS, SMALL, blocks, config, difference, ours, peer, pipeline, theirs
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from diffunet import build
from diffunet.config import Config, preset
from diffunet.diffusion import samplers
from diffunet.diffusion.denoiser import bind
from diffunet.diffusion.guidance import threshold
from diffunet.errors import CheckpointError, UsageError
from diffunet.interop import diffusers, diffusers_options, diffusers_weights
from diffunet.storage import Model
from diffunet.training.defaults import architecture

# Our models, written.


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"model": {"norm_groups": None}}, "model.norm-groups .*--model.norm-groups 32"),
        ({"model": {"qk_norm": True}}, "model.qk-norm"),
        ({"model": {"multipliers": (2, 2)}}, "model.multipliers"),
        ({"model": {"multipliers": (0.5, 1), "norm_groups": 2}}, "model.multipliers"),
        ({"model": {"attention_levels": (0, 1), "num_heads": 2}}, "model.num-heads"),
        ({"model": {"multipliers": (1, 3), "attention_levels": (0, 1), "head_channels": 12}}, "model.head-channels"),
        ({"model": {"multipliers": (1, 1, 1, 1, 1)}}, "data.image-size 8"),
        ({"diffusion": {"task": "inpaint", "schedule": "linear", "target": "epsilon"}}, "diffusion.task inpaint"),
        ({"diffusion": {"schedule": "edm", "target": "edm"}}, "diffusion.schedule edm"),
        ({"diffusion": {"schedule": "edm", "target": "v"}}, "diffusion.schedule edm"),
        ({"diffusion": {"schedule": "flow", "target": "v"}}, "diffusion.schedule flow with target v"),
        ({"diffusion": {"schedule": "cosine", "target": "flow"}}, "diffusion.target flow on schedule cosine"),
        ({"diffusion": {"schedule": "cosine", "target": "edm"}}, "diffusion.target edm"),
        ({"diffusion": {"sigma_shift": 2.0}}, "diffusion.sigma-shift 2"),
        ({"data": {"image_size": 128}, "diffusion": {}}, "diffusion.sigma-shift 2"),
        (
            {"diffusion": {"schedule": "linear", "target": "v", "num_steps": 500, "rescale_timesteps": True}},
            "diffusion.rescale-timesteps",
        ),
    ],
)
def test_what_they_cannot_say_is_refused(tmp_path, changed, message):
    with pytest.raises(UsageError, match=message) as caught:
        diffusers.write(ours(config(**changed)), tmp_path / "out")
    assert "train with" in str(caught.value) or "take" in str(caught.value) or "of 1000" in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_the_classic_is_refused(tmp_path):
    c = Config.model_validate(
        {"model": {"net": "unet2015", "channels": 8, "multipliers": (1, 2), "attention_levels": ()}}
    )
    model = ours(config())
    with pytest.raises(UsageError, match=r"model\.net unet2015"):
        diffusers.write(Model(c, model.denoiser, 0), tmp_path / "out")


@st.composite
def configs(draw):
    """Draw the config of a net which a UNet2DModel can be."""
    levels = draw(st.integers(1, 3))
    first = draw(st.sampled_from([8, 16]))
    multipliers = [1, *(draw(st.sampled_from([1, 1.5, 2, 3])) for _ in range(levels - 1))]
    model = {
        "channels": first,
        "multipliers": multipliers,
        "num_blocks": draw(st.integers(1, 2)),
        "attention_levels": sorted(draw(st.sets(st.integers(0, levels - 1)))),
        "middle_attention": draw(st.booleans()),
        "norm_groups": draw(st.sampled_from([1, 2, 4])),
        "norm_eps": draw(st.sampled_from([1e-5, 1e-6, 1e-3])),
        "scale_shift": draw(st.booleans()),
        "resample": draw(st.sampled_from(["convolution", "asymmetric", "residual"])),
        "frequency_shift": draw(st.integers(0, 1)),
        **draw(st.sampled_from([{"num_heads": 1}, {"head_channels": 2}, {"head_channels": 4}, {"head_channels": 64}])),
    }
    learned = draw(st.booleans())
    names = tuple(f"class {i}" for i in range(draw(st.sampled_from([0, 0, 3]))))
    return Config.model_validate(
        {
            "model": model,
            "diffusion": {"schedule": "linear", "target": "epsilon", "learned_variance": learned, "mean": None},
            "data": {
                "image_size": 8, "channels": draw(st.sampled_from([1, 3, 4])), "class_names": names,
                "augment": draw(st.sampled_from([0.0, 0.1])),
            },
        }
    )  # fmt: skip


@settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(c=configs())
def test_any_net_that_they_can_be(tmp_path_factory, c):
    model, folder = ours(c), tmp_path_factory.mktemp("net")
    try:
        diffusers.write(model, folder)
    except UsageError as error:
        assume("heads of" not in str(error))
        raise
    unet = peer.UNet2DModel.from_pretrained(folder / "unet").eval()
    classes = len(c.data.class_names)
    assert difference(unet, model.denoiser.net, ((8, 8), (4, 12)), classes and classes + 1) < 1e-5
    back = diffusers.read(folder)
    assert back.config == c.changed("data", augment=0.0)
    weights = model.denoiser.net.state_dict()
    weights.pop("embedding.augment.weight", None)
    again = back.denoiser.net.state_dict()
    assert again.keys() == weights.keys()
    assert all(torch.equal(again[name], weights[name]) for name in weights)
    assert back.step == 7


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        (
            "diffusers",  # the default of train_unconditional.py
            {
                **blocks(DOWN, DOWN, DOWN, DOWN, ATTENTION, DOWN), "sample_size": 64,
                "block_out_channels": (128, 128, 256, 256, 512, 512), "layers_per_block": 2,
            },
        ),
        (
            "ddpm",
            NETS["google/ddpm-cifar10-32"] | {"block_out_channels": (128, 256, 256, 256), "norm_num_groups": 32},
        ),
    ],
)  # fmt: skip
def test_presets_are_their_nets(name, wanted):
    c = architecture(preset(name), torch.device("cpu"))
    with torch.device("meta"):
        net, unet = build.net(c), peer.UNet2DModel(**wanted)
        again = peer.UNet2DModel.from_config(diffusers_options.unet_options(c, net))
    shapes = {name: tensor.shape for name, tensor in unet.state_dict().items()}
    assert {name: tensor.shape for name, tensor in diffusers_weights.to_diffusers(net.state_dict()).items()} == shapes
    ignored = (
        "flip_sin_to_cos",
        "attn_norm_num_groups",
        "dropout",
    )  # always True here; the same in another form; only training
    for key, value in unet.config.items():
        if not key.startswith("_") and key not in ignored:
            assert json.dumps(again.config[key]) == json.dumps(value), key


def test_groups_left_open_that_are_one_number(tmp_path):
    """Groups of 16 channels each are one number where all widths are below 32."""
    narrow = {"norm_groups": None, "multipliers": (1,), "attention_levels": (0,), "scale_shift": True}
    model = ours(config(model=narrow))
    diffusers.write(model, tmp_path)
    assert difference(peer.UNet2DModel.from_pretrained(tmp_path / "unet").eval(), model.denoiser.net) < 1e-5
    assert diffusers.read(tmp_path).config.model.norm_groups is None


def test_labels_the_last_is_null(tmp_path, caplog):
    c = config(data={"classes": True, "class_names": ("cat", "dog")})
    model = ours(c)
    diffusers.write(model, tmp_path)
    assert "labels" in caplog.text
    unet = peer.UNet2DModel.from_pretrained(tmp_path / "unet").eval()
    x, t = torch.randn(1, 3, 8, 8), torch.tensor([5])
    with torch.no_grad():
        assert (unet(x, t, torch.tensor([2])).sample - model.denoiser.net(x, t.float())).abs().max() < 1e-5
    pipe = peer.DDPMPipeline.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="class_labels should be provided"):
        pipe(num_inference_steps=2)
    assert diffusers.read(tmp_path).config == c


def test_folder_that_was_changed_since(tmp_path):
    diffusers.write(ours(config()), tmp_path)
    pipeline(tmp_path, peer.UNet2DModel.from_pretrained(tmp_path / "unet"))
    assert diffusers.read(tmp_path).step == 7, "theirs wrote the same net"
    file = tmp_path / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"prediction_type": "sample"}))
    with pytest.raises(CheckpointError, match=r"diffunet\.json .* prediction_type: delete it"):
        diffusers.read(tmp_path)
    pipeline(tmp_path, theirs(SMALL | {"norm_eps": 1e-4}))
    with pytest.raises(CheckpointError, match=r"diffunet\.json .* delete it"):
        diffusers.read(tmp_path)
    (tmp_path / "diffunet.json").unlink()
    assert diffusers.read(tmp_path).config.model.norm_eps == 1e-4
    for content in ("{}", '{"format": "diffunet", "version": 1, "config": {"model": {"layers": 3}}}', "["):
        (tmp_path / "diffunet.json").write_text(content)
        with pytest.raises(CheckpointError, match=r"diffunet\.json"):
            diffusers.read(tmp_path)


def test_a_full_disk_leaves_what_was_there(tmp_path, monkeypatch):
    from diffunet.errors import ResourceError

    diffusers.write(ours(config()), tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(diffusers.files, "write_atomic", full)
    with pytest.raises(ResourceError, match="No space left"):
        diffusers.write(ours(config(), seed=1), tmp_path)
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


# Sampling: DDPMPipeline on the written folder, and our sampler with the same noise.


def their_chain(folder, steps):
    """Return what DDPMPipeline makes of seed 5 before it is clipped to an image, its timesteps, and the images."""
    pipe = peer.DDPMPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    assert not pipe.unet.training
    steps_made, step = [], pipe.scheduler.step

    def recording(*args, **options):
        steps_made.append(step(*args, **options))
        return steps_made[-1]

    pipe.scheduler.step = recording
    images = pipe(2, torch.Generator().manual_seed(5), steps, output_type="np").images
    return steps_made[-1].prev_sample, pipe.scheduler.timesteps, images


@torch.no_grad()
def our_chain(model, sigmas, sampler, start_scale):
    """Return the last x of our sampler with `sigmas` and the same noise; `start_scale` makes their first x ours."""
    generator = torch.Generator().manual_seed(5)

    def noise():
        return torch.randn(2, 3, 8, 8, generator=generator)

    denoise = bind(model.denoiser)
    if model.config.diffusion.threshold != "none":
        denoise = threshold(denoise, model.config.diffusion.threshold)
    return samplers.last(samplers.sample(denoise, noise() * start_scale, sigmas, sampler, noise))


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        pytest.param(
            {"schedule": "linear", "target": "epsilon", "threshold": "static"}, 1000, marks=pytest.mark.slow
        ),
        ({"schedule": "linear", "target": "epsilon", "num_steps": 50, "threshold": "static"}, 50),
        ({"schedule": "linear", "target": "epsilon", "num_steps": 50}, 50),
        ({"schedule": "linear", "target": "epsilon", "num_steps": 20, "threshold": "static"}, 20),
        ({"schedule": "linear", "target": "v", "beta_range": (1e-3, 0.3), "num_steps": 20}, 20),
        ({"schedule": "scaled-linear", "target": "x0", "num_steps": 100}, 20),
        ({"schedule": "cosine", "target": "v", "num_steps": 100}, 20),
        ({"schedule": "sigmoid", "target": "v", "num_steps": 100}, 20),
        ({"schedule": "cosine", "target": "x0", "num_steps": 100, "sigma_shift": 2.0}, 20),
        ({"schedule": "linear", "target": "v", "num_steps": 100, "zero_snr": True}, 20),
        ({"schedule": "sigmoid", "target": "v", "num_steps": 100, "zero_snr": True}, 20),
        ({"schedule": "linear", "target": "v", "num_steps": 1000, "rescale_timesteps": True}, 20),
        ({"schedule": "cosine", "target": "v", "num_steps": 20, "sampler": "ddpm-large"}, 20),
        ({"schedule": "cosine", "target": "v", "num_steps": 100, "sampler": "ddpm-large"}, 20),
        (
            {
                "schedule": "cosine", "target": "v", "num_steps": 100, "learned_variance": True,
                "sampler": "ddpm-learned",
            },
            20,
        ),
    ],
)  # fmt: skip
def test_their_pipeline_makes_what_ours_makes(tmp_path, options, steps, parity):
    c = config(diffusion=options)
    if c.diffusion.sampler == "unipc":
        c = c.changed("diffusion", sampler="ddpm")
    model = ours(c)
    diffusers.write(model, tmp_path)
    last, timesteps, images = their_chain(tmp_path, steps)
    noise = build.schedule(c)
    sigmas = torch.cat([noise.sigmas[timesteps], torch.zeros(1, dtype=torch.float64)])
    ladder = "trailing" if c.diffusion.sampler == "ddpm" else "leading"  # theirs draws noise last unless from t = 0
    assert torch.allclose(sigmas, build.ladder(build.sampling(c.diffusion, ladder=ladder), noise, steps), rtol=1e-6)
    mine = our_chain(model, sigmas, build.step(c.diffusion), (1 + sigmas[0] ** 2).sqrt())
    assert last.std() > 0.05
    tolerance = 2e-3 if c.diffusion.zero_snr else 2e-4  # theirs begins at sigma infinite, ours at 4096
    kind = f"{c.diffusion.schedule}{', zero-snr' if c.diffusion.zero_snr else ''}, {c.diffusion.sampler}"
    parity(f"diffusers DDPMPipeline, {kind}", ((mine - last).abs().max() / last.std()).item(), tolerance)
    assert abs(images - (mine / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()).max() < tolerance
    assert diffusers.read(tmp_path).config == c


def test_dynamic_threshold_is_theirs(tmp_path):
    diffusers.write(ours(config(diffusion={"schedule": "cosine", "target": "v", "threshold": "dynamic"})), tmp_path)
    scheduler = peer.DDPMPipeline.from_pretrained(tmp_path).scheduler
    x0 = torch.randn(1, 3, 8, 8) * 5  # beyond 1, as their sample_max_value would cut it by default
    clipped = scheduler._threshold_sample(x0)
    assert scheduler.config.thresholding
    assert (clipped.abs() < 0.9).float().mean() > 0.8
    (tmp_path / "diffunet.json").unlink()
    assert diffusers.read_config(tmp_path).diffusion.threshold == "dynamic"


def test_flow_through_their_pipeline(tmp_path, parity):
    c = config(diffusion={"schedule": "flow-logit-normal", "target": "flow"})
    model = ours(c)
    diffusers.write(model, tmp_path)
    last, timesteps, _ = their_chain(tmp_path, 10)
    t = timesteps.double() / 1000
    sigmas = torch.cat([build.schedule(c).sigma_at(t), torch.zeros(1, dtype=torch.float64)])
    mine = our_chain(model, sigmas, samplers.euler(0.0), 1 + sigmas[0])
    parity("diffusers DDPMPipeline, flow, euler", ((mine - last).abs().max() / last.std()).item(), 1e-4)
    (tmp_path / "diffunet.json").unlink()
    assert diffusers.read(tmp_path).config.diffusion.target == "flow"


def test_what_their_pipeline_does_otherwise_is_said(tmp_path, caplog):
    c = config(diffusion={"schedule": "scaled-linear", "target": "x0", "num_steps": 50, "mean": (0.5, 0.0, -0.4)})
    with caplog.at_level(logging.WARNING):
        diffusers.write(ours(c), tmp_path)
    assert "at most 50" in caplog.text
    assert "mean of the images" in caplog.text
