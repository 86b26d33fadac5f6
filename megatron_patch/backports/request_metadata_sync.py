"""Wait for the copy of the sampling parameters before they are read (upstream #4306 in part).

In each step the controller copies temperature, top-k, top-p and which log probs are wanted, of all
requests, from the GPU to pinned memory. The copy is asynchronous, and nothing waits for it: if the
GPU has not come that far when the host has launched the forward pass, the host reads the parameters
of an earlier step. For a request that was just added these are another one's that had its row, or
the zeros of a reset. A temperature of zero divides the logits by zero: NaN, and the device-side
assertion of ``torch.multinomial()``. Other parameters, or log probs that are missing, go unnoticed.

It takes a GPU that is late, such as one that other processes use, and a forward pass that takes
little host time, such as one graph of a step with prompts in it. Patches that take host time off a
step make it likelier.

With this patch an event marks the end of the copy, and is waited for before the first look.

What differs from upstream's commit 342dd59a52: there the parameters are kept on the host, and
nothing is copied.

Not covered: main between 0d98cb838f (#2929) and 342dd59a52, where the context makes the copies.
"""

from __future__ import annotations

from ..model import Family, Kind, Known, Patch, Substitute

GENERATE = (
    "megatron.core.inference.text_generation_controllers.text_generation_controller:"
    "TextGenerationController.async_generate_output_tokens_dynamic_batch"
)

COPIED = "input_ids, position_ids = self._dynamic_step_context_init()\n"
MARKED = f"""\
{COPIED}# Among the rest, this copies the sampling parameters of the requests from the GPU.
metadata_copied = torch.cuda.Event()
metadata_copied.record()
"""
READ = "return_log_probs, return_top_n_logprobs = self._dynamic_step_log_probs_bookkeeping()\n"
WAITED = f"""\
metadata_copied.synchronize()
{READ}"""


def _family(releases: str, digest: str) -> Family:
    edits = Substitute(GENERATE, COPIED, MARKED, digest), Substitute(GENERATE, READ, WAITED, digest)
    return Family(releases, edits)


REQUEST_METADATA_SYNC = Patch(
    id="request-metadata-sync",
    kind=Kind.CORRECTNESS,
    summary="Wait for the copy of the sampling parameters before they are read",
    symptom=(
        "device-side assertion of torch.multinomial() (probability tensor contains either inf, nan "
        "or element < 0), or, without a word, first tokens sampled with another request's "
        "temperature, top-k or top-p, or without their log probs, on a GPU that is behind the host"
    ),
    outcome="each request is sampled with its own parameters, however late the GPU is",
    upstream_pr=4306,
    upstream_commit="342dd59a529fbf1c51134830d31fc797ae5a9aa8",
    upstream_date="2026-05-02",
    fixed_in="0.18.0",
    releases=">=0.16,<0.18",
    removal="no supported release is older than 0.18.0",
    updated="2026-11-25",
    target=GENERATE,
    families=(
        _family("0.16.0 and 0.16.1, and main at 4a4f23a630 (#2378)", "bd217eb88e2a0f22"),
        _family("main at faced51286 (#3034)", "3f779d1d7e05f5e2"),
        _family("main at 8f539df740 (#3594)", "9aacee19a1f4d37e"),
        _family("main at c4bffde9e5 (#3225)", "cc2947e90867096d"),
        _family("0.17.0 and 0.17.1, and main at d45fa3e8e1", "73dee44774603e3e"),
        _family("main at c1463050b3 (#4166)", "d5c4845439ce7a50"),
        _family("main at 64870c1457", "a273c8e2888c3aee"),
        _family("main at 03f4111bf8 (#4260)", "62bfc78e10765014"),
    ),
    upstreamed=(
        Known(GENERATE, "a078c93f502a88b4", "main at 342dd59a52 (#4306)"),
        Known(GENERATE, "6b6589c79c0c5db7", "0.18.0 to 0.18.2, and main at 878228fd0f"),
        Known(GENERATE, "7dc49b3fc9754b0d", "main at 53b5e6eff9"),
        Known(GENERATE, "49bb38fd36b50fec", "main at 3c327f373b (#5453)"),
        Known(GENERATE, "575f61f784f7f1cb", "main at f41ec54958 (#5549)"),
        Known(GENERATE, "53a04ad8c6ddd354", "0.19.0 to 0.19.2, and main at 541d5eef09"),
    ),
    # Sampling parameters are those of the step there, and not copied.
    unaffected=(Known(GENERATE, "3feaf71e221fa10e", "0.15.0 to 0.15.3"),),
)
