"""Schedulers in folders of diffusers, and folders that are damaged or that our config cannot express."""

import json
import shutil
import zipfile
from pathlib import Path

import pytest
import torch
from helpers.unets import ATTENTION, DOWN, RESIDUAL, SMALL, WEIGHTS, peer, pipeline, theirs
from safetensors.torch import load_file, save_file

from diffunet import build
from diffunet.errors import CheckpointError
from diffunet.interop import diffusers, diffusers_options

# Schedulers.


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return pipeline(tmp_path_factory.mktemp("saved") / "small", theirs(SMALL))


@pytest.fixture
def small(saved, tmp_path):
    """Return a pipeline folder of diffusers that a test may damage."""
    return shutil.copytree(saved, tmp_path / "small")


@pytest.mark.parametrize(
    ("scheduler", "options", "wanted"),
    [
        ("DDPMScheduler", {}, {"schedule": "linear", "beta_range": None, "target": "epsilon", "threshold": "static"}),
        ("DDPMScheduler", {"clip_sample": False, "beta_end": 0.03}, {"beta_range": (1e-4, 0.03), "threshold": "none"}),
        ("DDPMScheduler", {"thresholding": True, "sample_max_value": 3.0}, {"threshold": "dynamic"}),
        ("DDPMScheduler", {"thresholding": True, "clip_sample": False}, {"threshold": "static"}),
        ("DDIMScheduler", {"beta_schedule": "squaredcos_cap_v2"}, {"schedule": "cosine", "threshold": "static"}),
        (
            "DDIMScheduler",
            {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "timestep_spacing": "trailing"},
            {"zero_snr": True, "target": "v"},
        ),
        ("PNDMScheduler", {"skip_prk_steps": True}, {"target": "epsilon", "threshold": "none"}),
        (
            "EulerDiscreteScheduler",
            {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
            {"schedule": "scaled-linear", "beta_range": None},
        ),
        ("EulerAncestralDiscreteScheduler", {}, {"schedule": "linear"}),
        ("HeunDiscreteScheduler", {}, {"schedule": "linear", "beta_range": (0.00085, 0.012)}),
        ("LMSDiscreteScheduler", {"num_train_timesteps": 500}, {"num_steps": 500, "beta_range": (1e-4, 0.02)}),
        ("DPMSolverMultistepScheduler", {"prediction_type": "sample"}, {"target": "x0"}),
        ("UniPCMultistepScheduler", {}, {"target": "epsilon"}),
        ("DEISMultistepScheduler", {}, {"target": "epsilon"}),
        ("DPMSolverSinglestepScheduler", {}, {"target": "epsilon"}),
        ("FlowMatchEulerDiscreteScheduler", {}, {"schedule": "flow", "target": "flow"}),
        ("FlowMatchHeunDiscreteScheduler", {}, {"schedule": "flow", "target": "flow"}),
    ],
)
def test_schedulers(small, scheduler, options, wanted):
    made = getattr(peer, scheduler)(**options)
    made.save_pretrained(small / "scheduler")
    config = diffusers.read_config(small)
    d = config.diffusion
    assert {name: getattr(d, name) for name in wanted} == wanted
    assert (d.sampler, d.sample_steps, d.mean, d.sigma_shift) == ("unipc", 15, (0, 0, 0), 1)
    assert config.data.reading == 2, "profiles of images count, as in a new run"
    if hasattr(made, "alphas_cumprod"):
        noise = build.schedule(config)
        alpha_bar = made.alphas_cumprod.double()[:-1]  # theirs ends with 0 or 2^-24 at zero terminal SNR
        assert torch.allclose(noise.alpha_bar[:-1], alpha_bar, rtol=1e-3, atol=1e-6)
    bare = {"_class_name": scheduler} | options  # a file may leave out the options that have their defaults
    (small / "scheduler" / "scheduler_config.json").write_text(json.dumps(bare))
    assert diffusers.read_config(small) == config


@pytest.mark.parametrize(("options", "count"), [({}, 1), ({"thresholding": True}, 0), ({"clip_sample": False}, 0)])
def test_a_range_to_clip_to_that_is_not_ours_is_told(options, count, caplog):
    content = {"_class_name": "DDPMScheduler", "clip_sample_range": 2.5} | options
    unet = diffusers_options.read_unet({"_class_name": "UNet2DModel", **SMALL}, "it")
    diffusers_options.config(unet, diffusers_options.read_scheduler(content, "it"), "it")
    assert caplog.text.count("clip_sample_range 2.5 is left out") == count


# What cannot be read.


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("unet/config.json", {"_class_name": "UNet2DConditionModel"}, "UNet2DConditionModel"),
        ("unet/config.json", {"time_embedding_type": "fourier"}, "time_embedding_type 'fourier' cannot be said"),
        ("unet/config.json", {"time_embedding_dim": 48}, "time_embedding_dim 48"),
        ("unet/config.json", {"center_input_sample": True}, "center_input_sample True"),
        ("unet/config.json", {"mid_block_type": None}, "mid_block_type None"),
        ("unet/config.json", {"mid_block_scale_factor": 1.4}, "mid_block_scale_factor"),
        ("unet/config.json", {"act_fn": "gelu"}, "act_fn 'gelu'"),
        ("unet/config.json", {"class_embed_type": "timestep"}, "class_embed_type 'timestep'"),
        ("unet/config.json", {"norm_num_groups": None}, "norm_num_groups None"),
        ("unet/config.json", {"norm_num_groups": 3}, "cannot be normalised in 3 groups"),
        ("unet/config.json", {"attn_norm_num_groups": 8}, "attn_norm_num_groups 8"),
        ("unet/config.json", {"resnet_time_scale_shift": "scale_shift"}, "attn_norm_num_groups None"),
        ("unet/config.json", {"resnet_time_scale_shift": "spatial"}, "resnet_time_scale_shift 'spatial'"),
        ("unet/config.json", {"attention_head_dim": 3}, "attention_head_dim 3"),
        ("unet/config.json", {"downsample_padding": 2}, "downsample_padding 2"),
        ("unet/config.json", {"freq_shift": 2}, "freq_shift 2"),
        ("unet/config.json", {"down_block_types": ["SkipDownBlock2D", DOWN]}, "SkipDownBlock2D"),
        ("unet/config.json", {"down_block_types": ["UpBlock2D", DOWN]}, "there is no 'UpBlock2D'"),
        ("unet/config.json", {"down_block_types": [DOWN]}, "down_block_types"),
        ("unet/config.json", {"down_block_types": [ATTENTION, DOWN]}, "up_block_types"),
        ("unet/config.json", {"down_block_types": [RESIDUAL, DOWN]}, "down_block_types"),
        ("unet/config.json", {"sample_size": [32, 64]}, "sample_size"),
        ("unet/config.json", {"in_channels": 2}, "in_channels 2"),
        ("unet/config.json", {"out_channels": 1}, "out_channels 1"),
        ("unet/config.json", {"out_channels": 6}, "variance_type"),
        ("unet/config.json", {"layers_per_block": [1, 2]}, "layers_per_block"),
        ("unet/config.json", {"layers_per_block": 0}, "layers_per_block 0"),
        ("unet/config.json", {"block_out_channels": [-8, 16]}, "block_out_channels"),
        ("unet/config.json", {"block_out_channels": [10**9, 10**9]}, "block_out_channels"),
        ("unet/config.json", {"block_out_channels": [2048, 131072]}, "do not fit"),
        ("unet/config.json", {"block_out_channels": [8, 16] * 6}, "block_out_channels"),
        ("unet/config.json", {"block_out_channels": "wide"}, "block_out_channels 'wide'"),
        ("unet/config.json", {"block_out_channels": [16, 16]}, "do not fit: conv_in.bias is .8., not .16."),
        ("unet/config.json", {"num_class_embeds": 10**9}, "num_class_embeds"),
        ("unet/config.json", {"num_class_embeds": 10}, "class_embedding.weight is missing"),
        ("unet/config.json", {"norm_eps": float("nan")}, "norm_eps"),
        ("unet/config.json", {"new_option": 2}, "new_option 2 is not known here"),
        ("scheduler/scheduler_config.json", {"_class_name": "EDMEulerScheduler"}, "EDMEulerScheduler"),
        ("scheduler/scheduler_config.json", {"_class_name": "ScoreSdeVeScheduler"}, "ScoreSdeVeScheduler"),
        ("scheduler/scheduler_config.json", {"_class_name": 3}, "_class_name"),
        ("scheduler/scheduler_config.json", {"beta_schedule": "sigmoid"}, "beta_schedule 'sigmoid'"),
        ("scheduler/scheduler_config.json", {"beta_start": 2}, "beta_start 2"),
        ("scheduler/scheduler_config.json", {"trained_betas": [0.1, 0.2]}, "trained_betas"),
        ("scheduler/scheduler_config.json", {"prediction_type": "flow_prediction"}, "prediction_type"),
        ("scheduler/scheduler_config.json", {"predict_epsilon": False}, "predict_epsilon False"),
        ("scheduler/scheduler_config.json", {"rescale_betas_zero_snr": True}, "zero-snr"),
        ("scheduler/scheduler_config.json", {"variance_type": "learned_range"}, "variance_type 'learned_range'"),
        ("scheduler/scheduler_config.json", {"use_flow_sigmas": True}, "use_flow_sigmas True"),
        ("scheduler/scheduler_config.json", {"timestep_type": "continuous"}, "timestep_type 'continuous'"),
        ("scheduler/scheduler_config.json", {"num_train_timesteps": 10**9}, "num_train_timesteps"),
        ("scheduler/scheduler_config.json", {"snr_shift_scale": 3.0}, "snr_shift_scale 3.0 is not known here"),
        (
            "scheduler/scheduler_config.json",
            {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0},
            "shift 3.0 cannot be said here",
        ),
        ("model_index.json", {"vqvae": ["diffusers", "VQModel"]}, "vqvae"),
    ],
)
def test_refused_by_name(small, file, changes, message):
    content = json.loads((small / file).read_text())
    if changes.get("_class_name") == "FlowMatchEulerDiscreteScheduler":
        content = {}
    (small / file).write_text(json.dumps(content | changes))
    with pytest.raises(CheckpointError, match=message) as caught:
        diffusers.read(small)
    assert str(small) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("file", ["model_index.json", "unet/config.json", "scheduler/scheduler_config.json"])
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"3", b"\xff\xfe", b"null", b"[" * 100_000, b"{" + b" " * 2**25])
def test_damaged_json(small, file, content):
    (small / file).write_bytes(content)
    with pytest.raises(CheckpointError, match=Path(file).name):
        diffusers.read(small)


def test_missing_files(small):
    (small / "unet" / WEIGHTS).unlink()
    with pytest.raises(CheckpointError, match="has no weights"):
        diffusers.read(small)
    (small / "scheduler" / "scheduler_config.json").unlink()
    with pytest.raises(CheckpointError, match=r"scheduler_config\.json"):
        diffusers.read(small)
    (small / "unet" / "config.json").unlink()
    with pytest.raises(CheckpointError):
        diffusers.read(small)
    with pytest.raises(CheckpointError):
        diffusers.read(small / "nothing")


class Code:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (Path.touch, (self.marker,))


def damaged(kind, folder, weights):
    """Write weights that are damaged in the way `kind`, and return what the error message must contain."""
    path, binary = folder / WEIGHTS, folder / "diffusion_pytorch_model.bin"
    if kind == "truncated":
        save_file(weights, path)
        path.write_bytes(path.read_bytes()[:-1000])
        return "cannot be read"
    if kind == "huge":  # a header that claims 4 TiB
        header = json.dumps({"conv_in.weight": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}).encode()
        path.write_bytes(len(header).to_bytes(8, "little") + header)
        return "cannot be read"
    if kind == "not finite":
        weights["conv_in.bias"][3] = float("nan")
        save_file(weights, path)
        return "stem.bias is not finite"
    if kind == "integers":
        save_file(weights | {"conv_in.bias": torch.zeros(8, dtype=torch.int64)}, path)
        return "conv_in.bias is not of floating point"
    if kind == "both names":
        extra = {"mid_block.attentions.0.query.bias": torch.zeros(16)}
        save_file(weights | extra, path)
        return "old and new names"
    if kind == "extra":
        save_file(weights | {"encoder\n.weight": torch.zeros(3)}, path)
        return "is not of this model"
    if kind == "code":
        torch.save(weights | {"x": Code(folder / "marker")}, binary)
    elif kind == "expanded":  # one number as a matrix of 4 TiB
        torch.save(weights | {"conv_in.bias": torch.zeros(1).expand(2**40)}, binary)
    elif kind == "list":
        torch.save(list(weights.values()), binary)
    elif kind == "old torch":
        torch.save(weights, binary, _use_new_zipfile_serialization=False)
    elif kind == "text":
        binary.write_text("weights")
    elif kind == "compressed":
        torch.save(weights, folder / "plain")
        with zipfile.ZipFile(folder / "plain") as plain, zipfile.ZipFile(binary, "w", zipfile.ZIP_DEFLATED) as packed:
            for name in plain.namelist():
                packed.writestr(name, plain.read(name))
    else:
        torch.save(weights, binary)
        content = bytearray(binary.read_bytes())
        if kind == "flipped bit":
            content[len(content) // 2] ^= 1
            binary.write_bytes(content)
            return "is damaged"
        content[len(content) // 2 :] = b""
        binary.write_bytes(content)
    return "cannot be read"


@pytest.mark.parametrize(
    "kind",
    [
        "truncated", "huge", "not finite", "integers", "both names", "extra", "code", "expanded", "list", "old torch",
        "text", "compressed", "truncated bin", "flipped bit",
    ],
)  # fmt: skip
def test_damaged_weights(small, kind):
    folder = small / "unet"
    weights = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    message = damaged(kind, folder, weights)
    with pytest.raises(CheckpointError, match=message) as caught:
        diffusers.read(small)
    assert "\n" not in str(caught.value)
    assert not (folder / "marker").exists(), "code of a file must not run"
