"""What ``verify_ranks`` compares, alone and over gloo."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

import megatron_patch
from megatron_patch import Kind, PatchStatus, State
from megatron_patch.model import LAYERS, SERVER
from megatron_patch.ranks import causes, differences, summary

from .trees import IMPORT_ALL, MODULES, environment, write_tree


def status(id: str, state: State, reason: str = "why") -> PatchStatus:
    return PatchStatus(id, Kind.CORRECTNESS, state, reason, 1, "9.9")


def one(version: str = "0.16.1", **states: State):  # type: ignore[no-untyped-def]
    return summary([status(id, state) for id, state in states.items()], version, "0.1.0")


def test_equal_ranks_have_no_differences():
    assert differences({rank: one(a=State.APPLIED, b=State.DISABLED) for rank in range(4)}) == []


def test_a_difference_names_patch_states_and_ranks_the_most_common_first():
    ranks = {rank: one(a=State.APPLIED, b=State.APPLIED) for rank in range(8)}
    ranks[3] = ranks[4] = ranks[6] = one(a=State.APPLIED, b=State.DRIFTED)
    (line,) = differences(ranks)
    assert line == "  b: applied (why) on ranks 0-2, 5, 7; drifted (why) on ranks 3-4, 6"


def test_another_megatron_is_a_difference_even_in_equal_states():
    ranks = {0: one("0.17.0", a=State.APPLIED), 1: one("0.17.1", a=State.APPLIED)}
    assert differences(ranks) == ["  megatron-core: 0.17.0 on rank 0; 0.17.1 on rank 1"]


def test_a_patch_that_only_some_know():
    ranks = {0: one(a=State.APPLIED), 1: one(a=State.APPLIED, new=State.APPLIED)}
    assert differences(ranks) == ["  new: unknown there on rank 0; applied (why) on rank 1"]


def test_a_patch_that_is_pending_everywhere_is_not_verified():
    (line,) = differences({rank: one(a=State.PENDING) for rank in range(2)})
    assert "call verify_ranks() after the import of Megatron's inference engine" in line


def test_a_patch_may_be_pending_where_no_rank_needs_it():
    waiting = {rank: one(a=State.PENDING) for rank in range(2)}
    assert differences(waiting, {"a"}) == []
    (line,) = differences({**waiting, 2: one(a=State.APPLIED)}, {"a"})
    assert line == "  a: pending (why) on ranks 0-1; applied (why) on rank 2"


def test_a_setting_that_differs_is_named_with_its_values():
    ranks = {rank: {"MEGATRON_PATCH": "none"} if rank == 2 else {} for rank in range(4)}
    (line,) = causes(ranks)
    assert line == ("  set differently: MEGATRON_PATCH: not set on ranks 0-1, 3; 'none' on rank 2")
    assert causes({rank: {"MEGATRON_PATCH_STRICT": "1"} for rank in range(4)}) == []
    assert causes({0: {}, 1: {}}) == []


def test_without_a_process_group(monkeypatch):
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: False)
    with pytest.raises(RuntimeError, match="needs an initialised process group"):
        megatron_patch.verify_ranks()


# The last of several ranks has another environment; the others are a group of their own as well.
RANKS = """
import os, sys, tempfile
import torch
import torch.multiprocessing as mp
from torch import distributed

def say(line):
    os.write(1, f"{line}\\n".encode())  # in one piece: the ranks share it

def main(rank, world, store, backend):
    os.environ["MEGATRON_PATCH"] = "none" if rank == world - 1 > 0 else "all"
    import megatron_patch
    exec(sys.argv[3])
    if backend == "nccl":
        torch.cuda.set_device(rank)
    distributed.init_process_group(backend, init_method=store, rank=rank, world_size=world)
    small = distributed.new_group(list(range(max(1, world - 1))))
    for name, group in ("small", small), ("all", None):
        try:
            megatron_patch.verify_ranks(group)
            say(f"{name} {rank} equal")
        except megatron_patch.RankMismatchError as error:
            say(f"{name} {rank} {error}".replace("\\n", " "))
    distributed.barrier()
    distributed.destroy_process_group()

if __name__ == "__main__":
    world = int(sys.argv[1])
    with tempfile.TemporaryDirectory() as folder:
        store = f"file://{folder}/store"
        arguments = (world, store, sys.argv[2])
        mp.start_processes(main, arguments, nprocs=world, start_method="fork")
"""


def run_ranks(  # type: ignore[no-untyped-def]
    tmp_path, world: int, backend: str = "gloo", imports: str = IMPORT_ALL
) -> list[str]:
    script = tmp_path / "ranks.py"
    script.write_text(RANKS)
    write_tree(tmp_path / "tree", "class DynamicInferenceContext:\n    pass\n")
    done = subprocess.run(
        [sys.executable, str(script), str(world), backend, imports],
        env=environment(tmp_path / "tree"),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return sorted(done.stdout.splitlines())


def test_one_other_rank_makes_all_raise_and_a_group_without_it_is_equal(tmp_path):
    lines = run_ranks(tmp_path, 3)
    assert lines[3:] == ["small 0 equal", "small 1 equal", "small 2 equal"]
    for rank, line in enumerate(lines[:3]):
        assert line.startswith(f"all {rank} the ranks do not run the same:")
        assert "input-position-view-cache: not_applicable" in line
        assert "on ranks 0-1; disabled (not selected by MEGATRON_PATCH) on rank 2" in line
        assert line.endswith(
            "set differently: MEGATRON_PATCH: 'all' on ranks 0-1; 'none' on rank 2"
        )


def test_a_world_of_one(tmp_path):
    assert run_ranks(tmp_path, 1) == ["all 0 equal", "small 0 equal"]


def test_ranks_without_a_server_and_some_layers_are_equal(tmp_path):
    needed = [name for name in MODULES if not name.startswith((SERVER, *LAYERS))]
    assert 0 < len(needed) < len(MODULES)
    assert run_ranks(tmp_path, 1, imports=f"import {', '.join(needed)}") == [
        "all 0 equal",
        "small 0 equal",
    ]


@pytest.mark.gpu
@pytest.mark.parametrize("world", [1, 2])
def test_over_nccl(tmp_path, world):
    if torch.cuda.device_count() < world:
        pytest.skip(f"needs {world} CUDA devices")
    lines = run_ranks(tmp_path, world, "nccl")
    assert lines[world:] == [f"small {rank} equal" for rank in range(world)]
    if world == 1:
        assert lines[0] == "all 0 equal"
        return
    for rank, line in enumerate(lines[:world]):
        assert line.startswith(f"all {rank} the ranks do not run the same:")
        assert "disabled (not selected by MEGATRON_PATCH) on rank 1" in line
