"""Draw other random numbers in each step with flashinfer (upstream #5791 in part).

With ``sampling_backend="flashinfer"`` and CUDA graphs, 0.18 captures the sampling of each batch
size in a CUDA graph. flashinfer takes seed and offset from the generator on the host, and passes
them to its kernels as numbers. They are captured with the kernel: each replay draws the same random
numbers again. A request gets tokens that depend on each other, and two runs of a batch the same.

With this patch the sampling is not captured. Each step takes the next numbers of the generator.

What differs from upstream: the kernels are those that 0.18 calls, where upstream also chooses
another one for batches without top-k or top-p. A batch is sampled with its padding, as before.
"""

from __future__ import annotations

from ... import hunks
from ...model import Kind, Patch, Variant

HUNKS = hunks.beside(__file__)

TARGET = "megatron.core.inference.sampling.flashinfer_sampling:FlashInferSampling.__init__"

FLASHINFER_SAMPLING_NUMBERS = Patch(
    id="flashinfer-sampling-numbers",
    kind=Kind.CORRECTNESS,
    summary="Draw other random numbers in each step with flashinfer",
    symptom=(
        "with sampling_backend flashinfer and CUDA graphs, each decode step samples with the same "
        "random numbers: repeated tokens, and the same text for each of several answers"
    ),
    outcome="each step draws the next random numbers of the generator",
    upstream_pr=5791,
    upstream_commit="650b783826bb050eb49b29a0b8b34f1007e297c6",
    upstream_date="2026-07-24",
    fixed_in="0.19.0",
    releases=">=0.18,<0.19",
    removal="no supported release is older than 0.19.0",
    updated="2026-11-26",
    target=TARGET,
    variants=(Variant("0.18", HUNKS.of("0.18")),),
    told_by=(TARGET,),
)
