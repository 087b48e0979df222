"""Words meant as text stay text, one value is a list of one, paths are expanded, and errors are in our words."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from diffdpo import config
from diffdpo.cli import app
from diffdpo.errors import ConfigError
from diffdpo.recipes.evaluate import EvaluateRun
from diffdpo.recipes.mine import MineRun
from diffdpo.recipes.round import RoundRun
from diffdpo.recipes.sample import SampleRun
from diffdpo.recipes.score import ScoreRun
from diffdpo.recipes.train import TrainRun
from diffdpo.yaml_text import Scalar, float_of, int_of, parse_yaml, plain_value

TRICKY = ["no", "off", "yes", "on", "y", "true", "2026_11_28", "1e3", "010", "0x10", "1:30", "7", ".5", "1.0"]
"""Texts that YAML 1.1 reads as truth values or numbers."""
SAMPLE = ["out=x", "prompts=p"]


def build(schema, *words):
    return config.build_config(schema, None, words)


def build_yaml(folder, schema, text):
    path = folder / "some.yaml"
    path.write_text(text, encoding="utf-8")
    return config.build_config(schema, path)


@pytest.mark.parametrize("text", TRICKY)
def test_text_stays_text_in_words_and_yaml_and_comes_back_from_what_is_printed(tmp_path, text):
    words = [
        f"out={text}", f"prompts={text}", f"model.args.network={text}", "sampling.precision=no",
        f"model.args={{adapter: {text}}}", "longform={method: joint}",
    ]  # fmt: skip
    cfg = build(SampleRun, *words)
    assert (cfg.out, cfg.prompts, cfg.sampling.precision) == (text, text, "no")
    assert cfg.model.args == {"network": text, "adapter": text}
    yaml = f"out: {text}\nprompts: {text}\nmodel: {{args: {{network: {text}, adapter: {text}}}}}\n"
    assert build_yaml(tmp_path, SampleRun, f"{yaml}longform: {{method: joint}}\n") == cfg
    assert build_yaml(tmp_path, SampleRun, config.to_yaml(cfg)) == cfg


def test_precision_no_is_the_documented_value(tmp_path):
    assert build(TrainRun, "out=x", "train.precision=no").train.precision == "no"
    assert build_yaml(tmp_path, TrainRun, "out: x\ntrain: {precision: no}\n").train.precision == "no"
    with pytest.raises(ConfigError, match=r"train.precision: expected one of no, bf16, fp16, got 'fp8'"):
        build(TrainRun, "out=x", "train.precision=fp8")


def test_lists_and_dicts_hold_text_as_written(tmp_path):
    cfg = build(TrainRun, "out=x", "train.lora.targets=[no, 1e3]", "train.dropout.on=0.5")
    assert (cfg.train.lora.targets, cfg.train.dropout) == (["no", "1e3"], {"on": 0.5})
    yaml = (
        "samples: [no, 2026_11_28]\nout: x\nscorers: [rhythm, {name: songeval, args: {muq: off, batch: 2}}]\n"
    )
    cfg = build_yaml(tmp_path, ScoreRun, yaml)
    assert cfg.samples == ["no", "2026_11_28"]
    assert cfg.scorers == ["rhythm", {"name": "songeval", "args": {"muq": "off", "batch": 2}}]


@pytest.mark.parametrize("word", ["true", "True", "yes", "YES", "on", "1", "y"])
def test_truth_values_have_all_spellings(tmp_path, word):
    assert build(TrainRun, "out=x", f"train.compile={word}").train.compile is True
    assert build_yaml(tmp_path, TrainRun, f"out: x\ntrain: {{compile: {word}}}\n").train.compile is True
    with pytest.raises(ConfigError, match=r"train.compile: expected true or false, got 'maybe'"):
        build(TrainRun, "out=x", "train.compile=maybe")


@pytest.mark.parametrize(
    ("schema", "words", "field", "value"),
    [
        (ScoreRun, ["out=o", "samples=DIR"], "samples", ["DIR"]),
        (ScoreRun, ["out=o", "samples=a,b"], "samples", ["a,b"]),
        (ScoreRun, ["out=o", "samples=x", "scorers=production"], "scorers", ["production"]),
        (MineRun, ["out=o", "samples=x", "scores=s", "axes=harmony.key"], "axes", ["harmony.key"]),
        (
            EvaluateRun,
            ["out=o", "baseline=b", "aligned=a", "scores=s", "mined_axes=production.balance"],
            "mined_axes",
            ["production.balance"],
        ),
    ],
)
def test_one_value_is_a_list_of_one(schema, words, field, value):
    assert getattr(build(schema, *words), field) == value


def test_no_value_is_an_empty_list():
    assert build(TrainRun, "out=x", "train.trackers=").train.trackers == []
    assert build(TrainRun, "out=x", "train.trackers=wandb").train.trackers == ["wandb"]


def test_the_dots_of_an_axis_are_part_of_its_name():
    words = [
        "samples=x",
        "scores=s",
        "out=o",
        "weights.production.balance=2",
        "rule.args.weights.harmony.key=3",
    ]
    cfg = build(MineRun, *words)
    assert cfg.weights == {"production.balance": 2.0}
    assert cfg.rule.args == {"weights": {"harmony.key": 3.0}}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["train.steps=x"], "train.steps: expected a whole number, got 'x'"),
        (["train.steps=1.5"], "train.steps: expected a whole number, got '1.5'"),
        (["train.steps="], "train.steps: expected a whole number, got nothing"),
        (["train.steps=1:30"], "train.steps: expected a whole number, got '1:30'"),
        (["train.learning_rate=fast"], "train.learning_rate: expected a number, got 'fast'"),
        (["train.betas=[0.9, much]"], r"train.betas\[1\]: expected a number, got 'much'"),
        (["train=3"], "train: expected keys and values, got '3'"),
        (["objective.args.span.share=half"], "objective.args.span.share: expected a number, got 'half'"),
        (["objective.args.auto_beta.range=3"], "objective.args.auto_beta.range: expected 2 values"),
        (["data.pairs=null"], "data.pairs: expected text .*, got 'null'"),
        (["seed=${nope}"], "seed: a reference .* cannot be resolved"),
        (["train.betas=[0.5"], "train.betas: not valid YAML"),
        (["seed=-1"], "seed must be a whole number of at least 0"),
        (["objective=3"], "objective: got 3, but takes a name"),
        (["model.args.netwrk=x"], "unknown key 'model.args.netwrk'. Did you mean 'network'"),
    ],
)
def test_mistakes_are_in_our_words_and_one_line(words, says):
    with pytest.raises(ConfigError, match=says) as error:
        build(TrainRun, "out=x", *words)
    assert "\n" not in str(error.value)
    assert "Node" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("- out\n", "expected keys and values, got a list"),
        ("just text\n", "expected keys and values, got one value"),
        ("", "no value for out"),
        ("out:\tx\n\tseed: 1\n", "not valid YAML"),
        ("out: x\nout: y\n", "the key 'out' stands twice"),
        ("out: !!python/object/apply:os.getcwd []\n", "tag .* is not allowed"),
        ("out: &a [*a]\n", "holds itself"),
        ("out: ${x.y}\n", "a reference"),
        ("out: ${\n", "a reference"),
        ("out: ${DIFFDPO_NO_SUCH_PLACE}/x\n", "no variable DIFFDPO_NO_SUCH_PLACE"),
        ("? [a, b]\n: c\n", "not valid YAML"),
    ],
)
def test_a_yaml_that_cannot_be_used_is_one_line(tmp_path, text, says):
    with pytest.raises(ConfigError, match=says) as error:
        build_yaml(tmp_path, TrainRun, text)
    assert "\n" not in str(error.value)


def test_home_and_variables_are_expanded_in_paths_and_nowhere_else(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PLACE", "songs")
    yaml = (
        "out: ~/runs\nmodel: {args: {adapter: '~/a@0.5,$HOME/b'}}\n"
        "data: {pairs: '${HOME}/$PLACE/p', ratings: Ke$ha, songs: '${out}/s'}\n"
        "train: {trackers: ['~']}\n"
    )
    cfg = build_yaml(tmp_path, TrainRun, yaml)
    assert cfg.out == f"{tmp_path}/runs"
    assert cfg.model.args["adapter"] == f"{tmp_path}/a@0.5,{tmp_path}/b"
    assert (cfg.data.pairs, cfg.data.ratings) == (f"{tmp_path}/songs/p", "Ke$ha")
    assert cfg.data.songs == f"{tmp_path}/runs/s"
    assert cfg.train.trackers == ["~"]
    assert build(ScoreRun, "samples=[~/a, b]", "out=${HOME}/s").samples == [f"{tmp_path}/a", "b"]
    with pytest.raises(ConfigError, match="no user of this name"):
        build(ScoreRun, "samples=a", "out=~nobody-of-this-name/x")


def test_every_field_that_names_a_file_is_a_path(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    words = ["out", "mining_prompts", "evaluation_prompts", "validation_prompts"]
    cfg = build(RoundRun, *(f"{word}=~/x" for word in words))
    assert {getattr(cfg, word) for word in words} == {f"{tmp_path}/x"}


def test_commands_expand_paths_too(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    result = CliRunner().invoke(app, ["presets", "--export", "~/mine"])
    assert result.exit_code == 0
    assert (tmp_path / "mine" / "tiny").is_dir()
    result = CliRunner().invoke(app, ["song", "rock", "~/x.flac", "--steps", "0"])
    assert (result.exit_code, result.stderr.strip()) == (2, "error: steps must be at least 1, got 0")
    result = CliRunner().invoke(app, ["song", "rock", "~/x.flac", "--arg", "network"])
    assert "--arg network: not of the form key=value" in result.stderr


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        (EvaluateRun, ["baseline=b", "aligned=a", "scores=s", "out=o", "mined_axes=[production.balanse]"]),
        (MineRun, ["samples=x", "scores=s", "out=o", "axes=[production.balanse]"]),
        (MineRun, ["samples=x", "scores=s", "out=o", "weights={production.balanse: 2}"]),
        (
            RoundRun,
            ["out=o", "mining_prompts=m", "evaluation_prompts=e", "evaluate.mined_axes=production.balanse"],
        ),
    ],
)
def test_a_misspelt_axis_is_refused_with_a_suggestion(schema, words):
    with pytest.raises(
        ConfigError, match=r"unknown axis 'production.balanse'. Did you mean 'production.balance'"
    ):
        build(schema, *words).check_parts()


@given(st.integers(-(10**18), 10**18))
def test_whole_numbers_are_read_as_written(number):
    assert int_of(str(number)) == number
    assert int_of(f"{number:_}") == number
    assert plain_value(Scalar(str(number))) == number


@given(st.floats(allow_nan=False))
def test_numbers_are_read_as_written(number):
    assert float_of(repr(number)) == number


@given(st.text(st.characters(blacklist_categories=("Cs", "Cc")), min_size=1))
def test_quoted_text_is_itself(text):
    quoted = "'" + text.replace("'", "''") + "'"
    assert plain_value(parse_yaml(f"key: {quoted}", "test"))["key"] == text
