"""Make a process able to run Megatron's dynamic engine, and undo that."""

from __future__ import annotations

import asyncio
import atexit
import inspect
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any

from . import latent_attention
from .event_loop import event_loop

if TYPE_CHECKING:
    import torch

ATTENTION = "megatron.core.transformer.attention"
DISPATCHER = "megatron.core.transformer.moe.token_dispatcher"
COMMUNICATION = "megatron.core.inference.communication_utils"
CONTEXT = "megatron.core.inference.contexts.dynamic_context"


@dataclass(frozen=True)
class Runtime:
    """What :func:`start` has set up."""

    device: torch.device
    loop: asyncio.AbstractEventLoop
    """The event loop of all engines. Megatron would make one for each engine, and close none."""
    real_flash_attention: bool
    undo: ExitStack

    @property
    def on_cpu(self) -> bool:
        return bool(self.device.type == "cpu")


_runtime: Runtime | None = None


def start(
    tensor_model_parallel_size: int = 1,
    expert_model_parallel_size: int = 1,
    pipeline_model_parallel_size: int = 1,
) -> torch.device:
    """Make this process able to run Megatron's dynamic engine; returns the device it runs on.

    Without a CUDA device that is the CPU, and parts of ``torch.cuda`` and flash-attn are stood in
    for; see the modules ``standins`` and ``attention`` for what that means. With one,
    ``torch.cuda`` is left alone, and flash-attn is stood in for only if it cannot be imported.
    Nothing of Megatron is replaced, except that on a CPU its Triton kernel for writing the KV
    cache is set to None: Megatron then does that in PyTorch.

    Also sets up ``torch.distributed`` with a world of one process, and Megatron's parallel state
    and random seed, unless they are initialised. Does nothing if called again.

    Args:
        tensor_model_parallel_size: ranks that share a model. Needs a default process group,
            initialised before, whose size is a multiple of it, and the same calls on all ranks.
        pipeline_model_parallel_size: stages of a model, each on a rank of its own, likewise. All
            of them return the tokens; only the model of the last stage returns logits.

    Raises:
        RuntimeError: Megatron's attention was imported before, without what it needs.
    """
    global _runtime
    if _runtime is None:
        import torch

        on_cpu = not torch.cuda.is_available()
        with ExitStack() as stack:
            if on_cpu:
                from . import standins

                device = stack.enter_context(standins.installed())
            else:
                device = torch.device("cuda", torch.cuda.current_device())
            stands_in = _enter_attention(stack, on_cpu)
            stack.enter_context(_process_group("gloo" if on_cpu else "nccl"))
            stack.enter_context(
                _parallel_state(
                    tensor_model_parallel_size,
                    expert_model_parallel_size,
                    pipeline_model_parallel_size,
                )
            )
            stack.callback(_drop_cuda_graphs)
            stack.enter_context(latent_attention.projections_split())
            if on_cpu:
                stack.enter_context(_without_triton())
                stack.enter_context(_stages_on_host())
                stack.enter_context(_counts_on_host())
            loop = stack.enter_context(event_loop())
            # A process that ends without stop() would otherwise leave a process group behind.
            stack.callback(atexit.unregister, atexit.register(stop))
            _runtime = Runtime(device, loop, not stands_in, stack.pop_all())
    return _runtime.device


def stop() -> None:
    """Undo :func:`start`; does nothing if there is nothing to undo.

    Engines and contexts made before are of no use afterwards. Their CUDA graphs are dropped: NCCL
    waits for those with its operations in them before it destroys a process group. (In 0.14 and
    0.15, where Megatron has no way to drop them, they go with the engine.) Megatron stays imported,
    and on a CPU does not run until :func:`start` is called again.
    """
    global _runtime
    if _runtime is not None:
        runtime, _runtime = _runtime, None
        runtime.undo.close()


def running() -> Runtime:
    """What :func:`start` has set up. Raises RuntimeError if it was not called."""
    if _runtime is None:
        raise RuntimeError("call megatron_patch.testing.start() first, before importing Megatron")
    return _runtime


def _drop_cuda_graphs() -> None:
    graphs = sys.modules.get("megatron.core.transformer.cuda_graphs")
    delete = getattr(graphs, "delete_cuda_graphs", None)
    if delete is not None:
        delete()


def _enter_attention(stack: ExitStack, on_cpu: bool) -> bool:
    """Make sure that there is a flash-attn, or put one there; returns whether it had to."""
    from . import flash_attn_module, flash_mla_module

    imported = sys.modules.get(ATTENTION)
    if imported is not None and not _is_usable(imported, on_cpu):
        raise RuntimeError(
            f"{ATTENTION} was imported before megatron_patch.testing.start(), without a "
            "flash-attn that runs on this machine, and cannot be given one any more. Call start() "
            "before anything imports Megatron, for example at the top of conftest.py."
        )
    if imported is not None:
        stands_in = flash_attn_module.is_stood_in(imported)
    else:
        stands_in = on_cpu or not _can_import("flash_attn")
    if stands_in:
        stack.enter_context(flash_attn_module.installed())
    if on_cpu or not _can_import("flash_mla"):
        stack.enter_context(flash_mla_module.installed())
    return stands_in


def _is_usable(imported: ModuleType, on_cpu: bool) -> bool:
    from . import flash_attn_module

    names: dict[str, Any] = vars(imported)
    newer = bool(names.get("HAVE_FA3") or names.get("HAVE_FA4"))
    if on_cpu:
        return flash_attn_module.is_stood_in(imported) and not newer
    return newer or names.get("flash_attn_varlen_func") is not None


def _can_import(name: str) -> bool:
    try:
        __import__(name)
    except ImportError:
        return False
    return True


@contextmanager
def _process_group(backend: str) -> Iterator[None]:
    """A default process group; destroyed at the end if it was made here."""
    from torch import distributed

    if distributed.is_initialized():
        yield
        return
    # A store within the process: no port and no file that two test runs could share.
    distributed.init_process_group(backend, store=distributed.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        distributed.destroy_process_group()


@contextmanager
def _parallel_state(tensor_size: int, expert_size: int, pipeline_size: int) -> Iterator[None]:
    """Megatron's parallel state and random seed; destroyed at the end if made here."""
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

    if parallel_state.model_parallel_is_initialized():
        yield
        return
    parallel_state.initialize_model_parallel(
        tensor_size, pipeline_size, expert_model_parallel_size=expert_size
    )
    try:
        # The tracker for inference: it can be captured in a CUDA graph, and needs no CUDA device.
        # Older source makes it anew each time.
        options = {"inference_rng_tracker": True, "force_reset_rng": True}
        taken = inspect.signature(model_parallel_cuda_manual_seed).parameters
        model_parallel_cuda_manual_seed(0, **{k: v for k, v in options.items() if k in taken})
        yield
    finally:
        parallel_state.destroy_model_parallel()


@contextmanager
def _without_triton() -> Iterator[None]:
    """Have the context write the KV cache in PyTorch."""
    from importlib import import_module

    module = import_module(CONTEXT)
    name = "triton_append_key_value_cache"
    if getattr(module, name, None) is None:
        yield
        return
    kernel = getattr(module, name)
    setattr(module, name, None)
    try:
        yield
    finally:
        setattr(module, name, kernel)


@contextmanager
def _stages_on_host() -> Iterator[None]:
    """Let the stages of a pipeline pass tensors that are not on a CUDA device."""
    from importlib import import_module

    module = import_module(COMMUNICATION)
    name = "_is_cuda"
    original = getattr(module, name)
    setattr(module, name, lambda tensor: None)
    try:
        yield
    finally:
        setattr(module, name, original)


@contextmanager
def _counts_on_host() -> Iterator[None]:
    """Let ranks that share experts exchange tokens where the numbers of tokens are on a CPU:
    Megatron makes an array of such numbers only if they are on a CUDA device."""
    from importlib import import_module

    module = import_module(DISPATCHER)
    name = "maybe_move_tensor_to_cpu"
    original = getattr(module, name)

    def move(tensor: Any, as_numpy: bool = False, record_stream: bool = False) -> Any:
        moved = original(tensor, as_numpy=as_numpy, record_stream=record_stream)
        return moved.numpy() if as_numpy and hasattr(moved, "numpy") else moved

    setattr(module, name, move)
    try:
        yield
    finally:
        setattr(module, name, original)
