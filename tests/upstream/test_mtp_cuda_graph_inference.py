"""Speculative tokens when the batch is padded, as it is for CUDA graphs.

On one rank and, without a CUDA device, with no graph captured: the padding, the ids and the hidden
states are those of the graph's batch, the split of sequence parallelism over ranks is not there.
"""

from __future__ import annotations

from megatron_patch import testing

from . import support
from .mirror import mirrors

# Three at first, so that one row of four is padding; then fewer.
REQUESTS = tuple(
    testing.Request(prompt=tuple(range(3 * n + 1, 3 * n + 6 + n)), num_tokens=6 + 4 * n)
    for n in range(3)
)


def speculating(mocker, num_cuda_graphs):  # type: ignore[no-untyped-def]
    """Decode; returns the engine, what it decoded, and what it did to draft tokens in each step."""
    support.skip_without_argument(support.options_class(), "num_speculative_tokens")
    spec = testing.EngineSpec(
        num_speculative_tokens=2,
        materialize_only_last_token_logits=False,
        num_cuda_graphs=num_cuda_graphs,
    )
    engine = testing.build_engine(spec)
    controller, context = engine.controller, engine.context
    support.skip_without(controller, "_mtp_token_ids_buf")
    model = controller.inference_wrapped_model.model
    draft = mocker.spy(model, "compute_mtp_single_step")
    whole = controller._compute_serial_mtp_and_sample
    steps = []

    def record(*args, **kwargs):  # type: ignore[no-untyped-def]
        before = draft.call_count
        whole(*args, **kwargs)
        active = context.total_request_count - context.paused_request_count
        calls = draft.call_args_list[before:]
        steps.append(
            {
                "active": active,
                "padded": [call.kwargs["next_token_ids"].shape[1] for call in calls],
                "hidden": [call.kwargs["hidden_states"].shape[0] for call in calls],
                "graph": context.using_cuda_graph_this_step(),
                "drafted": controller._sampled_mtp_tokens_cuda[:, :active].clone(),
                # In the model on 0.18, in the context from 0.19 on.
                "left": [
                    getattr(model, "_decoder_hidden_states_cache", None),
                    getattr(context, "mtp_decoder_hidden_states", None),
                ],
            }
        )

    mocker.patch.object(controller, "_compute_serial_mtp_and_sample", record)
    decoded = testing.decode(engine, REQUESTS)
    mocker.stopall()
    return engine, decoded, steps


class TestMTPCudaGraphInference:
    @mirrors(
        "test_mtp_cuda_graph_inference.py",
        "TestMTPCudaGraphInference.test_cuda_graph_sp_padding_end_to_end",
        digest="21a8825ae583ed4c",
    )
    def test_cuda_graph_sp_padding_end_to_end(self, mocker):
        engine, decoded, steps = speculating(mocker, num_cuda_graphs=1)
        padded = [step for step in steps if step["graph"]]
        assert any(step["padded"][0] > step["active"] for step in padded)
        for step in steps:
            # As many rows of ids as of hidden states, at each of the two depths.
            assert step["padded"] == step["hidden"]
            assert len(step["padded"]) == 2
            assert step["drafted"].shape == (2, step["active"])
            assert step["drafted"].min() >= 0
            assert step["drafted"].max() < 128
            assert step["left"] == [None, None]
        model = engine.controller.inference_wrapped_model.model
        assert decoded.tokens == testing.reference_decode(model, REQUESTS)

    @mirrors(
        "test_mtp_cuda_graph_inference.py",
        "TestMTPCudaGraphInference.test_cuda_graph_sp_padding_matches_eager",
        digest="e1f49f461daf1186",
    )
    def test_cuda_graph_sp_padding_matches_eager(self, mocker):
        _, padded, steps = speculating(mocker, num_cuda_graphs=1)
        _, eager, eager_steps = speculating(mocker, num_cuda_graphs=None)
        assert padded.tokens == eager.tokens
        assert [step["active"] for step in steps] == [step["active"] for step in eager_steps]
        assert not any(step["graph"] for step in eager_steps)
        assert all(step["padded"] == [step["active"]] * 2 for step in eager_steps)
        for one, other in zip(steps, eager_steps, strict=True):
            assert one["drafted"].tolist() == other["drafted"].tolist()
