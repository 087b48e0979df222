"""Audio of validation songs in trackers: tensorboard and Weights & Biases; other trackers get numbers alone."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from diffdpo.types import Clip


def log_audio(trackers: Sequence[Any], clips: Mapping[str, Clip], step: int) -> None:
    """Log clips by their tags. To be called on the first process, whose trackers write."""
    for tracker in trackers:
        if tracker.name == "tensorboard":
            for tag, clip in clips.items():  # one channel is what it takes
                sound = torch.from_numpy(clip.samples).mean(0, keepdim=True)
                tracker.writer.add_audio(tag, sound, step, sample_rate=clip.sample_rate)
            tracker.writer.flush()
        elif tracker.name == "wandb":
            import wandb

            players = {
                tag: wandb.Audio(clip.samples.T, sample_rate=clip.sample_rate) for tag, clip in clips.items()
            }
            tracker.log(players, step=step)
