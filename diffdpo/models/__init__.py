"""Song models. A new one is a file here and a line in MODELS."""

from diffdpo.models.diffrhythm.presets import DiffRhythmCheckpoint
from diffdpo.models.tiny import Tiny
from diffdpo.registry import Table

MODELS: Table[type] = Table(
    "model",
    {
        "tiny": Tiny,
        "diffrhythm": DiffRhythmCheckpoint,
    },
)
