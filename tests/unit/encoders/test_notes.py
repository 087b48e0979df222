"""The transcription of basic-pitch: tones whose notes are known, windows, and weights of another network."""

import numpy as np
import pytest
import torch

from diffdpo.encoders.notes import (
    HARMONIC_SHIFTS,
    LOWEST_NOTE,
    NOTES_HOP,
    NOTES_SAMPLE_RATE,
    NOTES_WINDOW,
    OVERLAP_FRAMES,
    PITCH_BINS,
    NoteNetwork,
    build_notes,
    normalise_levels,
    overlapping_windows,
    pretrained_notes,
    stack_harmonics,
)
from diffdpo.errors import CheckpointError

C_MAJOR = (60, 64, 67)


def chord(numbers: tuple[int, ...], seconds: float = 3.0) -> torch.Tensor:
    """Plucked tones with overtones, struck every half second."""
    time = np.arange(round(seconds * NOTES_SAMPLE_RATE)) / NOTES_SAMPLE_RATE
    rng = np.random.default_rng(0)
    wave = 1e-4 * rng.standard_normal(len(time))
    for number in numbers:
        hertz = 440 * 2 ** ((number - 69) / 12)
        for harmonic in range(1, 6):
            wave += 0.1 / harmonic * np.sin(2 * np.pi * harmonic * hertz * time) * np.exp(-4 * (time % 0.5))
    return torch.from_numpy(wave.astype(np.float32))


def test_the_keys_of_a_chord_sound_and_no_others():
    note = pretrained_notes().transcribe(chord(C_MAJOR)).note.mean(0)
    loudest = note.argsort(descending=True)[:3] + LOWEST_NOTE
    assert sorted(loudest.tolist()) == list(C_MAJOR)
    assert note.sort(descending=True).values[2] > 2 * note.sort(descending=True).values[3]


def test_keys_are_struck_where_they_begin():
    onset = pretrained_notes().transcribe(chord(C_MAJOR)).onset
    struck = onset[:, [number - LOWEST_NOTE for number in C_MAJOR]].sum(1)
    frames = torch.arange(len(struck)) / 86 % 0.5
    assert struck[frames < 0.1].mean() > 3 * struck[(frames > 0.2) & (frames < 0.4)].mean()


@pytest.mark.parametrize("seconds", [0.02, 1.0, 1.7, 5.0])
def test_a_recording_has_86_frames_a_second(seconds):
    samples = chord(C_MAJOR, seconds)
    notes = pretrained_notes().transcribe(samples)
    count = len(samples) * 86 // NOTES_SAMPLE_RATE
    assert notes.note.shape == notes.onset.shape == (count, 88)
    assert notes.contour.shape == (count, PITCH_BINS)


def test_windows_overlap_and_hold_every_sample_in_order():
    samples = torch.arange(1.0, 100_001.0)
    windows = overlapping_windows(samples)
    overlap = OVERLAP_FRAMES * NOTES_HOP
    assert windows.shape[1] == NOTES_WINDOW
    assert torch.equal(windows[:-1, -overlap:], windows[1:, :overlap])
    joined = torch.cat([windows[0], *[window[overlap:] for window in windows[1:]]])
    assert torch.equal(joined[overlap // 2 :][: len(samples)], samples)
    assert not joined[: overlap // 2].any()
    assert not joined[overlap // 2 + len(samples) :].any()


def test_levels_span_0_to_1_in_each_window_and_silence_is_0():
    rng = torch.Generator().manual_seed(0)
    magnitudes = torch.rand(3, 7, 5, generator=rng) * torch.tensor([1.0, 100.0, 0.0])[:, None, None]
    levels = normalise_levels(magnitudes)
    assert levels[:2].amin((1, 2)).tolist() == [0, 0]
    assert levels[:2].amax((1, 2)).tolist() == [1, 1]
    assert not levels[2].any()


def test_a_tone_stands_in_the_channel_of_each_harmonic_at_its_fundamental():
    levels = torch.zeros(1, 1, 309)
    levels[0, 0, 150] = 1
    stack = stack_harmonics(levels)
    assert stack.shape == (1, 8, 1, PITCH_BINS)
    for channel, shift in enumerate(HARMONIC_SHIFTS):
        assert stack[0, channel, 0].nonzero().flatten().tolist() == [150 - shift]


def test_weights_of_another_network_are_refused():
    state = NoteNetwork().state_dict()
    state.pop("onset.bias")
    with pytest.raises(CheckpointError, match=r"judge\.safetensors.*onset\.bias"):
        build_notes(state, "judge.safetensors")
