"""Stable Audio 3 on disk: the published layout and diffusers', strictly loaded."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffdpo.codecs.same import SameCodec, build_same, load_same
from diffdpo.errors import CheckpointError, reason
from diffdpo.flow import log_snr_times
from diffdpo.hub import Published, find_weights, fingerprint_of
from diffdpo.models.base import LatentSpec
from diffdpo.models.checkpoints import CONFIG_FILE, load_saved, read_config
from diffdpo.models.stable_audio3 import published
from diffdpo.models.stable_audio3.network import StableAudio3DiTModel
from diffdpo.models.stable_audio3.text import T5GemmaPrompts, text_files
from diffdpo.runs import read_json
from diffdpo.weight_files import WEIGHTS, assign, check_state, read_pickle, read_tensors, shapes

STABLE_AUDIO3_EMBEDDING_FORMAT = "stable-audio-3-1"
"""Version of the embeddings, part of their fingerprint: raise it whenever they change."""
SAMPLE_RATE, HOP, LONGEST_S = 44100, 4096, 384.0
TEXT_FOLDER = "t5gemma-b-b-ul2"
"""Where a published checkpoint keeps its text encoder; google has it under the same name."""
FEW_STEPS = 8
STABLE_AUDIO3_LICENSE = "Stability AI Community License"


@dataclass
class StableAudio3Files:
    """A checkpoint of either layout. The tensors of a published file are assigned once: each part is built once."""

    location: str
    folder: Path
    parts: published.PublishedParts | None
    """The tensors of a published file; None in diffusers' layout."""
    model_config: Mapping[str, Any]
    """The published model_config.json; {} without one."""
    distilled: bool
    longest_s: float
    duration_config: dict[str, Any]
    duration: dict[str, Tensor]
    repo: str = ""
    """The hub id, where the files came from the hub."""

    def network(self) -> StableAudio3DiTModel:
        """The network; CheckpointError names the first weights that are missing, unexpected or misshapen."""
        if self.parts is None:
            network: StableAudio3DiTModel = load_saved(StableAudio3DiTModel, self.folder / "transformer")
            return network
        state, self.parts.network = self.parts.network, {}
        config = published.network_config(shapes(state), self.location)
        try:
            with torch.device("meta"):
                network = StableAudio3DiTModel.from_config(config)
        except ValueError as error:
            raise CheckpointError(f"{self.location}: no network has such sizes ({reason(error)})") from None
        assign(network, state, self.location, torch.float32, published.describe_weights)
        return network

    def codec(self) -> SameCodec | None:
        """The autoencoder; None where the checkpoint has none."""
        if self.parts is None:
            folder = self.folder / "vae"
            return load_same(folder) if folder.is_dir() else None
        state, self.parts.codec = self.parts.codec, {}
        if not state:
            return None
        config, attention = published.codec_config(self.model_config, self.location)
        return build_same(config, state, self.location, attention)

    def spec(
        self, network: StableAudio3DiTModel, codec: SameCodec | None, *, headroom_s: float, distilled: bool
    ) -> LatentSpec:
        """The space of latents; CheckpointError for an autoencoder of other channels."""
        channels = int(network.config.io_channels)
        if codec is not None and codec.channels != channels:
            raise CheckpointError(
                f"{self.location}: an autoencoder of {codec.channels} channels, the network has {channels}"
            )
        rate = codec.sample_rate if codec else SAMPLE_RATE
        hop = codec.samples_per_frame if codec else HOP
        return LatentSpec(
            channels=channels,
            frames_per_second=rate / hop,
            sample_rate=rate,
            max_frames=-(-int(self.longest_s * rate) // hop),
            receptive_frames=codec.chunks.context if codec else 0,
            rounding="up",
            multiple=codec.alignment if codec else 1,
            headroom_s=headroom_s,
            times=tuple(few_step_times()) if distilled else None,
        )

    def encoders(self, text_encoder: str) -> T5GemmaPrompts:
        """The encoders of prompts, not loaded yet."""
        encoder, tokenizer = self._text_locations(text_encoder)
        return T5GemmaPrompts(
            location=encoder,
            tokenizer_location=tokenizer,
            subfolder=TEXT_FOLDER if encoder == self.repo else "",
            build_duration=self._build_duration,
        )

    def fingerprint(self, text_encoder: str, behavior: str) -> str:
        """Identity of the encoders: the content of their files, or the hub id, and the duration's weights."""
        encoder, tokenizer = self._text_locations(text_encoder)
        digest = hashlib.sha256(json.dumps(self.duration_config, sort_keys=True, default=str).encode())
        for name in sorted(self.duration):
            digest.update(self.duration[name].float().numpy().tobytes())
        files = [*text_files(encoder), *(text_files(tokenizer) if tokenizer != encoder else [])]
        names = "" if files else f"{encoder}|{tokenizer}"
        text = f"{STABLE_AUDIO3_EMBEDDING_FORMAT}|{behavior}|{names}|{digest.hexdigest()}"
        return fingerprint_of(text, files)

    def _text_locations(self, choice: str) -> tuple[str, str]:
        """Where the text encoder and its tokenizer are: as chosen, in the checkpoint's folder, or on the hub."""
        if choice:
            return choice, choice
        if (self.folder / "text_encoder").is_dir():
            return str(self.folder / "text_encoder"), str(self.folder / "tokenizer")
        inner = self.folder / TEXT_FOLDER
        location = str(inner) if inner.is_dir() else self.repo or f"google/{TEXT_FOLDER}"
        return location, location

    def _build_duration(self) -> Any:
        from diffusers.pipelines.stable_audio_3.modeling_stable_audio_3 import StableAudio3DurationEmbedder

        embedder = StableAudio3DurationEmbedder.from_config(self.duration_config)
        state = {"freqs": embedder.freqs, **self.duration}
        check_state(embedder, state, self.location)
        embedder.load_state_dict(state)
        return embedder.float().requires_grad_(False)


def read_files(location: str) -> StableAudio3Files:
    """A checkpoint from a file, a folder of either layout, or a hub id; CheckpointError or DataError otherwise."""
    path = Path(location)
    if (path / "transformer" / CONFIG_FILE).is_file():
        return _read_diffusers(path)
    source = Published(name="Stable Audio 3", repo=location, license=STABLE_AUDIO3_LICENSE)
    weights = find_weights(source, location, published.CHECKPOINT_FILE, accept_noncommercial=False)
    config_path = weights.parent / published.CONFIG_JSON
    if not path.exists():
        config_path = find_weights(source, location, published.CONFIG_JSON, accept_noncommercial=False)
    if not config_path.is_file():
        raise CheckpointError(
            f"{config_path}: no such file; the weights do not tell strides and lengths: copy it from where they are"
        )
    return _read_published(weights, read_config(config_path), "" if path.exists() else location)


def _read_published(weights: Path, config: Mapping[str, Any], repo: str) -> StableAudio3Files:
    if weights.suffix == ".safetensors":
        state = read_tensors(weights)
    else:
        content = read_pickle(weights)
        content = content.get("state_dict", content)
        state = {name: value for name, value in content.items() if isinstance(value, Tensor)}
    parts = published.split_published(state, str(weights))
    try:
        objective = config["model"]["diffusion"]["diffusion_objective"]
        longest_s = config["sample_size"] / config["sample_rate"]
        options = next(
            entry["config"]
            for entry in config["model"]["conditioning"]["configs"]
            if entry["id"] == "seconds_total"
        )
        linear = parts.duration["linear.weight"]
    except (LookupError, TypeError, StopIteration, ZeroDivisionError) as error:
        raise CheckpointError(
            f"{weights}: not with a model_config.json of Stable Audio 3 ({reason(error)})"
        ) from None
    duration_config = {
        "output_dim": linear.shape[0],
        "fourier_dim": linear.shape[1],
        "min_val": float(options.get("min_val", 0.0)),
        "max_val": float(options.get("max_val", LONGEST_S)),
    }
    return StableAudio3Files(
        location=str(weights),
        folder=weights.parent,
        parts=parts,
        model_config=config,
        distilled=objective == published.DISTILLED,
        longest_s=longest_s,
        duration_config=duration_config,
        duration=parts.duration,
        repo=repo,
    )


def _read_diffusers(folder: Path) -> StableAudio3Files:
    config = read_config(folder / "duration_embedder" / CONFIG_FILE)
    duration = read_tensors(folder / "duration_embedder" / WEIGHTS)
    duration.pop("freqs", None)
    scheduler = folder / "scheduler" / "scheduler_config.json"
    options = read_json(scheduler) if scheduler.is_file() else {}
    return StableAudio3Files(
        location=str(folder),
        folder=folder,
        parts=None,
        model_config={},
        distilled=bool(options.get("stochastic_sampling", False)),
        longest_s=float(config.get("max_val", LONGEST_S)),
        duration_config=config,
        duration=duration,
    )


def few_step_times() -> list[float]:
    """The published times of a distilled network: even steps in the logarithm of the signal-to-noise ratio."""
    return log_snr_times(FEW_STEPS).tolist()
