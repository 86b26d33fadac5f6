"""Where a decode step goes, at a size for a CPU."""

from __future__ import annotations

import json

import pytest

from megatron_patch.testing.releases import engine_class
from tools import profile_decode

SIZE = "--layers=1 --hidden=32 --heads=2 --vocabulary=64 --requests=12 --prompt=4 --tokens=9"


@pytest.fixture(scope="module", autouse=True)
def engine(device):
    """The engine's import wants a real stderr, which it is too late for within a test."""
    engine_class()


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
    printed = capsys.readouterr().out.splitlines()
    assert "patches none" in printed[0]
    assert printed[3].endswith(rows[0]["function"])
    assert len(printed) == 3 + 3 + 2 * len(cuda)


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
        ("<megatron_patch one module:Class.method>", "<megatron_patch one module:Class.method>"),
    ],
)
def test_places_are_those_within_a_package(file, expected):
    assert profile_decode.place(file) == expected
