"""Song models by name. A new one is a file here and a line in MODELS, or an entry point in another package.

The values are frozen dataclasses of what a configuration says; their `load()` imports networks and encoders.
"""

from diffdpo.models.ace_step.checkpoint import AceStepCheckpoint
from diffdpo.models.diffrhythm.checkpoint import DiffRhythmCheckpoint
from diffdpo.models.stable_audio3.checkpoint import StableAudio3Checkpoint
from diffdpo.models.stable_audio_open.checkpoint import StableAudioOpenCheckpoint
from diffdpo.models.tiny import Tiny
from diffdpo.registry import Table

MODELS: Table[type] = Table(
    "model",
    {
        "tiny": Tiny,
        "diffrhythm": DiffRhythmCheckpoint,
        "ace_step": AceStepCheckpoint,
        "stable_audio_3": StableAudio3Checkpoint,
        "stable_audio_open": StableAudioOpenCheckpoint,
    },
)
