"""Nets of guided-diffusion and improved-diffusion, read from their files, against the answers of their own code.

Their code is no part of this repository. `record_guided_diffusion.py` built their nets, gave them weights by a rule
that `openai_nets.fill` follows again, and wrote their answers to `vectors/guided_diffusion.json`, with the names and
shapes of their weights. Here a file is made from those and read like a user's, and its net gets the same inputs.

These are the largest differences that scripts/parity.py prints (guided-diffusion 22e0df8, improved-diffusion 1bc7bbb,
torch 2.15, CPU, two threads, float32; another number of threads rounds differently):

                                        answer     x0         log variance
    the defaults                        1.8e-06    9.6e-07
    ADM                                 1.2e-06    9.6e-07    5.9e-07
    heads by width, old order           1.8e-06    9.7e-07    5.7e-07
    first level at half the channels    1.7e-06    9.7e-07
    one level                           1.3e-06    2.1e-06
    no attention but in the middle      1.0e-06    7.3e-07
    improved, 4,000 steps               2.3e-06    9.6e-07    1.1e-06
    improved, embedding added           2.3e-06    1.8e-06

Answers have deviation 0.5. Differences of x0 are divided by the factor that an error of the answer has there, 1 + sigma
where noise is predicted. Images are so large that a group of the deepest GroupNorm has at least four numbers: with two
or fewer (8x8 into four levels), float32 itself is off by 2e-4 in both.
"""

from __future__ import annotations

import hashlib
import json
import math

import pytest
import torch
from helpers.openai_nets import (
    CASES,
    CLASSES,
    GUIDED,
    IMPROVED,
    LIMIT,
    PROCESSES,
    PUBLISHED,
    asked,
    difference,
    read,
    state_dict,
    visited,
    weight,
)

from diffunet import build
from diffunet.errors import CheckpointError, UsageError
from diffunet.interop import guided_diffusion
from diffunet.interop.guided_diffusion import GUIDED_ONLY, IGNORED, parse, to_config, written


@pytest.mark.parametrize("name", CASES)
def test_answers(name, vectors, tmp_path, parity):
    case, recorded = CASES[name], vectors[name]
    model = read(tmp_path, state_dict(vectors, name), case.flags, case.dialect)
    config, denoiser = model.config, model.denoiser
    x, t, labels = asked(case, config.diffusion.num_steps)
    conditions = labels if "label_emb" in recorded["weights"] else None

    answer = denoiser.net(x, torch.tensor(recorded["timesteps"]), conditions)
    pair = f"{case.dialect}, {name} (recorded)"
    parity(f"{pair}, answer", difference(answer, recorded["answer"]), LIMIT)

    # The whole process: the timesteps as the net gets them, target, variance. Their x is ours / sqrt(1 + sigma^2).
    sigma = denoiser.schedule.sigmas[t].float()
    denoised = denoiser(x * (1 + sigma**2).sqrt()[:, None, None, None], sigma, conditions)
    units = (
        torch.ones(3) if config.diffusion.target == "x0" else 1 + sigma
    )  # the factor that an error of the answer has in x0
    for x0, theirs, unit in zip(denoised.x0, recorded["x0"], units.tolist(), strict=True):
        parity(f"{pair}, x0", difference(x0, theirs, 20) / unit, LIMIT)
    if config.diffusion.learned_variance:
        small = torch.stack([denoiser.schedule.posterior(x[:1], x[:1], int(step))[1] for step in t])
        low, high = (variance.log()[:, None, None, None] for variance in (small, denoiser.schedule.beta[t]))
        logvar = denoised.var * high + (1 - denoised.var) * low
        parity(f"{pair}, log variance", difference(logvar, recorded["log variance"], 30), LIMIT)
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
    ours, recorded = build.schedule(to_config(parse(flags, IMPROVED))), vectors[name]
    t = torch.tensor(visited(steps))
    torch.testing.assert_close(ours.beta[t], torch.tensor(recorded["beta"], dtype=torch.float64), rtol=1e-10, atol=0)
    alpha_bar = torch.tensor(recorded["alpha_bar"], dtype=torch.float64)
    torch.testing.assert_close(ours.alpha_bar[t], alpha_bar, rtol=1e-10, atol=0)
    assert ours.c_noise(ours.sigmas[t].float()).tolist() == recorded["timesteps"]


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
    """The flags of ADM at 64 pixels are those of Dhariwal & Nichol 2021, table 9."""
    config = to_config(parse(PUBLISHED["64x64_diffusion"][1], GUIDED))
    model, diffusion = config.model, config.diffusion
    assert (model.channels, model.multipliers, model.num_blocks) == (192, (1, 2, 3, 4), 3)
    assert (model.attention_levels, model.attention_resolutions, model.head_channels) == ((1, 2, 3), (32, 16, 8), 64)
    assert (model.resample, model.scale_shift, model.norm_groups, model.dropout) == ("residual", True, 32, 0.1)
    assert (diffusion.schedule, diffusion.num_steps, diffusion.rescale_timesteps) == ("cosine", 1000, False)
    assert (diffusion.target, diffusion.learned_variance, diffusion.threshold) == ("epsilon", True, "static")
    assert (diffusion.sigma_shift, diffusion.mean) == (1, (0, 0, 0))
    assert (config.data.image_size, config.data.reading) == (64, 2)


def test_heads():
    def heads(flags, dialect=GUIDED):
        model = to_config(parse(flags, dialect)).model
        return model.num_heads, model.head_channels

    assert heads("") == (4, 64)
    assert heads("--num_heads 1 --num_heads_upsample -1", IMPROVED) == (1, 64)
    assert heads("--num_heads 1 --num_head_channels 32 --num_heads_upsample 2") == (None, 32)
    with pytest.raises(UsageError, match="--num_heads_upsample 2 is not --num_heads 1"):
        heads("--num_heads 1 --num_heads_upsample 2", IMPROVED)
    with pytest.raises(UsageError, match="--num_head_channels 96 does not divide 512 channels"):
        heads("--num_head_channels 96")


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
