"""Training of the style encoder: the audio tower on the teacher's captions, then the text tower on both."""

import json
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from diffdpo.encoders.descriptors import MEASURES
from diffdpo.encoders.style import MELS, TwoTowerStyle, spectral_profile, standard_scores
from diffdpo.progress import log
from tools.tiny.style.captions import Caption, failed_claims
from tools.tiny.style.minilm import WIDTH, MiniLM

SHARPNESS = 3.0
"""The loss of a segment's logit, in nats, for every claim of a caption that the segment fails."""
BATCH = 64
SCORE_NOISE, SCORE_DROPOUT, ROW_DROPOUT = 0.15, 0.1, 0.15
"""Augmentation of the scores: noise, the share of single scores set to 0, and of segments with all scores 0."""
TILT, WIDTHS, NOISE = 0.12, 0.12, 0.2
"""Standard deviations of a tilt of the spectrum and of the side's level, in powers of ten, and of white noise."""
BLUR = 0.5
"""Noise on the teacher's vectors in training, relative to their length, so that near vectors get one style."""


@dataclass(frozen=True)
class Segments:
    """The windows of a set of songs, called segments."""

    profiles: Float[Tensor, "variant segment feature"]
    """Spectral profiles of the full window, of its first half and of its second half."""
    scores: Float[np.ndarray, "segment measure"]
    song: np.ndarray
    """The index of each segment's song."""
    labels: list[list[str]]
    """The style words of each song."""


def labels_of(text: str) -> list[str]:
    """The comma-separated style words of a manifest's text."""
    return [word.strip() for word in text.split(",") if word.strip() and not word.strip().startswith("(")]


def read_songs(features: Path, split: str, thirds: dict[str, list[float]]) -> Segments:
    """The segments of all songs of a split, from the feature files of tools/tiny/build_style.py."""
    songs = [torch.load(path, weights_only=False) for path in sorted(features.glob("*.pt"))]
    songs = [song for song in songs if song["row"]["split"] == split]
    windows = [power for song in songs for power in song["mel"]]
    halves = [[w, w[:, : w.shape[1] // 2], w[:, w.shape[1] // 2 :]] for w in windows]
    return Segments(
        profiles=torch.stack([torch.stack([spectral_profile(w) for w in parts]) for parts in halves], 1),
        scores=standard_scores(np.concatenate([song["values"].numpy() for song in songs]), thirds),
        song=np.concatenate([np.full(len(song["mel"]), i) for i, song in enumerate(songs)]),
        labels=[labels_of(song["row"]["text"]) for song in songs],
    )


def agreement(
    labels: Sequence[Sequence[str]], vocabulary: Sequence[str], teacher: MiniLM
) -> Float[np.ndarray, "song word"]:
    """1 where a song has the word; else the similarity of the song's nearest word by the teacher, 0 to 1."""
    all_words = sorted({*vocabulary, *(word for words in labels for word in words)})
    vectors = teacher.embed_all([f"{word} music" for word in all_words])
    similarity = ((vectors @ vectors.T - 0.6) / 0.4).clamp(0, 1).numpy() ** 2
    np.fill_diagonal(similarity, 1.0)
    place = {word: i for i, word in enumerate(all_words)}
    columns = [place[word] for word in vocabulary]
    rows = [similarity[[place[word] for word in words]].max(0, initial=0.0)[columns] for words in labels]
    return np.stack(rows)


class Bank:
    """Segments with their captions, and the teacher's vectors of the captions."""

    def __init__(
        self,
        segments: Segments,
        captions: Sequence[Sequence[Caption]],
        vectors: dict[str, Tensor],
        teacher: MiniLM,
    ) -> None:
        """`captions` holds for each segment a partial caption and a full one."""
        self.segments, self.captions, self.vectors = segments, captions, vectors
        vocabulary = sorted({word for words in segments.labels for word in words})
        self.index = {word: i for i, word in enumerate(vocabulary)}
        self.words = agreement(segments.labels, vocabulary, teacher)[segments.song]
        self.places = [np.flatnonzero(segments.song == i).tolist() for i in range(len(segments.labels))]

    def targets(self, captions: Sequence[Caption], indices: np.ndarray) -> tuple[Tensor, Tensor]:
        """Soft targets [caption, segment]: over the segments for each caption, over captions for each segment."""
        failures = failed_claims(captions, self.segments.scores[indices], self.words[indices], self.index)
        claims = np.array([sum(map(abs, c.sides)) + len(c.words) for c in captions])[:, None]
        caption_logits = torch.from_numpy(-SHARPNESS * failures)
        segment_logits = torch.from_numpy(0.7 * claims - SHARPNESS * failures)
        return caption_logits.softmax(1).float(), segment_logits.softmax(0).float()

    def pick(self, draw: random.Random) -> tuple[np.ndarray, list[Caption]]:
        """BATCH segments of as many songs as possible; their partial captions, then their full captions."""
        count = len(self.places)
        songs = draw.sample(range(count), min(BATCH, count)) + draw.choices(
            range(count), k=max(0, BATCH - count)
        )
        indices = np.array([draw.choice(self.places[song]) for song in songs])
        return indices, [self.captions[i][kind] for kind in (0, 1) for i in indices]


class Teacher(nn.Module):
    """Maps vectors of the sentence encoder to styles, and features of the audio tower to measures."""

    def __init__(self, dim: int, audio_dim: int) -> None:
        super().__init__()
        self.head = nn.Sequential(nn.Linear(WIDTH, 512), nn.GELU(), nn.Dropout(0.4), nn.Linear(512, dim))
        self.measures = nn.Linear(audio_dim, len(MEASURES))
        self.log_scale = nn.Parameter(torch.tensor(math.log(10.0)))

    @property
    def scale(self) -> Tensor:
        return self.log_scale.exp().clamp(max=30.0)

    def styles(self, vectors: Float[Tensor, "text 384"]) -> Float[Tensor, "text style"]:
        vectors = vectors * math.sqrt(WIDTH)
        if self.training:
            vectors = vectors + BLUR * torch.randn_like(vectors)
        return F.normalize(self.head(vectors), dim=-1)


def augment(
    profiles: Float[Tensor, "segment feature"], spread: Float[Tensor, " feature"], noise: torch.Generator
) -> Float[Tensor, "segment feature"]:
    """Profiles with a random tilt of the spectrum, a random level of the side and a little noise."""
    tilt, side = torch.randn(2, len(profiles), 1, 1, generator=noise)
    mels = torch.linspace(-1, 1, MELS).expand(1, 2, MELS)
    shift = TILT * tilt * mels + WIDTHS * side * torch.tensor([0.0, 1.0])[None, :, None]
    noisy_profiles = profiles + NOISE * spread * torch.randn(profiles.shape, generator=noise)
    return torch.cat([noisy_profiles[:, : 2 * MELS] + shift.flatten(1), noisy_profiles[:, 2 * MELS :]], 1)


def soft_loss(logits: Tensor, targets: tuple[Tensor, Tensor]) -> Tensor:
    """Cross-entropy with soft targets, of captions over segments and of segments over captions."""
    segments_of_captions, captions_of_segments = targets
    return (
        -(segments_of_captions * logits.log_softmax(1)).sum(1).mean()
        - (captions_of_segments * logits.log_softmax(0)).sum(0).mean()
    )


def gap_loss(texts: Tensor, sounds: Tensor) -> Tensor:
    """The mean cosine distance of matching pairs plus twice the squared distance of the two means."""
    return (1 - (texts * sounds).sum(1)).mean() + 2.0 * (texts.mean(0) - sounds.mean(0)).square().sum()


def audio_step(
    bank: Bank, model: TwoTowerStyle, teacher: Teacher, draw: random.Random, noise: torch.Generator
) -> Tensor:
    """The loss of the audio tower and the teacher on one batch."""
    indices, captions = bank.pick(draw)
    variant = torch.randint(0, 3, (len(indices),), generator=noise)
    profiles = augment(bank.segments.profiles[variant, indices], model.audio.spread, noise)
    scores = torch.from_numpy(bank.segments.scores[indices]).float()
    noisy_scores = scores + SCORE_NOISE * torch.randn(scores.shape, generator=noise)
    noisy_scores = noisy_scores * (torch.rand(scores.shape, generator=noise) > SCORE_DROPOUT)
    noisy_scores = noisy_scores * (torch.rand(len(scores), 1, generator=noise) > ROW_DROPOUT)
    out, features = model.audio(profiles, noisy_scores)
    sounds = F.normalize(out, dim=-1)
    texts = teacher.styles(torch.stack([bank.vectors[c.text] for c in captions]))
    loss = soft_loss(teacher.scale * texts @ sounds.T, bank.targets(captions, indices))
    measure_loss = F.mse_loss(teacher.measures(features), scores)
    return loss + 0.5 * gap_loss(texts[len(indices) :], sounds) + 0.2 * measure_loss


@torch.no_grad()
def sounds_of(segments: Segments, model: TwoTowerStyle) -> Float[Tensor, "segment style"]:
    """Unit vectors of the full segments, before the mean is subtracted."""
    model.eval()
    return F.normalize(
        model.audio(segments.profiles[0], torch.from_numpy(segments.scores).float())[0], dim=-1
    )


@torch.no_grad()
def valid_loss(bank: Bank, sounds: Tensor, styles: dict[str, Tensor], scale: Tensor) -> float:
    """The contrastive loss on held-out songs, with the same batches in every call."""
    draw, losses = random.Random(1), []
    for _ in range(20):
        indices, captions = bank.pick(draw)
        texts = torch.stack([styles[c.text] for c in captions])
        losses.append(soft_loss(scale * texts @ sounds[indices].T, bank.targets(captions, indices)))
    return float(torch.stack(losses).mean())


def log_numbers(step: int, **numbers: float) -> None:
    log(json.dumps({"step": step, **{name: round(number, 4) for name, number in numbers.items()}}))


def optimiser(
    parameters: list[nn.Parameter], rate: float, decay: float, steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """AdamW and its schedule: a warm-up of 50 steps, then a cosine."""
    adam = torch.optim.AdamW(parameters, lr=rate, weight_decay=decay)

    def plan(step: int) -> float:
        return min(1.0, (step + 1) / 50) * 0.5 * (1 + math.cos(math.pi * step / steps)) + 0.01

    return adam, torch.optim.lr_scheduler.LambdaLR(adam, plan)


def step_optimiser(
    loss: Tensor, adam: torch.optim.Optimizer, plan: torch.optim.lr_scheduler.LRScheduler
) -> None:
    adam.zero_grad()
    loss.backward()
    for group in adam.param_groups:
        nn.utils.clip_grad_norm_(group["params"], 1.0)
    adam.step()
    plan.step()


def train_audio(train: Bank, valid: Bank, model: TwoTowerStyle, teacher: Teacher, steps: int) -> None:
    """Train the audio tower and the teacher; both end with the weights of the lowest loss on valid songs."""
    model.audio.shift.copy_(train.segments.profiles[0].mean(0))
    model.audio.spread.copy_(train.segments.profiles[0].std(0).clamp(min=0.02))
    adam, plan = optimiser([*model.audio.parameters(), *teacher.parameters()], 1e-3, 0.1, steps)
    draw, noise, best = random.Random(0), torch.Generator().manual_seed(0), math.inf
    weights: tuple[dict[str, Tensor], dict[str, Tensor]] = ({}, {})
    for step in range(steps):
        model.train()
        teacher.train()
        loss = audio_step(train, model, teacher, draw, noise)
        step_optimiser(loss, adam, plan)
        if (step + 1) % 100 == 0:
            teacher.eval()
            with torch.no_grad():
                styles = dict(
                    zip(valid.vectors, teacher.styles(torch.stack([*valid.vectors.values()])), strict=True)
                )
            validation_loss = valid_loss(
                valid, sounds_of(valid.segments, model), styles, teacher.scale.detach()
            )
            log_numbers(step + 1, train=loss.item(), valid=validation_loss, scale=teacher.scale.item())
            if validation_loss < best:
                best, weights = validation_loss, (_copy(model), _copy(teacher))
    model.load_state_dict(weights[0])
    teacher.load_state_dict(weights[1])


def _copy(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def train_text(
    train: Bank, broad: dict[str, Tensor], model: TwoTowerStyle, teacher: Teacher, steps: int
) -> None:
    """Train the text tower on the teacher's styles and vectors of texts, and on the targets of captions."""
    teacher.eval()
    sounds, scale = sounds_of(train.segments, model), teacher.scale.detach()
    vectors = {**broad, **train.vectors}
    with torch.no_grad():
        styles = dict(zip(vectors, teacher.styles(torch.stack([*vectors.values()])), strict=True))
    pupil = nn.Linear(model.config.text_dim, WIDTH)
    adam, plan = optimiser([*model.text.parameters(), *pupil.parameters()], 2e-3, 0.01, steps)
    draw, phrases = random.Random(0), list(broad)
    for step in range(steps):
        indices, captions = train.pick(draw)
        texts = [*(c.text for c in captions), *draw.sample(phrases, 2 * BATCH)]
        out, features = model.text(texts)
        text_styles = F.normalize(out, dim=-1)
        style_loss = (1 - (text_styles * torch.stack([styles[t] for t in texts])).sum(1)).mean()
        vector_loss = (
            1 - F.cosine_similarity(pupil(features), torch.stack([vectors[t] for t in texts]))
        ).mean()
        caption_styles = text_styles[: len(captions)]
        caption_loss = soft_loss(scale * caption_styles @ sounds[indices].T, train.targets(captions, indices))
        loss = (
            4 * style_loss
            + vector_loss
            + 0.5 * caption_loss
            + 0.5 * gap_loss(caption_styles[len(indices) :], sounds[indices])
        )
        step_optimiser(loss, adam, plan)
        if (step + 1) % 250 == 0:
            style, vector = 1 - style_loss.item(), 1 - vector_loss.item()
            log_numbers(step + 1, style=style, vector=vector, captions=caption_loss.item())


@torch.no_grad()
def centre(train: Bank, model: TwoTowerStyle) -> None:
    """Store the mean style of texts and that of sounds in the model, which subtracts them."""
    model.eval()
    texts = [caption.text for pair in train.captions for caption in pair]
    model.text_centre.copy_(F.normalize(model.text(texts)[0], dim=-1).mean(0))
    model.audio_centre.copy_(sounds_of(train.segments, model).mean(0))
