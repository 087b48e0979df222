"""Presets: every one loads, and is found by its name."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from diffdpo import cli, config, presets
from diffdpo.errors import ConfigError

ALL = list(presets.all_presets())
OF_VERBS = [preset for preset in ALL if preset.verb not in presets.LAUNCHERS]


@pytest.mark.parametrize("preset", OF_VERBS, ids=lambda preset: preset.name)
def test_every_preset_loads_by_name_and_its_parts_exist(preset):
    content = OmegaConf.load(preset.path)
    words = [f"{key}=x" for key in content if OmegaConf.is_missing(content, key)]
    by_name = cli.load_config(preset.verb, preset.name, words)
    assert config.to_yaml(cli.load_config(preset.verb, str(preset.path), words)) == config.to_yaml(by_name)


@pytest.mark.parametrize("preset", ALL, ids=lambda preset: preset.name)
def test_every_preset_says_what_it_is_for(preset):
    if preset.path.suffix == ".yaml":
        assert preset.headline
        assert len(preset.headline) <= 120


def test_names_are_unique_for_a_verb():
    names = [(preset.verb, preset.name, preset.path.suffix) for preset in ALL]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("name", ["tiny/dpo", "tiny/train_dpo", "tiny/train_dpo.yaml"])
def test_a_preset_is_found_by_name_and_by_file(name):
    assert presets.find_preset("train", name).name == "train_dpo.yaml"


def test_a_verb_names_its_own_preset():
    assert presets.find_preset("sample", "tiny/sample").name == "sample.yaml"
    assert (
        presets.find_preset("round", "tiny/demo")
        == presets.find_preset("demo", "tiny/demo")
        == presets.default("demo")
    )
    assert presets.default("train") is None


def test_a_path_goes_before_a_preset(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("tiny").mkdir()
    Path("tiny/dpo").write_text("out: mine\n")
    assert presets.find_preset("train", "tiny/dpo") == Path("tiny/dpo")


@pytest.mark.parametrize(
    ("verb", "name", "says"),
    [
        ("train", "tiny/dop", r"no preset of this name. Did you mean 'tiny/dpo'\?"),
        ("train", "tiny/mine", r"tiny/mine is a preset of `diffdpo mine`, not of train"),
        ("score", "tiny/nft", r"`diffdpo (train|round)`, not of score. Presets of score: tiny/score"),
        ("train", "nowhere.yaml", "nowhere.yaml: no such configuration"),
    ],
)
def test_other_names_are_refused_with_what_was_meant(verb, name, says):
    with pytest.raises(ConfigError, match=says):
        presets.find_preset(verb, name)


def test_the_command_that_makes_a_folder_is_that_of_the_preset_that_writes_it():
    assert presets.command_that_makes("runs/tiny/pairs") == "diffdpo mine tiny/mine"
    assert presets.command_that_makes("runs/tiny/samples") == "diffdpo sample tiny/sample"
    assert presets.command_that_makes("elsewhere") == ""


def test_deepspeed_files_are_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    launchers = [preset.path for preset in ALL if preset.verb == "accelerate"]
    names = [OmegaConf.select(OmegaConf.load(p), "deepspeed_config.deepspeed_config_file") for p in launchers]
    files = [presets.deepspeed_file(name) for name in names if name]
    assert files
    assert all(Path(name).is_file() for name in files)
    (tmp_path / "own.json").touch()
    assert [presets.deepspeed_file(name) for name in ("own.json", "none.json", "")] == [
        "own.json",
        "none.json",
        "",
    ]
