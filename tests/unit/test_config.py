"""Configurations: strict, and helpful when they refuse."""

import pytest
from omegaconf import OmegaConf

from diffdpo import config, parts
from diffdpo.errors import ConfigError
from diffdpo.objectives.dpo import DPO
from diffdpo.recipes.round import OBJECTIVE_ARGS, RoundRun
from diffdpo.recipes.sample import SampleRun
from diffdpo.recipes.train import TrainRun
from diffdpo.registry import Choice


def test_values_come_from_defaults_then_yaml_then_words(tmp_path):
    path = tmp_path / "train.yaml"
    path.write_text("out: runs/x\nseed: 3\ntrain: {steps: 7, learning_rate: 1e-3}\n")
    cfg = config.build_config(TrainRun, path, ["train.steps=9"])
    assert (cfg.out, cfg.seed, cfg.train.steps, cfg.train.learning_rate) == ("runs/x", 3, 9, 1e-3)
    assert cfg.train.global_batch == 8


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["out=x", "steps=2"], r"unknown key 'steps'. Did you mean 'train.steps'\?"),
        (["out=x", "train.per_devise=2"], r"unknown key 'train.per_devise'. Did you mean 'per_device'\?"),
        (["out=x", "train.steps=many"], "train.steps"),
        (["out=x", "train.steps=0"], "train.steps must be at least 1"),
        (["out=x", "train.precision=fp8"], "train.precision"),
        (["out=x", "train.lora.rank=0"], "lora.rank must be at least 1"),
        (["train.steps=3"], "no value for out"),
        (["out=x", "steps"], "not of the form key=value"),
        (["out=caf\udce9"], r"out=caf\\udce9: not UTF-8; rename the file, or link to it"),
        (["out=x", "train.dropout.style=2"], r"train.dropout.style must be in \[0, 1\]"),
    ],
)
def test_mistakes_are_named_with_their_remedy(words, says):
    with pytest.raises(ConfigError, match=says):
        config.build_config(TrainRun, None, words)


def test_a_missing_or_broken_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match="no such configuration"):
        config.build_config(TrainRun, tmp_path / "nowhere.yaml")
    (tmp_path / "bad.yaml").write_text("out: [1,\n")
    with pytest.raises(ConfigError, match="not valid YAML"):
        config.build_config(TrainRun, tmp_path / "bad.yaml")


def test_a_plug_ins_arguments_are_its_fields():
    assert parts.build_objective(Choice("dpo", {"beta": 500})) == DPO(beta=500.0)
    with pytest.raises(ConfigError, match=r"unknown objective 'dop'. Did you mean 'dpo'\?"):
        parts.build_objective(Choice("dop"))
    with pytest.raises(ConfigError, match=r"objective 'dpo': unknown key 'betta'. Did you mean 'beta'\?"):
        parts.build_objective(Choice("dpo", {"betta": 1}))
    with pytest.raises(ConfigError, match="objective 'dpo': beta must be a positive number"):
        parts.build_objective(Choice("dpo", {"beta": -1}))


def test_the_printed_configuration_loads_again_as_itself(tmp_path):
    cfg = config.build_config(TrainRun, None, ["out=x", "train.lora={rank: 4}", "train.dropout={style: 0.1}"])
    (tmp_path / "again.yaml").write_text(config.to_yaml(cfg))
    assert config.build_config(TrainRun, tmp_path / "again.yaml") == cfg


def test_scorers_are_names_or_names_with_arguments():
    scorers = parts.build_scorers(["rhythm", {"name": "harmony", "args": {}}])
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
        parts.build_scorers(entries)


def written(tmp_path, text):
    path = tmp_path / "some.yaml"
    path.write_text(text)
    return path


def test_arguments_go_with_the_part_they_were_given_for(tmp_path):
    prompts = "out: x\nmining_prompts: m\nevaluation_prompts: e\n"
    path = written(tmp_path, f"{prompts}train: {{objective: {{name: dpo, args: {{beta: 5.0}}}}}}\n")
    own = config.build_config(RoundRun, path, ["train.objective.args.anchor.winner=1.0"]).train.objective
    assert (own.name, own.args) == ("dpo", {"beta": 5.0, "anchor": {"winner": 1.0}})
    other = config.build_config(
        RoundRun, path, ["train.objective.name=nft", "train.objective.args.kl=0.1"]
    ).train.objective
    assert (other.name, other.args) == ("nft", {"kl": 0.1})
    default = config.build_config(
        RoundRun, written(tmp_path, prompts), ["train.objective.args.beta=5.0"]
    ).train.objective
    assert (default.name, default.args) == ("dpo", {**OBJECTIVE_ARGS, "beta": 5.0})


@pytest.mark.parametrize("layer", ["yaml", "words"])
def test_a_part_may_be_given_by_its_bare_name(tmp_path, layer):
    if layer == "yaml":
        path = written(
            tmp_path, "out: x\nprompts: p\nmodel: tiny\nsampling: {solver: euler, guidance: apg}\n"
        )
        cfg = config.build_config(SampleRun, path)
    else:
        cfg = config.build_config(
            SampleRun, None, ["out=x", "prompts=p", "sampling.solver=euler", "sampling.guidance=apg"]
        )
    assert (cfg.model, cfg.sampling.solver, cfg.sampling.guidance) == (
        Choice("tiny"), Choice("euler"), Choice("apg"),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["sampling.solver=eulr"], r"unknown solver 'eulr'. Did you mean 'euler'\?"),
        (["sampling.guidance=afg"], r"unknown guider 'afg'. Did you mean 'cfg'\?"),
        (
            ["sampling.solver.name=sde", "sampling.solver.args.etta=1"],
            r"solver 'sde' has no 'etta'. Did you mean 'eta'\?",
        ),
        (["sampling.guidance.name=apg", "sampling.guidance.args.momentun=0"], r"Did you mean 'momentum'\?"),
        (
            ["sampling.solver.name=sde", "sampling.solver.args.eta=much"],
            "eta of solver 'sde' must be a number",
        ),
    ],
)
def test_solvers_and_guiders_are_checked_like_every_part(words, says):
    with pytest.raises(ConfigError, match=says):
        config.build_config(SampleRun, None, ["out=x", "prompts=p", *words])


def test_a_round_sets_what_belongs_to_it(tmp_path):
    with pytest.raises(ConfigError, match=r"sample\.seed is set by the round itself"):
        config.build_config(
            RoundRun, None, ["out=x", "mining_prompts=m", "evaluation_prompts=e", "sample.seed=3"]
        )


def test_data_files_stand_beside_the_yaml_that_names_them_or_in_the_working_directory(tmp_path, monkeypatch):
    (tmp_path / "presets").mkdir()
    (tmp_path / "presets" / "p.jsonl").write_text("")
    path = written(tmp_path / "presets", "out: runs/x\nprompts: p.jsonl\n")
    cfg = config.build_config(SampleRun, path)
    assert (cfg.prompts, cfg.out) == (str(tmp_path / "presets" / "p.jsonl"), "runs/x")
    assert config.build_config(SampleRun, path, ["prompts=p.jsonl"]).prompts == "p.jsonl"


@pytest.mark.parametrize(
    ("words", "place"),
    [
        (["sampling.guidance_interval=[0.9,0.1]"], "command line: sampling.guidance_interval must be"),
        (["sampling={guidance_interval: [0.9, 0.1]}"], "command line: sampling.guidance_interval must be"),
        (["sampling.knobs=[{weight: 2}]"], "command line: sampling.knobs: positive and"),
        (["seed=3"], r"a\.yaml: sampling.guidance_interval must be"),
    ],
)
def test_a_refused_value_is_blamed_on_the_layer_that_set_it(tmp_path, words, place):
    content = "prompts: p\nout: o\nmodel: tiny\n"
    if words == ["seed=3"]:
        content += "sampling: {guidance_interval: [0.9, 0.1]}\n"
    (tmp_path / "a.yaml").write_text(content)
    with pytest.raises(ConfigError, match=place):
        config.build_config(SampleRun, tmp_path / "a.yaml", words)


def test_a_yaml_that_is_a_list_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="expected keys and values, got a list"):
        config.build_config(SampleRun, written(tmp_path, "- out\n"))


def test_the_printed_configuration_names_every_key():
    text = config.to_yaml(config.build_config(TrainRun, None, ["out=x"]))
    assert set(OmegaConf.create(text)) >= {"out", "model", "data", "objective", "train", "seed"}


def test_arguments_may_stand_before_the_part_they_are_for():
    words = ["model.args.bundle=folder", "model.name=tiny"]
    for line in (words, words[::-1]):
        cfg = config.build_config(SampleRun, None, [*line, "out=o", "prompts=p"])
        assert (cfg.model.name, cfg.model.args) == ("tiny", {"bundle": "folder"})
