"""Run tensor-parallel layers without autograd where no gradient is wanted (a change of ours).

The layers of ``megatron.core.tensor_parallel.layers`` are made of autograd functions. The product
is one, and so is what surrounds it, each of which does nothing when one rank has the whole layer:
the copy of the input, the gathering of the output, the sum over the ranks. In inference there is
no backward pass, and what ``apply()`` does before and after it calls ``forward()`` is host time:
for each layer where a step is no CUDA graph, and otherwise for the embedding and the output layer,
which are in no graph.

With this patch a product calls its ``forward()`` as it is when gradients are off, the input is
taken as it is, for its copy is there for the backward pass alone, and ranks that are alone gather
and sum nothing. With gradients on all is as it was, and so it is in code that is being compiled,
where ``apply()`` costs nothing.

Not covered: collectives between several ranks, sequence parallelism, and the layers of Transformer
Engine and of ``--transformer-impl inference_optimized``. A module that had imported
``linear_with_grad_accumulation_and_async_allreduce`` or ``linear_with_frozen_weight`` by name
before the patch was applied keeps calling the original; no layer of Megatron's does.
"""

from __future__ import annotations

from functools import partial

from ..model import Family, Kind, Patch, Substitute

MODULE = "megatron.core.tensor_parallel.layers"
LINEAR = f"{MODULE}:linear_with_grad_accumulation_and_async_allreduce"
FROZEN = f"{MODULE}:linear_with_frozen_weight"
OF_LINEAR = "LinearWithGradAccumulationAndAsyncCommunication"
OF_FROZEN = "LinearWithFrozenWeight"
COLUMN = f"{MODULE}:ColumnParallelLinear.forward"
ROW = f"{MODULE}:RowParallelLinear.forward"
EMBEDDING = f"{MODULE}:VocabParallelEmbedding.forward"

APPLY = "return {function}.apply(*args)\n"
FORWARD_ALONE = """\
if torch.is_grad_enabled() or torch.compiler.is_compiling():
    return {function}.apply(*args)
# There is no backward pass that autograd would have to know of.
ctx = torch.autograd.function.FunctionCtx()
return {function}.forward(ctx, *args)
"""
#: What `forward()` does with its context decides whether it can do with one that autograd does not
#: know, so its source has to be known.
KEEPS_BOTH = "ctx.save_for_backward(input, weight)\n"
KEEPS_WEIGHT = "ctx.save_for_backward(weight)\n"

COPY = """\
input_parallel = copy_to_tensor_model_parallel_region(input_, group=self.tp_group)
"""
COPY_FOR_BACKWARD = """\
if torch.is_grad_enabled():
    input_parallel = copy_to_tensor_model_parallel_region(input_, group=self.tp_group)
else:
    # In the forward pass the copy is the input itself.
    input_parallel = input_
"""
GATHER = "gather_from_tensor_model_parallel_region"
REDUCE = "reduce_from_tensor_model_parallel_region"
COLLECTIVE = """\
{output} = {function}(output_parallel, group=self.tp_group)
"""
COLLECTIVE_OF_MANY = """\
if torch.is_grad_enabled() or self.tp_group.size() > 1:
    {output} = {function}(
        output_parallel, group=self.tp_group
    )
else:
    {output} = output_parallel
"""


def _product(target: str, function: str, digest: str) -> Substitute:
    find, put = APPLY.format(function=function), FORWARD_ALONE.format(function=function)
    return Substitute(target, find, put, digest)


def _collective(target: str, output: str, function: str, digest: str) -> Substitute:
    find = COLLECTIVE.format(output=output, function=function)
    return Substitute(
        target, find, COLLECTIVE_OF_MANY.format(output=output, function=function), digest
    )


def _family(
    releases: str,
    *,
    linear: str,
    frozen: str,
    forwards: tuple[str, str],
    column: str,
    row: str,
    embedding: str | None = None,
) -> Family:
    """``embedding`` is the digest of one that sums over the ranks however many there are."""
    of_linear, of_frozen = forwards
    edits = [
        _product(LINEAR, OF_LINEAR, linear),
        _product(FROZEN, OF_FROZEN, frozen),
        Substitute(f"{MODULE}:{OF_LINEAR}.forward", KEEPS_BOTH, KEEPS_BOTH, of_linear),
        Substitute(f"{MODULE}:{OF_FROZEN}.forward", KEEPS_WEIGHT, KEEPS_WEIGHT, of_frozen),
        Substitute(COLUMN, COPY, COPY_FOR_BACKWARD, column),
        _collective(COLUMN, "output", GATHER, column),
        _collective(ROW, "output_", REDUCE, row),
    ]
    if embedding is not None:
        edits.append(_collective(EMBEDDING, "output", REDUCE, embedding))
    return Family(releases, tuple(edits))


_FORWARDS = ("a8591da821f51f36", "da73da6b6718fded")
# Before and after #3412, which removed an argument that was deprecated.
_old = partial(_family, linear="143de29d8326f914", frozen="cd26e578313b7dc3", forwards=_FORWARDS)
_new = partial(_family, linear="2d28ce9f3281582d", frozen="742e2dd97c3e81f6", forwards=_FORWARDS)

TENSOR_PARALLEL_WITHOUT_AUTOGRAD = Patch(
    id="tensor-parallel-without-autograd",
    kind=Kind.PERFORMANCE,
    summary="Run tensor-parallel layers without autograd where no gradient is wanted",
    symptom=(
        "`Function.apply()` shows up in the host profile of decode steps: three or four times for "
        "the embedding and the output layer, and without CUDA graphs six times for each layer"
    ),
    outcome="the same products, without it",
    upstream_pr=None,
    upstream_commit=None,
    upstream_date=None,
    fixed_in=None,
    releases=">=0.14,<0.20",
    removal="upstream runs these layers without autograd in inference, in all supported releases",
    updated="2026-11-25",
    target=COLUMN,
    families=(
        _old(
            "0.14.0, and 0.15.0 to 0.15.3",
            column="fce79d74af49d518",
            row="70c3f4184a6d9efa",
            embedding="c1caa14997ff5bdd",
        ),
        _old(
            "0.16.0 and 0.16.1, and main at 90e685b85f",
            column="c184ced745ff80db",
            row="70c3f4184a6d9efa",
            embedding="c1caa14997ff5bdd",
        ),
        _old(
            "main at 55198ba568 (#3084)",
            column="c184ced745ff80db",
            row="4e643c06ba1cd2f3",
            embedding="c1caa14997ff5bdd",
        ),
        _new(
            "0.17.0 and 0.17.1, and main at 33df24c1f8 (#3412)",
            column="c184ced745ff80db",
            row="4e643c06ba1cd2f3",
            embedding="c1caa14997ff5bdd",
        ),
        _new(
            "main at 03f4111bf8 (#4260)",
            column="ac703b00789bf336",
            row="4e643c06ba1cd2f3",
            embedding="a1d03f341358832b",
        ),
        # The embedding of a rank that is alone sums nothing any more.
        _new(
            "0.18.0 to 0.18.2, and main at cf736dc36a (#4565)",
            column="ac703b00789bf336",
            row="4e643c06ba1cd2f3",
        ),
        _family(
            "0.19.0 to 0.19.2, and main at c5ff22b7f1 (#4967)",
            linear="c21103a3c0721e9e",
            frozen="b99720c77ac95360",
            forwards=("00128a8f4af211a2", "da73da6b6718fded"),
            column="090200c31c817305",
            row="33b57569e0b37141",
        ),
        _family(
            "main at 897649d0ba (#6252)",
            linear="c14e6be4db8a67f5",
            frozen="247a09cd68ef5dc4",
            forwards=("b67e4b4fcfd1875a", "58cf28ed8abd8b1b"),
            column="7354cb31335d77b9",
            row="33b57569e0b37141",
        ),
    ),
    upstreamed=(),
)
