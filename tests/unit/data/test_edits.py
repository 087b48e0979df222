"""Edits: what is kept, what is generated, and every mistake in one line."""

import json

import numpy as np
import pytest
import torch

from diffdpo import audio
from diffdpo.data.edits import Edit, place_song, song_frames, to_generate
from diffdpo.data.latents import write_latents
from diffdpo.data.prompts import read_edits, read_prompts
from diffdpo.errors import DataError
from diffdpo.types import Clip


def write(tmp_path, edit, **more):
    path = tmp_path / "prompts.jsonl"
    path.write_text(json.dumps({"id": "a", "text": "rock", "edit": edit, **more}))
    return path


@pytest.fixture
def song(tmp_path):
    write_latents(tmp_path / "song.safetensors", torch.arange(200.0).reshape(100, 2))
    return tmp_path


def mask_of(edit, frames=100, rate=10.0):
    return to_generate(edit, "a", frames=frames, frames_per_second=rate)


def test_spans_are_counted_in_frames_of_the_song():
    edit = Edit(song="x", spans=((2.0, 3.05), (9.0, -1.0)))
    assert mask_of(edit).nonzero().flatten().tolist() == [*range(20, 30), *range(90, 100)]
    assert mask_of(Edit(song="x", spans=((-1.0, 0.3),))).nonzero().flatten().tolist() == [0, 1, 2]
    assert mask_of(Edit(song="x", strength=0.5)).all()
    assert mask_of(Edit(song="x", cover=True)).all()


def test_what_is_added_stands_at_the_ends_and_the_song_between():
    edit = Edit(song="x", extend_start_s=1.0, extend_end_s=0.5, spans=((0.0, 0.2),))
    new = mask_of(edit)
    assert len(new) == 115
    assert new.nonzero().flatten().tolist() == [*range(12), *range(110, 115)]
    latents = torch.randn(100, 2)
    whole = place_song(latents, edit, length=115, frames_per_second=10.0)
    assert torch.equal(whole[10:110], latents)
    assert not whole[:10].any()
    assert not whole[110:].any()


def test_an_edit_is_read_with_its_song_beside_the_prompts(song):
    path = write(song, {"song": "song.safetensors", "spans": [[1, 2]], "extend_end_s": 3})
    (edit,) = read_edits(path).values()
    assert edit == Edit(song=str(song / "song.safetensors"), spans=((1.0, 2.0),), extend_end_s=3)
    assert [prompt.id for prompt in read_prompts(path)] == ["a"]
    assert song_frames(edit, "a", channels=2, frames_per_second=10.0) == 100


def test_the_length_of_an_audio_file_is_read_from_its_header(tmp_path):
    clip = Clip(samples=np.zeros((2, 44100), np.float32), sample_rate=22050)
    audio.write(tmp_path / "song.wav", clip)
    edit = Edit(song=str(tmp_path / "song.wav"), strength=0.5)
    assert song_frames(edit, "a", channels=2, frames_per_second=21.5) == 43


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        ([], "edit must be an object"),
        ({"spans": [[0, 1]]}, "name the latents or the audio"),
        ({"song": "none.flac", "spans": [[0, 1]]}, "none.flac: no such file"),
        ({"song": "song.safetensors"}, "asks for nothing"),
        ({"song": "song.safetensors", "span": [[0, 1]]}, r"unknown key 'span'. Did you mean 'spans'\?"),
        ({"song": "song.safetensors", "spans": [0, 1]}, r"list of \[start, end\]"),
        ({"song": "song.safetensors", "spans": [[0, 1, 2]]}, r"list of \[start, end\]"),
        ({"song": "song.safetensors", "spans": [["0", 1]]}, r"list of \[start, end\]"),
        ({"song": "song.safetensors", "spans": [[3, 1]]}, r"\[3, 1\] ends before it begins"),
        ({"song": "song.safetensors", "spans": [[-2, 1]]}, "or -1 for its ends"),
        ({"song": "song.safetensors", "spans": [[0, 2], [1, 3]]}, "overlap; join them into one"),
        ({"song": "song.safetensors", "spans": [[5, -1], [6, 7]]}, "overlap"),
        ({"song": "song.safetensors", "extend_end_s": -1}, "extend_end_s must be seconds of at least 0"),
        ({"song": "song.safetensors", "cover": 1}, "edit.cover must be true or false"),
        ({"song": "song.safetensors", "strength": True}, "edit.strength must be a number"),
        ({"song": "song.safetensors", "cover": True, "spans": [[0, 1]]}, "leave spans and extensions out"),
        ({"song": "song.safetensors", "extend_end_s": "long"}, "extend_end_s must be a number"),
        ({"song": "song.safetensors", "strength": 0}, r"strength must be in \(0, 1\]"),
        ({"song": "song.safetensors", "strength": 0.5, "extend_end_s": 1}, "cannot extend"),
    ],
)
def test_every_mistake_names_line_and_prompt(song, edit, says):
    with pytest.raises(DataError, match=says) as caught:
        read_prompts(write(song, edit))
    assert "prompts.jsonl:1: prompt 'a': " in str(caught.value)


def test_the_length_of_an_edit_is_that_of_its_song(song):
    path = write(song, {"song": "song.safetensors", "strength": 0.5}, duration_s=5)
    with pytest.raises(DataError, match="leave duration_s out"):
        read_prompts(path)


@pytest.mark.parametrize("span", [(11.0, 12.0), (9.0, 10.2), (11.0, -1.0)])
def test_a_span_outside_the_song_is_refused_with_its_length(span):
    with pytest.raises(DataError, match=r"prompt 'a': .* outside the song of 10.00 s; use -1"):
        mask_of(Edit(song="x", spans=(span,)))


def test_a_span_of_no_frame_is_refused():
    with pytest.raises(DataError, match="shorter than a frame"):
        mask_of(Edit(song="x", spans=((1.01, 1.02),)))


def test_latents_of_another_width_or_of_none_are_refused(song):
    edit = Edit(song=str(song / "song.safetensors"), strength=0.5)
    with pytest.raises(DataError, match=r"prompt 'a': .*latents of 2 channels, this model's have 64"):
        song_frames(edit, "a", channels=64, frames_per_second=10.0)
    (song / "broken.safetensors").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"prompt 'a': .*broken.safetensors: holds no latents"):
        song_frames(
            Edit(song=str(song / "broken.safetensors"), strength=0.5), "a", channels=2, frames_per_second=10.0
        )
