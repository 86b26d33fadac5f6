"""Do without speculation's work where there is none (a change of ours; upstream has none).

``update_requests()`` expands each request to the tokens that it gets in the next step. Without
speculative tokens that is one, and all of it the identity: ``repeat_interleave(1)``, the sum with
the offsets ``[0].repeat(requests)``, the copy of the old offsets, and which tokens cross a block
boundary, which is computed and then not used. On 0.17 the bookkeeping is on the GPU: there, each is
a kernel launch, and the ``.any()`` of the last is a wait for the device in each step.

With this patch that work is done only for more than one token. On 0.17 the active and the finished
requests are counted at once, where the releases wait for the device for one number after the other.
Nothing else differs with speculative tokens.

Not covered: the other numbers that are read back, such as that of the active requests.
"""

from __future__ import annotations

from ..model import Family, Kind, Known, Patch, Substitute

UPDATE = "megatron.core.inference.contexts.dynamic_context:DynamicInferenceContext.update_requests"

ACTIVE = "self.paused_request_count : self.total_request_count"
TOKENS = ": self.active_token_count"
ON_GPU, ON_CPU = "torch.cuda.current_device()", "'cpu'"


def _hunks(device: str) -> tuple[tuple[str, str], ...]:
    """What is found and what is put, where new tensors are made on ``device``."""
    offsets = f"old_offsets = self.request_last_kv_block_offset[{ACTIVE}]"
    positions = f"self.request_kv_length_offsets[{ACTIVE}]"
    each_token = f"torch.arange(num_generated_tokens, device={device})"
    requests = f"torch.arange({ACTIVE.replace(' :', ',')}, device={device})"
    crossing = f"""
raw_positions = old_offsets[:, None] + 1 + {each_token}[None, :]
crosses_boundary = raw_positions >= self.block_size_tokens
"""
    blocks = f"self.request_last_kv_block_id[{ACTIVE}].repeat_interleave(num_generated_tokens)"
    return (
        (
            f"{offsets}.clone()",
            f"""
old_offsets = self.request_last_kv_block_offset[
    {ACTIVE}
]
if self.num_speculative_tokens > 0:
    old_offsets = old_offsets.clone()
""",
        ),
        (
            f"""
self.token_to_pos_ids[{TOKENS}] = {positions}.repeat_interleave(
    num_generated_tokens
) + {each_token}.repeat(active_request_count)
""",
            f"""
positions = self.request_kv_length_offsets[
    {ACTIVE}
]
if self.num_speculative_tokens > 0:
    positions = positions.repeat_interleave(num_generated_tokens) + torch.arange(
        num_generated_tokens, device={device}
    ).repeat(active_request_count)
self.token_to_pos_ids[{TOKENS}] = positions
""",
        ),
        (
            f"""
self.token_to_request_idx[{TOKENS}] = {requests}.repeat_interleave(num_generated_tokens)
""",
            f"""
request_idxs = torch.arange(
    {ACTIVE.replace(" :", ",")}, device={device}
)
if self.num_speculative_tokens > 0:
    request_idxs = request_idxs.repeat_interleave(num_generated_tokens)
self.token_to_request_idx[{TOKENS}] = request_idxs
""",
        ),
        (
            crossing,
            f"""
if self.num_speculative_tokens > 0:
    raw_positions = (
        old_offsets[:, None]
        + 1  # Offset by 1 because old_offsets points to the LAST token
        + torch.arange(num_generated_tokens, device={device})[None, :]
    )
    # A token crosses to the next block if its raw_position >= block_size
    crosses_boundary = raw_positions >= self.block_size_tokens
""",
        ),
        (
            "not crosses_boundary.any() or self.num_speculative_tokens == 0",
            "self.num_speculative_tokens == 0 or not crosses_boundary.any()",
        ),
        (
            f"self.token_to_block_idx[{TOKENS}] = {blocks}",
            f"""
if self.num_speculative_tokens > 0:
    current_block_ids = current_block_ids.repeat_interleave(num_generated_tokens)
self.token_to_block_idx[{TOKENS}] = current_block_ids
""",
        ),
    )


#: Where the mask is on the GPU, each number that is read is a wait for it.
COUNTS = (
    """
active_request_count = (active_requests_mask == 1).sum().item()
finished_request_count = (active_requests_mask == 0).sum().item()
""",
    """
active_request_count, finished_request_count = (
    torch.stack((active_requests_mask == 1, active_requests_mask == 0)).sum(dim=1).tolist()
)
""",
)


def _family(releases: str, device: str, digest: str) -> Family:
    hunks = _hunks(device) if device == ON_CPU else (COUNTS, *_hunks(device))
    return Family(releases, tuple(Substitute(UPDATE, *hunk, digest) for hunk in hunks))


SINGLE_TOKEN_UPDATE = Patch(
    id="single-token-update",
    kind=Kind.PERFORMANCE,
    summary="Do without the work of speculative tokens where there are none",
    symptom=(
        "update_requests() of every decode step expands each request to one token with operators "
        "that change nothing; on 0.17 it waits for the GPU twice more than it needs to"
    ),
    outcome="the same bookkeeping with fewer operators, and on 0.17 two waits for the GPU less",
    upstream_pr=None,
    upstream_commit=None,
    upstream_date=None,
    fixed_in=None,
    releases=">=0.17,<0.20",
    removal="upstream does no such work, and no supported release is older",
    updated="2026-11-25",
    target=UPDATE,
    families=(
        _family("0.17.0 and 0.17.1", ON_GPU, "870b58101df6cf5b"),
        _family("0.18.0 to 0.19.2, and main at 342dd59a52 (#4306)", ON_CPU, "56258490f27a0ab0"),
        _family("main at ee3864907a (#5995)", ON_CPU, "bcae014ce6649be0"),
    ),
    upstreamed=(),
    unaffected=(
        Known(UPDATE, "2118f37bf6bc96d2", "0.14.0"),
        Known(UPDATE, "faa0c5e44f2786ec", "0.15.0 to 0.15.3"),
        Known(UPDATE, "38f7fb774650a3d6", "0.16.0 and 0.16.1"),
    ),
)
