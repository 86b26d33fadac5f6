"""What the soak takes for right and for wrong, and how it reports it."""

from __future__ import annotations

import json
import random
from itertools import product
from types import SimpleNamespace

import pytest
import torch

from megatron_patch import testing
from megatron_patch.testing.releases import set_inference_mode
from megatron_patch.testing.version import core_version
from tools import soak
from tools.differential import blocks

pytestmark = pytest.mark.usefixtures("device")

PROMPT = (3, 1, 4, 1, 5)
WANTED = {"return_log_probs": True}


@pytest.fixture(scope="module")
def model(device):
    return testing.build_model(testing.EngineSpec(**soak.MODEL))


@pytest.fixture
def context():
    """A context with two requests of three blocks each."""
    made = testing.build_context(testing.EngineSpec(**soak.MODEL))
    table(made)[:2, :3] = torch.arange(6).reshape(2, 3)
    made.total_request_count = 2
    return made


def table(context):
    old = hasattr(context, "request_to_kv_chunk_ids")
    return context.request_to_kv_chunk_ids if old else context.request_to_kv_block_ids


def all_logits(model, tokens):
    hidden = torch.ones(len(tokens), len(tokens), dtype=torch.bool).triu(1)[None, None]
    before = set_inference_mode(False)
    try:
        with torch.inference_mode():
            return model(torch.tensor([tokens]), torch.arange(len(tokens))[None], hidden)[0]
    finally:
        set_inference_mode(before)


def ended(request, **fields):
    """What the engine hands out for a request that got what it should; with other `fields`."""
    expected = soak.answer(request.prompt)
    split = len(request.prompt) - 1
    right = {
        "generated_tokens": list(expected.tokens[: request.num_tokens]),
        "prompt_log_probs": list(expected.log_probs[:split]),
        "generated_log_probs": list(expected.log_probs[split:][: request.num_tokens]),
    }
    of_all = {"status": SimpleNamespace(name="COMPLETED"), "events": []}
    return SimpleNamespace(**{**of_all, **right, **fields})


@pytest.mark.parametrize("prompt", [PROMPT, PROMPT[:1], soak.stems()[3]])
def test_an_answer_is_that_of_the_model_alone(model, prompt):
    expected = soak.answer(prompt)
    (tokens,) = testing.reference_decode(model, [testing.Request(prompt, soak.MOST_TOKENS)])
    assert expected.tokens == tokens
    logits = all_logits(model, [*prompt, *tokens[:-1]])
    right = logits.log_softmax(-1)[range(len(logits)), [*prompt[1:], *tokens]]
    torch.testing.assert_close(torch.tensor(expected.log_probs), right, atol=1e-5, rtol=0)
    best = logits[len(prompt) - 1 :].sort(descending=True).values
    assert expected.margin == pytest.approx(float((best[:, 0] - best[:, 1]).min()), abs=1e-5)


def test_any_features_of_a_release_are_drawn_together():
    rng = random.Random(0)
    drawn = [soak.draw_features(rng) for _ in range(300)]
    values = soak.available()
    assert {(f.scarce, f.refused) for f in drawn} == set(product((False, True), repeat=2))
    for name, of_name in values.items():
        assert {getattr(features, name) for features in drawn} == {*of_name}


@pytest.mark.parametrize("scenario", ["plain", soak.MIXED])
def test_a_life_is_decided_by_its_scenario_and_seed(scenario):
    one, same, other = (soak.Life(scenario, seed) for seed in (7, 7, 8))
    assert (one.features, one.spec) == (same.features, same.spec)
    drawn = [one._draw_request() for _ in range(5)]
    assert drawn == [same._draw_request() for _ in range(5)]
    assert drawn != [other._draw_request() for _ in range(5)]


def test_prompts_have_prefixes_in_common_and_no_near_ties():
    rng = random.Random(0)
    prompts = [soak.draw_prompt(rng) for _ in range(40)]
    begins = [prompt[: soak.BLOCK] for prompt in prompts if len(prompt) > soak.BLOCK]
    assert len(set(begins)) < len(begins) / 2
    assert all(soak.answer(prompt).margin > soak.MARGIN for prompt in prompts)


def test_what_the_lonely_engine_says_is_right():
    request = testing.Request(PROMPT, num_tokens=4)
    soak.check_answer(request, ended(request), WANTED)
    soak.check_answer(request, ended(request, generated_log_probs=None), {})


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"generated_tokens": [0, 0, 0, 0]}, "got the tokens"),
        ({"generated_tokens": []}, "got the tokens"),
        ({"prompt_log_probs": [0.0] * 4}, "off by up to"),
        ({"prompt_log_probs": [float("nan")] * 4}, "off by up to nan"),
        ({"prompt_log_probs": None}, "has 4 log-probs, not 8"),
        ({"generated_log_probs": None}, "log-probs"),
        ({"generated_log_probs": [0.0] * 4}, "off by up to"),
        ({"generated_log_probs": [0.0] * 5}, "log-probs"),
        ({"status": SimpleNamespace(name="FAILED")}, "ended as FAILED"),
    ],
)
def test_a_wrong_answer_is_an_error(wrong, message):
    request = testing.Request(PROMPT, num_tokens=4)
    with pytest.raises(soak.SoakError, match=message):
        soak.check_answer(request, ended(request, **wrong), WANTED)


def test_an_answer_ends_where_it_has_to():
    tokens = [7, 8, 9, 8, 9, 3]
    assert soak.cut(tokens, {}) == tokens
    assert soak.cut(tokens, {"termination_id": 9}) == [7, 8, 9]
    assert soak.cut(tokens, {"stop_words": ["", "4", "9 3 1"]}) == tokens
    kept = soak.cut(tokens, {"stop_words": ["5", "9 8"], "detokenize_stop_sequence": True})
    assert kept == [7, 8, 9, 8]
    taken = soak.cut(tokens, {"stop_words": ["5", "9 8"]})
    assert taken == ([7, 8] if soak._trims() else [7, 8, 9, 8])


SAMPLED = {"temperature": 1.0, "top_k": 3, "top_p": 0.0}


def test_a_sampled_answer_has_tokens_that_can_be_drawn():
    request = testing.Request(PROMPT, num_tokens=4)
    likely = list(soak.answer(PROMPT).tokens[:4])
    soak.check_answer(request, ended(request), SAMPLED)
    rows = soak.logits_alone([*PROMPT, *likely])
    likely[2] = int(rows[len(PROMPT) + 1].topk(3).indices[2])
    log_probs = soak._log_probs(request, likely)
    right = {"generated_tokens": likely, "generated_log_probs": log_probs[len(PROMPT) - 1 :]}
    # What comes after it may not be among the three most likely ones any more: only those before.
    shorter = testing.Request(PROMPT, num_tokens=3)
    short = {name: values[:3] for name, values in right.items()}
    soak.check_answer(shorter, ended(shorter, **short), {**SAMPLED, **WANTED})
    likely[2] = int(rows[len(PROMPT) + 1].topk(4).indices[3])
    with pytest.raises(soak.SoakError, match=f"has {likely[2]} at 2, which cannot be drawn"):
        soak.check_answer(shorter, ended(shorter, generated_tokens=likely[:3]), SAMPLED)


@pytest.mark.parametrize(
    ("count", "sampling", "message"),
    [
        (3, {}, "has 3 tokens, not 4"),
        (4, {"termination": 1}, "goes on after"),
    ],
)
def test_a_sampled_answer_ends_where_it_has_to(count, sampling, message):
    request = testing.Request(PROMPT, num_tokens=4)
    tokens = list(soak.answer(PROMPT).tokens[:count])
    ends = {"termination_id": tokens[sampling["termination"]]} if sampling else {}
    with pytest.raises(soak.SoakError, match=message):
        soak.check_answer(request, ended(request, generated_tokens=tokens), {**SAMPLED, **ends})


def test_a_refused_request_has_a_status_and_an_error():
    def event(name):
        return SimpleNamespace(type=SimpleNamespace(name=name))

    failed, request = SimpleNamespace(name="FAILED"), testing.Request(PROMPT, num_tokens=-1)
    right = ended(request, status=failed, events=[event("ERROR_NONTRANSIENT"), event("FAIL")])
    soak.check_refused(request, right, "it is too long")
    soak.check_refused(request, ValueError("too long"), "it is too long")
    for wrong in ({"events": [event("FAIL")]}, {"status": SimpleNamespace(name="COMPLETED")}):
        answered = SimpleNamespace(**{**vars(right), **wrong})
        with pytest.raises(soak.SoakError, match="and it is too long"):
            soak.check_refused(request, answered, "it is too long")


def test_blocks_that_each_have_one_holder_are_right(context):
    soak.check_blocks(context)


def test_a_block_twice_in_a_request_is_an_error(context):
    table(context)[1, 2] = 3
    with pytest.raises(soak.SoakError, match=r"holds a block twice: \[3, 4, 3\]"):
        soak.check_blocks(context)


def test_a_block_of_two_requests_is_an_error_without_prefix_caching(context):
    table(context)[1, 2] = 0
    with pytest.raises(soak.SoakError, match=r"blocks \[0\] are held by several"):
        soak.check_blocks(context)


def test_a_wrong_reference_count_is_an_error():
    spec = testing.EngineSpec(**soak.MODEL, enable_prefix_caching=True)
    try:
        context = testing.build_context(spec)
    except testing.UnsupportedError as error:
        pytest.skip(str(error))
    soak.check_blocks(context)
    for wrong in (1, -1):
        context.kv_block_allocator.block_ref_counts[4] = wrong
        with pytest.raises(soak.SoakError, match=f"block 4 has the reference count {wrong}, not 0"):
            soak.check_blocks(context)


def test_an_idle_engine_has_no_requests_and_all_blocks(context):
    start = blocks.free(context)
    with pytest.raises(soak.SoakError, match="has 2 requests"):
        soak.check_idle(context, start)
    context.total_request_count = 0
    soak.check_idle(context, start)
    with pytest.raises(soak.SoakError, match=f"{start} of {start + 1} blocks are free"):
        soak.check_idle(context, start + 1)


def test_a_good_run(tmp_path, capsys):
    report = tmp_path / "report.json"
    assert soak.main(["--requests", "1", "--scenarios", "plain", "--json", str(report)]) == 0
    out = capsys.readouterr().out
    assert f"megatron-core {core_version()}, seed 0" in out
    assert "FAILED" not in out
    told = json.loads(report.read_text())
    assert told["failures"] == []
    assert told["total"]["lives"] == 1
    assert told["total"]["tokens"] > told["total"]["requests"] > 0
    assert told["scenarios"] == {"plain": told["total"]}
    assert told["versions"]["megatron-core"] == core_version()


def test_a_failure_is_reported_with_what_repeats_it(monkeypatch, capsys, tmp_path):
    """The second life fails, and the others go on."""

    def run(life, requests):
        life.counts["requests"] += 10
        if life.seed == 6:
            raise soak.SoakError("what a pity")

    monkeypatch.setattr(soak.Life, "run", run)
    report = tmp_path / "report.json"
    arguments = ["--seed", "5", "--requests", "45", "--scenarios", "plain", "padding"]
    assert soak.main([*arguments, "--json", str(report)]) == 1
    repeat = "--scenarios padding --seed 6 --requests 10"
    out = capsys.readouterr().out
    assert f"FAILED: python tools/soak.py {repeat}\n  SoakError: what a pity\n" in out
    told = json.loads(report.read_text())
    assert [failure["life"] for failure in told["failures"]] == [repeat]
    assert told["scenarios"]["plain"] == {"lives": 3, "requests": 30}
    assert told["scenarios"]["padding"] == {"lives": 2, "requests": 20}
    assert soak.main(repeat.split()) == 1


def test_what_repeats_a_failure_makes_no_more_requests_than_it_took(monkeypatch):
    waves = []

    def decode(engine, requests, *_):
        """Every second wave fails, and so each life in its second wave."""
        waves.append(requests)
        if len(waves) % 2 == 0:
            raise RuntimeError("what a pity")
        return 0, [SimpleNamespace(generated_tokens=[])] * len(requests)

    monkeypatch.setattr(soak, "decode", decode)
    monkeypatch.setattr(soak, "draw_prompt", lambda rng: (rng.randrange(64),))
    monkeypatch.setattr(soak, "check_answer", lambda *_: None)
    long = soak.Soak(["plain"], seed=3)
    long.run(500)
    first = waves[:2]
    number = sum(map(len, first))
    assert long.failures[0].life == f"--scenarios plain --seed 3 --requests {number}"
    assert len(long.failures) > 1
    waves.clear()
    short = soak.Soak(["plain"], seed=3)
    short.run(number)
    assert short.failures == long.failures[:1]
    assert waves == first


def test_a_scenario_that_is_not_there(capsys):
    with pytest.raises(SystemExit) as exit_:
        soak.main(["--scenarios", "plain", "rain"])
    assert exit_.value.code == 2
    assert f"megatron-core {core_version()} can play plain, " in capsys.readouterr().err


def test_an_engine_that_refuses_its_last_request_while_suspended_is_resumed():
    """The engine's tensors may be gone then, and its blocks could not be counted."""
    if "suspend" not in soak.scenarios():
        pytest.skip(f"megatron-core {core_version()} suspends otherwise")
    engine = testing.build_engine(testing.EngineSpec(**soak.MODEL))
    request = testing.Request(PROMPT * soak.LONGEST, num_tokens=2)

    def suspend(engine, step):
        if step == 0:
            testing.suspend(engine)

    start = blocks.free(engine.context)
    soak.decode(engine, [request], suspend, {})
    assert not testing.is_suspended(engine)
    soak.check_idle(engine.context, start)
