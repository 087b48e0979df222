"""From requests and a seed to latents: conditions, noise, and the path from noise to song.

The noise of a sample is a function of (seed, sample id, slot, step), so a song depends neither on the batch it was
generated in nor on the number of processes; songs of mixed lengths in one batch come out as they would alone.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from diffdpo import flow
from diffdpo.models.base import SongModel
from diffdpo.models.compilation import compile_blocks
from diffdpo.sampling.checkpoints import checkpoint_step
from diffdpo.sampling.conditions import ConditionBatch, check_request, encode_conditions
from diffdpo.sampling.config import SamplingConfig
from diffdpo.sampling.knobs import used_networks
from diffdpo.sampling.noise import start_noise, step_noise
from diffdpo.sampling.request import Request
from diffdpo.sampling.reward_guidance import build_reward, reward_guided_velocity
from diffdpo.sampling.steering import load_directions, steered_branches, steering_state
from diffdpo.sampling.trajectory import (
    Hook,
    Noise,
    ResampledLatents,
    RowTimes,
    State,
    TimeGrid,
    Velocity,
    solve,
)
from diffdpo.sampling.variants import (
    NO_INTERVENTIONS,
    AdaptedNetwork,
    Interventions,
    knob_branches,
    mixed_branches,
)
from diffdpo.sampling.velocity import (
    cached_velocity,
    clamped_velocity,
    guided_velocity,
    initial_state,
    with_song_estimate,
)


@dataclass(frozen=True, eq=False)
class Sample:
    """A generated song."""

    latents: Float[Tensor, "frame channel"]
    """On the CPU in float32."""
    nfe: int
    """Network function evaluations that it took, both branches of guidance counted."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Trajectories:
    """A batch of samples before the first step: all that the loop of solver steps needs."""

    velocity: Velocity
    x: flow.Latents
    times: TimeGrid
    state: State
    noise: Callable[[int], Noise]
    """The noise of a step."""


def sample_batch(
    model: SongModel,
    requests: Sequence[Request],
    cfg: SamplingConfig,
    *,
    seed: int,
    on_step: Callable[[], None] | None = None,
    interventions: Interventions = NO_INTERVENTIONS,
) -> list[Float[Tensor, "_ channel"]]:
    """Latents of a batch of songs, each of its row's length, on the CPU in float32, without gradients."""
    with torch.no_grad():
        samples = generate(model, requests, cfg, seed=seed, on_step=on_step, interventions=interventions)
    return [sample.latents for sample in samples]


def generate(
    model: SongModel,
    requests: Sequence[Request],
    cfg: SamplingConfig,
    *,
    seed: int,
    network: Any = None,
    on_step: Callable[[], None] | None = None,
    hook: Hook | None = None,
    interventions: Interventions = NO_INTERVENTIONS,
) -> list[Sample]:
    """A batch of songs, and how many evaluations each took. Gradients flow unless the caller forbids them.

    `network` is the model's own unless another is given. `hook` may replace x and state after each step, see
    `trajectory.Hook`; the result has one song for each remaining row, in their order. `interventions` are what the
    knobs of `cfg` name, loaded.
    """
    path = start(
        model,
        requests,
        cfg,
        seed=seed,
        network=network,
        estimate=hook is not None,
        interventions=interventions,
    )
    x, state = follow(path, cfg, on_step=on_step, hook=hook)
    songs = []
    for row, nfe, song in zip(state["row"].tolist(), state["nfe"].tolist(), x.float().cpu(), strict=True):
        request = requests[row]
        latents = song[: request.row.frames]
        songs.append(Sample(request.context.paste(latents) if request.context else latents, nfe))
    return songs


def start(
    model: SongModel,
    requests: Sequence[Request],
    cfg: SamplingConfig,
    *,
    seed: int,
    network: Any = None,
    estimate: bool = False,
    interventions: Interventions = NO_INTERVENTIONS,
) -> Trajectories:
    """Trajectories before the first step: conditions encoded, noise drawn, times computed.

    With `estimate` the state holds the estimate of the song, x - t v, after each step.
    """
    for request in requests:
        check_request(model, request)
    device, guidance = next(model.network.parameters()).device, cfg.build_guidance()
    conditions = encode_conditions(model, requests, guidance, device, cfg.axes)
    noise = start_noise(requests, seed, conditions.length, model.spec.channels)
    velocity = conditioned_velocity(model, conditions, cfg, network=network, interventions=interventions)
    velocity = clamped_velocity(velocity, *_clamped_frames(requests, noise))
    x, times = _start_points(requests, noise, _time_grid(model, requests, cfg))
    x = x.to(device)
    return Trajectories(
        velocity=with_song_estimate(velocity) if estimate else velocity,
        x=x,
        times=times,
        state=initial_state(torch.arange(len(requests)), x, guidance, cached=cfg.cache_threshold > 0)
        | steering_state(cfg.active_steering, len(requests)),
        noise=lambda step: step_noise(requests, seed, step, x),
    )


def conditioned_velocity(
    model: SongModel,
    conditions: ConditionBatch,
    cfg: SamplingConfig,
    *,
    network: Any = None,
    interventions: Interventions = NO_INTERVENTIONS,
) -> Velocity:
    """The velocity of a batch of samples under their conditions: prepared, guided, cached and with knobs as `cfg`
    says.

    `network` is the model's own unless another is given.
    """
    if cfg.compile:
        compile_blocks(model.network, "sampling.compile")
    device = next(model.network.parameters()).device
    mask = flow.mask_from_frames(conditions.frames[conditions.cond], conditions.length).to(device)
    base = AdaptedNetwork(model.network if network is None else network, bare_network=model.network)
    knobs = cfg.active_knobs
    branches = knob_branches(model, conditions, knobs, interventions, base, cfg.precision)
    if cfg.active_steering:
        loaded = load_directions(cfg.active_steering, interventions.directions, model.network)
        networks = [model.network, *interventions.other_networks(model.network)]
        length = model.spec.max_frames if model.spec.window == "fixed" else conditions.length
        branches = steered_branches(branches, loaded, networks, conditions, length)
    velocity = guided_velocity(branches, cfg.build_guidance(), mask)
    velocity = cached_velocity(velocity, cfg.cache_threshold, mask, knobs)
    if cfg.reward_guidance is None or not cfg.reward_guidance.weight:
        return velocity
    reward = build_reward(cfg.reward_guidance, model.spec.channels, device)
    return reward_guided_velocity(velocity, reward, cfg.reward_guidance, mask)


def follow(
    path: Trajectories,
    cfg: SamplingConfig,
    *,
    on_step: Callable[[], None] | None = None,
    hook: Hook | None = None,
    checkpointing: bool = False,
) -> tuple[flow.Latents, State]:
    """Run all solver steps from noise to songs; `on_step` is called once a step, also at zero velocity.

    With `checkpointing` the backward pass computes each step again, and has the activations of one in memory.
    """
    solver = cfg.build_solver()
    zero_steps = cfg.zero_init_steps
    for _ in range(zero_steps):  # the velocity is zero: x stays noise
        if on_step is not None:
            on_step()

    def after_step(i: int, x: flow.Latents, t: RowTimes, state: State) -> tuple[ResampledLatents, State]:
        if on_step is not None:
            on_step()
        return (x, state) if hook is None else hook(zero_steps + i, x, t, state)

    with torch.autocast(path.x.device.type, torch.bfloat16, enabled=cfg.precision == "bf16"):
        return solve(
            path.velocity,
            path.x,
            path.times[zero_steps:],
            checkpoint_step(solver) if checkpointing else solver,
            path.state,
            lambda i: path.noise(zero_steps + i),
            after_step,
        )


def planned_nfe(cfg: SamplingConfig) -> int:
    """Network function evaluations a song takes under `cfg`, both branches of guidance and the networks of knobs
    counted, if the velocity cache saves none."""
    guidance, row, knobs = cfg.build_guidance(), torch.zeros(1, dtype=torch.long), cfg.active_knobs
    conditions = ConditionBatch(
        condition={}, frames=row + 1, cond=row, uncond=row, axes=dict.fromkeys(cfg.axes, row)
    )
    x, mask = torch.zeros(1, 1, 1), torch.ones(1, 1, dtype=torch.bool)
    branches = mixed_branches({key: lambda x, t, rows: x for key in used_networks(knobs)}, conditions, knobs)
    path = Trajectories(
        velocity=guided_velocity(branches, guidance, mask),
        x=x,
        times=cfg.times()[:, None],
        state=initial_state(row, x, guidance, cached=False),
        noise=lambda step: lambda purpose, state: x,
    )
    return int(follow(path, cfg)[1]["nfe"])


def _time_grid(model: SongModel, requests: Sequence[Request], cfg: SamplingConfig) -> TimeGrid:
    """The times of each sample, by the length of its whole song."""
    return torch.stack([cfg.times(model.spec, request.row.total_frames) for request in requests], 1)


def _start_points(
    requests: Sequence[Request], noise: flow.Latents, grid: TimeGrid
) -> tuple[flow.Latents, TimeGrid]:
    """Latents at which each sample begins, and its times: a variation takes equally many, shorter steps."""
    inits = [request.init for request in requests]
    strength = torch.tensor([1.0 if init is None else init.strength for init in inits], dtype=torch.float64)
    song = torch.zeros_like(noise)
    for row, init in enumerate(inits):
        if init is not None:
            song[row, : len(init.latents)] = init.latents
    return flow.interpolate(song, noise, strength.float()), grid * strength


def _clamped_frames(
    requests: Sequence[Request], like: flow.Latents
) -> tuple[flow.Latents, Bool[Tensor, "sample frame"]]:
    """The given latents of each sample, and the frames on which its velocity is clamped to them."""
    latents, keep_mask = torch.zeros_like(like), torch.zeros(like.shape[:2], dtype=torch.bool)
    for row, request in enumerate(requests):
        if request.clamp_context and request.context is not None:
            count = len(request.context.keep_mask)
            keep_mask[row, :count] = request.context.keep_mask
            latents[row, :count] = request.context.latents
    return latents, keep_mask


def batch_requests(requests: Sequence[Request], size: int) -> list[list[Request]]:
    """Requests in batches of similar length, so that little is padded; the order of equals stays."""
    sorted_requests = sorted(requests, key=lambda request: request.row.frames)
    return [sorted_requests[first : first + size] for first in range(0, len(sorted_requests), size)]
