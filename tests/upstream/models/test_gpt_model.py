"""The model behind the ids that the context hands out."""

from __future__ import annotations

import pytest
import torch

from megatron_patch import testing
from megatron_patch.testing.releases import set_inference_mode

from .. import support
from ..mirror import mirrors


class TestGPTWithDynamicInference:
    @mirrors(
        "models/test_gpt_model.py",
        "TestGPTWithDynamicInference.test_dynamic_inference_padding_with_fp8",
        digest="e77308ecc61d8481",
    )
    @pytest.mark.parametrize("fp8", [None, "hybrid"])
    def test_dynamic_inference_padding_with_fp8(self, fp8):
        """That padding is cleared depends on `config.fp8` alone: the arithmetic here is not in fp8.

        Without it the same rows are not zero, or this test would show nothing.
        """
        spec = testing.EngineSpec(materialize_only_last_token_logits=False)
        context = testing.build_context(spec)
        model = testing.build_model(spec)
        model.config.fp8 = fp8
        support.add(context, 0, range(10))
        support.publish(context)
        support.skip_without(context, "padding_slice")
        assert (context.active_token_count, context.padded_active_token_count) == (10, 64)

        input_ids, position_ids = context.current_input_and_position_ids()
        assert input_ids.shape == position_ids.shape == (1, 64)
        assert input_ids[0, :10].tolist() == list(range(10)) == position_ids[0, :10].tolist()
        before = set_inference_mode(True)
        try:
            with torch.inference_mode():
                logits = model(
                    input_ids=input_ids,
                    position_ids=position_ids,
                    attention_mask=None,
                    inference_context=context,
                    runtime_gather_output=True,
                )
        finally:
            set_inference_mode(before)
        assert logits.shape == (1, 64, spec.vocab_size)
        assert logits[0, :10].any(dim=1).all()
        assert logits[0, 10:].any().item() is (fp8 is None)
