"""Megatron's own HTTP endpoints, in front of its dynamic engine.

The endpoints run in a thread and an event loop of their own, behind the test client of their
framework. What they hand to the engine, and what they get of it, goes through the same bytes as
over the coordinator; only its sockets are left out.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import queue
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import pytest

from megatron_patch import testing
from megatron_patch.testing.decoding import has_work, stepper
from megatron_patch.testing.engines import NumberTokenizer

ENDPOINTS = "megatron.core.inference.text_generation_server.dynamic_text_gen_server.endpoints"

#: What begins a message, by its role, and what ends it.
ROLES = {"system": 120, "user": 121, "assistant": 122, "tool": 123}
END = 127


class ChatTokenizer(NumberTokenizer):
    """Numbers, with a chat template."""

    chat_template = "a role, the message, and the end"
    eos_id = END

    def apply_chat_template(
        self,
        messages: Sequence[dict[str, Any]],
        tokenize: bool = True,
        add_generation_prompt: bool = False,
        **others: Any,
    ) -> list[int]:
        tokens: list[int] = []
        for message in messages:
            content = message.get("content") or ""
            tokens += [ROLES[message["role"]], *self.tokenize(content), END]
        return [*tokens, ROLES["assistant"]] if add_generation_prompt else tokens


class Answer(NamedTuple):
    """Of an endpoint. ``body`` is JSON, or text where it is none."""

    status: int
    body: Any


def endpoint(name: str) -> Any:
    """The module ``chat_completions`` or ``completions``; skips where there is none that runs."""
    try:
        module = importlib.import_module(f"{ENDPOINTS}.{name}")
    except ImportError:
        pytest.skip("has no such feature: HTTP endpoints of the dynamic engine")
    if not hasattr(module, "bp"):
        pytest.skip("the framework of the endpoints is not installed")
    return module


class Client:
    """Takes requests as Megatron's ``InferenceClient`` does, for an engine of the main thread."""

    def __init__(self, tokenizer: NumberTokenizer) -> None:
        self.tokenizer = tokenizer
        self.added: queue.SimpleQueue[tuple[Any, ...]] = queue.SimpleQueue()

    def add_request(
        self, prompt: list[int], sampling_params: Any, **others: Any
    ) -> asyncio.Future[Any]:
        assert set(others.values()) <= {None}, others  # such as images: what is asked has none
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        self.added.put((list(prompt), json.dumps(sampling_params.serialize()), future, loop))
        return future


class Server:
    """An engine, and the endpoints that ask it."""

    def __init__(self, spec: testing.EngineSpec | None = None) -> None:
        if spec is None:
            spec = testing.EngineSpec(materialize_only_last_token_logits=False)
        self.engine = testing.build_engine(spec)
        self.tokenizer = ChatTokenizer(spec.vocab_size)
        self.engine.controller.tokenizer = self.tokenizer
        self.client = Client(self.tokenizer)
        modules = [endpoint("chat_completions"), endpoint("completions")]
        client = importlib.import_module("megatron.core.inference.inference_client")
        #: Whether the endpoints get the parts of a request, and merge them themselves: 0.16.
        self.sends_parts = hasattr(client, "DynamicInferenceRequestRecord")
        self.is_flask = type(modules[0].bp).__module__.startswith("flask")
        framework = importlib.import_module("flask" if self.is_flask else "quart")
        self.app: Any = (framework.Flask if self.is_flask else framework.Quart)("server")
        for module in modules:
            self.app.register_blueprint(module.bp)
        self.app.config.update(
            client=self.client, tokenizer=self.tokenizer, parsers=[], verbose=False
        )

    def post(self, path: str, **fields: Any) -> Answer:
        """What the endpoint answers to the JSON ``fields``."""
        return self.post_all(path, [fields])[0]

    def post_all(self, path: str, bodies: Sequence[dict[str, Any]]) -> list[Answer]:
        """What the endpoint answers to one request after the other."""

        def ask() -> list[Answer]:
            if self.is_flask:
                return [self._ask_flask(path, body) for body in bodies]
            return asyncio.run(self._ask_quart(path, bodies))

        with ThreadPoolExecutor(1) as thread:
            answers = thread.submit(ask)
            while not answers.done():
                self._run_engine()
            return answers.result()

    def _ask_flask(self, path: str, body: dict[str, Any]) -> Answer:
        response = self.app.test_client().post(path, json=body)
        return _answer(response.status_code, response.get_data(as_text=True))

    async def _ask_quart(self, path: str, bodies: Sequence[dict[str, Any]]) -> list[Answer]:
        client = self.app.test_client()
        found = []
        for body in bodies:
            response = await client.post(path, json=body)
            found.append(_answer(response.status_code, await response.get_data(as_text=True)))
        return found

    def _run_engine(self) -> None:
        """Run what has been added to its end, and reply."""

        try:
            batch = [self.client.added.get(timeout=0.02)]
        except queue.Empty:
            return
        while not self.client.added.empty():
            batch.append(self.client.added.get())
        try:
            replies = self._answers(
                [(prompt, json.loads(params)) for prompt, params, _, _ in batch]
            )
        except BaseException as error:
            for _, _, future, loop in batch:
                loop.call_soon_threadsafe(future.set_exception, RuntimeError(repr(error)))
            raise
        for (_, _, future, loop), reply in zip(batch, replies, strict=True):
            loop.call_soon_threadsafe(future.set_result, reply)

    def _answers(self, batch: list[tuple[list[int], dict[str, Any]]]) -> list[Any]:
        from megatron.core.inference.sampling_params import SamplingParams

        engine = self.engine
        futures = []

        async def add() -> None:
            for prompt, params in batch:
                request_id = int(next(engine.request_counter))
                sampling_params = SamplingParams.deserialize(params)
                futures.append(engine.add_request(request_id, prompt, sampling_params))

        engine._loop.run_until_complete(add())
        step = stepper(engine, {})
        for _ in range(1000):
            if not has_work(engine):
                break
            step()
        return [self._reply(future.result()) for future in futures]

    def _reply(self, record: Any) -> Any:
        if self.sends_parts:  # with text that the coordinator makes
            for number, part in enumerate(record.requests):
                text = self.tokenizer.detokenize(part.generated_tokens)
                # Texts of parts can be joined, as those of tokenizers for words can.
                part.generated_text = f" {text}" if number > 0 and text else text
            return type(record).deserialize(_sent(record.serialize()))
        merged = record.merge()
        merged.generated_text = self.tokenizer.detokenize(merged.generated_tokens)
        return _sent(merged.serialize())


def _sent(reply: dict[str, Any]) -> Any:
    """As it is after a message, which has no tuples."""
    return json.loads(json.dumps(reply))


def _answer(status: int, text: str) -> Answer:
    try:
        return Answer(status, json.loads(text))
    except ValueError:
        return Answer(status, text)
