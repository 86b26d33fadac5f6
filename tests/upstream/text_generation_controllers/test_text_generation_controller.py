"""Where the controller gets the input ids of a step."""

from __future__ import annotations

import torch

from megatron_patch import testing

from .. import support
from ..mirror import mirrors


@mirrors(
    "text_generation_controllers/test_text_generation_controller.py",
    "test_dynamic_step_context_init_returns_bookkeeping_event",
    digest="f0131f5a62fe5eb5",
)
def test_dynamic_step_context_init_returns_bookkeeping_event(mocker):
    engine = testing.build_engine(testing.EngineSpec())
    controller, context = engine.controller, engine.context
    support.skip_without(type(controller), "_dynamic_step_context_init")
    support.skip_without_argument(
        controller._dynamic_step_context_init, "record_bookkeeping_done_event"
    )
    support.add(context, 3, [11, 12, 13])
    getter = mocker.spy(context, "current_input_and_position_ids")
    initialize = mocker.spy(context, "initialize_attention_state")

    input_ids, position_ids, event = controller._dynamic_step_context_init(
        record_bookkeeping_done_event=True
    )

    assert isinstance(event, torch.cuda.Event)
    assert event is initialize.spy_return
    expected = {
        "construct_graph_dimensions": None,
        "is_expert_parallel_dummy_cuda_graph_step": False,
        "transfer_bookkeeping_to_gpu": True,
        "record_bookkeeping_done_event": True,
    }
    assert [call.kwargs for call in initialize.call_args_list] == [expected]
    assert getter.call_count == 1
    assert input_ids is getter.spy_return[0]
    assert position_ids is getter.spy_return[1]
    assert input_ids[0, :3].tolist() == [11, 12, 13]
    assert position_ids[0, :3].tolist() == [0, 1, 2]
    # Without, there is no event.
    assert controller._dynamic_step_context_init()[2] is None
