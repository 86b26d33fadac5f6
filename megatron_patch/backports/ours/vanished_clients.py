"""Let the data-parallel coordinator outlive a client (a change of ours; upstream has none).

Since 0.17 the coordinator's socket raises for a message that cannot be delivered. For one to an
engine the coordinator is prepared. A reply to a client that has gone meanwhile, such as an HTTP
server that was restarted or a training process that was stopped, ends it with ZMQError: no request
of any other client is answered any more. So does the acknowledgement of a client that has gone
before it came.

With this patch such a message is dropped, with a warning, as before 0.17 (which dropped it without
one). So are, on main since #5727, the tokens that a request has so far. Other errors are raised as
before.

Not covered: what the client has asked for is still computed.
"""

from __future__ import annotations

from ... import hunks
from ...model import Kind, Patch, Variant

HUNKS = hunks.beside(__file__)

INFERENCE = "megatron.core.inference"

COORDINATOR = f"{INFERENCE}.data_parallel_inference_coordinator"

# As old as what makes the socket raise, and in a process of the coordinator, which has no engine.
SINCE = f"{INFERENCE}.headers:UnknownHeaderError.__init__"

VANISHED_CLIENTS = Patch(
    id="vanished-clients",
    kind=Kind.CORRECTNESS,
    summary="Let the data-parallel coordinator outlive a client that is gone",
    symptom=(
        "zmq.error.ZMQError: Host unreachable ends the data-parallel coordinator when a client has "
        "been stopped before its requests were answered; then all other clients hang"
    ),
    outcome="the reply is dropped with a warning, and other clients are answered",
    upstream_pr=None,
    upstream_commit=None,
    upstream_date=None,
    fixed_in=None,
    releases=">=0.17,<0.20",
    removal="upstream drops replies to clients that are gone, and no supported release is older",
    updated="2026-11-26",
    target=SINCE,
    variants=(
        Variant("0.17", HUNKS.of("0.17")),
        Variant("0.19", HUNKS.of("0.19")),
        Variant("main-1addfbd78d", HUNKS.of("main-1addfbd78d")),
    ),
    told_by=(
        f"{COORDINATOR}:DataParallelInferenceCoordinator.start",
        f"{COORDINATOR}.handlers:handle_engine_reply",
    ),
)
