"""What FSDP2 makes of a network and its optimiser, seen on each of two launched processes."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from diffdpo.parts import build_model, build_objective
from diffdpo.recipes.train import TrainRun
from diffdpo.training.session import prepare_training
from diffdpo.training.strategy import build_accelerator, clip_gradients, full_weights


def inspect_sharding(cfg: TrainRun) -> None:
    """Write `rank-R.json` into `cfg.out`: kinds and sizes of all tensors, the clipped norm, the saved state."""
    accelerator = build_accelerator(cfg.train, cfg.out)
    model, objective = build_model(cfg.model), build_objective(cfg.objective)
    before = {name: p.detach().clone() for name, p in model.network.named_parameters()}
    examples: Any = ()  # no step is made on examples
    training, _ = prepare_training(
        model, examples, objective, cfg.train, out=Path(cfg.out), seed=0, accelerator=accelerator, name="dpo"
    )
    network, optimizer = training.policy, training.optimizer.optimizer
    reference = dict(training.reference.network.named_parameters()) if training.reference is not None else {}
    whole_gradient = _set_gradients(network)
    norm = clip_gradients(accelerator, network, 0.5)
    clipped = torch.cat([p.grad.full_tensor().flatten() for p in network.parameters()]).double()
    optimizer.step()
    optimizer.zero_grad()
    facts: dict[str, Any] = {
        "parameters": {name: _fact(p) for name, p in network.named_parameters()},
        "moments": {name: _fact(optimizer.state[p]["exp_avg"]) for name, p in network.named_parameters()},
        "reference": {name: _fact(p) for name, p in reference.items()},
        "norm": [float(norm), float(whole_gradient.norm()), float(clipped.norm())],
        "reference_is_start": all(
            torch.equal(p.full_tensor(), before[name]) for name, p in reference.items()
        ),
        "restored": _saves_and_loads(training, Path(cfg.out)),
        "exported": sorted(full_weights(accelerator, network, trained=False)),
    }
    Path(cfg.out).mkdir(parents=True, exist_ok=True)
    (Path(cfg.out) / f"rank-{accelerator.process_index}.json").write_text(json.dumps(facts))
    accelerator.wait_for_everyone()


def _set_gradients(network: Any) -> Tensor:
    """A gradient of known numbers, the same on both processes; all of it as one vector."""
    vectors = []
    for number, parameter in enumerate(network.parameters()):
        whole = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
        parameter.grad = torch.zeros_like(parameter)
        chunks = whole.chunk(2, 0)
        rank = torch.distributed.get_rank()
        if rank < len(chunks):
            parameter.grad.to_local().copy_(chunks[rank])
        vectors.append(whole.flatten())
    return torch.cat(vectors).double()


def _fact(tensor: Any) -> list[Any]:
    """Whether a tensor is a sharded DTensor, its rows, and the rows of this process."""
    is_sharded = isinstance(tensor, DTensor) and tensor.placements[0].is_shard(0)
    return [is_sharded, tensor.shape[0], tensor.to_local().shape[0]]


def _saves_and_loads(training: Any, out: Path) -> bool:
    """Whether weights and moments are bit for bit what they were after they were saved, spoilt and loaded."""
    network, optimizer = training.policy, training.optimizer.optimizer
    training.accelerator.save_state(str(out / "state"))
    tensors = [t for p in network.parameters() for t in (p, *_moments(optimizer, p))]
    earlier = [t.to_local().clone() if isinstance(t, DTensor) else t.clone() for t in tensors]
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.to_local().fill_(7.0)
    optimizer.state.clear()
    training.accelerator.wait_for_everyone()
    training.accelerator.load_state(str(out / "state"))
    tensors = [t for p in network.parameters() for t in (p, *_moments(optimizer, p))]
    later = [t.to_local() if isinstance(t, DTensor) else t for t in tensors]
    return all(torch.equal(one, two) for one, two in zip(earlier, later, strict=True))


def _moments(optimizer: Any, parameter: Any) -> list[Tensor]:
    return [optimizer.state[parameter][kind] for kind in ("exp_avg", "exp_avg_sq", "step")]
