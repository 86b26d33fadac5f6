"""Do not read from the GPU in each step what only a log line shows (upstream #4306 in part).

Each step of the engine ends with a wait for an event, to take the time from the GPU, and with two
counts of used KV blocks that are summed up there and read back. The time and the counts are shown
in a log line that is written every ``logging_step_interval`` steps (0.16:
``inference_logging_step_interval``), and never by default.

With this patch only a step that is going to be logged does any of that, and then as before: its
log line and its metrics are the same. In other steps, ``step_time`` and with it the requests' time
per output token (``tpot``) is host time, from the start of the model's step until it has returned.
It means the same: a step begins on an idle GPU, because the engine has read the samples of the one
before, and returns when it has read back which requests are finished. It ends a little earlier
than the event, which also waits for what the step enqueues afterwards to update its bookkeeping.
No step overtakes the GPU for that: the engine's next action reads the samples, and so waits for
all of it.

What differs from upstream's commit 342dd59a52: there, ``step_time`` is 0.0 in steps that are not
logged, and they leave no time per output token. And the cheap fields of the state that
``async_forward()`` returns are still filled in each step; the two counts are None in steps that
are not logged.

Not covered: other reads from the GPU in these releases, which a step needs; and the idle steps of
expert parallelism, which wait for their events.
"""

from __future__ import annotations

from ... import hunks
from ...model import Kind, Patch, Variant

HUNKS = hunks.beside(__file__)

FORWARD = "megatron.core.inference.engines.dynamic_engine:DynamicInferenceEngine.async_forward"

STEP_LOG_SYNC = Patch(
    id="step-log-sync",
    kind=Kind.PERFORMANCE,
    summary="Read log fields from the GPU only in steps that are logged",
    symptom=(
        "each decode step waits for the GPU three times more than it needs to, for a log line "
        "that is off by default"
    ),
    outcome="only steps that are logged read from the GPU for it, and the log lines stay the same",
    upstream_pr=4306,
    upstream_commit="342dd59a529fbf1c51134830d31fc797ae5a9aa8",
    upstream_date="2026-05-02",
    fixed_in="0.18.0",
    releases=">=0.16,<0.18",
    removal="no supported release is older than 0.18.0",
    updated="2026-11-24",
    target=FORWARD,
    variants=(
        Variant("0.16", HUNKS.of("0.16")),
        Variant("0.17", HUNKS.of("0.17")),
    ),
    told_by=(FORWARD,),
)
