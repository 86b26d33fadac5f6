"""What the benchmarks of decode steps share: the engine, its patches, the machine."""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FunctionType
from typing import Any
from unittest import mock

import megatron_patch
from megatron_patch import State, testing
from megatron_patch.places import Change
from megatron_patch.testing import graph_scopes
from megatron_patch.testing.releases import context_parameters, release
from megatron_patch.testing.version import core_version
from tools import attention_used


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Options for the size of the model, and for what the engine is set to."""
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--heads", type=int, default=16)
    parser.add_argument(
        "--kv-heads", type=int, help="heads of keys and values; default: as many as --heads"
    )
    parser.add_argument("--ffn", type=int, help="width of the MLP; default: 4 times --hidden")
    parser.add_argument(
        "--style",
        choices=("gpt", "llama"),
        default="gpt",
        help="llama: gated MLP, RMSNorm, rotary positions and no biases",
    )
    parser.add_argument("--vocabulary", type=int, default=32_000)
    parser.add_argument("--block-size", type=int, default=256, help="tokens in one KV block")
    parser.add_argument(
        "--cuda-graphs", type=int, default=4, help="CUDA graphs for decode steps; 0: none"
    )
    parser.add_argument(
        "--graph-scope",
        metavar="SCOPE",
        help="what is captured in one CUDA graph: none, layer, or the release's name for all "
        "layers at once, which is block (from 0.18 on), full_iteration_inference (0.17) or "
        "full_iteration (0.16). Default: layer on a CUDA device, otherwise nothing",
    )
    parser.add_argument(
        "--mode", choices=("sync", "async"), default="sync", help="scheduling; async: from 0.19 on"
    )
    parser.add_argument("--dtype", help="default: bfloat16 on a CUDA device, float32 on a CPU")


def add_engine_options(parser: argparse.ArgumentParser) -> None:
    """Options for the size of the model and of the batch, and for what the engine is set to."""
    add_model_options(parser)
    parser.add_argument("--requests", type=int, default=16, help="requests in each decode step")
    parser.add_argument(
        "--prompt", "--context", type=int, default=32, help="tokens in each prompt", dest="prompt"
    )
    parser.add_argument("--tokens", type=int, default=120, help="tokens for each request")
    parser.add_argument(
        "--prefill-tokens",
        type=int,
        default=16_384,
        help="tokens of prompts in one step: if all prompts are more, they take several steps",
    )


def add_selection_options(parser: argparse.ArgumentParser, default: Sequence[str]) -> None:
    """Options for what is compared, and for where the figures go."""
    parser.add_argument(
        "--select",
        action="append",
        metavar="PATCHES",
        help="a value of MEGATRON_PATCH; repeat it. The first is what the others are compared to. "
        f"Default: {', '.join(default)}",
    )
    parser.add_argument(
        "--build-with",
        default="none",
        metavar="PATCHES",
        help="a value of MEGATRON_PATCH: the patches that are applied while the engine is built. "
        "Default: none",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    parser.add_argument(
        "--commit", help="what --json names as the commit; default: that of the working tree"
    )


def in_turn(selections: Sequence[str], number: int) -> list[str]:
    """The order of ``selections`` in a round: every other one goes from the last to the first."""
    return [*selections] if number % 2 == 0 else [*reversed(selections)]


def start(tensor_parallel: int = 1) -> Any:
    """Start Megatron; with several ranks that share a model, in a process that torchrun started.

    Returns the device of this rank.
    """
    if tensor_parallel > 1:
        import torch

        on_cuda = torch.cuda.is_available()
        if on_cuda:
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        torch.distributed.init_process_group("nccl" if on_cuda else "gloo")
    return testing.start(tensor_model_parallel_size=tensor_parallel)


def spec_of(options: argparse.Namespace, device: Any) -> testing.EngineSpec:
    """What the engine of ``options`` is like; its KV cache holds what its requests need.

    Raises:
        testing.UnsupportedError: see :func:`sized_spec`.
    """
    prefill = min(options.requests * options.prompt, max(options.prompt, options.prefill_tokens))
    length = options.prompt + options.tokens
    return sized_spec(
        options,
        device,
        # One block more for each request: it may grow by one token too many.
        blocks=options.requests * (-(-length // options.block_size) + 1),
        max_sequence_length=max(512, length),
        max_requests=-(-options.requests // 4) * 4,
        # A step has prompts, and beside them the requests that decode already.
        max_tokens=-(-max(1024, prefill + options.requests) // 64) * 64,
    )


def sized_spec(
    options: argparse.Namespace,
    device: Any,
    *,
    blocks: int,
    inference: Mapping[str, Any] | None = None,
    **fields: Any,
) -> testing.EngineSpec:
    """What the engine is like by the options of :func:`add_model_options`. ``fields`` are further
    fields of the spec, and ``inference`` further arguments of inference.

    Raises:
        testing.UnsupportedError: the release has no such graph scope or mode, or the KV cache of
            ``blocks`` blocks is more than the device has; the message says what there is.
    """
    on_cuda = device.type == "cuda"
    size: dict[str, Any] = {
        "num_layers": options.layers,
        "hidden_size": options.hidden,
        "num_attention_heads": options.heads,
        "num_query_groups": options.kv_heads,
        "block_size_tokens": options.block_size,
        "dtype": options.dtype or ("bfloat16" if on_cuda else "float32"),
    }
    # One block is never in use, and one is to spare.
    buffer = kv_gib(**size, blocks=blocks + 2) / getattr(options, "tensor_parallel", 1)
    _check_memory(buffer, on_cuda)
    return testing.EngineSpec(
        **size,
        **graph_fields(options),
        vocab_size=options.vocabulary,
        position_embedding_type="rope" if options.style == "llama" else "learned_absolute",
        buffer_size_gb=buffer,
        model_options=model_options(options, on_cuda),
        options={**mode_options(options.mode), **(inference or {})},
        **fields,
    )


def _check_memory(buffer_gib: float, on_cuda: bool) -> None:
    import torch

    if on_cuda and buffer_gib * 2**30 > torch.cuda.mem_get_info()[0]:
        free = torch.cuda.mem_get_info()[0] / 2**30
        raise testing.UnsupportedError(
            f"the KV cache of these requests takes {buffer_gib:.1f} GiB, and {free:.1f} GiB are "
            "free; name fewer or shorter requests"
        )


def graph_fields(options: argparse.Namespace) -> dict[str, Any]:
    """The fields of the spec for ``--graph-scope`` and ``--cuda-graphs``."""
    scope, count = options.graph_scope, options.cuda_graphs or None
    if scope is None:
        return {"num_cuda_graphs": count}
    known = graph_scopes.known_scopes()
    if scope == "none":
        return {"num_cuda_graphs": None}
    if scope not in known:
        raise testing.UnsupportedError(
            f"{release()} has no graph scope {scope!r}; expected one of: none, {', '.join(known)}"
        )
    return {"num_cuda_graphs": count, "cuda_graph_scope": known[scope] if count else None}


def mode_options(mode: str) -> dict[str, Any]:
    """The arguments of inference for ``--mode``."""
    if mode == "sync":
        return {}
    if "async_sched_mode" not in context_parameters():
        raise testing.UnsupportedError(f"{release()} has no mode {mode!r}; expected sync")
    return {"async_sched_mode": mode}


def model_options(options: argparse.Namespace, on_cuda: bool) -> dict[str, Any]:
    """The arguments of the model's configuration beside its size."""
    import torch

    arguments: dict[str, Any] = {}
    if on_cuda:
        # Billions of random numbers take minutes on a CPU, and any will do for a benchmark.
        arguments["use_cpu_initialization"] = False
    if options.ffn is not None:
        arguments["ffn_hidden_size"] = options.ffn
    if options.style == "llama":
        arguments.update(
            gated_linear_unit=True,
            activation_func=torch.nn.functional.silu,
            normalization="RMSNorm",
            add_bias_linear=False,
        )
    return arguments


def kv_gib(
    *,
    num_layers: int,
    hidden_size: int,
    num_attention_heads: int,
    num_query_groups: int | None,
    block_size_tokens: int,
    dtype: str,
    blocks: int,
) -> float:
    """GiB of ``blocks`` blocks of keys and values, and half a block: rounding must not lose one."""
    width = hidden_size // num_attention_heads * (num_query_groups or num_attention_heads)
    bytes_each = 2 * num_layers * block_size_tokens * width * (4 if dtype == "float32" else 2)
    return (blocks + 0.5) * bytes_each / 2**30


def build(options: argparse.Namespace, device: Any) -> tuple[Any, list[testing.Request]]:
    """The engine, and requests that are all in each of its steps."""
    return testing.build_engine(spec_of(options, device)), batch(options)


def batch(options: argparse.Namespace) -> list[testing.Request]:
    """Requests of different prompts of one length, which all begin at once."""
    return [
        testing.Request(
            tuple((n + m) % (options.vocabulary - 1) + 1 for m in range(options.prompt)),
            options.tokens,
        )
        for n in range(options.requests)
    ]


def measured_build(spec: testing.EngineSpec, patches: str) -> tuple[Any, dict[str, Any]]:
    """The engine, built with ``patches``, and what it took to make it ready.

    The latter is the attention that was called, and what the capture of CUDA graphs cost: seconds,
    and bytes that it allocated and reserved; None where nothing was captured.
    """
    with attention_used.recorded() as called, selected(patches):
        engine = testing.build_engine(spec)
        capture = getattr(engine, "capture_stats", None)
        few = [testing.Request((1, 2, 3), 2), testing.Request((2, 3, 4), 2)]
        testing.decode(engine, few[: spec.max_requests], capture_logits=False)
    return engine, {
        "attention": attention_used.summary(called),
        "capture": capture
        and {
            "seconds": capture.get("time"),
            "allocated_bytes": capture.get("allocated_bytes"),
            "reserved_bytes": capture.get("reserved_bytes"),
        },
    }


#: How many of the first steps in which all requests decode are not timed: they replay each graph
#: for the first time.
WARM_UP = 2

#: How many steps a profiler sees: to read what it saw takes longer than the steps themselves.
PROFILED = 32


def prefill_steps(decoded: testing.Decoded, requests: Sequence[testing.Request]) -> int:
    """How many steps of a run it took to read all prompts, which are there from the start."""
    return decoded.steps - max(request.num_tokens for request in requests) + 1


def decode_steps(engine: Any, requests: Sequence[testing.Request]) -> list[float]:
    """Microseconds of each step in which every request decodes.

    Raises:
        ValueError: there is no such step, for the first requests end before the last ones begin.
    """
    decoded = testing.decode(engine, requests, capture_logits=False)
    first = prefill_steps(decoded, requests) + WARM_UP
    samples = decoded.step_seconds[first : requests[0].num_tokens - 1]
    if not samples:
        raise ValueError(
            f"no step has all requests: their prompts take {first - WARM_UP} steps, and each ends "
            f"after {requests[0].num_tokens}; more --tokens or --prefill-tokens"
        )
    return [seconds * 1e6 for seconds in samples]


def steps_after_warm_up(
    engine: Any,
    requests: Sequence[testing.Request],
    start: Callable[[], object],
    stop: Callable[[], object],
    most: int = PROFILED,
) -> int:
    """Call ``start`` and ``stop`` around at most ``most`` steps in which every request decodes.

    Returns the number of these steps. Makes two runs: the first shows when the prompts are read.
    """
    plain = testing.decode(engine, requests, capture_logits=False)
    first = prefill_steps(plain, requests) + WARM_UP
    last = min(first + most, requests[0].num_tokens - 1)

    def on_step(engine: Any, step: int) -> None:
        if step == first:
            start()
        elif step == last:
            stop()

    testing.decode(engine, requests, on_step=on_step, capture_logits=False)
    return last - first


def cuda_events(engine: Any, requests: Sequence[testing.Request]) -> tuple[Any, int]:
    """What torch's profiler sees of CUDA in decode steps, and the number of steps."""
    from torch.profiler import ProfilerActivity, profile

    profiler = profile(activities=[ProfilerActivity.CUDA])
    steps = steps_after_warm_up(engine, requests, profiler.start, profiler.stop)
    return profiler.events(), steps


def select(selection: str) -> list[str]:
    """Apply ``selection``, a value of ``MEGATRON_PATCH``, and nothing else; returns the ids."""
    os.environ["MEGATRON_PATCH"] = selection
    megatron_patch.install()
    return [entry.id for entry in megatron_patch.status() if entry.state is State.APPLIED]


@contextmanager
def selected(selection: str) -> Iterator[list[str]]:
    """Apply the patches of ``selection`` within the block; yields the ids of those applied."""
    try:
        with mock.patch.dict(os.environ):
            yield select(selection)
    finally:
        megatron_patch.install()


@contextmanager
def alternating(selections: Sequence[str]) -> Iterator[Callable[[str], None]]:
    """Yield a function that switches to one of ``selections``, in microseconds.

    To judge the source again would take as long as hundreds of steps, and half a second later the
    machine may run at another clock rate.
    """
    with selected(selections[0]):
        made: dict[str, list[Change]] = {}
        for name in selections:
            select("none")
            select(name)
            # In the order of the series, as they were made: several may change one function.
            cases = megatron_patch._engine.cases.values()
            made[name] = [change for case in cases for change in case.changes]
        select("none")
        current: list[Change] = []

        def use(selection: str | None) -> None:
            for change in reversed(current):
                change.undo()
            current[:] = made[selection] if selection is not None else ()
            for change in current:
                change.make()

        try:
            yield use
        finally:
            use(None)


def as_it_is(function: FunctionType) -> FunctionType:
    """A function with the code that ``function`` has now, whatever patches do to that later."""
    parts = function.__globals__, function.__name__, function.__defaults__, function.__closure__
    twin = FunctionType(function.__code__, *parts)
    twin.__kwdefaults__ = function.__kwdefaults__
    return twin


@contextmanager
def timed(context: Any, method: str) -> Iterator[list[float]]:
    """Note how long each call of ``context.method()`` takes, in microseconds of host time."""
    samples: list[float] = []
    function = getattr(type(context), method)

    def call(*arguments: Any, **named: Any) -> Any:
        begin = time.perf_counter()
        result = function(context, *arguments, **named)
        samples.append((time.perf_counter() - begin) * 1e6)
        return result

    # On the instance: the patched class stays as a user has it.
    vars(context)[method] = call
    try:
        yield samples
    finally:
        del vars(context)[method]


def provenance(tool: str, options: argparse.Namespace) -> dict[str, Any]:
    """The commit, the command and the options that belong to the figures of ``tool``."""
    left_out = ("json", "commit", "select")
    return {
        "commit": options.commit or _commit(),
        "command": " ".join(["python", f"tools/{tool}", *sys.argv[1:]]),
        "options": {name: value for name, value in vars(options).items() if name not in left_out},
    }


def _commit() -> str | None:
    done = subprocess.run(
        ["git", "rev-parse", "HEAD"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() or None


def machine(device: Any) -> dict[str, str | None]:
    """Names and versions that belong to each figure."""
    import torch

    on_cuda = device.type == "cuda"
    return {
        "processor": _processor(),
        "device": torch.cuda.get_device_name(device) if on_cuda else f"CPU ({platform.machine()})",
        "megatron_core": core_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda if on_cuda else None,
        "python": platform.python_version(),
    }


def _processor() -> str | None:
    """The name of the host's processor, on which the host's part of a step depends."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return None
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, None)
