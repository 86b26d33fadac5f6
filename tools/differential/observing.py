"""What a caller can see of a run, as a plain record, and what only the oracles look at."""

from __future__ import annotations

import hashlib
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .draws import Draw

if TYPE_CHECKING:
    from torch import Tensor

#: Fields of a request of the engine. Not its times, which no two runs share.
FIELDS = (
    "status",
    "prompt_tokens",
    "generated_tokens",
    "generated_length",
    "generated_text",
    "prompt_log_probs",
    "generated_log_probs",
    "prompt_top_n_logprobs",
    "generated_top_n_logprobs",
    "policy_epoch",
    "kv_cache_epoch",
    "num_cached_tokens",
    "stop_word_ids",
    "routing_indices",
)

#: What a step adds to.
LISTS = ("generated_tokens", "generated_log_probs", "generated_top_n_logprobs")

Record = dict[str, Any]


@dataclass
class Forward:
    """One forward pass of the model in the engine."""

    version: int
    """How often the weights had changed before."""
    rows: list[tuple[int, int, int, int]] = field(default_factory=list)
    """For each request with tokens in the pass: its index, the part of its record, the position of
    its first token there and the number of its tokens."""
    tables: list[list[int]] = field(default_factory=list)
    """The KV blocks of each of ``rows``; -1 where there is none."""
    astray: list[tuple[int, int, int]] = field(default_factory=list)
    """Tokens whose keys and values go elsewhere: the index in ``rows``, the position, the block."""
    states: list[tuple[int, int, int]] = field(default_factory=list)
    """Mamba states that are not those of the tokens before: the request, the part, the position."""
    ahead: bool = False
    """The pass was launched before it was known which requests go on (asynchronous scheduling)."""
    stayed: list[int] = field(default_factory=list)
    """The requests that were not paused when its step was over, in the engine's order."""
    logits: Tensor | None = None
    """(tokens, vocabulary): of all tokens of ``rows`` in order, or of the last token of each."""


@dataclass
class Filed:
    """What a step added to one part of a request."""

    part: int
    consumed: int
    """The number of the forward pass that the tokens came from; -1 if there was none."""
    launched: int | None
    """The number of the forward pass that the step itself launched, if that is another one."""
    grown: dict[str, int]
    """By how much each of :data:`LISTS` grew."""
    tokens: list[int] = field(default_factory=list)
    """The tokens that it added."""


@dataclass(frozen=True)
class Shortage:
    """The end of a step, if a request was paused then, or had been evicted in it."""

    passes: int
    """How many forward passes there had been."""
    evicted: int
    """How many requests were evicted in the step."""
    cached: int
    """How many blocks were cached that nobody held."""
    shared: int
    """How many blocks of the paused and evicted requests others held too."""


@dataclass
class Observation:
    """One run."""

    record: Record = field(default_factory=dict)
    """What a caller can see: this is compared."""
    forwards: list[Forward] = field(default_factory=list)
    generated: list[list[tuple[int, int, int]]] = field(default_factory=list)
    """Of each request, for each generated token: the part of its record, its place there, and the
    number of the forward pass that it came from."""
    filed: list[list[Filed]] = field(default_factory=list)
    """Of each request, what each step added."""
    shortages: list[Shortage] = field(default_factory=list)
    invariants: list[str] = field(default_factory=list)
    """What was inconsistent in the context between steps."""
    error: BaseException | None = None
    weights: list[dict[str, Tensor]] = field(default_factory=list)
    """Copies of the weights, for each :attr:`Forward.version`."""
    free_at_start: int = 0
    limits: dict[str, int] = field(default_factory=dict)
    """What a request that is alone can have: see :func:`tools.differential.blocks.limits`."""
    draws: list[Draw] = field(default_factory=list)
    """What sampling drew, in all steps."""
    alone: bool = True
    """The model runs without other ranks, so that the oracles can call it."""
    references: dict[Any, Tensor] = field(default_factory=dict)
    """A cache of logits of the model alone, for the oracles."""
    patches: frozenset[str] = frozenset()
    """Ids of the patches that were applied."""


def plain(value: Any) -> Any:
    """``value`` as lists, dictionaries, strings and numbers, which compare by value."""
    import torch

    if isinstance(value, torch.Tensor):
        return plain(value.tolist())
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, BaseException):
        return f"{type(value).__name__}: {value}"
    if isinstance(value, dict):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):  # of NumPy
        return plain(value.tolist())
    return value


def digest(tensor: Any) -> str:
    """A digest of a tensor's values, bit for bit."""
    import torch

    values = tensor.detach().cpu().contiguous()
    if values.dtype in (torch.bfloat16, torch.float16):
        values = values.view(torch.int16)
    return hashlib.blake2b(values.numpy().tobytes(), digest_size=8).hexdigest()


def output(tensor: Any, rows: int) -> Record:
    """What the model returned to the engine. Rows behind the first ``rows`` are padding."""
    return {
        "digest": digest(tensor[:, :rows]),
        "shape": list(tensor.shape),
        "dtype": str(tensor.dtype),
        "requires_grad": tensor.requires_grad,
        "grad_fn": type(tensor.grad_fn).__name__,
    }


def failure(error: BaseException, during: str) -> Record:
    """An exception: its type, text, and the innermost function of Megatron that it came through."""
    place = ""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        module = str(frame.f_globals.get("__name__", ""))
        if module.startswith("megatron."):
            place = f"{module}:{frame.f_code.co_name}"
    return {"type": type(error).__name__, "text": str(error), "place": place, "during": during}


def where(error: BaseException) -> str:
    """File and line that an exception came from, for people."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{Path(frame.filename).name}:{frame.lineno}"


def parts_of(record: Any) -> Sequence[Any]:
    """The request, or its parts if it was evicted or recomputed."""
    parts: Sequence[Any] = getattr(record, "requests", None) or (record,)
    return parts


def part(request: Any) -> Record:
    """What the engine says of a request, or of a part of it."""
    found = {name: plain(getattr(request, name)) for name in FIELDS if hasattr(request, name)}
    found["events"] = [
        [event.type.name, plain(event.payload)] for event in getattr(request, "events", ())
    ]
    times = getattr(request, "tpot", None)
    found["tpot"] = None if times is None else len(times)
    return found


def request(record: Any) -> Record:
    """What the engine handed out for a request: its parts, and the whole if it has several."""
    found: Record = {"parts": [part(item) for item in parts_of(record)]}
    if hasattr(record, "merge"):
        try:
            found["merged"] = part(record.merge())
        except Exception as error:
            found["merged"] = failure(error, "merge")
    return found
