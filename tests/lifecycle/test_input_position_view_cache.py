from __future__ import annotations

from .suite import Lifecycle, harness

CONTEXT = "megatron.core.inference.contexts.dynamic_context:DynamicInferenceContext"


class TestInputPositionViewCache(Lifecycle):
    patch_id = "input-position-view-cache"
    kind = "performance"
    targets = (f"{CONTEXT}.current_input_and_position_ids",)
    states = {">=0.14,<0.18": "applied", ">=0.18": "upstreamed"}  # noqa: RUF012

    def thing(self):
        testing = harness()
        testing.start()
        context = testing.build_context(testing.EngineSpec())
        context.padded_active_token_count = 64
        return context

    def improved(self, thing):
        first = thing.current_input_and_position_ids()
        return first[0] is thing.current_input_and_position_ids()[0]
