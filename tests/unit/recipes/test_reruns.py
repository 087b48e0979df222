"""A stage that is run again compares what it reads with what its results were made from."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from diffdpo import audio
from diffdpo.config import build_config
from diffdpo.data import tables
from diffdpo.data.latents import write_latents
from diffdpo.data.pairs import PAIRS
from diffdpo.data.samples import open_samples
from diffdpo.data.scores import SCORES
from diffdpo.data.songs import SONGS
from diffdpo.errors import ConfigError, DataError, NotPassedError
from diffdpo.locks import lock_folder, lock_shard
from diffdpo.recipes import evaluate, mine, prepare, round, sample, score, train
from diffdpo.recipes.evaluate import EvaluateRun
from diffdpo.recipes.mine import MineRun
from diffdpo.recipes.prepare import PrepareRun
from diffdpo.recipes.round import RoundRun
from diffdpo.recipes.sample import SampleRun
from diffdpo.recipes.score import ScoreRun
from diffdpo.recipes.train import TrainRun
from diffdpo.types import Clip

pytestmark = pytest.mark.slow

ONE = {"id": "one", "text": "fast rock", "duration_s": 2}
TWO = {"id": "two", "text": "slow ambient", "duration_s": 2}


def noise(seed: int, seconds: float = 2.0) -> Clip:
    samples = np.random.default_rng(seed).normal(0, 0.1, (2, int(seconds * 44100))).astype(np.float32)
    return Clip(samples=samples, sample_rate=44100)


def write_prompts(path: Path, *prompts: dict) -> None:
    path.write_text("".join(f"{json.dumps(prompt)}\n" for prompt in prompts), encoding="utf-8")


@pytest.fixture
def words(tmp_path, bundle):
    write_prompts(tmp_path / "p.jsonl", ONE, TWO)
    return [f"prompts={tmp_path / 'p.jsonl'}", f"out={tmp_path / 's'}", f"model.args.bundle={bundle}",
            "sampling.steps=1", "per_prompt=2", "audio=false"]  # fmt: skip


def run_sample(words, *more):
    return sample.run(build_config(SampleRun, None, [*words, *more]))


def latents(out: Path) -> dict[str, torch.Tensor]:
    return {path.stem: load_file(path)["latents"] for path in sorted((out / "latents").glob("*.safetensors"))}


def times(folder: Path) -> dict[str, int]:
    """When each file was written: a file that is not made anew keeps its time."""
    return {
        str(path.relative_to(folder)): path.stat().st_mtime_ns
        for path in sorted(folder.rglob("*.safetensors"))
    }


def test_a_prompt_in_other_words_is_sampled_anew_and_only_that(tmp_path, words):
    out = run_sample(words)
    before = times(out / "latents")
    write_prompts(tmp_path / "p.jsonl", {**ONE, "text": "solo piano", "duration_s": 3}, TWO)
    run_sample(words)
    after = times(out / "latents")
    assert {name for name in after if after[name] != before[name]} == {
        "one.000.safetensors",
        "one.001.safetensors",
    }
    fresh = run_sample(words, f"out={tmp_path / 'fresh'}")
    for name, value in latents(fresh).items():
        assert torch.allclose(latents(out)[name], value, atol=1e-4)  # another batch rounds otherwise
    rows = {row.sample_id: row for row in open_samples(out).rows()}
    assert rows["one.000"].duration_s == 3
    assert rows["two.000"].duration_s == 2
    assert {prompt.id: prompt.text for prompt in open_samples(out).prompts()}["one"] == "solo piano"


def test_songs_of_a_prompt_that_is_gone_are_dropped_and_later_stages_go_on(tmp_path, words):
    out = run_sample(words, "audio=true")
    write_prompts(tmp_path / "p.jsonl", TWO)
    run_sample(words, "audio=true")
    assert {row.sample_id for row in open_samples(out).all_rows()} == {"two.000", "two.001"}
    assert {path.stem for path in (out / "audio").iterdir()} == {"two.000", "two.001"}
    score.run(ScoreRun(samples=[str(out)], out=str(tmp_path / "sc"), scorers=["production"]))


def test_a_new_prompt_is_added_and_the_finished_songs_stay(tmp_path, words):
    out = run_sample(words)
    before = times(out / "latents")
    write_prompts(tmp_path / "p.jsonl", {"id": "zero", "text": "jazz", "duration_s": 2}, ONE, TWO)
    run_sample(words)
    after = times(out / "latents")
    assert len(after) == 6
    assert {name: after[name] for name in before} == before


def test_a_regrouped_prompt_has_its_new_group_and_its_old_songs(tmp_path, words):
    out = run_sample(words)
    before = times(out / "latents")
    write_prompts(tmp_path / "p.jsonl", {**ONE, "group": "rock"}, TWO)
    run_sample(words)
    assert times(out / "latents") == before
    assert {row.group for row in open_samples(out).rows() if row.prompt_id == "one"} == {"rock"}


def test_other_sound_in_the_same_style_file_is_another_prompt(tmp_path, words):
    audio.write(tmp_path / "style.flac", noise(0))
    write_prompts(tmp_path / "p.jsonl", {"id": "one", "style_audio": "style.flac", "duration_s": 2})
    out = run_sample(words)
    first = latents(out)
    audio.write(tmp_path / "style.flac", noise(1))
    run_sample(words)
    assert not torch.equal(latents(out)["one.000"], first["one.000"])


def test_an_edit_of_a_song_that_changed_is_made_anew(tmp_path, words):
    source = run_sample(words)
    song = tmp_path / "song.safetensors"
    shutil.copy(source / "latents/one.000.safetensors", song)
    write_prompts(
        tmp_path / "p.jsonl",
        {"id": "e", "text": "rock", "edit": {"song": "song.safetensors", "spans": [[0, 1]]}},
    )
    out = run_sample(words, f"out={tmp_path / 'e'}")
    first = latents(out)
    write_latents(song, load_file(source / "latents/two.000.safetensors")["latents"])
    run_sample(words, f"out={tmp_path / 'e'}")
    assert not torch.equal(latents(out)["e.000"], first["e.000"])


def test_weights_that_changed_at_their_path_make_all_songs_anew(tmp_path, words, bundle):
    own = tmp_path / "own"
    shutil.copytree(bundle, own)
    words = [*words, f"model.args.bundle={own}"]
    out = run_sample(words)
    first = latents(out)
    path = next((own / "network").glob("*.safetensors"))
    save_file({name: tensor * 1.5 for name, tensor in load_file(path).items()}, path)
    run_sample(words)
    assert all(not torch.equal(value, first[name]) for name, value in latents(out).items())


def test_a_shard_drops_nothing_while_another_shard_is_at_work(tmp_path, words):
    out = run_sample(words)
    write_prompts(tmp_path / "p.jsonl", TWO)
    with lock_shard(out, 1, 2) as entry:
        entry.close()
        with pytest.raises(DataError, match="other shards are at work"):
            run_sample(words, "shards=2")
    assert len(latents(out)) == 4


def test_every_verb_refuses_a_folder_that_another_run_writes_into(tmp_path, words, songs, mined, bundle):
    evaluation = EvaluateRun(baseline=mined.samples[0], aligned=mined.samples[0], scores=mined.scores,
                             out=str(tmp_path / "report"), mined_axes=["production.balance"])  # fmt: skip
    commands = {
        "s": lambda: run_sample(words, "per_prompt=3", "audio=true"),
        "sc": lambda: score.run(ScoreRun(samples=mined.samples, out=mined.scores, scorers=["production"])),
        "pairs": lambda: mine.run(mined),
        "t": lambda: train.run(train_config(mined, bundle)),
        "d": lambda: prepare.run(songs[0]),
        "report": lambda: evaluate.run(evaluation),
    }
    for folder, command in commands.items():
        (tmp_path / folder).mkdir(exist_ok=True)
        entries = sorted((tmp_path / folder).rglob("*"))
        with (
            lock_folder(tmp_path / folder),
            pytest.raises(DataError, match=f"{folder}: another run is at work"),
        ):
            command()
        assert [path for path in sorted((tmp_path / folder).rglob("*")) if path.name != ".lock"] == [
            path for path in entries if path.name != ".lock"
        ]


@pytest.fixture
def songs(tmp_path, bundle):
    for name in ("a", "b"):
        audio.write(tmp_path / "songs" / f"{name}.flac", noise(ord(name)))
    lines = [
        {"id": name, "audio": f"songs/{name}.flac", "text": "rock", "license": "CC0"} for name in ("a", "b")
    ]
    write_prompts(tmp_path / "songs.jsonl", *lines)
    cfg = build_config(PrepareRun, None, [f"songs={tmp_path / 'songs.jsonl'}", f"out={tmp_path / 'd'}",
                                          f"model.args.bundle={bundle}"])  # fmt: skip
    return cfg, lines


def test_prepare_makes_a_changed_recording_anew(tmp_path, songs):
    cfg, _ = songs
    out = prepare.run(cfg)
    first, before = latents(out), times(out)
    audio.write(tmp_path / "songs/a.flac", noise(7, seconds=3))
    prepare.run(cfg)
    assert len(latents(out)["a"]) > len(first["a"])
    assert {name for name, time in times(out).items() if before[name] == time} == {
        "embeddings/b.safetensors", "latents/b.safetensors",
    }  # fmt: skip


def test_prepare_takes_over_a_license_and_drops_what_is_gone(tmp_path, songs):
    cfg, lines = songs
    out = prepare.run(cfg)
    before = times(out)
    write_prompts(tmp_path / "songs.jsonl", {**lines[0], "license": "CC-BY-4.0"})
    prepare.run(cfg)
    assert [(row.id, row.license) for row in tables.read_rows(out, SONGS)] == [("a", "CC-BY-4.0")]
    assert times(out) == {name: time for name, time in before.items() if "/a." in name}


def test_prepare_embeds_a_changed_text_anew_but_not_a_file_with_another_time(tmp_path, songs):
    cfg, lines = songs
    out = prepare.run(cfg)
    before = times(out)
    (tmp_path / "songs/b.flac").touch()
    write_prompts(tmp_path / "songs.jsonl", {**lines[0], "text": "waltz"}, lines[1])
    prepare.run(cfg)
    assert {name for name, time in times(out).items() if before[name] != time} == {
        "embeddings/a.safetensors", "latents/a.safetensors",
    }  # fmt: skip


@pytest.fixture
def mined(tmp_path, words):
    out = run_sample(words, "per_prompt=3", "audio=true")
    score.run(ScoreRun(samples=[str(out)], out=str(tmp_path / "sc"), scorers=["production"]))
    cfg = build_config(MineRun, None, [f"samples=[{out}]", f"scores={tmp_path / 'sc'}", f"out={tmp_path / 'pairs'}",
                                       "axes=[production.balance]", "rule.args.min_margin=0.01"])  # fmt: skip
    mine.run(cfg)
    return cfg


def mined_pairs(cfg) -> set[tuple[str, str]]:
    return {(row.winner, row.loser) for row in tables.read_rows(Path(cfg.out), PAIRS)}


def turn_scores_round(folder: Path) -> None:
    rows = [replace(row, value=-row.value) if row.axis == "production.balance" else row
            for row in tables.read_rows(folder, SCORES)]  # fmt: skip
    tables.replace(folder, SCORES, rows)


def train_config(cfg, bundle, *more):
    return build_config(TrainRun, None, [
        f"data.pairs={cfg.out}", f"out={Path(cfg.out).parent / 't'}", f"model.args.bundle={bundle}",
        "train.steps=1", "train.global_batch=2", "train.per_device=2", "train.lora.rank=2", "train.trackers=[]",
        *more,
    ])  # fmt: skip


def test_scores_that_changed_are_mined_anew_and_training_refuses_the_other_pairs(tmp_path, mined, bundle):
    pairs = mined_pairs(mined)
    train.run(train_config(mined, bundle))
    before = times(tmp_path / "t")
    turn_scores_round(tmp_path / "sc")
    mine.run(mined)
    assert pairs
    assert mined_pairs(mined) == {(loser, winner) for winner, loser in pairs}
    for steps in (1, 2):  # also where all steps are done
        with pytest.raises(DataError, match="the data changed since this run began"):
            train.run(train_config(mined, bundle, f"train.steps={steps}"))
    assert times(tmp_path / "t") == before


def test_scores_of_other_songs_leave_pairs_as_they_are(tmp_path, words, mined):
    before = [path.stat().st_mtime_ns for path in (tmp_path / "pairs").rglob("*.parquet")]
    out = run_sample(words, f"out={tmp_path / 'more'}", "seed=5", "audio=true")
    score.run(ScoreRun(samples=[str(out)], out=str(tmp_path / "sc"), scorers=["production"]))
    mine.run(mined)
    assert [path.stat().st_mtime_ns for path in (tmp_path / "pairs").rglob("*.parquet")] == before


def test_songs_that_were_made_anew_are_other_data(tmp_path, words, mined, bundle):
    train.run(train_config(mined, bundle))
    write_prompts(tmp_path / "p.jsonl", {**ONE, "text": "solo piano"}, TWO)
    run_sample(words, "per_prompt=3", "audio=true")
    with pytest.raises(DataError, match="the data changed"):
        train.run(train_config(mined, bundle, "train.steps=2"))


def test_training_refuses_other_weights_to_begin_from(tmp_path, mined, bundle):
    own = tmp_path / "own"
    shutil.copytree(bundle, own)
    train.run(train_config(mined, own))
    path = next((own / "network").glob("*.safetensors"))
    save_file({name: tensor * 1.5 for name, tensor in load_file(path).items()}, path)
    with pytest.raises(DataError, match="the model changed"):
        train.run(train_config(mined, own, "train.steps=2"))


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_steps_are_not_free_under_a_schedule_that_ends_at_zero(mined, bundle, schedule):
    words = [f"train.schedule={schedule}"]
    train.run(train_config(mined, bundle, *words))
    with pytest.raises(ConfigError, match=r"was made with train\.steps=1, this command says 2"):
        train.run(train_config(mined, bundle, *words, "train.steps=2"))


def test_constant_training_is_extended(mined, bundle):
    train.run(train_config(mined, bundle))
    out = train.run(train_config(mined, bundle, "train.steps=2"))
    assert (out / "checkpoints/step-00000002").is_dir()


@pytest.fixture
def small_round(tmp_path, bundle):
    """The words of a round of two mining prompts and two evaluation prompts."""
    write_prompts(tmp_path / "m.jsonl", ONE, TWO)
    write_prompts(tmp_path / "e.jsonl", {"id": "x", "text": "jazz", "duration_s": 2})
    return [
        f"out={tmp_path / 'r'}", f"mining_prompts={tmp_path / 'm.jsonl'}",
        f"evaluation_prompts={tmp_path / 'e.jsonl'}",
        f"model.args.bundle={bundle}", "candidates=3", "evaluation_samples=2", "sample.sampling.steps=1",
        "score.scorers=[production]", "mine.axes=[production.balance]", "mine.rule.args.min_margin=0.01",
        "train.train.steps=1", "train.train.global_batch=2", "train.train.per_device=2", "train.train.lora.rank=2",
        "train.train.trackers=[]",
    ]  # fmt: skip


def run_round(words, *more):
    return round.run(build_config(RoundRun, None, [*words, *more]))


def test_a_round_mines_all_songs_of_a_search(tmp_path, small_round):
    search_words = ["search.budget=4", "search.method={name: tree, args: {variants: 2}}",
                    "search.reward.weights={production.balance: 1}"]  # fmt: skip
    out = run_round(small_round, *search_words)
    candidates = open_samples(out / "round-1" / "candidates")
    assert sorted(row.sample_id for row in candidates.rows()) == [
        f"{prompt}.{number:03d}" for prompt in ("one", "two") for number in range(4)
    ]
    mined = {row.winner for row in tables.read_rows(out / "round-1" / "pairs", PAIRS)}
    assert mined <= {row.sample_id for row in candidates.rows()}
    assert mined
    assert run_round(small_round, *search_words) == out


def test_a_finished_round_refuses_what_would_undo_it_and_does_anew_what_it_can(tmp_path, small_round):
    out = run_round(small_round)
    adapter = Path(json.loads((out / "manifest.json").read_text())["model"].get("adapter") or out)
    state = times(out)
    with pytest.raises(ConfigError, match=r"train\.train\.steps=1, this command says 2"):
        run_round(small_round, "train.train.steps=2")
    write_prompts(tmp_path / "m.jsonl", ONE, {**TWO, "text": "waltz"})
    with pytest.raises(DataError, match="the mining prompts changed since this run began"):
        run_round(small_round)
    assert times(out) == state
    assert adapter.exists()
    write_prompts(tmp_path / "m.jsonl", ONE, TWO)
    write_prompts(tmp_path / "e.jsonl", {"id": "y", "text": "disco", "duration_s": 2})
    run_round(small_round)
    assert {row.prompt_id for row in open_samples(out / "baseline").all_rows()} == {"y"}
    report = json.loads((out / "report/report.json").read_text())
    assert {song["prompt_id"] for song in report["samples"]} == {"y"}
    assert json.loads((out / "manifest.json").read_text())["verdict"] == report["verdict"]
    assert report["verdict"]["sentence"] == "Unclear: 1 prompt, and a verdict needs 8."
    assert (report["verdict"]["passed"], "band" in report["verdict"]["numbers"]["absent"]) == (False, True)
    with pytest.raises(NotPassedError, match="the verdict is not passed: no valid judge was scored"):
        run_round(small_round, "evaluate.require_pass=true")
    candidates = {name: time for name, time in state.items() if "candidates" in name or "train" in name}
    assert {name: times(out)[name] for name in candidates} == candidates
