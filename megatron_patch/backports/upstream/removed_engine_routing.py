"""Route no request to an engine that has left (upstream #5607 in part).

The data-parallel coordinator forgets an engine that says goodbye, or that a message cannot reach.
But it forgets it only where it goes through all engines in turn. With prefix caching it chooses by
a table of prefixes and loads, in which the engine stays. The next request that fits its prefixes is
for it, cannot be delivered, and has it removed a second time: ValueError, which ends the
coordinator, and no request of anybody is answered any more.

With this patch the engine is taken out of these tables, too. Other engines keep their prefixes and
their loads. An engine that comes back under its name starts anew.

What differs from upstream's commit bcf4c8fb51: nothing of its policy, which gives requests to the
engine with the fewest. And the requests of the removed engine count no longer: upstream, an engine
that comes back and then replies to one of before makes its count negative, and the coordinator ends
with AssertionError.

Before 0.17 (main until #3930) there is one table, of prefixes alone. When the coordinator had
learned that engines may leave (main from #3563 to #3594), it took the engine of a request by an old
name when it noted its prefixes: NameError, which ends it at the first one. That is mended with it.

Not covered: requests that the engine had not answered when it left. Nobody answers them.
"""

from __future__ import annotations

from ... import hunks
from ...edits import Requires
from ...model import Kind, Patch, Variant

HUNKS = hunks.beside(__file__)

INFERENCE = "megatron.core.inference"

COORDINATOR = f"{INFERENCE}.data_parallel_inference_coordinator"

# As old as engines that leave, and in a process of the coordinator, which has no engine.
SINCE = f"{INFERENCE}.headers:UnknownHeaderError.__init__"

CHOICE = Requires(
    f"{COORDINATOR}:DataParallelInferenceCoordinator.get_best_data_parallel_rank",
    "it says which tables an engine is chosen by: those that the removed one has to leave",
)

REMOVED_ENGINE_ROUTING = Patch(
    id="removed-engine-routing",
    kind=Kind.CORRECTNESS,
    summary="Route no request to an engine that has left the data-parallel coordinator",
    symptom=(
        "ValueError: b'mp-coord-1' is not in deque, from _remove_engine() of the data-parallel "
        "coordinator, when one of several engines has ended and prefix caching is on; then all "
        "clients hang"
    ),
    outcome="requests go to the engines that are left",
    upstream_pr=5607,
    upstream_commit="bcf4c8fb51798af2e91e800ac2b24cb9c26905e8",
    upstream_date="2026-07-14",
    fixed_in="0.19.0",
    releases=">=0.17,<0.19",
    removal="no supported release is older than 0.19.0",
    updated="2026-11-26",
    target=SINCE,
    variants=tuple(
        Variant(name, (*HUNKS.of(name), CHOICE))
        for name in ("main-7ea354b83e", "main-8f539df740", "0.17")
    ),
    told_by=(
        f"{COORDINATOR}:DataParallelInferenceCoordinator._remove_engine",
        f"{COORDINATOR}.coordinator:DataParallelInferenceCoordinator._remove_engine",
    ),
)
