"""Who else is in the process."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from tools.differential.company import COMPANY


def test_a_context_of_ones_own_waits_for_the_copy_of_what_it_changes():
    """What reaches the GPU would otherwise be a matter of time, in each run another."""
    seen = []

    class Context:
        active_token_count = 2

        def initialize_attention_state(self, copied):
            return copied

    context = Context()
    context.token_to_input_ids = torch.tensor([4, 5, 6])
    COMPANY["own context"].built(SimpleNamespace(context=context))
    before = context.token_to_input_ids.tolist()
    event = SimpleNamespace(synchronize=lambda: seen.append(context.token_to_input_ids.tolist()))
    assert context.initialize_attention_state(event) is event
    assert seen == [before]
    assert context.initialize_attention_state(None) is None
    assert context.token_to_input_ids.tolist() == before  # changed twice
