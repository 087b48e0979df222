"""Utilities: closed forms, what they may not change, and the table of real songs that they are aimed at."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffdpo import api
from diffdpo.config import build_config
from diffdpo.data import tables
from diffdpo.data.pairs import PAIRS
from diffdpo.data.ratings import RATINGS
from diffdpo.data.samples import SAMPLES, SampleRow
from diffdpo.data.scores import SCORES, score_rows
from diffdpo.errors import ConfigError, DataError
from diffdpo.evaluation.real_songs import read_table
from diffdpo.mining import (
    AXIS_UTILITIES,
    RULES,
    Candidate,
    Linear,
    Saturating,
    build_reference,
    mine_candidates,
    read_reference,
    to_candidates,
    write_reference,
)
from diffdpo.mining.reference import ALL_STYLES, PERCENTILES, REFERENCE_PATH, split_styles
from diffdpo.mining.utilities import saturate
from diffdpo.parts import build_scorers, build_utility
from diffdpo.recipes import mine
from diffdpo.recipes.mine import MineRun
from diffdpo.registry import Choice
from diffdpo.scorers.engine import fingerprints
from diffdpo.types import Prompt, Row

AXIS = "harmony.key"
values = st.lists(st.floats(-5, 5), min_size=2, max_size=12)


def candidates(scores, prompts=None):
    songs = [
        Candidate(prompt_id=prompt, group=prompt, sample_id=f"{prompt}.{place:03d}", scores={AXIS: score})
        for place, (score, prompt) in enumerate(zip(scores, prompts or ["p"] * len(scores), strict=True))
    ]
    return to_candidates(songs, (AXIS,))


@pytest.fixture
def reference(tmp_path):
    """0 to 100 in all styles; rock lies in the lower half, harp has too few windows."""
    numbers = np.arange(101.0)[:, None]
    styles = [("rock",) if number <= 50 else ("harp",) if number > 90 else () for number in range(101)]
    path = tmp_path / "reference.json"
    write_reference(path, build_reference(numbers, [AXIS], styles, {"harmony": "v"}))
    return path


def test_the_closed_form_of_saturation():
    inputs = np.array([-3.0, 0.0, 1.0, 2.0, 2.5, 3.0, 9.0])
    assert saturate(inputs, 1.0, 3.0).tolist() == [-3.0, 0.0, 1.0, 1.75, 1.9375, 2.0, 2.0]
    slope = np.diff(saturate(np.array([1.0, 1.0 + 1e-6, 3.0 - 1e-6, 3.0]), 1.0, 3.0))[::2] / 1e-6
    assert slope == pytest.approx([1, 0], abs=1e-5)
    assert saturate(np.array([0.5, 1.0, 7.0]), 1.0, 1.0).tolist() == [0.5, 1.0, 1.0]
    assert np.isnan(saturate(np.array([np.nan]), 1.0, 3.0)).all()


@given(values, st.floats(-2, 2), st.floats(0, 3))
def test_saturation_keeps_order_is_concave_and_bounded(inputs, knee, width):
    x = np.sort(np.array(inputs))
    u = saturate(x, knee, knee + width)
    assert (np.diff(u) >= 0).all()
    assert (np.diff(u) <= np.diff(x) + 1e-12).all()
    assert (u <= knee + width / 2 + 1e-12).all()
    assert (u[x <= knee] == x[x <= knee]).all()
    below = x[x < knee + 0.99 * width]
    apart = np.diff(below) > 1e-6
    assert (np.diff(saturate(below, knee, knee + width))[apart] > 0).all()


def test_songs_above_the_band_are_worth_the_same_and_below_keep_their_order(reference):
    columns = candidates([10.0, 40.0, 60.0, 85.0, 95.0, 400.0])
    utilities = Saturating(reference=str(reference))(columns, {"p": "anything"})[:, 0]
    assert utilities[:2].tolist() == [10.0, 40.0]
    assert (np.diff(utilities[:5]) > 0).all()
    assert utilities[4] == utilities[5] == 70.0
    rated = mine_candidates(columns, None, None, utilities[:, None]).ratings
    assert rated["p.004"] == rated["p.005"] > rated["p.003"] > rated["p.000"]


def test_margins_are_in_standard_deviations_of_the_scores(reference):
    columns = candidates([0.0, 20.0, 40.0, 200.0])
    utilities = Saturating(reference=str(reference))(columns, {})
    rule = RULES["best_versus_worst"](min_margin=0.1)
    (pair,) = mine_candidates(columns, rule, None, utilities).pairs
    assert (pair.winner, pair.loser) == ("p.003", "p.000")
    assert pair.margins[AXIS] == pytest.approx(70.0 / np.std([0.0, 20.0, 40.0, 200.0]))


def test_where_all_candidates_lie_above_the_band_there_is_nothing_to_prefer(reference):
    columns = candidates([91.0, 150.0, 1e6])
    result = mine_candidates(
        columns, RULES["best_versus_worst"](), None, Saturating(reference=str(reference))(columns, {})
    )
    assert result.pairs == ()
    assert set(result.ratings.values()) == {0.0}
    assert "tied" in result.reasons["p"]


@pytest.mark.parametrize("rule", [name for name in RULES.entries if name not in ("cross_pair", "union")])
def test_linear_changes_no_bit(rule):
    rng = np.random.default_rng(0)
    columns = candidates(rng.standard_normal(60).tolist(), [f"p{place % 7}" for place in range(60)])
    assert mine_candidates(columns, RULES[rule]()) == mine_candidates(
        columns, RULES[rule](), None, Linear()(columns, {})
    )


def test_the_text_of_a_prompt_picks_its_style(reference):
    table = read_reference(reference)
    assert set(table.styles) == {ALL_STYLES, "rock"}, "a style of ten windows has none of its own"
    assert table.style_of("Slow ROCK, minor") == "rock"
    assert table.style_of("rocks and harp") == ALL_STYLES
    assert table.percentile(AXIS, 90, "rock") == pytest.approx(45.0)
    columns = candidates([60.0, 60.0], ["loud", "plain"])
    texts = {"loud": "hard rock", "plain": "harp"}
    assert Saturating(reference=str(reference))(columns, texts)[:, 0].tolist() == [35.0, 58.75]
    assert Saturating(reference=str(reference), style="Rock")(columns, texts)[:, 0].tolist() == [35.0, 35.0]
    assert (
        Saturating(reference=str(reference), style=ALL_STYLES)(columns, texts)[:, 0].tolist() == [58.75] * 2
    )


def test_of_several_styles_the_rarest_holds():
    numbers = np.arange(60.0)[:, None]
    styles = [("soundtrack", "ambient") if place < 25 else ("soundtrack",) for place in range(60)]
    table = build_reference(numbers, [AXIS], styles, {})
    assert table.style_of("ambient soundtrack") == "ambient"
    assert split_styles("Rock, science fiction,, rock ") == ("rock", "science fiction")


def test_a_reference_is_read_as_it_was_written(reference, tmp_path):
    table = read_reference(reference)
    write_reference(tmp_path / "again.json", table)
    assert read_reference(tmp_path / "again.json") == table
    assert (tmp_path / "again.json").read_bytes() == reference.read_bytes()


def test_windows_without_a_number_and_too_few_windows():
    numbers = np.array([[np.nan], *[[float(place)] for place in range(20)]])
    assert build_reference(numbers, [AXIS], [()] * 21, {}).styles[ALL_STYLES].windows == 20
    with pytest.raises(DataError, match="needs 20 windows"):
        build_reference(numbers[:20], [AXIS], [()] * 20, {})


@pytest.mark.parametrize(
    ("args", "error", "says"),
    [
        ({"style": "rokc"}, ConfigError, "style 'rokc'.* Did you mean 'rock'"),
        ({"reference": "nowhere.json"}, DataError, r"nowhere\.json: no reference of real songs"),
        ({"top": 3}, ConfigError, "top"),
    ],
)
def test_mistakes_are_one_line(args, error, says):
    with pytest.raises(error, match=says) as caught:
        build_utility(Choice("saturating", args), [AXIS])
    assert "\n" not in str(caught.value)


def test_an_axis_without_real_songs_is_refused(reference):
    for axis, hint in (("rhythm.pulse", ""), ("harmony.kay", " Did you mean 'harmony.key'")):
        with pytest.raises(ConfigError, match=f"no real songs on the axis '{axis}'.{hint}"):
            build_utility(Choice("saturating", {"reference": str(reference)}), [axis])
    with pytest.raises(ConfigError, match=r"unknown utility 'saturated'\. Did you mean 'saturating'"):
        build_utility(Choice("saturated"))
    assert AXIS_UTILITIES.group == "diffdpo.utilities"


@pytest.mark.parametrize("damage", ["{", "[]", '{"percentiles": [1]}', "rows"])
def test_a_damaged_reference_is_one_line(reference, damage):
    tree = json.loads(reference.read_text())
    tree["styles"][ALL_STYLES]["axes"][AXIS] = [3.0, 2.0, 1.0, 0.0, 0.0]
    reference.write_text(json.dumps(tree) if damage == "rows" else damage)
    with pytest.raises(DataError, match="no reference of real songs"):
        read_reference(reference)


def test_the_reference_of_the_package_has_the_songs_of_the_targets_alone():
    table, songs = read_reference(), read_table().of_group("targets")
    assert table.styles[ALL_STYLES].windows == len(songs)
    for axis in set(table.axes) & set(songs.axes):
        expected = np.percentile(songs.column(axis), PERCENTILES).tolist()
        values = table.styles[ALL_STYLES].axes[axis]
        assert values == pytest.approx(expected, abs=0.03), "windows may begin some samples apart"
    assert set(table.axes) > {"harmony.key", "harmony.tuning", "rhythm.pulse", "structure.form"}
    scorers = build_scorers(list(table.versions))
    assert {name: fingerprints(scorers)[name] for name in scorers} == dict(table.versions)
    assert REFERENCE_PATH.stat().st_size < 100_000


@pytest.fixture
def folders(tmp_path):
    """Songs with scores on one axis: two prompts of four songs."""
    songs, rows = [], []
    for prompt in ("p", "q"):
        for place, value in enumerate((10.0, 30.0, 95.0, 300.0)):
            name, sha = f"{prompt}.{place:03d}", f"sha-{prompt}-{place}"
            songs.append(SampleRow(sample_id=name, prompt_id=prompt, group=prompt, sha256=sha))
            rows += score_rows(sha, "1", "harmony", "v", [(AXIS, value)])
    tables.append(tmp_path / "samples", SAMPLES, songs)
    prompts = [{"id": "p", "text": "rock", "duration_s": 1.0}, {"id": "q", "text": "jazz", "duration_s": 1.0}]
    (tmp_path / "samples" / "prompts.jsonl").write_text("\n".join(map(json.dumps, prompts)))
    tables.append(tmp_path / "scores", SCORES, rows)
    (tmp_path / "scores" / "manifest.json").write_text(json.dumps({"scorers": {"harmony": "v"}}))
    return tmp_path


def run_mine(folder: Path, out: str, *words: str):
    cfg = build_config(
        MineRun,
        None,
        [f"samples=[{folder / 'samples'}]", f"scores={folder / 'scores'}", f"out={folder / out}", *words],
    )
    mine.run(cfg)
    return tables.read_rows(folder / out, PAIRS), tables.read_rows(folder / out, RATINGS)


def test_mining_takes_the_utility_by_name_and_notices_another_reference(folders, reference):
    words = ("utility.name=saturating", f"utility.args.reference={reference}", "rule.args.pairs_per_prompt=9")
    pairs, rated = run_mine(folders, "saturating", *words)
    rating = {row.sample_id: row.rating for row in rated}
    assert rating["q.002"] == rating["q.003"] > rating["q.001"]
    assert ("q.003", "q.002") not in {(row.winner, row.loser) for row in pairs}
    times = [path.stat().st_mtime_ns for path in sorted((folders / "saturating").rglob("*.parquet"))]
    run_mine(folders, "saturating", *words)
    assert [p.stat().st_mtime_ns for p in sorted((folders / "saturating").rglob("*.parquet"))] == times
    numbers = np.linspace(0, 1000, 101)[:, None]
    write_reference(reference, build_reference(numbers, [AXIS], [()] * 101, {"harmony": "v"}))
    rating = {row.sample_id: row.rating for row in run_mine(folders, "saturating", *words)[1]}
    assert rating["q.003"] > rating["q.002"]


def test_the_default_is_linear_bit_for_bit(folders):
    assert run_mine(folders, "default") == run_mine(folders, "linear", "utility=linear")


def test_the_call_in_python_takes_a_utility(reference):
    prompt = Prompt(id="p", text="rock")
    row, latents = Row(embedding={}, frames=1), torch.zeros(1, 1)
    songs = [
        api.Song(id=f"p.{place}", prompt=prompt, latents=latents, clip=None, row=row) for place in range(3)
    ]
    scores = [{AXIS: 10.0}, {AXIS: 95.0}, {AXIS: 300.0}]
    utility = Choice("saturating", {"reference": str(reference)})
    (pair,) = api.mine(songs, scores, utility=utility, min_margin=0.1)
    (plain,) = api.mine(songs, scores)
    assert plain.winner == "p.2"
    assert pair.loser == plain.loser == "p.0"
    assert pair.margins[AXIS] == pytest.approx((35.0 - 10.0) / np.std([10.0, 95.0, 300.0]))
