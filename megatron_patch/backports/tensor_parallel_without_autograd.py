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

from ..model import Add, Edit, Family, Kind, Patch, Substitute

LAYERS = "megatron.core.tensor_parallel.layers"
MAPPINGS = "megatron.core.tensor_parallel.mappings"
LINEAR = f"{LAYERS}:LinearWithGradAccumulationAndAsyncCommunication"
FROZEN = f"{LAYERS}:LinearWithFrozenWeight"
COPY = f"{MAPPINGS}:_CopyToModelParallelRegion"
REDUCE = f"{MAPPINGS}:_ReduceFromModelParallelRegion"
GATHER = f"{MAPPINGS}:_GatherFromModelParallelRegion"

#: Without gradients `apply()` answers with what `forward()` returns.
PRODUCT = """\
@classmethod
def apply(cls, *args, _forward=forward.__func__):
    \"""Do without autograd where there is no backward pass that it would have to know of.\"""
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or cls.forward is not _forward:
        return super().apply(*args)
    return _forward(torch.autograd.function.FunctionCtx(), *args)
"""
#: And where that is the input itself, with another tensor on its storage.
REGION = """\
@classmethod
def apply(cls, input_, *args, _forward=forward.__func__):
    \"""Do without autograd where there is no backward pass that it would have to know of.\"""
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or cls.forward is not _forward:
        return super().apply(input_, *args)
    output = _forward(torch.autograd.function.FunctionCtx(), input_, *args)
    if output is not input_:
        return output
    # Autograd never answers with an input itself, either.
    return input_.detach() if input_.requires_grad else input_.view_as(input_)
"""
#: What `forward()` does with its context decides whether it can do with one that autograd does not
#: know, so its source has to be known.
KEEPS_BOTH = "ctx.save_for_backward(input, weight)\n"
KEEPS_WEIGHT = "ctx.save_for_backward(weight)\n"
KEEPS_GROUP = "ctx.group = group\n"
SUMS = "return _reduce(input_, group)\n"


def _function(of_class: str, apply: str, known: str, digest: str) -> tuple[Edit, Edit]:
    target = f"{of_class}.forward"
    return Substitute(target, known, known, digest), Add(f"{of_class}.apply", apply)


def _family(releases: str, linear: str, frozen: str) -> Family:
    return Family(
        releases,
        (
            *_function(LINEAR, PRODUCT, KEEPS_BOTH, linear),
            *_function(FROZEN, PRODUCT, KEEPS_WEIGHT, frozen),
            *_function(COPY, REGION, KEEPS_GROUP, "95694ff1b6cc88bd"),
            *_function(REDUCE, REGION, SUMS, "b5e5ea4a86184094"),
            *_function(GATHER, REGION, KEEPS_GROUP, "b1437561295bb22f"),
        ),
    )


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
    families=(
        _family("0.14.0 to 0.18.2", "a8591da821f51f36", "da73da6b6718fded"),
        _family(
            "0.19.0 to 0.19.2, and main at c5ff22b7f1 (#4967)",
            "00128a8f4af211a2",
            "da73da6b6718fded",
        ),
        _family("main at 897649d0ba (#6252)", "b67e4b4fcfd1875a", "58cf28ed8abd8b1b"),
    ),
    upstreamed=(),
)
