"""Particles on a song model: groups, their noise, their cost, and what a stopped search leaves."""

import pytest
import torch
from support.searches import Calls, local_model, search_task, store_for

from diffdpo.errors import ConfigError
from diffdpo.registry import Choice
from diffdpo.search.engine import search_prompt
from diffdpo.search.particles import Particles

pytestmark = pytest.mark.slow

SDE = {"solver": Choice("sde"), "steps": 8}


def latents_of(songs):
    return torch.stack([song.latents for song in songs])


def test_strength_zero_makes_the_plain_songs_bit_for_bit():
    model = local_model()
    songs = Particles(particles=3, strength=0)(search_task(model, budget=3, **SDE))
    assert torch.equal(latents_of(songs), latents_of(search_task(model, budget=3, **SDE).songs(range(3))))
    assert [song.number for song in songs] == [0, 1, 2]


@pytest.mark.parametrize("potential", ["diff", "rt"])
def test_steering_copies_the_promising_and_raises_the_mean_reward(potential):
    model = local_model()
    rule = Particles(particles=8, strength=20, potential=potential, resamplings=3)
    steered = rule(search_task(model, budget=8, **SDE))
    plain = search_task(model, budget=8, **SDE).songs(range(8))
    gain = (
        torch.tensor([song.reward.value for song in steered]).mean()
        - torch.tensor([song.reward.value for song in plain]).mean()
    )
    assert gain > 0
    (unique,) = {song.details["unique_starts"] for song in steered}
    assert 1 <= unique < 8
    assert unique == len({song.details["start"] for song in steered})
    assert len({tuple(song.latents.flatten().tolist()) for song in steered}) == 8  # copies part


def test_groups_follow_one_another_and_cost_what_plain_songs_cost():
    model = local_model()
    rule = Particles(particles=4, strength=20)
    calls = Calls(model)
    task = search_task(model, budget=9, **SDE)
    songs = rule(task)
    assert len(songs) == 8  # the ninth song is no group
    assert task.nfe == 8 * task.song_nfe == calls.rows
    shorter = rule(search_task(local_model(), budget=4, **SDE))
    assert torch.equal(latents_of(shorter), latents_of(songs[:4]))
    assert [song.details["group"] for song in songs] == [0] * 4 + [1] * 4


def test_the_batch_changes_no_winner():
    rule = Particles(particles=6, strength=20, resamplings=2)
    results = [search_prompt(search_task(local_model(), budget=6, batch=b, **SDE), rule) for b in (6, 1)]
    winner = results[0].winner
    for result in results[1:]:
        assert result.winner.sample_id == winner.sample_id
        error = (result.winner.latents - winner.latents).abs().max() / winner.latents.abs().max()
        assert error < 1e-5


def test_a_stopped_search_goes_on_with_the_next_group():
    rule = Particles(particles=2, strength=20, resamplings=2)
    whole_task = search_task(local_model(), budget=6, **SDE)
    whole = rule(whole_task)
    model = local_model()
    store, group = store_for(model), 2 * whole_task.song_nfe
    calls = Calls(model, limit=2 * group + group // 2)
    with pytest.raises(KeyboardInterrupt):
        rule(search_task(model, budget=6, store=store, **SDE))
    assert calls.rows >= 2 * group
    calls.limit, calls.rows = None, 0
    task = search_task(model, budget=6, store=store, **SDE)
    assert torch.equal(latents_of(rule(task)), latents_of(whole))
    assert calls.rows == group  # two groups were there
    assert task.nfe == whole_task.nfe


def test_a_song_of_several_windows_is_another_methods_business():
    task = search_task(local_model(), seconds=6.0, window_s=2.0, **SDE)
    with pytest.raises(ConfigError, match=r"4 windows.*chunk_particles"):
        Particles(particles=2)(task)


def test_a_solver_without_noise_is_refused_in_one_line():
    with pytest.raises(ConfigError, match="'adams_bashforth' lets copies"):
        Particles()(search_task(local_model()))
