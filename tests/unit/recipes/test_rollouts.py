"""Songs that are made while the round before is trained: by which policy, and never by an older one."""

import pytest
from support.songs import write_samples

from diffdpo import config
from diffdpo.data import tables
from diffdpo.data.latents import read_latents
from diffdpo.data.samples import SAMPLES, Samples
from diffdpo.errors import ConfigError, DataError
from diffdpo.recipes import round, sample
from diffdpo.recipes.rollouts import ROLLOUT_LOG, RolloutConfig, record_staleness, rollout_queue
from diffdpo.recipes.round import RoundRun
from diffdpo.recipes.train import TrainRun
from diffdpo.run_dir import DistEnv
from diffdpo.text_files import read_text

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("max_staleness", "policies"), [(0, [0, 1, 2, 3, 4]), (1, [0, 0, 1, 2, 3]), (2, [0, 0, 0, 1, 2])]
)
def test_the_policy_of_a_round_is_as_old_as_the_bound(max_staleness, policies):
    assert [RolloutConfig(max_staleness).policy(number) for number in range(1, 6)] == policies


def test_older_songs_than_the_bound_are_refused_and_younger_ones_say_their_age(tmp_path):
    folder = write_samples(tmp_path, prompts=2, per_prompt=2)
    record_staleness(folder, 1, 1)
    assert [row.staleness for row in tables.read_rows(folder, SAMPLES)] == [1] * 4
    with pytest.raises(DataError, match=r"a policy 2 rounds old, rollouts\.max_staleness=1"):
        record_staleness(folder, 2, 1)
    assert [row.staleness for row in tables.read_rows(folder, SAMPLES)] == [1] * 4


def test_several_processes_make_their_songs_in_turn():
    cfg = config.build_config(
        RoundRun,
        None,
        ["out=a", "mining_prompts=m", "evaluation_prompts=e", "rollouts.max_staleness=1"],
        "round",
    )
    with (
        pytest.raises(ConfigError, match="start one process"),
        rollout_queue(cfg, DistEnv(0, 2, lambda: None)),
    ):
        pass


@pytest.mark.slow
def test_the_second_round_trains_the_first_model_on_songs_of_the_model_before_it(tmp_path, bundle):
    texts = {"one": "fast rock", "two": "slow ambient"}
    lines = [f'{{"id": "{name}", "text": "{text}", "duration_s": 2}}\n' for name, text in texts.items()]
    (tmp_path / "m.jsonl").write_text("".join(lines))
    (tmp_path / "e.jsonl").write_text('{"id": "x", "text": "jazz", "duration_s": 2}\n')
    words = [
        f"out={tmp_path / 'r'}", f"mining_prompts={tmp_path / 'm.jsonl'}",
        f"evaluation_prompts={tmp_path / 'e.jsonl'}", f"model.args.bundle={bundle}",
        "candidates=3", "evaluation_samples=2", "sample.sampling.steps=1", "score.scorers=[production]",
        "mine.axes=[production.balance]", "mine.rule.args.min_margin=0.01", "train.train.steps=1",
        "train.train.global_batch=2", "train.train.per_device=2", "train.train.lora.rank=2",
        "train.train.trackers=[]", "stop.max_winner_rise=.inf",
        "mine.gates=false", "rounds=2", "rollouts.max_staleness=1",
    ]  # fmt: skip
    cfg = config.build_config(RoundRun, None, words, "round")
    out = round.run(cfg)
    assert (out / "round-2" / ROLLOUT_LOG).is_file(), "made in a process of their own"
    folders = [Samples(out / f"round-{number}" / "candidates") for number in (1, 2)]
    rows = [folder.rows() for folder in folders]
    assert [{row.staleness for row in table} for table in rows] == [{0}, {1}]
    assert len({row.model for table in rows for row in table}) == 1, "both by the first model"
    trainings = [
        config.build_config(TrainRun, str(out / f"round-{number}" / "train" / "config.yaml"), [], "train")
        for number in (1, 2)
    ]
    assert "adapter" not in trainings[0].model.args
    assert str(out / "round-1") in trainings[1].model.args["adapter"]
    assert "made meanwhile" not in read_text(out / "round-2" / ROLLOUT_LOG)
    stage = cfg.sample
    stage.out, stage.prompts, stage.model = str(tmp_path / "again"), cfg.mining_prompts, cfg.model
    stage.per_prompt, stage.seed = cfg.candidates, cfg.seed + 2000
    again = Samples(sample.run(stage))
    assert len(rows[1]) == 6
    for row in rows[1]:
        assert read_latents(folders[1].latents(row.sample_id)).equal(
            read_latents(again.latents(row.sample_id))
        )
