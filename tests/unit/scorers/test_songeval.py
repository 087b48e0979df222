"""SongEval: the published judge, whole songs, and its weights' identity and terms."""

import shutil

import librosa
import numpy as np
import pytest
import soundfile
import torch
from contract.scorer_fixtures import random_head, write_songeval
from safetensors.torch import load_file, save_file

from diffdpo.encoders.songeval import Head
from diffdpo.errors import DataError
from diffdpo.scorers.base import fingerprint
from diffdpo.scorers.songeval import HEAD_FILE, SongEval, at_24_khz
from diffdpo.types import Clip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("weights")
    write_songeval(root)
    return root


def scorer(folder, **kwargs):
    return SongEval(**{"muq": str(folder), "head": str(folder), "accept_noncommercial": True, **kwargs})


def noise(samples, seed=0, rate=24_000, channels=1):
    values = np.random.default_rng(seed).standard_normal((channels, samples)) * 0.1
    return Clip(samples=values.astype(np.float32), sample_rate=rate)


def test_the_axes_have_the_published_order_and_the_terms_of_both_weights():
    names = ["coherence", "musicality", "memorability", "clarity", "naturalness"]
    assert SongEval.axes == tuple(f"songeval.{name}" for name in names)
    assert SongEval.licenses == ("CC-BY-NC-4.0", "CC-BY-NC-SA-4.0")


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_a_song_scores_alike_alone_and_in_any_batch(folder, batch):
    clips = [noise(30_011, 1), noise(12_345, 2), noise(44_100, 3, rate=44_100, channels=2), noise(30_011, 4)]
    alone = np.concatenate([scorer(folder)([clip]) for clip in clips])
    together = scorer(folder, batch=batch)(clips)
    assert np.abs(together - alone).max() < 1e-5
    assert np.abs(alone[0] - alone[1:]).max(1).min() > 1e-4  # else the order would not matter
    assert ((together > 1) & (together < 5)).all()


def test_silence_gets_the_lowest_score_and_a_click_a_finite_one(folder):
    click = Clip(samples=np.ones((1, 3), np.float32), sample_rate=24_000)
    silence = Clip(samples=np.zeros((2, 48_000), np.float32), sample_rate=48_000)
    scores = scorer(folder)([silence, click])
    assert (scores[0] == 1).all()
    assert ((scores[1] > 1) & (scores[1] < 5)).all()
    assert scorer(folder)([]).shape == (0, 5)


def test_the_head_is_torchs_multi_head_attention():
    """tanh(fc([mean over attended frames, maximum before attention])) * 2 + 3."""
    torch.manual_seed(1)
    head, x = random_head(), torch.randn(2, 17, 32)
    with torch.no_grad():
        before = after = head.ffd(x)
        for layer in head.attn:
            theirs = torch.nn.MultiheadAttention(32, 8, batch_first=True)
            theirs.load_state_dict(layer.state_dict())
            after, _ = theirs(after, after, after)
        pooled = torch.cat([after.mean(1), before.max(1).values], dim=-1)
        assert torch.allclose(head(x), head.fc(pooled).tanh() * 2 + 3, atol=1e-5)


def test_padding_is_not_judged():
    torch.manual_seed(2)
    head, x = random_head(), torch.randn(2, 17, 32)
    valid = torch.arange(17) < torch.tensor([[17], [9]])
    x[1, 9:] = 100.0
    with torch.no_grad():
        assert torch.allclose(head(x, valid)[0], head(x[:1])[0], atol=1e-5)
        assert torch.allclose(head(x, valid)[1], head(x[1:, :9])[0], atol=1e-5)


def test_the_published_head_has_the_published_size():
    with torch.device("meta"):
        head = Head(1024, 4096, 4, 5)
    assert sum(p.numel() for p in head.parameters()) == 25_197_573
    assert len(head.state_dict()) == 22


def test_sound_is_resampled_as_librosa_loads_it(tmp_path):
    sound = noise(44_100, rate=44_100, channels=2)
    soundfile.write(tmp_path / "x.wav", sound.samples.T, 44_100, subtype="FLOAT")
    theirs, _ = librosa.load(tmp_path / "x.wav", sr=24_000)
    assert np.array_equal(at_24_khz(sound), theirs)


def test_the_cache_key_does_not_depend_on_where_the_weights_are(folder, tmp_path):
    elsewhere = shutil.copytree(folder, tmp_path / "copy")
    key = fingerprint(scorer(folder))
    assert fingerprint(scorer(elsewhere)) == key
    changed = tmp_path / "changed.safetensors"
    save_file({**load_file(folder / HEAD_FILE), "fc.bias": torch.ones(5)}, changed)
    assert fingerprint(scorer(folder, head=str(changed))) != key


def test_rounded_convolutions_move_scores_a_little(folder):
    clips = [noise(24_000, 5)]
    moved = np.abs(scorer(folder, dtype="bfloat16")(clips) - scorer(folder)(clips)).max()
    assert 0 < moved < 0.1


def test_non_commercial_terms_have_to_be_accepted(folder):
    with pytest.raises(
        DataError, match=r"MuQ-large-msd-iter is under CC-BY-NC-4\.0.*accept_noncommercial=true"
    ):
        scorer(folder, accept_noncommercial=False)([noise(24_000)])


def test_a_missing_head_is_told_where_to_get(folder):
    with pytest.raises(
        DataError, match=r"fetch ckpt/model\.safetensors from https://github.com/ASLP-lab/SongEval"
    ):
        scorer(folder, head="")([noise(24_000)])


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (
            lambda w: w.pop("attn.1.out_proj.bias"),
            r"first attn\.1\.out_proj\.bias: missing instead of \(32,\)",
        ),
        (lambda w: w.pop("ffd.0.weight"), r"not the head of SongEval: 'ffd\.0\.weight'"),
        (lambda w: w.update(random_head(16).state_dict()), "a head for 16 features, MuQ has 32"),
    ],
)
def test_another_head_is_refused(folder, tmp_path, change, complaint):
    weights = load_file(folder / HEAD_FILE)
    change(weights)
    save_file(weights, tmp_path / "head.safetensors")
    with pytest.raises(DataError, match=complaint):
        scorer(folder, head=str(tmp_path / "head.safetensors"))([noise(24_000)])


def test_a_batch_of_no_songs_is_refused():
    with pytest.raises(ValueError, match="batch must be at least 1"):
        SongEval(batch=0)
