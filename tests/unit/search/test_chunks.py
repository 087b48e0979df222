"""Songs that grow window by window: noise by slot, pruning, boundary weights, and what a stopped search leaves."""

from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.searches import Calls, local_model, search_task, store_for

from diffdpo.errors import ConfigError
from diffdpo.registry import Choice
from diffdpo.sampling.longform import LongformConfig
from diffdpo.search.chunk_particles import ChunkParticles
from diffdpo.search.chunks import Branch, branch_beams, grow, prune, score_span, settle_copies
from diffdpo.search.engine import search_prompt
from diffdpo.search.pruning import ChunkPruner
from diffdpo.search.weights import LOG_WEIGHT, begin_weights

pytestmark = pytest.mark.slow

LONG = {"seconds": 5.0, "window_s": 2.0, "overlap_s": 0.6}
"""A song of four windows."""
METHODS = [
    ChunkPruner(n=4),
    ChunkPruner(n=4, survivors=2),
    ChunkParticles(particles=4, strength=30, share=1),
]


def latents_of(songs):
    return torch.stack([song.latents for song in songs])


def plain_songs(count):
    return search_task(local_model(), budget=count, **LONG).songs(range(count))


def brute_force(values, depth=3):
    return max(("".join(bits) for bits in product("01", repeat=depth)), key=values.__getitem__)


def beam(values, beams, roots=("0", "1"), depth=3):
    """The best leaf of a binary tree of texts, whose inner nodes are worth what `values` says, too."""
    slots = range(2**depth)

    def select(population, turn):
        rewards = {slot: values[text] for slot, text in population.items()}
        return branch_beams(rewards, beams, 2, slots)

    leaves = grow(
        dict(enumerate(roots)),
        depth,
        extend=lambda population, turn: population,
        select=select,
        branch=lambda text, entry, turn: text + str(entry.child),
    )
    return max(leaves.values(), key=values.__getitem__), len(leaves)


def tree_values(seed):
    numbers = torch.rand(14, generator=torch.Generator().manual_seed(seed)).tolist()
    texts = ["".join(bits) for depth in (1, 2, 3) for bits in product("01", repeat=depth)]
    return dict(zip(texts, numbers, strict=True))


@pytest.mark.parametrize("seed", range(8))
def test_a_beam_over_all_leaves_is_brute_force(seed):
    """Depth 3, branching 2."""
    values = tree_values(seed)
    best, leaves = beam(values, beams=8)
    assert (best, leaves) == (brute_force(values), 8)


def test_a_narrow_beam_is_greedy_and_can_miss_the_best_leaf():
    values = tree_values(0) | {"0": 1.0, "1": 0.0, "00": 0.5, "01": 0.4, "000": 0.1, "001": 0.2, "111": 3.0}
    assert beam(values, beams=1) == ("001", 2)
    assert beam(values, beams=4)[0] == "111"


def test_survivors_stay_in_their_slots_and_free_slots_are_filled_in_order():
    rewards = {0: 0.1, 1: 0.9, 2: 0.3, 3: 0.8}
    assert prune(rewards, 1, range(4)) == [Branch(0, 1, 1), Branch(1, 1, 0), Branch(2, 1, 2), Branch(3, 1, 3)]
    assert prune(rewards, 2, range(4)) == [Branch(0, 1, 1), Branch(1, 1, 0), Branch(2, 3, 1), Branch(3, 3, 0)]
    assert prune(rewards, 4, range(4)) == [Branch(slot, slot) for slot in range(4)]
    assert prune({5: 1.0, 4: 1.0}, 1, (4, 5)) == [Branch(4, 4), Branch(5, 4, 1)]  # a tie: the lower slot


@given(st.lists(st.integers(0, 5), min_size=6, max_size=6), st.randoms())
def test_slots_depend_on_the_number_of_copies_alone(parents, draw):
    branches = settle_copies(sorted(parents), range(6))
    assert [branch.slot for branch in branches] == list(range(6))
    assert sorted(branch.parent for branch in branches) == sorted(parents)
    for parent in set(parents):
        assert branches[parent] == Branch(parent, parent)
    counts = {parent: parents.count(parent) for parent in parents}
    assert counts == {parent: sum(b.parent == parent for b in branches) for parent in counts}


def test_the_end_of_a_window_is_scored():
    assert score_span((14, 34), 1.0, 10.0) == (24, 34)
    assert score_span((14, 34), 9.0, 10.0) == (14, 34)
    assert score_span((14, 34), 0.0, 10.0) == (0, 34)


def test_without_pruning_it_is_best_of_n_and_one_song_is_the_plain_one():
    plain = plain_songs(4)
    for rule in (ChunkPruner(n=4, survivors=4), ChunkParticles(particles=4, strength=0)):
        assert torch.equal(latents_of(rule(search_task(local_model(), budget=4, **LONG))), latents_of(plain))
    (single,) = ChunkPruner()(search_task(local_model(), budget=1, **LONG))
    (song,) = plain_songs(1)  # in a batch of its own
    assert torch.equal(single.latents, song.latents)
    short = ChunkPruner(n=3)(search_task(local_model(), budget=3))
    assert torch.equal(latents_of(short), latents_of(search_task(local_model(), budget=3).songs(range(3))))


@pytest.mark.parametrize("rule", METHODS, ids=str)
def test_it_costs_what_best_of_n_costs_and_songs_share_the_beginnings_that_were_kept(rule):
    model = local_model()
    calls = Calls(model)
    task = search_task(model, budget=4, **LONG)
    songs = rule(task)
    assert len(songs) == 4
    assert task.nfe == calls.rows == 4 * task.song_nfe
    assert task.windows == 4
    lineages = [song.details["lineage"] for song in songs]
    assert all(len(lineage) == 4 for lineage in lineages)
    assert [lineage[-1] for lineage in lineages] == [0, 1, 2, 3]
    for turn in (1, 2, 3):
        frames = 20 + 14 * (turn - 1)
        beginnings = {tuple(song.latents[:frames].flatten().tolist()) for song in songs}
        assert len(beginnings) == len({tuple(lineage[:turn]) for lineage in lineages})
    assert len({tuple(song.latents.flatten().tolist()) for song in songs}) == 4
    survivors = getattr(rule, "survivors", None)
    if survivors:
        assert len({lineage[2] for lineage in lineages}) <= survivors


def test_pruning_keeps_the_prefix_of_the_largest_reward():
    """After the first window: the plain song whose first two seconds score best."""
    task = search_task(local_model(), budget=4, **LONG)
    plain = plain_songs(4)
    rewards = [reward.value for reward in task.score([song.latents[:20] for song in plain], (0, 20))]
    songs = ChunkPruner(n=4)(search_task(local_model(), budget=4, **LONG))
    best = rewards.index(max(rewards))
    assert {song.details["lineage"][0] for song in songs} == {best}
    assert all(song.details["prefix_rewards"][0] == pytest.approx(max(rewards)) for song in songs)
    assert torch.equal(songs[0].latents[:20], plain[best].latents[:20])


@pytest.mark.parametrize("rule", METHODS[1:], ids=str)
def test_a_stopped_search_goes_on_behind_the_last_window(rule):
    task = search_task(local_model(), budget=4, **LONG)
    whole, window = rule(task), task.nfe // 4
    model = local_model()
    store = store_for(model)
    calls = Calls(model, limit=2 * window + window // 2)
    with pytest.raises(KeyboardInterrupt):
        rule(search_task(model, budget=4, store=store, **LONG))
    calls.limit, calls.rows = None, 0
    again = search_task(model, budget=4, store=store, **LONG)
    assert torch.equal(latents_of(rule(again)), latents_of(whole))
    assert calls.rows == 2 * window
    assert again.nfe == task.nfe


def test_the_batch_changes_no_winner_and_groups_are_nested():
    rule = ChunkPruner(n=2)
    results = [
        search_prompt(search_task(local_model(), budget=4, batch=batch, **LONG), rule) for batch in (8, 1)
    ]
    assert results[0].winner.sample_id == results[1].winner.sample_id
    error = (results[0].winner.latents - results[1].winner.latents).abs().max()
    assert error < 1e-5 * results[0].winner.latents.abs().max()
    first = rule(search_task(local_model(), budget=3, **LONG))
    numbers = {song.number: song for song in results[0].songs}
    assert torch.equal(latents_of(first), latents_of([numbers[0], numbers[1]]))
    assert not rule.joint
    assert ChunkPruner().joint


def test_the_weights_of_windows_telescope():
    """Log weights add up to reward / alpha exactly, whatever beginnings were worth, if nothing is copied."""
    for beta in (0.0, 0.7, 1.0):
        rule = ChunkParticles(particles=5, strength=1 / 0.3, prefix_weight=beta, share=0.0)
        state = begin_weights(5)
        rewards = torch.randn(4, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        previous = torch.zeros(5, dtype=torch.float64)
        for values in rewards[:-1]:
            before = state[LOG_WEIGHT]
            state, parents, _ = rule.weigh_prefixes(state, values, torch.rand(1))
            assert parents == list(range(5))
            assert torch.allclose(state[LOG_WEIGHT] - before, beta * (values - previous) / 0.3, atol=1e-12)
            previous = values
        songs = rule.weigh_songs(state, rewards[-1])
        assert torch.allclose(songs, rewards[-1] / 0.3, atol=1e-12)


def test_boundary_weights_reach_the_tilted_law():
    """Songs of three windows of N(0, 1), reward their sum: under exp(r / 2) the mean of each window is 1/2."""
    rule = ChunkParticles(particles=64, strength=0.5, prefix_weight=1.0, share=0.5)
    draw = torch.Generator().manual_seed(0)
    totals = []
    for _ in range(200):
        state, songs = begin_weights(64), torch.zeros(64, 0, dtype=torch.float64)
        for turn in range(3):
            songs = torch.cat([songs, torch.randn(64, 1, generator=draw, dtype=torch.float64)], 1)
            if turn < 2:
                state, parents, _ = rule.weigh_prefixes(state, songs.sum(1), torch.rand(1, generator=draw))
                songs = songs[torch.tensor(parents)]
        shares = torch.softmax(rule.weigh_songs(state, songs.sum(1)), 0)
        totals.append((shares[:, None] * songs).sum(0))
    assert torch.allclose(torch.stack(totals).mean(0), torch.full((3,), 0.5, dtype=torch.float64), atol=0.04)


def test_what_does_not_fit_is_refused_in_one_line():
    with pytest.raises(ValueError, match="survivors=3 must be at most n=2"):
        ChunkPruner(n=2, survivors=3)
    with pytest.raises(ConfigError, match=r"4 songs are more than search\.budget=3"):
        ChunkPruner(n=4)(search_task(local_model(), budget=3))
    task = search_task(local_model(), **LONG)
    task.longform = LongformConfig(method="joint", window_s=2.0, overlap_s=0.6)
    with pytest.raises(ConfigError, match=r"set longform\.method=continue"):
        ChunkParticles()(task)


def test_a_stochastic_solver_gives_each_slot_its_own_steps_too():
    songs = ChunkPruner(n=2)(search_task(local_model(), budget=2, solver=Choice("sde"), **LONG))
    assert not torch.equal(songs[0].latents, songs[1].latents)
    assert songs[0].details["lineage"][:-1] == songs[1].details["lineage"][:-1]
