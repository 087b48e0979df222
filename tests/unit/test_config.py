"""Configurations: strict, and helpful when they refuse."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from diffdpo import config
from diffdpo.errors import ConfigError
from diffdpo.objectives.dpo import DPO

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*/*.yaml"))
VERBS = [path for path in CONFIGS if path.parent.name != "accelerate"]


def test_values_come_from_defaults_then_yaml_then_words(tmp_path):
    path = tmp_path / "train.yaml"
    path.write_text("out: runs/x\nseed: 3\ntrain: {steps: 7, learning_rate: 1e-3}\n")
    cfg = config.load(config.TrainRun, path, ["train.steps=9"])
    assert (cfg.out, cfg.seed, cfg.train.steps, cfg.train.learning_rate) == ("runs/x", 3, 9, 1e-3)
    assert cfg.train.global_batch == 8


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["out=x", "train.per_devise=2"], r"unknown key 'train.per_devise'. Did you mean 'per_device'\?"),
        (["out=x", "train.steps=many"], "train.steps"),
        (["out=x", "train.steps=0"], "train.steps must be at least 1"),
        (["out=x", "train.precision=fp8"], "train.precision"),
        (["out=x", "train.lora.rank=0"], "lora.rank must be at least 1"),
        (["train.steps=3"], "no value for out"),
        (["out=x", "steps"], "not of the form key=value"),
        (["out=x", "train.dropout.style=2"], r"train.dropout.style must be in \[0, 1\]"),
    ],
)
def test_mistakes_are_named_with_their_remedy(words, says):
    with pytest.raises(ConfigError, match=says):
        config.load(config.TrainRun, None, words)


def test_a_missing_or_broken_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match="no such configuration"):
        config.load(config.TrainRun, tmp_path / "nowhere.yaml")
    (tmp_path / "bad.yaml").write_text("out: [1,\n")
    with pytest.raises(ConfigError, match="not valid YAML"):
        config.load(config.TrainRun, tmp_path / "bad.yaml")


def test_a_plug_ins_arguments_are_its_fields():
    assert config.build_objective(config.Choice("dpo", {"beta": 500})) == DPO(beta=500.0)
    with pytest.raises(ConfigError, match=r"unknown objective 'dop'. Did you mean 'dpo'\?"):
        config.build_objective(config.Choice("dop"))
    with pytest.raises(ConfigError, match=r"objective 'dpo': unknown key 'betta'. Did you mean 'beta'\?"):
        config.build_objective(config.Choice("dpo", {"betta": 1}))
    with pytest.raises(ConfigError, match="objective 'dpo': beta must be positive"):
        config.build_objective(config.Choice("dpo", {"beta": -1}))


@pytest.mark.parametrize("path", VERBS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_every_preset_loads_and_its_plug_ins_exist(path):
    verb = OmegaConf.load(path)
    (schema,) = [s for v, s in config.SCHEMAS.items() if path.stem.split("_")[0] == v][:1] or [None]
    assert schema is not None, f"{path.name} should begin with the verb it is for"
    needed = [f"{key}=x" for key in OmegaConf.missing_keys(OmegaConf.structured(schema)) if key not in verb]
    config.check(config.load(schema, path, [word for word in needed if word.count(".") == 0]))


def test_every_preset_is_explained():
    for path in CONFIGS:
        assert path.read_text().startswith("# "), f"{path} should begin with what it is for"


def test_the_printed_configuration_loads_again_as_itself(tmp_path):
    cfg = config.load(config.TrainRun, None, ["out=x", "train.lora={rank: 4}", "train.dropout={style: 0.1}"])
    (tmp_path / "again.yaml").write_text(config.to_yaml(cfg))
    assert config.load(config.TrainRun, tmp_path / "again.yaml") == cfg


def test_scorers_are_names_or_names_with_arguments():
    scorers = config.build_scorers(["rhythm", {"name": "harmony", "args": {}}])
    assert list(scorers) == ["rhythm", "harmony"]


@pytest.mark.parametrize(
    ("entries", "complaint"),
    [
        (["rythm"], "Did you mean 'rhythm'"),
        ([{"name": "rhythm", "args": {"sped": 1}}], "unknown key 'sped'"),
        ([{"nmae": "rhythm"}], "unknown key 'nmae'. Did you mean 'name'"),
        (["rhythm", "rhythm"], "named twice"),
        ([{"args": {}}], "no value for name"),
    ],
)
def test_a_scorer_that_cannot_be_built_is_a_configuration_error(entries, complaint):
    with pytest.raises(ConfigError, match=complaint):
        config.build_scorers(entries)


def test_arguments_go_with_the_plug_in_they_were_given_for(tmp_path):
    path = tmp_path / "round.yaml"
    path.write_text(
        "out: x\nmining_prompts: m\nevaluation_prompts: e\nobjective: {name: dpo, args: {beta: 5.0}}\n"
    )
    kept = config.load(config.RoundRun, path, ["objective.args.anchor.winner=1.0"]).objective
    assert (kept.name, kept.args) == ("dpo", {"beta": 5.0, "anchor": {"winner": 1.0}})
    plain = tmp_path / "plain.yaml"
    plain.write_text("out: x\nmining_prompts: m\nevaluation_prompts: e\n")
    default = config.load(config.RoundRun, plain, ["objective.args.beta=5.0"]).objective
    assert (default.name, default.args) == ("dpo", {**config.GUARDED, "beta": 5.0})
    other = config.load(config.RoundRun, path, ["objective.name=nft", "objective.args.kl=0.1"]).objective
    assert (other.name, other.args) == ("nft", {"kl": 0.1})
