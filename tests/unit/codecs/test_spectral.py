"""The codec: local in time, stereo, and honest about its reach."""

import math

import pytest
import torch

from diffdpo.codecs.bands import Bands, shape
from diffdpo.codecs.phase_init import Stft, griffin_lim, initial_phases, peak_frequency
from diffdpo.codecs.spectral import SpectralCodec, standardise

RATE = 44100


def codec(**config):
    torch.manual_seed(0)
    made = SpectralCodec(dim=32, encoder_depth=1, decoder_depth=2, latent_channels=8, **config).eval()
    torch.nn.init.normal_(made.decoder_out.weight, std=0.02)  # zero at first: the decoder would be linear
    torch.nn.init.normal_(made.encoder_out.weight, std=0.02)
    return made


def tones(seconds, *hertz):
    time = torch.arange(int(seconds * RATE)) / RATE
    return sum(0.1 * torch.sin(2 * math.pi * f * time) for f in hertz)


def test_the_stft_inverts_itself():
    stft, audio = Stft(256, 64), torch.randn(2, 64 * 30 + 256, dtype=torch.float64)
    again = stft.inverse(stft.forward(audio))
    assert torch.allclose(again[:, 256:-256], audio[:, 256:-256], atol=1e-12)


@pytest.mark.parametrize("hertz", [220.0, 440.0, 445.0, 1000.0])
def test_the_frequency_of_a_tone_is_found_between_the_bins(hertz):
    stft = Stft()
    magnitude = stft.forward(tones(1.0, hertz)[None]).abs()
    nearest = round(hertz * 4096 / RATE)
    found = peak_frequency(magnitude)[0, 10, nearest - 1 : nearest + 2] * RATE / 4096
    assert torch.allclose(found, torch.full((3,), hertz), atol=0.8)


def test_a_steady_tone_gets_coherent_phases_without_iterating():
    stft, audio = Stft(), tones(2.0, 440 * 4096 / 4096, 660.0)[None]
    spectrum = stft.forward(audio)
    phases = initial_phases(spectrum.abs(), stft, first_frame=0, tonal_bins=256, steady_frames=13)
    rebuilt = stft.forward(griffin_lim(spectrum.abs(), phases, stft, iterations=0)).abs()
    inside = slice(8, -8)
    error = (rebuilt - spectrum.abs())[:, inside].norm() / spectrum.abs()[:, inside].norm()
    random = torch.polar(torch.ones_like(spectrum.abs()), 6.28 * torch.rand(spectrum.shape))
    worse = stft.forward(griffin_lim(spectrum.abs(), random, stft, iterations=0)).abs()
    random_error = (worse - spectrum.abs())[:, inside].norm() / spectrum.abs()[:, inside].norm()
    assert error < 0.25
    assert random_error > 2 * error


def test_bands_keep_the_power_of_white_noise():
    bands = Bands.of(4096, RATE, 256, 128, 20000.0)
    power = torch.rand(3, 2049)
    rms = bands.pool(power)
    for i in (0, 100, 300, 383):
        start, stop = bands.edges[i], bands.edges[i + 1]
        assert torch.allclose(rms[:, i] ** 2, power[:, start:stop].mean(1), rtol=1e-4)
    assert torch.allclose(bands.pool(bands.spread(rms, 2049) ** 2), rms, rtol=1e-4)


def test_the_geometry_is_that_of_diffrhythm():
    made = SpectralCodec()
    assert made.frames_per_second == 44100 / 2048
    with torch.no_grad():
        assert made.encode(torch.zeros(1, 2, 2048 * 5 + 1)).shape == (1, 6, 64)
        assert made.decode(torch.zeros(1, 5, 64)).shape == (1, 2, 2048 * 5)
    assert sum(p.numel() for p in made.parameters()) < 6_000_000


@pytest.mark.parametrize("chunk", [7, 32, 1000])
def test_chunked_decoding_equals_unchunked(chunk):
    made, latents = codec(), torch.randn(1, 90, 8)
    assert torch.allclose(made.decode(latents, chunk=chunk), made.decode(latents, chunk=10_000), atol=1e-5)


@pytest.mark.parametrize("chunk", [5, 16])
def test_chunked_encoding_equals_unchunked(chunk):
    made, audio = codec(), 0.1 * torch.randn(1, 2, 2048 * 40 + 100)
    assert torch.allclose(made.encode(audio, chunk=chunk), made.encode(audio, chunk=999), atol=1e-5)


def test_no_latent_reaches_further_than_the_codec_says():
    made, latents = codec(), torch.randn(1, 80, 8)
    changed = latents.clone()
    changed[:, 40] += 3
    difference = (made.decode(latents, chunk=999) - made.decode(changed, chunk=999)).abs().amax(1)[0]
    touched = difference.view(80, 2048).amax(1) > 1e-6
    frames = torch.nonzero(touched).flatten()
    assert touched[40]
    assert frames.min() >= 40 - made.receptive_frames
    assert frames.max() <= 40 + made.receptive_frames
    assert SpectralCodec().receptive_frames <= 27


def test_shaping_brings_bands_to_given_levels_and_keeps_what_has_them_already():
    stft, bands = Stft(1024, 256), Bands.of(1024, RATE, 8, 24, 20000.0)
    audio = torch.randn(2, 256 * 80, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    audio = torch.fft.irfft(
        torch.fft.rfft(audio)[:, : 18000 * 256 * 80 // RATE], n=256 * 80
    )  # nothing above 18 kHz
    padded = torch.nn.functional.pad(audio, (384, 384))
    levels = bands.pool(stft.forward(padded).abs() ** 2)
    inside = slice(2048, -2048)
    assert torch.allclose(shape(audio, levels, stft, bands)[:, inside], audio[:, inside], atol=1e-3)
    quieter = shape(audio, levels / 2, stft, bands)
    assert torch.allclose(quieter[:, inside], audio[:, inside] / 2, atol=1e-3)
    attack = levels.clone()
    attack[:, :40] *= 0.1
    shaped = shape(audio, attack, stft, bands)
    before, after = shaped[:, 256 * 30 : 256 * 36].std(), shaped[:, 256 * 44 : 256 * 50].std()
    assert 8 < after / before < 12


def test_short_windows_keep_a_click_in_its_place():
    """A click in silence, through windows of 186 ms, is found again within 12 ms."""
    click = torch.zeros(1, 2, 2048 * 40)
    click[..., 2048 * 20 : 2048 * 20 + 64] = torch.randn(64, generator=torch.Generator().manual_seed(0))
    late = torch.arange(2048 * 40) / RATE - 20 * 2048 / RATE
    made = SpectralCodec()
    with torch.no_grad():
        features = made.analyse(click)
        power = made.synthesise(features)[0].square().sum(0)
        features[..., made.tonal_features :] = features[..., made.tonal_features :].mean(1, keepdim=True)
        unshaped = made.synthesise(features)[0].square().sum(0)
    near = late.abs() < 0.012
    assert power[near].sum() > 0.9 * power.sum()
    assert unshaped[near].sum() < 0.7 * unshaped.sum()


def test_analysis_then_synthesis_keeps_tones_and_their_side():
    made = SpectralCodec()
    left = tones(2.0, 440.0, 660.0)[: 2048 * 40]
    audio = torch.stack([left, torch.zeros_like(left)])[None]
    with torch.no_grad():
        rebuilt = made.synthesise(made.analyse(audio))
    spectrum = (
        torch.stft(rebuilt[0], 8192, return_complex=True, window=torch.hann_window(8192)).abs().mean(-1)
    )
    loudest = spectrum[0].topk(6).indices * RATE / 8192
    assert all(min(abs(f - 440), abs(f - 660)) < 12 for f in loudest.tolist())
    assert spectrum[0].square().sum() > 10 * spectrum[1].square().sum()


def test_standardised_latents_sound_as_before():
    made, features = codec(), torch.rand(2, 30, SpectralCodec(dim=32).features)
    with torch.no_grad():
        latents, log_variance = made.encode_features(features)
        decoded = made.decode_features(latents)
        mean, std = latents.flatten(0, 1).mean(0), latents.flatten(0, 1).std(0)
        standardise(made, mean, std)
        after, log_variance_after = made.encode_features(features)
        assert torch.allclose(after, (latents - mean) / std, atol=1e-4)
        assert torch.allclose(log_variance_after, (log_variance - 2 * std.log()).clamp(-12, 4), atol=1e-5)
        assert torch.allclose(made.decode_features(after), decoded, atol=1e-5)


def test_saving_and_loading_changes_nothing(tmp_path):
    made = codec()
    made.save_pretrained(tmp_path)
    again = SpectralCodec.from_pretrained(tmp_path).eval()
    latents = torch.randn(1, 20, 8)
    assert torch.equal(again.decode(latents), made.decode(latents))
