"""A probe learns what is planted in latents, is judged on unseen prompts, and its file says where it is from."""

import json

import pytest
import torch
from typer.testing import CliRunner

from diffdpo.cli import app
from diffdpo.data import tables
from diffdpo.data.latents import write_latents
from diffdpo.data.samples import SAMPLES, SampleRow, Samples, write_prompts
from diffdpo.data.scores import SCORES, score_rows
from diffdpo.errors import DataError
from diffdpo.models.latent_probe import read_probe
from diffdpo.runs import finish
from diffdpo.training.probe_fit import ProbeData, ProbeFit, fit_probe
from diffdpo.types import Prompt

pytestmark = pytest.mark.slow

CHANNELS = 4
FIT = ProbeFit(width=8, hidden=16, steps=150)


def planted(songs=60, groups=12, noise=0.3, seed=0):
    """Songs whose value is the mean of their first channel, in standard deviations."""
    random = torch.Generator().manual_seed(seed)
    levels = torch.randn(songs, generator=random)
    latents = []
    for number, level in enumerate(levels):
        song = torch.randn(16 + number % 5, CHANNELS, generator=random)
        song[:, 0] = song[:, 0] * 0.5 + level
        latents.append(song)
    values = levels + noise * torch.randn(songs, generator=random)
    values = (values - values.mean()) / values.std()
    return ProbeData(
        ids=[f"s{n}" for n in range(songs)],
        latents=latents,
        values=values,
        groups=[f"g{n % groups}" for n in range(songs)],
    )


def test_what_is_planted_is_read_on_songs_of_other_prompts():
    data = planted()
    result = fit_probe(data, FIT, seed=1)
    assert result.correlations["0"] > 0.8
    assert result.correlations["0.8"] > 0.3
    assert result.group_correlations["0"] > 0.8  # the groups say nothing of the values
    assert 0 < result.held_out_songs < len(data.ids) / 2
    short = ProbeFit(width=8, hidden=16, steps=5)
    assert fit_probe(data, short, seed=1).correlations == fit_probe(data, short, seed=1).correlations
    song = data.latents[0][None]
    mask = torch.ones(song.shape[:2], dtype=torch.bool)
    leaf = song.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(result.probe(leaf, torch.tensor([0.3]), mask).sum(), leaf)
    assert gradient[..., 0].mean() > 3 * gradient[..., 1:].mean((0, 1)).abs().max()


def test_values_that_mean_nothing_have_no_correlation_on_other_prompts():
    data = planted()
    random = torch.randn(len(data.ids), generator=torch.Generator().manual_seed(5))
    nothing = ProbeData(ids=data.ids, latents=data.latents, values=random, groups=data.groups)
    assert abs(fit_probe(nothing, FIT, seed=1).correlations["0"]) < 0.6


def test_few_songs_are_refused():
    with pytest.raises(DataError, match="a probe needs 20 songs of 5 groups"):
        fit_probe(planted(songs=10), FIT, seed=0)
    with pytest.raises(DataError, match="of 2 prompt groups"):
        fit_probe(planted(groups=2), FIT, seed=0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Samples with a score of structure.form each, as `sample` and `score` leave them."""
    root, data = tmp_path_factory.mktemp("probe"), planted()
    samples = Samples(root / "samples")
    samples.folder.mkdir()
    prompts = {group: Prompt(id=group, text=group, duration_s=2) for group in data.groups}
    write_prompts(samples.folder / "prompts.jsonl", prompts.values(), {})
    rows, scores = [], []
    for name, latents, value, group in zip(data.ids, data.latents, data.values, data.groups, strict=True):
        samples.latents(name).parent.mkdir(exist_ok=True)
        write_latents(samples.latents(name), latents)
        rows.append(
            SampleRow(
                sample_id=name, prompt_id=group, group=group, model='{"name": "tiny"}', sha256=f"hash-{name}"
            )
        )
        scores += score_rows(f"hash-{name}", "1", "structure", "f" * 16, [("structure.form", float(value))])
    tables.append(samples.folder, SAMPLES, rows)
    finish(samples.folder)
    (root / "scores").mkdir()
    tables.append(root / "scores", SCORES, scores)
    finish(root / "scores", scorers={"structure": "f" * 16})
    return root


def command(folder, out, *words):
    return CliRunner().invoke(
        app,
        [
            "probe", "fit", f"out={out}", f"samples=[{folder / 'samples'}]", f"scores={folder / 'scores'}",
            "axis=structure.form", "fit.steps=150", "fit.width=8", "fit.hidden=16", *words,
        ],
    )  # fmt: skip


def test_the_command_writes_a_file_with_its_provenance(folder, tmp_path):
    out = tmp_path / "form.safetensors"
    result = command(folder, out)
    assert result.exit_code == 0, result.output
    assert "t = 0: correlation +0." in result.output
    probe, card = read_probe(out)
    assert probe.channels == CHANNELS
    assert card.axis == "structure.form"
    assert card.songs == 60
    assert json.loads(card.model) == {"name": "tiny"}
    assert card.scorer == "f" * 16
    assert card.correlations["0"] > 0.8
    assert 0.3 < card.correlation < 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["axis=structure.from"], "Did you mean 'structure.form'"),
        (["axis=harmony.key"], "no score of harmony.key"),
        (["axis=form.order"], "judges"),
        (["samples=[]"], "name at least one folder"),
        (["out=probe.pt"], "a .safetensors file"),
        (["fit.steps=0"], "fit.steps"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_what_cannot_be_fitted_is_refused_in_one_line(folder, tmp_path, words, message):
    result = command(folder, tmp_path / "a.safetensors", *words)
    assert result.exit_code == 2
    assert message in result.output
    assert result.output.startswith("error: ")


def test_a_dry_run_prints_the_configuration_and_fits_nothing(folder, tmp_path):
    result = command(folder, tmp_path / "a.safetensors", "--dry-run")
    assert "width: 8" in result.output
    assert not (tmp_path / "a.safetensors").exists()
