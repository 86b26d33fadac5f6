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
a request to the text generation server; and the other change of 066145edc3, in detokenization.
"""

from __future__ import annotations

from ..model import Family, Kind, Known, Patch, Substitute

CONTROLLER = (
    "megatron.core.inference.text_generation_controllers.text_generation_controller"
    ":TextGenerationController.__init__"
)
WHY = "# Another seed on each data-parallel rank: the same would draw the same samples."


def _family(releases: str, config: str, rank: str, digest: str) -> Family:
    return Family(
        releases,
        (
            Substitute(
                CONTROLLER,
                find=f"self.sampling_rng.manual_seed({config}.inference_sampling_seed)",
                put=f"""
{WHY}
seed = {config}.inference_sampling_seed
if not {config}.deterministic_mode:
    {rank.strip()}
self.sampling_rng.manual_seed(seed)
""",
                digest=digest,
            ),
        ),
    )


OF_STATE = """
    from megatron.core import parallel_state

    seed += parallel_state.get_data_parallel_rank()
"""
OF_COLLECTION = """
    if pg_collection is not None:
        seed += pg_collection.dp.rank()
    else:
        seed += parallel_state.get_data_parallel_rank()
"""

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
    families=(
        _family("0.15.0 to 0.15.3", "model_config", OF_STATE, "b1e51b583d151fa9"),
        _family("0.16.0 and 0.16.1", "model_config", OF_STATE, "1b8ab6d0a66d0ad5"),
        _family("0.17.0 and 0.17.1", "self.model_config", OF_COLLECTION, "456c417363ade28a"),
        _family("0.18.0 to 0.18.2", "self.model_config", OF_COLLECTION, "e2c9eb0ca52a4d46"),
    ),
    upstreamed=(Known(CONTROLLER, "01837466f437c1c2", "0.19.0 to 0.19.2, and main with #5983"),),
    unaffected=(Known(CONTROLLER, "6291a244b524ce86", "0.14.0"),),
    default=False,
)
