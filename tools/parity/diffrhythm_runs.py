"""Runs the project on the inputs of DiffRhythm's case files: predictions, losses, gradients and songs."""

import itertools
from collections.abc import Callable, Container, Mapping

import torch
from torch import Tensor

from diffdpo import flow
from diffdpo.models.base import LatentSpec
from diffdpo.models.diffrhythm.adapter import DiffRhythm
from diffdpo.models.diffrhythm.layers import angles
from diffdpo.models.diffrhythm.network import DiffRhythmTransformer
from diffdpo.registry import Choice
from diffdpo.sampling.conditions import ConditionBatch
from diffdpo.sampling.config import SamplingConfig
from diffdpo.sampling.request import InpaintContext
from diffdpo.sampling.sampler import Trajectories, conditioned_velocity, follow
from diffdpo.sampling.trajectory import State
from diffdpo.sampling.velocity import initial_state

Tensors = Mapping[str, Tensor]
Load = Callable[[bool], DiffRhythmTransformer]
"""A function from `causal` to the network of a configuration."""


def predict(
    network: DiffRhythmTransformer, golden: Tensors, x: Tensor, audio: Tensor, drop: Container[str] = ()
) -> Tensor:
    """The network's prediction with the inputs of a case; inputs in `drop` are zero, as published."""

    def part(name: str, value: Tensor) -> Tensor:
        return torch.zeros_like(value) if name in drop else value

    return network(
        x,
        golden["in.time"],
        text=part("text", golden["in.text"]),
        style=part("prompt", golden["in.style_prompt"]),
        audio=part("audio", audio),
        start_time=golden["in.start_time"],
        duration=golden["in.duration"] if network.config.duration_embedding else None,
    )


@torch.no_grad()
def run_forward(load: Load, golden: Tensors) -> Tensors:
    """The prediction and the output of every module."""
    network = load(False)
    outputs: dict[str, Tensor] = {}
    for name, module in network.named_modules():
        name = name.replace("transformer_blocks.", "block").replace("text_fusion_linears.", "text_fusion")
        module.register_forward_hook(
            lambda _module, _args, out, name=name: outputs.update({f"act.{name}": out})
        )
    x = golden["in.x"]
    turns = angles(torch.arange(x.shape[1]), network.config.dim // network.config.num_attention_heads)
    outputs["act.rotary_cos"] = turns.cos().repeat(len(x), 1, 2)
    outputs["out.pred"] = predict(network, golden, x, golden["in.cond"])
    return outputs


@torch.no_grad()
def run_causal(load: Load, golden: Tensors) -> Tensors:
    """The prediction of a causal network, as in v1.0 checkpoints."""
    return {"out.pred_causal": predict(load(True), golden, golden["in.x"], golden["in.cond"])}


@torch.no_grad()
def run_drops(load: Load, golden: Tensors) -> Tensors:
    """The prediction for each combination of dropped audio, text and prompt."""
    network, names = load(False), ("audio", "text", "prompt")
    results = {}
    for flags in itertools.product((0, 1), repeat=3):
        drop = {name for name, flag in zip(names, flags, strict=True) if flag}
        key = "_".join(f"drop{name}{flag}" for name, flag in zip(names, flags, strict=True))
        results[f"out.pred_{key}"] = predict(network, golden, golden["in.x"], golden["in.cond"], drop)
    return results


def run_train_loss(load: Load, golden: Tensors) -> Tensors:
    """Losses and gradients of flow matching by `diffdpo.flow`, whose time is 1 minus the original's and whose
    velocity is the negative of the original's."""
    song, noise, lens = golden["in.x1"], golden["in.x0"], golden["in.lens"]
    mask = flow.mask_from_frames(lens, song.shape[1])
    x = flow.interpolate(song, noise, 1 - golden["in.time"])
    audio = song.masked_fill(mask[..., None], 0)
    results: dict[str, Tensor] = {}
    for tag, drop in {"nodrop": (), "droptext": ("text",), "dropall": ("audio", "text", "prompt")}.items():
        network = load(False)
        prediction = predict(network, golden, x, audio, drop)
        errors = flow.masked_error(-prediction, flow.velocity(song, noise), mask)
        loss = (errors * lens).sum() / lens.sum()  # the original's mean: long songs weigh more
        loss.backward()
        gradients = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
        results |= {
            f"out.pred_{tag}": prediction.detach(),
            f"out.per_elem_sqerr_mean_per_song_{tag}": errors.detach(),
            f"out.loss_{tag}": loss.detach().reshape(1),
            f"out.gradnorm_total_{tag}": torch.nn.utils.get_total_norm(list(gradients.values())).reshape(1),
            f"out.grad_proj_out_weight_{tag}": gradients["proj_out.weight"],
        }
    return results


@torch.no_grad()
def run_sample(load: Load, golden: Tensors) -> Tensors:
    """Latents of the project's sampler from given noise and conditions; the original's scale s - 1 is 4."""
    network, noise = load(False), golden["in.y0_noise"]
    count, length, channels = noise.shape
    spec = LatentSpec(channels=channels, frames_per_second=1.0, sample_rate=1, max_frames=length)
    model = DiffRhythm(network=network, spec=spec)
    keep_mask = torch.ones(length, dtype=torch.bool)
    for start, stop in golden["in.latent_pred_segments"].tolist():
        keep_mask[start:stop] = False
    context = InpaintContext(golden["in.cond"][0], keep_mask)
    text = golden["in.text"]
    condition = {
        "lyrics": torch.cat([text, torch.zeros_like(text)]),
        "style": torch.cat([golden["in.style_prompt"], golden["in.negative_style_prompt"]]),
        "audio": torch.zeros(2, length, channels),
        "start_time": golden["in.start_time"].expand(2),
    }
    if network.config.duration_embedding:
        condition["duration"] = golden["in.song_duration"].expand(2)
    latents = torch.stack([context.latents, torch.zeros_like(context.latents)])
    keep_masks = torch.stack([keep_mask, torch.zeros_like(keep_mask)])
    samples = torch.arange(count)
    conditions = ConditionBatch(
        condition=model.with_context(condition, latents, keep_masks),
        frames=torch.full((2,), length),
        cond=torch.zeros_like(samples),
        uncond=torch.ones_like(samples),
    )
    times = 1 - golden["t_grid"].double()
    scale = 1 + golden["in.cfg_strength"].item()
    cfg = SamplingConfig(steps=len(times) - 1, solver=Choice("euler"), guidance_scale=scale)
    path = Trajectories(
        velocity=conditioned_velocity(model, conditions, cfg),
        x=noise,
        times=times[:, None].expand(-1, count),
        state=initial_state(samples, noise, cfg.build_guidance(), cached=False),
        noise=lambda step: lambda purpose, state: torch.zeros_like(noise),  # Euler's steps take none
    )
    trajectory = [noise]

    def record(step: int, x: Tensor, t: Tensor, state: State) -> tuple[Tensor, State]:
        trajectory.append(x)
        return x, state

    songs, _ = follow(path, cfg, hook=record)
    return {
        "out.trajectory": torch.stack(trajectory),
        "out.latents": torch.stack([context.paste(song) for song in songs]),
    }


CASES: dict[str, Callable[[Load, Tensors], Tensors]] = {
    "case1_forward": run_forward,
    "case1b_legacy_causal": run_causal,
    "case2_padded_dropflags": run_drops,
    "case3_scalar_time": run_forward,
    "case4_train_loss": run_train_loss,
}
