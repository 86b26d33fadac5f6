"""Checks that the tests of several backports share."""

from __future__ import annotations

from typing import Any

import pytest
from torch.utils._python_dispatch import TorchDispatchMode

import megatron_patch
from megatron_patch import State, testing
from megatron_patch.definitions import locate
from megatron_patch.edits import Target
from megatron_patch.fingerprint import without_docstring
from megatron_patch.model import Patch
from megatron_patch.sources import read_source
from megatron_patch.verdicts import Reader, Verdict
from tools.benchmarking import as_it_is  # noqa: F401

from ..conftest import RELEASE, expected_state
from ..operation import contract

#: A short prompt, one of several blocks, and one that comes later.
REQUESTS = (
    testing.Request(prompt=(5, 6, 7, 8), num_tokens=12),
    testing.Request(prompt=tuple(range(1, 40)), num_tokens=5),
    testing.Request(prompt=(9, 10), num_tokens=7, arrival_step=3),
)

#: Prompts of one token: alone, several, beside requests that decode, and beside a longer one.
ONE_TOKEN_BATCHES = {
    "alone": [testing.Request((5,), 6)],
    "several": [testing.Request((token,), 4) for token in range(7)],
    "joining": [
        testing.Request((5, 6, 7), 12),
        testing.Request((9,), 6, arrival_step=3),
        testing.Request((8,), 3, arrival_step=4),
    ],
    "with a longer one": [testing.Request((5,), 6), testing.Request((7, 8, 9), 6)],
}

#: Engines whose decode steps differ. 0.14 to 0.16 have no speculative tokens.
SPECS = {
    "eager": testing.EngineSpec(),
    "all logits": testing.EngineSpec(materialize_only_last_token_logits=False),
    "graphs": testing.EngineSpec(num_cuda_graphs=4, max_requests=16, block_size_tokens=8),
    "speculative": testing.EngineSpec(
        num_speculative_tokens=2, materialize_only_last_token_logits=False
    ),
}


#: Marks what shows the purpose of a patch, on whichever source is imported: it fails where the
#: source needs the patch and the patch is not installed, and passes everywhere else. So it asks the
#: source, never the release, and leaves the patches as `MEGATRON_PATCH` says.
proof = pytest.mark.proof


def needs(found: object, feature: str) -> None:
    """Skip a proof on source that lacks ``feature``, which its patch is about."""
    if not found:
        pytest.skip(f"has no such feature: {feature}")


def state_of(patch: Patch) -> State:
    """The state of ``patch`` in this process."""
    (entry,) = (entry for entry in megatron_patch.status() if entry.id == patch.id)
    return entry.state


def assert_state_of_record(patch: Patch) -> None:
    """The state of ``patch`` is what its record says of the release; opt-in patches count as on."""
    said = contract.expected(patch, str(RELEASE))
    state = State.APPLIED if said is Verdict.APPLICABLE else State(said.value)
    assert state_of(patch) is expected_state(state)


def assert_same_outputs(one: testing.Decoded, other: testing.Decoded) -> None:
    """Both runs have the same tokens, and bit for bit the same logits in each step."""
    assert one.tokens == other.tokens
    assert len(one.logits) == len(other.logits)
    assert all(a.equal(b) for a, b in zip(one.logits, other.logits, strict=True))


def assert_patches_change_no_output(spec: testing.EngineSpec) -> None:
    """The same requests give the same outputs on Megatron as released and with the patches."""
    without = testing.decode(testing.build_engine(spec), REQUESTS)
    megatron_patch.install()
    assert_same_outputs(testing.decode(testing.build_engine(spec), REQUESTS), without)


class Operators(TorchDispatchMode):
    """Notes the operators that run, such as ``aten::add``. Views are kernels on no device."""

    def __init__(self, *, views: bool = True) -> None:
        super().__init__()
        self.names: list[str] = []
        self._views = views

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if self._views or not function.is_view:
            self.names.append(function.overloadpacket._qualified_op_name)
        return function(*args, **(kwargs or {}))


def with_one_token_changed(dotted: str, old: str = "self.", new: str = "that.") -> Reader:
    """A reader of the installed source, with the name ``old`` changed in the method ``dotted``."""
    target = Target.parse(dotted)

    def read(module: str) -> Any:
        text = read_source(module)
        if text is None or module != target.module:
            return text
        definition = locate(module, text, target.qualname)
        assert definition is not None
        lines = text.splitlines(keepends=True)
        # Neither the signature nor the docstring, which may have a `self.` too.
        start = without_docstring(definition.node)[0].lineno - 1
        return "".join(lines[:start]) + "".join(lines[start:]).replace(old, new, 1)

    return read
