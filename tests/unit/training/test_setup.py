"""What is refused before a run starts."""

import pytest

from diffdpo.errors import ConfigError
from diffdpo.models import MODELS
from diffdpo.objectives.dpo import DPO
from diffdpo.objectives.flow_matching import FlowMatching
from diffdpo.objectives.kto import KTO
from diffdpo.objectives.terms.restraints import Safeguard
from diffdpo.training.config import LoraConfig, ReferenceConfig, TrainConfig
from diffdpo.training.setup import add_lora, build_accelerator, build_beside, build_cache, trainable


def test_trackers_must_exist_and_be_installed(tmp_path):
    with pytest.raises(ConfigError, match=r"unknown tracker 'tensorbord'. Did you mean 'tensorboard'\?"):
        build_accelerator(TrainConfig(trackers=["tensorbord"]), str(tmp_path))
    with pytest.raises(ConfigError, match="comet_ml is not installed"):
        build_accelerator(TrainConfig(trackers=["comet_ml"]), str(tmp_path))


def test_half_precision_needs_a_gpu(tmp_path):
    with pytest.raises(ConfigError, match="fp16 needs a GPU"):
        build_accelerator(TrainConfig(precision="fp16", trackers=[]), str(tmp_path))


def test_adapters_go_only_where_there_is_a_layer(bundle):
    network = MODELS["tiny"](bundle=str(bundle)).load().network
    with pytest.raises(ConfigError, match="no linear layer 'query'"):
        add_lora(network, LoraConfig(targets=["query"]), DiffRhythm.lora_targets, seed=0)
    add_lora(network, LoraConfig(rank=2, targets=["q_proj"]), DiffRhythm.lora_targets, seed=0)
    assert sum(p.numel() for p in trainable(network)) == 2 * 2 * (2 * 32)  # two layers, two factors of 2 x 32


@pytest.fixture
def accelerator(tmp_path):
    return build_accelerator(TrainConfig(trackers=[]), str(tmp_path))


def test_a_reference_is_built_only_when_needed_and_possible(bundle, accelerator):
    network = MODELS["tiny"](bundle=str(bundle)).load().network
    assert build_beside("reference", ReferenceConfig(), FlowMatching(), network, accelerator, None) is None
    with pytest.raises(ConfigError, match=r"reference\.kind=adapter_off needs train\.lora"):
        build_beside("reference", ReferenceConfig("adapter_off"), DPO(), network, accelerator, None)


def test_cached_errors_are_refused_where_errors_are_not_enough(accelerator):
    cfg = ReferenceConfig(cached_draws=4)
    with pytest.raises(ConfigError, match="needs velocities too"):
        build_cache(cfg, DPO(safeguard=Safeguard(0.5)), accelerator)
    with pytest.raises(ConfigError, match="works on pairs"):
        build_cache(cfg, KTO(), accelerator)
    with pytest.raises(ValueError, match="does not move"):
        ReferenceConfig("ema", cached_draws=4)
