"""Song models. A new one is a file here and a line in MODELS."""

from diffdpo.models.diffrhythm.presets import DiffRhythmCheckpoint
from diffdpo.models.tiny import Tiny

MODELS: dict[str, type] = {
    "tiny": Tiny,
    "diffrhythm": DiffRhythmCheckpoint,
}
