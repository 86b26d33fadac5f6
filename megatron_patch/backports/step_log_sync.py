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

from ..model import Family, Kind, Known, Patch, Substitute

FORWARD = "megatron.core.inference.engines.dynamic_engine:DynamicInferenceEngine.async_forward"

TIME_OF_EVENTS = """\
self.step_start_event.record()
result = await self.controller.async_generate_output_tokens_dynamic_batch()
self.step_end_event.record()
self.step_end_event.synchronize()
step_time = self.step_start_event.elapsed_time(self.step_end_event) / 1e3
"""
TIME_OF_HOST = """\
# The GPU's time and the counts of used blocks below are read from the GPU for the log line
# alone. Host time is as good: the step returns when it has read its results.
logs_this_step = (
    self.{interval} > 0
    and (self.{step_count} + 1) % self.{interval} == 0
)
if logs_this_step:
    self.step_start_event.record()
start_time = time.perf_counter()
result = await self.controller.async_generate_output_tokens_dynamic_batch()
step_time = time.perf_counter() - start_time
if logs_this_step:
    self.step_end_event.record()
    self.step_end_event.synchronize()
    step_time = self.step_start_event.elapsed_time(self.step_end_event) / 1e3
"""


# Indented for its place in the method.
IF_LOGGED = """\
(
                {count} if logs_this_step else None
            )"""


def _family(releases: str, digest: str, interval: str, step_count: str, allocator: str) -> Family:
    host = TIME_OF_HOST.format(interval=interval, step_count=step_count)
    counts = [f"self.context.{allocator}.get_{what}_used()" for what in ("active", "paused")]
    return Family(
        releases,
        (
            Substitute(FORWARD, TIME_OF_EVENTS, host, digest),
            *(
                Substitute(FORWARD, count, IF_LOGGED.format(count=count), digest)
                for count in counts
            ),
        ),
    )


OLD = ("inference_logging_step_interval", "step_count", "block_allocator")
NEW = ("logging_step_interval", "context.step_count", "kv_block_allocator")

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
    families=(
        _family("0.16.0 and 0.16.1", "49f2f8f99f2b40ca", *OLD),
        _family("0.17.0 and 0.17.1, and main at c4bffde9e5 (#3225)", "6f2a10df1a0e0c24", *NEW),
        _family("main at df929f5746 (#3642)", "ed82be2b349228d3", *NEW),
    ),
    upstreamed=(
        Known(FORWARD, "2a023cf6b5c7ff8e", "0.18.0 to 0.18.2, and main at 342dd59a52 (#4306)"),
        Known(FORWARD, "065480b5137c2aa6", "0.19.0 to 0.19.2"),
        Known(FORWARD, "c2ca3b3fcad5863f", "main at ee3864907a (#5995)"),
        Known(FORWARD, "952a5a182818f4fb", "main at 3fe15193cf (#5860)"),
    ),
)
