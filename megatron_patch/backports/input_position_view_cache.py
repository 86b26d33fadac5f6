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

from typing import TYPE_CHECKING, Any, Optional, Tuple

from ..model import Add, Before, Family, Kind, Known, Patch, Replace

if TYPE_CHECKING:
    from torch import Tensor

CONTEXT = "megatron.core.inference.contexts.dynamic_context:DynamicInferenceContext"
GETTER = f"{CONTEXT}.current_input_and_position_ids"

# The getters catch what a miss raises, and do not ask first: asking costs a hit up to 40 ns of
# about 100. An AttributeError for storage that is gone is raised again by the call at the end.
# The views are reached through the tuple, one attribute look-up less; `_input_position_views`, the
# same dict, has upstream's name for them.


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


HELPER = Add(f"{CONTEXT}._cache_input_position_views", _cache_input_position_views)
PLAIN = Replace(GETTER, context_views, "1a2cfb0c86666fe1")
SPECULATIVE = Replace(GETTER, speculative_views, "455bbf1a0fc242d3")
GPU_VIEW = Replace(GETTER, gpu_view_views, "a6fc19a3e95f4b35")


def _drop(method: str, digest: str) -> Before:
    return Before(f"{CONTEXT}.{method}", drop_views, digest)


# The same in 0.17, 0.18, 0.19 and everything between.
DEALLOCATE = _drop("deallocate_inference_state_buffers", "2c6461fe9e5548df")

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
    families=(
        Family("0.14.0", (HELPER, PLAIN, _drop("__init__", "e298d829525b63e0"))),
        Family("0.15.0 to 0.15.3", (HELPER, PLAIN, _drop("__init__", "817e9b740e0cf857"))),
        Family(
            "0.16.0 and 0.16.1",
            (
                HELPER,
                PLAIN,
                _drop("allocate_all_tensors", "9267191be30bfddc"),
                _drop("deallocate_all_tensors", "9d1e64491ee65a3e"),
            ),
        ),
        Family(
            "0.17.0 and 0.17.1",
            (
                HELPER,
                SPECULATIVE,
                _drop("initialize_all_tensors", "125feb6df5493c9e"),
                DEALLOCATE,
            ),
        ),
        # main between #4306 and #4634; #2456 (878228fd0f) changed the allocation.
        *(
            Family(
                f"main at {commit}",
                (HELPER, GPU_VIEW, _drop("initialize_all_tensors", digest), DEALLOCATE),
            )
            for commit, digest in (
                ("342dd59a52", "107e9596b9693de6"),
                ("878228fd0f", "d11e1cec3df6aac4"),
            )
        ),
        Family(
            "0.18.0 to 0.18.2 with the getter of main before 1df264c4d8",
            (HELPER, GPU_VIEW, _drop("initialize_all_tensors", "2fc0e47ca3deca8d"), DEALLOCATE),
        ),
    ),
    upstreamed=(Known(GETTER, "c19043cb2a20e6ae", "0.18.0 and later"),),
)
