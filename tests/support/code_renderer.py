"""A renderer of a planner's codes whose velocity is a sum in closed form, for what must hold of plans.

v(x, t) = W x + table[code of the frame] + (1 + t) pull, where `pull` is of the prompt. Latents are frames of sound.
The planner writes a code for every fourth frame; its state decides which codes are likely.
"""

import hashlib
from dataclasses import dataclass

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.loaders import PeftAdapterMixin
from torch import nn

from diffdpo.errors import DataError
from diffdpo.flow import mask_from_frames
from diffdpo.models.base import LatentSpec, check_controls, check_part
from diffdpo.models.checkpoints import load_saved
from diffdpo.types import Clip, Plan, PlanText

HOP, RATE, CODES, CODE_FRAMES = 40, 4000, 6, 4


def seeded(text):
    return torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big"))


class CodeNetwork(ModelMixin, ConfigMixin, PeftAdapterMixin):
    """What is trained; row 0 of the table is for frames without a code."""

    _repeated_blocks = ("Linear",)

    @register_to_config
    def __init__(self, hop=HOP, codes=CODES):
        super().__init__()
        self.mix, self.table = nn.Linear(hop, hop, bias=False), nn.Embedding(1 + codes, hop)
        with torch.no_grad():
            self.mix.weight.copy_(0.3 * torch.randn(hop, hop, generator=seeded("mix")) / hop**0.5)
            self.table.weight.copy_(0.5 * torch.randn(1 + codes, hop, generator=seeded("table")))

    def forward(self, x, t, pull, codes, mask):
        hidden = self.mix(x.masked_fill(~mask[..., None], 0)) + self.table(codes)
        return (hidden + (1 + t)[:, None, None] * pull[:, None]).masked_fill(~mask[..., None], 0)


@dataclass(kw_only=True, eq=False)
class CodeModel:
    """A SongModel, and one that plans unless `state` is empty."""

    network: CodeNetwork
    state: str
    spec = LatentSpec(channels=HOP, frames_per_second=RATE / HOP, sample_rate=RATE, max_frames=400)
    lora_targets, parts, unconditional = ("mix",), ("pull", "codes"), ("pull",)
    fingerprint = "renderer-1"
    timed_lyrics = embeds_audio = False

    @property
    def planner(self):
        return f"planner-{self.state}"

    @property
    def plan(self):
        return self.write_codes if self.state else None

    def embed(self, prompt):
        check_controls(prompt, ())
        return {"pull": 0.3 * torch.randn(HOP, generator=seeded(prompt.text or ""))}

    def write_codes(self, prompt, frames, generator):
        likely = torch.rand(CODES, generator=seeded(f"{self.state}|{prompt.text}"))
        codes = torch.multinomial(likely, -(-frames // CODE_FRAMES), replacement=True, generator=generator)
        return Plan(planner=self.planner, tensors={"codes": codes.int()})

    def embed_plan(self, plan):
        if plan.planner != self.planner:
            raise DataError(f"codes of {plan.planner}, this model's planner is {self.planner}; sample again")
        return {"codes": (1 + plan.tensors["codes"]).repeat_interleave(CODE_FRAMES)}

    def condition(self, rows, length):
        codes = torch.zeros(len(rows), length, dtype=torch.long)
        for place, row in zip(codes, rows, strict=True):
            own = row.embedding.get("codes", place[:0])[row.first_frame :][: min(length, row.frames)]
            place[: len(own)] = own
        return {"pull": torch.stack([row.embedding["pull"] for row in rows]), "codes": codes}

    def without(self, condition, part, drop_mask):
        check_part(part, self.parts)
        drop_mask = drop_mask.to(condition["codes"].device)
        return {**condition, part: condition[part].masked_fill(drop_mask[:, None], 0)}

    def velocity(self, network, x, t, condition, frames):
        mask = mask_from_frames(frames.to(x.device), x.shape[1])
        return network(x, t.to(x), condition["pull"].to(x), condition["codes"], mask)

    def encode(self, clip, generator=None):
        samples = torch.from_numpy(clip.samples).mean(0)
        return nn.functional.pad(samples, (0, -len(samples) % HOP)).reshape(-1, HOP)

    def decode(self, latents, first_frame=0):
        return Clip(samples=(latents.float().cpu().flatten() / 8)[None].numpy(), sample_rate=RATE)

    def place(self, part, device):
        pass


@dataclass(frozen=True)
class CodeRenderer:
    """What a configuration says about the model."""

    network: str = ""
    state: str = "first"
    """The state of the planner; without one songs follow no codes."""

    def load(self):
        network = load_saved(CodeNetwork, self.network) if self.network else CodeNetwork()
        return CodeModel(network=network.eval(), state=self.state)

    def plan_text(self, prompt, plan):
        codes = "".join(f"<|audio_code_{code}|>" for code in plan.tensors["codes"].tolist())
        return PlanText(prompt=f"{prompt.text}, {prompt.duration_s:g} s\n", completion=codes)
