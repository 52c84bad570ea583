"""The config: presets, TOML, and mistakes that are named."""

import pytest

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
        ({"train": {"precision": "fp16"}}, "'auto', 'fp32' or 'bf16', not 'fp16'"),
        ({"data": {"channels": 2}}, r"data\.channels"),
        ({"diffusion": {"schedule": "flow", "target": "epsilon"}}, "epsilon cannot be learned on a flow schedule"),
    ],
)
def test_mistakes_name_the_option_the_value_and_what_is_allowed(content, message):
    with pytest.raises(UsageError, match=message):
        validated(content, "here")


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
