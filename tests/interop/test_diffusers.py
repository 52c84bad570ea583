"""Folders of diffusers against diffusers itself, on random weights: nets in both directions, and their files."""

import json

import pytest
import torch
from helpers.unets import NETS, WEIGHTS, difference, peer, pipeline, sizes, theirs
from safetensors.torch import save_file

import diffunet
from diffunet import storage
from diffunet.errors import CheckpointError, UsageError
from diffunet.interop import diffusers


@pytest.mark.parametrize("name", NETS)
def test_nets_both_ways(tmp_path, name, parity):
    unet = theirs(NETS[name])
    model = diffusers.read(pipeline(tmp_path / "theirs", unet))
    classes = unet.config.num_class_embeds or 0
    parity(
        f"diffusers UNet2DModel, {name}, read", difference(unet, model.denoiser.net, sizes(NETS[name]), classes), 1e-5
    )
    widths = [round(model.config.model.channels * each) for each in model.config.model.multipliers]
    assert widths == list(unet.config.block_out_channels)
    storage.export_model(tmp_path / "model", model.config, model.denoiser.net.state_dict(), 0)
    assert storage.read_model(tmp_path / "model").config == model.config, "it is resolved"

    diffusers.write(model, tmp_path / "back")
    back = peer.UNet2DModel.from_pretrained(tmp_path / "back" / "unet").eval()
    parity(
        f"diffusers UNet2DModel, {name}, written",
        difference(back, model.denoiser.net, sizes(NETS[name]), classes),
        1e-5,
    )
    assert diffusers.read(tmp_path / "back").config == model.config
    (tmp_path / "back" / "diffunet.json").unlink()
    if not classes:
        again = diffusers.read(tmp_path / "back").config
        assert again == model.config, "their options alone say the same"


@pytest.mark.slow
def test_google_ddpm_cifar10_at_its_own_width(tmp_path):
    options = NETS["google/ddpm-cifar10-32"] | {"block_out_channels": (128, 256, 256, 256), "norm_num_groups": 32}
    unet = theirs(options)
    model = diffusers.read(pipeline(tmp_path, unet))
    assert sum(p.numel() for p in model.denoiser.net.parameters()) == 35_746_307  # as published
    assert difference(unet, model.denoiser.net) < 1e-5


def test_null_label_is_the_mean_and_guidance_is_refused(tmp_path):
    unet = theirs(NETS["labels"])
    model = diffusers.read(pipeline(tmp_path, unet))
    assert model.config.data.class_names == ("0", "1", "2", "3", "4")
    table = model.denoiser.net.embedding.label.weight
    assert torch.allclose(table[5], unet.class_embedding.weight.mean(dim=0), atol=1e-6)
    storage.export_model(tmp_path / "model", model.config, model.denoiser.net.state_dict(), 0)
    with pytest.raises(UsageError, match="guidance"):
        diffunet.load(tmp_path / "model", device="cpu").sample(1, guidance=2.0, steps=2)


# Files.


@pytest.fixture
def google(tmp_path):
    """Return a net like google/ddpm-cifar10-32 and a folder like the one on the hub, without weights."""
    unet = theirs(NETS["google/ddpm-cifar10-32"])
    pipeline(tmp_path / "saved", unet, peer.DDPMScheduler(variance_type="fixed_large"))
    folder = tmp_path / "hub"
    folder.mkdir()
    (tmp_path / "saved" / "model_index.json").rename(folder / "model_index.json")
    (tmp_path / "saved" / "scheduler" / "scheduler_config.json").rename(folder / "scheduler_config.json")
    config = json.loads((tmp_path / "saved" / "unet" / "config.json").read_text())
    kept = ("_class_name", "in_channels", "out_channels", "layers_per_block", *NETS["google/ddpm-cifar10-32"])
    (folder / "config.json").write_text(json.dumps({name: config[name] for name in kept}))
    return unet, folder


OLD = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def old_names(weights, convolutions=False):
    renamed = {}
    for name, tensor in weights.items():
        for new, old in OLD.items():
            if f".{new}." in name:
                name = name.replace(f".{new}.", f".{old}.")
                if convolutions and tensor.ndim == 2:
                    tensor = tensor[:, :, None, None]
        renamed[name] = tensor.clone()
    assert renamed.keys() != weights.keys()
    return renamed


@pytest.mark.parametrize("convolutions", [False, True])
@pytest.mark.parametrize("kind", ["bin", "safetensors"])
def test_as_on_the_hub_with_old_names(google, kind, convolutions):
    unet, folder = google
    weights = old_names(unet.state_dict(), convolutions)
    if kind == "bin":
        torch.save(weights, folder / "diffusion_pytorch_model.bin")
    else:
        save_file(weights, folder / WEIGHTS)
    assert diffusers.is_folder(folder)
    model = diffusers.read(folder)
    assert difference(unet, model.denoiser.net) < 1e-5
    if not convolutions:  # diffusers reads these names too
        assert difference(peer.UNet2DModel.from_pretrained(folder).eval(), model.denoiser.net) < 1e-5


def test_half_precision_where_there_is_nothing_else(google):
    unet, folder = google
    half = {name: tensor.half() for name, tensor in unet.state_dict().items()}
    save_file(half, folder / "diffusion_pytorch_model.fp16.safetensors")
    net = diffusers.read(folder).denoiser.net
    assert all(p.dtype == torch.float32 for p in net.parameters())
    unet.load_state_dict(half)
    assert difference(unet, net) < 1e-5
    torch.save(theirs(NETS["google/ddpm-cifar10-32"], seed=1).state_dict(), folder / "diffusion_pytorch_model.bin")
    assert difference(unet, diffusers.read(folder).denoiser.net) > 0.1, "full precision goes first"


def test_shards(google):
    unet, folder = google
    unet.save_pretrained(folder, max_shard_size="100KB")
    assert not (folder / WEIGHTS).exists()
    assert difference(unet, diffusers.read(folder).denoiser.net) < 1e-5
    shard = sorted(folder.glob("*-of-*.safetensors"))[1]
    content = shard.read_bytes()
    shard.unlink()
    with pytest.raises(CheckpointError, match=shard.name):
        diffusers.read(folder)
    shard.write_bytes(content)
    index = folder / f"{WEIGHTS}.index.json"
    for content in ("[]", "{}", '{"weight_map": {"a": "../x.safetensors"}}', '{"weight_map": {"a": 3}}'):
        index.write_text(content)
        with pytest.raises(CheckpointError, match="index"):
            diffusers.read(folder)


def test_net_alone_and_checkpoint_of_train_unconditional(tmp_path, caplog):
    unet, average = theirs(NETS["train_unconditional.py"]), theirs(NETS["train_unconditional.py"], seed=1)
    size = ((32, 32),)
    unet.save_pretrained(tmp_path / "alone")
    assert diffusers.is_folder(tmp_path / "alone")
    model = diffusers.read(tmp_path / "alone")
    assert difference(unet, model.denoiser.net, size) < 1e-5
    assert (model.config.diffusion.schedule, model.config.diffusion.target) == ("linear", "epsilon")
    assert "no scheduler" in caplog.text

    run = tmp_path / "run"
    pipeline(run, average, peer.DDPMScheduler(prediction_type="sample"))
    checkpoint = run / "checkpoint-500"
    unet.save_pretrained(checkpoint / "unet")
    from diffusers.training_utils import EMAModel

    EMAModel(average.parameters(), model_cls=peer.UNet2DModel, model_config=average.config).save_pretrained(
        checkpoint / "unet_ema"
    )
    for folder, net in ((run, average), (checkpoint, average), (checkpoint / "unet_ema", average)):
        assert diffusers.is_folder(folder)
        assert difference(net, diffusers.read(folder).denoiser.net, size) < 1e-5
    assert diffusers.read(checkpoint).config.diffusion.target == "x0", "the run's scheduler"
    assert difference(unet, diffusers.read(checkpoint / "unet").denoiser.net, size) < 1e-5


def test_folders_of_others_are_not_theirs(tmp_path, run):
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "empty", tmp_path / "none", run, run / "model", run / "config.toml"):
        assert not diffusers.is_folder(path)
