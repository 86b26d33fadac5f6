"""A tape of PyTorch's operators: what ran once runs again on the same memory.

This is what a CUDA graph is, for a CPU: the operators and the addresses are those of the recording,
and nothing of Python runs when they are run again. A :class:`Recorder` sees operators where PyTorch
runs them, below autograd: so it sees those of a backward pass too, and autograd sees none of it
when they run again.

PyTorch keeps the mode per thread. On a CPU a backward pass runs in the thread that calls for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

# Memory that nobody has written to yet: there is nothing to do again.
UNINITIALISED = frozenset(
    ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided")
)

# Operators for which the host waits for the device, beside those that PyTorch has tags for.
HOST_READS = frozenset(
    ("item", "is_nonzero", "allclose", "equal", "nonzero_numpy", "argwhere", "masked_select")
)


class HostReadError(RuntimeError):
    """The host would have to wait for the device while operators are recorded."""


class Tape:
    """Operators in the order in which they ran, and the memory that they ran on.

    It keeps that memory alive, as the memory pool of a CUDA graph does.
    """

    def __init__(self) -> None:
        self._calls: list[Callable[[], object]] = []
        self._addresses: dict[int, tuple[Any, int]] = {}

    def __len__(self) -> int:
        return len(self._calls)

    def append(self, call: Callable[[], object]) -> None:
        """Record ``call``, which each run repeats at this place."""
        self._calls.append(call)

    def alias(self, tensor: Tensor) -> Tensor:
        """The same memory in a tensor of our own, which nobody transposes, resizes or frees."""
        alias = tensor.data
        storage = alias.untyped_storage()
        self._addresses.setdefault(storage._cdata, (storage, storage.data_ptr()))
        return alias

    def seal(self) -> None:
        """From here on the memory must stay where it is."""
        self._addresses = {
            key: (storage, storage.data_ptr()) for key, (storage, _) in self._addresses.items()
        }

    def run(self) -> None:
        """Run everything again.

        Raises:
            RuntimeError: memory of the recording has been moved or freed.
        """
        for storage, address in self._addresses.values():
            if storage.data_ptr() != address:
                raise RuntimeError(
                    "CUDA error: an illegal memory access was encountered (memory that the graph "
                    f"reads or writes was at {address:#x} when it was captured, and is not now)"
                )
        with paused(), torch.inference_mode(), torch._C._DisableAutocast():
            for call in self._calls:
                call()


class paused:
    """Within the block no dispatch mode of PyTorch sees operators, be it ours or not."""

    def __enter__(self) -> None:
        self._guards = (torch._C.DisableTorchFunction(), torch._C._DisableTorchDispatch())
        for guard in self._guards:
            guard.__enter__()

    def __exit__(self, *error: object) -> None:
        for guard in reversed(self._guards):
            guard.__exit__(*error)


class Recorder(TorchDispatchMode):  # type: ignore[misc]
    """Runs each operator, and puts it on a tape."""

    def __init__(self, tape: Tape) -> None:
        super().__init__()
        self.tape = tape
        self.invalidated = False

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if reads_on_host(func, args, kwargs):
            self.invalidated = True
            raise HostReadError(
                f"CUDA error: operation not permitted when stream is capturing ({func} makes the "
                "host wait for the device)"
            )
        # Before it runs: some operators change the shape of their arguments.
        inputs: Any = tree_map_only(Tensor, self.tape.alias, (args, kwargs))
        result = func(*args, **kwargs)
        self._record(func, inputs[0], inputs[1], result)
        return result

    def _record(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        name = func._schema.name.split("::")[-1]
        # What changes the shape of an argument is not done again: others have theirs from then.
        if torch.Tag.inplace_view in func.tags or name in UNINITIALISED:
            tree_map_only(Tensor, self.tape.alias, result)
            return
        known = set(map(_storage_id, _tensors((args, kwargs))))
        leaves = tree_leaves(result)
        # Others are views of arguments, or the arguments themselves.
        fresh = [
            (index, self.tape.alias(leaf))
            for index, leaf in enumerate(leaves)
            if isinstance(leaf, Tensor) and _storage_id(leaf) not in known
        ]
        if name in ("lift_fresh", "lift", "lift_fresh_copy"):
            # A tensor that was made from Python numbers.
            for alias in _tensors(self.tape.alias(result)):
                self.tape.append(_Copy(alias, alias.clone()))
        elif func.namespace == "c10d":
            self.tape.append(_Collective(func, args, kwargs))
        elif fresh or func._schema.is_mutable:
            self.tape.append(_Operator(func, args, kwargs, fresh))


class _Operator:
    """An operator with its arguments, and the memory of its results."""

    def __init__(self, func: Any, args: Any, kwargs: Any, results: list[tuple[int, Tensor]]):
        self._func, self._args, self._kwargs, self._results = func, args, kwargs, results

    def __call__(self) -> None:
        leaves = tree_leaves(self._func(*self._args, **self._kwargs))
        for index, target in self._results:
            target.copy_(leaves[index])


class _Collective:
    """An operator of torch.distributed. It writes to its arguments, and may end later."""

    def __init__(self, func: Any, args: Any, kwargs: Any) -> None:
        self._func, self._args, self._kwargs = func, args, kwargs

    def __call__(self) -> None:
        result = self._func(*self._args, **self._kwargs)
        for leaf in result if isinstance(result, (tuple, list)) else (result,):
            if hasattr(leaf, "wait") and not isinstance(leaf, Tensor):
                leaf.wait()


class _Copy:
    def __init__(self, target: Tensor, value: Tensor) -> None:
        self._target, self._value = target, value

    def __call__(self) -> None:
        self._target.copy_(self._value)


def reads_on_host(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether the host would wait for a CUDA device in ``func``: it asks for a value of a tensor,
    or for a shape that depends on values."""
    name = func._schema.name.split("::")[-1]
    if name in HOST_READS or torch.Tag.data_dependent_output in func.tags:
        return True
    if name in ("index", "index_put", "index_put_", "_index_put_impl_"):
        # A mask of one value is filled in without a list of its places.
        masks = any(index.dtype in (torch.bool, torch.uint8) for index in _tensors(args[1]))
        return masks and not (len(args) > 2 and args[2].numel() == 1)
    if name == "repeat_interleave":
        counts = func._overloadname in ("Tensor", "self_Tensor")
        return counts and kwargs.get("output_size") is None
    if name == "where" and len(args) == 1:
        return True
    return torch.Tag.dynamic_output_shape in func.tags


def _tensors(tree: Any) -> Iterable[Tensor]:
    return (leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor))


def _storage_id(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
