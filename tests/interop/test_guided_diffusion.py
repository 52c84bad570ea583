"""Nets of guided-diffusion and improved-diffusion, read from their files, against what their own code says.

Their code is no part of this repository. `record_guided_diffusion.py` built their nets, gave them weights by a rule
that `fill` follows again, and wrote what they answered to `vectors/guided_diffusion.json`, with the names and shapes of
their weights. Here the file is made from those, read as a user's is, and asked the same.

Largest differences as scripts/parity.py prints them (guided-diffusion 22e0df8, improved-diffusion 1bc7bbb, torch 2.15,
CPU, two threads, float32; another number of threads rounds otherwise):

                                        answer     x0         log variance
    the defaults                        1.8e-06    9.6e-07
    ADM                                 1.2e-06    9.6e-07    5.9e-07
    heads by width, old order           1.8e-06    9.7e-07    5.7e-07
    first level at half the channels    1.7e-06    9.7e-07
    one level                           1.3e-06    2.1e-06
    no attention but in the middle      1.0e-06    7.3e-07
    improved, 4,000 steps               2.3e-06    9.6e-07    1.1e-06
    improved, embedding added           2.3e-06    1.8e-06

Answers are of deviation 0.5. x0 is in units of what an error of the answer becomes there, 1 + sigma where noise is
predicted. Images are no smaller than leaves four numbers to a group of the deepest GroupNorm: with two or fewer (8x8
into four levels), float32 itself is off by 2e-4 in both.
"""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from diffunet import build, storage
from diffunet.cli import main
from diffunet.errors import CheckpointError, UsageError
from diffunet.interop import guided_diffusion
from diffunet.interop.guided_flags import GUIDED_ONLY, IGNORED, Dialect, parse, to_config, written

VECTORS = Path(__file__).with_name("vectors") / "guided_diffusion.json"
LIMIT = 1e-5

GUIDED: Dialect = "guided-diffusion"
IMPROVED: Dialect = "improved-diffusion"


class Case(NamedTuple):
    """A small net: whose, its flags, and the height and width of the images that it is given."""

    dialect: Dialect
    flags: str
    size: tuple[int, int] = (8, 8)


CLASSES = 10  # theirs have 1,000; the recorder says 10 to their code

CASES = {
    "the defaults": Case(GUIDED, "--num_channels 32 --num_res_blocks 1 --attention_resolutions 32,16", (16, 8)),
    "ADM": Case(
        GUIDED,
        "--num_channels 32 --num_res_blocks 2 --channel_mult 1,2 --attention_resolutions 32 --num_head_channels 16 "
        "--resblock_updown True --use_new_attention_order True --class_cond True --learn_sigma True "
        "--noise_schedule cosine --dropout 0.1",
    ),
    "heads by width, old order": Case(
        GUIDED,
        "--num_channels 32 --num_res_blocks 1 --channel_mult 1,1,2 --attention_resolutions 64,16 "
        "--num_head_channels 16 --resblock_updown True --learn_sigma True --image_size 64",
        (12, 8),
    ),
    "first level at half the channels": Case(
        GUIDED,
        "--image_size=512 --num_channels=64 --num_res_blocks=1 --channel_mult=0.5,1,2 --attention_resolutions=128 "
        "--num_heads=2 --resblock_updown=True --class_cond=True",
    ),
    "one level": Case(
        GUIDED,
        "--image_size 32 --num_channels 96 --num_res_blocks 2 --channel_mult 1 --attention_resolutions 32 "
        "--num_heads 8 --use_new_attention_order True --use_scale_shift_norm False --predict_xstart True",
        (5, 7),
    ),
    "no attention but in the middle": Case(
        GUIDED,
        "--num_channels 32 --num_res_blocks 1 --channel_mult 1,2 --attention_resolutions 1000 --num_heads 1 "
        "--resblock_updown True --use_scale_shift_norm False --diffusion_steps 400 --rescale_timesteps yes",
    ),
    "improved, 4,000 steps": Case(
        IMPROVED,
        "--image_size 32 --num_channels 32 --num_res_blocks 1 --learn_sigma True --class_cond True "
        "--diffusion_steps 4000 --noise_schedule cosine --num_heads_upsample 4",
        (16, 16),
    ),
    "improved, embedding added": Case(
        IMPROVED,
        "--image_size 32 --num_channels 32 --num_res_blocks 1 --num_heads 1 --use_scale_shift_norm False "
        "--attention_resolutions 16 --rescale_learned_sigmas False --rescale_timesteps False --predict_xstart True",
        (16, 24),
    ),
}

PUBLISHED = {
    "64x64_diffusion": (
        GUIDED,
        "--attention_resolutions 32,16,8 --class_cond True --diffusion_steps 1000 --dropout 0.1 --image_size 64 "
        "--learn_sigma True --noise_schedule cosine --num_channels 192 --num_head_channels 64 --num_res_blocks 3 "
        "--resblock_updown True --use_new_attention_order True --use_fp16 True --use_scale_shift_norm True",
    ),
    "128x128_diffusion": (
        GUIDED,
        "--attention_resolutions 32,16,8 --class_cond True --diffusion_steps 1000 --image_size 128 --learn_sigma True "
        "--noise_schedule linear --num_channels 256 --num_heads 4 --num_res_blocks 2 --resblock_updown True "
        "--use_fp16 True --use_scale_shift_norm True",
    ),
    "256x256_diffusion_uncond": (
        GUIDED,
        "--attention_resolutions 32,16,8 --class_cond False --diffusion_steps 1000 --image_size 256 "
        "--learn_sigma True --noise_schedule linear --num_channels 256 --num_head_channels 64 --num_res_blocks 2 "
        "--resblock_updown True --use_fp16 True --use_scale_shift_norm True --classifier_scale 10.0 "
        "--classifier_path models/256x256_classifier.pt --batch_size 4 --num_samples 100 --timestep_respacing 250",
    ),
    "512x512_diffusion": (
        GUIDED,
        "--attention_resolutions 32,16,8 --class_cond True --diffusion_steps 1000 --image_size 512 --learn_sigma True "
        "--noise_schedule linear --num_channels 256 --num_head_channels 64 --num_res_blocks 2 --resblock_updown True "
        "--use_fp16 False --use_scale_shift_norm True",
    ),
    "imagenet64_uncond_100M_1500K": (
        IMPROVED,
        "--image_size 64 --num_channels 128 --num_res_blocks 3 --learn_sigma True "
        "--diffusion_steps 4000 --noise_schedule cosine --lr 1e-4 --batch_size 128",
    ),
    "cifar10_uncond_vlb_50M_500K": (
        IMPROVED,
        "--image_size 32 --num_channels 128 --num_res_blocks 3 --learn_sigma True --dropout 0.3 --diffusion_steps 4000 "
        "--noise_schedule cosine --use_kl True --lr 1e-4 --batch_size 128 --schedule_sampler loss-second-moment",
    ),
    "imagenet64_cond_270M_250K": (
        IMPROVED,
        "--image_size 64 --num_channels 192 --num_res_blocks 3 --learn_sigma True --class_cond True "
        "--diffusion_steps 4000 --noise_schedule cosine --rescale_learned_sigmas False --rescale_timesteps False",
    ),
    "lsun_uncond_100M_1200K_bs128": (
        IMPROVED,
        "--image_size 256 --num_channels 128 --num_res_blocks 2 --num_heads 1 --learn_sigma True "
        "--use_scale_shift_norm False --attention_resolutions 16 --diffusion_steps 1000 --noise_schedule linear "
        "--rescale_learned_sigmas False --rescale_timesteps False",
    ),
}
"""Flags of published models, from the READMEs."""

PROCESSES = {
    f"{schedule}, {steps} steps{', rescaled' * rescaled}": (schedule, steps, rescaled)
    for schedule in ("linear", "cosine")
    for steps, rescaled in ((1000, False), (4000, True))
}
"""Noise schedules; each is compared at `visited` of its timesteps."""


def visited(steps: int) -> list[int]:
    """Some timesteps, both ends among them."""
    return [0, 1, 2, steps // 7, steps // 3, steps // 2, steps - 30, steps - 2, steps - 1]


def fill(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Numbers in (-sqrt 3, sqrt 3), of deviation 1, that depend on the name alone, the same on every machine."""
    raw = hashlib.shake_256(name.encode()).digest(4 * math.prod(shape))
    uniform = (np.frombuffer(raw, "<u4").astype(np.float64) + 0.5) / 2**32
    return ((2 * uniform - 1) * math.sqrt(3)).reshape(shape)


def weight(name: str, shape: tuple[int, ...]) -> Tensor:
    """A weight, none of them zero: of deviation 1 / sqrt(fan in), 1 for labels; scales of norms round 1."""
    values = fill(name, shape)
    if len(shape) == 1:
        values = values / 10 + (1 if name.endswith(".weight") else 0)
    elif name != "label_emb.weight":
        values = values / math.sqrt(math.prod(shape[1:]))
    return torch.from_numpy(values.astype(np.float32))


def asked(case: Case, steps: int) -> tuple[Tensor, Tensor, Tensor]:
    """What a net is given: a noisy image in their coordinates, the timesteps, and labels."""
    x = torch.from_numpy(fill("x", (3, 3, *case.size)).astype(np.float32))
    return x, torch.tensor([steps // 20, steps // 4, steps - 1]), torch.tensor([0, 3, CLASSES - 1])


def some(values: Tensor, count: int = 90) -> list[float]:
    """About `count` numbers of a tensor, in steps that meet every channel and place."""
    step = max(1, values.numel() // count) | 1
    return [float(f"{value:.9g}") for value in values.flatten()[::step].tolist()]


@pytest.fixture(scope="module")
def vectors() -> dict[str, Any]:
    return json.loads(VECTORS.read_text())


def state_dict(vectors: dict[str, Any], name: str) -> dict[str, Tensor]:
    """Their weights, by the names and shapes that were recorded; a bias has as many values as its weight has rows."""
    content = {}
    for module, shape in vectors[name]["weights"].items():
        content[f"{module}.weight"] = weight(f"{module}.weight", tuple(shape))
        if module != "label_emb":
            content[f"{module}.bias"] = weight(f"{module}.bias", tuple(shape[:1]))
    return content


def read(tmp_path: Path, content: object, flags: str, dialect: Dialect = GUIDED) -> storage.Model:
    torch.save(content, tmp_path / "model.pt")
    return guided_diffusion.read(tmp_path / "model.pt", flags, dialect)


def difference(ours: Tensor, theirs: list[float], count: int = 90) -> float:
    return max(abs(a - b) for a, b in zip(some(ours, count), theirs, strict=True))


@pytest.mark.parametrize("name", CASES)
def test_answers(name, vectors, tmp_path, parity):
    case, told = CASES[name], vectors[name]
    model = read(tmp_path, state_dict(vectors, name), case.flags, case.dialect)
    config, denoiser = model.config, model.denoiser
    x, t, labels = asked(case, config.diffusion.num_steps)
    given = labels if "label_emb" in told["weights"] else None

    answer = denoiser.net(x, torch.tensor(told["timesteps"]), given)
    pair = f"{case.dialect}, {name} (recorded)"
    parity(f"{pair}, answer", difference(answer, told["answer"]), LIMIT)

    # The whole process: timesteps as the net is told them, target, variance. Their x is ours / sqrt(1 + sigma^2).
    sigma = denoiser.schedule.sigmas[t].float()
    denoised = denoiser(x * (1 + sigma**2).sqrt()[:, None, None, None], sigma, given)
    units = torch.ones(3) if config.diffusion.target == "x0" else 1 + sigma  # of what an error of the answer becomes
    for x0, theirs, unit in zip(denoised.x0, told["x0"], units.tolist(), strict=True):
        parity(f"{pair}, x0", difference(x0, theirs, 20) / unit, LIMIT)
    if config.diffusion.learned_variance:
        small = torch.stack([denoiser.schedule.posterior(x[:1], x[:1], int(each))[1] for each in t])
        low, high = (each.log()[:, None, None, None] for each in (small, denoiser.schedule.beta[t]))
        logvar = denoised.var * high + (1 - denoised.var) * low
        parity(f"{pair}, log variance", difference(logvar, told["log variance"], 30), LIMIT)
    else:
        assert denoised.var is None


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_models_have_the_weights_that_their_code_makes(name, vectors):
    dialect, flags = PUBLISHED[name]
    config = to_config(parse(flags, dialect))
    if config.data.classes:
        config = config.changed("data", class_names=tuple(str(label) for label in range(1000)))
    with torch.device("meta"):
        shapes = guided_diffusion.their_shapes(build.net(config))
    assert sum(math.prod(shape) for shape in shapes.values()) == vectors[name]["parameters"]
    content = json.dumps(sorted((each, list(shape)) for each, shape in shapes.items()))
    assert hashlib.sha256(content.encode()).hexdigest() == vectors[name]["shapes"]


@pytest.mark.parametrize("name", PROCESSES)
def test_schedules(name, vectors):
    schedule, steps, rescaled = PROCESSES[name]
    flags = f"--noise_schedule {schedule} --diffusion_steps {steps} --rescale_timesteps {rescaled}"
    ours, told = build.schedule(to_config(parse(flags, IMPROVED))), vectors[name]
    t = torch.tensor(visited(steps))
    torch.testing.assert_close(ours.beta[t], torch.tensor(told["beta"], dtype=torch.float64), rtol=1e-10, atol=0)
    alpha_bar = torch.tensor(told["alpha_bar"], dtype=torch.float64)
    torch.testing.assert_close(ours.alpha_bar[t], alpha_bar, rtol=1e-10, atol=0)
    assert ours.c_noise(ours.sigmas[t].float()).tolist() == told["timesteps"]


@pytest.mark.parametrize("dialect", [GUIDED, IMPROVED])
def test_defaults(dialect, vectors):
    wanted = {name: value for name, value in vectors[f"defaults of {dialect}"].items() if name not in IGNORED}
    multipliers = wanted.pop("channel_mult", "")
    flags = parse("", dialect)
    assert {name: written(getattr(flags, name)) for name in wanted} == {
        name: str(value) for name, value in wanted.items()
    }
    assert multipliers == ""
    assert flags.channel_mult == (1, 2, 3, 4)  # at 64 pixels
    assert set(type(flags).model_fields) == wanted.keys() | set(GUIDED_ONLY)


def test_config_of_adm_64():
    """Dhariwal & Nichol 2021, table 9."""
    config = to_config(parse(PUBLISHED["64x64_diffusion"][1], GUIDED))
    model, diffusion = config.model, config.diffusion
    assert (model.channels, model.multipliers, model.num_blocks) == (192, (1, 2, 3, 4), 3)
    assert (model.attention_levels, model.attention_resolutions, model.head_channels) == ((1, 2, 3), (32, 16, 8), 64)
    assert (model.resample, model.scale_shift, model.norm_groups, model.dropout) == ("residual", True, 32, 0.1)
    assert (diffusion.schedule, diffusion.num_steps, diffusion.rescale_timesteps) == ("cosine", 1000, False)
    assert (diffusion.target, diffusion.learned_variance, diffusion.threshold) == ("epsilon", True, "static")
    assert (diffusion.sigma_shift, diffusion.mean) == (1, (0, 0, 0))
    assert config.data.image_size == 64


def test_heads():
    def said(flags, dialect=GUIDED):
        model = to_config(parse(flags, dialect)).model
        return model.num_heads, model.head_channels

    assert said("") == (4, 64)
    assert said("--num_heads 1 --num_heads_upsample -1", IMPROVED) == (1, 64)
    assert said("--num_heads 1 --num_head_channels 32 --num_heads_upsample 2") == (None, 32)
    with pytest.raises(UsageError, match="--num_heads_upsample 2 is not --num_heads 1"):
        said("--num_heads 1 --num_heads_upsample 2", IMPROVED)
    with pytest.raises(UsageError, match="--num_head_channels 96 does not divide 512 channels"):
        said("--num_head_channels 96")


@pytest.mark.parametrize(
    ("flags", "dialect", "message"),
    [
        ("--num_chanels 32", GUIDED, "guided-diffusion has no flag --num_chanels; did you mean --num_channels?"),
        ("--num_head_channels 64", IMPROVED, "improved-diffusion has no flag --num_head_channels"),
        ("--image_size", GUIDED, "--image_size needs a value"),
        ("--class_cond --image_size 64", GUIDED, "--class_cond needs a value"),
        ("MODEL_FLAGS=", GUIDED, "the flags have 'MODEL_FLAGS' where a flag should be"),
        ("--image_size 64 64", GUIDED, "the flags have '64' where a flag should be"),
        ("--dropout '0.1", GUIDED, "the flags cannot be read: No closing quotation"),
        ("--num_res_blocks three", GUIDED, "--num_res_blocks three: input should be a valid integer"),
        ("--num_channels 0", GUIDED, "--num_channels 0: input should be greater than or equal to 1"),
        ("--learn_sigma maybe", GUIDED, "--learn_sigma maybe: input should be a valid boolean"),
        ("--noise_schedule sqrt", GUIDED, "--noise_schedule sqrt: input should be 'linear' or 'cosine'"),
        ("--attention_resolutions 32,0", GUIDED, "--attention_resolutions 32,0: input should be greater"),
        ("--channel_mult 1,,2", GUIDED, "--channel_mult 1,,2: input should be a valid integer"),
        ("--image_size 32", GUIDED, "--image_size 32: guided-diffusion has nets for 64, 128, 256, 512 without --chan"),
        ("--image_size 128", IMPROVED, "--image_size 128: improved-diffusion has nets for 32, 64, 256"),
        ("--channel_mult 2,4", GUIDED, "--channel_mult 2,4: the first one cannot be above 1"),
        ("--large_size 256 --small_size 64", GUIDED, "--large_size is of a super-resolution model"),
    ],
)  # fmt: skip
def test_flags_that_cannot_be(flags, dialect, message):
    with pytest.raises(UsageError) as caught:
        to_config(parse(flags, dialect))
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("ADM", ("--num_res_blocks 2", "--num_res_blocks 3"), "--num_res_blocks 2, not 3"),
        ("ADM", ("--num_channels 32", "--num_channels 64"), "--num_channels 32, not 64"),
        ("ADM", ("--channel_mult 1,2", "--channel_mult 1,2,2"), "--channel_mult 1,2, not 1,2,2"),
        ("ADM", ("--attention_resolutions 32", ""), "--attention_resolutions 32, not 16,8 (the default)"),
        (
            "no attention but in the middle", ("--attention_resolutions 1000", "--attention_resolutions 64,32"),
            "--attention_resolutions 128, not 64,32",
        ),
        ("ADM", ("--class_cond True", ""), "--class_cond True, not False (the default)"),
        ("ADM", ("--learn_sigma True", "--learn_sigma=False"), "--learn_sigma True, not False"),
        ("ADM", ("--resblock_updown True", ""), "--resblock_updown True, not False (the default)"),
        ("the defaults", ("--", "--resblock_updown True --"), "--resblock_updown False, not True"),
        ("one level", ("--use_scale_shift_norm False", ""), "--use_scale_shift_norm False, not True (the default)"),
        ("improved, 4,000 steps", ("--image_size 32", ""), "--image_size 32, not 64 (the default)"),
        (
            "first level at half the channels", ("--channel_mult=0.5,1,2", "--channel_mult=0.5,1,1"),
            "--channel_mult 0.5,1,2, not 0.5,1,1",
        ),
    ],
)  # fmt: skip
def test_flags_of_another_file_are_named(name, change, message, vectors, tmp_path):
    flags = CASES[name].flags.replace(*change, 1)
    with pytest.raises(CheckpointError) as caught:
        read(tmp_path, state_dict(vectors, name), flags, CASES[name].dialect)
    assert str(caught.value) == f"the weights in {tmp_path / 'model.pt'} are of other flags: {message}"


def test_file_of_the_other_dialect(vectors, tmp_path):
    with pytest.raises(CheckpointError, match=r"--resblock_updown True, not False \(as in guided-diffusion"):
        read(tmp_path, state_dict(vectors, "no attention but in the middle"), "--num_channels 32", IMPROVED)


def test_misfits_that_no_flag_explains_are_named(vectors, tmp_path):
    flags, content = CASES["one level"].flags, state_dict(vectors, "one level")
    del content["middle_block.1.norm.bias"]
    content["time_embed.2.weight"] = content["time_embed.2.weight"][:5]
    content["out.2.bias"] = content["out.2.bias"].int()
    content["more"] = torch.zeros(1)
    with pytest.raises(CheckpointError) as caught:
        read(tmp_path, content, flags)
    assert str(caught.value).endswith(
        "do not fit the flags: middle_block.1.norm.bias is missing; more is not of this model; out.2.bias is not of "
        "floating point, or has no values; time_embed.2.weight is [5, 384], not [384, 384]"
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"output_blocks.999999999999.0.bias": torch.zeros(1), "label_emb.weight": torch.zeros(())},
            "label_emb.weight is",
        ),
        (
            {"output_blocks.x.0.bias": torch.zeros(1), "label_emb.weight": torch.zeros(1).expand(10**12, 128)},
            "label_emb",
        ),
        ({"time_embed.0.weight": torch.zeros(3)}, "time_embed.0.weight is [3], not [128, 32]"),
        ({"out.2.weight": torch.zeros(())}, "out.2.weight is [], not [6, 32, 3, 3]"),
        (
            {"input_blocks.0.0.weight": torch.zeros(32, 3, 3, 3, device="meta")},
            "input_blocks.0.0.weight is not of float",
        ),
    ],
)
def test_shapes_that_cannot_be(change, message, vectors, tmp_path):
    with pytest.raises(CheckpointError) as caught:
        read(tmp_path, state_dict(vectors, "ADM") | change, CASES["ADM"].flags)
    assert "do not fit the flags" in str(caught.value)
    assert message in str(caught.value)


def test_null_label_is_the_mean(vectors, tmp_path):
    model = read(tmp_path, state_dict(vectors, "ADM"), CASES["ADM"].flags)
    labels = model.denoiser.net.embedding.label.weight
    theirs = weight("label_emb.weight", (CLASSES, 128))
    assert model.config.data.class_names == tuple("0123456789")
    assert model.config.diffusion.label_dropout == 0
    torch.testing.assert_close(labels[:CLASSES], theirs, rtol=0, atol=0)
    torch.testing.assert_close(labels[CLASSES], theirs.mean(0))


@pytest.mark.parametrize("zipped", [True, False])
def test_half_precision_and_both_formats_of_torch(zipped, vectors, tmp_path):
    flags = CASES["one level"].flags
    content = {name: value.half() for name, value in state_dict(vectors, "one level").items()}
    torch.save(content, tmp_path / "model.pt", _use_new_zipfile_serialization=zipped)
    model = guided_diffusion.read(tmp_path / "model.pt", flags, GUIDED)
    stem = model.denoiser.net.stem.weight
    assert stem.dtype == torch.float32
    assert torch.equal(stem, content["input_blocks.0.0.weight"].float())


def test_nothing_of_the_file_stays_mapped(vectors, tmp_path):
    model = read(tmp_path, state_dict(vectors, "one level"), CASES["one level"].flags)
    before = {name: value.clone() for name, value in model.denoiser.net.state_dict().items()}
    path = tmp_path / "model.pt"
    path.write_bytes(bytes(path.stat().st_size))
    assert all(torch.equal(before[name], value) for name, value in model.denoiser.net.state_dict().items())


def test_written_as_a_model_folder(vectors, tmp_path):
    model = read(tmp_path, state_dict(vectors, "ADM"), CASES["ADM"].flags)
    storage.export_model(tmp_path / "model", model.config, model.denoiser.net.state_dict(), model.step)
    again = storage.read_model(tmp_path / "model")
    assert again.config == model.config
    x, t, labels = asked(CASES["ADM"], 1000)
    sigma = model.denoiser.schedule.sigmas[t].float()
    assert torch.equal(again.denoiser(x, sigma, labels).x0, model.denoiser(x, sigma, labels).x0)


class Malicious:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("zipped", [True, False])
def test_pickled_code_never_runs(zipped, tmp_path):
    content = {"time_embed.0.weight": Malicious(tmp_path / "ran")}
    torch.save(content, tmp_path / "model.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match="holds more than tensors, which is never run"):
        guided_diffusion.read(tmp_path / "model.pt", "", GUIDED)
    assert not (tmp_path / "ran").exists()


def test_files_that_are_no_state_dict(vectors, tmp_path):
    optimizer = {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 1e-4}]}
    for content in (optimizer, [torch.zeros(3)], torch.zeros(3), {1: torch.zeros(3)}):
        with pytest.raises(CheckpointError, match="is not a plain state dict of tensors"):
            read(tmp_path, content, "")
    for content in ({}, {"weight": torch.zeros(3)}):
        with pytest.raises(CheckpointError, match="is not a model of guided-diffusion or improved-diffusion"):
            read(tmp_path, content, "")
    with pytest.raises(CheckpointError, match="No such file"):
        guided_diffusion.read(tmp_path / "missing.pt", "", GUIDED)
    with pytest.raises(CheckpointError, match="cannot be read"):
        guided_diffusion.read(tmp_path, "", GUIDED)


def test_damaged_files(vectors, tmp_path):
    flags, path = CASES["one level"].flags, tmp_path / "model.pt"
    content = state_dict(vectors, "one level")
    torch.save(content, path)
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    path.write_bytes(flipped)
    with pytest.raises(CheckpointError, match="is damaged"):
        guided_diffusion.read(path, flags, GUIDED)
    for cut in (0, 100, len(whole) // 2, len(whole) - 10):
        path.write_bytes(whole[:cut])
        with pytest.raises(CheckpointError, match="cannot be read: it is cut short"):
            guided_diffusion.read(path, flags, GUIDED)
    content["out.0.weight"][0] = math.nan
    with pytest.raises(CheckpointError, match=r"are damaged: out\.0\.weight is not finite"):
        read(tmp_path, content, flags)


def test_super_resolution_and_classifier_are_refused(vectors, tmp_path):
    flags, content = CASES["one level"].flags, state_dict(vectors, "one level")
    classifier = {name: value for name, value in content.items() if not name.startswith("output_blocks.")}
    with pytest.raises(CheckpointError, match="is a classifier, which diffunet cannot use"):
        read(tmp_path, classifier, flags)
    content["input_blocks.0.0.weight"] = torch.zeros(96, 6, 3, 3)
    with pytest.raises(CheckpointError, match="is a super-resolution model, which diffunet cannot use"):
        read(tmp_path, content, flags)


def test_as_a_command_with_flags_in_one_word(vectors, tmp_path):
    """`--flags "--a 1 --b 2"`, which begins as an option does."""
    name = "ADM"
    torch.save(state_dict(vectors, name), tmp_path / "model.pt")
    words = ["convert", str(tmp_path / "model.pt"), str(tmp_path / "ours"), "--dialect", CASES[name].dialect]
    with pytest.raises(SystemExit) as stop:
        main([*words, "--flags", CASES[name].flags])
    assert not stop.value.code
    read = guided_diffusion.read(tmp_path / "model.pt", CASES[name].flags, CASES[name].dialect)
    assert storage.read_model(tmp_path / "ours").config == read.config
