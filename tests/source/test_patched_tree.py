"""What the tool says when there is nothing to make a tree from, or no place for it.

The trees that it makes are what the other tests here run on.
"""

from __future__ import annotations

import pytest

from megatron_patch.backports.upstream.input_position_view_cache import GETTER
from tools import patched_tree

from ..unit.trees import write_tree

DRIFTED = """\
class DynamicInferenceContext:
    def current_input_and_position_ids(self):
        return None
"""


def make(megatron, output) -> int:  # type: ignore[no-untyped-def]
    return patched_tree.main(["--megatron", str(megatron), "--output", str(output)])


def test_a_tree_that_needs_no_patch_is_one_commit(tmp_path, capsys):
    write_tree(tmp_path / "fork", "class DynamicInferenceContext: pass\n", version=(0, 1, 0))
    assert make(tmp_path / "fork", tmp_path / "out") == 0
    first, *rest = capsys.readouterr().out.splitlines()
    assert first.partition(" ")[2] == "Megatron-Core 0.1.0rc1"
    assert rest
    assert all(line.startswith("left out ") for line in rest)
    file = "megatron/core/inference/contexts/dynamic_context.py"
    assert (tmp_path / "out" / file).read_bytes() == (tmp_path / "fork" / file).read_bytes()


def test_unknown_source_makes_nothing(tmp_path, capsys):
    write_tree(tmp_path / "fork", DRIFTED, version=(0, 1, 0))
    assert make(tmp_path / "fork", tmp_path / "out") == 1
    assert GETTER in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_what_is_no_megatron(tmp_path, capsys):
    assert make(tmp_path, tmp_path / "out") == 2
    assert "is not a Megatron tree" in capsys.readouterr().err


def test_a_directory_with_something_in_it_is_left_alone(tmp_path, capsys):
    write_tree(tmp_path, DRIFTED, version=(0, 1, 0))
    with pytest.raises(SystemExit) as caught:
        make(tmp_path, tmp_path)
    assert caught.value.code == 2
    assert "is not empty" in capsys.readouterr().err
