"""How the contract tests make each registered scorer: those whose weights are downloaded get small random ones."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from support.closed_form import drawn_state
from support.mulan import write_mulan
from support.reward_server import start_server

from diffdpo.encoders import muq
from diffdpo.encoders.audiobox import AXES, AudioboxNetwork, published_heads
from diffdpo.encoders.crepe import CrepeTiny
from diffdpo.encoders.distill_mos import DistillMos
from diffdpo.encoders.songeval import Head
from diffdpo.encoders.tunejury import TUNEJURY_STYLES, TuneJuryHead
from diffdpo.encoders.wavlm import published_config
from diffdpo.extractors import EXTRACTORS
from diffdpo.extractors.base import extractor_fingerprint
from diffdpo.preferences.reward_head import RewardHead
from diffdpo.scorers import SCORERS
from diffdpo.scorers.base import Scorer
from diffdpo.scorers.reward_file import REWARD_FILE, ExtractorCard, RewardCard, save_reward
from diffdpo.scorers.songeval import HEAD_FILE
from diffdpo.scorers.tunejury import TUNEJURY_FILE

MUQ = muq.MuQConfig(dim=32, depth=7, heads=4, hidden=48, kernel_size=7, conv_dim=6)
AUDIOBOX = {
    "proj_num_layer": 3,
    "proj_ln": True,
    "proj_dropout": 0,
    "nth_layer": 3,
    "precision": "bf16",
    "target_transform": {axis: {"mean": 15.0 + i, "std": 1.0 + i} for i, axis in enumerate(AXES)},
    "wavlm_config": {
        "conv_feature_layers": "[(8,10,5)] + [(8,3,2)] * 4 + [(8,2,2)] * 2",
        "encoder_layers": 2,
        "encoder_embed_dim": 16,
        "encoder_ffn_embed_dim": 32,
        "encoder_attention_heads": 2,
        "conv_pos_groups": 4,
    },
}
"""The published configuration, with a small WavLM, and means that keep the ratings of random weights positive."""


def random_head(dim: int = 32) -> Head:
    """Of SongEval, its ratings spread over their scale."""
    head = Head(dim, 64, 2, 5)
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return head


def write_songeval(folder: Path, seed: int = 0) -> dict[str, Any]:
    """Random weights in the layout of the published ones, and the scorer's arguments for them."""
    torch.manual_seed(seed)
    encoder, head = muq.MuQ(MUQ).eval(), random_head()
    (folder / HEAD_FILE).parent.mkdir(parents=True, exist_ok=True)
    save_file(
        {muq.MUQ_PREFIX + name: tensor for name, tensor in encoder.state_dict().items()},
        folder / muq.MUQ_FILE,
    )
    save_file(head.state_dict() | {"something.else": torch.zeros(1)}, folder / HEAD_FILE)
    return {"muq": str(folder), "head": str(folder), "accept_noncommercial": True}


def write_audiobox(folder: Path, seed: int = 0) -> dict[str, Any]:
    """The hub's two files, and the scorer's arguments for them.

    The heads' weights are three times as large as usual, so that clips score unlike each other.
    """
    torch.manual_seed(seed)
    encoder = published_config(AUDIOBOX["wavlm_config"])
    network = AudioboxNetwork(encoder, published_heads(AUDIOBOX, encoder.layers))
    state = {k: 3 * v if "proj_layer" in k else v for k, v in network.state_dict().items()}
    folder.mkdir(parents=True, exist_ok=True)
    save_file({**state, "wavlm_model.mask_emb": torch.zeros(16)}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(AUDIOBOX))
    return {"weights": str(folder)}


def write_reward(folder: Path, seed: int = 0, text: str = "") -> dict[str, Any]:
    """A reward model of random weights on features of the tiny bundle, and the scorer's arguments for it."""
    rng = np.random.default_rng(seed)
    name = text or "latents"
    features, members, hidden = 512 + 1025 if text else 448, 3, 2
    head = RewardHead(
        center=rng.standard_normal(features) * 0.1,
        scale=np.ones(features),
        linear=rng.standard_normal((members, features)) * 0.1,
        inner=rng.standard_normal((members, hidden, features)) * 0.1,
        bias=rng.standard_normal((members, hidden)),
        outer=rng.standard_normal((members, hidden)),
    )
    extractors = {name: EXTRACTORS[name]()}
    cards = tuple(
        ExtractorCard(name=name, fingerprint=extractor_fingerprint(part), licenses=part.licenses)
        for name, part in extractors.items()
    )
    card = RewardCard(extractors=cards, text=text, vote_licenses=("CC-BY-NC-4.0",), seed=seed)
    save_reward(folder / REWARD_FILE, head, card)
    return {"path": str(folder)}


def write_prompt_reward(folder: Path, seed: int = 0) -> dict[str, Any]:
    """The same with the prompt's style beside the song's."""
    return write_reward(folder, seed, text="style")


def write_tunejury(folder: Path, seed: int = 0) -> dict[str, Any]:
    """A small MuQ-MuLan with embeddings of the published length, and a head with the published names."""
    write_mulan(folder, styles=TUNEJURY_STYLES)
    torch.manual_seed(seed)
    head = TuneJuryHead()
    for name, tensor in head.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 2.0)
        elif tensor.is_floating_point():
            tensor.normal_(0.2 if name.endswith("weight") and tensor.ndim == 1 else 0.0, 0.2)
    save_file(head.state_dict(), folder / TUNEJURY_FILE)
    path = str(folder)
    return {"head": path, "weights": path, "tokenizer": path, "accept_noncommercial": True}


def write_artefacts(folder: Path, seed: int = 0) -> dict[str, Any]:
    """Drawn weights in the place of the published ones."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save({"model": drawn_state(DistillMos().state_dict(), seed)}, folder / "weights.pt")
    return {"weights": str(folder / "weights.pt")}


def write_pitch(folder: Path, seed: int = 0) -> dict[str, Any]:
    """Drawn weights in the place of the published ones."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(drawn_state(CrepeTiny().state_dict(), seed), folder / "weights.pt")
    return {"weights": str(folder / "weights.pt")}


def serve_reward(folder: Path, seed: int = 0, name: str = "reward") -> dict[str, Any]:
    """A server of a reward model of random weights, and the client's arguments for it."""
    scorer = SCORERS[name](**WEIGHTS[name](folder, seed))
    return {"url": start_server(name, scorer), "scorer": name}


def serve_prompt_reward(folder: Path, seed: int = 0) -> dict[str, Any]:
    """The same with the prompt's style beside the song's."""
    return serve_reward(folder, seed, name="prompt_reward")


WEIGHTS: dict[str, Callable[[Path, int], dict[str, Any]]] = {
    "songeval": write_songeval,
    "audiobox": write_audiobox,
    "reward": write_reward,
    "prompt_reward": write_prompt_reward,
    "tunejury": write_tunejury,
    "artefacts": write_artefacts,
    "pitch": write_pitch,
    "remote": serve_reward,
    "prompt_remote": serve_prompt_reward,
}
"""By scorer: what writes random weights into a folder, by a seed. Other scorers need no download."""


def build(name: str, folder: Path, seed: int = 0) -> Scorer:
    """The scorer of this name; its weights, if it needs any, are written into the folder once."""
    arguments = WEIGHTS[name](folder / f"{name}-{seed}", seed) if name in WEIGHTS else {}
    return SCORERS[name](**arguments)
