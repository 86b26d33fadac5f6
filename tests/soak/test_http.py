"""Drawn requests to Megatron's own HTTP endpoints, in front of the real engine.

Their answers are checked as all answers of the soak are: against the same request alone, or against
the logits of the model alone where tokens are sampled.
"""

from __future__ import annotations

import os
import random
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest
from packaging.version import Version

from megatron_patch import testing
from megatron_patch.testing.releases import context_parameters
from tools import soak

from ..backports.endpoints import END, ROLES, Answer, Server, endpoint
from ..conftest import RELEASE

pytestmark = pytest.mark.usefixtures("device")

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
NIGHTLY = os.environ.get("HYPOTHESIS_PROFILE") == "nightly"
SEEDS = range(20 if NIGHTLY else 1)
EACH = 12
"""Requests to each endpoint, of a seed."""

#: The completions endpoint tells why an answer ended, and counts tokens.
COMPLETIONS_TELL = RELEASE >= Version("0.18")

#: Parameters, and what they mean for the engine. The endpoints have a ``top_p`` of 1.0 by default.
SAMPLINGS: tuple[tuple[dict[str, Any], tuple[float, int, float]], ...] = (
    ({"temperature": 0}, (0.0, 1, 0.0)),
    ({"temperature": 0, "top_k": 5, "top_p": 0.9}, (0.0, 1, 0.0)),
    ({"top_k": 1}, (1.0, 1, 1.0)),
    ({}, (1.0, 0, 1.0)),
    ({"top_k": 20}, (1.0, 20, 1.0)),
    ({"temperature": 1.5, "top_k": 8, "top_p": 0.7}, (1.5, 8, 0.7)),
    ({"top_k": 999, "top_p": 0.5}, (1.0, 999, 0.5)),
    ({"temperature": None, "top_p": 0.8, "top_k": None}, (1.0, 0, 0.8)),
)

#: Parameters that each endpoint has to answer with status 400; the prompt is a valid one.
BAD: tuple[dict[str, Any], ...] = (
    {"temperature": -1.0},
    {"temperature": float("nan")},
    {"temperature": "warm"},
    {"temperature": [1]},
    {"top_p": 1.5},
    {"top_k": -2},
    {"top_k": "many"},
    {"max_tokens": -3},
    {"max_tokens": "few"},
    {"stop": 5},
    {"stop": [5]},
)
BAD_PROMPTS: Mapping[str, tuple[Any, ...]] = {
    CHAT: ([], "1 2", [{"role": "user", "content": " ".join(["1"] * soak.LONGEST)}]),
    COMPLETIONS: ([], "", 5, {"1": 2}, " ".join(["1"] * (soak.LONGEST + 1))),
}


def server(rng: random.Random) -> Server:
    """The endpoints in front of an engine that may evict requests, and split or cache prompts."""
    spec: dict[str, Any] = {"enable_chunked_prefill": rng.random() < 0.5}
    options: dict[str, Any] = {}
    if "enable_prefix_caching" in context_parameters() and rng.random() < 0.5:
        spec["enable_prefix_caching"] = True
    if rng.random() < 0.7:  # enough for the longest, and not for three
        blocks = soak.SEQUENCE_BLOCKS + rng.randint(0, 4)
        spec["buffer_size_gb"] = (blocks + 1.5) * soak.BLOCK_GB
        options["paused_buffer_size_gb"] = 0.5 * soak.BLOCK_GB
    return Server(
        testing.EngineSpec(
            **soak.MODEL, **spec, materialize_only_last_token_logits=False, options=options
        )
    )


def draw(rng: random.Random, path: str) -> tuple[dict[str, Any], list[testing.Request]]:
    """A request body, and the engine's requests that it stands for, one for each choice."""
    parameters, sampling = rng.choice(SAMPLINGS)
    number = rng.randint(1, soak.MOST_TOKENS)
    body: dict[str, Any] = {**parameters, "max_tokens": number}
    asked: dict[str, Any] = dict(zip(("temperature", "top_k", "top_p"), sampling, strict=True))
    count = rng.randint(1, 3)
    if path == CHAT:
        text, prompt = draw_chat(rng)
        body |= {"messages": [{"role": "user", "content": text}], "n": count}
        prompts = [prompt] * count
    else:
        prompts = [soak.draw_prompt(rng) for _ in range(count)]
        texts = [" ".join(map(str, prompt)) for prompt in prompts]
        forms = [texts, [list(prompt) for prompt in prompts]]
        body["prompt"] = rng.choice(forms if count > 1 else [*forms, texts[0], [*prompts[0]]])
        body["echo"] = rng.random() < 0.3
    if rng.random() < 0.6:
        top = rng.choice((0, 2))
        body |= {"logprobs": True, "top_logprobs": top} if path == CHAT else {"logprobs": top}
        asked |= {"return_log_probs": True, "skip_prompt_log_probs": not body.get("echo", False)}
    if rng.random() < 0.4:
        tokens = soak.answer(prompts[0]).tokens[:number]
        first = rng.randrange(len(tokens))
        words = [" ".join(map(str, tokens[first : first + rng.randint(1, 2)]))]
        words += [word for word in ("", "99 98 97 96") if rng.random() < 0.3]
        body["stop"] = words[0] if len(words) == 1 and rng.random() < 0.5 else words
        asked["stop_words"] = words
    return body, [testing.Request(prompt, number, 0, asked) for prompt in prompts]


def draw_chat(rng: random.Random) -> tuple[str, tuple[int, ...]]:
    """A chat message, and the tokens of the whole prompt."""
    while True:
        said = soak.draw_prompt(rng)[: soak.LONGEST_PROMPT - 3]
        prompt = (ROLES["user"], *said, END, ROLES["assistant"])
        if soak.answer(prompt).margin > soak.MARGIN:
            return " ".join(map(str, said)), prompt


def draw_bad(rng: random.Random, path: str) -> dict[str, Any]:
    """A request body that has to be answered with status 400."""
    body, _ = draw(rng, path)
    if rng.random() < 0.3:
        return {**body, "messages" if path == CHAT else "prompt": rng.choice(BAD_PROMPTS[path])}
    # With a temperature of 0 the endpoints do not look at the filters.
    for name in ("temperature", "top_k", "top_p"):
        body.pop(name, None)
    return {**body, **rng.choice(BAD)}


def check(path: str, body: dict[str, Any], requests: list[testing.Request], answer: Answer) -> None:
    """Check that each choice is what its request is answered with alone."""
    assert answer.status == 200, (body, answer.body)
    choices = answer.body["choices"]
    assert [choice.get("index", at) for at, choice in enumerate(choices)] == [*range(len(requests))]
    counted = 0
    for request, choice in zip(requests, choices, strict=True):
        part = (of_chat if path == CHAT else of_completion)(body, request, choice)
        soak.check_answer(request, part, dict(request.sampling))
        tokens = part.generated_tokens
        counted += len(tokens)
        for name, of in (("generation", tokens), ("prompt", [*request.prompt])):
            assert choice.get(f"{name}_token_ids", of) == of
        if path == CHAT or COMPLETIONS_TELL:
            whole = len(tokens) == request.num_tokens
            assert choice["finish_reason"] == ("length" if whole else "stop"), (body, choice)
    if path == CHAT or COMPLETIONS_TELL:
        # Of several prompts Megatron counts the longest one.
        longest = max(len(request.prompt) for request in requests)
        usage = answer.body["usage"]
        assert (usage["prompt_tokens"], usage["completion_tokens"]) == (longest, counted)
        assert usage["total_tokens"] == longest + counted


def ended(tokens: list[int], generated: Any = None, of_prompt: Any = None) -> Any:
    """An answer in the form that the soak checks."""
    return SimpleNamespace(
        status=SimpleNamespace(name="COMPLETED"),
        events=[],
        generated_tokens=tokens,
        generated_log_probs=generated,
        prompt_log_probs=of_prompt,
    )


def numbers(text: str) -> list[int]:
    return [int(word) for word in text.split()]


def of_chat(body: dict[str, Any], request: testing.Request, choice: dict[str, Any]) -> Any:
    tokens = numbers(choice["message"]["content"] or "")
    if "logprobs" not in body:
        assert choice["logprobs"] is None
        return ended(tokens)
    content = choice["logprobs"]["content"] or []
    assert [numbers(entry["token"]) for entry in content] == [[token] for token in tokens]
    for entry in content:
        assert len(entry["top_logprobs"]) == body["top_logprobs"]
    return ended(tokens, [entry["logprob"] for entry in content])


def of_completion(body: dict[str, Any], request: testing.Request, choice: dict[str, Any]) -> Any:
    text, split = choice["text"], 0
    if body["echo"]:
        split, echoed = len(request.prompt), " ".join(map(str, request.prompt))
        assert text.startswith(echoed)
        text = f"{echoed} {text[len(echoed) :]}"
    tokens = numbers(text)
    if "logprobs" not in body:
        assert choice["logprobs"] is None
        return ended(tokens[split:])
    found = choice["logprobs"]
    assert [numbers(token) for token in found["tokens"]] == [[token] for token in tokens]
    values = found["token_logprobs"]
    assert len(values) == len(found["text_offset"]) == len(tokens)
    if body["logprobs"] and tokens[split:]:
        assert [len(top or ()) for top in found["top_logprobs"][split:]] == [body["logprobs"]] * (
            len(tokens) - split
        )
    if not body["echo"]:
        return ended(tokens, values)
    assert values[0] is None
    return ended(tokens[split:], values[split:], values[1:split])


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
@pytest.mark.parametrize("seed", SEEDS)
def test_answers_are_those_of_the_model_alone(path, seed):
    endpoint("completions")  # or skips
    rng = random.Random(f"{path} {seed}")
    asked = [draw(rng, path) for _ in range(EACH)]
    bodies, bad = [body for body, _ in asked], [draw_bad(rng, path) for _ in range(EACH // 2)]
    answers = server(rng).post_all(path, [*bodies[::2], *bad, *bodies[1::2]])
    middle = len(bodies[::2])
    for body, answer in zip(bad, answers[middle:][: len(bad)], strict=True):
        assert answer.status == 400, (body, answer)
    good = [*answers[:middle], *answers[middle + len(bad) :]]
    for (body, requests), answer in zip([*asked[::2], *asked[1::2]], good, strict=True):
        check(path, body, requests, answer)
