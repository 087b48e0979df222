"""Scorers of adherence: what they make of a song depends on the prompt, and on nothing else."""

from pathlib import Path

import numpy as np
import pytest
import torch

from diffdpo import audio
from diffdpo.data.scores import prompt_key
from diffdpo.encoders.musicnn import TAGS
from diffdpo.encoders.style import windows
from diffdpo.scorers import SCORERS, musicnn
from diffdpo.scorers.adherence import Adherence
from diffdpo.scorers.base import PromptScorer, Scorer
from diffdpo.scorers.canonical import canonical
from diffdpo.scorers.tags import MEANINGS, MOST, Tags, named_tags
from diffdpo.types import Clip, Prompt

SONG = Path(__file__).parents[2] / "data" / "galactic_temple.ogg"
RATE = 22_050


@pytest.fixture(scope="module")
def song() -> Clip:
    return canonical(audio.read(SONG, start_s=40.0, seconds=12.0))


def prompt(text: str | None = None, **asked) -> Prompt:
    return Prompt(id="p", text=text, **asked)


def silence() -> Clip:
    return Clip(samples=np.zeros((2, 6 * RATE), np.float32), sample_rate=RATE)


def test_two_scorers_hear_the_prompt():
    asking = [name for name, scorer in SCORERS.items() if isinstance(scorer(), PromptScorer)]
    assert asking == ["tags", "adherence"]
    assert all(isinstance(SCORERS[name](), Scorer) for name in asking)


@pytest.mark.parametrize("scorer", [Tags(), Adherence()])
def test_a_prompt_that_asks_for_nothing_gets_nothing_and_silence_the_lowest(scorer, song):
    asked = prompt("electronic, ambient")
    values = scorer([song, song, silence()], [asked, prompt("qqqq" if scorer == Tags() else None), asked])[
        :, 0
    ]
    assert values[1] == 0 == scorer([song])[0, 0]
    assert values[0] != 0
    assert values[2] == min(values) == scorer([silence()])[0, 0]
    assert values[0] == scorer([song], [asked])[0, 0]
    assert scorer([]).shape == (0, 1)
    quieter = canonical(Clip(samples=song.samples / 2, sample_rate=song.sample_rate))
    assert scorer([quieter], [asked])[0, 0] == pytest.approx(values[0], abs=1e-3)
    with pytest.raises(ValueError, match="zip"):
        scorer([song], [asked, asked])


def test_the_style_of_a_song_adheres_to_itself_and_its_opposite_is_the_opposite(song):
    """The encoder's own style of the song, as text would give it."""
    part = windows(song)[0]
    adherence = Adherence()
    own = adherence.wish(prompt(style_audio=part))
    assert own.norm() == pytest.approx(1, abs=1e-4)
    values = adherence([part] * 3, [prompt(style_audio=part), prompt(style=3 * own), prompt(style=-own)])[
        :, 0
    ]
    assert values == pytest.approx([1, 1, -1], abs=1e-4)
    strange = torch.linalg.qr(torch.stack([own, torch.randn(512, generator=torch.manual_seed(0))]).T)[0][:, 1]
    assert adherence([part], [prompt(style=strange)])[0, 0] == pytest.approx(0, abs=1e-4)


def test_windows_are_about_ten_seconds_and_lose_nothing(song):
    assert [round(part.seconds) for part in windows(song)] == [12]
    long = Clip(samples=np.tile(song.samples, 3), sample_rate=song.sample_rate)
    parts = windows(long)
    assert [part.seconds for part in parts] == pytest.approx([9, 9, 9, 9], abs=1e-3)
    assert np.array_equal(np.concatenate([part.samples for part in parts], 1), long.samples)


def test_words_name_tags_once_each():
    assert named_tags("Heavy guitar, GUITAR!") == [("guitar",), ("metal", "loud")]
    assert named_tags("bright, minor, wide") == []
    assert {tag for tags in MEANINGS.values() for tag in tags} <= set(TAGS)


def test_tags_are_standard_scores_of_the_logits_over_real_songs(song):
    """Against samples drawn from the Gaussian of real songs, put through the network's last layer."""
    reference, output = musicnn.reference(), musicnn.network().output
    rng = np.random.default_rng(0)
    along = rng.standard_normal((20_000, len(reference.variances)))
    draws = rng.standard_normal((20_000, len(reference.mean))) * reference.rest**0.5
    draws -= draws @ reference.axes.T @ reference.axes
    draws += reference.mean + (along * reference.variances**0.5) @ reference.axes
    logits = output(torch.from_numpy(draws).float()).numpy()
    heard = output(torch.from_numpy(musicnn.embeddings(song)).float()).numpy().mean(0)
    for word in ("electronic", "piano"):
        tag = TAGS.index(word)
        expected = (heard[tag] - logits[:, tag].mean()) / logits[:, tag].std()
        assert Tags()([song], [prompt(word)])[0, 0] == pytest.approx(expected, abs=0.05)
    assert abs(Tags()([song], [prompt("opera")])[0, 0]) <= MOST


def test_the_key_of_a_prompt_is_its_words_and_its_recording(tmp_path, song):
    audio.write(tmp_path / "a.flac", song)
    (tmp_path / "b.flac").write_bytes((tmp_path / "a.flac").read_bytes())
    path = str(tmp_path / "a.flac")
    asked = [
        prompt("slow"),
        prompt("fast"),
        prompt("slow", style_audio=path),
        prompt(style_audio=path),
        prompt(),
    ]
    assert len({prompt_key(one) for one in asked}) == len(asked)
    assert prompt_key(asked[0]) == prompt_key(Prompt(id="other", text="slow", duration_s=99, lyrics="la"))
    assert prompt_key(asked[2]) == prompt_key(prompt("slow", style_audio=str(tmp_path / "b.flac")))
