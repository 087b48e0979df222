"""The DiffRhythm network: padding, adapters, checkpointing, files. Its numbers are in tests/golden."""

import pytest
import torch
from peft import LoraConfig

from diffdpo.models.diffrhythm.network import DiffRhythmTransformer

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def small(**config):
    """Widths all different, so that none can stand in for another; no parameter is zero."""
    sizes = {
        "dim": 32,
        "depth": 4,
        "num_attention_heads": 4,
        "ff_mult": 2,
        "latent_channels": 3,
        "text_num_embeds": 11,
        "text_dim": 12,
        "style_dim": 10,
        "cond_dim": 14,
        "conv_layers": 2,
        "time_frequencies": 16,
        "max_frames": 20,
    }
    network = DiffRhythmTransformer(**{**sizes, **config})
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return network


def inputs(network, batch=3, length=40, seed=0, dtype=torch.float32):
    """x, time and conditions for a forward."""
    generator = torch.Generator().manual_seed(seed)
    config = network.config

    def draw(*shape):
        return torch.randn(*shape, generator=generator).to(dtype)

    return {
        "x": draw(batch, length, config.latent_channels),
        "time": torch.rand(batch, generator=generator).to(dtype),
        "text": torch.randint(0, config.text_num_embeds + 1, (batch, length), generator=generator),
        "style": draw(batch, config.style_dim),
        "audio": draw(batch, length, config.latent_channels),
        "start_time": torch.rand(batch, generator=generator).to(dtype),
        "duration": torch.rand(batch, generator=generator).to(dtype) if config.duration_embedding else None,
    }


def alone(given, song, end):
    """One song of a batch, cut at its end."""
    cut = {name: v if v is None else v[song : song + 1] for name, v in given.items()}
    return cut | {name: cut[name][:, :end] for name in ("x", "text", "audio")}


def garbage_behind(given, frames):
    """NaN in the latents and tokens that do not exist, behind the end of each song."""
    behind = torch.arange(given["x"].shape[1]) >= frames[:, None]
    return given | {
        "x": given["x"].masked_fill(behind[..., None], torch.nan),
        "audio": given["audio"].masked_fill(behind[..., None], torch.inf),
        "text": given["text"].masked_fill(behind, -5),
    }


def gradients(network, out):
    network.zero_grad()
    (out**2).sum().backward()
    return {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("duration_embedding", [False, True])
@pytest.mark.parametrize("ends", [(40, 23, 1), (5, 39, 17), (31, 31, 31)])
def test_a_padded_song_equals_the_song_alone(causal, duration_embedding, ends):
    """In float64, where equal means equal: only the order of sums differs."""
    network = small(causal=causal, duration_embedding=duration_embedding).double()
    given = inputs(network, dtype=torch.float64)
    together = network(**given, frames=torch.tensor(ends))
    for song, end in enumerate(ends):
        solo = network(**alone(given, song, end))
        torch.testing.assert_close(together[song : song + 1, :end], solo, rtol=0, atol=1e-12)
        assert not together[song, end:].any()


@pytest.mark.parametrize("causal", [False, True])
def test_in_fp32_padding_costs_rounding_only(causal):
    network = small(causal=causal)
    given = inputs(network)
    together = network(**given, frames=torch.tensor([40, 23, 9]))
    for song, end in enumerate((40, 23, 9)):
        torch.testing.assert_close(
            together[song : song + 1, :end], network(**alone(given, song, end)), rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize("causal", [False, True])
def test_what_stands_behind_the_end_changes_no_bit(causal):
    network, frames = small(causal=causal), torch.tensor([40, 23, 9])
    given = inputs(network)
    clean = network(**given, frames=frames)
    dirty = network(**garbage_behind(given, frames), frames=frames)
    assert torch.equal(clean, dirty)
    there, here = gradients(network, clean), gradients(network, dirty)
    assert all(torch.equal(there[name], here[name]) for name in there)


def test_the_gradient_of_a_padded_batch_is_the_sum_of_its_songs():
    network, ends = small().double(), (40, 23, 9)
    given = inputs(network, dtype=torch.float64)
    frames = torch.tensor(ends)
    together = gradients(network, network(**garbage_behind(given, frames), frames=frames))
    solos = [gradients(network, network(**alone(given, song, end))) for song, end in enumerate(ends)]
    for name, gradient in together.items():
        torch.testing.assert_close(gradient, sum(solo[name] for solo in solos), rtol=1e-9, atol=1e-9)


def test_without_frames_padding_is_visible_as_published():
    network = small()
    given = inputs(network, batch=1)
    assert not torch.allclose(network(**given)[:, :9], network(**alone(given, 0, 9)), atol=1e-3)


@pytest.mark.parametrize("causal", [False, True])
def test_frames_that_fill_the_batch_change_no_bit(causal):
    network = small(causal=causal)
    given = inputs(network)
    assert torch.equal(network(**given, frames=torch.tensor([40, 40, 40])), network(**given))


def test_causal_attention_hides_the_far_future_and_bidirectional_does_not():
    """The convolutions see a few frames ahead, and GRN all of the text: so change x alone, and far away."""
    for causal in (True, False):
        network = small(causal=causal, conv_pos_kernel_size=3)
        given = inputs(network)
        later = given["x"].clone()
        later[:, 30:] += 1
        before, after = network(**given), network(**{**given, "x": later})
        assert torch.allclose(before[:, :28], after[:, :28], atol=1e-6) == causal


@pytest.mark.parametrize("frames", [[40, 0, 3], [41, 40, 40]])
def test_a_length_that_cannot_be_is_refused(frames):
    network = small()
    with pytest.raises(ValueError, match="frames must be between 1 and the length 40"):
        network(**inputs(network), frames=torch.tensor(frames))


def test_one_time_serves_the_whole_batch():
    network = small()
    given = inputs(network)
    given["time"] = torch.tensor(0.25)
    once = network(**given)
    given["time"] = torch.full((3,), 0.25)
    assert torch.equal(once, network(**given))


def test_the_halves_of_a_forward_give_the_whole():
    network, frames = small(), torch.tensor([40, 23, 9])
    given = inputs(network)
    conditions = {name: given[name] for name in ("text", "style", "audio", "start_time")}
    encoded = network.encode(**conditions, frames=frames)
    assert torch.equal(network.denoise(given["x"], given["time"], encoded), network(**given, frames=frames))


def test_every_condition_matters():
    network = small(duration_embedding=True)
    given = inputs(network)
    out = network(**given)
    for name in ("x", "time", "text", "style", "audio", "start_time", "duration"):
        without = network(**{**given, name: torch.zeros_like(given[name])})
        assert not torch.allclose(without, out, atol=1e-3), name


def test_a_duration_is_asked_for_exactly_when_there_is_an_embedding_for_it():
    without, with_it = small(), small(duration_embedding=True)
    with pytest.raises(ValueError, match="no duration can be given"):
        without(**{**inputs(without), "duration": torch.rand(3)})
    with pytest.raises(ValueError, match="a duration is required"):
        with_it(**{**inputs(with_it), "duration": None})


def test_lyrics_enter_a_new_network_only_through_its_input():
    """The published initialisation: the residuals of the lyrics start at zero, GRN starts as the identity."""
    network = DiffRhythmTransformer(dim=32, depth=4, num_attention_heads=4, latent_channels=3, text_dim=16)
    lyrics, residuals = network.encode_text(torch.ones(2, 9, dtype=torch.long))
    assert lyrics.any()
    assert [residual.any().item() for residual in residuals] == [False, False]
    assert not any(p.any() for name, p in network.named_parameters() if ".grn." in name)


@pytest.mark.parametrize("padded", [False, True])
def test_gradient_checkpointing_changes_no_bit_of_any_gradient(padded):
    network = small()
    given = inputs(network) | {"frames": torch.tensor([40, 23, 9]) if padded else None}
    plain = gradients(network, network(**given))
    network.enable_gradient_checkpointing()
    assert network.is_gradient_checkpointing
    saved = gradients(network, network(**given))
    assert plain.keys() == saved.keys()
    assert all(torch.equal(plain[name], saved[name]) for name in plain)


def test_gradient_checkpointing_runs_every_block_again():
    network, runs = small(), []
    network.enable_gradient_checkpointing()
    network.transformer_blocks[0].register_forward_pre_hook(lambda *_: runs.append(1))
    network(**inputs(network)).sum().backward()
    assert len(runs) == 2


@pytest.mark.parametrize("frames", [None, torch.tensor([40, 23, 9])])
def test_every_parameter_gets_a_gradient(frames):
    """DDP waits for ever, or complains, about a parameter that got none."""
    network = small(duration_embedding=True)
    found = gradients(network, network(**inputs(network), frames=frames))
    assert all(found[name].any() for name, _ in network.named_parameters())


def test_adapters_alone_are_trained_and_switched_off_they_leave_the_base_bitwise():
    network = small()
    given = inputs(network)
    base = network(**given)
    network.requires_grad_(False)
    network.add_adapter(LoraConfig(r=2, target_modules=TARGETS))
    assert torch.equal(network(**given), base)
    for name, parameter in network.named_parameters():
        if "lora_B" in name:
            torch.nn.init.constant_(parameter, 0.1)
    assert not torch.allclose(network(**given), base, atol=1e-3)
    network.enable_gradient_checkpointing()
    found = gradients(network, network(**given))
    assert len(found) == 2 * len(TARGETS) * network.config.depth
    assert all("lora_" in name and found[name].any() for name in found)
    network.disable_adapters()
    assert torch.equal(network(**given), base)
    network.enable_adapters()
    assert not torch.allclose(network(**given), base, atol=1e-3)


def test_a_saved_network_comes_back_bitwise(tmp_path):
    network = small(causal=True, duration_embedding=True)
    given = inputs(network)
    network.save_pretrained(tmp_path)
    back = DiffRhythmTransformer.from_pretrained(tmp_path)
    assert back.config.causal
    assert back.config.cond_dim == 14
    assert torch.equal(back(**given), network(**given))


def test_there_are_no_buffers_to_save():
    assert list(small().named_buffers()) == []


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_network_in_half_precision_stays_near_fp32(dtype):
    network = small()
    given = inputs(network)
    exact = network(**given)
    half = {name: v.to(dtype) if name in ("x", "style", "audio") else v for name, v in given.items()}
    out = network.to(dtype)(**half, frames=torch.tensor([40, 40, 40]))
    assert out.dtype == dtype
    assert (out - exact).abs().mean() < 0.05 * exact.abs().mean()


def test_bf16_autocast_trains_fp32_weights():
    network = small()
    given, frames = inputs(network), torch.tensor([40, 23, 9])
    with torch.autocast("cpu", torch.bfloat16):
        out = network(**given, frames=frames)
    exact = network(**given, frames=frames)
    assert (out - exact).abs().mean() < 0.05 * exact.abs().mean()
    found = gradients(network, out.float())
    assert all(gradient.dtype == torch.float32 and gradient.isfinite().all() for gradient in found.values())


def test_the_published_network_runs_on_the_meta_device():
    with torch.device("meta"):
        network = DiffRhythmTransformer()
        given = {name: v if v is None else v.to("meta") for name, v in inputs(network, length=2048).items()}
    assert network(**given).shape == (3, 2048, 64)
    assert network(**given, frames=torch.tensor([2048, 7, 1])).shape == (3, 2048, 64)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"num_attention_heads": 5}, "num_attention_heads=5 must split dim=32"),
        ({"num_attention_heads": 32}, "heads of even size"),
        ({"dim": 40, "num_attention_heads": 4}, "conv_pos_groups=16 must divide dim=40"),
        ({"depth": 0}, "depth must be positive"),
        ({"latent_channels": -1}, "latent_channels must be positive"),
        ({"conv_pos_kernel_size": 30}, "conv_pos_kernel_size must be odd"),
        ({"text_kernel_size": 4}, "text_kernel_size must be odd"),
        ({"text_dim": 13}, "text_dim must be even"),
        ({"time_frequencies": 2}, "time_frequencies must be even and at least 4"),
        ({"rope_theta": 0.0}, "rope_theta must be positive"),
    ],
)
def test_sizes_that_cannot_be_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        small(**wrong)
