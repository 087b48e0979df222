"""A search in a folder: nested, resumable, minable, and bit for bit the plain sampler where it chooses nothing."""

import json

import pytest
import torch

import diffdpo
from diffdpo.config import build_config
from diffdpo.data import tables
from diffdpo.data.latents import read_latents
from diffdpo.data.samples import Samples, open_samples, write_prompts
from diffdpo.data.scores import SCORES
from diffdpo.errors import ConfigError, DataError
from diffdpo.knob_parts import load_interventions
from diffdpo.parts import build_model
from diffdpo.recipes import mine, sample, search
from diffdpo.recipes.mine import MineRun
from diffdpo.recipes.sample import SampleRun
from diffdpo.recipes.search import SearchParts, SearchRun, SearchWork, share_groups
from diffdpo.recipes.search_results import search_rows
from diffdpo.run_dir import DistEnv
from diffdpo.runs import MANIFEST, is_finished, read_json
from diffdpo.sampling.sample_jobs import sample_jobs
from diffdpo.scorers import harmony
from diffdpo.types import Prompt

pytestmark = pytest.mark.slow

ONE = {"id": "one", "text": "fast rock", "duration_s": 2}
TWO = {"id": "two", "text": "slow ambient", "duration_s": 3}
REWARD = "search.reward.weights={harmony.key: 1, harmony.tuning: 0.5}"


@pytest.fixture
def words(tmp_path, bundle):
    path = tmp_path / "p.jsonl"
    path.write_text("".join(f"{json.dumps(prompt)}\n" for prompt in (ONE, TWO)), encoding="utf-8")
    return [f"prompts={path}", f"model.args.bundle={bundle}", "sampling.steps=2"]


def run_search(words, out, *more):
    return search.run(build_config(SearchRun, None, [*words, f"out={out}", REWARD, *more]))


def songs(folder):
    samples = open_samples(folder)
    return {row.sample_id: read_latents(samples.latents(row.sample_id)) for row in samples.rows()}


def test_the_songs_are_those_of_the_plain_sampler(words, tmp_path):
    """N = 1 is the plain sampler; N songs are its N songs, in the same batches bit for bit."""
    plain = songs(sample.run(build_config(SampleRun, None, [*words, f"out={tmp_path / 's'}", "per_prompt=3",
                                                           "sampling.batch=1"])))  # fmt: skip
    for n in (1, 3):
        made = songs(run_search(words, tmp_path / f"n{n}", f"search.budget={n}", "sampling.batch=1"))
        assert sorted(made) == sorted(name for name in plain if int(name[-3:]) < n)
        assert all(torch.equal(latents, plain[name]) for name, latents in made.items())


def test_processes_share_the_songs_of_one_prompt(words, tmp_path):
    """Three songs of one prompt and two processes: two songs and one, then the search finds all of them."""
    out = tmp_path / "shared"
    cfg = build_config(SearchRun, None, [*words, f"out={out}", REWARD, "search.budget=3"])
    model = build_model(cfg.model)
    (job,), _ = sample_jobs(model.spec, [(Prompt(**ONE), 0)], {})
    write_prompts(out / "prompts.jsonl", [job.prompt], {})
    made = []
    with load_interventions(model, cfg.sampling, cfg.model) as interventions:
        parts = SearchParts(model, cfg.sampling, interventions)
        for rank in range(2):
            dist = DistEnv(rank, 2, lambda: None)
            share_groups(SearchWork(cfg, parts, Samples(out), {"one": "digest"}, dist), [job])
            made.append(set(songs(out)) - set().union(*made))
    assert made == [{"one.000", "one.001"}, {"one.002"}]
    alone = songs(run_search(words, tmp_path / "alone", "search.budget=3"))
    for name, latents in songs(out).items():
        assert (latents - alone[name]).abs().max() <= 1e-5 * latents.abs().max()


def test_another_batch_has_the_same_songs_and_winners(words, tmp_path):
    first, second = (
        run_search(words, tmp_path / str(b), "search.budget=4", f"sampling.batch={b}") for b in (1, 3)
    )
    for name, latents in songs(first).items():
        other = songs(second)[name]
        assert (latents - other).abs().max() <= 1e-5 * other.abs().max()
    assert read_json(first / MANIFEST)["winners"] == read_json(second / MANIFEST)["winners"]


def test_a_longer_search_contains_the_shorter_one(words, tmp_path, monkeypatch):
    out = run_search(words, tmp_path / "a", "search.budget=2")
    before = {path: path.stat().st_mtime_ns for path in sorted((out / "audio").iterdir())}
    scored = []
    score = harmony.Harmony.score_features
    monkeypatch.setattr(
        harmony.Harmony, "score_features", lambda self, features: scored.append(1) or score(self, features)
    )
    assert run_search(words, out, "search.budget=3") == out
    assert len(list((out / "audio").iterdir())) == 6
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    assert len(scored) == 2  # the new song of each prompt
    ranks = {(row.prompt_id, row.rank) for row in search_rows(out)}
    assert ranks == {(prompt, rank) for prompt in ("one", "two") for rank in (1, 2, 3)}
    fresh = run_search(words, tmp_path / "b", "search.budget=3")
    assert read_json(fresh / MANIFEST)["winners"] == read_json(out / MANIFEST)["winners"]
    assert read_json(fresh / MANIFEST)["nfe"] == read_json(out / MANIFEST)["nfe"] == 2 * 3 * 4


def test_a_stopped_search_goes_on(words, tmp_path, monkeypatch):
    whole = run_search(words, tmp_path / "whole", "search.budget=3", "sampling.batch=1")
    from diffdpo.search import task

    compose, calls = task.compose, []

    def stop(*args, **kwargs):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return compose(*args, **kwargs)

    monkeypatch.setattr(task, "compose", stop)
    out = tmp_path / "part"
    with pytest.raises(KeyboardInterrupt):
        run_search(words, out, "search.budget=3", "sampling.batch=1")
    assert not is_finished(out)
    run_search(words, out, "search.budget=3", "sampling.batch=1")
    assert len(calls) == 7  # six songs, and the one that was stopped
    assert songs(out).keys() == songs(whole).keys()
    assert all(torch.equal(latents, songs(whole)[name]) for name, latents in songs(out).items())
    assert read_json(out / MANIFEST)["winners"] == read_json(whole / MANIFEST)["winners"]


def test_weights_replace_the_default_ones(words, tmp_path):
    """The axes of a mapping that a command names are all that count, and the same command goes on."""
    cfg = build_config(
        SearchRun, None, [*words, f"out={tmp_path / 's'}", "search.reward.weights={harmony.key: 2}"]
    )
    assert cfg.search.reward.axes == ("harmony.key",)
    assert build_config(SearchRun, None, [*words, "out=x"]).search.reward.axes == (
        "critic.quality",
        "structure.order",
    )
    for _ in range(2):
        out = run_search(words, tmp_path / "r", "search.budget=1")
    assert {row.scorer for row in tables.read_rows(out / "scores", SCORES)} == {"gates", "harmony"}


def test_every_search_can_be_mined(words, tmp_path):
    out = run_search(words, tmp_path / "s", "search.budget=4")
    pairs = mine.run(build_config(MineRun, None, [
        f"samples=[{out}]", f"scores={out / 'scores'}", f"out={tmp_path / 'p'}", "axes=[harmony.key]",
        "rule.args={min_margin: 0.1}",
    ]))  # fmt: skip
    assert read_json(pairs / MANIFEST)["pairs"] >= 1
    values = [row.value for row in tables.read_rows(out / "scores", SCORES) if row.axis == "harmony.key"]
    assert len(values) == 8


def test_the_winner_has_the_best_reward_and_keeps_the_constraints(words, tmp_path):
    out = run_search(words, tmp_path / "s", "search.budget=5")
    rows = [row for row in search_rows(out) if row.prompt_id == "one"]
    assert [row.reward for row in rows] == sorted((row.reward for row in rows), reverse=True)
    tuning = {
        row.sha256: row.value
        for row in tables.read_rows(out / "scores", SCORES)
        if row.axis == "harmony.tuning"
    }
    sounds = {row.sample_id: row.sha256 for row in open_samples(out).rows()}
    best, *_, last = sorted(rows, key=lambda row: tuning[sounds[row.sample_id]], reverse=True)
    assert tuning[sounds[best.sample_id]] > tuning[sounds[last.sample_id]]
    low = tuning[sounds[best.sample_id]]
    bound = run_search(words, tmp_path / "c", "search.budget=5",
                       f"search.reward.constraints=[{{axis: harmony.tuning, low: {low}}}]")  # fmt: skip
    winner = next(row for row in search_rows(bound) if row.prompt_id == "one")
    assert tuning[sounds[winner.sample_id]] >= low
    assert winner.violation == 0


def test_early_stop(words, tmp_path):
    out = run_search(words, tmp_path / "s", "search.budget=12", "search.method.args.stop_gain=100",
                     "sampling.batch=2")  # fmt: skip
    assert len(songs(out)) == 2 * 4  # nothing is known from fewer than four songs


def test_winners_as_samples(words, tmp_path):
    out = sample.run(build_config(SampleRun, None, [
        *words, f"out={tmp_path / 's'}", "per_prompt=2", "search.budget=4",
        "search.reward.weights={harmony.key: 1, harmony.tuning: 0.5}",
    ]))  # fmt: skip
    rows = {row.sample_id: row for row in open_samples(out).rows()}
    assert sorted(rows) == ["one.000", "one.001", "two.000", "two.001"]
    ranks = {(row.prompt_id, row.rank): row.sample_id for row in search_rows(out / "search")}
    found = songs(out / "search")
    for name, latents in songs(out).items():
        origin = ranks[name[:3], int(name[-3:]) + 1]
        assert json.loads(rows[name].search)["song"] == origin
        assert torch.equal(latents, found[origin])
    assert is_finished(out)
    assert not any(row.search for row in open_samples(out / "search").rows())


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["search.method=best_of_m"], "Did you mean 'best_of_n'"),
        (["search.method.args.m=3"], r"search\.method\.args\.m'\. Did you mean|Known: n, stop_gain"),
        (["search.budget=0.5"], "budget"),
        (["search.reward.weights={harmony.key: 0}"], "all are 0"),
        (["search.method=noise", "search.budget=1"], "allows none; raise it"),
        (["search.method=particles"], "particles"),
        (["search.reward.weights={harmony.kez: 1}"], "harmony.key"),
    ],
)
def test_mistakes_are_named(words, tmp_path, more, message):
    def check():
        build_config(SearchRun, None, [*words, f"out={tmp_path / 's'}", *more]).check_parts()

    with pytest.raises(ConfigError, match=message):
        check()


def test_more_winners_than_songs_are_refused(words, tmp_path):
    words = [*words, f"out={tmp_path / 's'}", "per_prompt=3", REWARD]
    with pytest.raises(ConfigError, match=r"search\.budget=2 is too small for the best per_prompt=3 songs"):
        build_config(SampleRun, None, [*words, "search.budget=2"])
    cfg = build_config(SampleRun, None, [*words, "search.budget=4", "search.method.args.n=2"])
    with pytest.raises(DataError, match=r"the search has 2 songs, per_prompt=3 asks for more"):
        sample.run(cfg)


def test_damaged_files_are_named_and_made_anew(words, tmp_path, capsys):
    more = ["search.budget=2", "search.method=chunk_pruning", "longform.window_s=2", "longform.overlap_s=0.5",
            "search.method.args.score_s=2"]  # fmt: skip
    out = run_search(words, tmp_path / "s", *more)
    before = songs(out)
    state = next((out / "states").glob("two*"))
    state.write_bytes(state.read_bytes()[:100])
    for path in (out / "latents").glob("two*"):
        path.unlink()
    run_search(words, out, *more)
    assert all(torch.equal(latents, before[name]) for name, latents in songs(out).items())
    audio = out / "audio" / "two.000.flac"
    audio.write_bytes(audio.read_bytes()[:500])
    run_search(words, out, *more)
    lines = "".join(capsys.readouterr().err.split())
    assert f"{state}:damaged;itismadeanew" in lines
    assert f"{audio}:notonthepage" in lines


@pytest.mark.parametrize("method", ["tree", "particles"])
def test_a_prompt_that_changed_is_searched_anew(words, tmp_path, method):
    """Intermediate results of the old words, which lie under the same prompt id, are not taken over."""
    more = ["search.budget=4", f"search.method={method}", "sampling.solver=sde"]
    out = run_search(words, tmp_path / "s", *more)
    path = tmp_path / "p.jsonl"
    path.write_text(path.read_text().replace("fast rock", "slow piano"))
    run_search(words, out, *more)
    fresh = songs(run_search(words, tmp_path / "f", *more))
    assert all(torch.equal(latents, fresh[name]) for name, latents in songs(out).items())


def test_a_search_without_any_song_is_an_error(words, tmp_path):
    notes = "search.method={name: noise, args: {targets: [{name: melody, notes: [[50, 60, 60]]}]}}"
    with pytest.raises(
        DataError, match=r"no prompt could be searched; first: one: melody: no note begins within"
    ):
        run_search(words, tmp_path / "s", "search.budget=12", notes)


def test_from_python_a_search_can_be_called_again(bundle):
    model = diffdpo.load_model("tiny", bundle=str(bundle))
    first, second = (
        diffdpo.search_songs(model, "rock", budget=2, steps=1, seconds=2, weights={"harmony.key": 1.0})[0]
        for _ in range(2)
    )
    assert [song.sample_id for song in first.songs] == [song.sample_id for song in second.songs]
    assert first.winner.reward.value == max(song.reward.value for song in first.songs)
    assert first.cost == 2
    with pytest.raises(ConfigError, match="budget must be at least 1"):
        diffdpo.search_songs(model, "rock", budget=0)
    with pytest.raises(ConfigError, match=r"needs low, high or both"):
        diffdpo.search_songs(model, "rock", constraints=[{"axis": "harmony.key"}])
