"""Cache the input and position id views per token count (upstream PR #4634).

``DynamicInferenceContext.current_input_and_position_ids()`` slices and unsqueezes two int64
tensors of shape ``(max_tokens,)`` into two views of shape ``(1, num_tokens)`` at every forward
pass. With this patch it builds them once for each token count.

What differs from upstream's commit 1df264c4d8: the views are kept together with the tensors that
they were taken from, and are only used while the context still has these very tensors. Older
releases delete and allocate their storage again (suspend and resume), where upstream's cache
alone would go on feeding old tokens. While the storage is gone, the call raises
``AttributeError`` as it does without the patch.

Not covered: storage exchanged *inside* a tensor object (``Tensor.set_()``, ``Tensor.data = ...``,
``untyped_storage().resize_()``). Megatron never does this to these tensors.

Applying it to a process whose contexts exist already is fine: they get their cache at the next
call.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Optional, Tuple

if TYPE_CHECKING:
    from torch import Tensor
from ...edits import Add, Before, Replace
from ...model import Kind, Patch, Variant

CONTEXT = "megatron.core.inference.contexts.dynamic_context:DynamicInferenceContext"

GETTER = f"{CONTEXT}.current_input_and_position_ids"


def context_views(self: Any, *, num_warmup_tokens: Optional[int] = None) -> Tuple[Tensor, Tensor]:
    """Flattened input and position ids of the forward pass, as cached views of the storage.

    Args:
        num_warmup_tokens (Optional[int]): Token count of a CUDA graph that is being warmed up,
            at most `max_tokens`. None or 0 stands for the padded active token count.

    Return:
        (Tuple[Tensor, Tensor]) Input ids and position ids, int64, each of shape
            (1, num_tokens). The same objects as long as token count and storage are the same.
    """
    num_tokens = num_warmup_tokens or self.padded_active_token_count
    try:
        input_ids, pos_ids, views = self._input_position_cache
        if input_ids is self.token_to_input_ids and pos_ids is self.token_to_pos_ids:
            return views[num_tokens]  # type: ignore[no-any-return]
    except (AttributeError, KeyError):
        pass
    return self._cache_input_position_views(  # type: ignore[no-any-return]
        num_tokens, self.token_to_input_ids, self.token_to_pos_ids
    )


def speculative_views(
    self: Any, *, num_warmup_tokens: Optional[int] = None
) -> Tuple[Tensor, Tensor]:
    """Flattened input and position ids of the forward pass, as cached views of the storage.

    Args:
        num_warmup_tokens (Optional[int]): Token count of a CUDA graph that is being warmed up,
            at most `max_tokens`. None or 0 stands for the padded active token count.

    Return:
        (Tuple[Tensor, Tensor]) Input ids and position ids, int64, each of shape
            (1, num_tokens). The same objects as long as token count and storage are the same.
    """
    num_tokens = num_warmup_tokens or self.padded_active_token_count
    least = self.padded_batch_dimensions.decode_req_count
    if self.num_speculative_tokens:
        least *= self.num_speculative_tokens + 1
    assert num_tokens >= least
    try:
        input_ids, pos_ids, views = self._input_position_cache
        if input_ids is self.token_to_input_ids and pos_ids is self.token_to_pos_ids:
            return views[num_tokens]  # type: ignore[no-any-return]
    except (AttributeError, KeyError):
        pass
    return self._cache_input_position_views(  # type: ignore[no-any-return]
        num_tokens, self.token_to_input_ids, self.token_to_pos_ids
    )


def gpu_view_views(self: Any, *, num_warmup_tokens: Optional[int] = None) -> Tuple[Tensor, Tensor]:
    """Flattened input and position ids of the forward pass, as cached views of `gpu_view`.

    Args:
        num_warmup_tokens (Optional[int]): Token count of a CUDA graph that is being warmed up,
            at most `max_tokens`. None or 0 stands for the padded active token count.

    Return:
        (Tuple[Tensor, Tensor]) Input ids and position ids, int64, each of shape
            (1, num_tokens). The same objects as long as token count and storage are the same.
    """
    num_tokens = num_warmup_tokens or self.padded_active_token_count
    least = self.padded_batch_dimensions.decode_req_count
    if self.num_speculative_tokens:
        least *= self.num_speculative_tokens + 1
    assert num_tokens >= least
    gpu_view = self.gpu_view
    try:
        input_ids, pos_ids, views = self._input_position_cache
        if input_ids is gpu_view.token_to_input_ids and pos_ids is gpu_view.token_to_pos_ids:
            return views[num_tokens]  # type: ignore[no-any-return]
    except (AttributeError, KeyError):
        pass
    return self._cache_input_position_views(  # type: ignore[no-any-return]
        num_tokens, gpu_view.token_to_input_ids, gpu_view.token_to_pos_ids
    )


def _cache_input_position_views(
    self: Any, num_tokens: Optional[int], input_ids: Tensor, pos_ids: Tensor
) -> Tuple[Tensor, Tensor]:
    """Build, keep and return the views of `num_tokens` tokens; drop those of other storage.

    `input_ids` and `pos_ids` are the storage, int64 of shape (max_tokens,).
    """
    kept_input_ids, kept_pos_ids, _ = getattr(self, "_input_position_cache", (None, None, None))
    if kept_input_ids is not input_ids or kept_pos_ids is not pos_ids:
        self._input_position_views = {}
        self._input_position_cache = (input_ids, pos_ids, self._input_position_views)
    views = (input_ids[:num_tokens].unsqueeze(0), pos_ids[:num_tokens].unsqueeze(0))
    self._input_position_views[num_tokens] = views
    return views


def drop_views(self: Any) -> None:
    """Forget the views and what they were taken from, so that they keep no storage alive."""
    self._input_position_views = {}
    self._input_position_cache = (None, None, self._input_position_views)


#: Why the methods that the hook comes before may do what they like. Whether a view is stale is
#: seen by the getter; the hook only lets go of the storage.
OWN_STATE = "it sets two attributes that are ours, and the getter compares the storage itself"

BUFFERS = "deallocate_inference_state_buffers"


def _variant(name: str, getter: Callable[..., Any], *hooked: str) -> Variant:
    hooks = (Before(f"{CONTEXT}.{method}", drop_views, OWN_STATE) for method in hooked)
    helper = Add(f"{CONTEXT}._cache_input_position_views", _cache_input_position_views)
    return Variant(name, (helper, Replace(GETTER, getter), *hooks))


INPUT_POSITION_VIEW_CACHE = Patch(
    id="input-position-view-cache",
    kind=Kind.PERFORMANCE,
    summary="Cache the input and position id views per token count",
    symptom=(
        "current_input_and_position_ids() shows up in the host profile of every decode step: "
        "it builds two new view tensors each time"
    ),
    outcome="the same two tensors for a token count, until their storage goes away",
    upstream_pr=4634,
    upstream_commit="1df264c4d8d5720ddbc93546fd7b9b1c37819203",
    upstream_date="2026-05-07",
    fixed_in="0.18.0",
    releases=">=0.14,<0.18",
    removal="no supported release is older than 0.18.0",
    updated="2026-11-24",
    target=GETTER,
    # What has less to hook comes last: each `__init__()` is one.
    variants=(
        _variant("0.18", gpu_view_views, "initialize_all_tensors", BUFFERS),
        _variant("0.17", speculative_views, "initialize_all_tensors", BUFFERS),
        _variant("main-1106df4619", context_views, "initialize_all_tensors", BUFFERS),
        _variant("0.16", context_views, "allocate_all_tensors", "deallocate_all_tensors"),
        _variant("0.14", context_views, "__init__"),
    ),
    told_by=(GETTER,),
)
