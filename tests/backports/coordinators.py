"""Megatron's data-parallel coordinator, and engines and clients that talk to it over sockets.

The coordinator and the sockets are real; the coordinator runs in a thread, so that a test can see
when it ends, and why. Engines and clients here send what Megatron's do, and run no model.
"""

from __future__ import annotations

import importlib
import multiprocessing
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

import msgpack
import zmq

from megatron_patch.testing.engines import NumberTokenizer
from megatron_patch.testing.releases import parameters_of

from .checks import needs

#: Tokens in a block of the prefix cache.
BLOCK = 4
#: Prompts of a block and a token more, which have no block in common.
PROMPTS = [[10 * index + n for n in range(BLOCK + 1)] for index in range(1, 6)]
#: A prompt that has no whole block.
SHORT = [1, 2, 3]
#: Seconds that anything here may take.
LIMIT = 20.0


def coordinator_class() -> Any:
    """``DataParallelInferenceCoordinator``; skips where no engine can leave it."""
    name = "megatron.core.inference.data_parallel_inference_coordinator"
    try:
        found = importlib.import_module(name).DataParallelInferenceCoordinator
    except ImportError:
        needs(False, "a data-parallel coordinator")
    needs(hasattr(found, "_remove_engine"), "engines that leave their coordinator")
    return found


def headers() -> Any:
    """The enum of what a message is."""
    return importlib.import_module("megatron.core.inference.headers").Headers


def takes_records() -> bool:
    """Whether an engine replies with a record of the request's parts, not with one request."""
    return "finished_request_record" in parameters_of(coordinator_class().detokenize)


def policy(*names: str) -> Any:
    """The first of the coordinator's policies that the release has."""
    coordinator_class()
    config = importlib.import_module("megatron.core.inference.config")
    policies = config.PrefixCachingCoordinatorPolicy
    return next(policies[name] for name in names if name in policies.__members__)


def without_affinity() -> Any:
    """The policy of the release that does not look at prompts."""
    return policy("ROUND_ROBIN", "LOAD_BALANCED")


class Tokenizer(NumberTokenizer):
    """A tokenizer that keeps the coordinator waiting, until the test lets it go on."""

    def __init__(self) -> None:
        super().__init__(128)
        self.asked, self.may_go_on = threading.Event(), threading.Event()

    def tokenize(self, text: str) -> list[int]:
        self.asked.set()
        self.may_go_on.wait(LIMIT)
        return super().tokenize(text)


class Coordinator:
    """A coordinator that runs in the ``with`` block, and ends with it or before."""

    def __init__(self, engines: int = 2, **fields: Any) -> None:
        cls = coordinator_class()
        self.tokenizer = Tokenizer()
        self.error: BaseException | None = None
        self._context = zmq.Context()
        self._sockets: list[Any] = []
        self._ready = threading.Event()
        self._own: Any = None
        self._closed: Any = None
        ours, theirs = multiprocessing.Pipe()
        fields.setdefault("prefix_caching_coordinator_policy", policy("FIRST_PREFIX_BLOCK"))
        # Engines are in the order of their names, not of their arrival.
        fields = {"deterministic_mode": True, "block_size_tokens": BLOCK, **fields}
        fields = {"enable_prefix_caching": True, **fields}
        # Not all have always been there.
        for name, value in {"max_requests": 8, "hostname": "127.0.0.1"}.items():
            if name in parameters_of(cls):
                fields.setdefault(name, value)

        def run() -> None:
            try:
                self._own = cls(theirs, engines, self.tokenizer, **fields)
                self._closed = self._own.router_socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
                self._ready.set()
                self._own.start()
            except BaseException as error:
                self.error = error

        self._thread = threading.Thread(target=run, daemon=True)
        self._thread.start()
        assert ours.poll(LIMIT)
        self.address = ours.recv()
        ours.close()
        self.engines = [Engine(self, f"engine-{index}") for index in range(engines)]
        assert self._ready.wait(LIMIT)

    def __enter__(self) -> Coordinator:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.tokenizer.may_go_on.set()
        if self._thread.is_alive():
            Client(self).send(headers().SHUTDOWN)
        self._thread.join(LIMIT)
        assert not self._thread.is_alive()
        for one in self._sockets:
            one.close(linger=0)
        self._context.term()
        self._own.router_socket.disable_monitor()
        self._closed.close(linger=0)
        self._own.router_socket.close(linger=0)
        self._own.context.term()

    def socket(self) -> Any:
        """A new connection."""
        found = self._context.socket(zmq.DEALER)
        # What was sent still arrives when the socket is closed.
        found.setsockopt(zmq.LINGER, int(LIMIT * 1e3))
        self._sockets.append(found)
        return found

    def until(self, condition: Callable[[], Any]) -> None:
        """Wait for it. Fails when the coordinator has ended."""
        end = time.monotonic() + LIMIT
        while not condition():
            self.check()
            assert self._thread.is_alive(), "the coordinator has ended"
            assert time.monotonic() < end, "nothing has come"

    def check(self) -> None:
        """Fails when the coordinator has ended with an error."""
        if self.error is not None:
            raise AssertionError("the coordinator has ended") from self.error

    def has_ended(self) -> bool:
        """Whether the coordinator ends now, by itself."""
        self._thread.join(LIMIT)
        self.check()
        return not self._thread.is_alive()

    def has_seen_one_close(self) -> None:
        """Wait until the coordinator's socket knows that a connection is closed."""
        self.until(lambda: self._closed.poll(20))
        self._closed.recv_multipart()
        # A socket that has just been used does not check its connections at once.
        time.sleep(0.05)

    def has(self, engines: int) -> None:
        """Wait until it knows so many."""
        self.until(lambda: len(self._own.identities_of_data_parallel_ranks) == engines)


class Peer:
    """An end of a connection to the coordinator."""

    def __init__(self, coordinator: Coordinator) -> None:
        self.coordinator = coordinator
        self.socket = coordinator.socket()

    def send(self, header: Any, *others: Any) -> None:
        self.socket.send(msgpack.packb([header.value, *others], use_bin_type=True))

    def receive(self, header: Any) -> list[Any]:
        """The rest of the next message, which has to begin with ``header``."""
        self.coordinator.until(lambda: self.socket.poll(20))
        found, *others = msgpack.unpackb(self.socket.recv(), raw=False)
        assert headers()(found) is header
        return others

    def has_nothing(self) -> bool:
        return not self.socket.poll(50)

    def vanish(self) -> None:
        """Close, without a word, and wait until the coordinator's socket has seen it.

        What was sent before still arrives.
        """
        self.socket.close()
        self.coordinator.has_seen_one_close()


class Engine(Peer):
    """What the engine of one data-parallel rank sends and receives."""

    def __init__(self, coordinator: Coordinator, name: str) -> None:
        super().__init__(coordinator)
        self.name = name
        self.socket.setsockopt(zmq.IDENTITY, name.encode())
        self.socket.connect(coordinator.address)
        self.register()

    def register(self) -> None:
        self.socket.send(b"")

    def request(self) -> int:
        """The id of the next request."""
        found: int = self.receive(headers().SUBMIT_REQUEST)[0]
        return found

    def reply(self, *requests: int) -> None:
        """They have ended."""
        finished: list[dict[str, Any]] = [
            {"request_id": request, "prompt": "1", "generated_tokens": [request]}
            for request in requests
        ]
        if takes_records():
            finished = [{"requests": [one]} for one in finished]
        self.send(headers().ENGINE_REPLY, finished)

    def leave(self) -> None:
        """Tell the coordinator that the engine leaves, and wait until it has heard that."""
        others = len(self.coordinator._own.identities_of_data_parallel_ranks) - 1
        self.send(headers().DISCONNECT)
        self.coordinator.has(others)

    def end(self, says_goodbye: bool) -> None:
        if says_goodbye:
            self.leave()
        self.vanish()


class Client(Peer):
    """What an ``InferenceClient`` sends and receives."""

    def __init__(self, coordinator: Coordinator) -> None:
        super().__init__(coordinator)
        self.socket.connect(coordinator.address)
        self.added = 0
        self.send(headers().CONNECT)
        self.receive(headers().CONNECT_ACK)

    def submit(self, prompt: list[int] | str) -> None:
        self.send(headers().SUBMIT_REQUEST, self.added, prompt, {})
        self.added += 1

    def answer(self) -> tuple[int, str]:
        """The client's number of the next request that is answered, and its text."""
        request, reply = self.receive(headers().ENGINE_REPLY)
        if takes_records():
            (reply,) = reply["requests"]
        return request, reply["generated_text"]

    def is_served_by(self, prompt: list[int]) -> int:
        """Submit ``prompt``, have it answered, and say which engine has got it."""
        engines = self.coordinator.engines
        self.submit(prompt)
        found: list[int] = []

        def look() -> bool:
            connected = (index for index, one in enumerate(engines) if not one.socket.closed)
            found.extend(index for index in connected if engines[index].socket.poll(5))
            return bool(found)

        self.coordinator.until(look)
        (index,) = found
        request = engines[index].request()
        engines[index].reply(request)
        assert self.answer() == (self.added - 1, str(request))
        return index
