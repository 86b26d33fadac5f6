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

from ... import hunks
from ...model import Kind, Patch, Variant

HUNKS = hunks.beside(__file__)

GENERATE = (
    "megatron.core.inference.text_generation_controllers.text_generation_controller:"
    "TextGenerationController.async_generate_output_tokens_dynamic_batch"
)

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
    variants=(Variant("0.16", HUNKS.of("0.16")),),
    told_by=(GENERATE,),
)
