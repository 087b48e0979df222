"""Lyrics on the frame axis."""

import torch

from diffdpo.models.diffrhythm.lyrics import parse_lrc, place


def test_every_line_is_kept_or_explained():
    lrc = parse_lrc(
        "[ar:Us]\n[00:10.00]one\n[01:02.5]two\nthree\n[00:20.00]\n[00:05.00]zero\n", duration_s=60.0
    )
    assert lrc.lines == ((5.0, "zero"), (10.0, "one"))
    assert [warning.split(":")[0] for warning in lrc.warnings] == [
        "line 3",
        "line 4",
        "line 5",
        "lines are not in order of time; sorted",
    ]


def test_tokens_stand_from_the_start_of_their_line_one_a_frame():
    tokens = place([(0.5, (7, 8, 9)), (2.0, (5,))], 30, 10.0)
    assert tokens.nonzero().flatten().tolist() == [5, 6, 7, 20]
    assert tokens[5:8].tolist() == [7, 8, 9]


def test_a_line_never_overwrites_the_one_before():
    tokens = place([(0.0, (1, 2, 3, 4)), (0.2, (9,))], 10, 10.0)
    assert tokens.tolist() == [1, 2, 3, 4, 9, 0, 0, 0, 0, 0]


def test_a_line_at_the_end_is_cut_at_the_end_of_the_song_only():
    assert place([(0.8, (1, 2, 3))], 10, 10.0).tolist()[-2:] == [1, 2]
    assert torch.equal(place([], 4, 10.0), torch.zeros(4, dtype=torch.int64))
