"""The scorer on tiny random weights: windows, batches, scale, and files that are not what they should be."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from contract.scorer_fixtures import AUDIOBOX as CONFIG
from contract.scorer_fixtures import write_audiobox
from safetensors.torch import load_file, save_file

from diffdpo.config import build_part
from diffdpo.encoders import audiobox
from diffdpo.encoders.audiobox import AUDIOBOX_WINDOW, AXES, AudioboxNetwork, HeadConfig, cut_windows
from diffdpo.encoders.wavlm import Frames, WavLMConfig
from diffdpo.errors import CheckpointError, ConfigError, DataError
from diffdpo.registry import Choice
from diffdpo.scorers import SCORERS
from diffdpo.scorers.audiobox import SILENCE, Audiobox, published_files
from diffdpo.scorers.base import Scorer, fingerprint
from diffdpo.types import Clip

RATE = 16_000


def heads(**changes) -> HeadConfig:
    plain = {"layers": 1, "layer_norm": False, "dropout": False, "normalise": True}
    return HeadConfig(**{**plain, "mean": (0.0,) * 4, "std": (1.0,) * 4, **changes})


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("audiobox")
    write_audiobox(folder)
    return folder


@pytest.fixture
def copy(folder, tmp_path) -> Path:
    return shutil.copytree(folder, tmp_path / "copy")


def noise(seconds: float, seed: int = 0, rate: int = RATE, channels: int = 1) -> Clip:
    samples = 0.1 * np.random.default_rng(seed).standard_normal((channels, round(seconds * rate)))
    return Clip(samples=samples.astype(np.float32), sample_rate=rate)


def score(folder: Path, clip: Clip, **fields) -> np.ndarray:
    return Audiobox(weights=str(folder), **fields)([clip])[0]


def test_it_is_a_scorer_that_takes_its_arguments_from_a_configuration(folder):
    built = build_part(SCORERS, Choice("audiobox", {"weights": str(folder), "batch": 2}))
    assert built == Audiobox(weights=str(folder), batch=2)
    assert isinstance(built, Scorer)
    assert built.axes == ("audiobox.ce", "audiobox.cu", "audiobox.pc", "audiobox.pq")
    assert built.licenses == ("CC-BY-4.0",)
    for bad in ({"batch": 0}, {"min_tail_s": -1.0}, {"windows": 3}):
        with pytest.raises(ConfigError):
            build_part(SCORERS, Choice("audiobox", bad))


# --- windows and their mean


def test_a_song_is_cut_end_to_end_and_its_tail_is_filled_up():
    song = torch.arange(1.0, 2.5 * AUDIOBOX_WINDOW + 1)
    cut = cut_windows(song)
    assert cut.lengths.tolist() == [AUDIOBOX_WINDOW, AUDIOBOX_WINDOW, AUDIOBOX_WINDOW // 2]
    assert cut.weights.tolist() == [1.0, 1.0, 0.5]
    assert torch.equal(cut.samples.flatten()[: len(song)], song)
    assert not cut.samples.flatten()[len(song) :].any()


@pytest.mark.parametrize(
    ("samples", "min_tail", "lengths"),
    [
        (AUDIOBOX_WINDOW + 1, 0, [AUDIOBOX_WINDOW, 1]),  # the published way
        (AUDIOBOX_WINDOW + 15_999, 16_000, [AUDIOBOX_WINDOW]),
        (AUDIOBOX_WINDOW + 16_000, 16_000, [AUDIOBOX_WINDOW, 16_000]),
        (AUDIOBOX_WINDOW, 16_000, [AUDIOBOX_WINDOW]),
        (800, 16_000, [800]),
    ],
)
def test_a_short_tail_is_left_out_unless_it_is_all_there_is(samples, min_tail, lengths):
    cut = cut_windows(torch.ones(samples), min_tail)
    assert cut.lengths.tolist() == lengths
    assert cut.samples.sum() == sum(lengths)


def test_windows_weigh_by_their_length():
    cut = cut_windows(torch.ones(AUDIOBOX_WINDOW + AUDIOBOX_WINDOW // 2))
    scores = torch.tensor([[1.0, 0.0, 3.0, 5.0], [4.0, 3.0, 3.0, 2.0]])
    assert audiobox.song_score(scores, cut).tolist() == pytest.approx([2.0, 1.0, 3.0, 4.0])


def test_a_short_tail_does_not_count_unless_asked_for(folder):
    whole, longer = noise(10.0), noise(10.5)
    assert np.array_equal(score(folder, whole), score(folder, longer))
    published = score(folder, longer, min_tail_s=0.0)
    tail = Clip(samples=longer.samples[:, AUDIOBOX_WINDOW:], sample_rate=RATE)
    expected = (score(folder, whole) + 0.05 * score(folder, tail)) / 1.05
    assert published == pytest.approx(expected, abs=1e-5)
    assert np.abs(published - score(folder, whole)).max() > 1e-4


# --- invariances


def test_a_clip_scores_alike_alone_and_among_others(folder):
    clips = [noise(3.0), noise(12.0, seed=1, channels=2), noise(1.0, seed=2, rate=44_100)]
    together = Audiobox(weights=str(folder))(clips)
    assert together.shape == (3, 4)
    assert len(np.unique(together)) == 12
    for row, clip in zip(together, clips, strict=True):
        assert np.array_equal(row, score(folder, clip))


@pytest.mark.parametrize("batch", [1, 2, 100])
def test_the_number_of_windows_in_a_pass_changes_nothing(folder, batch):
    assert score(folder, noise(34.0), batch=batch) == pytest.approx(score(folder, noise(34.0)), abs=1e-4)


def test_padding_of_other_windows_is_not_heard(folder):
    """A short clip in the same pass as a full window, and padding that is not even silent."""
    network = audiobox.load_audiobox(*published_files(str(folder)))
    cut = cut_windows(torch.from_numpy(noise(13.0).samples[0]))
    dirty = cut.samples.clone()
    dirty[1, cut.lengths[1] :] = 5.0
    alone = audiobox.PaddedWindows(samples=cut.samples[1:], lengths=cut.lengths[1:])
    expected = audiobox.rate_windows(network, cut, batch=2)
    together = audiobox.rate_windows(
        network, audiobox.PaddedWindows(samples=dirty, lengths=cut.lengths), batch=2
    )
    assert torch.equal(together, expected)
    assert torch.allclose(audiobox.rate_windows(network, alone, batch=1)[0], expected[1], atol=1e-4)


def test_silence_is_lowest_and_finite(folder):
    opposite = noise(2.0).samples
    silent = [
        Clip(samples=np.zeros((2, 5 * RATE), np.float32), sample_rate=RATE),
        Clip(samples=np.zeros((1, 0), np.float32), sample_rate=44_100),
        Clip(samples=np.concatenate([opposite, -opposite]), sample_rate=RATE),
    ]
    assert np.array_equal(Audiobox(weights=str(folder))(silent), np.full((3, 4), SILENCE))
    mostly = np.zeros((1, 25 * RATE), np.float32)
    mostly[0, 100] = 1.0
    for rare in (mostly, mostly[:, :101], mostly[:, 100:101]):
        assert np.isfinite(score(folder, Clip(samples=rare, sample_rate=RATE))).all()


def test_windows_in_another_order_score_the_same(folder):
    song = noise(20.0)
    turned = Clip(samples=np.roll(song.samples, AUDIOBOX_WINDOW, axis=1), sample_rate=RATE)
    assert score(folder, turned) == pytest.approx(score(folder, song), abs=1e-4)


# --- heads and scale


def test_a_rating_is_worked_out_by_hand():
    """Layers weigh 1/4 and 3/4, only the first frame counts, the embedding has length 1, the head sums."""
    encoder = WavLMConfig(conv_layers=((2, 10, 5),), layers=1, dim=2, heads=1, position_groups=1)
    network = AudioboxNetwork(encoder, heads(mean=(5.0, 6.0, 7.0, 8.0), std=(1.0, 2.0, 3.0, 4.0)))
    for axis in AXES:
        network.layer_weights[axis].data = torch.tensor([0.0, math.log(3)])
        network.proj_layer[axis][0].weight.data = torch.ones(1, 2)
        network.proj_layer[axis][0].bias.data = torch.tensor([0.1])
    layers = (torch.tensor([[[4.0, 0.0], [9.0, 9.0]]]), torch.tensor([[[0.0, 4.0], [9.0, 9.0]]]))
    predicted = network.predict(Frames(layers=layers, valid=torch.tensor([[True, False]])))
    expected = (1 + 3) / math.sqrt(1 + 9) + 0.1
    assert predicted.tolist()[0] == pytest.approx(4 * [expected])
    scaled = [mean + std * expected for mean, std in ((5, 1), (6, 2), (7, 3), (8, 4))]
    assert network.to_scale(predicted).tolist()[0] == pytest.approx(scaled)


@pytest.mark.parametrize(
    ("changes", "tensors", "parameters"),
    [({}, 260, 94_385_064), ({"layers": 5, "layer_norm": True}, 324, 103_859_112)],
)
def test_the_published_sizes_are_ours_plus_one_vector_of_training(changes, tensors, parameters):
    with torch.device("meta"):
        network = AudioboxNetwork(WavLMConfig(), heads(**changes))
    assert len(network.state_dict()) == tensors - 1
    assert sum(p.numel() for p in network.parameters()) == parameters - 768


def test_dropout_in_training_moves_the_numbers_of_the_layers(folder, copy):
    (copy / "config.json").write_text(json.dumps({**CONFIG, "proj_dropout": 0.1}))
    moved = {"3": "4", "4": "5", "6": "8"}
    state = {}
    for name, tensor in load_file(copy / "model.safetensors").items():
        part = name.split(".")
        if part[0] == "proj_layer":
            part[2] = moved.get(part[2], part[2])
        state[".".join(part)] = tensor
    save_file(state, copy / "model.safetensors")
    assert np.array_equal(score(copy, noise(1.0)), score(folder, noise(1.0)))


# --- files


def test_the_single_file_and_the_weights_beside_their_configuration_are_read_too(folder, tmp_path):
    state = load_file(folder / "model.safetensors")
    content = {
        "state_dict": {f"model.{name}": tensor for name, tensor in state.items()},
        "model_cfg": {k: v for k, v in CONFIG.items() if k != "target_transform"},
        "target_transform": CONFIG["target_transform"],
    }
    torch.save(content, tmp_path / "checkpoint.pt")
    expected = score(folder, noise(1.0))
    # Not bit for bit: where a file puts the tensors in memory may choose the kernel.
    assert score(tmp_path / "checkpoint.pt", noise(1.0)) == pytest.approx(expected, rel=1e-5)
    assert score(folder / "model.safetensors", noise(1.0)) == pytest.approx(expected, rel=1e-5)


def test_what_decides_the_numbers_is_in_the_fingerprint_and_nothing_else(folder, copy):
    first = fingerprint(Audiobox(weights=str(folder)))
    assert fingerprint(Audiobox(weights=str(copy), batch=1)) == first
    assert fingerprint(Audiobox(weights=str(folder), min_tail_s=0.0)) != first
    (copy / "scaled").mkdir()
    shutil.copy(copy / "model.safetensors", copy / "scaled")
    (copy / "scaled/config.json").write_text(json.dumps(CONFIG).replace("5.0", "6.0"))
    assert fingerprint(Audiobox(weights=str(copy / "scaled"))) != first
    gain = score(copy / "scaled", noise(1.0)) - score(folder, noise(1.0))
    assert gain == pytest.approx([1, 0, 0, 0], abs=1e-5)


def refused(where: Path | str, error: type[Exception] = DataError) -> str:
    with pytest.raises(error) as caught:
        Audiobox(weights=str(where))([noise(1.0)])
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_is_neither_a_path_nor_a_hub_id_is_refused():
    assert "not a hub id; expected Audiobox-Aesthetics" in refused("audiobox-aesthetics")
    with pytest.raises(DataError, match="not a hub id"):
        _ = Audiobox(weights="./nowhere").weights_hash


@pytest.mark.parametrize("where", ["", "somebody/else"])
def test_a_hub_that_cannot_be_reached_is_told_after_the_licence(where, monkeypatch, capsys):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    message = refused(where)
    assert f"{where or 'facebook/audiobox-aesthetics'}/model.safetensors could not be fetched" in message
    assert "licence: CC-BY-4.0" in capsys.readouterr().err


def test_a_folder_that_lacks_a_file_is_refused(copy):
    (copy / "config.json").unlink()
    assert "config.json: no such file" in refused(copy)
    assert "config.json: no such file" in refused(copy / "model.safetensors")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"proj_layer.CE.0.weight": None}, "1 tensors differ; proj_layer.CE.0.weight is missing"),
        ({"head.weight": torch.zeros(2)}, r"1 tensors differ; head.weight is (2,), not expected"),
        ({"layer_weights.PQ": torch.zeros(13)}, "layer_weights.PQ is (13,), not (3,)"),
    ],
)
def test_weights_of_another_model_are_refused(copy, change, told):
    state = load_file(copy / "model.safetensors") | change
    save_file({k: v for k, v in state.items() if v is not None}, copy / "model.safetensors")
    assert told in refused(copy, CheckpointError)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"nth_layer": 13}, "nth_layer=13 is not supported, only 3"),
        ({"use_weighted_layer_sum": False}, "use_weighted_layer_sum=False is not supported"),
        ({"output_dim": 2}, "output_dim=2 is not supported"),
        ({"target_transform": {"CE": {"mean": 1, "std": 1}}}, "lacks or garbles 'CU'"),
        ({"target_transform": None}, "lacks or garbles"),
        ({"wavlm_config": {"extractor_mode": "layer_norm"}}, "extractor_mode='layer_norm' is not supported"),
    ],
)
def test_a_configuration_of_another_kind_is_refused(copy, change, told):
    (copy / "config.json").write_text(json.dumps(CONFIG | change))
    assert told in refused(copy)


def test_damaged_files_are_refused(copy):
    (copy / "config.json").write_text("[]")
    assert "expected the configuration of Audiobox" in refused(copy)
    (copy / "model.safetensors").write_bytes(b"\0nothing")
    assert "cannot be read as safetensors" in refused(copy, CheckpointError)
    (copy / "checkpoint.pt").write_bytes(b"\0nothing")
    with pytest.raises(CheckpointError, match="cannot be read as tensors"):
        audiobox.load_audiobox(copy / "checkpoint.pt")
    torch.save({"state_dict": {}}, copy / "other.pt")
    assert "not a checkpoint of Audiobox ('model_cfg')" in refused(copy / "other.pt")
