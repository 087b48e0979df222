"""Validation inside a training: exact numbers, an undisturbed trajectory, songs, the best step, early stop."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from support.launch import rows, verb
from support.songs import write_pairs, write_ratings, write_samples
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import diffdpo
from diffdpo.config import build_config
from diffdpo.data import tables
from diffdpo.data.datasets.parts import SALT
from diffdpo.data.latents import read_latents
from diffdpo.data.pairs import PAIRS
from diffdpo.data.prompts import in_share
from diffdpo.data.samples import Samples
from diffdpo.errors import ConfigError, DataError
from diffdpo.mining.values import Pair
from diffdpo.models import MODELS
from diffdpo.models.adapters import read_adapter
from diffdpo.models.embeddings import EmbeddingStore
from diffdpo.recipes.round import RoundRun
from diffdpo.recipes.train import TrainRun
from diffdpo.runs import read_json
from diffdpo.training.config import export_folder, result_folder
from diffdpo.training.validation_config import ValidationConfig
from diffdpo.training.validation_data import build_songs
from diffdpo.training.validation_rule import BestStep, choose_best, is_due, is_stopped

pytestmark = pytest.mark.slow

PROMPTS = [
    {"id": "a", "text": "slow rock", "duration_s": 1.0, "group": "va"},
    {"id": "b", "text": "fast metal", "duration_s": 1.5, "group": "vb"},
]
SAMPLING = ("sampling.steps=2", "sampling.guidance_scale=1")
SONGS = (*(f"train.validation.{word}" for word in SAMPLING), "train.validation.scorers=[production]")
HELD_OUT = ("train.validation.fraction=0.3", "train.validation.every=2")


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    path = tmp_path_factory.mktemp("prompts") / "validation.jsonl"
    path.write_text("\n".join(json.dumps(prompt) for prompt in PROMPTS))
    return path


def words(out, bundle, pairs, *more, steps=4, lora=True):
    adapter = ["train.lora.rank=2"] if lora else []
    return [
        "train", f"out={out}", f"data.pairs={pairs}", "model.name=tiny", f"model.args.bundle={bundle}",
        "objective.args.beta=50", "train.global_batch=2", "train.per_device=2", "train.learning_rate=1e-3",
        "train.trackers=[]", "train.time_bins=0", "train.save_every=2", "train.keep_checkpoints=3",
        f"train.steps={steps}", *adapter, *more,
    ]  # fmt: skip


def train(*args, code=0, **settings):
    return verb(*words(*args, **settings), code=code)


def split(out):
    """The rows of steps and those of validations, without seconds."""
    table = rows(Path(out))
    validations = [
        {k: v for k, v in row.items() if k != "validation/seconds"} for row in table if "loss" not in row
    ]
    return [row for row in table if "loss" in row], validations


@pytest.fixture(scope="module")
def whole(tmp_path_factory, bundle, pairs, prompts):
    """A run with everything."""
    out = tmp_path_factory.mktemp("validated") / "run"
    train(out, bundle, pairs, *everything(prompts))
    return out


def everything(prompts):
    return (*HELD_OUT, f"train.validation.prompts={prompts}", *SONGS, "train.validation.keep=best")


def test_metrics_come_before_the_first_step_and_after_every_second(whole):
    steps, validations = split(whole)
    assert [row["step"] for row in steps] == [1, 2, 3, 4]
    assert [row["step"] for row in validations] == [0, 2, 4]
    start, last = validations[0], validations[-1]
    assert start["validation/loss"] == pytest.approx(math.log(2), rel=1e-6)  # margin 0: an untrained adapter
    assert start["validation/winner_error_ratio"] == 1.0
    assert start["validation/margin"] == 0.0
    gains = [key for key in start if key.startswith("validation/gain/production.")]
    assert gains
    assert all(start[key] == 0.0 for key in gains)
    reference = last["validation/winner_error"] + last["validation/winner_gain"]
    assert last["validation/winner_error_ratio"] == pytest.approx(last["validation/winner_error"] / reference)
    assert last["validation/winner_error_ratio"] != 1.0


def test_validation_changes_no_bit_of_the_training(whole, tmp_path, bundle, pairs):
    """The same held-out prompts, validated at the ends alone and without songs."""
    out = tmp_path / "run"
    train(out, bundle, pairs, "train.validation.fraction=0.3", "train.validation.every=100")
    assert split(out)[0] == split(whole)[0]
    assert adapters_equal(export_folder(out, 4), export_folder(whole, 4))


def test_a_training_without_validation_is_the_same(tmp_path, bundle, pairs, prompts):
    """Songs are sampled before, within and after the training; no prompt is held out of it."""
    songs = (f"train.validation.prompts={prompts}", *SONGS[:-1], "train.validation.every=1")
    for name, more in (("none", ()), ("songs", songs)):
        train(tmp_path / name, bundle, pairs, *more, steps=3)
    without, with_songs = split(tmp_path / "none"), split(tmp_path / "songs")
    assert (len(without[1]), len(with_songs[1])) == (0, 4)
    assert without[0] == with_songs[0]
    assert adapters_equal(*(export_folder(tmp_path / name, 3) for name in ("none", "songs")))


def adapters_equal(*folders):
    first, second = (read_adapter(folder)[0] for folder in folders)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_validation_draws_no_random_number_of_the_training(tmp_path, bundle):
    """Dropout inside adapters takes its masks from the global generator."""
    samples = write_samples(tmp_path / "samples", prompts=6, per_prompt=2)
    values = {row.sample_id: 1.0 + number for number, row in enumerate(Samples(samples).rows())}
    ratings = write_ratings(tmp_path / "ratings", samples, values)
    more = (
        "objective.name=flow_matching", f"data.ratings={ratings}", "data.pairs=''", "data.top_share=1.0",
        "train.lora.peft.lora_dropout=0.5", "train.validation.fraction=0.4", "train.ema=0.5",
    )  # fmt: skip
    for name, every in (("often", 1), ("seldom", 100)):
        torch.manual_seed(0)
        command = words(tmp_path / name, bundle, "", *more, f"train.validation.every={every}", steps=3)
        verb(*(word for word in command if not word.startswith("objective.args")))
    often, seldom = split(tmp_path / "often"), split(tmp_path / "seldom")
    assert often[0] == seldom[0]
    assert [row["step"] for row in often[1]] == [0, 1, 2, 3]
    assert [row for row in often[1] if row["step"] in (0, 3)] == seldom[1]
    assert "validation/winner_error_ratio" not in often[1][0]


def test_a_run_that_was_killed_continues_bit_for_bit(whole, tmp_path, bundle, pairs, prompts):
    """As a kill after the third step leaves it: metrics and songs of later steps, and the checkpoint of step 2."""
    out = Path(shutil.copytree(whole, tmp_path / "run"))
    (out / "manifest.json").unlink()
    shutil.rmtree(out / "checkpoints" / "step-00000004")
    train(out, bundle, pairs, *everything(prompts))
    assert split(out) == split(whole)
    assert {k: v for k, v in read_json(out / "manifest.json").items() if k != "versions"} == {
        k: v for k, v in read_json(whole / "manifest.json").items() if k != "versions"
    }
    names = ("running", "spikes", "validation")
    mine, theirs = (read_json(f / "checkpoints" / "step-00000004" / "manifest.json") for f in (out, whole))
    assert [mine[name] for name in names] == [theirs[name] for name in names]


def test_songs_are_those_of_sample_and_scores_those_of_score(whole, tmp_path, bundle, prompts):
    base, last = whole / "validation" / "base", whole / "validation" / "step_000004"
    for folder, adapter in ((base, ""), (last, export_folder(whole, 4))):
        out = tmp_path / folder.name
        verb(
            "sample", f"out={out}", f"prompts={prompts}", "model.name=tiny", f"model.args.bundle={bundle}",
            f"model.args.adapter={adapter}", *SAMPLING,
        )  # fmt: skip
        songs, expected = Samples(folder), Samples(out)
        assert [row.sample_id for row in songs.rows()] == ["a.000", "b.000"]
        for row in songs.rows():
            one, two = (read_latents(side.latents(row.sample_id)) for side in (songs, expected))
            assert torch.allclose(one, two, atol=1e-4)
    verb("score", f"samples=[{base},{last}]", f"out={tmp_path / 'scores'}", "scorers=[production]")
    report = tmp_path / "report"
    verb("evaluate", f"baseline={base}", f"aligned={last}", f"scores={tmp_path / 'scores'}", f"out={report}")
    validation = split(whole)[1][-1]
    for sample in read_json(report / "report.json")["samples"]:
        assert sample["baseline"].keys() == sample["aligned"].keys()
    pairs = read_json(report / "report.json")["samples"]
    for key, value in validation.items():
        if key.startswith("validation/gain/"):
            axis = key.removeprefix("validation/gain/")
            changes = [pair["aligned"][axis] - pair["baseline"][axis] for pair in pairs]
            assert value == pytest.approx(sum(changes) / len(changes), abs=1e-9)


def test_the_manifest_names_the_best_step_and_its_weights_are_kept(whole):
    manifest, validations = read_json(whole / "manifest.json"), split(whole)[1]
    best = min(validations, key=lambda row: row["validation/loss"])
    assert manifest["best"]["metric"] == "loss"
    assert manifest["best"]["value"] == best["validation/loss"]
    assert manifest["best"]["step"] == best["step"]
    folder = whole / "checkpoints" / f"best-{best['step']:08d}"
    assert manifest["best"]["weights"] == str(folder.relative_to(whole) / "export")
    assert (whole / "checkpoints" / "best").resolve() == folder.resolve()
    assert read_json(folder / "manifest.json")["value"] == best["validation/loss"]
    if best["step"]:
        assert adapters_equal(folder / "export", export_folder(whole, best["step"]))
    assert result_folder(whole) == export_folder(whole, 4)


def test_what_does_not_get_better_stops_and_the_best_survives_the_rotation(tmp_path, bundle, pairs):
    out = tmp_path / "run"
    more = (
        "train.validation.fraction=0.3", "train.validation.every=1", "train.validation.min_delta=1e9",
        "train.validation.keep=best", "train.validation.result=best", "train.keep_checkpoints=1",
        "train.save_every=1",
    )  # fmt: skip
    train(out, bundle, pairs, *more, "train.validation.patience=2", steps=9)
    manifest = read_json(out / "manifest.json")
    assert (manifest["steps"], manifest["stopped"]) == (2, {"step": 2, "stale": 2})
    assert manifest["best"]["step"] == 0
    assert sorted(path.name for path in (out / "checkpoints").iterdir()) == [
        "best", "best-00000000", "step-00000002",
    ]  # fmt: skip
    assert result_folder(out) == out / "checkpoints" / "best-00000000" / "export"
    weights = read_adapter(result_folder(out))[0]
    assert all(not value.any() for name, value in weights.items() if "lora_B" in name)  # the start
    train(out, bundle, pairs, *more, "train.validation.patience=2", steps=9)
    assert read_json(out / "manifest.json") == manifest
    train(out, bundle, pairs, *more, "train.validation.patience=3", steps=9)
    assert read_json(out / "manifest.json")["stopped"] == {"step": 3, "stale": 3}
    assert [row["step"] for row in split(out)[1]] == [0, 1, 2, 3]


def test_without_adapters_the_start_is_kept_and_trackers_get_sound(tmp_path, bundle, pairs, prompts):
    out = tmp_path / "run"
    more = (
        f"train.validation.prompts={prompts}", *SONGS, "train.validation.every=2", "train.trackers=[tensorboard]",
        "train.validation.tracker_songs=1",
    )  # fmt: skip
    train(out, bundle, pairs, *more, steps=2, lora=False)
    base = {path.name: path.read_bytes() for path in sorted((out / "validation/base/audio").iterdir())}
    assert [row["step"] for row in split(out)[1]] == [0, 2]
    assert {path.name for path in (out / "validation").iterdir()} == {"base", "step_000002"}
    train(out, bundle, pairs, *more, steps=4, lora=False)
    after = {path.name: path.read_bytes() for path in sorted((out / "validation/base/audio").iterdir())}
    assert after == base
    moved = (out / "validation/step_000004/audio/a.000.flac").read_bytes()
    assert moved != base["a.000.flac"]
    gains = {k: v for k, v in split(out)[1][-1].items() if k.startswith("validation/gain/")}
    assert any(value != 0.0 for value in gains.values())
    events = EventAccumulator(str(out / "diffdpo"), size_guidance={"audio": 0})
    events.Reload()
    tags = set(events.Tags()["audio"])
    assert tags == {"validation/a.000", "validation/a.000/base"}


@pytest.fixture(scope="module")
def other_pairs(tmp_path_factory):
    """Pairs of other prompts."""
    folder = write_pairs(tmp_path_factory.mktemp("others"))
    pairs = [type(row)(**{**vars(row), "group": f"v-{row.group}"}) for row in tables.read_rows(folder, PAIRS)]
    tables.replace(folder, PAIRS, pairs)
    return folder


def test_the_numbers_do_not_depend_on_the_batch_and_a_second_folder_is_all_measured(
    tmp_path, bundle, pairs, other_pairs
):
    results = []
    for batch in (3, 12):
        out = tmp_path / str(batch)
        more = (
            f"train.validation.pairs={other_pairs}",
            f"train.validation.batch={batch}",
            "train.save_every=1",
        )
        train(out, bundle, pairs, *more, "train.validation.times=[0.5]", "train.validation.draws=2", steps=1)
        results.append(split(out)[1])
    for alone, together in zip(*results, strict=True):
        assert alone == {key: pytest.approx(value, rel=1e-4, abs=1e-5) for key, value in together.items()}


@pytest.mark.parametrize(
    ("more", "text"),
    [
        (["train.validation.every=2"], "train.validation measures nothing"),
        (["train.validation.fraction=0.3", "train.validation.pairs=x"], "fraction and pairs are two sources"),
        (["train.validation.scorers=[rhythm]", "train.validation.fraction=0.3"], "scorers need songs"),
        (
            ["train.validation.prompts=PROMPTS", "train.validation.patience=2"],
            "patience and keep=best need a metric",
        ),
        (["train.validation.fraction=0.3", "train.validation.result=best"], "result=best needs"),
        (["train.validation.fraction=0.3", "train.validation.times=[0]"], "train.validation.times"),
        (["train.validation.fraction=1e-9"], "fraction=1e-09 holds out none of 12 prompt(s)"),
        (["train.validation.fraction=0.999999"], "fraction=0.999999 holds out all of 12 prompt(s)"),
        (["train.validation.split=valid"], "split is for data.songs; hold prompts out with"),
        (["train.validation.pairs=PAIRS"], "the prompt group 'p00' is trained on as well"),
        (
            [
                "train.validation.fraction=0.3",
                "train.validation.metric=acuracy",
                "train.validation.keep=best",
            ],
            "'acuracy' is not measured. Did you mean 'accuracy'?",
        ),
        (["train.validation.prompts=none.jsonl"], "none.jsonl"),
        (["train.validation.prompts=PROMPTS", "train.validation.scorers=[nothing]"], "nothing"),
    ],
)
def test_what_cannot_be_validated_is_one_line(tmp_path, bundle, pairs, prompts, more, text):
    names = {"PROMPTS": str(prompts), "PAIRS": str(pairs)}
    replaced = [
        next((word.replace(name, path) for name, path in names.items() if word.endswith(f"={name}")), word)
        for word in more
    ]
    assert text in train(tmp_path / "run", bundle, pairs, *replaced, code=2)


@pytest.mark.parametrize(
    ("objective", "data", "words", "text"),
    [
        ("flow_matching", "songs", ["pairs=x"], "trains on no pairs; set train.validation.split=valid"),
        ("flow_matching", "songs", ["fraction=0.1"], "prepared songs have splits of their own"),
        ("flow_matching", "songs", ["split=train"], "split=train is what is trained on"),
        (
            "kto",
            "ratings",
            ["pairs=x"],
            "trains on no pairs; hold prompts out with train.validation.fraction",
        ),
    ],
)
def test_an_objective_refuses_held_out_examples_of_another_kind(tmp_path, objective, data, words, text):
    more = [f"train.validation.{word}" for word in words]
    error = verb(
        "train", f"out={tmp_path / 'run'}", f"objective.name={objective}", f"data.{data}={tmp_path}", *more, code=2
    )  # fmt: skip
    assert text in error


def test_prompts_lie_beside_the_configuration_at_any_depth(tmp_path, prompts):
    """The how-to's group, in a configuration of `train` and one of `round`."""
    page = Path(__file__).parents[3] / "docs/howto/validate-a-training.md"
    text = page.read_text().split("```yaml\n")[1].split("```")[0]
    (tmp_path / "prompts_validation.jsonl").write_text(prompts.read_text())
    (tmp_path / "train.yaml").write_text(text)
    cfg = build_config(TrainRun, tmp_path / "train.yaml", ())
    cfg.check_parts()
    beside = str(tmp_path / "prompts_validation.jsonl")
    assert cfg.train.validation.prompts == beside
    assert cfg.train.spike.threshold == 10.0
    group = {"prompts": "prompts_validation.jsonl", "every": 7}
    tree = {
        "out": "x",
        "mining_prompts": "m",
        "evaluation_prompts": "e",
        "train": {"train": {"validation": group}},
    }
    (tmp_path / "round.yaml").write_text(json.dumps(tree))
    cfg = build_config(RoundRun, tmp_path / "round.yaml", ())
    assert (cfg.train.train.validation.prompts, cfg.train.train.validation.every) == (beside, 7)


def test_the_best_step_by_hand():
    lower = ValidationConfig(fraction=0.1, patience=2, min_delta=0.1)
    best = BestStep()
    for step, value, expected in (
        (0, math.nan, (-1, 1)), (1, 1.0, (1, 0)), (2, 0.95, (1, 1)), (3, 0.8, (3, 0)), (4, math.nan, (3, 1)),
        (5, 0.75, (3, 2)),
    ):  # fmt: skip
        assert not is_stopped(best, lower)
        best = choose_best(best, step, value, lower)
        assert (best.step, best.stale) == expected
        assert BestStep.restore(json.loads(json.dumps(best.entries()))) == best or best.step < 0
    assert is_stopped(best, lower)
    higher = ValidationConfig(fraction=0.1, metric="accuracy")
    assert choose_best(BestStep(step=1, value=0.5), 2, 0.6, higher).step == 2
    assert choose_best(BestStep(step=1, value=0.5), 2, 0.4, higher).step == 1
    assert [step for step in range(8) if is_due(step, 7, ValidationConfig(fraction=0.1, every=3))] == [
        0,
        3,
        6,
        7,
    ]


def test_prompts_in_the_cache_need_no_encoders(tmp_path, bundle, prompts):
    cfg = ValidationConfig(prompts=str(prompts))
    model = MODELS["tiny"](bundle=str(bundle)).load()
    songs = build_songs(cfg, EmbeddingStore(model, tmp_path), {}, {}, "")
    model = MODELS["tiny"](bundle=str(bundle)).load()
    model.place("encoders", None)
    again = build_songs(cfg, EmbeddingStore(model, tmp_path), {}, {}, "")
    for one, two in zip(songs.jobs, again.jobs, strict=True):
        embeddings = one.row.embedding, two.row.embedding
        assert all(torch.equal(value, embeddings[1][name]) for name, value in embeddings[0].items())
    with pytest.raises(DataError, match=r"validation.jsonl: a.000: "):
        build_songs(cfg, EmbeddingStore(model), {}, {}, "")


def test_validation_from_python_holds_out_the_same_prompts(tmp_path, bundle):
    model = diffdpo.load_model("tiny", bundle=str(bundle))
    songs = diffdpo.sample(model, [f"song {i}" for i in range(8)], per_prompt=2, seconds=1, steps=1)
    pairs = [
        Pair(prompt_id=a.prompt.id, group=a.prompt.id, winner=a.id, loser=b.id, rule="test", margins={})
        for a, b in zip(songs[::2], songs[1::2], strict=True)
    ]
    held_out = {pair.group for pair in pairs if in_share(pair.group, 0.4, SALT)}
    assert 0 < len(held_out) < 8
    settings = {"steps": 1, "global_batch": 1, "per_device": 1, "lora": {"rank": 2}, "trackers": []}
    for fraction in (0.4, 1e-9):
        validation = {"fraction": fraction, "keep": "best", "result": "best"}
        out = tmp_path / str(fraction)
        if fraction < 0.1:
            with pytest.raises(DataError, match="holds out none of 8 prompt"):
                diffdpo.train(model, songs, pairs, out=out, validation=validation, **settings)
            continue
        folder = diffdpo.train(model, songs, pairs, out=out, validation=validation, **settings)
        assert folder == result_folder(out)
        assert folder.parent.name.startswith("best-")
    with pytest.raises(ConfigError, match="leave pairs and split out"):
        diffdpo.train(model, songs, pairs, out=tmp_path / "no", validation={"pairs": "x"}, **settings)
