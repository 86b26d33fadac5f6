"""Put a graph's modules into evaluation mode once, not before each replay (upstream #3250 in part).

Each layer is a CUDA graph of its own, and its runner is a module whose children are those of the
layer. In inference ``CudaGraphManager.__call__()`` calls ``runner.eval()`` each time that the layer
is called, which visits every one of these modules and sets an attribute of it: host time in each
decode step, for each layer.

With this patch that happens only where one of the modules has another mode: before the first
capture, and after somebody has called ``train()`` on the model, as between the rollouts of
reinforcement learning, or on a part of it. To look at their modes takes a fifteenth of the time.

What differs from upstream: there ``eval()`` is called after a capture, and nowhere else. A model in
training mode then stays in it, and what runs outside of graphs, such as prefills, has dropout.

Not covered: 0.14, where decode steps are replayed without this call.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
from ... import hunks
from ...edits import Add
from ...model import Kind, Patch, Variant

HUNKS = hunks.beside(__file__)

MODULE = "megatron.core.transformer.cuda_graphs"

CALL = f"{MODULE}:CudaGraphManager.__call__"


def _needs_eval(module: Any) -> bool:
    """Whether ``module.eval()`` would change a mode, or call an ``eval()`` or ``train()`` of
    somebody's own."""
    train = torch.nn.Module.train
    modules = [module]
    for item in modules:
        if item is None:
            continue
        if item.training or type(item).train is not train:
            return True
        if children := item._modules:  # most have none
            modules.extend(children.values())
    return type(module).eval is not torch.nn.Module.eval


NEEDS_EVAL = "megatron.core.transformer.cuda_graphs:_needs_eval"

GRAPH_RUNNER_EVAL = Patch(
    id="graph-runner-eval",
    kind=Kind.PERFORMANCE,
    summary="Put the modules of a CUDA graph into evaluation mode once, not before each replay",
    symptom=(
        "`Module.train()` and `Module.eval()` show up in the host profile of every decode step "
        "with CUDA graphs, for each module of each layer"
    ),
    outcome="modules are visited when their mode has changed, and the mode is the same",
    upstream_pr=3250,
    upstream_commit="32efeffd2d3cca48f1bfa575e1f2d0f0feac3d0f",
    upstream_date="2026-02-20",
    fixed_in="0.17.0",
    releases=">=0.15,<0.17",
    removal="no supported release is older than 0.17.0",
    updated="2026-11-27",
    target=CALL,
    variants=(Variant("0.15", (*HUNKS.of("0.15"), Add(NEEDS_EVAL, _needs_eval))),),
    told_by=(CALL,),
)
