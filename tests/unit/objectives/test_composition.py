"""What objectives compose, take and refuse: terms as configuration, data of pairs, unknown keys."""

import re
from dataclasses import dataclass, fields
from importlib import metadata
from pathlib import Path
from typing import ClassVar

import pytest
from support.objectives import TERMS, has

from diffdpo import parts
from diffdpo.errors import ConfigError
from diffdpo.objectives import OBJECTIVES
from diffdpo.objectives.composition import check_takes
from diffdpo.objectives.dpo import DPO
from diffdpo.objectives.terms.margin import AutoBeta, SoftLabel
from diffdpo.objectives.terms.restraints import Anchor, Safeguard
from diffdpo.objectives.terms.weights import Span, TimestepWeight
from diffdpo.registry import Choice

ARGS = {
    "timestep": {"weight": "clipped_elbo"},
    "span": {"share": 0.5},
    "soft_label": {"kind": "ignore"},
    "safeguard": {"mu": 0.5},
    "anchor": {"winner": 1.0},
    "auto_beta": {"target_factor": 0.2},
    "link": {"name": "ipo"},
}
PAGE = Path(__file__).parents[3] / "docs" / "theory" / "objectives.md"


def build(name, **args):
    return parts.build_objective(Choice(name, args))


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("term", ARGS)
def test_a_term_is_taken_or_an_unknown_key(name, term):
    if has(name, term):
        assert getattr(build(name, **{term: ARGS[term]}), term) != getattr(OBJECTIVES[name](), term)
    else:
        with pytest.raises(ConfigError, match=f"objective '{name}': unknown key '{term}'"):
            build(name, **{term: ARGS[term]})


def test_the_table_of_the_documentation_says_which_objective_takes_which_term():
    table = re.search(r"\| objective \| `timestep` (.*?)\n\n", PAGE.read_text(), re.DOTALL)
    assert table
    head, _, *lines = table[0].strip().splitlines()
    terms = [cell.strip(" `") for cell in head.strip("|").split("|")][1:]
    assert set(terms) == set(ARGS)
    documented = {}
    for line in lines:
        name, *cells = (cell.strip(" `") for cell in line.strip().strip("|").split("|"))
        documented[name] = {term for term, cell in zip(terms, cells, strict=True) if cell not in ("", "-")}
    composed = {name: {f.name for f in fields(schema)} & set(ARGS) for name, schema in OBJECTIVES.items()}
    assert documented == composed


def test_all_terms_of_dpo_from_a_configuration():
    objective = build(
        "dpo",
        beta=500,
        link={"name": "robust", "args": {"smoothing": 0.1}},
        reduction="sum",
        timestep={"weight": "clipped_elbo", "clip": 3},
        span={},
        soft_label={"kind": "certainty_margin"},
        safeguard={"mu": 0.25},
        anchor={"winner": 1, "reward": 0.1, "hinge": 0.2, "velocity": 0.3},
        auto_beta={"target_factor": 0.2, "fixed_steps": 5, "decay": 0.9, "range": [1, 100]},
    )
    assert objective == DPO(
        beta=500.0,
        link=Choice("robust", {"smoothing": 0.1}),
        reduction="sum",
        timestep=TimestepWeight("clipped_elbo", 3.0),
        span=Span(0.5),
        soft_label=SoftLabel("certainty_margin"),
        safeguard=Safeguard(0.25),
        anchor=Anchor(1.0, 0.1, 0.2, 0.3),
        auto_beta=AutoBeta(0.2, 5, 0.9, (1.0, 100.0)),
    )
    assert objective.needs == {"reference", "velocities", "frame_errors"}


@pytest.mark.parametrize(
    ("args", "complaint"),
    [
        ({"timestep": {"wieght": "constant"}}, r"unknown key 'timestep.wieght'. Did you mean 'weight'"),
        ({"timestep": {"weight": "elbo"}}, "objective 'dpo': timestep.weight: "),
        ({"timestep_weight": "clipped_elbo"}, "unknown key 'timestep_weight'. Did you mean 'timestep'"),
        ({"timestep": {"clip": -1}}, "objective 'dpo': timestep.clip must be a positive number"),
        ({"safeguard": {"mu": 2}}, r"objective 'dpo': safeguard.mu must be in \[0, 1\], got 2.0"),
        ({"safeguard": 0.5}, "objective 'dpo': "),
        ({"span": {"share": "half"}}, "objective 'dpo': span.share: "),
        ({"link": {"name": "ippo"}}, "unknown link 'ippo'. Did you mean 'ipo'"),
        ({"link": {"name": "ipo", "args": {"beta": 1}}}, "link 'ipo' has no 'beta'"),
        ({"anchor": {"winner": -1}}, "objective 'dpo': anchor.winner must be at least 0, got -1.0"),
    ],
)
def test_a_mistake_in_a_term_is_one_line_that_says_where(args, complaint):
    with pytest.raises(ConfigError, match=complaint) as error:
        build("dpo", **args)
    assert "\n" not in str(error.value)


@dataclass(frozen=True)
class Stranger:
    """An objective of another package, which takes nothing."""

    batch_kind: ClassVar[str] = "pair"
    needs: ClassVar[frozenset] = frozenset()
    takes: ClassVar[frozenset] = frozenset()

    def __call__(self, outputs):
        raise NotImplementedError


def check(objective, soft_labels=False, spans=False):
    check_takes(objective, "mine", soft_labels=soft_labels, spans=spans, location="runs/pairs")


@pytest.mark.parametrize("name", OBJECTIVES)
def test_pairs_without_soft_labels_and_spans_are_for_everybody(name):
    check(OBJECTIVES[name]())
    check(Stranger())


@pytest.mark.parametrize("name", [name for name in OBJECTIVES if has(name, "span")])
def test_spans_have_to_be_taken_or_left_by_the_user(name):
    message = (
        "runs/pairs: the pairs hold spans, which objective 'mine' does not take; "
        "set objective.args.span.share=0.5, or 0 to train on whole songs"
    )
    with pytest.raises(ConfigError) as error:
        check(OBJECTIVES[name](), spans=True)
    assert str(error.value) == message
    for share in (0.5, 0.0):
        check(build(name, span={"share": share}), spans=True)


@pytest.mark.parametrize("name", [name for name in OBJECTIVES if has(name, "soft_label")])
def test_soft_labels_are_taken_and_may_be_left_by_the_user(name):
    check(OBJECTIVES[name](), soft_labels=True)
    check(build(name, soft_label={"kind": "ignore"}), soft_labels=True)


@pytest.mark.parametrize(
    ("data", "mend"),
    [
        ({"soft_labels": True}, "mine with soft_label_temperature=0, or choose an objective"),
        ({"spans": True}, "mine without spans, or choose an objective"),
    ],
)
@pytest.mark.parametrize(
    "objective", [Stranger(), *(OBJECTIVES[n]() for n in ("kto", "nft", "flow_matching"))]
)
def test_an_objective_without_a_term_says_how_to_mend_the_data(objective, data, mend):
    with pytest.raises(ConfigError, match=f"^runs/pairs: the pairs hold .* 'mine' does not take; {mend}"):
        check(objective, **data)


def test_what_is_taken_is_what_there_is_a_term_for():
    for name, schema in OBJECTIVES.items():
        assert schema().takes == {t for t in ("soft_label",) if has(name, t)}
    assert DPO(span=TERMS["span"]).takes == {"soft_label", "span"}


def test_links_and_objectives_of_other_packages_are_found(tmp_path, monkeypatch):
    (tmp_path / "strange_losses.py").write_text(
        "from dataclasses import dataclass\n"
        "from typing import ClassVar\n"
        "from diffdpo.types import LossOutput\n"
        "def cube(chosen, rejected, beta, *, scale: float = 1.0):\n"
        "    return scale * (1 - (chosen - rejected)) ** 3\n"
        "@dataclass(frozen=True)\n"
        "class Sum:\n"
        "    batch_kind: ClassVar[str] = 'pair'\n"
        "    needs: ClassVar[frozenset] = frozenset()\n"
        "    takes: ClassVar[frozenset] = frozenset()\n"
        "    factor: float = 1.0\n"
        "    def __call__(self, outputs):\n"
        "        return LossOutput(loss=self.factor * outputs.policy.sum(1))\n"
    )
    package = tmp_path / "strange-1.0.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: strange\nVersion: 1.0\n")
    (package / "entry_points.txt").write_text(
        "[diffdpo.objectives]\nsum = strange_losses:Sum\n[diffdpo.links]\ncube = strange_losses:cube\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert metadata.entry_points(group="diffdpo.links")
    assert build("sum", factor=2).factor == 2.0
    cubed = build("dpo", link={"name": "cube", "args": {"scale": 3.0}})
    assert cubed.link == Choice("cube", {"scale": 3.0})
    with pytest.raises(ConfigError, match=r"link 'cube' has no 'scal'. Did you mean 'scale'"):
        build("dpo", link={"name": "cube", "args": {"scal": 3.0}})
