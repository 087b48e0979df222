"""CLAP as features: transformers' ClapModel from a folder."""

import hashlib
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
from jaxtyping import Float

from diffdpo import hub
from diffdpo.config_paths import PATH
from diffdpo.errors import CheckpointError, reason
from diffdpo.extractors.base import Crops, as_vector, mono_at
from diffdpo.types import Clip

CLAP_FILES = ("config.json", "preprocessor_config.json", "model.safetensors")
TOKENIZER_FILES = ("tokenizer.json", "vocab.json")


@dataclass(frozen=True)
class ClapFeatures:
    """The unit vector of a sound by CLAP (Wu et al. 2023), the mean over windows of the length that it was trained
    on. It has a text side where the folder has a tokenizer.

    Longer sounds would be cut at random by transformers; here they are cut evenly, so that the numbers are the same
    every time.
    """

    version: ClassVar[str] = "1"
    licenses: ClassVar[tuple[str, ...]] = ("Apache-2.0",)

    folder: str = field(default="", repr=False, metadata=PATH)
    """Folder of ClapModel in transformers' format, such as a copy of laion/larger_clap_music, with its feature
    extractor (preprocessor_config.json)."""

    @property
    def weights_hash(self) -> str:
        folder = self._folder()
        hashes = [hub.sha256_of(folder / name) for name in CLAP_FILES]
        return hashlib.sha256("".join(hashes).encode()).hexdigest()

    def __call__(self, clip: Clip) -> Float[np.ndarray, " feature"]:
        import torch

        network = read_clap(self._folder())
        extractor = network.extractor
        longest_s = extractor.nb_max_samples / extractor.sampling_rate
        count = max(1, -(-round(clip.seconds * 100) // round(longest_s * 100)))
        vectors = []
        for window in Crops(seconds=longest_s, count=count).cut(clip):
            wave = mono_at(window, extractor.sampling_rate)[: extractor.nb_max_samples]
            inputs = extractor(wave, sampling_rate=extractor.sampling_rate, return_tensors="pt")
            with torch.no_grad():
                vectors.append(as_vector(network.model.get_audio_features(**inputs).pooler_output))
        return np.mean(vectors, axis=0)

    def embed_text(self, text: str) -> Float[np.ndarray, " feature"]:
        """The unit vector of a text; zeros for an empty one. CheckpointError without a tokenizer."""
        import torch

        network = read_clap(self._folder())
        if not text.strip():
            return np.zeros(network.model.config.projection_dim)
        inputs = read_tokenizer(self._folder())(text, return_tensors="pt", truncation=True)
        with torch.no_grad():
            outputs = network.model.get_text_features(
                input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]
            )
        return as_vector(outputs.pooler_output)

    def _folder(self) -> Path:
        from diffdpo.weight_files import check_weights_file

        if not self.folder:
            raise CheckpointError("extractor 'clap': no folder given; set folder to a copy of a ClapModel")
        for name in CLAP_FILES:
            check_weights_file(Path(self.folder) / name)
        return Path(self.folder)


class Clap(NamedTuple):
    """The network and what prepares sounds for it."""

    model: Any
    extractor: Any


@cache
def read_clap(folder: Path) -> Clap:
    """Network and feature extractor of a folder, loaded once a process. CheckpointError for another model."""
    from transformers import ClapFeatureExtractor, ClapModel

    try:
        model = ClapModel.from_pretrained(folder, local_files_only=True).eval().requires_grad_(False)
        return Clap(model, ClapFeatureExtractor.from_pretrained(folder, local_files_only=True))
    except (OSError, ValueError, TypeError, RuntimeError, KeyError) as error:
        raise CheckpointError(f"{folder}: no ClapModel of transformers ({reason(error)})") from None


@cache
def read_tokenizer(folder: Path) -> Any:
    """The tokenizer of a folder. CheckpointError without one."""
    from transformers import AutoTokenizer

    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise CheckpointError(f"{folder}: no tokenizer; copy tokenizer.json and tokenizer_config.json")
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise CheckpointError(
            f"{folder}: its tokenizer cannot be read ({reason(error)}); copy it again"
        ) from None
