"""The config: presets, TOML, and mistakes that are named."""

import math

import pytest
import torch

from diffunet import build, names
from diffunet.config import Config, preset, preset_names, read_toml, validated
from diffunet.errors import UsageError


@pytest.mark.parametrize("name", preset_names())
def test_presets_are_valid_and_survive_toml(name, tmp_path):
    config = preset(name)
    (tmp_path / "config.toml").write_text(config.to_toml(), encoding="utf-8")
    assert read_toml(tmp_path / "config.toml") == config


def test_the_default_preset_is_the_default():
    assert preset("default") == Config()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"model": {"chanels": 3}}, r"there is no option model\.chanels; did you mean model\.channels\?"),
        ({"modle": {}}, r"there is no option modle; did you mean model\?"),
        ({"train": {"learning_rate": float("nan")}}, r"train\.learning_rate"),
        ({"train": {"steps": 0}}, r"train\.steps: .*not 0"),
        ({"train": {"precision": "fp8"}}, "'auto', 'fp32', 'bf16' or 'fp16', not 'fp8'"),
        ({"data": {"channels": 2}}, r"data\.channels"),
        (
            {"diffusion": {"schedule": "flow", "target": "epsilon"}},
            "epsilon cannot be learned of pure noise",
        ),
        (
            {"diffusion": {"schedule": "cosine", "target": "epsilon", "zero_snr": True}},
            "target epsilon cannot be learned; take v or x0",
        ),
        ({"diffusion": {"zero_snr": True}}, r"zero-snr is of a DDPM schedule \(linear, .*\), not flow-logit-normal"),
        ({"diffusion": {"schedule": "edm", "learned_variance": True}}, "learned-variance is of a DDPM .*, not edm"),
        ({"diffusion": {"sampler": "ddpm-learned"}}, "sampler ddpm-learned needs learned-variance"),
        ({"diffusion": {"sampler": "dpm"}}, r"diffusion\.sampler: .*'dpm\+\+2m-sde' or 'unipc', not 'dpm'"),
        ({"diffusion": {"ladder": "rho"}}, r"diffusion\.ladder: .*'karras' or 'log-snr', not 'rho'"),
        ({"diffusion": {"threshold": "soft"}}, r"diffusion\.threshold: .*'none', 'static' or 'dynamic', not 'soft'"),
        ({"diffusion": {"task": "outpaint"}}, r"diffusion\.task: .*'generate' or 'inpaint', not 'outpaint'"),
        ({"diffusion": {"min_snr_gamma": 0}}, r"diffusion\.min_snr_gamma: .*greater than 0, not 0"),
    ],
)
def test_mistakes_name_the_option_the_value_and_what_is_allowed(content, message):
    with pytest.raises(UsageError, match=message):
        validated(content, "here")


@pytest.mark.parametrize("schedule", ["linear", "scaled-linear", "cosine", "sigmoid"])
def test_every_ddpm_schedule_may_end_in_pure_noise_and_learn_its_variance(schedule):
    said = {"schedule": schedule, "target": "v", "zero_snr": True, "learned_variance": True, "sampler": "ddpm-learned"}
    config = validated({"diffusion": said}, "here")
    assert build.schedule(config).sigma_max >= 4096
    assert build.denoiser(config, torch.nn.Identity()).learned_variance


def test_the_karras_ladder_has_rho_7():
    """sigma^(1/7) is evenly spaced (Karras et al. 2022, eq. 5)."""
    config = Config().changed("diffusion", ladder="karras")
    roots = build.ladder(config.diffusion, build.schedule(config), 10)[:-1] ** (1 / 7)
    assert torch.allclose(roots.diff(), roots.diff()[:1].expand(9))


def test_names_become_what_they_say():
    """Each name of a weighting, target, schedule and ladder is built as what it says."""
    for name in names.WEIGHTINGS:
        weight = build.weighting(Config().changed("diffusion", weighting=name))(torch.ones(1), torch.full((1,), 0.5))
        wanted = {  # at SNR 1 and c_out 1/2, by hand; flow-logit-normal has the normal's density / 2 there
            "simple": 4, "min-snr": 1, "soft-min-snr": 5 / 6, "edm": 5, "p2": 0.5,
            "sigmoid": 1 / (1 + math.exp(-2)) * 2 * math.sqrt(2 * math.pi),
        }  # fmt: skip
        assert weight.item() == pytest.approx(wanted[name], rel=1e-4)
    for name in names.TARGETS:
        target = build.target(Config().changed("diffusion", target=name, schedule="cosine"))
        assert type(target).__name__.lower() == name
    for name in names.SCHEDULES:
        schedule = build.schedule(Config().changed("diffusion", schedule=name))
        assert getattr(schedule, "kind", name) == name
    shift = build.schedule(Config().changed("data", image_size=256))
    assert shift.sigma(torch.tensor(0.5)).item() == pytest.approx(4)
    for name in names.LADDERS:
        ladder = build.ladder(Config().changed("diffusion", ladder=name).diffusion, build.schedule(Config()), 10)
        assert (ladder.diff() < 0).all()


def test_unknown_presets_and_broken_files(tmp_path):
    with pytest.raises(UsageError, match="did you mean default"):
        preset("defualt")
    (tmp_path / "x.toml").write_text("[model\n")
    with pytest.raises(UsageError, match=r"x\.toml cannot be read"):
        read_toml(tmp_path / "x.toml")


def test_the_hash_knows_what_matters():
    config = Config()
    assert config.hash() == Config().hash()
    assert config.hash() == config.changed("train", steps=7).hash() == config.changed("data", cache="off").hash()
    assert config.hash() != config.changed("model", num_blocks=3).hash()
