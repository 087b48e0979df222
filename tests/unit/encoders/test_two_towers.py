"""Two-tower styles: what must not matter, what must, and that weights survive a folder."""

import numpy as np
import pytest
import torch

from diffdpo.encoders.descriptors import MEASURES
from diffdpo.encoders.style import (
    FEATURES,
    FLOOR,
    MELS,
    RATES_HZ,
    TwoTowerStyle,
    grams_of,
    spectral_profile,
    standard_scores,
    words_of,
)
from diffdpo.types import Clip

THIRDS = {
    "tempo_bpm": [100.0, 130.0],
    "centroid_octaves": [10.0, 11.0],
    "onsets_per_s": [2.0, 4.0],
    "punch": [0.8, 1.2],
    "mode": [-0.05, 0.05],
    "width_db": [-15.0, -8.0],
    "dynamics_db": [4.0, 10.0],
}


@pytest.fixture(scope="module")
def style():
    torch.manual_seed(0)
    return TwoTowerStyle(thirds=THIRDS, dim=32, buckets=256, gram_dim=16, text_dim=32, audio_dim=16).eval()


def sound(seconds=6.0, rate=44100, seed=0):
    """Two plucked notes a second with a little noise, other on the left than on the right."""
    time = np.arange(int(seconds * rate)) / rate
    decay = np.exp(-6 * (time % 0.5))
    left, right = (decay * np.sin(2 * np.pi * hertz * time) for hertz in (440.0, 660.0))
    noise = np.random.default_rng(seed).normal(0, 0.003, (2, len(time)))
    return Clip(samples=(0.3 * np.stack([left, right]) + noise).astype(np.float32), sample_rate=rate)


def test_styles_of_text_sound_and_both_are_unit_vectors(style):
    text, heard = style.embed("slow and dark", None), style.embed(None, sound())
    both = style.embed("slow and dark", sound())
    for vector in (text, heard, both):
        assert vector.shape == (32,)
        assert vector.norm().item() == pytest.approx(1.0, abs=1e-5)
    torch.testing.assert_close(both, (text + heard) / (text + heard).norm())


@pytest.mark.parametrize("text", [None, "", "  ", "?!…"])
def test_a_text_without_a_word_is_no_style(style, text):
    assert torch.equal(style.embed(text, None), torch.zeros(32))
    torch.testing.assert_close(style.embed(text, sound()), style.embed(None, sound()))


def test_case_accents_punctuation_and_spaces_do_not_matter(style):
    plain = style.embed("slow cafe rock, minor", None)
    assert torch.equal(style.embed("  SLOW   Café-rock: minor!", None), plain)
    assert not torch.allclose(style.embed("slow cafe rock, major", None), plain, atol=1e-3)


def test_the_batch_of_a_text_does_not_matter(style):
    texts = ["fast", "a very long and winding description of a song, with many words", "", "slow rock"]
    together = style.embed_texts(texts)
    for text, vector in zip(texts, together, strict=True):
        torch.testing.assert_close(style.embed(text, None), vector, atol=1e-5, rtol=0)


def test_level_does_not_matter(style):
    loud = sound()
    quiet = Clip(samples=loud.samples * 0.01, sample_rate=loud.sample_rate)
    assert (style.embed(None, loud) - style.embed(None, quiet)).abs().max() < 1e-4


def test_the_sample_rate_hardly_matters(style):
    near = torch.dot(style.embed(None, sound(rate=44100)), style.embed(None, sound(rate=22050)))
    far = torch.dot(style.embed(None, sound()), style.embed(None, noise()))
    assert near > 0.98
    assert far < near - 0.02


def noise():
    samples = np.random.default_rng(1).normal(0, 0.1, (2, 6 * 44100)).astype(np.float32)
    return Clip(samples=samples, sample_rate=44100)


@pytest.mark.filterwarnings("ignore:Trying to estimate tuning")
@pytest.mark.parametrize("seconds", [0.01, 3.0])
def test_silence_has_a_style_like_any_sound(style, seconds):
    silent = Clip(samples=np.zeros((1, int(seconds * 44100)), np.float32), sample_rate=44100)
    assert style.embed(None, silent).norm().item() == pytest.approx(1.0, abs=1e-5)


def test_long_sound_is_the_mean_of_its_windows(style):
    first, second = sound(10.0), sound(10.0, seed=5)
    second = Clip(samples=second.samples[::-1] * 0.5, sample_rate=44100)
    whole = Clip(samples=np.concatenate([first.samples, second.samples], 1), sample_rate=44100)
    total = style.embed(None, first) + style.embed(None, second)
    torch.testing.assert_close(style.embed(None, whole), total / total.norm(), atol=1e-5, rtol=0)


def test_centres_are_taken_away(style):
    moved = TwoTowerStyle(**style.config)
    moved.load_state_dict(style.state_dict())
    moved.text_centre.copy_(torch.linspace(-0.2, 0.3, 32))
    expected = style.embed("slow rock", None) - moved.text_centre
    torch.testing.assert_close(moved.embed("slow rock", None), expected / expected.norm())


def test_a_folder_keeps_the_encoder(style, tmp_path):
    style.save_pretrained(tmp_path)
    again = TwoTowerStyle.from_pretrained(tmp_path, torch_dtype=torch.float32).eval()
    assert torch.equal(again.embed("slow rock", sound()), style.embed("slow rock", sound()))
    assert again.thirds == THIRDS


def test_mel_power_of_a_tone_is_in_its_band_of_the_middle_or_the_side(style):
    time = np.arange(22050) / 22050
    tone = np.sin(2 * np.pi * 1000 * time).astype(np.float32)
    power = style.mel_power(Clip(samples=np.stack([tone, tone]), sample_rate=22050))
    # 64 slaney bands to 11025 Hz: linear to 1000 Hz, in steps of (15 + 27 log(11.025) / log(6.4)) / 65 of 200/3 Hz
    step = (15 + 27 * np.log(11.025) / np.log(6.4)) / 65
    assert power.mean(1)[0].argmax() == round(15 / step) - 1
    assert power[1].max() < FLOOR * power[0].max()
    turned = style.mel_power(Clip(samples=np.stack([tone, -tone]), sample_rate=22050))
    torch.testing.assert_close(turned.flip(0), power)


def test_standard_scores_put_terciles_where_a_normal_distribution_has_them():
    low, high = np.array([THIRDS[name] for name in MEASURES]).T
    scores = standard_scores(np.stack([low, (low + high) / 2, high, low - 100 * (high - low)]), THIRDS)
    np.testing.assert_allclose(
        scores, np.array([-0.43, 0.0, 0.43, -3.0])[:, None].repeat(len(low), 1), atol=1e-9
    )


def test_words_and_their_grams():
    assert words_of("Ménage à trois, R&B 2000") == ["menage", "a", "trois", "r", "b", "2000"]
    assert (
        len(grams_of("rock", 10**9)) == 1 + 4 + 3 + 2
    )  # <rock>, <ro roc ock ck>, <roc rock ock>, <rock rock>
    assert grams_of("rock", 10**9)[0] == 802482225  # crc32, the same on every machine
    assert len({*grams_of("rock", 10**9)} & {*grams_of("rocks", 10**9)}) == 3 + 2 + 1


def test_fluctuation_is_found_at_its_rate_and_as_much_as_it_is():
    frames, hertz, depth = 22050 / 512, 2.0, 0.3  # in powers of ten
    time = torch.arange(430) / frames
    power = 10 ** (depth * torch.sin(2 * torch.pi * hertz * time))[None, :, None].expand(2, -1, MELS)
    profile = spectral_profile(power)
    assert profile.shape == (FEATURES,)
    rates = profile[4 * MELS :].view(len(RATES_HZ) - 1, 8)
    assert set(rates.argmax(0).tolist()) == {RATES_HZ.index(1.7)}
    torch.testing.assert_close(
        10 ** rates.max(0).values, torch.full((8,), depth**2 / 2), rtol=0.05, atol=1e-3
    )
    deviations = profile[2 * MELS : 4 * MELS]
    torch.testing.assert_close(deviations, torch.full((2 * MELS,), depth / 2**0.5), rtol=0.02, atol=0)
    torch.testing.assert_close(spectral_profile(power * 1e-6), profile, atol=1e-4, rtol=0)
