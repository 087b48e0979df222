"""The whole loop on a random model and real files: every stage, its resumption, and what can go wrong."""

import errno
import json
import shutil
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.bundle import write_bundle
from support.launch import launch, verb

from diffdpo import audio
from diffdpo.config import build_config
from diffdpo.data import tables
from diffdpo.data.pairs import PAIRS
from diffdpo.data.samples import SAMPLES, open_samples
from diffdpo.data.scores import SCORES
from diffdpo.data.song_embeddings import SongEmbeddings
from diffdpo.data.songs import SONGS
from diffdpo.errors import ConfigError
from diffdpo.recipes.round import RoundRun
from diffdpo.recipes.round_songs import score_candidates
from diffdpo.types import Clip

pytestmark = pytest.mark.slow


def song(seconds=6.0, hertz=220.0, rate=44100):
    time = np.arange(int(seconds * rate)) / rate
    wave = sum(np.sin(2 * np.pi * hertz * k * time) / k for k in (1, 2, 3)) * 0.1
    pulse = (np.sin(2 * np.pi * 2 * time) > 0.9) * np.random.default_rng(0).normal(0, 0.1, len(time))
    return Clip(samples=np.stack([wave + pulse, wave - pulse]).astype(np.float32), sample_rate=rate)


ALWAYS_WRITTEN = ("config.yaml", "manifest.json")


def snapshot(folder):
    """When each file was written."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name not in ALWAYS_WRITTEN)
    return {path: path.stat().st_mtime_ns for path in files}


def same_songs(one, two):
    """The same samples with the same latents, but for rounding: batches of another size round otherwise."""
    names = [{row.sample_id for row in tables.read_rows(folder, SAMPLES)} for folder in (one, two)]
    assert names[0] == names[1]
    for name in names[0]:
        first, second = (load_file(f / "latents" / f"{name}.safetensors")["latents"] for f in (one, two))
        assert torch.allclose(first, second, atol=1e-4)


@pytest.fixture(scope="module")
def world(tmp_path_factory, bundle):
    """Songs, prompts and the words that name the random model."""
    folder = tmp_path_factory.mktemp("world")
    (folder / "songs").mkdir()
    audio.write(folder / "songs" / "one.flac", song())
    audio.write(
        folder / "songs" / "mono.wav", Clip(samples=song(4, 330, 22050).samples[:1], sample_rate=22050)
    )
    (folder / "songs" / "corrupt.ogg").write_bytes(b"OggS but no music")
    (folder / "songs" / "empty.wav").write_bytes(b"")
    audio.write(
        folder / "songs" / "silent.flac", Clip(samples=np.zeros((2, 44100), np.float32), sample_rate=44100)
    )
    for name, texts in (
        ("mining", ("slow rock", "fast metal")),
        ("evaluation", ("dark ambient", "bright rock")),
    ):
        rows = [{"id": f"{name[0]}{i}", "text": text, "duration_s": 2 + i} for i, text in enumerate(texts)]
        (folder / f"{name}.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return folder, ("model.name=tiny", f"model.args.bundle={bundle}")


@pytest.fixture(scope="module")
def prepared(world):
    folder, model = world
    verb("prepare", f"out={folder / 'data'}", f"songs={folder / 'songs'}", "valid_share=0", *model)
    return folder / "data"


@pytest.fixture(scope="module")
def mined(world):
    """Samples, scores and pairs of the mining prompts."""
    folder, model = world
    words = ("per_prompt=4", "sampling.steps=3", *model)
    verb("sample", f"out={folder / 'candidates'}", f"prompts={folder / 'mining.jsonl'}", *words)
    verb("score", f"samples=[{folder / 'candidates'}]", f"out={folder / 'scores'}")
    verb(
        "mine", f"samples=[{folder / 'candidates'}]", f"scores={folder / 'scores'}", f"out={folder / 'pairs'}",
        "rule.args.min_axis_margin=-9", "rule.args.min_margin=0.01",
    )  # fmt: skip
    return folder / "candidates", folder / "scores", folder / "pairs"


def test_bad_songs_are_recorded_with_their_reason_and_the_rest_is_prepared(prepared):
    rows = {row.id: row for row in tables.read_rows(prepared, SONGS)}
    assert {name for name, row in rows.items() if not row.error} == {"one", "mono"}
    for name, says in (
        ("corrupt", "cannot decode"),
        ("empty", "cannot decode"),
        ("silent", "silent from beginning"),
    ):
        assert says in rows[name].error
        assert name in rows[name].error
    assert rows["one"].frames == -(-(6 * 44100) // 2048)
    embeddings = SongEmbeddings(prepared / "embeddings" / "one.safetensors")
    assert (embeddings.variants, embeddings.windows) == (3, 1)
    assert embeddings.read(2, 0)["style"].shape == (16,)


def test_preparing_again_adds_only_what_is_new(world, prepared):
    folder, model = world
    before = snapshot(prepared / "latents")
    audio.write(folder / "songs" / "later.flac", song(3, 440))
    verb("prepare", f"out={prepared}", f"songs={folder / 'songs'}", "valid_share=0", *model)
    after = snapshot(prepared / "latents")
    assert {p.stem for p in after.keys() - before.keys()} == {"later"}
    assert all(after[path] == time for path, time in before.items())


def test_songs_are_trained_on_and_the_result_samples(world, prepared):
    folder, model = world
    out = folder / "sft"
    verb(
        "train", f"out={out}", f"data.songs={prepared}", "data.crop.min_frames=16", "data.crop.max_frames=32",
        "objective.name=flow_matching", "train.steps=3", "train.global_batch=4", "train.per_device=2",
        "train.learning_rate=1e-3", "train.inpaint={}", "train.dropout={style: 0.2, context: 0.3}",
        "train.ema=0.9", *model,
    )  # fmt: skip
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert list(out.glob("diffdpo/events*")), "TensorBoard is the default tracker"
    network = out / "checkpoints" / "step-00000003" / "export"
    words = (*model, f"model.args.network={network}", "sampling.steps=2", "audio=false")
    verb("sample", f"out={folder / 'from-sft'}", f"prompts={folder / 'evaluation.jsonl'}", *words)


def test_sampling_again_adds_nothing_and_a_lost_song_is_made_again_as_it_was(world, mined, tmp_path):
    folder, model = world
    candidates = mined[0]
    again = ("sample", f"out={candidates}", f"prompts={folder / 'mining.jsonl'}", "per_prompt=4", *model)
    before = snapshot(candidates)
    verb(*again, "sampling.steps=3")
    assert set(snapshot(candidates)) == set(before)
    copy = tmp_path / "copy"
    shutil.copytree(candidates, copy)
    (copy / "audio" / "m1.002.flac").unlink()
    (copy / "latents" / "m1.002.safetensors").unlink()
    verb(*again, f"out={copy}", "sampling.steps=3", "sampling.batch=1")
    same_songs(candidates, copy)
    assert (copy / "audio" / "m1.002.flac").is_file()


def test_another_configuration_in_the_same_folder_is_refused(world, mined):
    folder, model = world
    error = verb(
        "sample", f"out={mined[0]}", f"prompts={folder / 'mining.jsonl'}", "per_prompt=4", *model, code=2
    )
    assert "was made with sampling.steps=3, this command says 12" in error


def test_scoring_again_scores_nothing(mined):
    candidates, scores, _ = mined
    before = tables.read_rows(scores, SCORES)
    verb("score", f"samples=[{candidates}]", f"out={scores}")
    assert tables.read_rows(scores, SCORES) == before
    axes = {row.axis for row in before}
    assert {"harmony.key", "musicnn.typicality", "silence_ratio"} <= axes


def test_judges_score_the_first_candidates_and_what_is_mined_all(world, mined, tmp_path):
    folder, model = world
    words = [
        f"out={tmp_path}", f"mining_prompts={folder / 'mining.jsonl'}", "judge_candidates=1",
        f"evaluation_prompts={folder / 'evaluation.jsonl'}", "score.scorers=[harmony, production, rhythm]", *model,
    ]  # fmt: skip
    cfg = build_config(RoundRun, None, [*words, "mine.axes=[rhythm.pulse]"], "round")
    cfg.check_parts()
    score_candidates(cfg, mined[0])
    songs = {row.sample_id: row.sha256 for row in open_samples(mined[0]).rows()}
    first = {sha256 for sample, sha256 in songs.items() if sample.endswith(".000")}
    by_axis: dict[str, set[str]] = {}
    for row in tables.read_rows(tmp_path / "scores", SCORES):
        by_axis.setdefault(row.axis, set()).add(row.sha256)
    assert len(first) == 2
    assert by_axis["rhythm.pulse"] == set(songs.values())
    assert by_axis["harmony.key"] == by_axis["production.balance"] == first
    for axes in ("mine.axes=[]", "mine.axes=[structure.form]"):
        with pytest.raises(ConfigError, match=r"judge_candidates: name the axes to mine"):
            build_config(RoundRun, None, [*words, axes], "round").check_parts()


def test_shards_join_to_the_whole(world, mined):
    folder, model = world
    words = (
        "sample",
        f"prompts={folder / 'mining.jsonl'}",
        "per_prompt=4",
        "sampling.steps=3",
        "shards=2",
        *model,
    )
    for shard in range(2):
        verb(*words, f"out={folder / 'shards'}", f"shard={shard}")
    same_songs(mined[0], folder / "shards")


def test_two_processes_make_the_same_songs_and_scores(world, mined):
    folder, model = world
    out = folder / "two"
    launch(
        "two", "sample", f"out={out}", f"prompts={folder / 'mining.jsonl'}", "per_prompt=4", "sampling.steps=3",
        *model,
    )  # fmt: skip
    assert json.loads((out / "manifest.json").read_text())["world"] == 2
    same_songs(mined[0], out)


def test_judges_cannot_be_mined_and_axes_must_exist(mined):
    candidates, scores, _ = mined
    words = ("mine", f"samples=[{candidates}]", f"scores={scores}", f"out={scores.parent / 'none'}")
    assert "belongs to a judge" in verb(*words, "axes=[musicnn.typicality]", code=2)
    assert "Did you mean 'harmony.key'?" in verb(*words, "axes=[harmony.kay]", code=2)


def test_when_all_candidates_are_tied_there_are_no_pairs_and_that_is_said(world, mined):
    candidates, scores, _ = mined
    tied = scores.parent / "tied"
    rows = [
        replace(row, value=9.0 if row.axis == "seconds" else 0.0 if row.scorer == "gates" else 1.0)
        for row in tables.read_rows(scores, SCORES)
    ]
    tables.append(tied, SCORES, rows)
    shutil.copy(scores / "manifest.json", tied)
    words = ("mine", f"samples=[{candidates}]", f"scores={tied}", f"out={scores.parent / 'no-pairs'}")
    assert "all candidates are tied" in verb(*words, code=2)


def test_scores_that_are_not_numbers_take_their_song_out_of_mining(mined):
    candidates, scores, pairs = mined
    broken = scores.parent / "nan-scores"
    rows = tables.read_rows(scores, SCORES)
    winners = {row.winner for row in tables.read_rows(pairs, PAIRS)}
    by_id = {row.sample_id: row.sha256 for row in tables.read_rows(candidates, SAMPLES)}
    bad = {by_id[name] for name in winners}
    rows = [
        replace(row, value=float("nan")) if row.sha256 in bad and row.axis == "harmony.key" else row
        for row in rows
    ]
    tables.append(broken, SCORES, rows)
    shutil.copy(scores / "manifest.json", broken)
    out = scores.parent / "nan-pairs"
    words = ("rule.args.min_axis_margin=-9", "rule.args.min_margin=0.01")
    verb("mine", f"samples=[{candidates}]", f"scores={broken}", f"out={out}", *words)
    pairs_left = tables.read_rows(out, PAIRS)
    assert not winners & {name for row in pairs_left for name in (row.winner, row.loser)}


def test_prompts_without_candidates_are_counted_not_fatal(world, mined):
    folder, _ = world
    candidates, scores, _ = mined
    partial = folder / "partial"
    shutil.copytree(candidates, partial)
    rows = [row for row in tables.read_rows(candidates, SAMPLES) if row.prompt_id == "m0"]
    shutil.rmtree(partial / SAMPLES.folder)
    tables.append(partial, SAMPLES, rows)
    out = folder / "partial-pairs"
    words = ("rule.args.min_axis_margin=-9", "rule.args.min_margin=0.01")
    verb("mine", f"samples=[{partial}]", f"scores={scores}", f"out={out}", *words)
    assert "no candidate was sampled" in json.loads((out / "manifest.json").read_text())["skipped"]["m1"]


def test_latents_that_are_not_numbers_stop_training_with_the_file_and_the_remedy(world, mined):
    folder, model = world
    candidates, _, pairs = mined
    copy, bad = folder / "bad-candidates", folder / "bad-pairs"
    shutil.copytree(candidates, copy)
    rows = tables.read_rows(pairs, PAIRS)
    tables.append(bad, PAIRS, [replace(row, samples="../bad-candidates") for row in rows])
    victim = copy / "latents" / f"{rows[0].winner}.safetensors"
    tensors = load_file(victim)
    tensors["latents"][3] = float("nan")
    save_file(tensors, victim)
    error = verb(
        "train", f"out={folder / 'bad-run'}", f"data.pairs={bad}", "train.steps=2", "train.global_batch=2",
        "train.per_device=2", *model, code=2,
    )  # fmt: skip
    assert f"{victim.name}: holds latents that are not numbers" in error


def test_a_checkpoint_of_another_shape_is_refused(world, tmp_path):
    folder, _ = world
    other = write_bundle(tmp_path, dim=64)
    shutil.copy(other / "network" / "diffusion_pytorch_model.safetensors", tmp_path / "weights")
    config = json.loads((other / "network" / "config.json").read_text()) | {
        "dim": 32,
        "num_attention_heads": 2,
    }
    (other / "network" / "config.json").write_text(json.dumps(config))
    error = verb(
        "sample", f"out={tmp_path / 's'}", f"prompts={folder / 'mining.jsonl'}", "model.name=tiny",
        f"model.args.bundle={other}", code=2,
    )  # fmt: skip
    assert "the weights are of another model" in error


def test_a_half_written_part_is_named(mined, tmp_path):
    candidates, scores, _ = mined
    broken = tmp_path / "scores"
    shutil.copytree(scores, broken)
    part = next((broken / "scores.parquet").glob("*.parquet"))
    (broken / "scores.parquet" / "part-00001-000000.parquet").write_bytes(part.read_bytes()[:100])
    error = verb("mine", f"samples=[{candidates}]", f"scores={broken}", f"out={tmp_path / 'p'}", code=2)
    assert "part-00001-000000.parquet: damaged" in error


def test_an_output_that_cannot_be_written_is_one_line(world, tmp_path):
    folder, model = world
    (tmp_path / "file").write_text("")
    words = ("sample", f"prompts={folder / 'mining.jsonl'}", *model)
    assert "a file stands where a folder is needed" in verb(*words, f"out={tmp_path / 'file' / 'x'}", code=2)


def test_a_full_disk_loses_nothing_that_was_finished(world, tmp_path, monkeypatch):
    folder, model = world
    words = (
        "sample",
        f"out={tmp_path / 's'}",
        f"prompts={folder / 'mining.jsonl'}",
        "sampling.steps=2",
        "sampling.batch=1",
    )
    write, calls = audio.write, []

    def full_on_the_second(path, clip):
        calls.append(path)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        write(path, clip)

    monkeypatch.setattr(audio, "write", full_on_the_second)
    assert "no space left" in verb(*words, *model, code=2)
    kept = snapshot(tmp_path / "s" / "audio")
    assert len(kept) == 1
    verb(*words, *model)
    assert len(snapshot(tmp_path / "s" / "audio")) == 2
    assert kept.items() <= snapshot(tmp_path / "s" / "audio").items()


def test_a_round_runs_from_prompts_to_report_and_then_returns_at_once(world):
    folder, model = world
    words = (
        "round", f"out={folder / 'round'}", f"mining_prompts={folder / 'mining.jsonl'}",
        f"evaluation_prompts={folder / 'evaluation.jsonl'}", "candidates=3", "rounds=2", "sample.sampling.steps=2",
        "train.train.steps=2", "train.train.global_batch=2", "train.train.per_device=2", "train.train.lora.rank=2",
        "train.train.trackers=[]", "mine.rule.args.min_axis_margin=-9", "mine.rule.args.min_margin=0.01",
        "train.train.learning_rate=1e-3",
        "long_song_s=5", "long_song_prompt=rock", *model,
    )  # fmt: skip
    verb(*words, "stop.max_winner_rise=.inf")
    report = json.loads((folder / "round" / "report" / "report.json").read_text())
    roles = {axis["axis"]: axis["role"] for axis in report["axes"]}
    assert roles["musicnn.typicality"] == "diagnosis"
    assert roles["harmony.key"] == "mined"
    assert len(report["samples"]) == 4
    manifest = json.loads((folder / "round" / "manifest.json").read_text())
    assert (
        manifest["best"] == manifest["rounds"] == len(manifest["results"])
    )  # nothing to choose by: the newest
    page = (folder / "round" / "report" / "report.html").read_text()
    assert "data:audio" in page
    assert "http" not in page.split("<body")[1].split("<details")[0]
    assert "a far model" not in page
    gain = {"mean": 1.0, "low": 0.5, "high": 1.5}
    point = {"name": "a far model", "method": "dpo", "kl": 40.0, "n": None, "composites": {"W.all": gain}}
    (folder / "round" / "frontier.json").write_text(json.dumps({"points": [point]}))
    before = snapshot(folder / "round")
    verb(*words, "stop.max_winner_rise=.inf")
    assert "a far model" in (folder / "round" / "report" / "report.html").read_text()
    after = snapshot(folder / "round")
    assert {p for p in after if after[p] != before.get(p) and "report" not in p.parts} == set()


def test_rounds_of_reinforcement_keep_the_best_by_validation_prompts(world):
    """NFT on groups; judges and errors cannot stop it here, so it ends where the mined axes gain no more."""
    folder, model = world
    rows = [
        {"id": f"v{k}", "text": f"{mood} {style} tune", "duration_s": 2}
        for k, (mood, style) in enumerate(product(("dark", "wide", "calm", "bright"), ("rock", "ambient")))
    ]
    (folder / "validation.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    out = folder / "online"
    words = (
        "round", f"out={out}", f"mining_prompts={folder / 'mining.jsonl'}", "train.objective.name=nft",
        f"evaluation_prompts={folder / 'evaluation.jsonl'}", f"validation_prompts={folder / 'validation.jsonl'}",
        "candidates=3", "train.data.group_size=3", "rounds=2", "sample.sampling.steps=2", "train.train.steps=2",
        "train.train.global_batch=2", "train.train.per_device=2", "train.train.lora.rank=2",
        "train.train.trackers=[]", "train.train.learning_rate=1e-2", "evaluation_samples=1", "stop.judges=false",
        "score.scorers=[harmony,musicnn]", *model,
    )  # fmt: skip
    verb(*words)
    manifest = json.loads((out / "manifest.json").read_text())
    scores = [result["score"] for result in manifest["results"]]
    assert 1 <= manifest["rounds"] == len(scores) <= 2
    gains = [0.0, *scores]
    assert gains[manifest["best"]] == max(gains)
    assert ("no gain" in manifest["stopped"]) == (scores[-1] <= max(gains[:-1]))
    adapters = manifest["model"].get("adapter", "").split(",")
    assert len([adapter for adapter in adapters if adapter]) == manifest["best"]
    assert json.loads((out / "round-1" / "pairs" / "manifest.json").read_text())["pairs"] == 0
    error = verb(*words, f"validation_prompts={folder / 'evaluation.jsonl'}", code=2)
    assert "prompt group(s) are in both" in error
    assert all(result["kl"] > 0 for result in manifest["results"])
    second = [word for word in words if not word.startswith(("out=", "rounds="))]
    second += [f"out={folder / 'online-2'}", f"start={out}", "stop.max_kl=1e-9"]
    said = verb(*second)
    stage = json.loads((folder / "online-2" / "manifest.json").read_text())
    assert stage["best"] == 0
    assert f"{stage['results'][0]['kl']:.3g} nats a second from the first" in stage["stopped"] + said
    assert stage["model"] == manifest["model"]  # the best of the stage before, since no round kept the rule
    songs = open_samples(folder / "online-2" / "round-1" / "candidates").rows()
    assert json.loads(songs[0].model).get("adapter", "") == manifest["model"].get("adapter", "")
    error = verb(*second, f"start={folder / 'round'}-x", f"out={folder / 'online-3'}", code=2)
    assert "no finished run of `diffdpo round`" in error


def test_evaluating_on_mined_prompts_is_refused(world, mined):
    folder, _ = world
    candidates, scores, pairs = mined
    error = verb(
        "evaluate", f"baseline={candidates}", f"aligned={candidates}", f"scores={scores}", f"pairs={pairs}",
        f"out={folder / 'cheat'}", code=2,
    )  # fmt: skip
    assert "was mined for training" in error
    error = verb(
        "evaluate", f"baseline={candidates}", f"aligned={candidates}", f"scores={scores}",
        f"frontier={candidates}/manifest.json", f"out={folder / 'cheat'}", code=2,
    )  # fmt: skip
    assert "no file of a frontier" in error
