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

from ..model import Add, Edit, Family, Kind, Patch, Substitute

MODULE = "megatron.core.transformer.cuda_graphs"
REPLAY = f"{MODULE}:_CudaGraphRunner.replay_graph_capture"
NODE = f"{MODULE}:_CudagraphReplayNode"
FORWARD = f"{NODE}.forward"
CALL = f"{MODULE}:CudaGraphManager.__call__"
TENSORS = f"{MODULE}:_CudaGraphRunner.get_tensors"


APPLY = """\
@classmethod
def apply(cls, runner, is_first_microbatch, *inputs, _forward=forward.__func__):
    \"""Do without autograd where there is no backward pass that it would have to know of.\"""
    if torch.is_grad_enabled() or cls.forward is not _forward:
        return super().apply(runner, is_first_microbatch, *inputs)
    ctx = torch.autograd.function.FunctionCtx()
    outputs = _forward(ctx, runner, is_first_microbatch, *inputs)
    given = {*map(id, inputs)}
    answer = []
    for output in outputs:
        # As autograd leaves them. The static ones may have the history of a training step.
        if id(output) in given:
            output = output.detach() if output.requires_grad else output.view_as(output)
        elif output.requires_grad and not output._is_view():
            output.detach_()
        answer.append(output)
    return tuple(answer)
"""
ONE_TENSOR = """\
if torch.is_tensor(args):
    return (args,)
"""
IN_ONE_PASS = """\
if torch.is_tensor(args):
    return (args,)
if kwargs and not check_types:
    context = kwargs.get("inference_context")
    tensors = []
    for value in (*(args or ()), *kwargs.values()):
        # Most are None. Whether something is a tensor is the slowest of these questions.
        if value is None or value is context:
            continue
        if isinstance(value, torch.Tensor):
            tensors.append(value)
        elif not isinstance(value, (bool, int, float, str)):
            break  # perhaps a dataclass, with tensors in it
    else:
        return tuple(tensors)
"""
#: What `forward()` does with its context decides whether it can do with one that autograd does not
#: know, so its source has to be known.
KEEPS_RUNNER = "ctx.runner = runner\n"

NOT_FIRST = "self.is_first_microbatch = False\n"
NOT_FIRST_ONCE = """\
if self.is_first_microbatch:
    self.is_first_microbatch = False
"""
READY = "runner.status = _GraphStatus.FWD_READY\n"
READY_ONCE = """\
if runner.status is not _GraphStatus.FWD_READY:
    runner.status = _GraphStatus.FWD_READY
"""


def _node(forward: str) -> tuple[Edit, Edit]:
    return Substitute(FORWARD, KEEPS_RUNNER, KEEPS_RUNNER, forward), Add(f"{NODE}.apply", APPLY)


def _old(releases: str, forward: str) -> Family:
    return Family(releases, _node(forward))


def _family(releases: str, forward: str, call: str) -> Family:
    return Family(
        releases,
        (
            *_node(forward),
            Substitute(TENSORS, ONE_TENSOR, IN_ONE_PASS, "1f37dfed42a885e7"),
            Substitute(CALL, NOT_FIRST, NOT_FIRST_ONCE, call),
            Substitute(CALL, READY, READY_ONCE, call),
        ),
    )


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
    families=(
        _old("0.14.0", "3e62f32866da11af"),
        _old("0.15.0 to 0.15.3", "e8fa6328fa7aa97b"),
        _family(
            "0.16.0 and 0.16.1, and main at 642fdd9010", "d8f861d0fd8393cd", "92ebce787dd46e91"
        ),
        _family("main at 32efeffd2d (#3250)", "d8f861d0fd8393cd", "d1a905595004c394"),
        _family("0.17.0 and 0.17.1", "4947d176cc861e67", "d1a905595004c394"),
        _family("main at 9b022065a8 (#4425)", "4947d176cc861e67", "a8f8924baa3a01bb"),
        _family("main at 481efd020e (#4433)", "4947d176cc861e67", "239e8e47c3a7a615"),
        _family("main at 03f4111bf8 (#4260)", "4947d176cc861e67", "733a8e05bc3430b1"),
        _family("main at 3f59bbb1f4 (#4485)", "4947d176cc861e67", "b1ff7946be6fdfa6"),
        _family("0.18.0 to 0.18.2", "9d53f01e11f682b9", "b1ff7946be6fdfa6"),
        _family("main at 5e4fe9b3c7 (#5451)", "5fcb3d0f8c4ccdce", "b1ff7946be6fdfa6"),
        _family("main at c5ff22b7f1 (#4967)", "ec4f36884fc2e9b5", "101a5dc68e8d4404"),
        _family("0.19.0 to 0.19.2", "63d6b71dc9646585", "101a5dc68e8d4404"),
    ),
    upstreamed=(),
)
