"""Licenses and consents of data reach manifests and cards of what is made from it, through every stage."""

import json

import pytest
from huggingface_hub import ModelCard
from support.launch import verb
from support.songs import write_pairs, write_prepared, write_ratings

from diffdpo.data import tables
from diffdpo.data.licenses import DataTerms, card_license, license_kind, may_share, merge_terms
from diffdpo.data.lineage import RunFolder, ancestors, data_terms, find_runs, run_folder_of
from diffdpo.data.pairs import PAIRS, PairRow
from diffdpo.data.samples import SAMPLES, SampleRow
from diffdpo.data.songs import SongRow
from diffdpo.data.votes import OPINIONS, VOTES, OpinionRow, VoteRow
from diffdpo.errors import ConfigError
from diffdpo.models.adapters import save_adapter
from diffdpo.models.diffrhythm.checkpoints import load_network
from diffdpo.recipes.export_adapter import AdapterExport, export_adapter
from diffdpo.runs import finish, read_json
from diffdpo.training.config import LoraConfig
from diffdpo.training.lora import add_lora


def vote(number: int, **values) -> VoteRow:
    return VoteRow(
        **{"vote_id": str(number), "source": "study", "song_a": "a", "song_b": "b", "answer": "a", **values}
    )


def write_votes(folder, *rows):
    tables.append(folder, VOTES, rows)
    return folder


def write_run(folder, config: str, **entries):
    """A finished run of a configuration."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(config)
    finish(folder, **entries)
    return folder


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("CC-BY-NC-SA-4.0", "non-commercial"), ("cc by nc 4.0", "non-commercial"),
        ("Non-commercial use", "non-commercial"),
        ("", "unknown"), ("Unknown", "unknown"), ("not stated", "unknown"),
        ("CC-BY-ND-4.0", "no derivatives"), ("CC BY-SA 3.0", "share alike"), ("GPL-3.0", "share alike"),
        ("CC-BY-4.0", "attribution"), ("CC0-1.0", "permissive"), ("Apache-2.0", "permissive"),
        ("MIT", "permissive"),
        ("Stability AI Community License", "other terms"),
    ],
)  # fmt: skip
def test_kinds_of_licenses(name, kind):
    assert license_kind(name) == kind
    assert may_share(name) == (kind not in ("unknown", "no derivatives", "other terms"))


def test_the_strictest_license_is_first_and_consents_add_up():
    terms = merge_terms(
        [
            DataTerms({"a": ("CC-BY-4.0",)}, ("2/de",)),
            DataTerms({"b": ("unknown",), "a": ("CC0-1.0",)}, ("1/en", "2/de")),
            DataTerms({"c": ("CC-BY-NC-4.0",)}),
        ]
    )
    assert terms.names == ("CC-BY-NC-4.0", "unknown", "CC-BY-4.0", "CC0-1.0")
    assert terms.consents == ("1/en", "2/de")
    assert terms.is_noncommercial
    assert terms.has_unknown
    assert "Not for commercial use" in terms.summary()
    assert "no stated license" in terms.summary()
    assert DataTerms({"a": ("MIT",)}).summary() == ""


def test_a_commercial_license_over_non_commercial_data_is_refused():
    strict, free = DataTerms({"a": ("CC-BY-NC-SA-4.0",)}), DataTerms({"a": ("CC-BY-4.0",)})
    assert card_license(strict, "") == "cc-by-nc-sa-4.0"
    assert card_license(strict, "cc-by-nc-4.0") == "cc-by-nc-4.0"
    assert card_license(free, "mit") == "mit"
    assert card_license(free, "") == ""
    with pytest.raises(ConfigError, match="forbids commercial use"):
        card_license(strict, "mit")


def test_terms_go_from_votes_through_pairs_and_rounds(tmp_path, monkeypatch):
    """The next round's samples come from the adapter, so its pairs inherit what the adapter was trained on."""
    monkeypatch.chdir(tmp_path)
    runs = tmp_path / "runs"
    write_votes(
        runs / "votes",
        vote(1, license="CC-BY-NC-4.0", consent="3f/en"),
        vote(2, source="arena", license="CC-BY-4.0"),
    )
    write_run(runs / "pairs", "votes: runs/votes\nout: runs/pairs\n")
    write_run(runs / "train", "data:\n  pairs: runs/pairs\nout: runs/train\n", steps=2)
    (runs / "train/checkpoints/step-2/export").mkdir(parents=True)
    adapter = "runs/train/checkpoints/step-2/export"
    tables.append(
        runs / "samples",
        SAMPLES,
        [
            SampleRow(
                sample_id="p.0",
                prompt_id="p",
                model=json.dumps({"name": "tiny", "adapter": f"{adapter}@0.7"}),
            )
        ],
    )
    tables.append(
        runs / "next", PAIRS, [PairRow(prompt_id="p", samples="../samples", winner="p.0", loser="p.1")]
    )
    terms = data_terms(["runs/next"])
    assert terms.licenses == {"study": ("CC-BY-NC-4.0",), "arena": ("CC-BY-4.0",)}
    assert terms.consents == ("3f/en",)
    names = {path.name for path in ancestors(runs / "next")}
    assert names == {"next", "samples", "train", "pairs", "votes"}
    assert run_folder_of(tmp_path / adapter) == runs / "train"
    assert set(find_runs([runs])) == {runs / name for name in names}


@pytest.mark.parametrize("kind", ["votes", "opinions", "songs", "scores"])
def test_every_kind_of_data_has_its_terms_by_the_same_rule(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    source, license_name = tmp_path / "source", "CC-BY-NC-SA-4.0"
    if kind == "votes":
        write_votes(source, vote(1, license=license_name), vote(2))
    elif kind == "opinions":
        rows = [
            OpinionRow(opinion_id="1", source="x", song="s", scale="stars", value=2.0, license=license_name)
        ]
        tables.append(source, OPINIONS, rows)
    elif kind == "songs":
        write_prepared(
            source, [SongRow(id="s", frames=4, license=license_name), SongRow(id="t", error="damaged")]
        )
    else:
        finish(source, licenses={"songeval": [license_name], "rhythm": []})
    write_run(tmp_path / "run", "data: {x: source}\n")
    terms = data_terms([tmp_path / "run"])
    assert license_name in terms.names
    assert terms.has_unknown == (kind == "votes")
    assert terms.is_noncommercial


@pytest.fixture(scope="module")
def weights(bundle):
    network = load_network(bundle / "network")
    add_lora(network, LoraConfig(rank=2, alpha=2.0, targets=["q_proj"]), (), seed=0)
    return network


def test_the_card_of_an_adapter_says_what_its_votes_allow(weights, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_votes(
        tmp_path / "votes",
        vote(1, source="songeval", license="CC-BY-NC-SA-4.0"),
        vote(2, source="musicprefs", license="unknown"),
        vote(3, license="CC-BY-4.0", consent="3f2a/en"),
        vote(4, license="CC-BY-4.0", consent="3f2a/de"),
    )
    write_run(tmp_path / "pairs", "votes: votes\n")
    write_run(tmp_path / "train", "data: {pairs: pairs}\n", steps=1)
    save_adapter(weights, weights.state_dict(), tmp_path / "train/export")
    settings = AdapterExport(source=tmp_path / "train/export", target=tmp_path / "out")
    export_adapter(settings)
    card = ModelCard.load(tmp_path / "out/README.md")
    assert card.data.license == "cc-by-nc-sa-4.0", "no commercial use dominates"
    for text in (
        "* data: CC-BY-NC-SA-4.0 (songeval): no commercial use",
        "* data: unknown (musicprefs): NOBODY STATED A LICENSE",
        "* consent of listeners: 3f2a/de",
        "* consent of listeners: 3f2a/en",
        "**Not for commercial use**",
    ):
        assert text in card.content
    manifest = read_json(tmp_path / "out/manifest.json")
    assert manifest["licenses"]["songeval"] == ["CC-BY-NC-SA-4.0"]
    assert manifest["consents"] == ["3f2a/de", "3f2a/en"]
    assert data_terms([tmp_path / "out"]).names[0] == "CC-BY-NC-SA-4.0", "also of the exported adapter"
    with pytest.raises(ConfigError, match="forbids commercial use"):
        export_adapter(AdapterExport(source=settings.source, target=tmp_path / "b", license="apache-2.0"))
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("kind", ["pairs", "ratings"])
def test_a_training_on_votes_writes_their_terms_into_its_manifest(bundle, tmp_path, monkeypatch, kind):
    """A real training of one step, on pairs or ratings whose configuration names the votes; its adapter's card."""
    monkeypatch.chdir(tmp_path)
    pairs = write_pairs(tmp_path)
    write_ratings(tmp_path / "ratings", tmp_path / "samples", {f"p{k:02d}.000": (-1) ** k for k in range(12)})
    write_votes(
        tmp_path / "listen", vote(1, license="CC-BY-NC-4.0", consent="3f2a/en"), vote(2, source="bare")
    )
    folder = {"pairs": pairs, "ratings": tmp_path / "ratings"}[kind]
    (folder / "config.yaml").write_text("votes: [listen]\n")
    verb(
        "train", "out=run", f"data.{kind}={folder}", f"model.args.bundle={bundle}", "train.lora.rank=2",
        "train.steps=1", "train.global_batch=2", "train.per_device=2",
        f"objective={'dpo' if kind == 'pairs' else 'kto'}",
    )  # fmt: skip
    manifest = read_json(tmp_path / "run/manifest.json")
    assert manifest["licenses"] == {"bare": ["unknown"], "study": ["CC-BY-NC-4.0"]}
    assert manifest["consents"] == ["3f2a/en"]
    verb("export-adapter", tmp_path / "run" / manifest["result"], tmp_path / "out")
    card = ModelCard.load(tmp_path / "out/README.md")
    assert card.data.license == "cc-by-nc-4.0"
    assert "NOBODY STATED A LICENSE" in card.content
    assert "* consent of listeners: 3f2a/en" in card.content


def test_a_manifest_that_is_none_and_a_damaged_table_give_no_terms(tmp_path):
    (tmp_path / "manifest.json").write_text("[1, 2")
    (tmp_path / "votes.parquet").write_bytes(b"nothing")
    assert RunFolder(tmp_path).terms() == DataTerms()
