"""Sample differently on each data-parallel rank (upstream PR #5983). Off by default.

``TextGenerationController`` seeds its sampling with ``inference_sampling_seed`` on every rank. So
data-parallel ranks draw the same random numbers: the same prompt on several of them gets the same
answer from each, which reinforcement learning takes for several. With this patch the rank in the
data-parallel group is added to the seed. Samples are reproducible for a seed and a rank; rank 0
draws what it draws without the patch.

It changes what a model answers, and so has to be asked for:
``MEGATRON_PATCH=all,dp-sampling-seed``.

What differs from upstream's commit 066145edc3: upstream does it by default, unless
``offset_sampling_seed_by_dp_rank`` of the config is off. Here the patch is the switch. As there,
nothing is added in ``deterministic_mode``.

Not covered: 0.14, where sampling has no seed of its own; a seed that is set later, such as that of
a request to the text generation server. The other change of 066145edc3, in detokenization, is
``static-batch-segments``.
"""

from __future__ import annotations

from ... import hunks
from ...model import Kind, Patch, Variant

HUNKS = hunks.beside(__file__)

CONTROLLER = (
    "megatron.core.inference.text_generation_controllers.text_generation_controller"
    ":TextGenerationController.__init__"
)

DP_SAMPLING_SEED = Patch(
    id="dp-sampling-seed",
    kind=Kind.CORRECTNESS,
    summary="Add the data-parallel rank to the seed of sampling",
    symptom=(
        "data-parallel ranks that get the same prompt answer with the same sample, at any "
        "temperature, so that several samples for each prompt are copies of one"
    ),
    outcome="each rank draws its own samples, the same ones again for the same seed and rank",
    upstream_pr=5983,
    upstream_commit="066145edc3da2403d92661f2f5e96be13bbf7519",
    upstream_date="2026-07-24",
    fixed_in="0.19.0",
    releases=">=0.15,<0.19",
    removal="no supported release is older than 0.19.0",
    updated="2026-11-24",
    target=CONTROLLER,
    variants=(
        Variant("0.15", HUNKS.of("0.15")),
        Variant("0.17", HUNKS.of("0.17")),
    ),
    told_by=(CONTROLLER,),
    default=False,
)
