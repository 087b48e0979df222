"""The profile of a step: kinds by name, operations by hand, and time that adds up."""

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function

from diffdpo.training.step_profile import STEP, operation_flops, operation_kind, summarise_step
from diffdpo.training.throughput import DATA_WAIT

CASES = [
    (["aten::addmm", "aten::linear"], "matmul"),
    (["aten::copy_", "aten::addmm", "aten::linear"], "matmul"),
    (["aten::bmm", "aten::matmul", "aten::_scaled_dot_product_attention_math"], "attention"),
    (["aten::convolution_backward", "ConvolutionBackward0"], "convolution"),
    (["aten::add_", "Optimizer.step#AdamW.step"], "optimizer"),
    (["aten::mm", DATA_WAIT], "data wait"),
    (["aten::copy_"], "movement"),
    (["aten::native_layer_norm"], "elementwise"),
    (["gloo:all_reduce"], "communication"),
    (["AddmmBackward0", "autograd::engine::evaluate_function: AddmmBackward0"], "autograd"),
    (["anything"], "other"),
]


@pytest.mark.parametrize(("names", "kind"), CASES)
def test_an_operation_has_the_kind_of_what_it_is_for(names, kind):
    assert operation_kind(names) == kind


def test_operations_are_counted_by_hand_from_shapes():
    assert operation_flops("aten::mm", [[3, 5], [5, 7]], []) == 2 * 3 * 5 * 7
    assert operation_flops("aten::addmm", [[7], [3, 5], [5, 7]], []) == 2 * 3 * 5 * 7
    assert operation_flops("aten::bmm", [[2, 3, 5], [2, 5, 7]], []) == 2 * 2 * 3 * 5 * 7
    shape = [2, 3, 8, 4]
    name = "aten::_scaled_dot_product_flash_attention_for_cpu"
    assert operation_flops(name, [shape] * 3, []) == 2 * 2 * (2 * 3 * 8 * 8 * 4)
    values = [None, None, None, [1], [2], [1], False, [0], 2]
    shapes = [[4, 8, 100], [8, 4, 5], [8]]
    assert operation_flops("aten::convolution", shapes, values) == 2 * 4 * 8 * 100 * 4 * 5
    assert (
        operation_flops("aten::convolution_backward", [[4, 8, 100], *shapes], [])
        == 2 * 2 * 4 * 8 * 100 * 4 * 5
    )
    assert operation_flops("aten::relu", [[4, 8]], []) == 0


def test_times_add_up_and_the_work_is_where_it_was_done():
    layer = nn.Linear(64, 32)
    optimizer = torch.optim.AdamW(layer.parameters())
    options = {"activities": [ProfilerActivity.CPU], "record_shapes": True, "profile_memory": True}
    with profile(**options) as profiler, record_function(STEP):
        with record_function(DATA_WAIT):
            x = torch.randn(100, 64)
        layer(x).square().mean().backward()
        optimizer.step()
    result = summarise_step(profiler.events(), "cpu")
    groups = {group.kind: group for group in result.groups}
    assert sum(group.seconds for group in result.groups) == pytest.approx(result.seconds)
    assert sum(group.share for group in result.groups) == pytest.approx(1)
    assert groups["matmul"].flops == 2 * (2 * 100 * 64 * 32)  # forward, and the gradient of the weights
    assert groups["data wait"].bytes >= 100 * 64 * 4
    assert {"optimizer", "elementwise", "python"} <= set(groups)
    table = result.lines()
    assert any("aten::addmm" in line and "[100, 64]" in line for line in table)
