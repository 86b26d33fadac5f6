"""Serve evicted requests that have outgrown one step (a change of ours; upstream has none).

A request that is evicted, or whose KV cache a suspension drops, comes back with what it has
generated as part of its prompt. Without chunked prefill a prompt has to fit into ``max_tokens``,
the tokens of one step. The prompt of such a request may not any more:

- After an eviction it is never admitted again. It stays at the head of the queue, and no request
  behind it is admitted either.
- After a suspension it is refused with ``TokenOverflowError``, and what it has generated is lost.

With this patch such a request, and no other, is prefilled in chunks, as with chunked prefill. It
waits until the others in the context have ended: then nobody can take the blocks that its later
chunks need.

Not covered: hybrid models, whose Mamba layers are prepared for chunks only with chunked prefill.
"""

from __future__ import annotations

from ... import hunks
from ...model import Kind, Patch, Variant

HUNKS = hunks.beside(__file__)

ADD = "megatron.core.inference.engines.dynamic_engine:DynamicInferenceEngine._add_request"

EVICTED_LONG_REQUESTS = Patch(
    id="evicted-long-requests",
    kind=Kind.CORRECTNESS,
    summary="Serve evicted requests whose prompt and output are over max_tokens",
    symptom=(
        "without chunked prefill the engine steps for ever and serves nothing, after a request was "
        "evicted whose prompt and output together are more than max_tokens; after a suspension "
        "such a request fails with TokenOverflowError"
    ),
    outcome="such a request is prefilled in chunks and goes on, and so do the requests behind it",
    upstream_pr=None,
    upstream_commit=None,
    upstream_date=None,
    fixed_in=None,
    releases=">=0.16,<0.20",
    removal="upstream admits them again, and no supported release is older",
    updated="2026-11-26",
    target=ADD,
    variants=(
        Variant("0.16", HUNKS.of("0.16")),
        Variant("0.19", HUNKS.of("0.19")),
    ),
    told_by=(ADD,),
)
