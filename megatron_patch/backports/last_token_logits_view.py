"""Copy the rows of a decode step without an index (a change of ours).

``DynamicInferenceContext.last_token_logits()`` picks the row of each request's last token, of the
hidden states or of the logits. In a decode step each request has one token, and the rows are the
first ones, in order. The releases pick them by an index all the same: up to 0.17 its cumulative sum
is computed on the GPU in each step, and all of them gather.

With this patch such a step copies its first rows. The caller gets a tensor of its own, as ever:
hooks of the output layer, and layers and sampling functions of somebody else, may keep it and write
to it, while what it was copied from may be the static output of a CUDA graph.

Not covered: steps with a prompt in them, steps that are padded to the size of a CUDA graph (the
padding's rows are copies of the first one there), what is captured in a CUDA graph, which is
replayed for other batches, and from 0.17 on speculative decoding in releases whose requests then
have several tokens in a step.
"""

from __future__ import annotations

from ..model import Family, Kind, Patch, Substitute

TARGET = (
    "megatron.core.inference.contexts.dynamic_context:DynamicInferenceContext.last_token_logits"
)

ROWS = "{logits} = logits.squeeze(0)\n"
FIRST_ROWS = """\
# Each request of a decode step has one token, so their rows are the first ones, in order.
# What is captured in a graph keeps the index: it is replayed for other batches.
row_count = self.total_request_count - self.paused_request_count
if (
    self.is_decode_only()
    and self.active_token_count == row_count
    and not torch.cuda.is_current_stream_capturing()
):
    return {logits}[:row_count].clone(memory_format=torch.contiguous_format)
"""
GATHER = "return logits.squeeze(0)[self.active_logit_idxs[: self.num_last_token_logits], :]\n"
FIRST_ROWS_OR_GATHER = """\
# In a decode step without padding, each row is wanted, in order.
# What is captured in a graph keeps the index: it is replayed for other batches.
row_count = self.num_last_token_logits
if (
    self.num_prefill_requests == 0
    and self.active_token_count == row_count
    and not torch.cuda.is_current_stream_capturing()
):
    return logits.squeeze(0)[:row_count].clone(memory_format=torch.contiguous_format)
return logits.squeeze(0)[self.active_logit_idxs[:row_count], :]
"""


def _summed(releases: str, digest: str, logits: str) -> Family:
    find = ROWS.format(logits=logits)
    put = find + FIRST_ROWS.format(logits=logits)
    return Family(releases, (Substitute(TARGET, find, put, digest),))


LAST_TOKEN_LOGITS_VIEW = Patch(
    id="last-token-logits-view",
    kind=Kind.PERFORMANCE,
    summary="Copy the rows of a decode step without an index",
    symptom=(
        "each decode step builds an index of its rows on the GPU and gathers by it, although it "
        "wants all of them, in order"
    ),
    outcome="the same rows, from one copy",
    upstream_pr=None,
    upstream_commit=None,
    upstream_date=None,
    fixed_in=None,
    releases=">=0.14,<0.20",
    removal="upstream takes the rows of a decode step without an index, in all supported releases",
    updated="2026-11-25",
    target=TARGET,
    families=(
        _summed("0.14.0 to 0.15.3", "82fcf297d4ceb2ac", "logits"),
        _summed("0.16.0 and 0.16.1", "eb3bbbd7db7d4e29", "logits"),
        _summed("0.17.0 and 0.17.1, and main at c4bffde9e5", "2b80ac8c571cc652", "logits_2d"),
        _summed("main at c1463050b3", "9071036525b81cbd", "logits_2d"),
        _summed("main at 0d98cb838f", "d66ef5009430786d", "logits_2d"),
        Family(
            "0.18.0 to 0.19.2, and main at 396bee18f5",
            (Substitute(TARGET, GATHER, FIRST_ROWS_OR_GATHER, "2f93130b0249820d"),),
        ),
    ),
    upstreamed=(),
)
