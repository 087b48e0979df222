"""TuneJury's head: the published layout, its strictness and its terms; and it never judges."""

import pytest
import torch
from contract.scorer_fixtures import write_tunejury
from safetensors.torch import load_file, save_file
from torch import nn

from diffdpo.encoders.tunejury import load_tunejury
from diffdpo.errors import ConfigError, DataError, UserError
from diffdpo.parts import build_scorers
from diffdpo.recipes.evaluate import EvaluateRun
from diffdpo.recipes.round import RoundRun
from diffdpo.scorers.axes import check_judges, diagnosis_axes, judge_axes, mined_axes
from diffdpo.scorers.tunejury import TUNEJURY_FILE, TuneJury


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("tunejury")
    write_tunejury(root)
    return root


def plain_network():
    """As the layout says, with dropout in the places that have no number in the file."""
    layers = []
    for inputs, outputs in ((1024, 512), (512, 256), (256, 128), (128, 64)):
        layers += [nn.Linear(inputs, outputs), nn.BatchNorm1d(outputs), nn.ReLU(), nn.Dropout(0.3)]
    return nn.Sequential(*layers, nn.Linear(64, 1))


def test_the_head_is_the_plain_network_with_the_sound_first(folder):
    state = load_file(folder / TUNEJURY_FILE)
    assert {name.split(".")[1] for name in state} == {"0", "1", "4", "5", "8", "9", "12", "13", "16"}
    network = plain_network()
    network.load_state_dict({name.removeprefix("score."): tensor for name, tensor in state.items()})
    sound, text = torch.randn(2, 5, 512)
    with torch.no_grad():
        expected = network.eval()(torch.cat([sound, text], 1))[:, 0]
        values = load_tunejury(folder / TUNEJURY_FILE)(sound, text)
    assert torch.allclose(values, expected, atol=1e-5)
    assert values.std() > 0.01
    assert not torch.allclose(values[:1], values[1:2])


@pytest.mark.parametrize("wrapper", ["", "state_dict", "model_state_dict"])
def test_a_file_of_torch_is_read_as_well(folder, tmp_path, wrapper):
    state = load_file(folder / TUNEJURY_FILE)
    torch.save({wrapper: state} if wrapper else state, tmp_path / "head.pt")
    head = load_tunejury(tmp_path / "head.pt")
    assert torch.equal(head.score[0].weight, state["score.0.weight"])


@pytest.mark.parametrize("fault", ["missing", "surplus", "shape", "pickle"])
def test_names_and_shapes_are_strict(folder, tmp_path, fault):
    state = load_file(folder / TUNEJURY_FILE)
    if fault == "missing":
        del state["score.5.running_mean"]
    elif fault == "surplus":
        state["score.17.weight"] = torch.zeros(1)
    elif fault == "shape":
        state["score.0.weight"] = torch.zeros(512, 1536)
    path = tmp_path / f"{fault}.safetensors"
    save_file(state, path)
    if fault == "pickle":
        path = tmp_path / "list.pt"
        torch.save({"score": [1, 2]}, path)
    with pytest.raises(UserError) as error:
        load_tunejury(path)
    assert "\n" not in str(error.value)
    assert path.name in str(error.value)


def test_its_license_has_to_be_accepted_and_is_carried(folder):
    with pytest.raises(DataError, match="non-commercial"):
        TuneJury(head=str(folder), weights=str(folder), tokenizer=str(folder))([])
    with pytest.raises(DataError, match="no head"):
        TuneJury(accept_noncommercial=True)([])
    (scorer,) = build_scorers([{"name": "tunejury", "args": {"head": str(folder)}}]).values()
    assert "CC-BY-NC-4.0" in scorer.licenses


def test_it_is_mined_by_name_only_and_never_judges():
    axis = "tunejury.preference"
    assert not TuneJury.judge_only
    assert axis not in judge_axes()
    assert axis in diagnosis_axes([axis, "note.triad"])
    assert mined_axes([], {axis, "harmony.key"}) == ["harmony.key"]
    assert mined_axes([axis], {axis}) == [axis]
    with pytest.raises(ConfigError, match=r"may not judge: .*newer"):
        check_judges([axis])
    with pytest.raises(ConfigError, match="may not judge"):
        EvaluateRun(baseline="a", aligned="b", scores="c", out="d", judges=[axis]).check_parts()
    round_run = RoundRun(out="o")
    round_run.evaluate.judges = [axis]
    with pytest.raises(ConfigError, match="may not judge"):
        round_run.check_parts()
