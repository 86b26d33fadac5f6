"""Sample with any sampling parameters that mean something, and refuse the others (ours).

The torch sampler takes top-k or top-p, not both, no top-k above the vocabulary, and no temperature
of 0 but with a top-k of 1. It says so by an assertion, or by ``multinomial()``'s error, in the
step: the request stays in the context, and every later step raises again, for all requests. Other
engines take all of these, and both HTTP endpoints give a request a top-p of 1.0 unless it has one,
so that a top-k is enough.

With this patch

- both filters are applied, top-k first, and top-p to what is left;
- a top-p of 1.0 behind a top-k filters nothing, nor does a top-k from the size of the vocabulary
  on, or of -1;
- a temperature of 0 is greedy, with whatever top-k and top-p;
- temperatures so small that a logit divided by them is infinite are sampled, too. So are those
  whose reciprocal is infinite in float32, below 3e-39: on a GPU, PyTorch multiplies by it.

From 0.16 on each request has parameters of its own. There, what means nothing fails that request in
``add_request()``, as one that is too long fails, with an error that names the parameter: what is no
number, or NaN; a temperature below 0; a top-k below -1; a top-p below 0 or above 1; more
``top_n_logprobs`` than there are tokens. Negative ones were sampled as no filter, or with the least
likely tokens first.

Whatever could be sampled before gets the same tokens from the same random numbers: so a top-p of
1.0 without a top-k still goes through Megatron's filter, whose rounding can drop the last tokens.

The flashinfer backend of 0.18 and later takes both filters, clamps the temperature, and takes a
top-k of -1 for an unsigned number: it only needed what means nothing to be refused.

Not covered: float16 logits that overflow at temperatures above 1e-30; 0.14 and 0.15, whose steps
have sampling parameters for all requests, do not refuse any.
"""

from __future__ import annotations

from ... import hunks
from ...edits import Requires
from ...model import Kind, Patch, Variant

HUNKS = hunks.beside(__file__)

INFERENCE = "megatron.core.inference"

CONTROLLER = f"{INFERENCE}.text_generation_controllers.text_generation_controller"

ADD = f"{INFERENCE}.engines.dynamic_engine:DynamicInferenceEngine.add_request"

OF_A_WAVE = Requires(
    ADD, "a request has no sampling parameters of its own, which would have to be refused there"
)

ITS_OWN = Requires(ADD, "a request has sampling parameters of its own, and its steps heed them")

SAMPLING_PARAMETERS = Patch(
    id="sampling-parameters",
    kind=Kind.CORRECTNESS,
    summary="Sample with top-k and top-p together, and refuse what no sampler can take",
    symptom=(
        "AssertionError: Cannot have top-p and top-k both greater than zero (or: top-p should be "
        "in (0,1]; top-k is larger than logit size; top-k is larger than vocab size), or "
        "RuntimeError: probability tensor contains either `inf`, `nan` or element < 0 for a "
        "temperature of 0 or NaN, from every step once such a request is in the engine; over HTTP, "
        "where top_p is 1.0 by default, top_k alone is enough"
    ),
    outcome=(
        "top-k and then top-p are applied, a temperature of 0 is greedy, and what means nothing "
        "fails that request alone, when it is added"
    ),
    upstream_pr=None,
    upstream_commit=None,
    upstream_date=None,
    fixed_in=None,
    releases=">=0.14,<0.20",
    removal="upstream takes such parameters, and no supported release is older",
    updated="2026-11-27",
    target=f"{CONTROLLER}:TextGenerationController.sample_from_logits",
    variants=(
        Variant("0.14", (*HUNKS.of("0.14"), OF_A_WAVE)),
        # Each request has its own, and the sampler is still the one of old.
        Variant("main-3cbe5c68a4", (*HUNKS.of("main-3cbe5c68a4"), ITS_OWN)),
        Variant("0.16", HUNKS.of("0.16")),
        Variant("0.17", HUNKS.of("0.17")),
        Variant("0.18", HUNKS.of("0.18")),
        Variant("0.19", HUNKS.of("0.19")),
    ),
)
