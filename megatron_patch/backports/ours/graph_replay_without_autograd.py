"""Replay a layer's CUDA graph without autograd where no gradient is wanted (a change of ours).

Each layer is a CUDA graph of its own. ``_CudaGraphRunner.replay_graph_capture()`` replays it as a
``torch.autograd.Function``, because training needs a backward pass. In inference there is none, and
what ``apply()`` does before and after it calls ``forward()`` is host time in each decode step, for
each layer. So are the dataclasses that are looked for among the arguments, which are tensors and
``None``, and two attributes of modules that are set to what they are already: ``Module`` looks at
every value that is set, for parameters and buffers.

With this patch the function answers itself when gradients are off: it has an ``apply()`` that calls
``forward()`` as it is, and leaves its outputs as autograd would. From 0.16 on these are the static
outputs of the graph, on which a replay with gradients has left its history: autograd takes it off
them. ``get_tensors()`` picks the tensors out of the arguments in one pass, unless one of these is
no tensor and no plain value, and the attributes are set when they change. With gradients on all is
as it was, and so it is where somebody has replaced ``forward()`` or ``get_tensors()``.

Not covered: the rest of what a layer costs on the host, such as the launch of the graph. In 0.14
and 0.15 only ``apply()`` is left out: the parameters are still passed to each replay there.
"""

from __future__ import annotations

from ... import hunks
from ...edits import Requires
from ...model import Kind, Patch, Variant

HUNKS = hunks.beside(__file__)

MODULE = "megatron.core.transformer.cuda_graphs"

REPLAY = f"{MODULE}:_CudaGraphRunner.replay_graph_capture"

NODE = f"{MODULE}:_CudagraphReplayNode"

FORWARD = f"{NODE}.forward"

GRAPH_REPLAY_WITHOUT_AUTOGRAD = Patch(
    id="graph-replay-without-autograd",
    kind=Kind.PERFORMANCE,
    summary="Replay a layer's CUDA graph without autograd where no gradient is wanted",
    symptom=(
        "`Function.apply()`, `get_tensors()` and `Module.__setattr__()` show up in the host "
        "profile of every decode step with CUDA graphs, once or twice for each layer"
    ),
    outcome="the same replay, without them",
    upstream_pr=None,
    upstream_commit=None,
    upstream_date=None,
    fixed_in=None,
    releases=">=0.14,<0.20",
    removal="upstream replays without autograd in inference, and no supported release is older",
    updated="2026-11-25",
    target=REPLAY,
    variants=(
        Variant(
            "0.14",
            (
                Requires(FORWARD, "`apply()` does what it does, without autograd"),
                *HUNKS.of("0.14"),
            ),
        ),
        Variant(
            "0.16",
            (
                Requires(FORWARD, "`apply()` does what it does, without autograd"),
                *HUNKS.of("0.16"),
            ),
        ),
    ),
)
