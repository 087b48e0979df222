"""Every registered song model in turn, those of other packages too; one such package is on the path."""

from dataclasses import replace

import pytest
from support.model_contract import STRANGER, Subject, model_fixture, on_path

from diffdpo.models import MODELS

with on_path(STRANGER):
    MODEL_NAMES = sorted(MODELS)


@pytest.fixture(scope="module", params=MODEL_NAMES)
def subject(request, tmp_path_factory):
    """A model that no test changes."""
    fixture = model_fixture(request.param)
    folder = tmp_path_factory.getbasetemp() / "models" / request.param
    folder.mkdir(parents=True, exist_ok=True)
    with on_path(STRANGER):
        yield Subject(request.param, fixture, folder, fixture.load(folder))


@pytest.fixture
def fresh(subject):
    """The same model, loaded again to be changed."""
    return replace(subject, model=subject.load())
