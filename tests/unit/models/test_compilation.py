"""Compiled blocks: the gradients of plain ones, and one graph for songs of every length."""

import json
import subprocess
import sys

import pytest
from support.launch import ROOT, environment

pytestmark = pytest.mark.slow

SCRIPT = """
import json
import torch
from torch._dynamo.utils import counters
from diffdpo.models.compilation import compile_blocks
from diffdpo.models.diffrhythm.network import DiffRhythmTransformer

def build():
    torch.manual_seed(0)
    return DiffRhythmTransformer(
        dim=32, depth=2, num_attention_heads=2, max_frames=64, text_dim=16, style_dim=16, cond_dim=16, conv_layers=1
    ).train()

def step(network, frames):
    generator = torch.Generator().manual_seed(frames)
    x, target = torch.randn(2, 1, frames, 64, generator=generator)
    output = network(
        x, torch.tensor([0.4]), text=torch.randint(0, 363, (1, frames), generator=generator),
        style=torch.randn(1, 16, generator=generator), audio=torch.zeros(1, frames, 64), start_time=torch.zeros(1),
    )
    loss = (output - target).square().mean()
    network.zero_grad()
    loss.backward()
    gradient = torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])
    return float(loss), float(gradient.norm()), counters["stats"]["unique_graphs"]

plain, compiled = build(), build()
compile_blocks(compiled, "train.compile")
compiled.enable_gradient_checkpointing()
print(json.dumps([[step(plain, n), step(compiled, n)] for n in (48, 52, 61, 40)]))
"""


@pytest.mark.slow
def test_songs_of_every_length_share_one_graph_and_have_the_plain_gradients():
    """In a process of its own: the checks of shapes that tests put around `forward` are no part of a graph."""
    process = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr[-4000:]
    for plain, compiled in json.loads(process.stdout.splitlines()[-1]):
        assert compiled[:2] == pytest.approx(plain[:2], rel=1e-5)
        assert compiled[2] == 1  # two blocks, forward and computed again, of four lengths
