"""Two engines and the coordinator in processes of their own, of which one engine is killed."""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

import megatron_patch
from megatron_patch import testing

from .coordinators import BLOCK, coordinator_class

RANK = """
import faulthandler, asyncio, json, os, sys

import megatron_patch
from megatron_patch import testing

# Also run by the process of the coordinator, which is started anew and is patched by the above.
if __name__ == "__main__":
    faulthandler.dump_traceback_later(240, exit=True)
    from torch import distributed

    folder, rank, fields = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])
    store = distributed.FileStore(os.path.join(folder, "store"), 2)
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    testing.start()
    engine = testing.build_engine(testing.EngineSpec(**fields))

    async def serve():
        address = await engine.start_listening_to_data_parallel_coordinator(
            hostname="127.0.0.1", loop=asyncio.get_running_loop()
        )
        if rank == 0:
            with open(os.path.join(folder, "address.part"), "w") as file:
                file.write(address)
            os.rename(os.path.join(folder, "address.part"), os.path.join(folder, "address"))
        await engine.engine_loop_task

    asyncio.run(serve())
"""

FIELDS: dict[str, Any] = {
    "max_requests": 8,
    "enable_prefix_caching": True,
    "block_size_tokens": BLOCK,
    "options": {"prefix_caching_coordinator_policy": "first_prefix_block"},
}
PROMPTS = ([1, 2, 3, 4, 5], [6, 7, 8, 9, 10])
#: Seconds after which a request is taken to be lost.
LIMIT = 20.0


@contextmanager
def engines(folder: Path) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Two ranks, each an engine of its own; the first one starts the coordinator."""
    script = folder / "rank.py"
    script.write_text(RANK)
    package = Path(megatron_patch.__file__).parents[1]
    path = os.pathsep.join([os.environ.get("PYTHONPATH", ""), str(package)])
    variables = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "PYTHONWARNINGS": "ignore"}
    variables |= {"PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": ""}
    with ExitStack() as stack, open(folder / "log", "wb") as log:
        found = []
        for rank in range(2):
            command = [sys.executable, str(script), str(folder), str(rank), json.dumps(FIELDS)]
            one = subprocess.Popen(command, env=variables, stdout=log, stderr=log)
            stack.callback(one.wait)
            stack.callback(one.kill)
            found.append(one)
        yield found


def address(folder: Path) -> str:
    end = time.monotonic() + 200
    while not (folder / "address").exists():
        assert time.monotonic() < end, (folder / "log").read_text()
        time.sleep(0.1)
    return (folder / "address").read_text()


@pytest.mark.about("removed-engine-replies", "removed-engine-routing")
def test_the_other_engine_answers_when_one_is_killed(device, tmp_path):
    coordinator_class()
    client_module = importlib.import_module("megatron.core.inference.inference_client")
    from megatron.core.inference.sampling_params import SamplingParams

    def sampling(num_tokens: int) -> Any:
        return SamplingParams(num_tokens_to_generate=num_tokens, top_k=1, termination_id=-1)

    async def use(ranks: list[subprocess.Popen[bytes]]) -> tuple[list[int], ...]:
        client = client_module.InferenceClient(address(tmp_path))
        client.start(asyncio.get_running_loop())

        async def answered(future: Any) -> list[int]:
            reply = await asyncio.wait_for(future, LIMIT)
            return list(reply["generated_tokens"])

        try:
            # The second is for the engine without a request, and so is what begins like it.
            both = [client.add_request(prompt, sampling(60)) for prompt in PROMPTS]
            before = [await answered(future) for future in both]
            ranks[1].kill()
            ranks[1].wait()
            await asyncio.sleep(0.5)  # the coordinator's socket learns of it
            after = [await answered(client.add_request(p, sampling(60))) for p in PROMPTS * 2]
        finally:
            client.shutdown_coordinator()
            await asyncio.sleep(0.5)  # else it is gone before it has sent that
            client.stop()
        return before, after

    with engines(tmp_path) as ranks:
        try:
            before, after = asyncio.run(use(ranks))
        except asyncio.TimeoutError:
            pytest.fail((tmp_path / "log").read_text())
    requests = [testing.Request(tuple(prompt), 60) for prompt in PROMPTS]
    expected = testing.reference_decode(testing.build_model(testing.EngineSpec(**FIELDS)), requests)
    assert before == [list(tokens) for tokens in expected]
    assert after == before * 2
