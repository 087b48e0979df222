"""`diffdpo reward personal`: one listener's taste from few votes, where all tastes are known."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from diffdpo import audio
from diffdpo.config import build_config
from diffdpo.data import tables
from diffdpo.data.samples import SAMPLES, SampleRow, Samples
from diffdpo.data.votes import VOTES, VoteRow
from diffdpo.errors import ConfigError, DataError
from diffdpo.recipes import reward, reward_personal
from diffdpo.recipes.reward import RewardRun
from diffdpo.recipes.reward_personal import PersonalRun
from diffdpo.scorers.canonical import canonical
from diffdpo.scorers.reward_file import read_reward_model, reward_path
from diffdpo.types import Clip

RATE, PROMPTS, SONGS = 8000, 8, 6
COMMON = np.array([1.0, 0.0, 0.0])
TASTES = {f"r{k}": COMMON + (2.0 if k % 2 else -2.0) * np.array([0.0, 1.0, 0.0]) for k in range(10)}
NEW = COMMON + np.array([0.0, 2.0, 0.0])


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Songs with three known features; listeners who agree on the first and differ on the second."""
    folder, rng = tmp_path_factory.mktemp("personal"), np.random.default_rng(0)
    samples, vectors, rows = Samples(folder / "songs"), {}, []
    for prompt in range(PROMPTS):
        for song in range(SONGS):
            name = f"p{prompt}.{song:03d}"
            noise = 0.1 * rng.standard_normal((1, RATE // 2)).astype(np.float32)
            audio.write(samples.audio(name), Clip(samples=noise, sample_rate=RATE))
            form = canonical(audio.read(samples.audio(name)))
            sha = audio.pcm_sha256(audio.read(samples.audio(name)).samples, RATE)
            rows.append(
                (SampleRow(sample_id=name, prompt_id=f"p{prompt}", sha256=sha), rng.standard_normal(3))
            )
            vectors[audio.pcm_sha256(form.samples, form.sample_rate)] = rows[-1][1]
    tables.append(samples.folder, SAMPLES, [row for row, _ in rows])
    save_file(vectors, folder / "features.safetensors")
    tastes = [(name, taste, 60) for name, taste in TASTES.items()] + [("new", NEW, 20)]
    votes = [vote(rows, name, taste, k, rng) for name, taste, count in tastes for k in range(count)]
    tables.append(folder / "votes", VOTES, votes)
    file = json.dumps([{"name": "file", "args": {"path": str(folder / "features.safetensors")}}])
    fit = json.dumps({"members": 2, "folds": 2, "l2": [1.0]})
    words = [f"out={folder / 'pooled'}", f"votes=[{folder / 'votes'}]", f"features={file}", f"fit={fit}"]
    reward.run(build_config(RewardRun, None, words))
    return folder, rows


def vote(rows, rater, taste, number, rng):
    prompt = int(rng.integers(PROMPTS))
    (a, first), (b, second) = (rows[prompt * SONGS + k] for k in rng.choice(SONGS, 2, replace=False))
    return VoteRow(
        vote_id=f"{rater}-{number}", source="study", rater=rater, group=f"p{prompt}", samples_a="../songs",
        samples_b="../songs", song_a=a.sample_id, song_b=b.sample_id, sha256_a=a.sha256, sha256_b=b.sha256,
        answer="a" if (first - second) @ taste > 0 else "b", license="CC0-1.0",
    )  # fmt: skip


def config(folder, *words):
    settings = (f"reward={folder / 'pooled'}", f"votes=[{folder / 'votes'}]", "rater=new", "fit.bases=2")
    return build_config(PersonalRun, None, [*settings, *words])


def correlation(path, rows, taste):
    head, vectors = read_reward_model(reward_path(path)).head, np.stack([vector for _, vector in rows])
    return np.corrcoef(head.utility(vectors), vectors @ taste)[0, 1]


def test_few_votes_find_a_taste_that_the_pooled_model_lacks(world):
    folder, rows = world
    out = reward_personal.run(
        config(folder, f"out={folder / 'new'}", f"candidates=[{folder / 'songs'}]", "next_pairs=4")
    )
    assert correlation(folder / "pooled", rows, NEW) < 0.75  # the listeners' differences cancel out
    assert correlation(out, rows, NEW) > 0.9
    report = json.loads((out / "report.json").read_text())
    assert (report["votes"], report["other_listeners"]) == (20, 10)
    assert report["personal_accuracy"] > report["pooled_accuracy"]
    pairs = [json.loads(line) for line in (out / "next_pairs.jsonl").read_text().splitlines()]
    assert len({(pair["song_a"], pair["song_b"]) for pair in pairs}) == 4
    assert all(pair["song_a"].startswith(f"{pair['prompt_id']}.") for pair in pairs)
    assert "It describes a person" in (out / "README.md").read_text()


def test_a_listener_without_votes_has_the_taste_of_all_others(world):
    folder, rows = world
    out = reward_personal.run(config(folder, f"out={folder / 'nobody'}", "rater=nobody"))
    assert json.loads((out / "report.json").read_text())["weights"] == [1.0, 0.0]
    assert correlation(out, rows, COMMON) > 0.9


def test_what_cannot_be_fitted_is_refused(world, tmp_path):
    folder, _ = world
    with pytest.raises(ConfigError, match="votes: name at least one folder"):
        PersonalRun(out="o", reward="r", rater="x").check_parts()
    with pytest.raises(DataError, match="holds no votes"):
        reward_personal.run(config(folder, f"out={tmp_path / 'x'}", f"votes=[{tmp_path}]"))
