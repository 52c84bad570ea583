"""The lists of names, and what is held against them: the config, the tables, the help, the guides, and the aliases."""

import functools
import inspect
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
import torch

import diffunet
from diffunet import build, guides, names, storage
from diffunet.commands import arguments, cli
from diffunet.commands.folders import masks as masks_command
from diffunet.commands.inpaint import inpaint
from diffunet.commands.options import Sampling
from diffunet.commands.train import Train
from diffunet.config import Config, ModelConfig, preset_names, read_toml
from diffunet.config.model import BOTH_NETS
from diffunet.errors import UsageError
from diffunet.inpainting import masks, methods
from diffunet.nn.unet import UNet
from diffunet.nn.unet2015 import UNet2015
from diffunet.training import run_folder

ROOT = Path(__file__).parents[1]

OPTIONS = {
    "model.net": names.NETS, "model.resample": names.RESAMPLES, "diffusion.task": names.TASKS,
    "diffusion.schedule": names.SCHEDULES, "diffusion.target": names.TARGETS, "diffusion.weighting": names.WEIGHTINGS,
    "diffusion.sampler": names.SAMPLERS, "diffusion.ladder": names.LADDERS, "diffusion.threshold": names.THRESHOLDS,
    "data.fit": names.FITS, "data.masks": ("mixed", *names.MASK_KINDS),
}  # fmt: skip
"""The options of a config that name one of a list."""

NEEDED = {"sampler": {"schedule": "cosine", "target": "v", "learned_variance": True}, "target": {"schedule": "cosine"}}
"""What some names of an option need beside them."""


def with_name(option, name):
    section, _, last = option.partition(".")
    return Config.model_validate({section: NEEDED.get(last, {}) | {last: name}})


@pytest.mark.parametrize(("option", "name"), [(option, name) for option, all_of in OPTIONS.items() for name in all_of])
def test_the_config_accepts_every_name(option, name, tmp_path):
    section, _, last = option.partition(".")
    config = with_name(option, name)
    assert getattr(getattr(config, section), last) == name
    (tmp_path / "config.toml").write_text(config.to_toml())
    assert read_toml(tmp_path / "config.toml") == config


def test_every_name_has_a_row_and_every_row_a_name():
    assert tuple(build.SAMPLERS) == names.SAMPLERS
    assert tuple(build.SCHEDULES) == names.SCHEDULES
    assert tuple(build.TARGETS) == names.TARGETS
    assert tuple(build.WEIGHTINGS) == names.WEIGHTINGS
    assert tuple(masks.KINDS) == names.MASK_KINDS, "a drawn kind is the number of a row"
    assert tuple(methods._TABLE) == names.METHODS
    assert tuple(name for name, row in methods._TABLE.items() if row.jumps is not None) == names.JUMPING


@pytest.mark.parametrize("name", names.SAMPLERS)
def test_the_row_of_a_sampler_says_how_often_it_calls_the_net(name):
    """On a ladder without long strides, over which heun's step is Euler's."""
    step, calls = build.step(with_name("diffusion.sampler", name).diffusion), []

    def denoise(x, sigma):
        calls.append(sigma)
        return build.samplers.Denoised(0.5 * x, torch.zeros_like(x))

    sigmas, x = build.schedules.karras(0.1, 10, 5), torch.ones(1, 1, 2, 2)
    list(build.samplers.sample(denoise, x, sigmas, step, lambda: torch.zeros(1)))
    assert len(calls) == build.calls(name, 5) == build.SAMPLERS[name].calls(5)


def test_every_net_is_built():
    kinds = {"unet": UNet, "unet2015": UNet2015}
    assert kinds.keys() == set(names.NETS)
    for name, kind in kinds.items():
        section = {"net": name, "channels": 8, "multipliers": (1, 2), "attention_levels": ()}
        assert type(build.net(Config.model_validate({"model": section}))) is kind


def test_help_lists_every_name_once(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "300")

    def help_of(command):
        with pytest.raises(SystemExit):
            cli.main([command, "--help-all"])
        rows = re.split(r"\n  (?=--)", capsys.readouterr().out)  # one for each option, which it begins with
        return {row.split()[0]: " ".join(row.split()[1:]) for row in rows}

    def is_listed(option, all_of, rows):
        about = rows[f"--{option}"]
        return about.startswith(f"{'|'.join(all_of)} ") or f" One of {', '.join(all_of)}" in about

    train, sampling = help_of("train"), help_of("sample")
    for option, all_of in OPTIONS.items():
        assert is_listed(option, all_of, train), option
    for option, all_of in ("sampler", names.SAMPLERS), ("ladder", names.LADDERS), ("threshold", names.THRESHOLDS):
        assert is_listed(option, all_of, sampling), option
    for alias, name in names.ALIASES.items():
        assert [row for row, about in sampling.items() if f"{alias} is {name}" in about] == ["--sampler"]
    assert is_listed("kind", ("mixed", *names.MASK_KINDS), help_of("masks"))
    inpainting = help_of("inpaint")
    assert is_listed("method", ("auto", *names.METHODS), inpainting)
    assert is_listed("fit", names.INPAINT_FITS, inpainting)


def test_the_types_and_the_tuples_say_the_same():
    hints = get_type_hints(inpaint)
    assert get_args(hints["method"]) == ("auto", *names.METHODS)
    assert get_args(hints["fit"]) == names.INPAINT_FITS
    assert get_args(get_type_hints(masks_command)["kind"]) == ("mixed", *names.MASK_KINDS)
    assert get_args(get_type_hints(Sampling)["sampler"])[0] == names.SamplerName


def test_the_guides_describe_every_name_that_is_chosen_for_sampling_and_inpainting():
    written = "".join(guides.text(topic) for topic in guides.TOPICS if topic != "options")
    table = written[written.index("| sampler | what it is |") :].partition("\n\n")[0]
    for name in (*names.SAMPLERS, *names.ALIASES):
        assert f"`{name}`" in table, name
    for name in (*names.LADDERS, *names.THRESHOLDS[1:], *names.METHODS, "random", "pad", "native", "tile"):
        assert f"`{name}`" in written, name
    for name in (*names.SCHEDULES, *names.TARGETS, *names.WEIGHTINGS):
        assert re.search(rf"(?<![\w-]){name}(?![\w-])", written), name


def test_the_names_are_read_without_torch_and_pydantic():
    code = "import sys, diffunet.names; print('torch' in sys.modules, 'pydantic' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said == "False False\n"


# Aliases.


def test_an_alias_stands_for_the_same_step():
    assert not set(names.ALIASES) & set(names.SAMPLERS)
    x = torch.linspace(-2, 2, 8)[None, None, None]
    for alias, name in names.ALIASES.items():
        own = getattr(build.samplers, alias.replace("-", "_"))()
        ends = [
            build.samplers.last(
                build.samplers.sample(
                    lambda x, sigma: build.samplers.Denoised(x / (1 + sigma**2), x),
                    x, build.schedules.karras(0.1, 10, 6), step, lambda: torch.full((1, 1, 1, 8), 0.25),
                )
            )
            for step in (own, build.SAMPLERS[name].make())
        ]  # fmt: skip
        assert torch.equal(*ends), alias


@pytest.mark.parametrize(("alias", "name"), names.ALIASES.items())
def test_an_alias_is_accepted_wherever_a_sampler_is_named_and_becomes_its_name(alias, name, tmp_path):
    config = Config().changed("diffusion", sampler=alias)
    assert config == Config.model_validate({"diffusion": {"sampler": name}})
    assert config.diffusion.sampler == name
    assert config.hash() == Config().changed("diffusion", sampler=name).hash()
    (tmp_path / "config.toml").write_text(f'[diffusion]\nsampler = "{alias}"\n')
    assert read_toml(tmp_path / "config.toml") == config
    assert f'sampler = "{name}"' in config.to_toml()
    assert build.sampling(Config().diffusion, sampler=alias) == config.diffusion
    assert build.calls(alias, 7) == build.calls(name, 7)


@pytest.mark.parametrize(("alias", "name"), names.ALIASES.items())
@pytest.mark.parametrize("form", ["{} {}", "{}={}"])
def test_an_alias_is_accepted_on_the_command_line(alias, name, form):
    seen = []

    def command(*, sampler: names.SamplerName | None = None, out: str = "") -> None:
        seen.append((sampler, out))

    arguments.call(command, [*form.format("--sampler", alias).split(), "--out", alias], "sample")
    assert seen == [(name, alias)], "a word that follows another option stays"
    words = ["photos", "--out", "run", *form.format("--diffusion.sampler", alias).split()]
    assert arguments.parse(Train, words, "train", Train(Path(), Path())).diffusion.sampler == name


def test_what_is_chosen_for_sampling_changes_nothing_else():
    grey = Config.model_validate({"data": {"channels": 1}, "diffusion": {"mean": [0.25], "sigma_data": 0.3}}).diffusion
    chosen = build.sampling(grey, sampler="heun", ladder="karras", threshold="static")
    assert (chosen.sampler, chosen.ladder, chosen.threshold) == ("heun", "karras", "static")
    same = {"sampler": grey.sampler, "ladder": grey.ladder, "threshold": grey.threshold}
    assert chosen.model_copy(update=same) == grey
    assert build.sampling(grey, sampler=None) is grey


def test_a_mistake_is_answered_with_the_names_and_the_aliases_once():
    with pytest.raises(UsageError) as caught:
        build.sampling(Config().diffusion, sampler="magic")
    listed = f"{', '.join(names.SAMPLERS)} (ddim is euler, euler-ancestral is ddpm)"
    assert str(caught.value) == f"unknown sampler 'magic'; there are {listed}"
    with pytest.raises(UsageError, match=r"^unknown ladder 'ddim'; there are trailing, .*, log-snr$"):
        build.sampling(Config().diffusion, ladder="ddim")
    with pytest.raises(UsageError, match=r"diffusion\.sampler: Input should be 'ddpm', .* or 'unipc'"):
        Config().changed("diffusion", sampler=["ddim"])


@pytest.fixture
def old(tmp_path):
    """A run of diffunet 0.1 that stated an alias in its config.toml and its model."""

    def make(alias):
        shutil.copytree(ROOT / "tests/fixtures/v1", tmp_path / "old")
        run = tmp_path / "old/run"
        text = (run / "config.toml").read_text()
        (run / "config.toml").write_text(text.replace('sampler = "dpm++2m"', f'sampler = "{alias}"'))
        content = json.loads((run / "model" / storage.CONFIG).read_text())
        content["config"]["diffusion"]["sampler"] = alias
        (run / "model" / storage.CONFIG).write_text(json.dumps(content))
        assert f'"{alias}"' in (run / "config.toml").read_text()
        return run

    return make


@pytest.mark.parametrize(("alias", "name"), names.ALIASES.items())
def test_a_run_that_states_an_alias_is_sampled_and_goes_on(alias, name, old):
    run = old(alias)
    pipe = diffunet.load(run, device="cpu", dtype=torch.float32)
    assert pipe.config.diffusion.sampler == name
    pictures = [pipe.sample(1, steps=3, sampler=sampler)[0].tobytes() for sampler in (None, alias, name)]
    assert len(set(pictures)) == 1
    stored = read_toml(run / "config.toml")
    for sampler in (alias, name):
        same = run_folder._same_run(Config().changed("diffusion", sampler=sampler), stored, done=2)
        # It was trained at a constant rate, at full size and by AdamW.
        assert same == stored.changed("train", cooldown=0.0, half_size=0.0, optimizer="adamw")
    asked = Config().changed("diffusion", sampler=alias).changed("train", steps=5)
    diffunet.train(asked, run.parent / "data", run, resume=True)
    assert read_toml(run / "config.toml").diffusion.sampler == name
    assert storage.read_header(run / "model" / storage.WEIGHTS)[1]["config"] == read_toml(run / "config.toml").hash()


# The options of the net.


def test_every_option_of_the_net_reaches_it(monkeypatch):
    """The fields of the section but those that choose the net and its levels are keywords of `UNet`."""
    keywords = inspect.signature(UNet).parameters
    assert set(ModelConfig.model_fields) - set(keywords) == {"net", "attention_resolutions", "custom"}
    chosen = {
        "channels": 16, "multipliers": (1, 3), "num_blocks": 3, "attention_levels": (0,), "middle_attention": False,
        "head_channels": 4, "num_heads": 2, "qk_norm": True, "norm_groups": 4, "norm_eps": 1e-4, "scale_shift": False,
        "resample": "residual", "frequency_shift": 1, "dropout": 0.25, "checkpointing": True,
    }  # fmt: skip
    assert chosen.keys() == set(ModelConfig.model_fields) & set(keywords)
    built = []
    monkeypatch.setattr(build, "UNet", functools.wraps(UNet)(lambda **options: built.append(options)))
    build.net(Config.model_validate({"model": chosen}))
    assert {name: built[0][name] for name in chosen} == chosen


def test_what_is_not_chosen_is_the_default_of_the_net():
    keywords = inspect.signature(UNet).parameters
    for name in (keywords.keys() & ModelConfig.model_fields.keys()) - {"channels", "multipliers", "attention_levels"}:
        assert ModelConfig.model_fields[name].default in (None, keywords[name].default), name


def test_the_classic_refuses_the_options_of_the_unet_alone():
    changed = {
        "attention_levels": (0,), "middle_attention": False, "num_blocks": 3, "head_channels": 4, "num_heads": 2,
        "qk_norm": True, "norm_groups": 4, "norm_eps": 1e-4, "scale_shift": False, "resample": "residual",
        "frequency_shift": 1, "checkpointing": True,
    }  # fmt: skip
    assert changed.keys() == set(ModelConfig.model_fields) - set(BOTH_NETS)
    for name, value in changed.items():
        with pytest.raises(UsageError, match=f"net unet2015 has no {name.replace('_', '-')}"):
            Config().changed("model", **{"net": "unet2015", name: value})
    Config().changed("model", net="unet2015", attention_levels=(), checkpointing=False)


def test_presets_state_names_that_are_listed():
    for name in preset_names():
        assert not re.search(rf'"({"|".join(names.ALIASES)})"', (ROOT / f"diffunet/presets/{name}.toml").read_text())
