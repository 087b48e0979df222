"""The worker of the verb `score`: batches of audio files to values, in this process or in another one."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from diffdpo import audio
from diffdpo.data.scores import Grid
from diffdpo.errors import DataError, UserError
from diffdpo.faults import song_fault
from diffdpo.scorers.base import Scorer
from diffdpo.scorers.engine import AxisValues, ScoreKey, compute_scores, fingerprints
from diffdpo.types import Clip, Prompt


@dataclass(frozen=True)
class AudioFile:
    """A file of generated audio, with the prompts that it was generated for, by their keys."""

    sha256: str
    path: Path
    prompts: dict[str, Prompt] = field(default_factory=dict)
    seconds: float = 0.0
    """Length that was asked for; files of similar length are scored together."""


@dataclass(frozen=True)
class FileKeys:
    """An audio file and the keys of its values that are to be computed."""

    audio_file: AudioFile
    keys: Sequence[ScoreKey]


@dataclass(frozen=True)
class FileScores:
    """The values of an audio file for its keys, or the reason why there are none."""

    audio_file: AudioFile
    seconds: float = 0.0
    """Length of its sound."""
    values: Mapping[ScoreKey, AxisValues] = field(default_factory=dict)
    fault: str = ""


@dataclass(frozen=True)
class ScoringFactory:
    """Makes the worker of a run: a function from a batch of files to their scores."""

    scorers: Mapping[str, Scorer]
    grid: Grid | None
    versions: Mapping[str, str]
    """The fingerprint of each scorer in the process that writes the tables."""

    @contextmanager
    def __call__(self) -> Iterator[Callable[[Sequence[FileKeys]], list[FileScores]]]:
        for name, version in fingerprints(self.scorers).items():
            if self.versions[name] != version:
                raise DataError(
                    f"scorer {name!r}: a worker has other code or weights of it than this process; install the "
                    "same version everywhere"
                )
        yield self.score_batch

    def score_batch(self, batch: Sequence[FileKeys]) -> list[FileScores]:
        """The scores of some files, with the fault of each that cannot be scored.

        A scorer that cannot work at all, without its weights or licence, is a UserError and no song's fault.
        """
        scores: list[FileScores] = []
        clips: list[Clip] = []
        readable: list[FileKeys] = []
        for entry in batch:
            try:
                clips.append(read_sound(entry.audio_file))
                readable.append(entry)
            except Exception as error:  # whatever a file brings about
                scores.append(_fault(entry, error))
        try:
            return scores + self._score_clips(readable, clips)
        except UserError:
            raise
        except Exception as batch_error:  # of one song: each alone shows which
            song_fault(batch_error)
        for entry, clip in zip(readable, clips, strict=True):
            try:
                scores += self._score_clips([entry], [clip])
            except UserError:
                raise
            except Exception as error:
                scores.append(_fault(entry, error))
        return scores

    def _score_clips(self, batch: Sequence[FileKeys], clips: Sequence[Clip]) -> list[FileScores]:
        prompts = {key: prompt for entry in batch for key, prompt in entry.audio_file.prompts.items()}
        keys = [entry.keys for entry in batch]
        values = compute_scores(clips, keys, self.scorers, prompts=prompts, grid=self.grid)
        return [
            FileScores(entry.audio_file, clip.seconds, by_key)
            for entry, clip, by_key in zip(batch, clips, values, strict=True)
        ]


def read_sound(audio_file: AudioFile) -> Clip:
    """The sound of a file; DataError unless it is the one that was sampled."""
    clip = audio.read(audio_file.path, with_fold=False)
    if audio.pcm_sha256(clip.samples, clip.sample_rate) != audio_file.sha256:
        raise DataError(f"{audio_file.path}: its sound is not the one in the table; sample it again")
    return clip


def _fault(entry: FileKeys, error: Exception) -> FileScores:
    reason = song_fault(error)
    place = "" if str(entry.audio_file.path) in reason else f"{entry.audio_file.path}: "
    return FileScores(entry.audio_file, fault=f"{place}{reason}")
