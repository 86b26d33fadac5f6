"""Where a decode step goes, at a size for a CPU."""

from __future__ import annotations

import json

import pytest

from megatron_patch import testing
from megatron_patch.testing import releases
from tools import benchmarking, profile_decode, step_timeline

SIZE = "--layers=1 --hidden=32 --heads=2 --vocabulary=64 --requests=12 --prompt=4 --tokens=9"


@pytest.fixture(scope="module", autouse=True)
def engine_class(device):
    """Import the engine before the test, because the import needs a real stderr."""
    return releases.engine_class()


def test_functions_of_megatron_by_the_time_that_is_their_own(tmp_path, capsys):
    file = tmp_path / "profile.json"
    assert (
        profile_decode.main(
            [*SIZE.split(), "--cuda-graphs=2", "--patches=none", "--rows=3", f"--json={file}"]
        )
        == 0
    )
    result = json.loads(file.read_text())
    assert result["patches"] == "none"
    rows = result["functions"]
    assert [row["own_us"] for row in rows] == sorted((r["own_us"] for r in rows), reverse=True)
    assert all(row["total_us"] >= row["own_us"] * 0.999 for row in rows)
    (update,) = (row for row in rows if row["function"].endswith(" update_requests"))
    assert update["function"].startswith("megatron/core/inference/contexts/dynamic_context.py:")
    assert update["calls"] == 1
    cuda = ("runtime", "gpu", "idle_before")
    assert [result[table] for table in cuda] == [[], [], []]
    line = result["timeline"]
    begins = [row["begins_us"] for row in line["calls"]]
    assert begins == sorted(begins)
    (update,) = (row for row in line["calls"] if row["function"] == "update_requests")
    assert 0 < update["begins_us"] < update["begins_us"] + update["us"] < line["step_us"]
    printed = capsys.readouterr().out.splitlines()
    assert "patches none" in printed[0]
    assert any(text.endswith(" update_requests 1") for text in printed)
    functions = printed.index("functions: own us a step, with what they call, calls a step")
    assert printed[functions + 1].endswith(rows[0]["function"])
    assert len(printed) == functions + 1 + 3 + 2 * len(cuda)


def test_a_clock_leaves_everything_as_it_was(engine_class):
    import torch

    owners = [engine_class, torch.Tensor, torch.cuda.CUDAGraph]
    before = [dict(vars(owner)) for owner in owners]
    engine = testing.build_engine(testing.EngineSpec())
    with step_timeline.clocked(engine) as calls:
        assert [dict(vars(owner)) for owner in owners] != before
        assert torch.tensor([1, 2]).tolist() == [1, 2]
    assert [dict(vars(owner)) for owner in owners] == before
    assert {name for name, *_ in calls} == {"tolist"}


def test_the_host_is_in_the_way_from_the_longest_wait_to_the_next_launch():
    calls = [
        ("replay", 0.0, 1.0),
        ("replay", 2.0, 3.0),
        ("update_requests", 31.0, 36.0),  # of which the last wait is a part
        ("tolist", 4.0, 30.0),
        ("item", 32.0, 35.0),
        ("replay", 50.0, 51.0),
        ("tolist", 52.0, 70.0),
        ("replay", 110.0, 111.0),
    ]
    assert step_timeline._host(calls) == 30.0
    assert step_timeline._host(calls[:4]) is None


def test_the_gpu_is_idle_where_nothing_overlaps():
    work = [("b", 5.0, 7.0), ("a", 0.0, 4.0), ("c", 6.0, 9.0), ("d", 8.0, 8.5), ("a", 11.0, 12.0)]
    idle = profile_decode.idle(work)
    assert idle == [("b", 4.0, 5.0), ("a", 9.0, 11.0)]
    assert profile_decode.per_step(idle, steps=2) == [
        {"function": "a", "calls": 0.5, "own_us": 1.0},
        {"function": "b", "calls": 0.5, "own_us": 0.5},
    ]


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("/somewhere/site-packages/megatron/core/utils.py", "megatron/core/utils.py"),
        ("/megatron/torch/nn/functional.py", "torch/nn/functional.py"),
        ("/usr/lib/python3.12/asyncio/events.py", "/usr/lib/python3.12/asyncio/events.py"),
        ("/somewhere/site-packages/einops/einops.py", "einops/einops.py"),
        (benchmarking.__file__, "tools/benchmarking.py"),
        ("<megatron_patch one module:Class.method>", "<megatron_patch one module:Class.method>"),
    ],
)
def test_places_are_those_within_a_package(file, expected):
    assert profile_decode.place(file) == expected
