"""Scorers: audio in, numbers out, bigger is better. A new one is a file here and a line in SCORERS.

A scorer's file imports numpy at its top and everything heavier (librosa, scipy, torchaudio, encoders) inside the
functions that compute: commands that only check a scorer's name and arguments start without them.
"""

from diffdpo.registry import Table
from diffdpo.scorers.adherence import Adherence
from diffdpo.scorers.artefacts import Artefacts
from diffdpo.scorers.audiobox import Audiobox
from diffdpo.scorers.base import Scorer
from diffdpo.scorers.beats import BeatRhythm
from diffdpo.scorers.clarity import Clarity
from diffdpo.scorers.critic import Critic
from diffdpo.scorers.form import FormOrder
from diffdpo.scorers.harmony import Harmony
from diffdpo.scorers.musicnn import MusicnnTypicality
from diffdpo.scorers.notes import NoteHarmony
from diffdpo.scorers.order import StructureOrder
from diffdpo.scorers.pitch import PitchTuning
from diffdpo.scorers.production import Production
from diffdpo.scorers.remote import PromptRemote, Remote
from diffdpo.scorers.reward import PromptVoteReward, VoteReward
from diffdpo.scorers.rhythm import Rhythm
from diffdpo.scorers.second_critic import SecondCritic
from diffdpo.scorers.songeval import SongEval
from diffdpo.scorers.structure import Structure
from diffdpo.scorers.tags import Tags
from diffdpo.scorers.tunejury import TuneJury

SCORERS: Table[type[Scorer]] = Table(
    "scorer",
    {
        "harmony": Harmony,
        "rhythm": Rhythm,
        "structure": Structure,
        "order": StructureOrder,
        "production": Production,
        "critic": Critic,
        "clarity": Clarity,
        "musicnn": MusicnnTypicality,
        "tags": Tags,
        "notes": NoteHarmony,
        "beats": BeatRhythm,
        "form": FormOrder,
        "second_critic": SecondCritic,
        "artefacts": Artefacts,
        "pitch": PitchTuning,
        "adherence": Adherence,
        "songeval": SongEval,
        "audiobox": Audiobox,
        "reward": VoteReward,
        "prompt_reward": PromptVoteReward,
        "tunejury": TuneJury,
        "remote": Remote,
        "prompt_remote": PromptRemote,
    },
)

DEFAULT_SCORERS = ("harmony", "rhythm", "structure", "production", "musicnn", "tags")
"""The scorers that need no download; the last two are judges. `adherence` has to be asked for."""
