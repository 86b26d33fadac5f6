"""What else is in the process: code of others on and around what the patches change.

A guest that stands on a target of a patch comes before the patches, and each selection is then
installed anew, because what is applied is not what it is without.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from types import FunctionType, MappingProxyType
from typing import Any
from unittest import mock

from megatron_patch.backports import SERIES
from megatron_patch.edits import Add, Target, changes_code

BANNED = 7
"""The token that guests ban."""

CONTROLLER = "megatron.core.inference.text_generation_controllers.text_generation_controller"
SAMPLING = "megatron.core.inference.sampling.torch_sampling"
LAYERS = "megatron.core.tensor_parallel.layers"


def _always() -> bool:
    return True


def _nothing() -> AbstractContextManager[None]:
    return nullcontext()


@dataclass(frozen=True)
class Guest:
    """Somebody else's code in the process."""

    why: str
    before: Callable[[], AbstractContextManager[None]] = _nothing
    """A context manager that puts the code in place, before the patches."""
    on_target: bool = False
    """The code changes a target of a patch: patches are judged with it in place."""
    built: Callable[[Any], None] = lambda engine: None
    """Does something to each engine that is built."""
    observe: Callable[[], Any] = lambda: None
    """What else a caller sees, after the run and with the patches in force."""
    changes_tokens: bool = False
    """The model alone cannot tell which tokens are right."""
    possible: Callable[[], bool] = _always
    """Whether the installed release has what it needs."""


def _module(name: str) -> Any:
    from importlib import import_module

    try:
        return import_module(name)
    except ModuleNotFoundError:
        return None


# --------------------------------------------------------------- sampling that edits its logits


def _sampler() -> tuple[Any, str] | None:
    """The class and the name of its method that sample rows of logits; None if there is none."""
    controller = _module(CONTROLLER).TextGenerationController
    if hasattr(controller, "_torch_sampling_func"):
        return controller, "_torch_sampling_func"
    sampling = _module(SAMPLING)
    return None if sampling is None else (sampling.TorchSampling, "sample_from_logits")


def _banning(function: Callable[..., Any], takes_self: bool) -> Callable[..., Any]:
    """``function``, which first bans a token in the logits that it is given."""

    def bans_in_place(*args: Any, **kwargs: Any) -> Any:
        args[1 if takes_self else 0][:, BANNED] = float("-inf")
        return function(*args, **kwargs)

    return bans_in_place


@contextmanager
def _ban_by_monkeypatch() -> Iterator[None]:
    found = _sampler()
    assert found is not None
    owner, name = found
    original = vars(owner)[name]
    new: Any = _banning(getattr(owner, name), not isinstance(original, staticmethod))
    with mock.patch.object(
        owner, name, staticmethod(new) if isinstance(original, staticmethod) else new
    ):
        yield


def _ban_by_subclass(engine: Any) -> None:
    controller = engine.controller
    cls = type(controller)
    name = "_torch_sampling_func"
    controller.__class__ = type(cls.__name__, (cls,), {name: _banning(getattr(cls, name), True)})


def _samples_in_controller() -> bool:
    found = _sampler()
    return found is not None and found[1] == "_torch_sampling_func"


# ------------------------------------------------------------------------- layers and contexts


def _forget_groups(engine: Any) -> None:
    """Make layers as they are when they are built before `init_process_group()`."""
    layers = _module(LAYERS)
    kinds = (layers.ColumnParallelLinear, layers.RowParallelLinear)
    for module in engine.controller.inference_wrapped_model.model.modules():
        if isinstance(module, kinds) and hasattr(module, "tp_group"):
            module.tp_group = None


def _edit_in_context(engine: Any) -> None:
    """A context of a class of one's own, which changes the input when its state is ready."""
    cls = type(engine.context)

    def initialize_attention_state(self: Any, *args: Any, **kwargs: Any) -> Any:
        copied = cls.initialize_attention_state(self, *args, **kwargs)
        if copied is not None:  # the event of a copy to the GPU, which reads this tensor until then
            copied.synchronize()
        self.token_to_input_ids[: self.active_token_count] ^= 1
        return copied

    names = {"initialize_attention_state": initialize_attention_state}
    engine.context.__class__ = type(cls.__name__, (cls,), names)


def _separate(original: Any) -> Any:
    """An autograd function that does the same, written with ``setup_context``."""
    import torch

    class Separate(torch.autograd.Function):  # type: ignore[misc]
        @staticmethod
        def forward(*args: Any) -> Any:
            return original.forward(torch.autograd.function.FunctionCtx(), *args)

        @staticmethod
        def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
            original.forward(ctx, *inputs)

        @staticmethod
        def backward(ctx: Any, *gradients: Any) -> Any:
            return original.backward(ctx, *gradients)

    return Separate


@contextmanager
def _setup_context() -> Iterator[None]:
    layers = _module(LAYERS)
    names = ("LinearWithGradAccumulationAndAsyncCommunication", "LinearWithFrozenWeight")
    with mock.patch.multiple(layers, **{n: _separate(getattr(layers, n)) for n in names}):
        yield


# ------------------------------------------------------------------- wrappers of observability


@cache
def _targets() -> tuple[tuple[Any, str], ...]:
    """The plain functions that the default patches change: the owner and the name of each."""
    found: dict[tuple[int, str], tuple[Any, str]] = {}
    edits = [edit for patch in SERIES if patch.default for v in patch.variants for edit in v.edits]
    for edit in edits:
        target = Target.parse(edit.target)
        owner: Any = sys.modules.get(target.module)
        for name in filter(None, target.scope.split(".")):
            owner = None if owner is None else vars(owner).get(name)
        if owner is None or isinstance(edit, Add) or not changes_code(edit):
            continue
        if isinstance(vars(owner).get(target.name), FunctionType):
            found[id(owner), target.name] = (owner, target.name)
    return tuple(found.values())


_called: set[str] = set()


@contextmanager
def _wrapped(wrap: Callable[[Any, str], Any]) -> Iterator[None]:
    _called.clear()
    originals = [(owner, name, vars(owner)[name]) for owner, name in _targets()]
    try:
        for owner, name, function in originals:
            setattr(owner, name, wrap(function, name))
        yield
    finally:
        for owner, name, function in originals:
            setattr(owner, name, function)


def _with_wrapt() -> AbstractContextManager[None]:
    import wrapt

    def wrap(function: Any, name: str) -> Any:
        def note(wrapped: Any, instance: Any, args: Any, kwargs: Any) -> Any:
            _called.add(name)
            return wrapped(*args, **kwargs)

        return wrapt.FunctionWrapper(function, note)

    return _wrapped(wrap)


def _with_functions() -> AbstractContextManager[None]:
    import functools

    def wrap(function: Any, name: str) -> Any:
        @functools.wraps(function)
        def noting(*args: Any, **kwargs: Any) -> Any:
            _called.add(name)
            return function(*args, **kwargs)

        return noting

    return _wrapped(wrap)


def _seen_calls() -> list[str]:
    return sorted(_called)


# ------------------------------------------------------------------------------ names and pickle


def unpicklable() -> list[str]:
    """Functions in Megatron's modules whose own name leads to another function: module and name.

    `pickle` looks a function up by its own name, and refuses such a one.
    """
    found = []
    for module_name, module in sorted(sys.modules.items()):
        if not module_name.startswith("megatron.core"):
            continue
        for name, value in sorted(vars(module).items()):
            if isinstance(value, FunctionType) and _looked_up(value) is not value:
                found.append(f"{module_name}.{name}")
    return found


def _looked_up(function: FunctionType) -> Any:
    there: Any = sys.modules.get(function.__module__)
    for name in function.__qualname__.split("."):
        there = getattr(there, name, None)
    return there


COMPANY = MappingProxyType(
    {
        "ban by monkeypatch": Guest(
            "sampling was replaced, before us, by one that bans a token in the logits it is given",
            before=_ban_by_monkeypatch,
            on_target=True,
            changes_tokens=True,
            possible=lambda: _sampler() is not None,
        ),
        "ban by subclass": Guest(
            "a subclass of the controller bans a token in the logits that it is given",
            built=_ban_by_subclass,
            changes_tokens=True,
            possible=_samples_in_controller,
        ),
        "no groups": Guest(
            "layers were built before init_process_group() and look their group up at each call",
            built=_forget_groups,
        ),
        "own context": Guest(
            "a subclass of the context changes the input when the attention state is ready",
            built=_edit_in_context,
            changes_tokens=True,
        ),
        "setup_context": Guest(
            "autograd functions of the layers were replaced by ones with setup_context",
            before=_setup_context,
            on_target=True,
        ),
        "wrapt": Guest(
            "wrapt wrappers on the targets of the patches, before us",
            before=_with_wrapt,
            on_target=True,
            observe=_seen_calls,
            possible=lambda: _module("wrapt") is not None,
        ),
        "wrappers": Guest(
            "wrapping functions on the targets of the patches, before us",
            before=_with_functions,
            on_target=True,
            observe=_seen_calls,
        ),
        "pickle": Guest(
            "functions are sent to other processes, by the names that modules have for them",
            observe=unpicklable,
        ),
    }
)
