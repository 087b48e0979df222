"""`diffdpo reward train`: from votes to a scorer, on features from a file whose taste is known."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from diffdpo import audio
from diffdpo.config import build_config
from diffdpo.data import tables
from diffdpo.data.features import FEATURE_TABLE
from diffdpo.data.licenses import inherit_license
from diffdpo.data.vote_songs import VoteSong
from diffdpo.data.votes import VOTES, VoteRow
from diffdpo.errors import CheckpointError, ConfigError, DataError
from diffdpo.extractors import EXTRACTORS
from diffdpo.parts import build_scorers
from diffdpo.recipes.reward import RewardRun, held_out_mask, run, short_hash
from diffdpo.recipes.reward_report import human_agreement
from diffdpo.recipes.reward_votes import SongVote
from diffdpo.scorers.base import fingerprint
from diffdpo.scorers.canonical import canonical
from diffdpo.scorers.engine import score_clips
from diffdpo.scorers.reward_file import REWARD_FILE, read_card
from diffdpo.types import Clip, Prompt

pytestmark = pytest.mark.slow

RATE, PROMPTS, SONGS = 8000, 12, 6
TASTE = np.array([1.0, -1.0, 0.5, 0.0])


class World:
    """Short noises, their features in a file, and votes by a known taste."""

    def __init__(self, folder):
        self.folder, rng = folder, np.random.default_rng(0)
        self.features, self.clips, self.utility, vectors = folder / "mert.safetensors", {}, {}, {}
        for name in [f"p{p}-{s}.wav" for p in range(PROMPTS) for s in range(SONGS)]:
            samples = 0.1 * rng.standard_normal((1, RATE // 2)).astype(np.float32)
            audio.write(folder / name, Clip(samples=samples, sample_rate=RATE))
            clip = self.clips[name] = audio.read(folder / name)
            vector, form = rng.standard_normal(4), canonical(clip)
            vectors[audio.pcm_sha256(form.samples, form.sample_rate)] = vector
            self.utility[name] = float(vector @ TASTE)
        save_file(vectors, self.features)

    def votes(self, name, count=400, seed=0, **fields):
        rng, rows = np.random.default_rng(seed), []
        for k in range(count):
            prompt = rng.integers(PROMPTS)
            a, b = (f"p{prompt}-{song}.wav" for song in rng.choice(SONGS, 2, replace=False))
            answer = "a" if self.utility[a] > self.utility[b] else "b"
            if rng.random() < 0.1:
                answer = {"a": "b", "b": "a"}[answer]
            row = {
                "vote_id": f"v{k}", "source": "study", "rater": f"r{k % 7}", "prompt": f"prompt {prompt}",
                "group": f"g{prompt}", "song_a": f"../{a}", "song_b": f"../{b}", "answer": answer,
                "license": "CC-BY-4.0", "consent": "1a2b/en",
                "rater_group": {"background": "musician" if k % 7 < 3 else "listener"},
                "sha256_a": audio.pcm_sha256(self.clips[a].samples, RATE),
                "sha256_b": audio.pcm_sha256(self.clips[b].samples, RATE),
            }  # fmt: skip
            rows.append(VoteRow(**row | {key: f(k, row) if callable(f) else f for key, f in fields.items()}))
        (self.folder / name).mkdir(exist_ok=True)
        tables.replace(self.folder / name, VOTES, rows)
        return str(self.folder / name)

    def config(self, folder, out="model", **values):
        file = {"name": "file", "args": {"path": str(self.features)}}
        fit = {"members": 4, "folds": 3, "l2": [0.1, 1.0]}
        words = {"out": str(self.folder / out), "votes": [folder], "features": [file], "fit": fit} | values
        return build_config(RewardRun, None, [f"{key}={json.dumps(value)}" for key, value in words.items()])


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World(tmp_path_factory.mktemp("reward"))


@pytest.fixture(scope="module")
def model(world):
    return run(world.config(world.votes("votes")))


def test_it_predicts_votes_on_prompts_that_it_has_not_seen(model):
    report = json.loads((model / "report.json").read_text())
    assert report["accuracy"]["value"] > 0.7
    assert report["learned_accuracy"] > 0.85
    assert report["accuracy"]["low"] < report["accuracy"]["value"] < report["accuracy"]["high"]
    assert report["held_out_groups"] < report["groups"] == PROMPTS
    assert report["calibration_error"] < 0.2
    assert len(report["by_margin"]) == 4
    assert {"background=musician", "background=listener"} == set(report["by_group"])
    counts = [part["count"] for part in report["by_group"].values()]
    assert sum(counts) == report["accuracy"]["count"]
    assert 0.7 < report["agreement"]["rater_agreement"] < 0.95
    assert {json.loads(line)["l2"] for line in (model / "metrics.jsonl").read_text().splitlines()} == {
        0.1,
        1.0,
    }


def test_the_result_is_a_scorer_like_any_other(world, model):
    names = [f"p0-{song}.wav" for song in range(SONGS)]
    (scorer,) = build_scorers([{"name": "reward", "args": {"path": str(model)}}]).values()
    rows = score_clips([world.clips[name] for name in names], {"reward": scorer})
    values = [row.values["reward.preference"] for row in rows]
    assert np.corrcoef(values, [world.utility[name] for name in names])[0, 1] > 0.95
    (bold,) = build_scorers([{"name": "reward", "args": {"path": str(model), "caution": 0}}]).values()
    assert fingerprint(bold) != fingerprint(scorer)
    (cautious,) = score_clips([world.clips[names[0]]], {"reward": scorer})
    (plain,) = score_clips([world.clips[names[0]]], {"reward": bold})
    assert cautious.values["reward.preference"] < plain.values["reward.preference"]
    assert scorer.licenses == ("CC-BY-4.0", "unknown")


def test_the_card_says_what_it_was_made_from(model):
    text = (model / "README.md").read_text()
    assert "unknown" in text
    assert "CC-BY-4.0" in text
    assert "1a2b/en" in text
    _, card = read_card(model / REWARD_FILE)
    manifest = json.loads((model / "manifest.json").read_text())
    assert len(card.votes["study"]) == manifest["learned_votes"] < manifest["votes"] == 400
    assert {*card.votes["study"]} <= {short_hash(f"v{k}") for k in range(400)}
    assert len(card.songs) < PROMPTS * SONGS


@pytest.mark.parametrize(
    ("licenses", "word"),
    [
        (["CC-BY-4.0", "CC-BY-NC-SA-4.0"], "non-commercial (CC-BY-NC-SA-4.0)"),
        (["CC-BY-4.0", ""], "unknown"),
        (["", "CC-BY-NC-4.0"], "non-commercial"),
        (["CC-BY-4.0", "ISC", "ISC"], "CC-BY-4.0, ISC"),
        (["CC0-1.0", "BSD-3-Clause", "Apache-2.0"], "Apache-2.0, BSD-3-Clause, CC0-1.0"),
    ],
)
def test_the_strictest_license_is_inherited_and_an_unknown_one_is_said(licenses, word):
    assert inherit_license(licenses).startswith(word)


def test_the_same_command_does_nothing_and_other_votes_are_refused(world, model):
    before = (model / REWARD_FILE).stat().st_mtime_ns
    run(world.config(str(world.folder / "votes")))
    assert (model / REWARD_FILE).stat().st_mtime_ns == before
    votes = world.votes("changing", count=60)
    run(world.config(votes, out="changed"))
    world.votes("changing", count=60, seed=9)
    with pytest.raises(DataError, match="votes changed"):
        run(world.config(votes, out="changed"))


def test_features_are_computed_once(world):
    votes, cache = world.votes("few", count=60), str(world.folder / "cache")
    names = dict.fromkeys(("first", "second"))
    for name in names:
        run(world.config(votes, out=name, cache=cache, seed=len(name)))
        names[name] = sorted(path.name for path in (world.folder / "cache" / FEATURE_TABLE.folder).iterdir())
    assert names["first"] == names["second"]


def test_controls_repeats_and_other_questions_teach_nothing(world):
    kinds = {
        "gold": lambda k, row: "a" if k % 4 == 1 else "",
        "repeat_of": lambda k, row: f"v{k - 2}" if k % 4 == 2 else "",
        "axis": lambda k, row: "vocals" if k % 4 == 3 else "",
    }
    out = run(world.config(world.votes("kinds", **kinds), out="kinds-model"))
    assert json.loads((out / "manifest.json").read_text())["votes"] == 100
    with pytest.raises(DataError, match="no votes on the axis 'lyrics'"):
        run(world.config(str(world.folder / "kinds"), out="x", axis="lyrics"))


def test_both_bad_is_a_tie_or_nothing(world):
    bad = {"answer": lambda k, row: "both_bad" if k % 2 else row["answer"]}
    votes = world.votes("bad", count=200, **bad)
    for choice, count in (("tie", 200), ("skip", 100)):
        out = run(world.config(votes, out=f"bad-{choice}", both_bad=choice))
        assert json.loads((out / "manifest.json").read_text())["votes"] == count


def test_listeners_can_be_chosen(world):
    out = run(
        world.config(str(world.folder / "votes"), out="musicians", listeners={"background": "musician"})
    )
    report = json.loads((out / "report.json").read_text())
    assert list(report["by_group"]) == ["background=musician"]


def test_anchor_votes_say_how_much_a_newer_system_is_overrated(world):
    """The newer system loses every pair, whatever the reward says."""
    systems = {
        "system_a": lambda k, row: "new" if k % 2 else "old",
        "system_b": lambda k, row: "old" if k % 2 else "new",
        "answer": lambda k, row: "b" if k % 2 else "a",
    }
    anchors = world.votes("anchors", count=60, seed=4, **systems)
    out = run(
        world.config(str(world.folder / "votes"), out="anchored", anchors=[anchors], pinned_system="old")
    )
    _, card = read_card(out / REWARD_FILE)
    assert card.offsets["old"] == 0
    assert card.offsets["new"] > 0.5
    with pytest.raises(DataError, match="names no system"):
        run(world.config(str(world.folder / "votes"), out="y", anchors=[world.votes("unnamed", count=20)]))


def test_songs_that_are_gone_or_changed_are_left_out(world, capsys):
    votes = world.votes("gone", count=120, song_a=lambda k, row: "../no.wav" if k < 20 else row["song_a"])
    out = run(world.config(votes, out="gone-model"))
    assert json.loads((out / "manifest.json").read_text())["votes"] == 100
    wrong = world.votes("wrong", count=60, sha256_a="0" * 64)
    with pytest.raises(DataError, match="no vote is left"):
        run(world.config(wrong, out="z"))
    assert "not the one that was voted on" in capsys.readouterr().err


def test_excerpts_have_features_of_their_own(world):
    votes = world.votes("excerpts", count=60, end_a_s=0.25)
    cfg = world.config(votes, out="excerpts-model", features=["latents"])
    out = run(cfg)
    rows = tables.read_rows(out / "features", FEATURE_TABLE)
    assert {row.end_s for row in rows} == {0.0, 0.25}


def test_a_model_may_read_the_prompt(world):
    out = run(
        world.config(world.votes("texts", count=80), out="texts-model", features=["style"], text="style")
    )
    path = {"path": str(out)}
    (scorer,) = build_scorers([{"name": "prompt_reward", "args": path}]).values()
    clip = canonical(world.clips["p0-0.wav"])
    slow, fast, empty = scorer(
        [clip] * 3, [Prompt(id=t, text=t) for t in ("slow piano", "fast metal")] + [Prompt(id="e")]
    )
    assert slow[0] != fast[0]
    assert empty[0] == 0
    (plain,) = build_scorers([{"name": "reward", "args": path}]).values()
    with pytest.raises(CheckpointError, match="prompt_reward"):
        plain([clip])


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({"votes": []}, "votes"),
        ({"text": "style"}, "none of the features"),
        ({"features": ["latents"], "text": "latents"}, "embeds no texts"),
        ({"features": ["latnets"]}, "latents"),
        ({"features": ["style", "style"]}, "twice"),
        ({"features": []}, "at least one"),
        ({"held_out": 1.5}, "held_out"),
    ],
)
def test_a_configuration_of_nonsense_is_refused_before_any_work(world, values, word):
    with pytest.raises(ConfigError, match=word):
        world.config("votes", **values).check_parts()


def test_what_is_no_reward_model_is_refused_in_one_line(world, model, tmp_path):
    for path in ("", str(tmp_path), str(world.features)):
        (scorer,) = build_scorers([{"name": "reward", "args": {"path": path}}]).values()
        with pytest.raises(CheckpointError) as error:
            scorer([])
        assert "\n" not in str(error.value)


def test_features_that_changed_are_noticed(world, model, monkeypatch):
    monkeypatch.setattr(EXTRACTORS["file"], "version", "2")
    copy = world.folder / "copy.safetensors"
    copy.write_bytes((model / REWARD_FILE).read_bytes())
    (scorer,) = build_scorers([{"name": "reward", "args": {"path": str(copy)}}]).values()
    with pytest.raises(CheckpointError, match="other features"):
        scorer([])


def test_a_prompt_group_stays_on_its_side_as_votes_are_added():
    groups = np.array([f"g{k}" for k in range(50)])
    few, many = (held_out_mask(names, 0.2, 0) for names in (groups[:30], groups))
    assert set(groups[:30][few]) <= set(groups[many])
    assert not set(groups[:30][few]) ^ set(groups[:30][many[:30]])
    assert 0 < many.mean() < 0.5
    assert held_out_mask(groups[:3], 0.01, 0).sum() == 1
    with pytest.raises(DataError, match="3 are needed"):
        held_out_mask(groups[:2], 0.2, 0)


def test_the_ceiling_is_that_of_independent_errors(tmp_path):
    """Two who err with probability e agree on (1 - e)² + e² of the pairs, and a perfect model on 1 - e."""
    a, b = (VoteSong(name, tmp_path / name) for name in "ab")

    def vote(rater, answer, pair=(a, b)):
        row = VoteRow(vote_id=rater, source="s", rater=rater, song_a="a", song_b="b", answer=answer)
        return SongVote(row, *pair, "")

    votes = [vote(f"r{k}", "a") for k in range(9)] + [vote("r9", "a", (b, a))]
    ceiling = human_agreement(votes)
    assert ceiling.rater_pairs == 45
    assert ceiling.rater_agreement == pytest.approx(36 / 45)
    assert ceiling.accuracy == pytest.approx((1 + np.sqrt(2 * 0.8 - 1)) / 2)
    assert np.isnan(human_agreement(votes[:1]).accuracy)
    assert human_agreement([], [(a, a), (a, b)]).repeat_agreement == 0.5


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"answer": "tie"}, "all 20 votes are ties"),
        ({"answer": "both_bad"}, "all 20 votes are ties or `both bad`"),
        ({"gold": "a"}, "no votes but control pairs"),
    ],
)
def test_votes_without_a_preference_are_refused(world, fields, word):
    with pytest.raises(DataError, match=word):
        run(world.config(world.votes("nothing", 20, **fields), out="nothing-model"))
