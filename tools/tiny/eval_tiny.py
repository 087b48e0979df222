"""Measures how near samples of the tiny model sound to real songs, beside baselines without training. JSON out.

    python tools/tiny/eval_tiny.py MANIFEST [--table] [out=FOLDER model.args.network=FOLDER sampling.steps=12 …]

All sets consist of excerpts of ten seconds. The measures of a set are the mean of all scorers' axes, and the kernel
distance (KAD) of musicnn embeddings of three-second patches to a reference set of real songs, with 95 % intervals
over songs (over prompts for samples). Differences are paired: each resample draws the same songs of the reference
and the same prompts. Held-out real songs show the floor, and their reconstructions the loss by the codec. `out`
keeps the description of each set, which is not computed again.
"""

import argparse
import hashlib
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import MISSING

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the checkout, whether or not it is installed

from diffdpo import audio
from diffdpo.config import build_config
from diffdpo.data.prompts import read_prompts
from diffdpo.encoders import musicnn
from diffdpo.evaluation.distances import kernel_distances, median_bandwidth
from diffdpo.models.base import SongModel
from diffdpo.models.embeddings import EmbeddingStore
from diffdpo.parts import build_model
from diffdpo.progress import bar
from diffdpo.registry import Choice
from diffdpo.run_dir import open_run
from diffdpo.sampling.config import SamplingConfig
from diffdpo.sampling.request import prompt_request
from diffdpo.sampling.sampler import batch_requests, sample_batch
from diffdpo.scorers import DEFAULT_SCORERS, SCORERS
from diffdpo.scorers.base import PromptScorer
from diffdpo.scorers.canonical import canonical
from diffdpo.statistics import Interval
from diffdpo.types import Clip
from tools.bench.measure import markdown_table, round_values
from tools.tiny.array_cache import Latents, cached_arrays, cached_latents
from tools.tiny.excerpts import LOUDNESS, RATE, SECONDS, excerpts

REFERENCE, FLOOR, CODEC, SAMPLES = "real, other songs (valid)", "real (test)", "codec of real", "samples"
SOUND_SCORERS = [name for name in DEFAULT_SCORERS if not isinstance(SCORERS[name](), PromptScorer)]
"""The default scorers that need no prompt, since most sets have no prompts."""
Clips = list[tuple[str, Clip]]
"""Clips, each with its cluster: the song or the prompt that the clip comes from."""


@dataclass(frozen=True, kw_only=True)
class EvalRun:
    """The settings of an evaluation."""

    manifest: str = MISSING
    out: str = "runs/eval_tiny"
    model: Choice = field(default_factory=lambda: Choice("tiny"))
    prompts: str = "configs/tiny/prompts_mining.jsonl"
    per_prompt: int = 3
    sampling: SamplingConfig = field(default_factory=lambda: SamplingConfig(batch=12))
    seed: int = 1
    resamples: int = 2000
    identity: str = ""
    """A hash of songs, prompts and weights, computed by the tool, so that a folder never mixes two models."""


def samples(model: SongModel, cfg: EvalRun) -> Latents:
    """Latents of `per_prompt` songs for each prompt, each with its prompt's id."""
    embed_prompt, prompt_of = EmbeddingStore(model).embed, {}
    requests = []
    for prompt in read_prompts(cfg.prompts):
        for k in range(cfg.per_prompt):
            frames = model.spec.frames(prompt.duration_s)
            requests.append(prompt_request(prompt, f"{prompt.id}.{k}", frames, embed_prompt))
            prompt_of[requests[-1].sample_id] = prompt.id
    return [
        (prompt_of[request.sample_id], song)
        for batch in batch_requests(requests, cfg.sampling.batch)
        for request, song in zip(batch, sample_batch(model, batch, cfg.sampling, seed=cfg.seed), strict=True)
    ]


def with_fresh_network(model: Any) -> Any:
    """The model with a network of fresh weights."""
    torch.manual_seed(0)
    return replace(model, network=type(model.network).from_config(model.network.config).eval())


def pink_noise(seed: int) -> Clip:
    """A clip of pink noise (power falls with 1/f) in stereo with independent channels."""
    length = round(SECONDS * RATE)
    spectrum = np.fft.rfft(np.random.default_rng(seed).normal(size=(2, length)))
    spectrum /= np.sqrt(np.maximum(1, np.arange(spectrum.shape[1])))
    noise = np.fft.irfft(spectrum, length)
    noise = 0.1 * noise / noise.std()
    return audio.normalise(Clip(samples=noise.astype(np.float32), sample_rate=RATE), LOUDNESS)


def real_latents(model: SongModel, cfg: EvalRun) -> Latents:
    """Latents of the excerpts of the test songs."""

    def make() -> Latents:
        return [(song, model.encode(clip)) for song, clip in excerpts(Path(cfg.manifest), ["test"])]

    return cached_latents(Path(cfg.out) / "latents" / "real.npz", make)


def sample_latents(model: SongModel, cfg: EvalRun) -> Latents:
    """Latents of the samples of all prompts."""
    return cached_latents(Path(cfg.out) / "latents" / "samples.npz", lambda: samples(model, cfg))


def sets(model: SongModel, cfg: EvalRun) -> dict[str, Callable[[], Clips]]:
    """By name, a function that generates the clips of each set."""
    manifest, real = Path(cfg.manifest), cache(partial(real_latents, model, cfg))

    def decode_all(latents: Callable[[], Latents]) -> Callable[[], Clips]:
        return lambda: [(cluster, model.decode(z)) for cluster, z in latents()]

    def pool() -> torch.Tensor:
        return torch.cat([z for _, z in real()])

    def shuffled_latents() -> Latents:
        generator, frames = torch.Generator().manual_seed(0), pool()
        order = [torch.randperm(len(frames), generator=generator)[: len(z)] for _, z in real()]
        return [(f"clip {i}", frames[places]) for i, places in enumerate(order)]

    def noise_latents() -> Latents:
        generator = torch.Generator().manual_seed(0)
        return [(f"clip {i}", torch.randn(z.shape, generator=generator)) for i, (_, z) in enumerate(real())]

    return {
        REFERENCE: lambda: list(excerpts(manifest, ["valid"])),
        FLOOR: lambda: list(excerpts(manifest, ["test"])),
        CODEC: decode_all(real),
        SAMPLES: decode_all(lambda: sample_latents(model, cfg)),
        "untrained network": decode_all(lambda: samples(with_fresh_network(model), cfg)),
        "shuffled latents": decode_all(shuffled_latents),
        "mean latent of each excerpt": decode_all(
            lambda: [(song, z.mean(0).expand_as(z)) for song, z in real()]
        ),
        "mean latent": decode_all(lambda: [("mean", pool().mean(0).expand_as(real()[0][1]))]),
        "noise latents": decode_all(noise_latents),
        "pink noise": lambda: [(f"clip {i}", pink_noise(i)) for i in range(20)],
    }


def describe(clips: Clips, listener: musicnn.Musicnn) -> dict[str, np.ndarray]:
    """The values of all axes of each clip, and the musicnn embeddings of its three-second patches."""
    scorers = [SCORERS[name]() for name in SOUND_SCORERS]
    canonical_clips = [canonical(clip) for _, clip in clips]
    embeddings = [patch_embeddings(clip, listener) for clip in canonical_clips]
    return {
        "clusters": np.array([cluster for cluster, _ in clips]),
        "axes": np.array([axis for scorer in scorers for axis in scorer.axes]),
        "values": np.concatenate(
            [np.concatenate([scorer([clip]) for clip in canonical_clips]) for scorer in scorers], axis=1
        ),
        "patches": np.array([len(rows) for rows in embeddings]),
        "embeddings": np.concatenate(embeddings),
    }


def patch_embeddings(clip: Clip, listener: musicnn.Musicnn) -> np.ndarray:
    """The musicnn embedding of each three-second patch of a clip: [patch, dim]."""
    wave = audio.resample(clip, musicnn.MUSICNN_SAMPLE_RATE).samples.mean(0)
    return listener.embed(torch.from_numpy(wave)).embedding.double().numpy()


def describe_sets(
    model: SongModel, cfg: EvalRun, names: Sequence[str] = ()
) -> dict[str, dict[str, np.ndarray]]:
    """The descriptions of all sets, or of those in `names`; computed only where `out` does not hold them."""
    listener, descriptions = musicnn.load_musicnn(), {}

    def description(make: Callable[[], Clips]) -> Callable[[], dict[str, np.ndarray]]:
        return lambda: describe(make(), listener)

    makers = {name: make for name, make in sets(model, cfg).items() if not names or name in names}
    with bar("describe", len(makers), "set") as progress:
        for name, make in makers.items():
            path = Path(cfg.out) / "sets" / f"{name.replace(',', '').replace(' ', '-')}.npz"
            descriptions[name] = cached_arrays(path, description(make))
            progress.advance()
    return descriptions


def patch_clusters(description: dict[str, np.ndarray]) -> list[str]:
    """The cluster of each patch of a set."""
    return np.repeat(description["clusters"], description["patches"]).tolist()


def set_summary(descriptions: dict[str, dict[str, np.ndarray]], resamples: int) -> dict[str, Any]:
    """By set the means of the axes and the distance to the reference, and the samples' distance less the set's."""
    reference = descriptions[REFERENCE]["embeddings"], patch_clusters(descriptions[REFERENCE])
    bandwidth = median_bandwidth(reference[0])
    draws = {
        name: kernel_distances(
            *reference, description["embeddings"], patch_clusters(description), bandwidth, resamples=resamples
        )
        for name, description in descriptions.items()
        if name != REFERENCE
    }
    table: dict[str, Any] = {}
    for name, description in descriptions.items():
        axes = dict(zip(description["axes"].tolist(), description["values"].mean(0).tolist(), strict=True))
        counts = {
            "clips": len(description["clusters"]),
            "clusters": len(set(description["clusters"].tolist())),
        }
        table[name] = counts | round_values(axes)
        if name in draws:
            table[name]["kernel_distance"] = round_values(asdict(Interval.of(draws[name])))
    differences = {
        name: round_values(asdict(Interval.of(draws[SAMPLES] - d)))
        for name, d in draws.items()
        if name != SAMPLES
    }
    judges = [axis for scorer in SOUND_SCORERS for axis in SCORERS[scorer].axes if SCORERS[scorer].judge_only]
    return {"sets": table, "samples_minus": differences, "judges": judges}


def sets_table(result: dict[str, Any]) -> str:
    """The summary in Markdown, a row a set: axes, distance, and the samples' distance less that of the set."""
    axes = [a for a in result["sets"][SAMPLES] if "." in a]

    def interval(value: dict[str, float] | None, form: str) -> str:
        if value is None:
            return ""
        return f"{value['value']:{form}} ({value['low']:{form}} … {value['high']:{form}})"

    head = [
        "set",
        "clips",
        *(axis.split(".", 1)[1] for axis in axes),
        "kernel distance",
        "samples' less this",
    ]
    rows = []
    for name, row in result["sets"].items():
        distance = interval(row.get("kernel_distance"), ".1f")
        cells = [name, str(row["clips"]), *(f"{row[axis]:.2f}" for axis in axes), distance]
        rows.append([*cells, interval(result["samples_minus"].get(name), "+.1f")])
    return markdown_table(head, rows)


def identity(model: Any, cfg: EvalRun) -> str:
    """A hash of the manifest, the prompts' embeddings and all weights."""
    digest = hashlib.sha256(Path(cfg.manifest).read_bytes())
    states = [model.network.state_dict(), model.codec.state_dict()]
    embeddings = {prompt.id: model.embed(prompt) for prompt in read_prompts(cfg.prompts)}
    states += [{f"{name}.{key}": e[key] for name, e in embeddings.items() for key in e}]
    for state in states:
        for name, tensor in sorted(state.items()):
            digest.update(name.encode() + tensor.detach().double().numpy().tobytes())
    return digest.hexdigest()[:16]


def open_evaluation(manifest: Path, overrides: Sequence[str]) -> tuple[Any, EvalRun]:
    """The model and the settings of an evaluation, whose folder is opened for this model alone."""
    cfg = build_config(EvalRun, None, [f"manifest={manifest}", *overrides])
    model = build_model(cfg.model)
    cfg = replace(cfg, identity=identity(model, cfg))
    with open_run(cfg, free=["resamples"]):
        pass  # a folder of another evaluation is refused
    return model, cfg


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("manifest", type=Path)
    parser.add_argument("settings", nargs="*", help="key=value of EvalRun")
    parser.add_argument("--table", action="store_true", help="Markdown instead of JSON")
    args = parser.parse_intermixed_args()
    model, cfg = open_evaluation(args.manifest, args.settings)
    result = {"settings": asdict(cfg), **set_summary(describe_sets(model, cfg), cfg.resamples)}
    print(sets_table(result) if args.table else json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
