"""How often a step transfers the bookkeeping buffer, and that what arrives is the same."""

from __future__ import annotations

import pytest
import torch
from packaging.version import Version

import megatron_patch
from megatron_patch import State, testing
from megatron_patch.backports.upstream.single_bookkeeping_transfer import (
    SINGLE_BOOKKEEPING_TRANSFER,
)
from megatron_patch.judge import judge
from megatron_patch.sources import read_source
from megatron_patch.testing.releases import engine_class
from megatron_patch.verdicts import Verdict

from ..conftest import RELEASE, expected_state, not_in_source
from .checks import REQUESTS, assert_same_outputs, needs, proof, state_of, with_one_token_changed

INITIALIZE_STEP, INITIALIZE = (
    edit.target for edit in SINGLE_BOOKKEEPING_TRANSFER.variants[0].edits[:2]
)

PATCHED = Version("0.18") <= RELEASE < Version("0.19")

pytestmark = pytest.mark.usefixtures("device")
with_transfer = pytest.mark.skipif(
    RELEASE < Version("0.18"), reason=f"{RELEASE} has no transfer_bookkeeping_to_gpu"
)
only_patched = pytest.mark.skipif(not PATCHED, reason=f"{RELEASE} makes no second transfer")


EXPECTED = State.APPLIED if PATCHED else State.UPSTREAMED
if RELEASE < Version("0.18"):
    EXPECTED = State.NOT_APPLICABLE


def test_state():
    testing.context_class()
    # The controller is imported by the engine, if at all.
    engine_class()
    assert state_of(SINGLE_BOOKKEEPING_TRANSFER) is expected_state(EXPECTED)


class Transfers:
    """Notes what each transfer of a context's buffer took to the device."""

    def __init__(self, context):
        self.buffers: list[torch.Tensor] = []
        self._context = context
        self._transfer = context.transfer_bookkeeping_to_gpu
        context.transfer_bookkeeping_to_gpu = self

    def __call__(self, *args, **kwargs):
        result = self._transfer(*args, **kwargs)
        self.buffers.append(self._context.gpu_view._buf.clone())
        return result


def transfers_of(use, **fields) -> Transfers:
    engine = testing.build_engine(testing.EngineSpec(**fields))
    transfers = Transfers(engine.context)
    use(engine, transfers)
    return transfers


def decoding(engine, transfers):
    transfers.decoded = testing.decode(engine, REQUESTS)
    transfers.steps = transfers.decoded.steps


def dummy_steps(engine, transfers):
    transfers.steps = 3
    for _ in range(transfers.steps):
        engine.controller.dummy_forward()


USES = pytest.mark.parametrize("use", [decoding, dummy_steps])
SPECS = pytest.mark.parametrize("fields", [{}, {"num_cuda_graphs": 2}], ids=["eager", "padded"])


@proof
@SPECS
def test_a_decode_makes_one_transfer_a_step(fields):
    has_one = hasattr(testing.context_class(), "transfer_bookkeeping_to_gpu")
    needs(has_one, "a transfer of the bookkeeping to the GPU")
    transfers = transfers_of(decoding, **fields)
    assert len(transfers.buffers) == transfers.steps


@with_transfer
@USES
@SPECS
def test_each_step_makes_one_transfer(use, fields):
    transfers = transfers_of(use, **fields)
    assert len(transfers.buffers) == transfers.steps


@only_patched
@USES
@SPECS
def test_unpatched_each_step_makes_the_same_transfer_twice(unpatched, use, fields):
    transfers = transfers_of(use, **fields)
    assert len(transfers.buffers) == 2 * transfers.steps
    firsts, seconds = transfers.buffers[::2], transfers.buffers[1::2]
    assert all(a.equal(b) for a, b in zip(firsts, seconds, strict=True))


@only_patched
@SPECS
def test_tokens_and_logits_are_the_same(unpatched, fields):
    without = transfers_of(decoding, **fields)
    megatron_patch.install()
    patched = transfers_of(decoding, **fields)
    assert_same_outputs(patched.decoded, without.decoded)


def one_more_token(initialize):
    """Somebody's ``initialize_attention_state()``, which changes what is transferred afterwards."""

    def method(self, *args, **kwargs):
        initialize(self, *args, **kwargs)
        self.token_to_input_ids[0] += 1

    return method


@with_transfer
@pytest.mark.skipif(RELEASE >= Version("0.19"), reason=f"{RELEASE} itself makes one transfer")
@pytest.mark.parametrize("how", ["subclass", "instance", "class"])
def test_what_another_method_changes_after_its_transfer_arrives(monkeypatch, how):
    engine = testing.build_engine(testing.EngineSpec())
    context = engine.context
    known = type(context).initialize_attention_state
    theirs = one_more_token(known)
    if how == "subclass":
        context.__class__ = type("Context", (type(context),), {known.__name__: theirs})
    elif how == "instance":
        context.initialize_attention_state = theirs.__get__(context)
    else:
        monkeypatch.setattr(type(context), known.__name__, theirs)
    seen = []

    def compared(module, args, kwargs):
        seen.append(bool(context.gpu_view.token_to_input_ids[0] == context.token_to_input_ids[0]))

    model = engine.controller.inference_wrapped_model.model
    with model.register_forward_pre_hook(compared, with_kwargs=True):
        testing.decode(engine, REQUESTS[:1])
    assert seen
    assert all(seen)


@with_transfer
def test_a_caller_without_controller_gets_the_buffer():
    context = testing.build_context(testing.EngineSpec())
    context.token_to_input_ids.fill_(7)
    context.initialize_attention_state()
    assert (context.gpu_view.token_to_input_ids == 7).all()
    context.token_to_input_ids.fill_(8)
    context.transfer_bookkeeping_to_gpu()
    assert (context.gpu_view.token_to_input_ids == 8).all()


@only_patched
@not_in_source
def test_source_that_leaves_the_transfer_to_the_controller_is_left_alone():
    transfer = "        self.transfer_bookkeeping_to_gpu()\n"
    module = INITIALIZE.partition(":")[0]

    def read(name):
        text = read_source(name)
        if name != module:
            return text
        assert text.count(transfer) == 1
        return text.replace(transfer, "")

    judgement = judge(SINGLE_BOOKKEEPING_TRANSFER, read)
    assert judgement.verdict is Verdict.DRIFTED
    assert INITIALIZE in judgement.reason


@only_patched
@not_in_source
def test_one_changed_token_in_the_target_is_drifted():
    judgement = judge(SINGLE_BOOKKEEPING_TRANSFER, with_one_token_changed(INITIALIZE_STEP))
    assert judgement.verdict is Verdict.DRIFTED
    assert INITIALIZE_STEP in judgement.reason
