"""Return log probs for generated tokens alone after a prompt in chunks (upstream #3777).

A prompt that is longer than what is left of ``max_tokens`` is prefilled in several steps. All but
the last of them sample a token that means nothing, and the engine does not take it for generated.
But with ``skip_prompt_log_probs`` it takes its log prob for that of a generated token, unless only
the logits of last tokens are materialized: there is one more for each chunk, in front of those that
mean something. Who pairs tokens and log probs, such as in reinforcement learning, pairs wrong ones.

With this patch these steps leave no log prob where none of the prompt are asked for.

What differs from upstream's commit 46227e0a96: the same holds for ``top_n_logprobs``, which have
the same defect in any case, and keep it upstream.

Not covered: without ``skip_prompt_log_probs``, the log prob of the first token of each chunk but
the first, which in all releases is that of the sampled token in its place; and 0.15, which counts
the first generated token's log prob among the prompt's, with and without chunks.
"""

from __future__ import annotations

from ..model import Family, Kind, Known, Patch, Substitute

INFERENCE = "megatron.core.inference"
PROCESS = f"{INFERENCE}.engines.dynamic_engine:DynamicInferenceEngine.post_process_requests"

LISTS = """\
if not request.generated_log_probs:
    request.generated_log_probs = []
"""
LISTS_AND_CONDITION = """\
if not request.generated_log_probs:
    request.generated_log_probs = []
only_generated_log_probs_kept = (
    request.sampling_params.skip_prompt_log_probs
    or {only_last}
)
"""
TOP_N = "top_n_logprobs is not None and req_idx in top_n_logprobs"
# Indented for its place in the method.
TOP_N_NOT_OF_PROMPT = """\
(
                top_n_logprobs is not None
                and req_idx in top_n_logprobs
                and not (
                    request_id == self.context.chunked_prefill_request_id
                    and request.sampling_params.skip_prompt_log_probs
                )
            )"""


def _family(releases: str, digest: str, only_last: str) -> Family:
    return Family(
        releases,
        (
            Substitute(PROCESS, only_last, "only_generated_log_probs_kept", digest),
            Substitute(PROCESS, LISTS, LISTS_AND_CONDITION.format(only_last=only_last), digest),
            Substitute(PROCESS, TOP_N, TOP_N_NOT_OF_PROMPT, digest),
        ),
    )


OF_CONTEXT = "self.context.materialize_only_last_token_logits"
OF_ENGINE = "self.materialize_only_last_token_logits"

CHUNKED_PREFILL_LOGPROBS = Patch(
    id="chunked-prefill-logprobs",
    kind=Kind.CORRECTNESS,
    summary="Return no log probs for what the chunks of a prompt sample",
    symptom=(
        "with chunked prefill and skip_prompt_log_probs, generated_log_probs is longer than "
        "generated_tokens after a long prompt, and its values belong to other tokens"
    ),
    outcome="as many log probs as generated tokens, each of its own token",
    upstream_pr=3777,
    upstream_commit="46227e0a967aed733f38eb5ebe5d413b39a5b43a",
    upstream_date="2026-03-12",
    fixed_in="0.17.0",
    releases=">=0.16,<0.17",
    removal="no supported release is older than 0.17.0",
    updated="2026-11-24",
    target=f"{INFERENCE}.contexts.dynamic_context:DynamicInferenceContext.calculate_log_probs",
    families=(
        _family("0.16.0 and 0.16.1", "684d6db95c149077", OF_CONTEXT),
        _family("main at 43db8c1cf9 (#3232)", "7f89312604b7489b", OF_ENGINE),
        _family("main at faced51286 (#3034)", "b45fd755ae1dd91f", OF_ENGINE),
        _family("main at a51c1c82ad (#3253)", "8049814f3e23ebb1", OF_ENGINE),
        _family("main at c9312e6a54 (#3063)", "723574189cf27ed5", OF_ENGINE),
    ),
    upstreamed=(
        Known(PROCESS, "022074103a29365e", "main at 46227e0a96 (#3777)"),
        Known(PROCESS, "9e89dce5fb637c22", "0.17.0 and 0.17.1"),
        Known(PROCESS, "fb45686a96ca3ef0", "main at c1463050b3 (#4166)"),
        Known(PROCESS, "40cb4fd462b53a22", "main at 980211ae63 (#4191)"),
        Known(PROCESS, "5a6820f295074d82", "main at 64870c1457 (#4301)"),
        Known(PROCESS, "004eb7acfdec1c53", "main at 342dd59a52 (#4306)"),
        Known(PROCESS, "0bae713a3940ca80", "0.18.0 to 0.18.2"),
        Known(PROCESS, "a60f5d54a92e6988", "main at 53b5e6eff9 (#4101)"),
        Known(PROCESS, "827bfe8ee47181a6", "main at 9d33299193 (#5167)"),
        Known(PROCESS, "d19fc87b89d91912", "0.19.0 to 0.19.2"),
        Known(PROCESS, "2b93c12f9eeab0f6", "main at ee3864907a (#5995)"),
        Known(PROCESS, "12fb8a555996955a", "main at cac6b7bc69 (#6222)"),
        Known(PROCESS, "1001344e1f4226f0", "main at 731b791469 (#6584)"),
        Known(PROCESS, "73576923b1d1d974", "main at 881f489fd4 (#6260)"),
    ),
    unaffected=(
        Known(PROCESS, "9211991abdb97bd8", "0.14.0"),
        Known(PROCESS, "b9fad8d9d479950e", "0.15.0 to 0.15.3"),
    ),
)
