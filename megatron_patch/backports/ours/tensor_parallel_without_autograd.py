"""Run tensor-parallel layers without autograd where no gradient is wanted (a change of ours).

The layers of ``megatron.core.tensor_parallel.layers`` are made of autograd functions. The product
is one, and so is what surrounds it, each of which does nothing when one rank has the whole layer:
the copy of the input, the gathering of the output, the sum over the ranks. In inference there is
no backward pass, and what ``apply()`` does before and after it calls ``forward()`` is host time:
for each layer where a step is no CUDA graph, and otherwise for the embedding and the output layer,
which are in no graph.

With this patch these functions answer themselves when gradients are off: each class has an
``apply()`` that calls ``forward()`` as it is, and answers with what autograd would: another tensor
on the storage of the input where ``forward()`` returns the input. Nothing else is edited, so
groups are resolved, and functions that somebody replaced are called, as before. With gradients on
all is as it was, and so it is in code that is being compiled, where ``apply()`` costs nothing, and
where somebody has replaced ``forward()``.

Not covered: sequence parallelism, and the layers of Transformer Engine and of
``--transformer-impl inference_optimized``. Transforms of ``torch.func`` and forward-mode
differentiation under ``torch.no_grad()``, which ``apply()`` refuses, are computed.
"""

from __future__ import annotations

from ... import hunks
from ...edits import Requires
from ...model import Kind, Patch, Variant

HUNKS = hunks.beside(__file__)

LAYERS = "megatron.core.tensor_parallel.layers"

MAPPINGS = "megatron.core.tensor_parallel.mappings"

LINEAR = f"{LAYERS}:LinearWithGradAccumulationAndAsyncCommunication"

FROZEN = f"{LAYERS}:LinearWithFrozenWeight"

COPY = f"{MAPPINGS}:_CopyToModelParallelRegion"

REDUCE = f"{MAPPINGS}:_ReduceFromModelParallelRegion"

GATHER = f"{MAPPINGS}:_GatherFromModelParallelRegion"

#: Of the method that autograd would call.
WHY = "`apply()` calls it, without autograd, with a context that keeps nothing"

TENSOR_PARALLEL_WITHOUT_AUTOGRAD = Patch(
    id="tensor-parallel-without-autograd",
    kind=Kind.PERFORMANCE,
    summary="Run tensor-parallel layers without autograd where no gradient is wanted",
    symptom=(
        "`Function.apply()` shows up in the host profile of decode steps: three or four times for "
        "the embedding and the output layer, and without CUDA graphs six times for each layer"
    ),
    outcome="the same tensors, without it",
    upstream_pr=None,
    upstream_commit=None,
    upstream_date=None,
    fixed_in=None,
    releases=">=0.14,<0.20",
    removal="upstream runs these layers without autograd in inference, in all supported releases",
    updated="2026-11-25",
    target=f"{LINEAR}.forward",
    variants=(
        Variant(
            "0.14",
            (
                Requires(f"{LINEAR}.forward", WHY),
                *HUNKS.of("0.14"),
                Requires(f"{FROZEN}.forward", WHY),
                Requires(f"{COPY}.forward", WHY),
                Requires(f"{REDUCE}.forward", WHY),
                Requires(f"{GATHER}.forward", WHY),
            ),
        ),
    ),
)
