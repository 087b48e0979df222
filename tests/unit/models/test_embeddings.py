"""Embeddings by content: each is computed once, survives its file, and needs no encoders any more."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from support.local_model import LocalModel

from diffdpo import audio
from diffdpo.data.plans import plan_digest
from diffdpo.errors import DataError
from diffdpo.models import MODELS
from diffdpo.models.embeddings import (
    EmbeddingStore,
    prompt_digest,
    read_embedding,
    write_embedding,
)
from diffdpo.types import Clip, Plan, Prompt

RATE = 8000


def clip(seed=0, channels=2, count=800):
    samples = np.random.default_rng(seed).normal(0, 0.1, (channels, count)).astype(np.float32)
    return Clip(samples=samples, sample_rate=RATE)


def equal(one, two):
    return one.keys() == two.keys() and all(
        one[name].dtype == two[name].dtype and torch.equal(one[name], two[name]) for name in one
    )


def prompt(**changes):
    fields = {
        "id": "a", "text": "rock", "lyrics": "[00:01.00]la", "language": "en", "duration_s": 7.0,
        "negative_text": "noise", "controls": (("bpm", 90), ("sections", ((0.0, "verse"),))),
    }  # fmt: skip
    return Prompt(**{**fields, **changes})


def test_a_prompt_is_known_by_what_it_says_not_by_its_name_or_group():
    same = prompt_digest(prompt())
    assert prompt_digest(prompt(id="b", group="other")) == same
    changes = (
        {"text": "rocks"}, {"text": None}, {"lyrics": None}, {"lyrics": ""}, {"language": None},
        {"duration_s": 8.0}, {"negative_text": None}, {"controls": ()},
        {"controls": (("bpm", 91), ("sections", ((0.0, "verse"),)))},
        {"controls": (("bpm", 90), ("sections", ((0.0, "chorus"),)))}, {"style_audio": clip()},
    )  # fmt: skip
    digests = {prompt_digest(prompt(**change)) for change in changes}
    assert len(digests | {same}) == len(changes) + 1


def test_a_recording_is_known_by_its_sound_not_by_its_path(tmp_path):
    for name, seed in (("one", 0), ("two", 0), ("other", 1)):
        audio.write(tmp_path / f"{name}.wav", clip(seed))

    def digest(name):
        return prompt_digest(prompt(style_audio=str(tmp_path / f"{name}.wav")))

    assert digest("one") == digest("two") != digest("other")
    before = digest("one")
    (tmp_path / "one.wav").write_bytes((tmp_path / "other.wav").read_bytes())
    assert digest("one") != before
    with pytest.raises(DataError, match=r"nowhere\.wav: cannot be read \(No such file or directory\)"):
        digest("nowhere")


def test_a_clip_is_known_by_its_samples_its_rate_and_its_channels():
    whole = clip()
    flat = Clip(samples=whole.samples.reshape(1, -1), sample_rate=RATE)  # the same bytes as one channel
    clips = [whole, clip(1), replace(whole, sample_rate=2 * RATE), flat]
    digests = [prompt_digest(prompt(style_audio=one)) for one in clips]
    assert len(set(digests)) == len(clips)
    strided = Clip(samples=np.repeat(whole.samples, 2, axis=1)[:, ::2], sample_rate=RATE)
    assert prompt_digest(prompt(style_audio=strided)) == digests[0]


def test_equal_prompts_are_embedded_once():
    model = LocalModel()
    store = EmbeddingStore(model)
    first = store.embed(Prompt(id="a", text="rock"))
    assert store.embed(Prompt(id="b", text="rock", group="g")) is first
    store.embed(Prompt(id="c", text="jazz"))
    assert model.prompt_ids == ["a", "c"]


def test_embeddings_survive_the_folder_bit_for_bit_and_need_no_encoders(tmp_path, bundle):
    """With the real encoders: text, recording, both, neither."""
    model = MODELS["tiny"](bundle=str(bundle)).load()
    sound = Clip(samples=clip(count=44100).samples, sample_rate=44100)
    prompts = [
        Prompt(id=f"p{i}", text=text, style_audio=recording, controls=controls)
        for i, (text, recording, controls) in enumerate(
            [("rock", None, ()), (None, sound, ()), ("rock", sound, (("start", 0.5),)), (None, None, ())]
        )
    ]
    fresh = [EmbeddingStore(model, tmp_path / "cache").embed(p) for p in prompts]
    assert len(list((tmp_path / "cache").iterdir())) == len(prompts)
    model.place("encoders", None)
    again = EmbeddingStore(model, tmp_path / "cache")
    assert all(equal(again.embed(p), embedding) for p, embedding in zip(prompts, fresh, strict=True))
    with pytest.raises(DataError, match="'new': the encoders were freed"):
        again.embed(Prompt(id="new", text="jazz"))
    with pytest.raises(DataError, match="'p0': the encoders were freed"):
        EmbeddingStore(model).embed(prompts[0])


def test_with_encoders_freed_what_is_in_memory_works():
    model = LocalModel()
    store = EmbeddingStore(model)
    before = store.embed(Prompt(id="a", text="rock"))
    model.place("encoders", None)
    assert store.embed(Prompt(id="b", text="rock")) is before
    with pytest.raises(DataError, match="'c': the encoders were freed"):
        store.embed(Prompt(id="c", text="jazz"))


def test_embeddings_of_another_fingerprint_are_not_taken(tmp_path):
    """Encoders that changed give embeddings of their own beside the old ones."""
    one, two = LocalModel(), LocalModel(fingerprint="local-2")
    for model in (one, two, LocalModel()):
        EmbeddingStore(model, tmp_path).embed(Prompt(id="a", text="rock"))
    assert one.prompt_ids == two.prompt_ids == ["a"]
    assert len(list(tmp_path.iterdir())) == 2


def test_what_the_folder_holds_is_what_is_taken(tmp_path):
    """And a damaged file is named, not computed over in silence."""
    store = EmbeddingStore(LocalModel(), tmp_path)
    store.embed(Prompt(id="a", text="rock"))
    (file,) = tmp_path.iterdir()
    write_embedding(file, {"pull": torch.arange(4.0)})
    again = EmbeddingStore(LocalModel(), tmp_path)
    assert equal(again.embed(Prompt(id="a", text="rock")), {"pull": torch.arange(4.0)})
    file.write_bytes(b"")
    with pytest.raises(DataError, match=rf"{file.name}: damaged .*; delete it"):
        EmbeddingStore(LocalModel(), tmp_path).embed(Prompt(id="a", text="rock"))


def test_embeddings_of_every_kind_survive_their_file(tmp_path):
    table = torch.randn(4, 6)
    shared = {"all": table, "part": table[1:3], "turned": table.T, "again": table}
    kinds = {
        "scalar": torch.tensor(0.1, dtype=torch.float64), "empty": torch.zeros(0, 3), "half": table.half(),
        "brain": table.bfloat16(), "tokens": torch.arange(5), "mask": table > 0,
        "nan": torch.tensor([torch.inf, 1.0]),
    }  # fmt: skip
    for name, embedding in (("shared", shared), ("kinds", kinds), ("none", {})):
        write_embedding(tmp_path / name, embedding)
        assert equal(read_embedding(tmp_path / name), embedding), name
    attached = {"a": torch.ones(3, requires_grad=True) * 2}
    write_embedding(tmp_path / "attached", attached)
    assert equal(read_embedding(tmp_path / "attached"), attached)


def test_an_embedding_without_tensors_is_computed_once_too(tmp_path):
    class Silent(LocalModel):
        """A model to which a prompt says nothing."""

        def embed(self, prompt):
            super().embed(prompt)
            return {}

    first, second = Silent(), Silent()
    for model in (first, second):
        assert EmbeddingStore(model, tmp_path).embed(Prompt(id="a")) == {}
    assert (first.prompt_ids, second.prompt_ids) == (["a"], [])


def test_a_plan_is_known_by_its_planner_and_its_tensors():
    codes = torch.arange(6)
    plan = Plan(planner="p", tensors={"codes": codes})
    others = [
        Plan(planner="q", tensors={"codes": codes}),
        Plan(planner="p", tensors={"code": codes}),
        Plan(planner="p", tensors={"codes": codes.view(2, 3)}),
        Plan(planner="p", tensors={"codes": codes.int()}),
        Plan(planner="p", tensors={"codes": codes + 1}),
        Plan(planner="p", tensors={"codes": codes, "more": torch.zeros(0)}),
        Plan(planner="p", tensors={}),
    ]
    assert len({plan_digest(one) for one in [plan, *others]}) == len(others) + 1
    turned = torch.stack([codes.view(2, 3)[:, i] for i in range(3)]).T.reshape(-1)
    assert plan_digest(Plan(planner="p", tensors={"codes": turned})) == plan_digest(plan)
