"""MuQ: what a clip gets does not depend on its neighbours, and costs no more than its length."""

import math

import pytest
import torch
from safetensors.torch import save_file
from torch.utils._python_dispatch import TorchDispatchMode
from torchaudio.transforms import MelSpectrogram

from diffdpo.encoders import muq
from diffdpo.errors import CheckpointError, DataError

TINY = muq.MuQConfig(dim=32, depth=3, heads=4, hidden=48, kernel_size=7, conv_dim=6)


def network(blocks=None, convolutions=torch.float32):
    """Random, with statistics of its normalisations that are not 0 and 1."""
    torch.manual_seed(0)
    made = muq.MuQ(TINY, blocks, convolutions).eval().requires_grad_(False)
    for module in made.modules():
        if isinstance(module, torch.nn.BatchNorm1d | torch.nn.BatchNorm2d):
            module.running_mean.normal_(0.3, 0.2)
            module.running_var.uniform_(0.5, 2)
            module.bias.normal_()
    return made


def noise(samples, seed=0):
    return torch.randn(samples, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def file(tmp_path):
    """A checkpoint with the published prefix and what only training needs."""
    state = {f"model.{name}": tensor for name, tensor in network().state_dict().items()}
    unused = (
        "cls_token",
        "linear.weight",
        "rvq.quantizers.0.codebook.weight",
        "conformer.pos_conv_embed.conv.bias",
    )
    save_file(state | {f"model.{name}": torch.zeros(3) for name in unused}, tmp_path / muq.MUQ_FILE)
    return tmp_path / muq.MUQ_FILE


@pytest.mark.parametrize("lengths", [(24_000, 31_357, 5_041), (9_600, 9_840, 10_080, 10_320)])
def test_a_clip_hears_nothing_of_its_batch(lengths):
    listener, waves = network(), [noise(n, seed) for seed, n in enumerate(lengths)]
    together, valid = listener.embed(waves)
    for i, wave in enumerate(waves):
        alone, all_valid = listener.embed([wave])
        assert all_valid is None
        assert valid[i].sum() == alone.shape[1] == -(-(len(wave) // 240) // 4)
        assert torch.allclose(together[i, : alone.shape[1]], alone[0], atol=1e-5, rtol=0)


def test_clips_of_one_length_need_no_mask():
    both, valid = network().embed([noise(9_600), noise(9_600, 1)])
    assert valid is None
    assert torch.allclose(both[1], network().embed([noise(9_600, 1)])[0][0], atol=1e-5, rtol=0)


def test_whatever_stands_behind_the_end_is_not_heard():
    listener, mel = network(), torch.randn(1, 128, 50)
    frames = torch.tensor([37])
    clean, _ = listener(mel[..., :37])
    mel[..., 37:] = 1e4
    dirty, valid = listener(mel, frames)
    assert valid.sum() == 10
    assert torch.allclose(dirty[:, :10], clean, atol=1e-5, rtol=0)


@pytest.mark.parametrize("chunk", [1, 4, 5])
def test_chunks_are_the_whole(monkeypatch, chunk):
    mel, frames = torch.randn(2, 128, 93), torch.tensor([93, 58])
    whole = network(0)(mel, frames)[0]
    monkeypatch.setattr(muq, "CHUNK", chunk)
    assert torch.allclose(network(0)(mel, frames)[0], whole, atol=1e-6, rtol=1e-6)
    wave = noise(5_000)
    in_chunks = muq.log_mel(wave)
    monkeypatch.undo()
    assert torch.allclose(in_chunks, muq.log_mel(wave), atol=1e-4)


def test_the_margin_is_needed(monkeypatch):
    """Else the test above would prove nothing."""
    mel = torch.randn(1, 128, 93)
    whole = network(0)(mel)[0]
    monkeypatch.setattr(muq, "CHUNK", 4)
    monkeypatch.setattr(muq, "MARGIN", muq.MARGIN - 1)
    assert not torch.allclose(network(0)(mel)[0], whole, atol=1e-4)


def test_the_spectrogram_is_torchaudios_in_decibels():
    wave = noise(12_345)
    mel = MelSpectrogram(24_000, 2048, hop_length=240, n_mels=128, norm=None, mel_scale="htk")(wave)
    assert muq.log_mel(wave).shape == (128, 51)
    assert torch.allclose(muq.log_mel(wave), 10 * mel.log10()[:, :-1], atol=1e-4)


def test_a_sine_has_the_power_of_its_window_in_its_band():
    """Amplitude 1 on bin 128: a Hann window gives it (N/4)^2, a quarter of that to the bins on either side."""
    spacing = 24_000 / 2048
    wave = torch.sin(2 * torch.pi * 128 * spacing * torch.arange(24_000) / 24_000)
    top = 2595 * math.log10(1 + 12_000 / 700)
    edges = [700 * (10 ** (i * top / 129 / 2595) - 1) for i in range(130)]

    def height(hertz, left, peak, right):
        return max(0, min((hertz - left) / (peak - left), (right - hertz) / (right - peak)))

    powers = [
        512**2
        * sum(s * height(b * spacing, *edges[m : m + 3]) for b, s in ((127, 0.25), (128, 1), (129, 0.25)))
        for m in range(128)
    ]
    spectrogram = muq.log_mel(wave)[:, 50]
    for band in sorted(range(128), key=powers.__getitem__)[-2:]:
        assert spectrogram[band].item() == pytest.approx(10 * math.log10(powers[band]), abs=1e-3)
    assert (muq.log_mel(torch.zeros(5_000)) == -100).all()


class Largest(TorchDispatchMode):
    """The number of elements of the largest tensor that was made."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.untyped_storage().nbytes() // 4)
        return out


@pytest.mark.parametrize("masked", [False, True])
def test_no_pair_of_frames_is_ever_stored(masked):
    """A minute has 1500 frames, their pairs 2.25 million elements a head."""
    frames = torch.tensor([6000, 5996]) if masked else None
    mel = torch.randn(2 if masked else 1, 128, 6000)
    with Largest() as largest, torch.no_grad():
        network()(mel, frames)
    assert largest.elements < 1500**2


def test_the_published_network_has_the_published_size():
    with torch.device("meta"):
        full = muq.MuQ(muq.MuQConfig())
    count = {name: sum(p.numel() for p in module.parameters()) for name, module in full.named_modules()}
    assert count["conv"] == 26_233_856
    assert count["conformer.layers.0"] == 24_175_616
    assert count["conformer"] == 298_499_200 - 8_389_760  # less the positional convolution that nothing reads


def test_states_are_counted_from_the_convolutions_and_the_last_is_normalised_once_more(file):
    mel = torch.randn(1, 128, 40)
    with torch.no_grad():
        all_states = list(muq.load_muq(file).states(mel))
        assert len(all_states) == 4
        for blocks in (0, 1, 2):
            assert torch.equal(muq.load_muq(file, blocks)(mel)[0], all_states[blocks])
    last = all_states[3]
    assert torch.allclose(last.mean(-1), torch.zeros(1, 10), atol=1e-5)
    assert len(muq.load_muq(file, 2).conformer.layers) == 2
    assert muq.load_muq(file).config == TINY


def test_convolutions_may_be_rounded_and_nothing_else(file):
    waves = [noise(9_600)]
    rounded, exact = (
        muq.load_muq(file, 1, dtype).embed(waves)[0] for dtype in (torch.bfloat16, torch.float32)
    )
    assert rounded.dtype == torch.float32
    assert 1e-5 < (rounded - exact).abs().max() < 0.2
    assert {p.dtype for p in muq.load_muq(file, 1, torch.bfloat16).parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (
            lambda w: w.update({"model.extra": torch.zeros(1)}),
            r"1 parameters do not fit, first extra.* instead of nothing",
        ),
        (
            lambda w: w.pop("model.conv.conv.1.bn3.weight"),
            r"first conv\.conv\.1\.bn3\.weight: missing instead of \(6,\)",
        ),
        (
            lambda w: w.update({"model.conv.linear.bias": torch.zeros(5)}),
            r"first conv\.linear\.bias: \(5,\) instead",
        ),
        (lambda w: w.pop("model.conformer.embed_positions.inv_freq"), "not the weights of MuQ.*inv_freq"),
        (lambda w: [w.pop(name) for name in list(w) if ".layers." in name], "holds 0 conformer blocks"),
    ],
)
def test_other_weights_are_refused_with_the_first_that_differs(file, change, complaint):
    weights = {f"model.{name}": tensor for name, tensor in network().state_dict().items()}
    change(weights)
    save_file(weights, file)
    with pytest.raises(DataError, match=complaint):
        muq.load_muq(file)


def test_more_blocks_than_there_are_and_damaged_files_are_refused(file):
    with pytest.raises(DataError, match="holds 3 conformer blocks of MuQ, 6 are needed"):
        muq.load_muq(file, 6)
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="cannot be read as safetensors"):
        muq.load_muq(file)


def test_a_clip_with_nothing_to_reflect_is_refused():
    assert muq.log_mel(noise(1025)).shape == (128, 4)
    with pytest.raises(DataError, match="too short for MuQ: at least 1025"):
        muq.log_mel(noise(1024))
