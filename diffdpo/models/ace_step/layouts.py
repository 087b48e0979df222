"""The files of ACE-Step 1.5 in both published layouts: diffusers' folders, and the original ones.

The original has one `model.safetensors` for all parts but the text encoder and the VAE, with `silence_latent.pt`
beside it. Names of tensors are mapped to diffusers', and sizes are those of the tensors.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from diffdpo.errors import CheckpointError
from diffdpo.hub import Published, find_folder
from diffdpo.models.checkpoints import CONFIG_FILE, read_config
from diffdpo.runs import read_json
from diffdpo.weight_files import WEIGHTS, read_tensors, unpickle

ACE_STEP = Published(name="ACE-Step 1.5", repo="ACE-Step/Ace-Step1.5", license="MIT")
TEXT_ENCODER = "Qwen3-Embedding-0.6B"
ORIGINAL_WEIGHTS = "model.safetensors"
SILENCE_FILE = "silence_latent.pt"
SILENCE, NULL = "silence_latent", "null_condition_emb"
PREFIXES = {
    "transformer": "decoder.",
    "condition_encoder": "encoder.",
    "audio_tokenizer": "tokenizer.",
    "audio_token_detokenizer": "detokenizer.",
}
"""The parts, by diffusers' names, and the original's prefix of each."""
RENAMES = (
    (".q_proj.", ".to_q."),
    (".k_proj.", ".to_k."),
    (".v_proj.", ".to_v."),
    (".o_proj.", ".to_out.0."),
    (".q_norm.", ".norm_q."),
    (".k_norm.", ".norm_k."),
    ("proj_in.1.", "proj_in_conv."),
    ("proj_out.1.", "proj_out_conv."),
)
"""Pieces of the original's names and diffusers'."""
ATTENTION_KEYS = ("attention_bias", "attention_dropout", "rms_norm_eps", "rope_theta", "sliding_window")
"""What tensors do not tell, and every part of the original takes from its one configuration."""
TENSOR_SIZES: dict[str, dict[str, tuple[str, int]]] = {
    "transformer": {
        "hidden_size": ("proj_in_conv.weight", 0),
        "in_channels": ("proj_in_conv.weight", 1),
        "patch_size": ("proj_in_conv.weight", 2),
        "audio_acoustic_hidden_dim": ("proj_out_conv.weight", 1),
        "encoder_hidden_size": ("condition_embedder.weight", 1),
    },
    "condition_encoder": {
        "hidden_size": ("text_projector.weight", 0),
        "text_hidden_dim": ("text_projector.weight", 1),
        "timbre_hidden_dim": ("timbre_encoder.embed_tokens.weight", 1),
    },
    "audio_tokenizer": {
        "hidden_size": ("audio_acoustic_proj.weight", 0),
        "audio_acoustic_hidden_dim": ("audio_acoustic_proj.weight", 1),
        "fsq_dim": ("quantizer.project_out.weight", 0),
    },
    "audio_token_detokenizer": {
        "hidden_size": ("embed_tokens.weight", 0),
        "audio_acoustic_hidden_dim": ("proj_out.weight", 0),
        "pool_window_size": ("special_tokens", 1),
    },
}
"""The tensor and the axis that each size is read off."""
DEPTHS = {
    "transformer": {"num_hidden_layers": "layers"},
    "condition_encoder": {
        "num_lyric_encoder_hidden_layers": "lyric_encoder.layers",
        "num_timbre_encoder_hidden_layers": "timbre_encoder.layers",
    },
    "audio_tokenizer": {"num_attention_pooler_hidden_layers": "attention_pooler.layers"},
    "audio_token_detokenizer": {"num_attention_pooler_hidden_layers": "layers"},
}
"""The lists of layers whose lengths are sizes."""
CONFIG_KEYS = {
    "transformer": ("layer_types", "is_turbo", "model_version"),
    "audio_tokenizer": ("pool_window_size", "fsq_input_levels", "fsq_input_num_quantizers"),
}
"""Further keys of the original's configuration that a part takes."""


@dataclass(frozen=True)
class PartWeights:
    """The configuration of one part, and its mapped tensors under diffusers' names."""

    location: str
    config: dict[str, Any]
    state: dict[str, Tensor]


@dataclass(frozen=True)
class AceStepFolder:
    """A checkpoint on disk."""

    folder: Path
    is_original: bool

    def files(self, part: str) -> list[Path]:
        """The files that hold a part."""
        if not self.is_original:
            return [self.folder / part / CONFIG_FILE, *shard_paths(self.folder / part, WEIGHTS)]
        files = [self.folder / CONFIG_FILE, *shard_paths(self.folder, ORIGINAL_WEIGHTS)]
        return files + [self.folder / SILENCE_FILE] * (part == "condition_encoder")

    def has(self, part: str) -> bool:
        """Whether a part is here."""
        if not self.is_original:
            return (self.folder / part / CONFIG_FILE).is_file()
        return any(name.startswith(PREFIXES[part]) for name in self._tensors())

    def read(self, part: str) -> PartWeights:
        """A part; CheckpointError where it is not here, or where its tensors cannot be those of such a part."""
        if self.is_original:
            return self._read_original(part)
        folder = self.folder / part
        state = read_shards(folder, WEIGHTS)
        if part == "condition_encoder" and not (SILENCE in state and bool(state[SILENCE].any())):
            raise CheckpointError(
                _without_silence(f"{folder}: its weights hold no {SILENCE}, or zeros for it")
            )
        return PartWeights(str(folder), read_config(folder / CONFIG_FILE), state)

    def _tensors(self) -> dict[str, Tensor]:
        return read_shards(self.folder, ORIGINAL_WEIGHTS)

    def _read_original(self, part: str) -> PartWeights:
        location, tensors = str(self.folder / ORIGINAL_WEIGHTS), self._tensors()
        foreign = [name for name in tensors if name != NULL and not name.startswith(tuple(PREFIXES.values()))]
        if foreign:
            raise CheckpointError(
                f"{location}: {len(foreign)} tensors are of no part of ACE-Step 1.5, first {foreign[0]}"
            )
        state = diffusers_names(tensors, PREFIXES[part])
        if not state:
            raise CheckpointError(f"{location}: holds no {part}: no tensor is named {PREFIXES[part]}…")
        if part == "condition_encoder":
            if NULL in tensors:
                state[NULL] = tensors[NULL]
            state[SILENCE] = self._silence()
        original = read_config(self.folder / CONFIG_FILE)
        keys = (*ATTENTION_KEYS, *CONFIG_KEYS.get(part, ()))
        config = {key: original[key] for key in keys if original.get(key) is not None}
        return PartWeights(location, config | _sizes(part, state, location), state)

    def _silence(self) -> Tensor:
        path = self.folder / SILENCE_FILE
        if not path.is_file():
            raise CheckpointError(_without_silence(f"{path}: no such file"))
        silence = unpickle(path)
        if not isinstance(silence, Tensor) or silence.ndim != 3 or len(silence) != 1:
            raise CheckpointError(f"{path}: expected latents of silence, [1, channel, frame]")
        return silence.transpose(1, 2).contiguous()


def _without_silence(problem: str) -> str:
    return (
        f"{problem}; the latents of silence stand for an absent source, and songs without them drone: fetch "
        f"{SILENCE_FILE} from the checkpoint's repository"
    )


def ace_step_folder(location: str) -> AceStepFolder:
    """A checkpoint's folder, on disk or on the hub; CheckpointError for one in neither layout."""
    folder = find_folder(ACE_STEP, location, ("vae", TEXT_ENCODER))
    if folder.is_file() and folder.name == ORIGINAL_WEIGHTS:
        folder = folder.parent
    if (folder / "transformer" / CONFIG_FILE).is_file():
        return AceStepFolder(folder, is_original=False)
    if shard_paths(folder, ORIGINAL_WEIGHTS)[0].is_file():
        return AceStepFolder(folder, is_original=True)
    if not folder.is_dir():
        raise CheckpointError(
            f"{location}: no such folder; expected ACE-Step 1.5: huggingface-cli download ACE-Step/Ace-Step1.5 "
            "fetches it"
        )
    raise CheckpointError(
        f"{location}: neither the original layout (with {ORIGINAL_WEIGHTS}: acestep-v15-base and the like) nor "
        "diffusers' (with transformer/)"
    )


def shard_paths(folder: Path, name: str) -> list[Path]:
    """The files of a part's weights: one, or the shards that an index names."""
    index = folder / f"{name}.index.json"
    if (folder / name).is_file() or not index.is_file():
        return [folder / name]
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise CheckpointError(f"{index}: names no shards; copy it again")
    return [folder / shard for shard in sorted(set(shards.values()))]


def read_shards(folder: Path, name: str) -> dict[str, Tensor]:
    """The mapped tensors of a part, from one file or from its shards."""
    state: dict[str, Tensor] = {}
    for path in shard_paths(folder, name):
        state |= read_tensors(path)
    return state


def diffusers_names(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors under a prefix of the original, by diffusers' names."""
    state = {}
    for name, tensor in tensors.items():
        if name.startswith(prefix):
            bare = name.removeprefix(prefix)
            for original, published in RENAMES:
                bare = bare.replace(original, published)
            state[bare] = tensor
    return state


def original_names(state: Mapping[str, Tensor], part: str) -> dict[str, Tensor]:
    """The inverse of `diffusers_names`, for other programs and for tests."""
    tensors = {}
    for name, tensor in state.items():
        for original, published in RENAMES:
            name = name.replace(published, original)
        tensors[PREFIXES[part] + name] = tensor
    return tensors


def _sizes(part: str, state: Mapping[str, Tensor], location: str) -> dict[str, int]:
    """The sizes of a part, read off its tensors."""
    try:
        sizes = {key: state[name].shape[axis] for key, (name, axis) in TENSOR_SIZES[part].items()}
        for key, layers in DEPTHS[part].items():
            numbers = [int(m[1]) for name in state if (m := re.match(rf"{re.escape(layers)}\.(\d+)\.", name))]
            sizes[key] = max(numbers) + 1
        layer = f"{next(iter(DEPTHS[part].values()))}.0"
        sizes["head_dim"] = state[f"{layer}.self_attn.norm_q.weight"].shape[0]
        sizes["intermediate_size"] = state[f"{layer}.mlp.gate_proj.weight"].shape[0]
        for key, projection in (("num_attention_heads", "to_q"), ("num_key_value_heads", "to_k")):
            sizes[key] = state[f"{layer}.self_attn.{projection}.weight"].shape[0] // sizes["head_dim"]
    except (LookupError, ValueError, ZeroDivisionError) as error:
        raise CheckpointError(
            f"{location}: its {part} is not that of ACE-Step 1.5: no tensor {error}"
        ) from None
    return sizes
