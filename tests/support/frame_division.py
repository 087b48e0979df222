"""Networks on whole songs and on songs divided over processes: their answers and their gradients."""

import json
from multiprocessing import get_context
from pathlib import Path

import torch
from torch import distributed, multiprocessing
from torch.nn import functional as F

from diffdpo.models.diffrhythm.network import DiffRhythmTransformer
from diffdpo.models.frame_shards import (
    FrameShards,
    divided_frames,
    frame_positions,
    join_frames,
    own_frames,
    share_frames,
    share_heads,
    song_norm,
    trim_frames,
    widen_frames,
)

SMALL = {
    "dim": 24, "depth": 2, "num_attention_heads": 3, "ff_mult": 2, "latent_channels": 8, "text_num_embeds": 10,
    "text_dim": 8, "style_dim": 6, "cond_dim": 8, "time_frequencies": 8, "conv_layers": 2, "conv_pos_groups": 4,
    "max_frames": 64,
}  # fmt: skip


Case = tuple[torch.nn.Module, dict[str, torch.Tensor], int]
"""A network, its inputs, and the tokens that its blocks see in one process."""


def diffrhythm(**changes: object) -> Case:
    """A random DiffRhythm in double precision, and inputs: a song of all frames, one of half, one of a few.

    The longest song divides by neither two nor three; the kernel of 31 sees more frames than a third of it has.
    """
    torch.manual_seed(0)
    network = DiffRhythmTransformer(**SMALL | changes).double()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    inputs = {
        "x": torch.randn(3, 37, 8).double(),
        "time": torch.rand(3).double(),
        "text": torch.randint(0, 11, (3, 37)),
        "style": torch.randn(3, 6).double(),
        "audio": torch.randn(3, 37, 8).double(),
        "start_time": torch.rand(3).double(),
        "frames": torch.tensor([37, 20, 5]),
    }
    return network, inputs, 37


def ace_step() -> Case:
    """A random ACE-Step with more queries than keys, blocks with a window, and patches of two frames."""
    from support.ace_step import CHANNELS, network

    torch.manual_seed(1)
    inputs = {
        "x": torch.randn(3, 37, CHANNELS).double(),
        "t": torch.rand(3).double(),
        "encoder": torch.randn(3, 6, 32).double(),
        "tokens": torch.tensor([6, 4, 1]),
        "context": torch.randn(3, 37, 2 * CHANNELS).double(),
        "frames": torch.tensor([37, 20, 5]),
    }
    return network().double().train(), inputs, 19


def stable_audio() -> Case:
    """A random Stable Audio 3, with three memory tokens before the frames and a song with frames that are kept."""
    from diffdpo.models.stable_audio3.network import StableAudio3DiTModel

    torch.manual_seed(0)
    network = StableAudio3DiTModel(
        io_channels=8, embed_dim=32, depth=3, num_heads=4, cond_token_dim=16, global_cond_dim=16,
        local_add_cond_dim=9, timestep_features_dim=16, ff_mult=2.0, num_memory_tokens=3,
    )  # fmt: skip
    for parameter in network.parameters():
        if not parameter.any():  # what is zero in a new network would hide what passes through it
            torch.nn.init.normal_(parameter, std=0.2)
    local = torch.zeros(3, 37, 10).double()
    local[0, :20, 0] = local[0, :, -1] = 1
    local[0, :20, 1:-1] = torch.randn(20, 8).double()
    inputs = {
        "x": torch.randn(3, 37, 8).double(),
        "t": torch.rand(3).double(),
        "text": torch.randn(3, 5, 16).double(),
        "text_mask": torch.arange(5) < torch.tensor([5, 3, 1])[:, None],
        "duration": torch.randn(3, 16).double(),
        "local": local,
        "frames": torch.tensor([37, 20, 5]),
    }
    return network.double(), inputs, 40


CASES = {
    "diffrhythm": diffrhythm,
    "causal": lambda: diffrhythm(causal=True),
    "ace_step": ace_step,
    "stable_audio_3": stable_audio,
}


def answer(case: Case, shards: FrameShards | None, *, checkpointing: bool = False):
    """The velocity and the gradient of its mean square, the mean over the processes that share the songs.

    AssertionError unless the blocks compute a share of the frames.
    """
    network, inputs, tokens = case
    network.zero_grad()
    share, widths = -(-tokens // (shards.size if shards else 1)), set()
    block = next(module for module in network.modules() if type(module).__name__ in network._repeated_blocks)
    hook = block.register_forward_hook(lambda *call: widths.add(call[2].shape[1]))
    if checkpointing:
        network.enable_gradient_checkpointing()
    with divided_frames(shards):
        v = network(**inputs)
        v.square().mean().backward()
    hook.remove()
    assert widths == {share}
    network.disable_gradient_checkpointing()
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in network.parameters()]
    if shards is not None:
        for gradient in gradients:
            distributed.all_reduce(gradient, group=shards.group)
            gradient /= shards.size
    return v.detach(), torch.cat([g.flatten() for g in gradients])


def difference(expected, actual):
    """The largest difference between two tensors, in units of the root mean square of the first."""
    return float((actual - expected).abs().max() / expected.square().mean().sqrt())


def exchanges(shards: FrameShards) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """By function, what it should give for a song of eleven frames in three channels, and what it gives."""
    song = torch.arange(33.0, dtype=torch.float64).view(1, 11, 3)
    song = song * (torch.arange(3) > 0)  # a channel of zeros has a norm as well
    length = -(-11 // shards.size)
    start = shards.rank * length
    padded = F.pad(song, (0, 0, 20, 20 + shards.size * length - 11))
    heads = 100 * torch.arange(5.0)[:, None, None] + torch.arange(11.0)[:, None]  # five heads, one channel
    own_heads = F.pad(heads, (0, 0, 0, shards.size * length - 11, 0, -5 % shards.size)).chunk(shards.size)
    with divided_frames(shards):
        own = own_frames(song)
        own_head_frames = own_frames(heads).unsqueeze(0)
        slopes = own.clone().requires_grad_()
        song_norm(slopes).sum().backward()
        return {
            "own frames": (padded[:, 20 + start : 20 + start + length], own),
            "joined": (song, join_frames(own, 11)),
            "positions": (torch.arange(start, start + length), frame_positions(length, own.device)),
            "neighbours": (
                padded[:, 13 + start : 27 + start + length].transpose(1, 2),
                widen_frames(own.transpose(1, 2), 7, 2),
            ),
            "trimmed": (own, trim_frames(widen_frames(own, 7, 1), 7, 1)),
            "heads": (own_heads[shards.rank].unsqueeze(0), share_heads(own_head_frames)),
            "frames": (own_head_frames, share_frames(share_heads(own_head_frames), 5)),
            "norm": (song.norm(dim=1, keepdim=True), song_norm(own)),
            # The sum of the losses of all processes, each of which is the sum of the norms.
            "slope of the norm": (
                own_frames(shards.size * song / song.norm(dim=1, keepdim=True).clamp(min=1e-9)), slopes.grad,
            ),
        }  # fmt: skip


def compare(rank: int, folder: str, world: int) -> None:
    """One of `world` processes: all cases over two and over all processes; differences into FOLDER/RANK.json."""
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    groups = [distributed.new_group(list(range(size))) for size in range(2, world + 1)]
    differences = {}
    for size, group in enumerate(groups, start=2):
        if rank < size:
            for name, (expected, actual) in exchanges(FrameShards(group, rank, size)).items():
                assert expected.shape == actual.shape, name
                error = float((expected - actual).abs().max())
                differences[f"{name}, {size} processes"] = (error, error)
    for name, build in CASES.items():
        case = build()
        v, gradient = answer(case, None)
        for size, group in enumerate(groups, start=2):
            if rank >= size:
                continue
            for checkpointing in (False, True):
                own_v, own_gradient = answer(
                    case, FrameShards(group, rank, size), checkpointing=checkpointing
                )
                key = f"{name}, {size} processes{', checkpointed' if checkpointing else ''}"
                differences[key] = (difference(v, own_v), difference(gradient, own_gradient))
    Path(folder, f"{rank}.json").write_text(json.dumps(differences))
    distributed.destroy_process_group()


def compare_all(folder: Path, world: int) -> list[dict[str, tuple[float, float]]]:
    """The differences of velocity and gradient by case, as each process sees them."""
    get_context("forkserver").set_forkserver_preload(["support.frame_division"])  # imported once for all
    multiprocessing.start_processes(
        compare, args=(str(folder), world), nprocs=world, start_method="forkserver"
    )
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(world)]
