"""Judge the tiny model by what it sounds like: against real songs, and against what takes no learning. JSON out.

    python tools/tiny/eval_tiny.py MANIFEST [--table] [out=FOLDER model.args.network=FOLDER sampling.steps=12 …]

All sets are excerpts of ten seconds. Of each: the mean of all scorers' axes, and the kernel distance (KAD) of
musicnn embeddings of three-second patches to real songs that are not used otherwise, with 95 % intervals over songs
(over prompts for samples). Differences are paired: the same songs of the reference, and the same prompts, in each
resample. Held-out real songs show the floor, their reconstructions what the codec costs. What was described already
is kept in `out` and not done again.
"""

import argparse
import hashlib
import io
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import MISSING

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the checkout, whether or not it is installed

from diffdpo import audio
from diffdpo.config import load
from diffdpo.data.prompts import read_prompts
from diffdpo.encoders import musicnn
from diffdpo.evaluation.distances import kernel_distances, median_bandwidth
from diffdpo.models.base import SongModel
from diffdpo.models.embeddings import EmbeddingStore
from diffdpo.parts import build_model
from diffdpo.progress import bar
from diffdpo.registry import Choice
from diffdpo.run_dir import claim
from diffdpo.runs import atomic_write
from diffdpo.sampling.config import SamplingConfig
from diffdpo.sampling.request import prompt_request
from diffdpo.sampling.sampler import batch_requests, sample_batch
from diffdpo.scorers import DEFAULT_SCORERS, SCORERS
from diffdpo.scorers.base import PromptScorer
from diffdpo.scorers.canonical import canonical
from diffdpo.statistics import Interval
from diffdpo.types import Clip
from tools.bench.measure import rounded

SECONDS, LOUDNESS, RATE = 10.0, -16.0, 44100
PLACES = (0.15, 0.3, 0.5, 0.65, 0.8)
REFERENCE, FLOOR, CODEC, SAMPLES = "real, other songs (valid)", "real (test)", "codec of real", "samples"
HEARD = [name for name in DEFAULT_SCORERS if not isinstance(SCORERS[name](), PromptScorer)]
"""Scorers of a sound alone: most of the sets have no prompts."""
Clips = list[tuple[str, Clip]]
"""Each with its cluster: the song or the prompt it comes from."""
Latents = list[tuple[str, torch.Tensor]]


@dataclass(frozen=True, kw_only=True)
class EvalRun:
    """What decides the numbers."""

    manifest: str = MISSING
    out: str = "runs/eval_tiny"
    model: Choice = field(default_factory=lambda: Choice("tiny"))
    prompts: str = "configs/tiny/prompts_mining.jsonl"
    per_prompt: int = 3
    sampling: SamplingConfig = field(default_factory=lambda: SamplingConfig(batch=12))
    seed: int = 1
    resamples: int = 2000
    identity: str = ""
    """Of songs, prompts and weights; filled in, so that a folder never mixes two models."""


def excerpts(manifest: Path, splits: Sequence[str]) -> Iterator[tuple[str, Clip]]:
    """Five places of each song of these splits, with the song's id."""
    for row in map(json.loads, manifest.read_text().splitlines()):
        if row["split"] in splits:
            path = manifest.parent / row["audio"]
            length = audio.seconds_of(path)
            for place in PLACES:
                yield row["id"], excerpt(path, min(place * length, max(0.0, length - SECONDS)))


def excerpt(path: Path, start_s: float) -> Clip:
    clip = audio.read(path, start_s=start_s, seconds=SECONDS)
    return audio.normalise(audio.stereo(audio.resample(clip, RATE)), LOUDNESS)


def samples(model: SongModel, cfg: EvalRun) -> Latents:
    """Latents of a few songs for each prompt."""
    embed, prompt_of = EmbeddingStore(model).embed, {}
    requests = []
    for prompt in read_prompts(cfg.prompts):
        for k in range(cfg.per_prompt):
            frames = model.spec.frames(prompt.duration_s)
            requests.append(prompt_request(prompt, f"{prompt.id}.{k}", frames, embed))
            prompt_of[requests[-1].sample_id] = prompt.id
    return [
        (prompt_of[request.sample_id], song)
        for batch in batch_requests(requests, cfg.sampling.batch)
        for request, song in zip(batch, sample_batch(model, batch, cfg.sampling, seed=cfg.seed), strict=True)
    ]


def untrained(model: Any) -> Any:
    """The model with a network of fresh weights."""
    torch.manual_seed(0)
    return replace(model, network=type(model.network).from_config(model.network.config).eval())


def pink_noise(seed: int) -> Clip:
    """Stereo, the channels independent: power falls with 1/f."""
    length = round(SECONDS * RATE)
    spectrum = np.fft.rfft(np.random.default_rng(seed).normal(size=(2, length)))
    spectrum /= np.sqrt(np.maximum(1, np.arange(spectrum.shape[1])))
    noise = np.fft.irfft(spectrum, length)
    noise = 0.1 * noise / noise.std()
    return audio.normalise(Clip(samples=noise.astype(np.float32), sample_rate=RATE), LOUDNESS)


def keep(path: Path, **arrays: Any) -> None:
    """Arrays in a file, all or nothing."""
    content = io.BytesIO()
    np.savez(content, **arrays)
    atomic_write(path, content.getvalue())


def kept(path: Path, make: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
    """Arrays of a file, made if it is not there."""
    if not path.is_file():
        keep(path, **make())
    with np.load(path) as found:
        return dict(found)


def kept_latents(path: Path, make: Callable[[], Latents]) -> Latents:
    def packed() -> dict[str, np.ndarray]:
        made = make()
        return {
            "clusters": np.array([cluster for cluster, _ in made]),
            "lengths": np.array([len(z) for _, z in made]),
            "latents": torch.cat([z for _, z in made]).numpy(),
        }

    found = kept(path, packed)
    parts = torch.from_numpy(found["latents"]).split(found["lengths"].tolist())
    return list(zip(found["clusters"].tolist(), parts, strict=True))


def real_latents(model: SongModel, cfg: EvalRun) -> Latents:
    """Of the test songs' excerpts."""

    def make() -> Latents:
        return [(song, model.encode(clip)) for song, clip in excerpts(Path(cfg.manifest), ["test"])]

    return kept_latents(Path(cfg.out) / "latents" / "real.npz", make)


def sample_latents(model: SongModel, cfg: EvalRun) -> Latents:
    return kept_latents(Path(cfg.out) / "latents" / "samples.npz", lambda: samples(model, cfg))


def sets(model: SongModel, cfg: EvalRun) -> dict[str, Callable[[], Clips]]:
    """Everything that is compared, to be made when it is needed."""
    manifest, real = Path(cfg.manifest), cache(partial(real_latents, model, cfg))

    def decoded(latents: Callable[[], Latents]) -> Callable[[], Clips]:
        return lambda: [(cluster, model.decode(z)) for cluster, z in latents()]

    def pool() -> torch.Tensor:
        return torch.cat([z for _, z in real()])

    def shuffled() -> Latents:
        generator, frames = torch.Generator().manual_seed(0), pool()
        order = [torch.randperm(len(frames), generator=generator)[: len(z)] for _, z in real()]
        return [(f"clip {i}", frames[places]) for i, places in enumerate(order)]

    def noise() -> Latents:
        generator = torch.Generator().manual_seed(0)
        return [(f"clip {i}", torch.randn(z.shape, generator=generator)) for i, (_, z) in enumerate(real())]

    return {
        REFERENCE: lambda: list(excerpts(manifest, ["valid"])),
        FLOOR: lambda: list(excerpts(manifest, ["test"])),
        CODEC: decoded(real),
        SAMPLES: decoded(lambda: sample_latents(model, cfg)),
        "untrained network": decoded(lambda: samples(untrained(model), cfg)),
        "shuffled latents": decoded(shuffled),
        "mean latent of each excerpt": decoded(
            lambda: [(song, z.mean(0).expand_as(z)) for song, z in real()]
        ),
        "mean latent": decoded(lambda: [("mean", pool().mean(0).expand_as(real()[0][1]))]),
        "noise latents": decoded(noise),
        "pink noise": lambda: [(f"clip {i}", pink_noise(i)) for i in range(20)],
    }


def describe(clips: Clips, listener: musicnn.Musicnn) -> dict[str, np.ndarray]:
    """All axes of each clip, and the musicnn embedding of each of its three-second patches."""
    scorers = [SCORERS[name]() for name in HEARD]
    heard = [canonical(clip) for _, clip in clips]
    embeddings = [embed(clip, listener) for clip in heard]
    return {
        "clusters": np.array([cluster for cluster, _ in clips]),
        "axes": np.array([axis for scorer in scorers for axis in scorer.axes]),
        "values": np.concatenate(
            [np.concatenate([scorer([clip]) for clip in heard]) for scorer in scorers], axis=1
        ),
        "patches": np.array([len(rows) for rows in embeddings]),
        "embeddings": np.concatenate(embeddings),
    }


def embed(clip: Clip, listener: musicnn.Musicnn) -> np.ndarray:
    wave = audio.resample(clip, musicnn.SAMPLE_RATE).samples.mean(0)
    return listener.listen(torch.from_numpy(wave)).embedding.double().numpy()


def described(model: SongModel, cfg: EvalRun, only: Sequence[str] = ()) -> dict[str, dict[str, np.ndarray]]:
    """Every set, or only some, from `out` where it is there."""
    listener, found = musicnn.load(), {}

    def description(make: Callable[[], Clips]) -> Callable[[], dict[str, np.ndarray]]:
        return lambda: describe(make(), listener)

    wanted = {name: make for name, make in sets(model, cfg).items() if not only or name in only}
    with bar("describe", len(wanted), "set") as progress:
        for name, make in wanted.items():
            path = Path(cfg.out) / "sets" / f"{name.replace(',', '').replace(' ', '-')}.npz"
            found[name] = kept(path, description(make))
            progress.advance()
    return found


def patch_clusters(described: dict[str, np.ndarray]) -> list[str]:
    return np.repeat(described["clusters"], described["patches"]).tolist()


def summary(found: dict[str, dict[str, np.ndarray]], resamples: int) -> dict[str, Any]:
    """Means of the axes, distances to the reference with intervals, and by how much the samples' is smaller."""
    reference = found[REFERENCE]["embeddings"], patch_clusters(found[REFERENCE])
    bandwidth = median_bandwidth(reference[0])
    draws = {
        name: kernel_distances(
            *reference, each["embeddings"], patch_clusters(each), bandwidth, resamples=resamples
        )
        for name, each in found.items()
        if name != REFERENCE
    }
    table: dict[str, Any] = {}
    for name, each in found.items():
        axes = dict(zip(each["axes"].tolist(), each["values"].mean(0).tolist(), strict=True))
        counts = {"clips": len(each["clusters"]), "clusters": len(set(each["clusters"].tolist()))}
        table[name] = counts | rounded(axes)
        if name in draws:
            table[name]["kernel_distance"] = rounded(asdict(Interval.of(draws[name])))
    less = {
        name: rounded(asdict(Interval.of(draws[SAMPLES] - d))) for name, d in draws.items() if name != SAMPLES
    }
    judges = [axis for scorer in HEARD for axis in SCORERS[scorer].axes if SCORERS[scorer].judge_only]
    return {"sets": table, "samples_minus": less, "judges": judges}


def markdown(result: dict[str, Any]) -> str:
    """A row a set: axes, distance, and the samples' distance less this set's."""
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
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for name, row in result["sets"].items():
        distance = interval(row.get("kernel_distance"), ".1f")
        cells = [name, str(row["clips"]), *(f"{row[axis]:.2f}" for axis in axes), distance]
        lines.append(f"| {' | '.join(cells)} | {interval(result['samples_minus'].get(name), '+.1f')} |")
    return "\n".join(lines)


def identity(model: Any, cfg: EvalRun) -> str:
    """A hash of the songs' list, the embedded prompts and all weights."""
    digest = hashlib.sha256(Path(cfg.manifest).read_bytes())
    states = [model.network.state_dict(), model.codec.state_dict()]
    embeddings = {prompt.id: model.embed(prompt) for prompt in read_prompts(cfg.prompts)}
    states += [{f"{name}.{key}": e[key] for name, e in embeddings.items() for key in e}]
    for state in states:
        for name, tensor in sorted(state.items()):
            digest.update(name.encode() + tensor.detach().double().numpy().tobytes())
    return digest.hexdigest()[:16]


def begin(manifest: Path, words: Sequence[str]) -> tuple[Any, EvalRun]:
    """The model and a folder that is its own."""
    cfg = load(EvalRun, None, [f"manifest={manifest}", *words])
    model = build_model(cfg.model)
    cfg = replace(cfg, identity=identity(model, cfg))
    claim(cfg, free=["resamples"])
    return model, cfg


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("manifest", type=Path)
    parser.add_argument("settings", nargs="*", help="key=value of EvalRun")
    parser.add_argument("--table", action="store_true", help="Markdown instead of JSON")
    args = parser.parse_intermixed_args()
    model, cfg = begin(args.manifest, args.settings)
    result = {"settings": asdict(cfg), **summary(described(model, cfg), cfg.resamples)}
    print(markdown(result) if args.table else json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
