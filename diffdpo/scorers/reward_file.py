"""The file of a reward model: its head, and a card that says what it was fitted to and under which licenses."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from diffdpo.errors import CheckpointError, reason
from diffdpo.extractors import EXTRACTORS
from diffdpo.extractors.base import Crops, Extractor, TextExtractor
from diffdpo.preferences.reward_head import RewardHead, read_reward_head
from diffdpo.registry import pick

REWARD_KEY = "reward"
"""Entry of a file's metadata that holds the card as JSON."""
REWARD_FILE = "reward.safetensors"


@dataclass(frozen=True, kw_only=True)
class ExtractorCard:
    """An extractor of a reward model, and its identity when the model was fitted."""

    name: str
    args: Mapping[str, Any] = field(default_factory=dict)
    fingerprint: str = ""
    licenses: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class RewardCard:
    """What a reward model is: its features, its votes, its licenses."""

    extractors: tuple[ExtractorCard, ...]
    crops: Crops = field(default_factory=Crops)
    text: str = ""
    """The extractor whose text side joins the prompt; empty for a model of the sound alone."""
    axis: str = ""
    """The question that the votes answer; empty for the preference overall."""
    votes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """By source: the beginnings of the hashes of the ids of all votes that it was fitted to."""
    songs: tuple[str, ...] = ()
    """The beginnings of the hashes of all sounds that it was fitted to."""
    vote_licenses: tuple[str, ...] = ()
    """Licenses of votes and songs; `unknown` where some have none."""
    consents: tuple[str, ...] = ()
    """Versions of the consent that votes were given under."""
    offsets: Mapping[str, float] = field(default_factory=dict)
    """By system: how much its songs are overrated, by anchor votes."""
    accuracy: float = 0.0
    """On held-out prompts."""
    seed: int = 0
    version: str = ""

    @property
    def licenses(self) -> tuple[str, ...]:
        """All licenses that the model inherits, of its votes and of its features."""
        names = [*self.vote_licenses, *(name for part in self.extractors for name in part.licenses)]
        return tuple(dict.fromkeys(names))


@dataclass(frozen=True, eq=False)
class RewardModel:
    """A reward model in memory."""

    head: RewardHead
    card: RewardCard
    extractors: Mapping[str, Extractor]

    @property
    def text_side(self) -> TextExtractor | None:
        """What embeds prompts; None for a model of the sound alone."""
        part = self.extractors[self.card.text] if self.card.text else None
        return part if isinstance(part, TextExtractor) else None


def save_reward(path: Path, head: RewardHead, card: RewardCard) -> None:
    """Write a reward model as one safetensors file, complete or not at all."""
    from safetensors.numpy import save

    from diffdpo.runs import atomic_write

    atomic_write(path, save(head.tensors(), {REWARD_KEY: json.dumps(asdict(card), sort_keys=True)}))


def reward_path(location: str | Path) -> Path:
    """The file of a reward model: itself, or in the folder of `diffdpo reward train`."""
    path = Path(location)
    return path / REWARD_FILE if path.is_dir() else path


def read_card(path: Path) -> tuple[RewardHead, RewardCard]:
    """Head and card of a file. CheckpointError for what is no reward model."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise CheckpointError(f"{path}: no reward model here; make one with `diffdpo reward train`")
    try:
        with safe_open(path, "np") as file:
            values = json.loads((file.metadata() or {})[REWARD_KEY])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        values["extractors"] = tuple(
            ExtractorCard(**part | {"licenses": tuple(part["licenses"])}) for part in values["extractors"]
        )
        values["crops"] = Crops(**values["crops"])
        for name in ("songs", "vote_licenses", "consents"):
            values[name] = tuple(values[name])
        values["votes"] = {source: tuple(ids) for source, ids in values["votes"].items()}
        return read_reward_head(tensors), RewardCard(**values)
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path}: not a reward model of `diffdpo reward train` ({reason(error)}); fit it again"
        ) from None


def card_extractors(cards: Iterable[ExtractorCard]) -> dict[str, Extractor]:
    """The extractors of a card, by name. UserError for one that is not installed or lacks its weights."""
    return {part.name: pick("extractor", EXTRACTORS, part.name)(**part.args) for part in cards}


def read_reward_model(path: Path) -> RewardModel:
    """Head, card and extractors of a file, read once a process for each state of the file."""
    status = path.stat() if path.is_file() else None
    return _read(path, status.st_mtime_ns if status else 0)


@cache
def _read(path: Path, _modified_ns: int) -> RewardModel:
    from diffdpo.extractors.base import extractor_fingerprint

    head, card = read_card(path)
    extractors = card_extractors(card.extractors)
    for part in card.extractors:
        if part.fingerprint != extractor_fingerprint(extractors[part.name]):
            raise CheckpointError(
                f"{path}: fitted to other features: the weights or the version of {part.name!r} changed; put "
                "them back, or fit the model again"
            )
    return RewardModel(head, card, extractors)
