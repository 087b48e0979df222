"""torchao is imported when it is used, and not by other libraries; nothing it warns of is heard."""

import importlib
import logging
import sys
import warnings
from importlib.util import find_spec

import pytest

from diffdpo.torchao_import import NOISE, TORCHAO, deferred_torchao, import_torchao, quiet_torchao


def test_while_it_is_deferred_it_counts_as_not_installed(monkeypatch):
    torchao = pytest.importorskip(TORCHAO)
    monkeypatch.delitem(sys.modules, TORCHAO)
    with deferred_torchao():
        assert find_spec(TORCHAO) is None
        with pytest.raises(ImportError):
            importlib.import_module(TORCHAO)
    assert find_spec(TORCHAO) is not None
    monkeypatch.setitem(sys.modules, TORCHAO, torchao)
    with deferred_torchao():  # what is there already stays
        assert importlib.import_module(TORCHAO) is torchao


def test_what_needs_it_has_it_and_peft_asks_again(monkeypatch):
    pytest.importorskip(TORCHAO)
    from peft.import_utils import is_torchao_available

    monkeypatch.delitem(sys.modules, TORCHAO)
    with deferred_torchao():
        is_torchao_available.cache_clear()
        assert not is_torchao_available()
        assert import_torchao("torchao.quantization").Int8WeightOnlyConfig
        assert is_torchao_available()
    assert sys.modules.get(TORCHAO, 0) is not None


def test_only_its_own_warnings_are_silenced(caplog):
    logger = logging.getLogger(NOISE)
    level = logger.level
    with warnings.catch_warnings(record=True) as caught, quiet_torchao():
        logger.warning("an enumeration")
        warnings.warn("TorchaoLoraLinear was instantiated without a subclass", stacklevel=1)
        warnings.warn("something else", stacklevel=1)
        logging.getLogger("torch").warning("another logger")
    assert [str(warning.message) for warning in caught] == ["something else"]
    assert [record.name for record in caplog.records] == ["torch"]
    assert logger.level == level
