"""Pass on what an engine has sent before it was removed (upstream #6025).

The data-parallel coordinator removes an engine that a message cannot reach. Replies of that engine
may have arrived by then, and not been read; and an engine whose connection only broke for a moment
goes on and replies later. The coordinator takes a reply of an engine that it does not know for
impossible: AssertionError, which ends it, and no request of anybody is answered any more.

With this patch it knows the engines that it has removed, and passes their replies on.

What differs from upstream's commit 157c023f2f: no warning for each such reply, since the removal
was told. And on 0.19 the requests of a removed engine count no longer in its load: upstream, an
engine that comes back under its name and then replies to one of before makes its count negative,
and the coordinator ends with another AssertionError. (Before 0.19 the load is counted over the
removal, unless ``removed-engine-routing`` mends that.)

Not covered: a reply of a sender that never was an engine, which ends the coordinator as before; and
requests that an engine had not answered when it ended. Nobody answers them.
"""

from __future__ import annotations

from ... import hunks
from ...model import Kind, Patch, Variant

HUNKS = hunks.beside(__file__)

INFERENCE = "megatron.core.inference"

COORDINATOR = f"{INFERENCE}.data_parallel_inference_coordinator"

# As old as engines that leave, and in a process of the coordinator, which has no engine.
SINCE = f"{INFERENCE}.headers:UnknownHeaderError.__init__"

REMOVED_ENGINE_REPLIES = Patch(
    id="removed-engine-replies",
    kind=Kind.CORRECTNESS,
    summary="Pass on replies that an engine sent before the data-parallel coordinator removed it",
    symptom=(
        "AssertionError without a message from the ENGINE_REPLY branch of the data-parallel "
        "coordinator (0.19: handle_engine_reply()), when one of several engines has ended or its "
        "connection broke; then all clients hang"
    ),
    outcome="replies of that engine are passed on, and the coordinator goes on",
    upstream_pr=6025,
    upstream_commit="157c023f2fea81e94a4990401723c80a67441bf0",
    upstream_date="2026-07-28",
    fixed_in="0.20.0",
    releases=">=0.17,<0.20",
    removal="no supported release is older than 0.20.0",
    updated="2026-11-26",
    target=SINCE,
    variants=(
        Variant("0.17", HUNKS.of("0.17")),
        Variant("0.19", HUNKS.of("0.19")),
    ),
    told_by=(
        f"{COORDINATOR}:DataParallelInferenceCoordinator.start",
        f"{COORDINATOR}.handlers:handle_engine_reply",
    ),
)
