"""Downloads from a hub and uploads to it, which runs on this machine."""

import errno
import json
import socket

import huggingface_hub
import pytest
import torch
from helpers.fake_hub import Hub
from helpers.small import tiny
from huggingface_hub import constants

from diffunet import build, storage
from diffunet.commands.cli import main
from diffunet.errors import CheckpointError, ResourceError, UsageError
from diffunet.interop import hub


@pytest.fixture
def server(tmp_path, monkeypatch):
    server = Hub()
    monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "kept"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_of_this_test")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    huggingface_hub.close_session()
    yield server
    server.close()
    huggingface_hub.close_session()


@pytest.fixture
def model(tmp_path):
    """Return a model folder that also holds a private file."""
    config = tiny(model={"attention_levels": (1,)})
    folder = tmp_path / "model"
    storage.write_model(folder, config, build.net(config).state_dict(), 12)
    (folder / "notes.txt").write_text("private")
    return folder


def content(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def same(a, b):
    a, b = storage.read_model(a), storage.read_model(b)
    assert a.config == b.config
    torch.testing.assert_close(a.denoiser.state_dict(), b.denoiser.state_dict(), atol=0, rtol=0)


UNET = json.dumps({"_class_name": "UNet2DModel"}).encode()
PIPELINE = {
    "model_index.json": b'{"unet": []}',
    "README.md": b"card",
    "images/0.png": b"picture",
    "unet/config.json": UNET,
    "unet/diffusion_pytorch_model.bin": b"pickled",
    "unet/diffusion_pytorch_model.safetensors": b"weights",
    "unet/diffusion_pytorch_model.fp16.safetensors": b"half",
    "unet/model.onnx": b"onnx",
    "scheduler/scheduler_config.json": b"{}",
}


def test_one_of_ours_comes_back_with_its_weights(server, model):
    server.repositories["a/b"] = content(model) | {"README.md": b"card"}
    folder = hub.pull("a/b")
    same(folder, model)
    assert set(content(folder)) == {"config.json", "model.safetensors"}
    server.fetched.clear()
    assert hub.pull("a/b") == folder
    assert server.fetched == []  # it was taken from where it is kept


def test_what_was_pushed_since_is_downloaded(server, model):
    server.repositories["a/b"] = content(model)
    hub.pull("a/b")
    storage.write_model(model, storage.read_config(model), build.net(storage.read_config(model)).state_dict(), 13)
    server.repositories["a/b"] = content(model)
    same(hub.pull("a/b"), model)
    server.down = True
    assert storage.read_model(hub.pull("a/b")).step == 13


@pytest.mark.parametrize("left_out", ["", "unet/diffusion_pytorch_model.safetensors"])
def test_of_a_diffusers_repository_only_what_is_needed(server, left_out):
    server.repositories["a/b"] = {path: text for path, text in PIPELINE.items() if path != left_out}
    folder = hub.pull("a/b")
    weights = "bin" if left_out else "safetensors"
    wanted = {"model_index.json", "unet/config.json", "scheduler/scheduler_config.json"}
    assert set(content(folder)) == wanted | {f"unet/diffusion_pytorch_model.{weights}"}
    assert set(server.fetched) == set(content(folder))


HALF = {"unet/diffusion_pytorch_model.fp16.safetensors": b"half"}
PARTS = {f"unet/diffusion_pytorch_model-0000{n}-of-00002.safetensors": b"part" for n in (1, 2)}


def index_of_parts(names):
    return json.dumps({"weight_map": {str(n): name.rpartition("/")[2] for n, name in enumerate(names)}}).encode()


INDEX = {"unet/diffusion_pytorch_model.safetensors.index.json": index_of_parts(PARTS)}
HALF_PARTS = {f"unet/diffusion_pytorch_model.fp16-0000{n}-of-00002.safetensors": b"part" for n in (1, 2)}
HALF_INDEX = {"unet/diffusion_pytorch_model.safetensors.index.fp16.json": index_of_parts(HALF_PARTS)}


@pytest.mark.parametrize(
    ("there", "left_out"),
    [
        (HALF, {}), (INDEX | PARTS, HALF), (HALF_INDEX | HALF_PARTS, {}), (INDEX | PARTS, HALF_INDEX | HALF_PARTS),
    ],
)  # fmt: skip
def test_half_precision_and_weights_in_parts_come_where_there_is_nothing_else(server, there, left_out):
    plain = {path: text for path, text in PIPELINE.items() if "diffusion_pytorch_model" not in path}
    server.repositories["a/b"] = plain | there | left_out
    folder = hub.pull("a/b")
    wanted = {"model_index.json", "unet/config.json", "scheduler/scheduler_config.json", *there}
    assert set(content(folder)) == wanted
    server.down = True
    assert hub.pull("a/b") == folder  # the earlier download is whole
    (folder / max(there)).unlink()
    with pytest.raises(CheckpointError, match="could not be reached"):
        hub.pull("a/b")


def test_parts_that_are_missing_are_named_before_any_is_fetched(server):
    plain = {path: text for path, text in PIPELINE.items() if "diffusion_pytorch_model" not in path}
    first = min(PARTS)
    server.repositories["a/b"] = plain | INDEX | {first: b"part"}
    with pytest.raises(CheckpointError, match=r"is incomplete: .*index\.json names unet/.*00002-of-00002"):
        hub.pull("a/b")
    assert first not in server.fetched


def test_a_net_at_the_root(server):
    files = {"config.json": UNET, "diffusion_pytorch_model.bin": b"pickled", "scheduler_config.json": b"{}"}
    server.repositories["a/b"] = files | {"image_0.png": b"", "model_index.json": b"{}", "diffunet.json": b"{}"}
    assert set(content(hub.pull("a/b"))) == {*files, "model_index.json", "diffunet.json"}


@pytest.mark.parametrize("config", [b'{"_class_name": "UNet2DConditionModel"}', b'{"model_type": "bert"}', b"[]", b"{"])
def test_weights_of_other_kinds_of_models_are_not_fetched(server, config):
    at = "unet/" if b"UNet" in config else ""
    weights = f"{at}diffusion_pytorch_model.safetensors" if at else "model.safetensors"
    server.repositories["a/b"] = {f"{at}config.json": config, weights: b"gigabytes"}
    with pytest.raises(CheckpointError, match="a/b on the hub"):
        hub.pull("a/b")
    assert weights not in server.fetched


def test_a_repository_without_a_model(server):
    server.repositories["a/b"] = {"README.md": b"card"}
    with pytest.raises(CheckpointError, match="no model that can be used here"):
        hub.pull("a/b")


@pytest.mark.parametrize("kind", ["refused", "silent", "down", "offline"])
def test_where_the_hub_is_out_of_reach_an_earlier_download_is_taken(server, model, monkeypatch, kind):
    server.repositories["a/b"] = content(model)
    folder = hub.pull("a/b")
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections and never answers
        if kind == "refused":
            monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
        elif kind == "silent":
            monkeypatch.setattr(hub, "TIMEOUT", 0.3)
            address = f"http://127.0.0.1:{silent.getsockname()[1]}"
            monkeypatch.setattr(constants, "ENDPOINT", address)
        elif kind == "offline":
            monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        server.down = kind == "down"
        assert hub.pull("a/b") == folder
        with pytest.raises(
            CheckpointError, match=r"c/d is no folder here, and the hub .* could not be reached"
        ) as error:
            hub.pull("c/d")
    assert {"down": "503", "offline": "HF_HUB_OFFLINE"}.get(kind, "") in str(error.value)
    if kind == "down":  # a download that is not whole is not taken
        (folder / "model.safetensors").unlink()
        with pytest.raises(CheckpointError, match="could not be reached"):
            hub.pull("a/b")


@pytest.mark.parametrize(
    ("refused", "words"),
    [((401, "RepoNotFound"), "neither a folder here nor a public model.*hf auth login"),
     ((404, "RepoNotFound"), "neither a folder here nor a public model.*hf auth login"),
     ((403, "GatedRepo"), "is gated: ask for access on .*a/b and log in: hf auth login")],
)  # fmt: skip
def test_a_repository_that_may_not_be_read(server, refused, words):
    server.refused["a/b"] = refused
    with pytest.raises(CheckpointError, match=words):
        hub.pull("a/b")


@pytest.mark.parametrize("function", ["snapshot_download", "hf_hub_download"])
def test_a_full_disk(server, model, monkeypatch, function):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    server.repositories["a/b"] = content(model)
    monkeypatch.setattr(huggingface_hub, function, full)
    with pytest.raises(ResourceError, match=r"a/b cannot be kept in .*: No space left on device; make room"):
        hub.pull("a/b")


def test_a_download_that_breaks_off(server, model, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("Data processing error: connection reset")  # the error that hf_xet raises

    server.repositories["a/b"] = content(model)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", broken)
    with pytest.raises(CheckpointError, match=r"could not be reached \(Data processing error: connection reset\)"):
        hub.pull("a/b")


@pytest.mark.parametrize("private", [False, True])
def test_push_makes_a_repository_of_the_model_and_its_card(server, model, tmp_path, private):
    picture = tmp_path / "step-00000012.png"
    picture.write_bytes(b"picture")
    assert hub.push(model, "a/b", "# card é", private, picture) == f"{server.endpoint}/a/b"
    assert bool(server.private["a/b"]) is private
    model_files = {name: (model / name).read_bytes() for name in ("config.json", "model.safetensors")}
    assert server.repositories["a/b"] == model_files | {"README.md": "# card é".encode(), "samples.png": b"picture"}
    hub.push(model, "a/b", "# second")
    assert server.repositories["a/b"]["README.md"] == b"# second"
    same(hub.pull("a/b"), model)


def test_private_is_not_pushed_to_a_public_repository(server, model):
    server.repositories["a/b"] = {}
    with pytest.raises(UsageError, match="a/b is there and public"):
        hub.push(model, "a/b", "", private=True)
    assert server.repositories["a/b"] == {}


def test_push_that_may_not(server, model, monkeypatch):
    server.repositories["a/b"] = {}
    server.refused["a/b"] = (403, "")
    with pytest.raises(UsageError, match=r"may not write to a/b .*hf auth login"):
        hub.push(model, "a/b", "")
    server.down = True
    with pytest.raises(ResourceError, match=r"could not be reached \(it answers 503"):
        hub.push(model, "a/b", "")
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    with pytest.raises(UsageError, match="without a login: run hf auth login"):
        hub.push(model, "a/b", "")


def test_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "file").touch()
    for name in ("google/ddpm-cifar10-32", "a/b", "A_b/c.d-e_f"):
        assert hub.is_name(name)
        hub.check_name(name)
    for path in ("runs/phtos", "file/b", "runs"):
        assert not hub.is_name(path)
    hub.check_name("runs/phtos")  # a local folder of that name does not forbid a push
    others = ("a", "a/b/c", "/a", "a/", "./a", "../a", "a/b.git", "a--b/c", "a/b..c", "a/-b", "a/é", "a/b\n", "a b/c")
    for other in (*others, "a\\b", "", "a/" + "b" * 97):
        assert not hub.is_name(other)
        with pytest.raises(UsageError, match="is not a name on the hub"):
            hub.check_name(other)


def test_nothing_is_printed_but_progress_on_a_terminal(server, model, capfd):
    hub.push(model, "a/b", "")
    hub.pull("a/b")
    assert capfd.readouterr() == ("", "")


def test_a_run_goes_there_and_comes_back_by_commands(server, run, tmp_path, capsys):
    """The commands of a user work: `convert RUN owner/name --to hub`, and owner/name as MODEL."""

    def command(*words):
        with pytest.raises(SystemExit) as stop:
            main([str(word) for word in words])
        return stop.value.code or 0

    assert command("convert", run, "me/cats", "--to", "hub", "--private") == 0
    assert f"{server.endpoint}/me/cats" in capsys.readouterr().out
    uploaded = server.repositories["me/cats"]
    assert set(uploaded) == {"config.json", "model.safetensors", "README.md", "samples.png"}
    assert "me/cats" in server.private
    assert b"| optimizer steps | 8 |" in uploaded["README.md"]
    assert command("sample", "me/cats", "--out", tmp_path / "one.png", "--num", 1, "--steps", 2) == 0
    assert command("convert", "me/cats", tmp_path / "mine") == 0
    same(run / "model", tmp_path / "mine")
    assert command("convert", run, "cats", "--to", "hub") == UsageError.exit_code
