"""Put a graph's modules into evaluation mode once, not before each replay (upstream #3250 in part).

Each layer is a CUDA graph of its own, and its runner is a module whose children are those of the
layer. In inference ``CudaGraphManager.__call__()`` calls ``runner.eval()`` each time that the layer
is called, which visits every one of these modules and sets an attribute of it: host time in each
decode step, for each layer.

With this patch that happens only where one of the modules has another mode: before the first
capture, and after somebody has called ``train()`` on the model, as between the rollouts of
reinforcement learning, or on a part of it. To look at their modes takes an eighth of the time.

What differs from upstream: there ``eval()`` is called after a capture, and nowhere else. A model in
training mode then stays in it, and what runs outside of graphs, such as prefills, has dropout.

Not covered: 0.14, where decode steps are replayed without this call.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..model import Add, Family, Kind, Known, Patch, Substitute

if TYPE_CHECKING:
    import torch

MODULE = "megatron.core.transformer.cuda_graphs"
CALL = f"{MODULE}:CudaGraphManager.__call__"


def _needs_eval(module: Any) -> bool:
    """Whether ``module.eval()`` would change a mode, or call an ``eval()`` or ``train()`` of
    somebody's own."""
    modules = [module]
    for item in modules:
        if item.training or type(item).train is not torch.nn.Module.train:
            return True
        modules.extend(child for child in item._modules.values() if child is not None)
    return type(module).eval is not torch.nn.Module.eval


GET_RUNNER = "runner = self.get_cudagraph_runner(megatron_module, args, kwargs{reuse})\n"
EVALUATE = "runner.eval()\n"
EVALUATE_ONCE = """\
# train() of the model reaches the layer, which is a part of its runners, and not those.
if _needs_eval(runner):
    runner.eval()
"""


def _family(releases: str, digest: str, reuse: str) -> Family:
    get_runner = GET_RUNNER.format(reuse=reuse)
    edit = Substitute(CALL, get_runner + EVALUATE, get_runner + EVALUATE_ONCE, digest)
    return Family(releases, (edit, Add(f"{MODULE}:_needs_eval", _needs_eval)))


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
    updated="2026-11-25",
    target=CALL,
    families=(
        _family("0.15.0 to 0.15.3", "4e33e8bdb0e76754", ""),
        _family("0.16.0 and 0.16.1, and main at 642fdd9010", "92ebce787dd46e91", ", True"),
    ),
    upstreamed=(
        Known(CALL, "d1a905595004c394", "0.17.0 and 0.17.1"),
        Known(CALL, "a8f8924baa3a01bb", "main at 9b022065a8 (#4425)"),
        Known(CALL, "239e8e47c3a7a615", "main at 481efd020e (#4433)"),
        Known(CALL, "733a8e05bc3430b1", "main at 03f4111bf8 (#4260)"),
        Known(CALL, "b1ff7946be6fdfa6", "0.18.0 to 0.18.2"),
        Known(CALL, "101a5dc68e8d4404", "0.19.0 to 0.19.2"),
    ),
    unaffected=(Known(CALL, "2222b56b0f53981d", "0.14.0"),),
)
