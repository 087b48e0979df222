"""SAME with attention in chunks: against diffusers' layers under masks, in windows, and how far a frame matters."""

import pytest
import torch
from diffusers import AutoencoderSAME
from support.model_contract import distance, draw
from support.stable_audio3 import CHANNELS, SAME_SIZES, draw_zeros

from diffdpo.codecs.same import build_same, same_receptive_frames
from diffdpo.codecs.same_chunks import ChunkedAttention, chunk_attention

CHUNKED = ChunkedAttention(size=8, decoder_kernel=3)
CONFIG = SAME_SIZES | {"encoder_transformer_depths": [4]}


def module(attention=CHUNKED):
    torch.manual_seed(0)
    whole = AutoencoderSAME(**CONFIG)
    chunk_attention(whole, attention)
    return draw_zeros(whole)


def codec(attention=CHUNKED):
    return build_same(CONFIG, module(attention).state_dict(), "here", attention)


def masked(block, h, chunk, offset):
    """Layers on the whole sequence, each place seeing its chunk only."""
    index = (torch.arange(h.shape[1]) + offset) // chunk
    mask = torch.zeros(h.shape[1], h.shape[1]).masked_fill(index[:, None] != index, -torch.inf)
    for layer in block:
        h = layer(h, attn_mask=mask)
    return h


@torch.no_grad()
def test_layers_attend_to_their_chunk_and_then_to_the_shifted_one():
    """A segment is a latent and four tokens, a chunk two segments. Relative positions only matter, so that masks on
    the whole sequence are the same, but for the half chunks at the ends."""
    block = module().decoder.blocks[0]
    x = draw(1, block.in_channels, 12)
    tokens = block.new_tokens.expand(12, 4, -1)
    h = torch.cat([x.transpose(1, 2).reshape(12, 1, -1), tokens], 1).reshape(1, 60, -1)
    h = masked(block.transformers[2:], masked(block.transformers[:2], h, 10, 0), 10, 5)
    expected = block.mapping(h.reshape(12, 5, -1)[:, 1:].reshape(1, 48, -1).transpose(1, 2))
    inner = slice(4 + 1, -4 - 1)  # without the ends, and the convolution's reach of them
    assert distance(block(x)[..., inner], expected[..., inner]) <= 1e-5


@torch.no_grad()
def test_without_a_shift_chunks_know_nothing_of_each_other():
    whole = module(ChunkedAttention(size=8, midpoint_shift=False, decoder_kernel=1))
    latents = draw(1, CHANNELS, 6)
    parts = [whole.decode(part, return_dict=False)[0] for part in latents.split(2, -1)]
    assert distance(torch.cat(parts, -1), whole.decode(latents, return_dict=False)[0]) <= 1e-5


@pytest.mark.parametrize("frames", [2, 7, 130, 301])
@torch.no_grad()
def test_windows_are_the_whole_song(frames):
    chunked, whole = codec(), module()
    latents = draw(1, frames, CHANNELS)
    sound = chunked.decode(latents)
    padded = torch.nn.functional.pad(latents, (0, 0, 0, frames % 2))
    expected = whole.decode(padded.transpose(1, 2), return_dict=False)[0][..., : frames * 32]
    assert distance(sound, expected) <= 1e-5
    again = chunked.encode(sound)
    assert distance(again, whole.encode(sound, return_dict=False)[0].transpose(1, 2)) <= 1e-5


@torch.no_grad()
def test_a_frame_matters_no_further_than_the_receptive_frames():
    whole, place = module(), 30
    reach = same_receptive_frames(whole.config, CHUNKED)
    latents = draw(1, CHANNELS, 60)
    changed = latents.clone()
    changed[..., place] += 1
    one, two = (whole.decode(x, return_dict=False)[0] for x in (latents, changed))
    moved = (one - two).abs().reshape(2, 60, -1).amax((0, 2)).nonzero().squeeze(1)
    assert place - int(moved.min()) <= reach >= int(moved.max()) - place


def test_chunks_of_no_whole_segments_are_refused():
    with pytest.raises(ValueError, match="even number of segments"):
        chunk_attention(AutoencoderSAME(**CONFIG), ChunkedAttention(size=12))
