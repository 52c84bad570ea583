"""Model folders: what is in them, and what is refused."""

import json
import pickle
import shutil

import pytest
import torch
from helpers.launching import PATIENCE, start

import diffunet
from diffunet import CheckpointError, storage


def test_run_folder_and_model_folder_are_the_same_model(run):
    a, b = storage.read_model(run), storage.read_model(run / "model")
    assert a.step == b.step == 8
    assert all(torch.equal(x, y) for x, y in zip(a.denoiser.parameters(), b.denoiser.parameters(), strict=True))
    assert a.config == b.config


def test_model_folder_is_the_ema_of_the_newest_checkpoint(run):
    ema, _ = storage.read_tensors(run / "checkpoints/step-00000008/ema.safetensors")
    model, _ = storage.read_tensors(run / "model/model.safetensors")
    assert all(torch.equal(ema[name], model[name]) for name in ema)


def damaged(run, tmp_path, change):
    shutil.copytree(run / "model", tmp_path / "model")
    change(tmp_path / "model")
    return tmp_path / "model"


def set_config(**values):
    def change(folder):
        content = json.loads((folder / "config.json").read_text())
        content["config"]["model"] |= values
        (folder / "config.json").write_text(json.dumps(content))

    return change


def set_tensors(change):
    def write(folder):
        tensors, metadata = storage.read_tensors(folder / "model.safetensors")
        storage.write_tensors(folder / "model.safetensors", change(tensors), metadata)

    return write


def header(length):
    """Another length of the header than it has."""

    def write(folder):
        content = (folder / "model.safetensors").read_bytes()
        changed = length(int.from_bytes(content[:8], "little")).to_bytes(8, "little")
        (folder / "model.safetensors").write_bytes(changed + content[8:])

    return write


class Evil:
    def __reduce__(self):
        return exec, ("raise SystemExit('executed')",)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "model.safetensors").write_bytes(b""), "cannot be read"),
        (lambda folder: (folder / "model.safetensors").write_bytes(pickle.dumps(Evil())), "cannot be read"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"\xff" * 64), "cannot be read"),
        (lambda folder: (folder / "config.json").write_text("{}"), "not a diffunet config"),
        (lambda folder: (folder / "config.json").write_text("{"), "cannot be read"),
        (lambda folder: (folder / "config.json").write_text("[" * 200_000), "cannot be read"),
        (lambda folder: (folder / "config.json").write_text(" " * 2**24 + "{}"), "larger than 16 MiB"),
        (lambda folder: (folder / "config.json").write_bytes(b'{"format": "\xff"}'), "cannot be read"),
        (lambda folder: (folder / "config.json").write_text('{"format": "diffunet", "version": 99}'), "version 99"),
        (set_config(channels=16), "do not fit"),
        (set_config(channels=2048, multipliers=[64, 64, 64]), "do not fit"),  # terabytes, had they been allocated
        (set_config(channels=10**9), "channels"),
        (set_config(chanels=8), "did you mean model.channels"),
        (set_tensors(lambda t: t | {"stem.bias": torch.full_like(t["stem.bias"], float("nan"))}), "is not finite"),
        (set_tensors(lambda t: t | {"stem.bias": t["stem.bias"].long()}), "stem.bias is not of floating point"),
        (set_tensors(lambda t: t | {"new\nline" * 99: t["stem.bias"].clone()}), r"new\\nline.* is not of this model"),
        (header(lambda h: 2**63), "cannot be read"),
        (header(lambda h: 2**30), "cannot be read"),
        (header(lambda h: 3), "cannot be read"),
        (lambda folder: (folder / "config.json").unlink(), "not a model"),
    ],
)
def test_what_is_wrong_is_refused_in_one_line(run, tmp_path, change, message):
    with pytest.raises(CheckpointError, match=message) as error:
        diffunet.load(damaged(run, tmp_path, change))
    assert "\n" not in str(error.value)


def test_missing_models_say_what_to_give(tmp_path):
    with pytest.raises(CheckpointError, match="there is no model"):
        diffunet.load(tmp_path / "nowhere")
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.toml").touch()
    with pytest.raises(CheckpointError, match="not reached its first checkpoint"):
        diffunet.load(tmp_path / "run")


def test_different_keys_are_listed(run, tmp_path):
    def rename(folder):
        tensors, metadata = storage.read_tensors(folder / "model.safetensors")
        tensors["stem.other"] = tensors.pop("stem.bias")
        storage.write_tensors(folder / "model.safetensors", tensors, metadata)

    with pytest.raises(CheckpointError, match=r"stem\.bias is missing; stem\.other is not of this model"):
        diffunet.load(damaged(run, tmp_path, rename))


def test_weights_of_half_precision_are_read_as_what_the_net_has(run, tmp_path):
    folder = damaged(run, tmp_path, set_tensors(lambda tensors: {name: t.half() for name, t in tensors.items()}))
    model = storage.read_model(folder)
    assert {parameter.dtype for parameter in model.denoiser.parameters()} == {torch.float32}


LIMITED = """
import json, resource, sys
import torch, diffunet, diffunet.sampling.pipeline
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 10 * 2**30, used + 10 * 2**30))
try:
    diffunet.load(sys.argv[1])
except diffunet.CheckpointError as error:
    print(error)
"""


@pytest.mark.slow
@pytest.mark.seconds
def test_a_file_of_gigabytes_that_does_not_fit_is_refused_before_it_is_read(run, tmp_path):
    """The file has 4 GiB (sparse); there is room to map it twice, as safetensors does, and none to read it."""
    pytest.importorskip("resource", reason="only Unix limits a process")
    shutil.copytree(run / "model", tmp_path / "model")
    path, count = tmp_path / "model/model.safetensors", 2**32
    head = json.dumps({"stem.weight": {"dtype": "F32", "shape": [count // 4], "data_offsets": [0, count]}}).encode()
    with path.open("wb") as file:
        file.write(len(head).to_bytes(8, "little") + head)
        file.truncate(8 + len(head) + count)
    child = start(LIMITED, tmp_path / "model", OMP_NUM_THREADS="1")
    said, complaint = child.communicate(timeout=PATIENCE)
    assert child.returncode == 0, complaint
    assert "do not fit" in said


def test_other_people_may_read_a_model_as_far_as_they_may_read_its_config(run):
    config, weights = ((run / "model" / name).stat().st_mode for name in ("config.json", "model.safetensors"))
    assert config == weights
