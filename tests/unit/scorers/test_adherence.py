"""Scorers of adherence: what they make of a song depends on its prompt."""

from pathlib import Path

import numpy as np
import pytest
import torch

from diffdpo import audio
from diffdpo.data.scores import prompt_key
from diffdpo.encoders.musicnn import TAGS, pretrained_musicnn
from diffdpo.encoders.style import windows
from diffdpo.scorers import SCORERS, musicnn
from diffdpo.scorers.adherence import Adherence
from diffdpo.scorers.base import PromptScorer
from diffdpo.scorers.canonical import canonical
from diffdpo.scorers.features import ClipFeatures
from diffdpo.scorers.tags import MAX_LOG_RATIO, SYNONYMS, Tags, named_tags
from diffdpo.types import Clip, Prompt

SONG = Path(__file__).parents[2] / "data" / "galactic_temple.ogg"
RATE = 22_050


@pytest.fixture(scope="module")
def song() -> Clip:
    return canonical(audio.read(SONG, start_s=40.0, seconds=12.0))


def prompt(text: str | None = None, **fields) -> Prompt:
    return Prompt(id="p", text=text, **fields)


def test_four_scorers_compare_with_the_prompt():
    with_prompt = [name for name, scorer in SCORERS.items() if isinstance(scorer(), PromptScorer)]
    assert with_prompt == ["tags", "adherence", "prompt_reward", "tunejury", "prompt_remote"]
    assert Tags()([canonical_noise()], [prompt("qqqq")])[0, 0] == 0  # no word that has a tag


def canonical_noise() -> Clip:
    samples = np.random.default_rng(0).standard_normal((1, 3 * RATE))
    return canonical(Clip(samples=samples.astype(np.float32), sample_rate=RATE))


def test_the_style_of_a_song_adheres_to_itself_and_less_to_noise(song):
    part = windows(song)[0]
    adherence = Adherence()
    own = adherence.embed_prompt(prompt(style_audio=part))
    assert own.norm() == pytest.approx(1, abs=1e-4)
    noise = canonical_noise()
    target = adherence.embed_prompt(prompt(style_audio=noise))
    values = adherence([part, noise, part], [prompt(style_audio=part)] * 2 + [prompt(style_audio=noise)])[
        :, 0
    ]
    assert values == pytest.approx([1, float(own @ target), float(own @ target)], abs=1e-4)
    assert values[1] < 0.9


def test_windows_are_about_ten_seconds_and_lose_nothing(song):
    assert [round(part.seconds) for part in windows(song)] == [12]
    long = Clip(samples=np.tile(song.samples, 3), sample_rate=song.sample_rate)
    parts = windows(long)
    assert [part.seconds for part in parts] == pytest.approx([9, 9, 9, 9], abs=1e-3)
    assert np.array_equal(np.concatenate([part.samples for part in parts], 1), long.samples)


def test_words_name_tags_once_each():
    assert named_tags("Heavy guitar, GUITAR!") == [("guitar",), ("metal", "loud")]
    assert named_tags("bright, minor, wide") == []
    assert {tag for tags in SYNONYMS.values() for tag in tags} <= set(TAGS)


def test_tags_are_standard_scores_of_the_logits_over_real_songs(song):
    """Against samples drawn from the Gaussian of real songs, put through the network's last layer."""
    gaussian, output = musicnn.real_songs(), pretrained_musicnn().output
    rng = np.random.default_rng(0)
    along = rng.standard_normal((20_000, len(gaussian.variances)))
    draws = rng.standard_normal((20_000, len(gaussian.mean))) * gaussian.residual_variance**0.5
    draws -= draws @ gaussian.axes.T @ gaussian.axes
    draws += gaussian.mean + (along * gaussian.variances**0.5) @ gaussian.axes
    logits = output(torch.from_numpy(draws).float()).numpy()
    logit = output(torch.from_numpy(musicnn.embeddings(ClipFeatures(song))).float()).numpy().mean(0)
    for word in ("electronic", "piano"):
        tag = TAGS.index(word)
        expected = (logit[tag] - logits[:, tag].mean()) / logits[:, tag].std()
        assert Tags()([song], [prompt(word)])[0, 0] == pytest.approx(expected, abs=0.05)
    assert abs(Tags()([song], [prompt("opera")])[0, 0]) <= MAX_LOG_RATIO


def test_the_key_of_a_prompt_is_its_words_and_its_recording(tmp_path, song):
    audio.write(tmp_path / "a.flac", song)
    (tmp_path / "b.flac").write_bytes((tmp_path / "a.flac").read_bytes())
    path = str(tmp_path / "a.flac")
    prompts = [
        prompt("slow"),
        prompt("fast"),
        prompt("slow", style_audio=path),
        prompt(style_audio=path),
        prompt(),
    ]
    assert len(set(map(prompt_key, prompts))) == len(prompts)
    assert prompt_key(prompts[0]) == prompt_key(Prompt(id="other", text="slow", duration_s=99, lyrics="la"))
    assert prompt_key(prompts[2]) == prompt_key(prompt("slow", style_audio=str(tmp_path / "b.flac")))
