"""Keep the convolution's state of a request with a short chunk (upstream #6711 in part).

A Mamba layer keeps the last inputs of its convolution for each request, four by default. A prefill
step computes them anew from the tokens of this step alone. Where these are fewer, as the last chunk
of a prompt or what is left of one behind its cached prefix can be, zeros take the place of the
inputs before them. The next tokens are computed with these, and the answer is not that of the
model, without any error.

With this patch such a request keeps the end of the state that it had.

What differs from upstream: it has a kernel of its own for that, of which this is the plain PyTorch.
0.16 reads the later chunks of a prompt one at a time, in code that upstream has since removed.
"""

from __future__ import annotations

from ... import hunks
from ...model import Kind, Patch, Variant

HUNKS = hunks.beside(__file__)

TARGET = "megatron.core.ssm.mamba_mixer:MambaMixer._ssm_prefill"

MAMBA_CONV_STATE = Patch(
    id="mamba-conv-state",
    kind=Kind.CORRECTNESS,
    summary="Keep the convolution's state of a request with a short chunk",
    symptom=(
        "a hybrid model answers otherwise when the last chunk of its prompt, or what is not cached "
        "of it, has fewer tokens than the convolution of its Mamba layers, without any error"
    ),
    outcome="the state has the last tokens of the prompt, however it was cut",
    upstream_pr=6711,
    upstream_commit="436bae00bba299f6f396704335803504732205fc",
    upstream_date="2026-08-22",
    fixed_in="0.20.0",
    releases=">=0.16,<0.20",
    removal="no supported release is older than 0.20.0",
    updated="2026-11-27",
    target=TARGET,
    variants=(Variant("0.17", HUNKS.of("0.17")), Variant("0.16", HUNKS.of("0.16"))),
    told_by=(TARGET,),
)
