"""Songs of a data set over the model's answers to their captions, from a prepared folder to a training."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from support.launch import rows, verb
from support.songs import write_prepared

import diffdpo
from diffdpo import audio
from diffdpo.data import tables
from diffdpo.data.datasets.examples import DataConfig, build_examples, data_digest
from diffdpo.data.datasets.generated import Source
from diffdpo.data.latents import read_latents
from diffdpo.data.pairs import PAIRS, PairRow
from diffdpo.data.real_winners import crop_start
from diffdpo.data.refresh import song_labels
from diffdpo.data.samples import SAMPLES, SampleRow, open_samples
from diffdpo.data.song_manifest import SongEntry
from diffdpo.data.songs import SONGS, SongRow, song_latents
from diffdpo.errors import ConfigError, DataError
from diffdpo.mining.values import Pair
from diffdpo.runs import read_json
from diffdpo.types import Clip

pytestmark = pytest.mark.slow

NONE = json.dumps({})
ROWS = [
    SongRow(
        id="a", text="slow rock", group="ga", frames=90, duration_s=4.0, controls=json.dumps({"bpm": 90})
    ),
    SongRow(id="b", text="fast metal", frames=90, duration_s=4.0, controls=NONE, language="en"),
    SongRow(id="brief", text="jazz", frames=10, duration_s=0.5, controls=NONE),
    SongRow(id="sung", text="folk", lyrics="la la", frames=90, duration_s=4.0, controls=NONE),
    SongRow(id="held", text="blues", split="valid", frames=90, duration_s=4.0, controls=NONE),
    SongRow(id="untitled", frames=90, duration_s=4.0, controls=NONE),
    SongRow(id="broken", text="noise", error="damaged", controls=NONE),
]
PLAIN = [replace(row, controls=NONE, lyrics="", language="") for row in ROWS]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, bundle):
    """Prepared songs, and two answers of a random model to each caption of the split `train`."""
    folder = tmp_path_factory.mktemp("real")
    write_prepared(folder / "data", PLAIN)
    sample(folder, bundle, "samples")
    mine(folder, "pairs", "rule.args.pairs_per_prompt=2")
    return folder


def sample(folder, bundle, out, *words, code=0):
    return verb(
        "sample", f"prompts={folder / 'data'}", "songs.max_s=1", f"out={folder / out}", "sampling.steps=1",
        f"model.args.bundle={bundle}", "per_prompt=2", "audio=false", "sampling.guidance_scale=1", *words,
        code=code,
    )  # fmt: skip


def mine(folder, out, *words, samples="samples", code=0):
    return verb(
        "mine", f"samples=[{folder / samples}]", f"songs={folder / 'data'}", f"out={folder / out}",
        "rule.name=real_versus_sample", *words, code=code,
    )  # fmt: skip


def train(out, pairs, bundle, *words, code=0):
    verb(
        "train", f"out={out}", f"data.pairs={pairs}", f"model.args.bundle={bundle}", "objective.args.beta=50",
        "train.global_batch=8", "train.per_device=8", "train.learning_rate=3e-3", "train.trackers=[]",
        "train.time_bins=0", "train.lora.rank=4", "train.save_every=2", *words, code=code,
    )  # fmt: skip
    return rows(out)


def pair_rows(folder):
    return sorted(tables.read_rows(folder, PAIRS), key=lambda row: (row.winner, row.loser))


def copy(folder, target):
    """The folders in another place, together."""
    shutil.copytree(folder, target)
    return target


def source(**changes):
    plain = Source(
        embed=lambda prompt: {"words": torch.tensor(list(f"{prompt.id}|{prompt.text}".encode()))},
        embed_plan=lambda plan: {}, frames_per_second=15.0, seed=0, report=print,
    )  # fmt: skip
    return replace(plain, **changes)


def examples(pairs, **data):
    return build_examples(DataConfig(pairs=str(pairs), **data), "pair", "dpo", source())


def test_captions_of_a_split_are_prompts_with_all_that_songs_are_conditioned_on(tmp_path):
    from diffdpo.data.prompts import read_edits, read_prompts
    from diffdpo.data.song_prompts import SongPrompts

    data = write_prepared(tmp_path, ROWS)
    prompts = {prompt.id: prompt for prompt in read_prompts(data, SongPrompts(max_s=1.0))}
    assert sorted(prompts) == ["a", "b", "brief", "sung"]
    assert (prompts["a"].group, prompts["b"].group) == ("ga", "b")
    assert {name: prompt.duration_s for name, prompt in prompts.items()} == {
        "a": 1.0, "b": 1.0, "brief": 0.5, "sung": 1.0,
    }  # fmt: skip
    assert prompts["a"].controls == (("bpm", 90),)
    assert (prompts["b"].language, prompts["sung"].lyrics, prompts["a"].lyrics) == ("en", "la la", None)
    assert read_edits(data) == {}
    assert [prompt.id for prompt in read_prompts(data, SongPrompts(split="valid"))] == ["held"]
    with pytest.raises(DataError, match="the recording  of 'a' is gone"):
        read_prompts(data, SongPrompts(style="sound"))
    audio = tmp_path / "a.wav"
    audio.write_bytes(b"")
    tables.replace(data, SONGS, [replace(row, audio=str(audio)) for row in ROWS])
    both = {prompt.id: prompt for prompt in read_prompts(data, SongPrompts(style="sound"))}
    assert (both["untitled"].style_audio, both["a"].text) == (str(audio), None)
    with pytest.raises(DataError, match="no prepared songs of the split 'test'"):
        read_prompts(data, SongPrompts(split="test"))
    tables.replace(data, SONGS, [replace(row, controls="") for row in ROWS])
    with pytest.raises(DataError, match="prepared by an older diffdpo"):
        read_prompts(data, SongPrompts())


def test_the_pairs_are_exactly_the_songs_over_the_answers_to_their_captions(folder):
    samples = {row.sample_id: row for row in open_samples(folder / "samples").rows()}
    pairs = pair_rows(folder / "pairs")
    assert [(row.winner, row.loser) for row in pairs] == [
        (song, f"{song}.00{k}") for song in ("a", "b", "brief", "sung") for k in range(2)
    ]
    for row in pairs:
        assert (row.prompt_id, row.samples, row.songs) == (row.winner, "../samples", "../data")
        assert (row.margins, row.soft_label, row.rule) == ({}, 1.0, "real_versus_sample")
        assert 0 <= row.winner_start <= max(0, 90 - samples[row.loser].frames)
    starts = {row.loser: row.winner_start for row in pairs}
    assert starts["brief.000"] == starts["brief.001"] == 0
    assert len({starts[name] for name in ("a.000", "a.001", "b.000", "b.001")}) > 2
    manifest = read_json(folder / "pairs" / "manifest.json")
    assert (manifest["pairs"], manifest["pairs_with_real_winners"], manifest["ratings"]) == (8, 8, 0)
    assert manifest["pairs_by_axis"] == {"data set": 8}
    assert manifest["skipped"] == {"untitled": "the model has no answer to its caption"}


def test_a_crop_is_drawn_over_the_whole_song_and_by_what_the_answer_was_made_from():
    answers = [SampleRow(sample_id=f"a.{k:03d}", prompt_id="a", frames=10) for k in range(300)]
    starts = [crop_start(13, answer, is_sung=False) for answer in answers]
    assert all(50 < starts.count(start) < 100 for start in range(4))  # binomial(300, 1/4)
    assert {crop_start(13, answer, is_sung=True) for answer in answers} == {0}
    later = [crop_start(13, replace(answer, inputs="another model"), is_sung=False) for answer in answers]
    assert 0.15 < sum(a == b for a, b in zip(starts, later, strict=True)) / 300 < 0.35


def test_both_members_have_as_many_frames_and_the_condition_of_the_answer(folder):
    data = examples(folder / "pairs")
    for index, row in enumerate(data.rows):
        example = data.example(index, index)
        answer = read_latents(open_samples(folder / "samples").latents(row.loser))
        count = min(len(answer), 10 if row.winner == "brief" else 90)
        assert len(example.winner) == len(example.loser) == count
        assert torch.equal(example.loser, answer[:count])
        assert torch.allclose(example.winner[:, 0] * 10, torch.arange(count) + float(row.winner_start))
        winner, loser = example.rows
        assert bytes(winner.embedding["words"].tolist()).decode().split("|")[0] == row.winner
        assert (winner.embedding, winner.frames) == (loser.embedding, loser.frames)


def test_training_begins_at_log_two_pulls_apart_and_resumes_bit_for_bit(folder, tmp_path, bundle):
    whole = train(tmp_path / "whole", folder / "pairs", bundle, "train.steps=4")
    assert whole[0]["loss"] == pytest.approx(math.log(2), rel=1e-6)
    assert whole[0]["margin"] == 0.0
    assert whole[-1]["margin"] > 0.0
    assert whole[-1]["loss"] < whole[0]["loss"]
    train(tmp_path / "parts", folder / "pairs", bundle, "train.steps=2")
    assert train(tmp_path / "parts", folder / "pairs", bundle, "train.steps=4") == whole


def test_songs_that_are_held_out_are_trained_on_only_if_that_is_asked_for(folder, tmp_path, bundle):
    root = copy(folder, tmp_path / "all")
    sample(root, bundle, "held", "songs.split=valid")
    assert "of the split 'valid', not 'train'" in mine(root, "wrong", samples="held", code=2)
    mine(root, "held-pairs", "split=valid", samples="held")
    with pytest.raises(DataError, match=r"winner 'held' is of the split 'valid'.*set data\.split=valid"):
        examples(root / "held-pairs")
    assert len(examples(root / "held-pairs", split="valid")) == 1
    metrics = train(
        tmp_path / "t", root / "pairs", bundle, "train.steps=1",
        f"train.validation.pairs={root / 'held-pairs'}",
    )  # fmt: skip
    assert metrics[0]["validation/loss"] == pytest.approx(math.log(2), rel=1e-6)


def test_folders_move_together_and_a_song_that_is_gone_is_one_line(folder, tmp_path):
    root = copy(folder, tmp_path / "moved")
    digests = {data_digest(DataConfig(pairs=str(place / "pairs")), "pair") for place in (folder, root)}
    assert len(digests) == 1
    assert len(examples(root / "pairs")) == 8
    (root / "data" / "latents" / "a.safetensors").unlink()
    with pytest.raises(DataError, match=r"a\.safetensors: no such file"):
        build_examples(DataConfig(pairs=str(root / "pairs")), "pair", "dpo", source(channels=8))
    tables.replace(root / "data", SONGS, [replace(row, sha256="another") for row in PLAIN])
    assert data_digest(DataConfig(pairs=str(root / "pairs")), "pair") not in digests
    tables.replace(root / "data", SONGS, PLAIN[1:])
    with pytest.raises(DataError, match=r"names the song 'a', which \.\./data does not have"):
        examples(root / "pairs")
    shutil.rmtree(root / "data")
    with pytest.raises(DataError, match="holds no prepared songs; was it moved"):
        examples(root / "pairs")


def test_a_folder_of_a_version_that_did_not_know_a_key_goes_on_with_its_default(folder, tmp_path):
    root = copy(folder, tmp_path / "old")
    mine(root, "new")
    config = root / "new" / "config.yaml"
    text = config.read_text()
    assert "\nsplit: train" in text
    config.write_text(text.replace("\nsplit: train", ""))
    assert "was made with split='train', this command says 'valid'" in mine(
        root, "new", "split=valid", code=2
    )
    assert mine(root, "new") == ""


def test_mining_again_notices_other_songs(folder, tmp_path):
    root = copy(folder, tmp_path / "again")
    mine(root, "new", "rule.args.pairs_per_prompt=2")
    assert pair_rows(root / "new") == pair_rows(folder / "pairs")
    assert mine(root, "new", "rule.args.pairs_per_prompt=2") == ""
    tables.replace(root / "data", SONGS, [row for row in PLAIN if row.id != "b"])
    assert "songs or scores changed" in mine(root, "new", "rule.args.pairs_per_prompt=2")
    assert {row.winner for row in pair_rows(root / "new")} == {"a", "brief", "sung"}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["max_pairs=3"], "max_pairs: songs of a data set win without a margin"),
        (["soft_label_temperature=1"], "soft_label_temperature: songs of a data set win without a margin"),
        (["spans={}"], "spans: songs of a data set win without a margin"),
        (["axes=[harmony.key]"], "axes, novelty and weights are about scores"),
        (["pairs=false"], "no value for scores; ratings are made from scores"),
        (["songs="], "needs songs that win: set songs"),
        (["rule.name=best_versus_worst"], "rule 'best_versus_worst' pairs no songs of a data set"),
        (["rule.name=best_versus_worst", "songs="], "no value for scores; rule 'best_versus_worst' compares"),
        (["rule.args.losers=worst"], "losers=worst needs scores"),
        (["split=test"], "holds no prepared songs of the split 'test'"),
        (["songs=nowhere"], "nowhere: no such folder; make it first with `diffdpo prepare`"),
    ],
)
def test_settings_that_say_nothing_are_refused(folder, words, says):
    assert says in mine(folder, "refused", *words, code=2)


def test_songs_that_do_not_fit_their_answers_have_a_reason(folder, tmp_path):
    root = copy(folder, tmp_path / "other")
    rows_of = {row.id: row for row in PLAIN}
    changes = [replace(rows_of["a"], text="another"), replace(rows_of["b"], frames=3), rows_of["sung"]]
    tables.replace(root / "data", SONGS, changes)
    mine(root, "few")
    skipped = read_json(root / "few" / "manifest.json")["skipped"]
    assert "text is another" in skipped["a"]
    assert "shorter than the answers" in skipped["b"]
    assert "has no song of this id" in skipped["brief"]
    answers = open_samples(root / "samples").rows()
    tables.replace(root / "samples", SAMPLES, [replace(row, plan="a plan") for row in answers])
    assert "follows a plan, which no song" in mine(root, "planned", code=2)


def test_pairs_of_version_1_are_read_as_before(pairs, tmp_path):
    """The table as it was: without the columns of songs of a data set, its margins a map."""
    old = tmp_path / "mined" / "old"
    shutil.copytree(pairs.parent / "samples", tmp_path / "mined" / "samples")
    margins = [
        replace(row, margins={"x": 1.0}, spans=((0.0, 1.0),)) for row in tables.read_rows(pairs, PAIRS)
    ]
    tables.replace(old, PAIRS, margins)
    (part,) = (old / PAIRS.folder).glob("*.parquet")
    table = pq.read_table(part).drop_columns(["songs", "winner_start"])
    metadata = {b"diffdpo.table": b"pairs", b"diffdpo.version": b"1"}
    pq.write_table(table.replace_schema_metadata(metadata), part)
    assert tables.read_rows(old, PAIRS) == margins
    assert len(build_examples(DataConfig(pairs=str(old)), "pair", "dpo", source())) == 12


def test_digests_of_pairs_of_samples_are_those_of_older_versions(pairs):
    """Else a training of an older version would not resume: its facts are the six of each pair, and the songs'."""
    from diffdpo.data.datasets.generated import generated_songs_digest
    from diffdpo.data.datasets.memory import PairsInMemory
    from diffdpo.inputs import digest

    table = tables.read_rows(pairs, PAIRS)
    facts = sorted((r.samples, r.winner, r.loser, r.soft_label, r.axis, r.spans) for r in table)
    names = [(row.samples, song) for row in table for song in (row.winner, row.loser)]
    expected = digest([facts, generated_songs_digest(pairs, names)])
    assert data_digest(DataConfig(pairs=str(pairs)), "pair") == expected
    pair = Pair(prompt_id="p", group="p", winner="a", loser="b", rule="r", margins={"x": 1.0})
    content = {
        "prompt_id": "p", "group": "p", "winner": "a", "loser": "b", "rule": "r", "margins": {"x": 1.0},
        "soft_label": 1.0, "axis": "", "spans": [],
    }  # fmt: skip
    assert PairsInMemory([pair], {}, {}, 15.0).digest == digest([[content], {}])


def test_mining_in_memory_names_the_way_for_songs_of_a_data_set():
    with pytest.raises(ConfigError, match="needs a folder of prepared songs; use `diffdpo mine`"):
        diffdpo.mine([], [], "real_versus_sample")


def test_plans_are_exported_without_songs_of_a_data_set(folder):
    says = verb("export-pairs", folder / "pairs", "--for", "trl", "--out", folder / "trl.jsonl", code=2)
    assert "none of its songs follows a plan" in says


def test_a_pair_of_samples_and_one_with_a_song_of_that_id_are_two_rows(tmp_path):
    row = PairRow(prompt_id="p", samples="s", winner="a", loser="b")
    tables.append(tmp_path, PAIRS, [row])
    tables.append(tmp_path, PAIRS, [replace(row, songs="../data")])
    assert [entry.songs for entry in tables.read_rows(Path(tmp_path), PAIRS)] == ["", "../data"]


def test_prepare_keeps_what_songs_are_conditioned_on_and_adds_it_to_older_tables(tmp_path, bundle):
    sound = np.random.default_rng(0).normal(0, 0.1, (2, 44100)).astype(np.float32)
    audio.write(tmp_path / "a.wav", Clip(samples=sound, sample_rate=44100))
    line = {"id": "a", "audio": "a.wav", "text": "rock", "language": "en", "bpm": 90}
    (tmp_path / "songs.jsonl").write_text(json.dumps({**line, "key": "A minor", "split": "train"}))
    words = ["prepare", f"songs={tmp_path / 'songs.jsonl'}", f"out={tmp_path / 'data'}",
             f"model.args.bundle={bundle}", "style=none"]  # fmt: skip
    song = SongEntry(id="a", audio=tmp_path, lyrics="la", controls=(("bpm", 90), ("key", "A minor")))
    labels = song_labels(song, ["bpm"])
    assert (labels["lyrics"], json.loads(labels["controls"])) == ("la", {"bpm": 90})
    verb(*words)
    (row,) = tables.read_rows(tmp_path / "data", SONGS)
    assert (row.language, row.controls) == ("en", "{}")
    written = song_latents(tmp_path / "data", "a").stat().st_mtime_ns
    tables.replace(tmp_path / "data", SONGS, [replace(row, lyrics="", language="", controls="")])
    verb(*words)
    assert tables.read_rows(tmp_path / "data", SONGS) == [row]
    assert song_latents(tmp_path / "data", "a").stat().st_mtime_ns == written
