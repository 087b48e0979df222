"""Songs with two scores, by hand and by hypothesis."""

from hypothesis import strategies as st

from diffdpo.mining import Candidate, MinedPairs, Rule, group_by_prompt, to_candidates

AXES = ("melody", "sound")


def candidate(prompt, name, melody, sound):
    return Candidate(
        prompt_id=prompt, group=prompt, sample_id=name, scores={"melody": melody, "sound": sound}
    )


def prompt(**songs):
    """The candidates of a prompt 'p': name=(melody, sound)."""
    return [candidate("p", name, *scores) for name, scores in songs.items()]


def apply(rule: Rule, songs, axes=AXES) -> MinedPairs:
    """What a rule mines from songs."""
    return rule(prompts_of(songs, axes), axes)


def prompts_of(songs, axes=AXES):
    """Songs by prompt, as rules see them."""
    return group_by_prompt(to_candidates(songs, axes))


def triples(result):
    """(winner, loser, axis) of each pair."""
    return [(pair.winner, pair.loser, pair.axis) for pair in result.pairs]


score = st.floats(-5, 5)
integer_scores = st.integers(-4, 4).map(float)  # with ties


def songs(score, prompts="ab", max_size=12):
    """Lists of candidates of a few prompts."""
    rows = st.lists(st.tuples(st.sampled_from(prompts), score, score), max_size=max_size)
    return rows.map(lambda rows: [candidate(p, f"{p}{i:02d}", m, s) for i, (p, m, s) in enumerate(rows)])
