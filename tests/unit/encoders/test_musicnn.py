"""musicnn against known facts. Parity with the original was checked by hand; no TensorFlow here."""

import struct
from importlib import metadata
from pathlib import Path

import librosa
import numpy as np
import pytest
import torch
from scipy import signal

from diffdpo import audio
from diffdpo.encoders import musicnn
from diffdpo.encoders.tensorflow_bundle import TABLE_MAGIC, read_bundle, read_index
from diffdpo.errors import DataError
from diffdpo.types import Clip

SONG = Path(__file__).parents[2] / "data" / "galactic_temple.ogg"
RATE = musicnn.MUSICNN_SAMPLE_RATE


@pytest.fixture(scope="module")
def network() -> musicnn.Musicnn:
    return musicnn.load_musicnn()


@pytest.fixture(scope="module")
def song() -> torch.Tensor:
    clip = audio.read(SONG, start_s=40.0, seconds=10.0)
    mono = Clip(samples=clip.samples.mean(0, keepdims=True), sample_rate=clip.sample_rate)
    return torch.from_numpy(audio.resample(mono, RATE).samples[0])


def saw(hertz: float, seconds: float) -> np.ndarray:
    return 2 * (hertz * np.arange(int(seconds * RATE)) / RATE % 1) - 1


def bow(hertz: float, seconds: float) -> np.ndarray:
    t = np.arange(int(seconds * RATE)) / RATE
    phase = 2 * np.pi * hertz * t + 0.002 * hertz * np.sin(2 * np.pi * 5.5 * t)
    envelope = np.minimum(1, np.minimum(t, seconds - t) / 0.2)
    return envelope * sum(np.sin(h * phase) / h for h in range(1, 12))


def heard(network: musicnn.Musicnn, samples: np.ndarray) -> dict[str, float]:
    """Mean probability of each tag."""
    wave = torch.from_numpy(0.5 * samples / np.abs(samples).max()).float()
    return dict(zip(musicnn.TAGS, network.describe([wave]).tags[0].tolist(), strict=True))


def test_impressions_are_finite_and_tags_are_probabilities(network, song):
    found = network.embed(song)
    assert found.tags.shape == (3, 50)
    assert found.embedding.shape == (3, 200)
    assert found.embedding.isfinite().all()
    assert ((found.tags >= 0) & (found.tags <= 1)).all()


def test_a_filter_bank_is_the_maximum_over_bands_of_its_normalised_maps():
    """Some weights of the norm are negative: of these filters the smallest map counts."""
    torch.manual_seed(0)
    bank = musicnn.FilterBank(6, 5, 9).eval()
    bank.norm.running_mean.uniform_(-1, 1)
    bank.norm.running_var.uniform_(0.5, 2)
    torch.nn.init.uniform_(bank.norm.weight, -1, 1)
    torch.nn.init.uniform_(bank.norm.bias, -1, 1)
    assert (bank.norm.weight < 0).any()
    x = torch.randn(2, 1, 20, 30)
    with torch.no_grad():
        maps = bank.conv(torch.nn.functional.pad(x, bank.padding)).relu()
        scale = bank.norm.weight / (bank.norm.running_var + bank.norm.eps).sqrt()
        column = (slice(None), None, None)
        maps = (maps - bank.norm.running_mean[column]) * scale[column] + bank.norm.bias[column]
        assert bank(x) == pytest.approx(maps.amax(3), abs=1e-5)


def test_every_patch_has_its_own_embedding(network, song):
    """The original repeats the first."""
    first, second, third = network.embed(song).embedding
    assert not torch.allclose(first, second, atol=0.1)
    assert not torch.allclose(second, third, atol=0.1)


def test_a_patch_is_heard_alike_alone_and_among_others(network, song):
    patches = network.patches(song)
    with torch.no_grad():
        together, alone = network(patches), network(patches[1:2])
    assert torch.allclose(together.embedding[1:2], alone.embedding, atol=1e-4)
    repeated = network.embed(song.repeat(3))  # more than one chunk
    assert torch.allclose(repeated.embedding[:3], together.embedding, atol=1e-4)


def test_a_clip_is_described_by_the_mean_over_its_patches(network, song):
    both = network.describe([song, song[: 4 * RATE]])
    assert both.tags.shape == (2, 50)
    assert torch.allclose(both.embedding[0], network.embed(song).embedding.mean(0))
    assert torch.allclose(both.embedding[1], network.embed(song[: 4 * RATE]).embedding[0])


def test_the_spectrogram_is_librosas(network, song):
    ours = network.spectrogram(song).numpy()
    theirs = librosa.feature.melspectrogram(y=song.numpy(), sr=RATE, n_fft=512, hop_length=256, n_mels=96)
    assert np.allclose(ours, theirs, rtol=1e-3, atol=1e-5 * theirs.max())


def test_a_short_clip_is_repeated_to_fill_a_patch(network, song):
    assert network.patches(song[:4000]).shape == (1, 187, 96)


def test_bowed_chords_are_violins_and_distorted_ones_a_rock_guitar(network):
    """Strings: sawtooths with vibrato and a slow attack. Guitar: power chords through tanh and a cabinet."""
    chords = ((196, 294, 392, 494), (220, 330, 440, 523), (147, 294, 370, 440))
    strings = heard(network, np.concatenate([sum(bow(hertz, 2.0) for hertz in chord) for chord in chords]))
    riff = [saw(f, 0.5) + saw(1.5 * f, 0.5) + saw(2 * f, 0.5) for f in 3 * (82.4, 98.0, 110.0, 73.4)]
    cabinet = signal.butter(4, [80, 5000], "band", fs=RATE, output="sos")
    guitar = heard(network, signal.sosfilt(cabinet, np.tanh(30 * np.concatenate(riff))))
    for tag in ("violin", "strings", "classical"):
        assert strings[tag] > max(0.2, 5 * guitar[tag])
    for tag in ("guitar", "rock", "metal"):
        assert guitar[tag] > 5 * strings[tag]
    assert guitar["rock"] > 0.2


def test_the_electronic_song_is_heard_as_electronic(network, song):
    tags = heard(network, song.numpy())
    assert max(tags, key=tags.__getitem__) == "electronic"
    assert tags["metal"] < 0.05
    assert tags["classical"] < 0.05


def test_missing_weights_come_with_the_command_that_installs_them(monkeypatch):
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(musicnn.metadata, "distribution", missing)
    with pytest.raises(DataError, match=r"pip install --no-deps musicnn==0\.1\.0"):
        musicnn.load_musicnn()


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def table(entries: list[tuple[bytes, bytes]]) -> bytes:
    """A LevelDB table of one data block, without prefix compression."""

    def block(rows: list[tuple[bytes, bytes]]) -> bytes:
        body = b"".join(b"\0" + varint(len(k)) + varint(len(v)) + k + v for k, v in rows)
        return body + struct.pack("<II", 0, 1)

    data = block(entries)
    index = block([(b"z", varint(0) + varint(len(data)))])
    handles = varint(0) + varint(0) + varint(len(data) + 5) + varint(len(index))
    return data + b"\0" * 5 + index + b"\0" * 5 + handles.ljust(40, b"\0") + struct.pack("<Q", TABLE_MAGIC)


def test_a_hand_made_bundle_is_read(tmp_path):
    """Header, then a float tensor of shape [2, 150] at offset 8."""
    shape = b"".join(b"\x12" + varint(len(d)) + d for d in (b"\x08\x02", b"\x08" + varint(150)))
    entry = b"\x08\x01\x12" + varint(len(shape)) + shape + b"\x20\x08\x28" + varint(1200) + b"\x35abcd"
    values = np.arange(300, dtype="<f4").reshape(2, 150)
    (tmp_path / "index").write_bytes(table([(b"", b"\x08\x01\x1a\x02\x08\x01"), (b"w", entry)]))
    (tmp_path / "data").write_bytes(bytes(8) + values.tobytes())
    read = read_bundle(tmp_path / "index", tmp_path / "data")
    assert list(read) == ["w"]
    assert np.array_equal(read["w"], values)
    (tmp_path / "data").write_bytes(bytes(100))
    with pytest.raises(DataError, match="ends before tensor 'w'"):
        read_bundle(tmp_path / "index", tmp_path / "data")


def test_what_is_no_bundle_is_refused(tmp_path):
    (tmp_path / "data").write_bytes(b"")
    for content in (b"", b"not a table" * 10, table([(b"", b"\x08\x02")]), table([(b"w", b"\x08\x07")])):
        (tmp_path / "index").write_bytes(content)
        with pytest.raises(DataError, match="not an index"):
            read_bundle(tmp_path / "index", tmp_path / "data")
    with pytest.raises(DataError, match="cannot read"):
        read_bundle(tmp_path / "nowhere", tmp_path / "data")


def test_the_index_lists_whole_layers():
    index, _ = musicnn.weight_files()
    assert read_index(index.read_bytes())["conv2d/kernel"].shape == (7, 38, 1, 204)


def test_frames_are_those_of_one_long_patch_however_they_are_divided(network, song, monkeypatch):
    samples = song[: 4 * RATE]
    frames = torch.log10(1 + 10_000 * network.spectrogram(samples)).T
    with torch.no_grad():
        expected = network.layers(frames[None])[0].T
    for chunk in (1250, 60):
        monkeypatch.setattr("diffdpo.encoders.musicnn.LAYER_CHUNK", chunk)
        assert torch.allclose(network.describe_frames(samples), expected, atol=1e-5)
