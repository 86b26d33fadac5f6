"""Sample the rows of a single bucket without an index (a change of ours; upstream has none).

Each step puts the active requests into buckets of the same temperature, top-k and top-p, and
samples each bucket. The rows of a bucket are gathered by a list of their numbers, which is built on
the host and copied to the GPU, where the host waits for the copy. The samples of all buckets are
then concatenated, and so are the lists, to put each sample in its place. Mostly there is only one
bucket: its rows are all of them, in order, and all that takes most of the host time of sampling.

With this patch the only bucket is sampled from the logits as they are: the same function gets rows
of the same shape and values and draws the same random numbers, and the samples are already in
order. Rows of padding behind the last request are left out, as they were by the list.

What the gathering also did is to copy the logits. Megatron's sampling function makes a copy before
it changes any; the patch applies only where that is known, and takes the logits as they are only
for that very function. One that somebody has put in its place, in a subclass, on an instance or on
the class, gets rows of its own, as ever.

Not covered: several buckets; the verification of speculative tokens, which has an index of its own.
Their drafts are, in 0.18 and later.
"""

from __future__ import annotations

from ... import hunks
from ...edits import Requires
from ...model import Kind, Patch, Variant

HUNKS = hunks.beside(__file__)

CONTROLLER = (
    "megatron.core.inference.text_generation_controllers.text_generation_controller:"
    "TextGenerationController"
)

SAMPLE_LOGITS = f"{CONTROLLER}._dynamic_step_sample_logits"

SAMPLING = "megatron.core.inference.sampling.torch_sampling:TorchSampling"

COPIES_IN_CONTROLLER = (
    Requires(
        f"{CONTROLLER}._dynamic_step_sample_bookkeeping",
        "it numbers the active requests in order, so that those of a single bucket are all rows",
    ),
    Requires(f"{CONTROLLER}._torch_sampling_func", "it copies the logits before it changes any"),
)
COPIES = Requires(
    f"{SAMPLING}.sample_from_logits",
    "it copies the logits before it, or what it calls, changes any",
)
COPIES_IN_FILTER = (
    COPIES,
    Requires(f"{SAMPLING}.filter_logits", "it copies the logits before it changes any"),
)

SINGLE_SAMPLING_BUCKET = Patch(
    id="single-sampling-bucket",
    kind=Kind.PERFORMANCE,
    summary="Sample requests that share their sampling parameters without an index",
    symptom=(
        "each decode step copies a list of row numbers to the GPU and waits for it, and gathers "
        "and scatters by it, although all requests have the same sampling parameters"
    ),
    outcome="the same tokens, sampled from the logits as they are",
    upstream_pr=None,
    upstream_commit=None,
    upstream_date=None,
    fixed_in=None,
    releases=">=0.16,<0.20",
    removal="upstream samples a single bucket without an index, and no supported release is older",
    updated="2026-11-25",
    target=SAMPLE_LOGITS,
    variants=(
        Variant("0.16", (*HUNKS.of("0.16"), *COPIES_IN_CONTROLLER)),
        Variant("0.17", (*HUNKS.of("0.17"), *COPIES_IN_CONTROLLER)),
        Variant("0.18", (*HUNKS.of("0.18"), COPIES)),
        Variant("main-a2bb5e5438", (*HUNKS.of("main-a2bb5e5438"), *COPIES_IN_FILTER)),
        Variant("0.19", (*HUNKS.of("0.19"), *COPIES_IN_FILTER)),
    ),
)
