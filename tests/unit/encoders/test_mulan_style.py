"""Styles from MuQ-MuLan: published names and clip rules, texts without padding, mixtures, and a cache."""

import math

import numpy as np
import pytest
import torch
from support.mulan import HEAD_DIM, HEADS, STYLES, parameters, write_mulan

from diffdpo.encoders import mulan, muq
from diffdpo.encoders import mulan_style as style
from diffdpo.encoders.mulan_style import MuLanStyle, blend
from diffdpo.errors import DataError
from diffdpo.models.diffrhythm.encoders import StyleEncoder
from diffdpo.types import Clip

RATE = 24_000


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_mulan(tmp_path_factory.mktemp("mulan"))


def encoder(folder, **kwargs):
    return MuLanStyle(
        **{"weights": str(folder), "tokenizer": str(folder), "accept_noncommercial": True, **kwargs}
    )


def sound(seconds, seed=0, rate=RATE, channels=1):
    noise = np.random.default_rng(seed).standard_normal((channels, int(seconds * rate)))
    return Clip(samples=noise.astype(np.float32) * 0.1, sample_rate=rate)


def test_it_fits_where_diffrhythm_wants_a_style_encoder(folder):
    made = encoder(folder)
    assert isinstance(made, StyleEncoder)
    assert made.embed("jazz", None).shape == (STYLES,)
    assert (made.embed(None, None) == 0).all()
    assert (made.embed(" ", Clip(samples=np.zeros((1, 300_000), np.float32), sample_rate=RATE)) == 0).all()


def test_a_text_is_one_direction_whatever_else_is_embedded(folder):
    made = encoder(folder)
    jazz = made.embed("jazz", None)
    made.embed("slow piano metal piano jazz", None)
    assert torch.equal(encoder(folder).embed("jazz", None), jazz)
    assert jazz.norm().item() == pytest.approx(1.0, abs=1e-6)
    assert not torch.allclose(made.embed("metal", None), jazz, atol=1e-2)
    assert style.tokens(folder / "tokenizer.json", "jazz piano") == [0, 5, 7, 2]
    long = style.tokens(folder / "tokenizer.json", "jazz " * 600)
    assert (len(long), long[0], long[-1]) == (512, 0, 2)
    assert made.embed("jazz " * 600, None).isfinite().all()


def test_the_text_tower_is_xlm_roberta_and_a_transformer_of_cosines(folder):
    """Written out: softmax of 8 times the scaled cosine, a gated feed-forward layer, the mean, unit length."""
    w = {name.removeprefix("mulan.text."): tensor for name, tensor in parameters().items()}
    ids = torch.tensor([style.tokens(folder / "tokenizer.json", "slow jazz")])
    roberta = mulan.text_tower(
        {name.removeprefix("mulan."): tensor for name, tensor in parameters().items()}, "here"
    ).encoder

    def norm(x, gamma):
        return (
            (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, unbiased=False) + 1e-5).sqrt() * gamma
        )

    with torch.no_grad():
        x = roberta(input_ids=ids).last_hidden_state[0] @ w["proj.weight"].T + w["proj.bias"]
        for name in ("transformer.layers.0", "transformer.layers.1"):
            h = norm(x, w[f"{name}.0.norm.learned_gamma"])
            q, k, v = (
                part.unflatten(-1, (HEADS, HEAD_DIM))
                for part in (
                    h @ w[f"{name}.0.to_q.weight"].T,
                    *(h @ w[f"{name}.0.to_kv.weight"].T).chunk(2, -1),
                )
            )
            q = q / q.norm(dim=-1, keepdim=True) * w[f"{name}.0.q_scale"]
            k = k / k.norm(dim=-1, keepdim=True) * w[f"{name}.0.k_scale"]
            weights = (8 * torch.einsum("ihd,jhd->hij", q, k)).softmax(-1)
            out = torch.einsum("hij,jhd->ihd", weights, v).flatten(1)
            x = x + out @ w[f"{name}.0.to_out.0.weight"].T
            value, gate = (norm(x, w[f"{name}.1.0.learned_gamma"]) @ w[f"{name}.1.1.weight"].T).chunk(2, -1)
            gelu = gate * 0.5 * (1 + torch.erf(gate / math.sqrt(2)))
            x = x + (gelu * value) @ w[f"{name}.1.4.weight"].T
        out = (
            x.mean(0) @ parameters()["mulan.text_to_latents.weight"].T
            + parameters()["mulan.text_to_latents.bias"]
        )
    assert torch.allclose(encoder(folder).embed("slow jazz", None), out / out.norm(), atol=1e-5)


def test_clips_are_ten_seconds_and_the_last_goes_on_with_the_beginning():
    ramp = torch.arange(25 * RATE)
    first, second, third = mulan.clips(ramp.float())
    assert torch.equal(second, ramp[10 * RATE : 20 * RATE].float())
    assert torch.equal(third, torch.cat([ramp[20 * RATE :], ramp[: 5 * RATE]]).float())
    assert len(first) == 10 * RATE
    assert [len(part) for part in mulan.clips(torch.zeros(20 * RATE))] == [10 * RATE] * 2
    assert [len(part) for part in mulan.clips(torch.zeros(4 * RATE))] == [8 * RATE]  # published too


def test_a_long_sound_is_the_mean_of_its_clips_and_not_of_unit_length(folder):
    long = sound(25)
    made = encoder(folder, excerpt="all").embed(None, long)
    x = long.samples[0]
    clips = [x[: 10 * RATE], x[10 * RATE : 20 * RATE], np.concatenate([x[20 * RATE :], x[: 5 * RATE]])]
    each = [encoder(folder).embed(None, Clip(samples=clip[None], sample_rate=RATE)) for clip in clips]
    assert torch.allclose(made, sum(each) / 3, atol=1e-6)
    assert [one.norm().item() for one in each] == pytest.approx([1, 1, 1], abs=1e-6)
    assert made.norm() < 1 - 1e-6


@pytest.mark.parametrize(
    ("which", "seconds", "begin", "end"),
    [
        ("centre", 31.9, 10, 20),
        ("centre", 10, 0, 10),
        ("centre", 9, 0, 9),
        ("first_30_s", 31, 0, 30),
        ("all", 12, 0, 12),
    ],
)
def test_what_is_heard_of_a_sound(which, seconds, begin, end):
    heard = sound(seconds, channels=2)
    expected = heard.samples[:, begin * RATE : end * RATE].mean(0)
    assert np.allclose(style.excerpt(heard, which), expected, atol=1e-7)
    assert len(style.excerpt(sound(seconds, rate=44_100), which)) == (end - begin) * RATE


def test_the_configuration_says_which_hidden_state_goes_on(folder, tmp_path):
    samples = torch.from_numpy(sound(2).samples[0])
    state = {name.removeprefix("mulan."): tensor for name, tensor in parameters().items()}
    tower = mulan.audio_tower(state, "here", layer=1)
    whole = muq.build(
        mulan.subset(state, "audio.model.model."), mulan.subset(state, "audio.model.model.").get, "here"
    )
    with torch.no_grad():
        states = list(whole.states(muq.log_mel(samples)[None]))
        assert torch.allclose(tower.clip(samples), tower.top(states[1])[0], atol=1e-6)
    torch.save(parameters(), tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text('{"audio_model": {"use_layer_idx": 1}}')
    one = sound(10, seed=1)
    first, last = (encoder(where, tokenizer=str(folder)).embed(None, one) for where in (tmp_path, folder))
    assert not torch.allclose(first, last, atol=1e-3)


def test_between_styles_lies_the_direction_of_their_weighted_mean():
    east, north = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 2.0])
    assert blend([east, north], [1, 1]).tolist() == pytest.approx([math.sqrt(0.5)] * 2)
    assert blend([east, north], [3, 4]).tolist() == pytest.approx([0.6, 0.8])
    with pytest.raises(DataError, match="cancel each other"):
        blend([east, -east], [1, 1])
    with pytest.raises(DataError, match="share above 0"):
        blend([east, north], [0, 0])


def test_a_text_may_ask_for_several_things_by_shares(folder):
    made = encoder(folder)
    slow, metal, heard = made.embed("slow jazz", None), made.embed("metal", None), made.embed(None, sound(10))
    assert torch.allclose(made.embed("slow jazz @ 3 || metal @ 1.0", None), blend([slow, metal], [3, 1]))
    assert torch.allclose(made.embed("metal||slow jazz", None), blend([slow, metal], [1, 1]))
    assert torch.equal(made.embed("metal @ 0.2", None), metal)
    assert torch.allclose(made.embed("metal", sound(10)), blend([metal, heard], [1, 1]))


def test_a_stored_embedding_is_a_style(folder, tmp_path):
    stored = np.arange(STYLES, dtype=np.float32)[None]
    np.save(tmp_path / "vocal.npy", stored)
    assert encoder(folder).embed(str(tmp_path / "vocal.npy"), None).tolist() == stored[0].tolist()
    for wrong in (np.zeros((2, 6)), np.array([np.nan]), np.array(3.0)):
        np.save(tmp_path / "wrong.npy", wrong)
        with pytest.raises(DataError, match="one vector of finite numbers"):
            encoder(folder).embed(str(tmp_path / "wrong.npy"), None)
    with pytest.raises(DataError, match="cannot be read as a style"):
        encoder(folder).embed("nowhere.npy", None)


def test_what_is_kept_cannot_be_changed_from_outside(folder):
    made = encoder(folder)
    made.embed("jazz", None).zero_()
    assert made.embed("jazz", None).norm() > 0.9


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (
            lambda w: w.update({"mulan.video.proj.weight": torch.zeros(1)}),
            r"video\.proj\.weight is none of its",
        ),
        (lambda w: w.pop("mulan.audio_to_latents.bias"), r"first latents\.bias: missing"),
        (lambda w: w.pop("mulan.audio.transformer.layers.0.0.q_scale"), "q_scale.* is missing"),
        (lambda w: w.pop("mulan.text.model.embeddings.word_embeddings.weight"), "no XLM-RoBERTa in them"),
        (
            lambda w: w.pop("mulan.text.model.encoder.layer.1.output.dense.bias"),
            r"first encoder\.layer\.1\.output",
        ),
        (lambda w: [w.pop(name) for name in list(w) if ".audio.model." in name], "holds 0 conformer blocks"),
    ],
)
def test_other_weights_are_refused(folder, tmp_path, change, complaint):
    weights = parameters()
    change(weights)
    torch.save(weights, tmp_path / "pytorch_model.bin")
    with pytest.raises(DataError, match=complaint):
        encoder(tmp_path, tokenizer=str(folder)).embed("jazz", sound(10))


def test_another_text_encoder_and_terms_that_were_not_accepted_are_refused(folder, tmp_path):
    torch.save(parameters(), tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text('{"text_model": {"name": "Qwen2"}}')
    with pytest.raises(DataError, match="a MuQ-MuLan on Qwen2"):
        encoder(tmp_path, tokenizer=str(folder)).embed("jazz", None)
    with pytest.raises(DataError, match=r"MuQ-MuLan-large is under CC-BY-NC-4\.0"):
        encoder(folder, accept_noncommercial=False).embed("jazz", None)
