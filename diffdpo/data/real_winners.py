"""Which songs of a prepared folder win over a model's answers, and which crop of a song does."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from diffdpo.data.samples import SampleRow
from diffdpo.data.song_prompts import read_song_rows
from diffdpo.data.songs import SongRow
from diffdpo.errors import DataError
from diffdpo.inputs import digest
from diffdpo.randomness import draw_uniform
from diffdpo.types import Prompt

MIN_SHARE = 0.9
"""A song wins only if it is at least this share of its answers' length: otherwise length would be learned."""


@dataclass(frozen=True)
class RealWinners:
    """The songs of one split of a prepared folder, by id; songs that cannot win have a reason."""

    folder: Path
    split: str
    rows: Mapping[str, SongRow]

    def match(
        self, prompts: Iterable[Prompt], answers: Mapping[str, Sequence[SampleRow]]
    ) -> tuple[dict[str, str], dict[str, str]]:
        """By prompt the song whose caption it is, and for each prompt without a song the reason.

        The prompt has the song's id and text. `answers` are the model's songs by prompt. DataError for answers that
        follow a plan: a song of the data set follows none, and both members of a pair need the same condition.
        """
        songs, reasons = {}, {}
        for prompt in prompts:
            prompt_answers = answers.get(prompt.id, [])
            if plan := next((answer for answer in prompt_answers if answer.plan), None):
                raise DataError(
                    f"{plan.sample_id!r} follows a plan, which no song of {self.folder} does; sample the answers "
                    "with a model without a planner"
                )
            if reason := self._reason_against(prompt, prompt_answers):
                reasons[prompt.id] = reason
            else:
                songs[prompt.id] = prompt.id
        return songs, reasons

    def _reason_against(self, prompt: Prompt, answers: Sequence[SampleRow]) -> str:
        """Why no song wins for a prompt; "" if one does."""
        row = self.rows.get(prompt.id)
        if row is None:
            return f"{self.folder} has no song of this id"
        if row.error:
            return "its song could not be prepared"
        if row.split != self.split:
            return f"its song is of the split {row.split!r}, not {self.split!r}"
        if prompt.text is not None and prompt.text != row.text:
            return "the prompt's text is another than the song's"
        if row.frames < MIN_SHARE * max((answer.frames for answer in answers), default=0):
            return "its song is shorter than the answers; sample shorter ones (songs.max_s)"
        return ""

    def captions_without_answer(self, prompt_ids: Iterable[str]) -> list[str]:
        """Ids of the songs of the split that are no prompt's."""
        ids = set(prompt_ids)
        return sorted(
            name
            for name, row in self.rows.items()
            if row.split == self.split and not row.error and name not in ids
        )

    def start(self, song: str, answer: SampleRow, prompt: Prompt) -> int:
        """First frame of the crop of a song that wins over an answer."""
        return crop_start(self.rows[song].frames, answer, is_sung=bool(prompt.lyrics))

    @property
    def digest(self) -> str:
        """Identity of the songs that can win."""
        return digest(
            sorted(
                (row.id, row.frames, row.sha256, row.inputs, row.split, row.text)
                for row in self.rows.values()
                if not row.error
            )
        )


def open_winners(folder: Path, split: str) -> RealWinners:
    """The songs of a prepared folder as winners. DataError for a folder without songs of the split."""
    rows = read_song_rows(folder)
    if not any(row.split == split and not row.error for row in rows.values()):
        raise DataError(f"{folder}: holds no prepared songs of the split {split!r}; choose another split=…")
    return RealWinners(folder, split, rows)


def crop_start(frames: int, answer: SampleRow, *, is_sung: bool) -> int:
    """First frame of the crop of a song of `frames` that wins over an answer, and is as long as the answer.

    The crop is drawn once, uniformly over the song, and stands in the pairs table: a pair is always the same two
    sounds, so its margin is defined, cached errors of the reference hold, and a resumed run sees what it saw. The
    draw hangs on what the answer was made from: several answers, and answers of a later model, win against other
    crops. The answer to sung lyrics sings them from its first second, so such a song is cropped from its beginning.
    """
    room = max(0, frames - answer.frames)
    if is_sung or not room:
        return 0
    key = f"{answer.sample_id}|{answer.seed}|{answer.inputs}"
    return min(room, int(float(draw_uniform(0, [key], "real-winner-start")) * (room + 1)))
