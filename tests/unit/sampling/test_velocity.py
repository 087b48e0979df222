"""The velocity that a solver follows: which branches are computed, what is extrapolated and remembered."""

import pytest
import torch

from diffdpo.sampling.conditions import ConditionBatch
from diffdpo.sampling.guidance import APG, CFG, Guidance
from diffdpo.sampling.velocity import (
    cached_velocity,
    clamped_velocity,
    guided_velocity,
    initial_state,
    plain_branches,
    with_song_estimate,
)

FRAMES, CHANNELS = 3, 4


class Recorder:
    """Velocities 1 + row + t², the same on every frame; records which rows were computed, a list a call."""

    def __init__(self, slopes=None):
        self.calls, self.slopes = [], slopes

    def __call__(self, x, t, rows):
        self.calls.append(rows.tolist())
        value = 1 + rows.to(x) + t.to(x) ** 2
        if self.slopes is not None:
            value = 1 + torch.tensor(self.slopes)[rows].to(x) * t.to(x)
        return value[:, None, None].expand_as(x).clone()


class Follower:
    """Calls a velocity with the state of the call before, as a solver does."""

    def __init__(self, velocity, state):
        self.velocity, self.state = velocity, state

    def __call__(self, *times, x=None):
        x = noise(len(times)) if x is None else x
        v, self.state = self.velocity(x, torch.tensor(times, dtype=torch.float64), self.state)
        return v


def noise(count, seed=0):
    return torch.randn(
        count, FRAMES, CHANNELS, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )


def follower(evaluate, count, threshold=0.0, guider=None, scale=3.0, **settings):
    """Samples 0 … count - 1; the row of sample s is s, that of its unconditional branch count + s."""
    guidance = Guidance(scale, CFG() if guider is None else guider, **settings)
    rows = torch.arange(count)
    conditions = ConditionBatch(
        condition={}, frames=torch.full((2 * count,), FRAMES), cond=rows, uncond=rows + count
    )
    mask = torch.ones(count, FRAMES, dtype=torch.bool)
    branches = plain_branches(evaluate, conditions)
    velocity = cached_velocity(guided_velocity(branches, guidance, mask), threshold, mask)
    return Follower(velocity, initial_state(rows, noise(count), guidance, cached=threshold > 0))


def test_the_unconditional_branch_is_computed_only_inside_the_interval_of_each_song():
    rows = Recorder()
    velocity = follower(rows, 2, low=0.25, high=0.75)
    for t in ((1.0, 0.5), (0.5, 0.25), (0.2, 0.1)):
        velocity(*t)
    assert rows.calls == [[0, 1, 3], [0, 1, 2, 3], [0, 1]]
    assert velocity.state["nfe"].tolist() == [4, 5]
    v = velocity(0.5, 0.9)
    assert v[0, 0, 0] == pytest.approx(3.25 + 3 * (1.25 - 3.25))
    assert v[1, 0, 0] == pytest.approx(2.81)


def test_the_offset_of_guidance_serves_until_it_is_computed_again():
    rows = Recorder()
    velocity = follower(rows, 1, every=3)
    values = [velocity(t)[0, 0, 0].item() for t in (1.0, 0.8, 0.6, 0.4)]
    assert [len(call) for call in rows.calls] == [2, 1, 1, 2]
    offset = 2 * (1 - 2)  # (s - 1)(cond - uncond), the same at every t for these rows
    assert values == pytest.approx([2 + offset, 1.64 + offset, 1.36 + offset, 1.16 + offset])


def test_a_velocity_that_changes_little_is_extrapolated_each_song_by_itself():
    """Song 0 changes slowly with t, song 1 fast; a line is extrapolated as a line."""
    rows = Recorder(slopes=[0.1, 5.0])
    velocity = follower(rows, 2, threshold=0.05, scale=1.0)
    for t in (1.0, 0.9, 0.8, 0.7, 0.3):
        v = velocity(t, t)
        assert v[0].mean().item() == pytest.approx(1 + 0.1 * t)
        assert v[1].mean().item() == pytest.approx(1 + 5 * t)
    assert rows.calls == [[0, 1], [0, 1], [1], [1], [0, 1]]
    assert velocity.state["nfe"].tolist() == [3, 5]


def test_memory_is_there_only_where_it_is_used_and_every_tensor_of_it_has_a_row_for_each_sample():
    """Else rows could not be copied, dropped and reordered by indexing."""
    plain = {"row", "nfe"}
    every = plain | {"guidance.calls", "guidance.ready", "guidance.offset"}
    cases = [
        ({"scale": 1.0, "guider": APG(momentum=0.5), "every": 2}, plain),
        ({}, plain),
        ({"every": 2}, every),
        ({"guider": APG(momentum=0.5)}, plain | {"guidance.memory"}),
        ({"threshold": 0.1}, plain | {"cache.points", "cache.t", "cache.v"}),
    ]
    for settings, names in cases:
        velocity = follower(Recorder(), 3, **settings)
        assert velocity.state.keys() == names
        velocity(0.9, 0.8, 0.7)
        assert velocity.state.keys() == names
        assert all(len(tensor) == 3 for tensor in velocity.state.values())


def test_a_state_is_a_value_that_no_call_changes():
    """A hook may keep a state and go back to it."""
    settings = {"every": 2, "guider": APG(momentum=-0.5, limit=0.5), "threshold": 0.3, "low": 0.5}
    velocity = follower(Recorder(), 2, **settings)
    for t in ((0.9, 0.7), (0.8, 0.6), (0.7, 0.4)):
        before = velocity.state
        copy = {name: tensor.clone() for name, tensor in before.items()}
        velocity(*t)
        assert all(torch.equal(before[name], copy[name]) for name in before)


def test_given_frames_go_straight_to_what_they_are_and_each_row_to_those_of_its_sample():
    latents, keep_mask = noise(2, seed=7), torch.tensor([[True, False, False], [False, False, True]])
    velocity = clamped_velocity(lambda x, t, state: (torch.zeros_like(x), state), latents, keep_mask)
    x, t = noise(3), torch.tensor([0.8, 0.5, 0.25], dtype=torch.float64)
    samples = torch.tensor([1, 0, 1])
    v, _ = velocity(x, t, {"row": samples})
    song = x - t[:, None, None] * v
    for row, sample in enumerate(samples.tolist()):
        keep = keep_mask[sample]
        assert torch.allclose(song[row][keep], latents[sample][keep])
        assert not v[row][~keep].any()
    nothing = torch.zeros(2, FRAMES, dtype=torch.bool)
    assert clamped_velocity(velocity, latents, nothing) is velocity


def test_the_estimate_of_the_song_stands_in_the_state():
    velocity = with_song_estimate(lambda x, t, state: (2 * x, state | {"nfe": state["nfe"] + 1}))
    x, t = noise(2), torch.tensor([0.9, 0.2], dtype=torch.float64)
    v, state = velocity(x, t, {"nfe": torch.zeros(2)})
    assert torch.equal(v, 2 * x)
    assert torch.allclose(state["song"], x - t[:, None, None] * v)
    assert state["nfe"].tolist() == [1, 1]
