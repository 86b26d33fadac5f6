"""Compare a graph's arguments before describing them (a change of ours; upstream has none).

Each layer is a CUDA graph of its own, and before each replay
``_CudaGraphRunner.get_mismatch_errors()`` compares the layer's arguments with those of the capture.
It describes each of them in an ``ArgMetadata`` first, imports two modules and builds a set of the
types it allows, twice for each argument, and formats the name that an error message would have. In
a decode step all of it is host time, for each layer, and what is compared is a dozen arguments of
which most are ``None``.

With this patch the arguments are compared as they are. Only where one of them is not obviously what
it was, Megatron's own comparison decides, with the errors that it has always had.

Obvious is: as many arguments, of the same names in the same order, and of the same types; tensors
of the same shape, dtype and device; for everything else, the same object. The types that are
allowed need no second check: those of the capture were checked, and the same are here.

Not covered: the rest of what a replay costs on the host, such as flattening the arguments.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
from ... import hunks
from ...edits import Add
from ...model import Kind, Patch, Variant

HUNKS = hunks.beside(__file__)

RUNNER = "megatron.core.transformer.cuda_graphs:_CudaGraphRunner"

ERRORS = f"{RUNNER}.get_mismatch_errors"

HELPER = f"{RUNNER}._arguments_match"


def _arguments_match(self: Any, args: Any, kwargs: Any) -> bool:
    """Whether the arguments are plainly those of the capture, but for the contents of tensors."""
    arg_metas, kwarg_metas = self.fwd_graph_input_arg_metas, self.fwd_graph_input_kwarg_metas
    if len(args) != len(arg_metas) or [*kwargs] != [*kwarg_metas]:
        return False
    values, metas = (*args, *kwargs.values()), (*arg_metas, *kwarg_metas.values())
    for value, meta in zip(values, metas, strict=True):
        if type(value) is not meta.type:
            return False
        # Most are None. Whether something is a tensor is the slowest of these questions.
        if value is None:
            continue
        if isinstance(value, torch.Tensor):
            if (
                value.shape != meta.shape
                or value.dtype != meta.dtype
                or value.device != meta.device
            ):
                return False
        elif value is not meta.value:
            return False
    return True


GRAPH_ARGUMENT_CHECK = Patch(
    id="graph-argument-check",
    kind=Kind.PERFORMANCE,
    summary="Compare the arguments of a layer's CUDA graph before describing them",
    symptom=(
        "get_mismatch_errors() and ArgMetadata show up in the host profile of every decode step "
        "with CUDA graphs, once for each layer"
    ),
    outcome="the same answers, without the description of arguments that match",
    upstream_pr=None,
    upstream_commit=None,
    upstream_date=None,
    fixed_in=None,
    releases=">=0.14,<0.20",
    removal="upstream compares arguments at no such cost, and no supported release is older",
    updated="2026-11-25",
    target=ERRORS,
    variants=(
        Variant(
            "0.14",
            (
                *HUNKS.of("0.14"),
                Add(HELPER, _arguments_match),
            ),
        ),
    ),
)
