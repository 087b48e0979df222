"""Sliders as people write them: contrasts, the prompts that follow from them, and what is refused."""

import json

import pytest
import torch
from support.songs import write_samples

from diffdpo.data.datasets.contrasts import Contrasts, contrasts_digest
from diffdpo.data.datasets.generated import Source
from diffdpo.data.datasets.parts import Part
from diffdpo.data.sliders import contrast_prompts, neutral_prompts, read_sliders, select_slider, slider_names
from diffdpo.errors import ConfigError, DataError
from diffdpo.types import Prompt

FAST = {"name": "fast", "plus": "{neutral}, fast", "minus": "{neutral}, slow", "neutral": ["rock", "jazz"]}
BRIGHT = {"name": "bright", "plus": "a bright song", "minus": "a dark song", "neutral": "a song"}


def write(path, *rows):
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def texts(contrasts, text):
    prompt = Prompt(id="p", text=text, lyrics="la", duration_s=7.0)
    pairs = list(contrast_prompts(prompt, contrasts))
    assert all((p.lyrics, p.duration_s) == ("la", 7.0) for pair in pairs for p in pair)
    return [(plus.text, minus.text) for plus, minus in pairs]


def test_a_slider_is_all_lines_of_its_name(tmp_path):
    more = {**FAST, "plus": "allegro", "minus": "adagio", "neutral": ["a dance"]}
    path = write(tmp_path / "s.jsonl", FAST, BRIGHT, more)
    assert slider_names(path) == ["fast", "bright"]
    fast = select_slider(path, "fast")
    assert [prompt.text for prompt in neutral_prompts(fast, 5.0)] == ["rock", "jazz", "a dance"]
    assert texts(fast, "rock") == [("rock, fast", "rock, slow")]
    assert texts(fast, "a dance") == [("allegro", "adagio")]
    assert texts(fast, "a song") == []
    assert texts(select_slider(path, "bright"), "a song") == [("a bright song", "a dark song")]


def test_attributes_that_are_preserved_are_in_all_three_prompts(tmp_path):
    rows = [{**FAST, "neutral": ["rock"], "preserve": ["sung", "loud"]}, {**BRIGHT, "preserve": ["sung"]}]
    path = write(tmp_path / "s.jsonl", *rows)
    fast, bright = select_slider(path, "fast"), select_slider(path, "bright")
    assert [prompt.text for prompt in neutral_prompts(fast, 5.0)] == ["rock", "rock, sung", "rock, loud"]
    assert texts(fast, "rock, loud") == [("rock, loud, fast", "rock, loud, slow")]
    assert texts(bright, "a song, sung") == [("a bright song, sung", "a dark song, sung")]


def test_without_neutral_prompts_it_is_about_all_songs_that_are_given(tmp_path):
    path = write(tmp_path / "s.jsonl", {key: FAST[key] for key in ("name", "plus", "minus")})
    contrasts = select_slider(path, "")
    assert texts(contrasts, "any song") == [("any song, fast", "any song, slow")]
    with pytest.raises(ConfigError, match=r"data\.samples"):
        neutral_prompts(contrasts, 5.0)


@pytest.mark.parametrize(
    ("row", "match"),
    [
        ({**FAST, "plsu": "x"}, "unknown key 'plsu'.*plus"),
        ({"name": "fast", "plus": "x"}, "needs minus"),
        ({**FAST, "name": " "}, "needs name"),
        ({**FAST, "minus": FAST["plus"]}, "same prompt"),
        ({**FAST, "neutral": 3}, "neutral must be"),
        ({**FAST, "neutral": [], "preserve": ["x"]}, "name neutral prompts"),
    ],
)
def test_a_wrong_line_is_named(tmp_path, row, match):
    with pytest.raises(DataError, match=rf"s.jsonl:2: .*{match}"):
        read_sliders(write(tmp_path / "s.jsonl", BRIGHT, row))


def test_one_of_several_has_to_be_named(tmp_path):
    path = write(tmp_path / "s.jsonl", FAST, BRIGHT)
    with pytest.raises(ConfigError, match="fast, bright"):
        select_slider(path, "")
    with pytest.raises(ConfigError, match="Did you mean 'bright'"):
        select_slider(path, "brigth")
    with pytest.raises(DataError, match="no sliders"):
        read_sliders(write(tmp_path / "empty.jsonl"))


def embed(prompt):
    words = sorted(prompt.text.replace(",", "").split())
    return {"words": torch.tensor([float(len(word)) for word in words if word != "unknown"])}


SOURCE = Source(embed=embed, embed_plan=lambda plan: {}, frames_per_second=10.0, seed=3, report=print)


@pytest.fixture
def samples(tmp_path):
    """Songs of six prompts, "fast metal" and "slow rock" in turn."""
    return write_samples(tmp_path / "samples", prompts=6, per_prompt=2)


def test_songs_meet_the_contrasts_of_their_prompts(tmp_path, samples):
    loud = {"name": "loud", "plus": "{neutral} loud", "minus": "{neutral} so quiet", "neutral": "slow rock"}
    data = Contrasts(samples, read_sliders(write(tmp_path / "s.jsonl", loud)), SOURCE, scales=[-1, 1, 2])
    assert len(data) == 6  # three prompts of two songs
    examples = [data.example(position % 6, position) for position in range(60)]
    assert {example.scale for example in examples} == {-1, 1, 2}
    assert [e.scale for e in examples] == [data.example(0, position).scale for position in range(60)]
    batch = data.collate(examples[:3], range(3))
    assert batch.scale.tolist() == [e.scale for e in examples[:3]]
    for index, example in enumerate(examples[:3]):
        assert torch.equal(batch.latents[index, 0, : len(example.latents)], example.latents)
        for rows, words in ((batch.rows, "slow rock"), (batch.plus_rows, "slow rock loud")):
            assert torch.equal(rows[index][0].embedding["words"], embed(Prompt(id="p", text=words))["words"])
            assert rows[index][0].frames == len(example.latents)
    held_out = Contrasts(samples, read_sliders(tmp_path / "s.jsonl"), SOURCE, part=Part("validation", 0.5))
    trained = Contrasts(samples, read_sliders(tmp_path / "s.jsonl"), SOURCE, part=Part("train", 0.5))
    assert {name for name, _ in held_out.examples}.isdisjoint(name for name, _ in trained.examples)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"neutral": ["slow rock", "polka"]}, "no song of the neutral prompt 'polka'"),
        ({"plus": "{neutral} unknown", "minus": "{neutral}"}, "alike"),
    ],
)
def test_what_cannot_be_learned_is_refused(tmp_path, samples, changes, match):
    row = {"name": "x", "plus": "{neutral} a", "minus": "{neutral} bb", "neutral": "slow rock", **changes}
    with pytest.raises(DataError, match=match):
        Contrasts(samples, read_sliders(write(tmp_path / "s.jsonl", row)), SOURCE)


def test_the_digest_sees_the_slider_and_the_songs(tmp_path, samples):
    first, second = (read_sliders(write(tmp_path / "s.jsonl", row)) for row in (FAST, BRIGHT))
    digests = {contrasts_digest(c, folder) for c in (first, second) for folder in ("", str(samples))}
    assert len(digests) == 4
    assert contrasts_digest(first, str(samples)) in digests
