"""Sampling as people run it: long songs, edits, what fails, shards on several machines, a kill in between."""

import json
import shutil
import signal
import subprocess
import time
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support.launch import ROOT, command, environment, run, verb

from diffdpo import audio
from diffdpo.data import tables
from diffdpo.data.latents import write_latents
from diffdpo.data.samples import SAMPLES
from diffdpo.models import MODELS

pytestmark = pytest.mark.slow

PER_FRAME = 2048


def sample(*words, code=0):
    return verb("sample", *words, code=code)


def prompts(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"prompts={path}"


def rows(folder):
    return {row.sample_id: row for row in tables.read_rows(folder, SAMPLES)}


def latents(folder, name):
    return load_file(folder / "latents" / f"{name}.safetensors")["latents"]


def written(folder):
    """When each song and its latents were written."""
    files = [*folder.glob("latents/*"), *folder.glob("audio/*"), *folder.glob("pictures/*")]
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in files}


def same_but_for_a_gain(one, other):
    """Equal, or turned down as a whole because something new in the file would clip."""
    gain = float((one * other).sum() / (one**2).sum())
    assert 0.5 < gain < 1 + 1e-4
    assert np.abs(other - gain * one).max() < 1e-4
    return gain


@pytest.fixture(scope="module")
def model(bundle):
    return ("model.name=tiny", f"model.args.bundle={bundle}", "sampling.steps=2")


@pytest.fixture(scope="module")
def song(tmp_path_factory, model):
    """A folder with a song of 8 seconds."""
    folder = tmp_path_factory.mktemp("song")
    asked = prompts(folder / "p.jsonl", {"id": "a", "text": "rock", "duration_s": 8})
    sample(f"out={folder / 'out'}", asked, *model)
    return folder / "out"


@pytest.mark.parametrize(("method", "seconds"), [("continue", 62), ("joint", 26)])
def test_a_song_longer_than_the_model_is_made_in_windows(tmp_path, model, method, seconds):
    asked = prompts(
        tmp_path / "p.jsonl",
        {"id": "long", "text": "rock", "duration_s": seconds},
        {"id": "short", "text": "rock", "duration_s": 1},
    )
    words = (f"out={tmp_path / 'out'}", asked, *model, f"longform.method={method}")
    sample(*words)
    out = tmp_path / "out"
    made = latents(out, "long.000")
    assert made.shape == (int(seconds * 44100 / PER_FRAME), 8)
    clip = audio.read(out / "audio" / "long.000.flac")
    assert clip.samples.shape == (2, len(made) * PER_FRAME)
    loud, peak = audio.loudness(clip), float(np.abs(clip.samples).max())
    assert loud == pytest.approx(-16.0, abs=0.05) or (loud < -16 and peak == pytest.approx(0.98, abs=1e-3))
    row = rows(out)["long.000"]
    assert row.sha256 == audio.pcm_sha256(clip.samples, 44100)
    assert json.loads(row.longform)["method"] == method
    assert {path.name for path in (out / "audio").iterdir()} == {"long.000.flac", "short.000.flac"}
    before = written(out)
    sample(*words)
    assert written(out) == before


def test_only_the_named_spans_of_a_song_change_for_eye_and_ear(tmp_path, model, song, bundle):
    edit = {"song": str(song / "latents" / "a.000.safetensors"), "spans": [[2.0, 3.0], [6.5, -1]]}
    asked = prompts(tmp_path / "p.jsonl", {"id": "e", "text": "metal", "edit": edit})
    sample(f"out={tmp_path / 'out'}", asked, *model)
    old, new = latents(song, "a.000"), latents(tmp_path / "out", "e.000")
    made = torch.zeros(len(old), dtype=torch.bool)
    made[int(2 * 44100 / PER_FRAME) : int(3 * 44100 / PER_FRAME)] = True
    made[int(6.5 * 44100 / PER_FRAME) :] = True
    assert torch.equal(new[~made], old[~made])
    assert not torch.isclose(new[made], old[made]).all(1).any()
    reach = MODELS["tiny"](bundle=str(bundle)).load().spec.receptive_frames
    touched = np.convolve(made.numpy(), np.ones(2 * reach + 1), "same") > 0
    untouched = np.repeat(~touched, PER_FRAME)
    assert untouched.any()
    one, other = (
        audio.read(f / "audio" / n).samples
        for f, n in ((song, "a.000.flac"), (tmp_path / "out", "e.000.flac"))
    )
    gain = same_but_for_a_gain(one[:, untouched], other[:, untouched])
    assert np.abs(other - gain * one)[:, ~untouched].max() > 1e-2
    assert json.loads(rows(tmp_path / "out")["e.000"].edit)["spans"] == [[2.0, 3.0], [6.5, -1.0]]


def test_a_song_is_extended_at_both_ends_and_sounds_as_before_between(tmp_path, model, song, bundle):
    edit = {"song": str(song / "latents" / "a.000.safetensors"), "extend_start_s": 1.5, "extend_end_s": 3}
    asked = prompts(tmp_path / "p.jsonl", {"id": "e", "text": "rock", "edit": edit})
    words = ("longform.window_s=4", "longform.overlap_s=1")
    sample(f"out={tmp_path / 'out'}", asked, *model, *words)
    old, new = latents(song, "a.000"), latents(tmp_path / "out", "e.000")
    before, after = int(1.5 * 44100 / PER_FRAME), int(3 * 44100 / PER_FRAME)
    assert len(new) == before + len(old) + after
    assert torch.equal(new[before : before + len(old)], old)
    assert new[:before].abs().min() > 0
    reach = MODELS["tiny"](bundle=str(bundle)).load().spec.receptive_frames * PER_FRAME
    one = audio.read(song / "audio" / "a.000.flac").samples
    other = audio.read(tmp_path / "out" / "audio" / "e.000.flac").samples[:, before * PER_FRAME :]
    length = len(old) * PER_FRAME
    same_but_for_a_gain(one[:, reach : length - reach], other[:, reach : length - reach])


def test_an_audio_file_is_varied_more_the_more_noise_it_gets(tmp_path, model, song):
    edits = {s: {"song": str(song / "audio" / "a.000.flac"), "strength": s} for s in (0.05, 0.5, 0.95)}
    lines = [{"id": f"s{s}", "text": "rock", "edit": edit} for s, edit in edits.items()]
    asked = prompts(tmp_path / "p.jsonl", *lines)
    sample(f"out={tmp_path / 'out'}", asked, *model)
    names = ("s0.05.000", "s0.5.000", "s0.95.000")
    old = latents(tmp_path / "out", names[0])
    moved = [float((latents(tmp_path / "out", name) - old).norm()) for name in names[1:]]
    assert 0 < moved[0] < moved[1]


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        ({"spans": [[7, 9]]}, "prompt 'e': edit.spans: [7, 9] lies outside the song of 7.99 s; use -1"),
        ({"spans": [[3, 2]]}, "prompt 'e': edit.spans: [3, 2] ends before it begins"),
        ({"spans": [[1, 3], [2, 4]]}, "overlap; join them into one"),
        ({"song": "nowhere.flac", "spans": [[1, 2]]}, "nowhere.flac: no such file"),
        ({"song": "wide.safetensors", "strength": 0.5}, "latents of 5 channels, this model's have 8"),
    ],
)
def test_edits_that_cannot_be_are_refused_before_any_work(tmp_path, model, song, edit, says):
    write_latents(tmp_path / "wide.safetensors", torch.zeros(50, 5))
    edit = {"song": str(song / "latents" / "a.000.safetensors")} | edit
    asked = prompts(tmp_path / "p.jsonl", {"id": "e", "text": "rock", "edit": edit})
    assert says in sample(f"out={tmp_path / 'out'}", asked, *model, code=2)
    assert not (tmp_path / "out" / "latents").exists()


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ({"text": "rock"}, "p.jsonl:2: a prompt needs an id"),
        ({"id": "a", "text": "rock"}, "p.jsonl:2: the id 'a' is used twice"),
        ({"id": "b", "duration_s": 0}, "p.jsonl:2: prompt 'b': duration_s must be positive"),
        ({"id": "b", "duration_s": -5}, "p.jsonl:2: prompt 'b': duration_s must be positive"),
        ({"id": "b", "durations": 5}, "Did you mean 'duration_s'?"),
    ],
)
def test_bad_prompts_are_one_line_and_nothing_is_made(tmp_path, model, line, says):
    asked = prompts(tmp_path / "p.jsonl", {"id": "a", "text": "rock", "duration_s": 1}, line)
    assert says in sample(f"out={tmp_path / 'out'}", asked, *model, code=2)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("sampling.guidance_scale=.nan", "sampling.guidance_scale must be at least 0, got nan"),
        ("sampling.guidance=4", "sampling.guidance: got 4, but takes a name or {name: …, args: {…}}"),
        ("sampling.guidance=4", "Did you mean 'guidance_scale'?"),
        ("sampling.steps=0", "sampling.steps must be at least 1"),
        ("longform.overlap_s=-1", "longform.overlap_s must be a positive number"),
        ("longform.method=glue", "longform.method"),
        ("shard=2", "shard must be in [0, 1), got 2"),
    ],
)
def test_bad_settings_are_one_line(tmp_path, model, word, says):
    asked = prompts(tmp_path / "p.jsonl", {"id": "a", "text": "rock", "duration_s": 1})
    assert says in sample(f"out={tmp_path / 'out'}", asked, *model, word, code=2)


def test_an_empty_prompt_file_is_refused(tmp_path, model):
    assert "holds no prompts" in sample(
        f"out={tmp_path / 'o'}", prompts(tmp_path / "p.jsonl"), *model, code=2
    )


def test_what_fails_is_on_record_the_rest_is_made_and_the_failures_are_tried_again(tmp_path, model):
    (tmp_path / "style.flac").write_bytes(b"no music")
    write_latents(tmp_path / "nan.safetensors", torch.full((40, 8), float("nan")))
    asked = prompts(
        tmp_path / "p.jsonl",
        {"id": "good", "text": "rock", "duration_s": 1},
        {"id": "style", "style_audio": "style.flac", "duration_s": 1},
        {"id": "words", "text": "rock", "lyrics": "[00:00.10]la", "language": "fr", "duration_s": 1},
        {"id": "nan", "text": "rock", "edit": {"song": "nan.safetensors", "spans": [[0.5, 1]]}},
    )
    words = (f"out={tmp_path / 'out'}", asked, *model, "per_prompt=2")
    said = sample(*words)
    table = rows(tmp_path / "out")
    failed = {name: row.error for name, row in table.items() if row.error}
    assert failed.keys() == {f"{p}.00{k}" for p in ("style", "words", "nan") for k in range(2)}
    for name, says in (("style", "cannot decode"), ("words", "cannot sing"), ("nan", "not numbers")):
        assert says in failed[f"{name}.000"]
        assert "\n" not in failed[f"{name}.000"]
    assert "6 of 8 songs failed; the same command tries them again" in said
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert (manifest["samples"], manifest["failed"]) == (2, 6)
    page = (tmp_path / "out" / "index.html").read_text()
    assert "6 failed" in page
    assert "cannot decode" in page
    before = written(tmp_path / "out")
    clip = audio.read(tmp_path / "out" / "audio" / "good.000.flac")
    audio.write(tmp_path / "style.flac", clip)
    sample(*words)
    after = written(tmp_path / "out")
    assert before.items() <= after.items()
    assert {name for name, row in rows(tmp_path / "out").items() if not row.error} == {
        f"{p}.00{k}" for p in ("good", "style") for k in range(2)
    }


def test_when_every_song_fails_the_run_fails(tmp_path, model):
    asked = prompts(tmp_path / "p.jsonl", {"id": "a", "lyrics": "[00:00.10]la", "duration_s": 1})
    error = sample(f"out={tmp_path / 'out'}", asked, *model, code=2)
    assert "no song could be made; first: prompt 'a': this model was loaded without a vocabulary" in error


def test_shards_of_several_machines_are_joined_by_copying(tmp_path, model):
    asked = prompts(
        tmp_path / "p.jsonl", *({"id": f"p{i}", "text": "rock", "duration_s": 1 + i / 10} for i in range(3))
    )
    words = (asked, *model, "per_prompt=3", "sampling.batch=2")
    for shard in range(2):
        said = sample(f"out={tmp_path / f'machine-{shard}'}", *words, "shards=2", f"shard={shard}")
        assert f"{5 - shard} of 9 songs are there; the rest is for the other shards" in said
        assert not (tmp_path / f"machine-{shard}" / "manifest.json").exists()
        page = (tmp_path / f"machine-{shard}" / "index.html").read_text()
        assert f"{4 + shard} songs are still to be made" in page
    for shard in range(2):
        shutil.copytree(
            tmp_path / f"machine-{shard}", tmp_path / "all", dirs_exist_ok=True, copy_function=shutil.copy2
        )
    before = written(tmp_path / "all")
    assert len(rows(tmp_path / "all")) == 9
    sample(f"out={tmp_path / 'all'}", *words)
    assert before.items() <= written(tmp_path / "all").items()
    assert json.loads((tmp_path / "all" / "manifest.json").read_text())["samples"] == 9
    sample(f"out={tmp_path / 'one'}", *words)
    for name in rows(tmp_path / "one"):
        assert torch.allclose(latents(tmp_path / "one", name), latents(tmp_path / "all", name), atol=1e-4)


def test_the_last_shard_in_a_shared_folder_finishes_it(tmp_path, model):
    asked = prompts(
        tmp_path / "p.jsonl", *({"id": f"p{i}", "text": "rock", "duration_s": 1} for i in range(3))
    )
    words = (f"out={tmp_path / 'out'}", asked, *model, "shards=2")
    sample(*words, "shard=1")
    assert not (tmp_path / "out" / "manifest.json").exists()
    sample(*words, "shard=0")
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["samples"] == 3


def test_a_killed_shard_loses_only_the_song_in_progress(tmp_path, model):
    asked = prompts(
        tmp_path / "p.jsonl", *({"id": f"p{i}", "text": "rock", "duration_s": 2} for i in range(6))
    )
    words = ("sample", f"out={tmp_path / 'out'}", asked, *model, "sampling.batch=1", "sampling.steps=20")
    process = subprocess.Popen(command(*words), cwd=ROOT, env=environment("one"), stderr=subprocess.DEVNULL)
    table, deadline = tmp_path / "out" / SAMPLES.folder, time.monotonic() + 240
    while len(list(table.glob("part-*"))) < 2:
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait(60)
    kept = rows(tmp_path / "out")
    assert 2 <= len(kept) < 6
    before = {name: when for name, when in written(tmp_path / "out").items() if Path(name).stem in kept}
    assert len(before) == 2 * len(kept)
    run(*words)
    assert before.items() <= written(tmp_path / "out").items()
    assert len(rows(tmp_path / "out")) == 6
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["samples"] == 6


def test_the_page_plays_the_files_beside_it(tmp_path, model):
    asked = prompts(tmp_path / "p.jsonl", {"id": "a #1 <b>", "text": "rock & <i>roll</i>", "duration_s": 1})
    sample(f"out={tmp_path / 'out'}", asked, *model)
    page = (tmp_path / "out" / "index.html").read_text()
    assert "rock &amp; &lt;i&gt;roll&lt;/i&gt;" in page
    for quote in ('audio controls preload="none" src="', 'img src="'):
        link = page.split(quote)[1].split('"')[0]
        assert (tmp_path / "out" / unquote(link)).is_file(), link
