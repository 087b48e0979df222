"""Styles for DiffRhythm: MuQ-MuLan's embeddings of texts, of sounds, and of what lies between them."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

import librosa
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from diffdpo.devices import choose_device
from diffdpo.encoders import mulan
from diffdpo.encoders.mulan import Style
from diffdpo.errors import DataError
from diffdpo.hub import Published, find_weights
from diffdpo.runs import read_json
from diffdpo.types import Clip
from diffdpo.weight_files import read_pickle, read_tensors

PUBLISHED_MULAN = Published(
    name="MuQ-MuLan-large", repo="OpenMuQ/MuQ-MuLan-large", license="CC-BY-NC-4.0", noncommercial=True
)
MULAN_FILE = "pytorch_model.bin"
TOKENIZER = Published(name="the tokenizer of XLM-RoBERTa", repo="FacebookAI/xlm-roberta-base", license="MIT")
TOKENIZER_FILE = "tokenizer.json"
MULAN_PREFIX = "mulan."
AND = "||"
SHARE = re.compile(r"(.*\S)\s*@\s*(\d+(?:\.\d+)?)\s*", re.DOTALL)

Excerpt = Literal["centre", "first_30_s", "all"]


@dataclass(frozen=True)
class MuLanStyle:
    """Text, sound or both to the vector that DiffRhythm was trained with.

    A text may ask for several things, `AND` between them, each with its share: "dream pop @ 0.7 || drum and bass @
    0.3". A part that ends in .npy is a file with an embedding: DiffRhythm's own negative style is one.
    """

    weights: str = ""
    """`pytorch_model.bin` of MuQ-MuLan-large, its folder, or a hub id; by default the hub's."""
    tokenizer: str = ""
    """`tokenizer.json` of xlm-roberta-base, its folder, or a hub id; by default the hub's."""
    accept_noncommercial: bool = False
    excerpt: Excerpt = "centre"
    """The part of a sound that is embedded: ten seconds in the middle (DiffRhythm), the first thirty (JAM), or all
    (MuQ-MuLan). Clips of ten seconds are averaged; a shorter last clip goes on with the beginning of the sound."""
    texts: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)
    """Cache of the styles of texts."""
    networks: list["Towers"] = field(default_factory=list, init=False, repr=False, compare=False)
    """Both towers once they are needed; they are freed with this value."""

    def embed(self, text: str | None, clip: Clip | None) -> Style:
        """The style of a text, a sound, or the middle between them; zeros for neither."""
        styles = [self.text(text)] if text and text.strip() else []
        if clip is not None and clip.samples.any():
            styles.append(self.sound(clip))
        if not styles:
            return torch.zeros(self._towers().dim)
        return styles[0] if len(styles) == 1 else blend(styles, [1.0] * len(styles))

    def text(self, text: str) -> Style:
        """The style of a text: the mean of its parts, weighted by their shares, as a unit vector."""
        parts = [part.strip() for part in text.split(AND) if part.strip()]
        matches = [SHARE.fullmatch(part) for part in parts]
        shares = [float(match[2]) if match else 1.0 for match in matches]
        names = [match[1] if match else part for part, match in zip(parts, matches, strict=True)]
        styles = [read_style(name) if name.endswith(".npy") else self._one_text(name) for name in names]
        return styles[0] if len(styles) == 1 else blend(styles, shares)

    def sound(self, clip: Clip) -> Style:
        """The style of an excerpt of a sound. Unit length for ten seconds; the mean of several clips is shorter."""
        return self._towers().sound(excerpt(clip, self.excerpt)).float().cpu()

    def _one_text(self, text: str) -> Style:
        """The style of one part of a text, cached: parts recur."""
        if text not in self.texts:
            self.texts[text] = self._towers().text(text, self._tokenizer()).float().cpu()
        return self.texts[text].clone()

    def files(self) -> list[Path]:
        """What decides the embeddings: weights, configuration and tokenizer. DataError for files that are
        missing."""
        return [*self._files(), self._tokenizer()]

    def _files(self) -> tuple[Path, Path]:
        """Weights and, beside them, the configuration, which local copies may lack."""
        path = find_weights(
            PUBLISHED_MULAN, self.weights, MULAN_FILE, accept_noncommercial=self.accept_noncommercial
        )
        config = path.parent / "config.json"
        if not config.is_file() and not (self.weights and Path(self.weights).exists()):
            config = find_weights(
                PUBLISHED_MULAN, self.weights, "config.json", accept_noncommercial=self.accept_noncommercial
            )
        return path, config

    def _tokenizer(self) -> Path:
        return find_weights(TOKENIZER, self.tokenizer, TOKENIZER_FILE, accept_noncommercial=False)

    def _towers(self) -> "Towers":
        if not self.networks:
            self.networks.append(towers(*self._files()))
        return self.networks[0]


@dataclass(frozen=True)
class Towers:
    """Both networks, each built when it is first needed, on the GPU if there is one."""

    state: dict[str, Tensor] = field(repr=False)
    location: str
    layer: int
    """The hidden state of MuQ that the audio tower goes on with."""
    networks: dict[str, Any] = field(default_factory=dict, init=False, repr=False)

    @property
    def dim(self) -> int:
        return len(self.state["audio_to_latents.bias"])

    def sound(self, samples: Float[np.ndarray, " sample"]) -> Style:
        if "audio" not in self.networks:
            self.networks["audio"] = mulan.audio_tower(self.state, self.location, self.layer)
            self.networks["audio"].encoder.to(_device())
            self.networks["audio"].top.to(_device())
        return self.networks["audio"].embed(torch.from_numpy(samples).to(_device()))

    def text(self, text: str, tokenizer: Path) -> Style:
        if "text" not in self.networks:
            self.networks["text"] = mulan.text_tower(self.state, self.location)
            self.networks["text"].encoder.to(_device())
            self.networks["text"].top.to(_device())
        return self.networks["text"].embed(tokens(tokenizer, text))


def towers(weights: Path, config: Path) -> Towers:
    """Both towers from files. DataError for weights of another network, or with another text encoder."""
    config_values = read_json(config) if config.is_file() else {}
    name = config_values.get("text_model", {}).get("name", "xlm-roberta-base")
    if "xlm-roberta" not in name:
        raise DataError(f"{config}: a MuQ-MuLan on {name}; only those on xlm-roberta are known here")
    tensors = read_tensors(weights) if weights.suffix == ".safetensors" else read_pickle(weights)
    state = {name.removeprefix(MULAN_PREFIX): tensor for name, tensor in tensors.items()}
    mulan.check_names(state, str(weights))
    return Towers(state, str(weights), config_values.get("audio_model", {}).get("use_layer_idx", -1))


@cache
def _tokenizer(path: Path) -> Any:
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise DataError(f"styles from text need transformers ({error}): pip install transformers") from None
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        raise DataError(f"{path}: not a tokenizer.json: {error}") from None
    tokenizer.no_padding()
    tokenizer.enable_truncation(mulan.MAX_TOKENS)
    return tokenizer


def tokens(path: Path, text: str) -> list[int]:
    """Token ids of a text, start and end tokens included."""
    return _tokenizer(path).encode(text).ids


def excerpt(clip: Clip, part: Excerpt) -> Float[np.ndarray, " sample"]:
    """The part of a sound that is embedded, mono at 24 kHz.

    The centre begins five seconds before the middle, both in whole seconds, as in DiffRhythm. Sounds shorter than
    ten seconds, which DiffRhythm refuses, are embedded as they are.
    """
    begin, end = 0, clip.samples.shape[1]
    if part == "centre" and clip.seconds >= mulan.CLIP_S:
        begin = int((clip.seconds // 2 - mulan.CLIP_S / 2) * clip.sample_rate)
        end = begin + mulan.CLIP_S * clip.sample_rate
    elif part == "first_30_s":
        end = 30 * clip.sample_rate
    mean = clip.samples[:, begin:end].mean(0, dtype=np.float32)
    rate = mulan.MULAN_SAMPLE_RATE
    sound = librosa.resample(mean, orig_sr=clip.sample_rate, target_sr=rate, res_type="soxr_hq")
    return sound[: round(len(mean) * rate / clip.sample_rate)]  # librosa's last one would begin another clip


def blend(styles: Sequence[Style], shares: Sequence[float]) -> Style:
    """A mixture of styles on the unit sphere: the direction of their weighted mean."""
    if sum(shares) <= 0:
        raise DataError("a style of several needs at least one share above 0")
    mean = sum(
        share * style / style.norm().clamp(min=1e-9) for share, style in zip(shares, styles, strict=True)
    )
    total = torch.as_tensor(mean)
    if total.norm() < 1e-6 * sum(shares):
        raise DataError("these styles cancel each other; there is nothing between them")
    return total / total.norm()


def read_style(path: str) -> Style:
    """An embedding that somebody stored with numpy, [style] or [1, style]."""
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as a style: {error}") from None
    if not isinstance(array, np.ndarray) or array.size != max(array.shape, default=0):
        raise DataError(f"{path}: expected one vector of finite numbers")
    if not np.isfinite(array).all():
        raise DataError(f"{path}: expected one vector of finite numbers")
    return torch.from_numpy(array.reshape(-1)).float()


def _device() -> torch.device:
    return choose_device()
