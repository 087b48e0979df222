"""What is refused before a run starts."""

import pytest

from diffdpo.errors import ConfigError
from diffdpo.models import MODELS
from diffdpo.objectives.dpo import DPO
from diffdpo.objectives.flow_matching import FlowMatching
from diffdpo.objectives.kto import KTO
from diffdpo.objectives.terms.restraints import Safeguard
from diffdpo.training.config import LoraConfig, ReferenceConfig, TrainConfig
from diffdpo.training.setup import add_lora, build_auxiliary, build_cache, trainable
from diffdpo.training.strategy import build_accelerator


def test_trackers_must_exist_and_be_installed(tmp_path):
    with pytest.raises(ConfigError, match=r"unknown tracker 'tensorbord'. Did you mean 'tensorboard'\?"):
        build_accelerator(TrainConfig(trackers=["tensorbord"]), str(tmp_path))
    with pytest.raises(ConfigError, match="comet_ml is not installed"):
        build_accelerator(TrainConfig(trackers=["comet_ml"]), str(tmp_path))


def test_half_precision_needs_a_gpu(tmp_path):
    with pytest.raises(ConfigError, match="fp16 needs a GPU"):
        build_accelerator(TrainConfig(precision="fp16", trackers=[]), str(tmp_path))


def count_adapted(model, targets):
    """Trained numbers of a LoRA of rank 2: its two factors have 2 x (inputs + outputs)."""
    add_lora(model.network, LoraConfig(rank=2, targets=targets), model.lora_targets, seed=0)
    return sum(p.numel() for p in trainable(model.network))


@pytest.mark.parametrize(
    ("targets", "count"),
    [
        (["q_proj"], 2 * 2 * (32 + 32)),  # in two layers of 32
        (["self_attn.q_proj", "o_proj"], 2 * 2 * 2 * (32 + 32)),
        (["0.self_attn.q_proj"], 2 * (32 + 32)),
        (["text_fusion_linears.0.0"], 2 * (16 + 32)),  # dotted, as in diffusers' to_out.0
        (["mlp.gate_proj"], 2 * 2 * (32 + 64)),
        (None, 2 * (4 * 2 * (32 + 32) + 3 * 2 * (32 + 64))),  # the model's: attention and feed-forward
    ],
)
def test_adapters_go_where_targets_match_as_dotted_suffixes(bundle, targets, count):
    assert count_adapted(MODELS["tiny"](bundle=str(bundle)).load(), targets) == count


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("query", r"the network has no layer 'query'\. It has .*q_proj"),
        ("q_porj", r"the network has no layer 'q_porj'\. Did you mean 'q_proj'\?"),
        ("proj_q_proj", "has no layer 'proj_q_proj'"),
        ("self_attn", "has no layer 'self_attn'"),  # a block is no layer
    ],
)
def test_adapters_go_only_where_there_is_a_layer(bundle, target, says):
    with pytest.raises(ConfigError, match=f"train.lora.targets: .*{says}".replace(".*the", "the")):
        count_adapted(MODELS["tiny"](bundle=str(bundle)).load(), [target])


@pytest.fixture
def accelerator(tmp_path):
    return build_accelerator(TrainConfig(trackers=[]), str(tmp_path))


def test_a_reference_is_built_only_when_needed_and_possible(bundle, accelerator):
    network = MODELS["tiny"](bundle=str(bundle)).load().network
    assert build_auxiliary("reference", ReferenceConfig(), FlowMatching(), network, accelerator, None) is None
    with pytest.raises(ConfigError, match=r"reference\.kind=adapter_off needs train\.lora"):
        build_auxiliary("reference", ReferenceConfig("adapter_off"), DPO(), network, accelerator, None)


def test_cached_errors_are_refused_where_errors_are_not_enough(accelerator):
    cfg = ReferenceConfig(cached_draws=4)
    with pytest.raises(ConfigError, match="needs velocities too"):
        build_cache(cfg, DPO(safeguard=Safeguard(0.5)), accelerator)
    with pytest.raises(ConfigError, match="works on pairs"):
        build_cache(cfg, KTO(), accelerator)
    with pytest.raises(ValueError, match="does not move"):
        ReferenceConfig("ema", cached_draws=4)
