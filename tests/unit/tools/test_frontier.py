"""Points of the frontier: songs with weights against what is known of uniform songs and of the best of N."""

import math
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from diffdpo.config import build_config
from diffdpo.evaluation.band import BAND_WITNESSES
from diffdpo.evaluation.best_of_n import SELECTION_AXES, gain_curve, selection_scores
from diffdpo.evaluation.composites import composite_effects, fit_composites
from diffdpo.evaluation.real_songs import read_table
from diffdpo.objectives import OBJECTIVES
from diffdpo.parts import build_objective
from diffdpo.recipes.round import RoundRun
from diffdpo.runs import CONFIG

sys.path.insert(0, str(Path(__file__).parents[3]))
from tools.bench.aligned_models import changed_config
from tools.bench.frontier import best_of_n_equivalent, best_songs, even_songs, measure_songs, spread_ratios
from tools.bench.frontier_file import add_point, frontier_table, read_points
from tools.bench.frontier_models import frontier_models
from tools.bench_frontier import select_stages

DEMO = Path(__file__).parents[3] / "configs" / "tiny" / "demo.yaml"
AXES = sorted({*BAND_WITNESSES, *SELECTION_AXES, "form.order"})
FORM = ["form.order"]


def make_songs(count, shift=0.0, prompts=12, seed=0):
    real = read_table()
    rng = np.random.default_rng(seed)
    names = [f"p{k:02d}" for k in range(prompts) for _ in range(count)]
    scores = {}
    for axis in AXES:
        mean, spread = (
            (0.0, 1.0)
            if axis not in real.axes
            else (np.nanmean(real.column(axis)), np.nanstd(real.column(axis)))
        )
        scores[axis] = mean + spread * (rng.normal(size=len(names)) + shift)
    return even_songs(names, scores)


def judge_windows():
    return read_table().of_group("judge")


def test_songs_of_a_model_are_compared_as_in_the_report():
    base, aligned = make_songs(2), make_songs(2, shift=0.5, seed=1)
    scale = fit_composites(base.scores, FORM)
    point = measure_songs(aligned, base, scale, judge_windows())
    effects = composite_effects(scale, base.scores, aligned.scores, base.prompts)
    for name, effect in effects.items():
        for key in ("mean", "low", "high"):
            assert point["composites"][name][key] == pytest.approx(getattr(effect, key), rel=2e-3, abs=2e-3)
    assert point["in_band"]["change"]["mean"] == pytest.approx(
        point["in_band"]["share"] - point["in_band"]["base"], abs=1e-3
    )


def test_the_base_gains_nothing_over_itself_and_keeps_its_spread():
    base = make_songs(4)
    point = measure_songs(base, base, fit_composites(base.scores, FORM), judge_windows())
    assert all(numbers["mean"] == pytest.approx(0) for numbers in point["composites"].values())
    assert set(point["spread"].values()) == {1.0}


def test_best_of_n_gains_what_exact_order_statistics_say():
    base = make_songs(6)
    scale = fit_composites(base.scores, FORM)
    values = scale.values(base.scores)["W.all"]
    curve = gain_curve(selection_scores(base.scores, base.prompts), values, base.prompts)
    for n in (1, 3, 6):
        point = measure_songs(best_songs(base, n), base, scale, judge_windows())
        assert point["composites"]["W.all"]["mean"] == pytest.approx(curve.gains[:, n - 1].mean(), abs=1e-3)
    assert set(spread_ratios(best_songs(base, 6), base).values()) == {None}, (
        "one song of a prompt has no spread"
    )


def test_the_best_of_n_is_as_good_as_the_best_of_n():
    """Chosen songs of the candidates themselves are equivalent to their own N."""
    prompts, quality = make_songs(8).prompts, np.random.default_rng(0).normal(size=96)
    candidates = even_songs(prompts, dict.fromkeys(AXES, quality))
    scale = fit_composites(candidates.scores, FORM)
    for n in (1, 2, 5):
        text = best_of_n_equivalent(best_songs(candidates, n), candidates, candidates, scale)
        assert float(text.split()[0]) == pytest.approx(n, abs=0.05)
    better = even_songs(prompts, dict.fromkeys(AXES, quality + 9))
    assert best_of_n_equivalent(better, candidates, candidates, scale) == "above 8"


def test_spread_is_unbiased_by_the_number_of_songs():
    base = make_songs(2, prompts=400)
    many = make_songs(8, prompts=400, seed=2)
    assert list(spread_ratios(many, base).values()) == pytest.approx([1.0] * 9, abs=0.12)


def test_songs_far_from_real_ones_have_the_larger_distance():
    base, far = make_songs(2), make_songs(2, shift=3.0)
    scale = fit_composites(base.scores, FORM)
    distances = [measure_songs(side, base, scale, judge_windows())["distance"] for side in (base, far)]
    assert distances[1]["frechet"] > distances[0]["frechet"] + 9
    assert distances[1]["low"] > distances[0]["high"]


def test_points_are_kept_by_name_and_printed(tmp_path):
    path = tmp_path / "frontier.json"
    assert read_points(path) == []
    numbers = {"mean": 0.5, "low": 0.25, "high": 0.75}
    point = {
        "name": "best of 4", "method": "best-of-N", "n": 4, "kl": math.log(4) - 0.75,
        "composites": dict.fromkeys(("W.harmony", "W.rhythm", "W.form", "W.all"), numbers),
        "in_band": {"share": 0.8, "base": 0.79, "change": numbers},
        "distance": {"frechet": 1.5, "kernel": 2.0, "low": 1.0, "high": 3.0}, "spread": {}, "verdict": None,
    }  # fmt: skip
    add_point(path, point)
    add_point(
        path, point | {"name": "aligned", "n": None, "verdict": {"passed": False, "reasons": ["drift"]}}
    )
    add_point(path, point | {"kl": 9.0})
    points = read_points(path)
    assert [p["name"] for p in points] == ["best of 4", "aligned"]
    assert points[0]["kl"] == 9.0
    table = frontier_table(points)
    assert "+0.50 (+0.25 +0.75)" in table
    assert "not passed: drift" in table


def test_every_objective_on_songs_is_on_the_frontier_at_a_step_of_equal_cost(tmp_path):
    """Forward passes of a step, a backward pass counted as two; a run's own is eight pairs of DPO, 64."""
    (tmp_path / CONFIG).write_text(DEMO.read_text())
    names = set()
    for model in frontier_models(rounds=()):
        path = tmp_path / "model.yaml"
        path.write_text(yaml.safe_dump(changed_config(tmp_path, tmp_path / "out", model.changes)))
        cfg = build_config(RoundRun, path, []).train
        objective = build_objective(cfg.objective)
        songs = {"pair": 2, "group": cfg.data.group_size}.get(objective.batch_kind, 1)
        passes = 3 + len({"reference", "old"} & objective.needs)
        assert 60 <= cfg.train.global_batch * songs * passes <= 64, model.name
        names.add(cfg.objective.name)
    assert names == {name for name, make in OBJECTIVES.items() if make.batch_kind != "contrast"}


def test_points_of_a_plan_are_chosen_by_name_or_by_model():
    plan = [(name, dict) for name in ("best of 1 of 4", "nft", "nft, strength 2", "awm, strength 2")]
    assert list(select_stages(iter(plan), ["nft", "best of 1 of 4"])) == plan[:3]
    assert list(select_stages(iter(plan), [])) == plan
