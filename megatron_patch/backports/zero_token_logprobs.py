"""Answer requests for no tokens, with the log probs of their prompt (upstream #5167).

A request with ``num_tokens_to_generate=0`` and ``return_log_probs`` is how evaluation harnesses
score text. Since 0.17 the engine drops what a step samples beyond the number of tokens asked for,
and then takes the first of the tokens that are left, and the time per token, where there is none:
``IndexError`` out of the step, which ends all other requests, too. 0.18 drops log probs along with
the tokens, but from the wrong end: those of the prompt come first.

With this patch such a request ends after its prefill with no token, no log prob of a generated one,
and all those of its prompt.

What differs from upstream's commit 9d33299193: with ``skip_prompt_log_probs`` such a request gets
no log prob at all. Upstream gives it that of the prompt's last token, as that of a generated one,
or raises ``IndexError`` where only the logits of last tokens are materialized. And in 0.17 log
probs are dropped along with the tokens, as in 0.18: in speculative decoding there were more of them
than tokens when the last step accepted more than was asked for.

Not covered: 0.16 and earlier, which generate one token where none is asked for. In all releases,
log probs of a prompt are missing where its first blocks are found in the prefix cache, and that of
the first token of each chunk but the first is the log prob of what was sampled in its place.
"""

from __future__ import annotations

from ..model import Family, Kind, Known, Patch, Substitute

INFERENCE = "megatron.core.inference"
PROCESS = f"{INFERENCE}.engines.dynamic_engine:DynamicInferenceEngine.post_process_requests"

CUT_TOKENS = """\
tokens = tokens[
    : request.sampling_params.num_tokens_to_generate - len(request.generated_tokens)
]
"""
CUT_FRONT = """\
keep = request.sampling_params.num_tokens_to_generate - len(request.generated_tokens)
tokens = tokens[:keep]
if request_log_probs is not None:
    request_log_probs = request_log_probs[:keep]
if top_n_logprobs is not None and req_idx in top_n_logprobs:
    top_n_logprobs[req_idx] = top_n_logprobs[req_idx][:keep]
"""
CUT_END = """\
keep = request.sampling_params.num_tokens_to_generate - len(
    request.generated_tokens
)
excess = len(tokens) - keep
tokens = tokens[:keep]
# The last log probs are those of the sampled tokens; the prompt's come first.
if excess > 0 and request_log_probs is not None:
    request_log_probs = request_log_probs[:-excess]
if excess > 0 and top_n_logprobs is not None and req_idx in top_n_logprobs:
    top_n_logprobs[req_idx] = top_n_logprobs[req_idx][:-excess]
"""

TIME_PER_TOKEN = """\
per_token_step_time = step_time / len(tokens)
request.tpot.extend([per_token_step_time] * len(tokens))
"""
TIME_PER_TOKEN_IF_ANY = """\
if tokens:
    per_token_step_time = step_time / len(tokens)
    request.tpot.extend([per_token_step_time] * len(tokens))
"""


def _family(releases: str, digest: str, cut: tuple[str, str], time: tuple[str, str]) -> Family:
    hunks = (
        cut,
        ("is_first_token", "is_first_token and tokens"),
        time,
        # With `skip_prompt_log_probs`, those that are left here are of the prompt.
        ("is_chunked_prefill", "is_chunked_prefill or not tokens"),
    )
    return Family(releases, tuple(Substitute(PROCESS, *hunk, digest) for hunk in hunks))


OLD_CUT, OLD_TIME = (CUT_TOKENS, CUT_END), (TIME_PER_TOKEN, TIME_PER_TOKEN_IF_ANY)
NEW_CUT, NEW_TIME = (CUT_FRONT, CUT_END), ("step_time > 0", "step_time > 0 and tokens")

ZERO_TOKEN_LOGPROBS = Patch(
    id="zero-token-logprobs",
    kind=Kind.CORRECTNESS,
    summary="Return the prompt's log probs to a request for no tokens, instead of raising",
    symptom=(
        "IndexError: list index out of range from post_process_requests(), which ends the engine, "
        "when a request has num_tokens_to_generate=0, such as those of evaluation harnesses that "
        "score text"
    ),
    outcome=(
        "the request ends after its prefill with the log probs of its prompt, and other "
        "requests go on"
    ),
    upstream_pr=5167,
    upstream_commit="9d332991936d023ffdad1b6713919def86973e19",
    upstream_date="2026-06-05",
    fixed_in="0.19.0",
    releases=">=0.17,<0.19",
    removal="no supported release is older than 0.19.0",
    updated="2026-11-24",
    target=f"{INFERENCE}.contexts.dynamic_context:DynamicInferenceContext.calculate_log_probs",
    families=(
        _family("main at 46227e0a96 (#3777)", "022074103a29365e", OLD_CUT, OLD_TIME),
        _family("0.17.0 and 0.17.1", "9e89dce5fb637c22", OLD_CUT, OLD_TIME),
        _family("main at c1463050b3 (#4166)", "fb45686a96ca3ef0", OLD_CUT, OLD_TIME),
        _family("main at 980211ae63 (#4191)", "40cb4fd462b53a22", NEW_CUT, OLD_TIME),
        _family("main at 64870c1457 (#4301)", "5a6820f295074d82", NEW_CUT, OLD_TIME),
        _family("main at 342dd59a52 (#4306)", "004eb7acfdec1c53", NEW_CUT, NEW_TIME),
        _family("0.18.0 to 0.18.2", "0bae713a3940ca80", NEW_CUT, NEW_TIME),
        _family("main at 53b5e6eff9 (#4101)", "a60f5d54a92e6988", NEW_CUT, NEW_TIME),
    ),
    upstreamed=(
        Known(PROCESS, "827bfe8ee47181a6", "main at 9d33299193 (#5167)"),
        Known(PROCESS, "d19fc87b89d91912", "0.19.0 to 0.19.2, and main at 541d5eef09 (#5939)"),
        Known(PROCESS, "2b93c12f9eeab0f6", "main at ee3864907a (#5995)"),
        Known(PROCESS, "12fb8a555996955a", "main at cac6b7bc69 (#6222)"),
        Known(PROCESS, "1001344e1f4226f0", "main at 731b791469 (#6584)"),
        Known(PROCESS, "73576923b1d1d974", "main at 881f489fd4 (#6260)"),
    ),
    unaffected=(
        Known(PROCESS, "9211991abdb97bd8", "0.14.0"),
        Known(PROCESS, "b9fad8d9d479950e", "0.15.0 to 0.15.3"),
        Known(PROCESS, "684d6db95c149077", "0.16.0 and 0.16.1"),
    ),
)
