"""Songs of samples folders for `evaluate`: in pairs with their scores, candidates, those that the page plays."""

from collections.abc import Sequence
from pathlib import Path

from diffdpo import audio
from diffdpo.data import tables
from diffdpo.data.pairs import PAIRS
from diffdpo.data.ratings import RATINGS
from diffdpo.data.refresh import prompt_inputs
from diffdpo.data.samples import Samples, open_samples
from diffdpo.data.song_scores import Scores, join_scores
from diffdpo.errors import DataError
from diffdpo.evaluation.effects import PairedSample, pair_rows
from diffdpo.mining import Candidate
from diffdpo.report.cases import choose_cases
from diffdpo.report.page import Comparison


def pair_samples(baseline: Samples, aligned: Samples, scores: Scores) -> list[PairedSample]:
    """The songs that both folders have, in pairs. DataError for other prompts, or songs without scores."""
    rows = pair_rows(baseline.rows(), aligned.rows())
    contents = [prompt_inputs(side.prompts(), {}, "") for side in (baseline, aligned)]
    for song, _ in rows:
        if contents[0].get(song.prompt_id) != contents[1].get(song.prompt_id):
            raise DataError(
                f"{aligned.folder}: the prompt {song.prompt_id!r} is another than in {baseline.folder}; sample "
                "both models with the same prompts"
            )
    values = [join_scores(scores, side, side.prompts()).by_song() for side in (baseline, aligned)]
    missing_ids = [song.sample_id for song, _ in rows for side in values if song.sample_id not in side]
    if missing_ids:
        raise DataError(
            f"{missing_ids[0]} and {len(missing_ids) - 1} more songs have no scores; run `diffdpo score` first"
        )
    return [
        PairedSample(
            sample_id=song.sample_id,
            prompt_id=song.prompt_id,
            group=song.group,
            baseline=values[0][song.sample_id],
            aligned=values[1][song.sample_id],
        )
        for song, _ in rows
    ]


def stored_candidates(folder: str, scores: Scores) -> list[Candidate]:
    """The songs of a folder that have scores; none without a folder."""
    if not folder:
        return []
    samples = open_samples(folder)
    values = join_scores(scores, samples, samples.prompts()).by_song()
    return [
        Candidate(
            prompt_id=row.prompt_id, group=row.group, sample_id=row.sample_id, scores=values[row.sample_id]
        )
        for row in samples.rows()
        if row.sample_id in values
    ]


def check_not_mined(pairs: str, samples: Samples) -> None:
    """DataError if a prompt group of the samples was mined: the comparison would prove nothing."""
    if not pairs:
        return
    folder = Path(pairs)
    mined_groups = {
        group for spec in (PAIRS, RATINGS) for (group,) in tables.read_distinct(folder, spec, ("group",))
    }
    overlap = sorted(mined_groups & {row.group for row in samples.rows()})
    if overlap:
        raise DataError(
            f"{samples.folder}: the prompt group {overlap[0]!r} was mined for training; evaluate on other prompts"
        )


def chosen_comparisons(
    pairs: Sequence[PairedSample],
    changes: Sequence[float],
    baseline: Samples,
    aligned: Samples,
    count: int,
) -> list[Comparison]:
    """Up to `count` pairs with their sound: the worst, the median and the best by their change."""
    prompts = {prompt.id: prompt for prompt in baseline.prompts()}
    comparisons = []
    for place, case in choose_cases(changes, count):
        pair = pairs[place]
        prompt = prompts[pair.prompt_id]
        comparisons.append(
            Comparison(
                prompt_id=pair.prompt_id,
                prompt_text=prompt.text or str(prompt.style_audio or prompt.id),
                sample_id=pair.sample_id,
                baseline=audio.read(baseline.audio(pair.sample_id)),
                aligned=audio.read(aligned.audio(pair.sample_id)),
                baseline_scores=pair.baseline,
                aligned_scores=pair.aligned,
                standardised_change=changes[place],
                case=case,
            )
        )
    return comparisons
