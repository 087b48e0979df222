"""Stable Audio 3 without weights: sizes alone, for estimates of memory."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from diffdpo.models.checkpoints import CONFIG_FILE, read_config
from diffdpo.models.stable_audio3 import published
from diffdpo.models.stable_audio3.adapter import StableAudio3
from diffdpo.models.stable_audio3.files import LONGEST_S, StableAudio3Files, read_files
from diffdpo.models.stable_audio3.network import StableAudio3DiTModel
from diffdpo.models.stable_audio3.text import TOKENS
from diffdpo.types import Embedding
from diffdpo.weight_files import shapes

if TYPE_CHECKING:
    from diffdpo.models.stable_audio3.checkpoint import StableAudio3Checkpoint

SMALL_SIZES = {"embed_dim": 1024, "depth": 20, "num_heads": 16, "use_differential_attention": False}
"""What the small network has otherwise than the medium one, whose sizes are the defaults of the class."""
SMALL_LONGEST_S = 120.0


def sketch_stable_audio3(cfg: "StableAudio3Checkpoint") -> tuple[StableAudio3, Embedding]:
    """The model with its network on the meta device, and the embedding of a prompt that fills the context.

    Of a checkpoint on this machine only sizes are read; else they are the published ones of small or medium, and of
    a base or a distilled network, as the name says.
    """
    path = Path(cfg.checkpoint)
    files = read_files(cfg.checkpoint) if path.exists() else _published_files(path.name)
    config = _network_config(files, small="small" in path.name)
    if cfg.network:
        config = read_config(Path(cfg.network) / CONFIG_FILE)
    with torch.device("meta"):
        network: StableAudio3DiTModel = StableAudio3DiTModel.from_config(config)
    distilled = files.distilled if cfg.distilled is None else cfg.distilled
    model = StableAudio3(
        network=network,
        spec=files.spec(network, None, headroom_s=cfg.headroom_s, distilled=distilled),
        behavior=cfg.behavior,
        distilled=distilled,
    )
    embedding = {
        "text": torch.zeros(TOKENS, network.config.cond_token_dim),
        "duration": torch.zeros(network.config.global_cond_dim),
    }
    if cfg.behavior == "diffusers":
        embedding["null"] = torch.zeros(1, network.config.cond_token_dim)
    return model, embedding


def _published_files(name: str) -> StableAudio3Files:
    """What is known of a published checkpoint by its name."""
    return StableAudio3Files(
        location=name,
        folder=Path(name),
        parts=None,
        model_config={},
        distilled="base" not in name,
        longest_s=SMALL_LONGEST_S if "small" in name else LONGEST_S,
        duration_config={},
        duration={},
    )


def _network_config(files: StableAudio3Files, *, small: bool) -> dict[str, Any]:
    if files.parts is not None:
        return published.network_config(shapes(files.parts.network), files.location)
    config = files.folder / "transformer" / CONFIG_FILE
    if config.is_file():
        return read_config(config)
    return dict(SMALL_SIZES) if small else {}
