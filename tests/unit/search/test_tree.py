"""Trees: rounds of songs from mutated prompts, always scored by the user's prompt."""

import pytest
import torch
from support.searches import Calls, LeftScorer, WordScorer, local_model, search_task, store_for

from diffdpo.errors import ConfigError
from diffdpo.search.engine import search_prompt
from diffdpo.search.tree import TreeSearch

pytestmark = pytest.mark.slow

LONG = {"seconds": 5.0, "window_s": 2.0, "overlap_s": 0.6}
TEXT = "slow guitar rock"


def latents_of(songs):
    return torch.stack([song.latents for song in songs])


def test_one_text_and_new_noise_is_best_of_n():
    rule = TreeSearch(variants=1, local=0)
    songs = rule(search_task(local_model(), budget=9))
    assert torch.equal(
        latents_of(songs),
        latents_of(
            search_task(local_model(), budget=8).songs(range(4))
            + search_task(local_model(), budget=8).songs(range(4, 8))
        ),
    )
    assert {song.details["text"] for song in songs} == {TEXT}


def test_rounds_are_nested_and_go_on_from_the_best_song():
    rule, model = TreeSearch(), local_model()
    calls = Calls(model)
    task = search_task(model, budget=12)
    songs = rule(task)
    assert len(songs) == 12
    assert task.nfe == calls.rows == 12 * task.song_nfe
    shorter = rule(search_task(local_model(), budget=8))
    assert torch.equal(latents_of(shorter), latents_of(songs[:8]))
    assert [song.details["round"] for song in songs] == [0] * 4 + [1] * 4 + [2] * 4
    texts = [song.details["text"] for song in songs[:4]]
    assert texts[0] == TEXT  # the original is among the variants
    assert len(set(texts)) == 4
    best = max(songs[:4], key=lambda song: song.reward.value)
    near = [song for song in songs[4:8] if song.details["noise"] == best.sample_id]
    assert [song.number for song in near] == [6, 7]  # half of a round
    assert len({best.details["text"], *(song.details["text"] for song in near)}) == 3
    assert len({tuple(song.latents.flatten().tolist()) for song in songs}) == 12


def test_a_reward_never_sees_a_mutated_prompt():
    for settings in ({"budget": 8}, {"budget": 4, **LONG}):
        model, words = local_model(), WordScorer()
        store = store_for(
            model, {"words": words, "left": LeftScorer()}, {"test.left": 1.0, "test.words": 1.0}
        )
        songs = TreeSearch()(search_task(model, store=store, **settings))
        assert set(words.texts) == {TEXT}
        assert len({song.details["text"] for song in songs}) > 1


def test_beams_of_a_long_song_go_on_in_several_ways_from_mutated_texts():
    model = local_model()
    calls = Calls(model)
    task = search_task(model, budget=6, **LONG)
    songs = TreeSearch(beams=3, width=2)(task)
    assert task.nfe == calls.rows == 6 * task.song_nfe
    lineages = [tuple(song.details["lineage"]) for song in songs]
    for turn in (1, 2, 3):
        parents = [lineage[:turn] for lineage in lineages]
        assert len(set(parents)) <= 3
    assert sorted(lineage[-1] for lineage in lineages) == list(range(6))
    for parent in {lineage[:3] for lineage in lineages}:
        assert sum(lineage[:3] == parent for lineage in lineages) == 2
    assert any(len(set(song.details["texts"])) > 1 for song in songs)
    assert all(song.details["texts"][-1] == song.details["text"] for song in songs)


def test_a_stopped_search_goes_on_and_the_batch_changes_no_winner():
    rule, long = TreeSearch(), LONG | {"seconds": 3.4}
    task = search_task(local_model(), budget=8, **long)
    whole = search_prompt(task, rule)
    model = local_model()
    store, calls = store_for(model), Calls(model, limit=task.nfe * 3 // 4)
    with pytest.raises(KeyboardInterrupt):
        rule(search_task(model, budget=8, store=store, **long))
    calls.limit = None
    again = search_prompt(search_task(model, budget=8, store=store, **long), rule)
    assert torch.equal(latents_of(again.songs), latents_of(whole.songs))
    assert calls.rows <= task.nfe
    singly = search_prompt(search_task(local_model(), budget=8, batch=1, **long), rule)
    assert singly.winner.sample_id == whole.winner.sample_id
    error = (singly.winner.latents - whole.winner.latents).abs().max()
    assert error < 1e-5 * whole.winner.latents.abs().max()


def test_a_prompt_without_text_is_not_mutated_and_a_budget_must_reach_for_a_round():
    songs = TreeSearch(local=0)(search_task(local_model(), text=None))
    assert {song.details["text"] for song in songs} == {None}
    with pytest.raises(ConfigError, match=r"2 beams x 3 is more than search\.budget=5"):
        TreeSearch(width=3)(search_task(local_model(), budget=5))
