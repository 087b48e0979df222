"""The configuration of an ACE-Step 1.5 checkpoint, which loads as a SongModel."""

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from diffdpo.config_paths import PATH, PATH_LIST
from diffdpo.errors import CheckpointError
from diffdpo.hub import find_folder, fingerprint_of
from diffdpo.models.adapter_config import AdapterConfig

if TYPE_CHECKING:
    from diffdpo.models.ace_step.adapter import AceStep
    from diffdpo.models.ace_step.layouts import AceStepFolder
    from diffdpo.models.ace_step.network import AceStepTransformer1DModel
    from diffdpo.types import Embedding, Plan, PlanText, Prompt

ACE_STEP_EMBEDDING_FORMAT = "ace-step-1"
"""Version of the embeddings, part of their fingerprint: raise it whenever they change."""
TURBO_STEPS, TURBO_SHIFT = 8, 3.0
ACE_STEP_RATE, ACE_STEP_HOP = 48000, 1920
"""Samples a second and samples a latent frame of the published VAE."""
SKETCH_TOKENS = 256
"""Tokens of the text in an estimate of memory; lyrics have twice as many."""
Variant = Literal["", "base", "sft", "turbo"]


@dataclass(frozen=True)
class AceStepCheckpoint:
    """An ACE-Step 1.5 network, published or of ours, with its encoders, VAE and planner.

    Text encoder and VAE are looked for where the checkpoint's layout has them.
    """

    checkpoint: str = field(default="", metadata=PATH)
    """A folder in the original layout (`checkpoints/acestep-v15-base`, with `vae` and `Qwen3-Embedding-0.6B` beside
    it) or in diffusers' (with `transformer`, `condition_encoder`, …); or a hub id of either, OWNER/NAME or
    OWNER/NAME/FOLDER (ACE-Step/Ace-Step1.5/acestep-v15-turbo)."""
    variant: Variant = ""
    """The variant that the checkpoint has to be: base, sft or turbo; another one is refused. Empty takes any."""
    network: str = field(default="", metadata=PATH)
    """Folder with other network weights, such as the `export` of a training run."""
    adapter: str | list[str] = field(default="", metadata=PATH_LIST)
    """Folder with a LoRA adapter, merged into the network on loading; or several, as a list or comma-separated,
    each with an optional weight: `a/export@0.5,b/export@0.5`."""
    adapters: list[AdapterConfig] = field(default_factory=list)
    """More adapters, each {path, strength, interval, layers}: acting at some times t, or in some layers."""
    vae: str = field(default="", metadata=PATH)
    """Folder or hub id of the VAE (ACE-Step/Ace-Step1.5/vae), where it is not with the checkpoint."""
    text_encoder: str = field(default="", metadata=PATH)
    """Folder or hub id of Qwen3-Embedding-0.6B with its tokenizer, where it is not with the checkpoint."""
    planner: str = field(default="", metadata=PATH)
    """Folder or hub id of a 5 Hz planner (acestep-5Hz-lm-1.7B): each candidate follows audio codes of its own,
    which are stored with it. Without one, songs follow no codes."""

    def __post_init__(self) -> None:
        if not self.checkpoint:
            raise ValueError("the model needs a checkpoint, such as checkpoint=checkpoints/acestep-v15-base")

    def load(self) -> "AceStep":
        from diffdpo.codecs.oobleck import load_vae
        from diffdpo.models.ace_step.adapter import AceStep
        from diffdpo.models.ace_step.encoders import load_encoders
        from diffdpo.models.ace_step.layouts import NULL, SILENCE, ace_step_folder

        folder = ace_step_folder(self.checkpoint)
        network = self._load_network(folder)
        condition = folder.read("condition_encoder")
        if NULL not in condition.state:
            raise CheckpointError(f"{condition.location}: holds no {NULL}; fetch the checkpoint again")
        vae_folder = self._vae(folder)
        vae = load_vae(str(vae_folder)) if vae_folder.is_dir() else None
        channels = network.config.audio_acoustic_hidden_dim
        if vae is not None and vae.channels != channels:
            raise CheckpointError(
                f"{vae_folder}: a VAE of {vae.channels} channels, the network has {channels}"
            )
        is_turbo = variant_of(network.config) == "turbo"
        rate = vae.frames_per_second if vae else ACE_STEP_RATE / ACE_STEP_HOP
        text, tokenizer = self._text_encoder(folder)
        model = AceStep(
            network=network,
            spec=latent_spec(channels, rate, vae, is_turbo=is_turbo),
            null=condition.state[NULL].flatten().float().clone(),
            silence=condition.state[SILENCE][0].float().clone(),
            identify=partial(self._fingerprint, folder, text, tokenizer),
            load_encoders=partial(load_encoders, folder, text, tokenizer),
            identify_tokenizer=partial(
                fingerprint_of,
                ACE_STEP_EMBEDDING_FORMAT,
                folder.files("audio_tokenizer"),
                folder.files("audio_token_detokenizer"),
            ),
            codec=vae,
            unconditional=() if is_turbo else ("prompt",),
        )
        return self._with_planner(model, folder) if self.planner else model

    def plan_text(self, prompt: "Prompt", plan: "Plan") -> "PlanText":
        """What the planner read for a candidate's plan, and the codes as it writes them."""
        from diffdpo.models.ace_step.planner import code_text

        return code_text(prompt, plan)

    def sketch(self) -> "tuple[AceStep, Embedding]":
        """The model with its network on the meta device, and the embedding of a prompt with 256 tokens of text and
        512 of lyrics. Of a checkpoint that is there only sizes are read; else they are the published 2 B model's.
        """
        import torch

        from diffdpo.models.ace_step.adapter import AceStep
        from diffdpo.models.ace_step.layouts import ace_step_folder
        from diffdpo.models.ace_step.network import AceStepTransformer1DModel
        from diffdpo.models.ace_step.text import TASKS

        is_here = Path(self.checkpoint).is_dir()
        config = dict(ace_step_folder(self.checkpoint).read("transformer").config) if is_here else {}
        with torch.device("meta"):
            network: AceStepTransformer1DModel = AceStepTransformer1DModel.from_config(config)
        channels = network.config.audio_acoustic_hidden_dim
        width = network.config.encoder_hidden_size or network.config.hidden_size
        is_turbo = variant_of(network.config) == "turbo" or self.variant == "turbo"
        model = AceStep(
            network=network,
            spec=latent_spec(channels, ACE_STEP_RATE / ACE_STEP_HOP, None, is_turbo=is_turbo),
            null=torch.zeros(width),
            silence=torch.zeros(1, channels),
            identify=lambda: "",
            unconditional=() if is_turbo else ("prompt",),
        )
        embedding = {
            "head": torch.zeros(SKETCH_TOKENS * 2, width),
            "text": torch.zeros(len(TASKS), SKETCH_TOKENS, width),
            "text_tokens": torch.full((len(TASKS),), SKETCH_TOKENS),
        }
        return model, embedding

    def _load_network(self, folder: "AceStepFolder") -> "AceStepTransformer1DModel":
        from diffdpo.models.ace_step.encoders import build_from_weights
        from diffdpo.models.ace_step.network import AceStepTransformer1DModel
        from diffdpo.models.checkpoints import load_saved
        from diffdpo.models.timed_adapters import apply_adapters

        if self.network:
            network = load_saved(AceStepTransformer1DModel, self.network)
        else:
            network = build_from_weights(
                AceStepTransformer1DModel, folder.read("transformer")
            ).requires_grad_(True)
        variant = variant_of(network.config)
        if self.variant and variant and variant != self.variant:
            raise CheckpointError(
                f"{self.network or self.checkpoint}: weights of ACE-Step {variant}, the configuration is for "
                f"{self.variant}; give {self.variant} weights, or set model.args.variant={variant} with the preset "
                f"of {variant}"
            )
        apply_adapters(network, self.adapter, self.adapters)
        model: AceStepTransformer1DModel = network.eval()
        return model

    def _with_planner(self, model: "AceStep", folder: "AceStepFolder") -> "AceStep":
        from diffdpo.models.ace_step.layouts import ACE_STEP
        from diffdpo.models.ace_step.planner import load_planner

        if not folder.has("audio_token_detokenizer"):
            raise CheckpointError(
                f"{self.checkpoint}: holds no audio tokenizer, so its songs cannot follow a planner; leave "
                "model.args.planner out, or convert the checkpoint again"
            )
        path = find_folder(ACE_STEP, self.planner)
        quantizer, detokenizer = (
            folder.read(part).config for part in ("audio_tokenizer", "audio_token_detokenizer")
        )
        model.codes_per_second = model.spec.frames_per_second / detokenizer.get("pool_window_size", 5)
        codebook = 1
        for level in quantizer.get("fsq_input_levels") or (8, 8, 8, 5, 5, 5):
            codebook *= level
        model.load_planner = partial(load_planner, path, codebook)
        files = [path / "config.json", *sorted(path.glob("*.safetensors")), path / "tokenizer.json"]
        model.identify_planner = partial(
            fingerprint_of, ACE_STEP_EMBEDDING_FORMAT, files, folder.files("audio_token_detokenizer")
        )
        model.plan = model.make_plan
        return model

    def _vae(self, folder: "AceStepFolder") -> Path:
        from diffdpo.models.ace_step.layouts import ACE_STEP

        root = folder.folder.parent if folder.is_original else folder.folder
        return find_folder(ACE_STEP, self.vae) if self.vae else root / "vae"

    def _text_encoder(self, folder: "AceStepFolder") -> tuple[Path, Path]:
        """The folders of the text encoder and of its tokenizer."""
        from diffdpo.models.ace_step.layouts import ACE_STEP, TEXT_ENCODER

        if self.text_encoder:
            path = find_folder(ACE_STEP, self.text_encoder)
            return path, path
        if folder.is_original:
            return folder.folder.parent / TEXT_ENCODER, folder.folder.parent / TEXT_ENCODER
        return folder.folder / "text_encoder", folder.folder / "tokenizer"

    def _fingerprint(self, folder: "AceStepFolder", text: Path, tokenizer: Path) -> str:
        return fingerprint_of(
            ACE_STEP_EMBEDDING_FORMAT,
            folder.files("condition_encoder"),
            sorted(text.glob("*.safetensors")),
            [tokenizer / "tokenizer.json"],
        )


def latent_spec(channels: int, rate: float, vae: Any, *, is_turbo: bool) -> Any:
    """The latents of a checkpoint: 25 frames a second, rounded up; eight times for the turbo."""
    from diffdpo.models.ace_step.text import MAX_SECONDS
    from diffdpo.models.base import LatentSpec

    return LatentSpec(
        channels=channels,
        frames_per_second=rate,
        sample_rate=vae.sample_rate if vae else ACE_STEP_RATE,
        max_frames=int(MAX_SECONDS * rate),
        receptive_frames=vae.chunks.context if vae else 0,
        rounding="up",
        times=turbo_times() if is_turbo else None,
        unconditional_context=True,
    )


def turbo_times() -> tuple[float, ...]:
    """The times of the turbo, which was distilled for no others: eight even steps under a shift of 3."""
    even = [1 - step / TURBO_STEPS for step in range(TURBO_STEPS + 1)]
    return tuple(TURBO_SHIFT * t / (1 + (TURBO_SHIFT - 1) * t) for t in even)


def variant_of(config: Any) -> str:
    """base, sft or turbo, as a network's configuration says; "" where it does not."""
    version = str(config.get("model_version") or "").lower()
    if config.get("is_turbo") or "turbo" in version:
        return "turbo"
    return next((name for name in ("sft", "base") if name in version), "")
