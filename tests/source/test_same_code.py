"""With the patches in its source, the same code runs as with those that are put in at run time.

A process imports Megatron as it was released, and another one a tree of `tools/patched_tree.py`.
"""

from __future__ import annotations

import json
import os
from typing import Any

import pytest

from megatron_patch.backports import SERIES
from tools import patched_tree

from .. import starter
from ..conftest import not_in_source
from ..unit.source_trees import add_compiled
from . import code

pytestmark = not_in_source

CODE = f"import runpy; runpy.run_module({code.__name__!r}, run_name='__main__')"
OURS = [name for name in os.environ if name.startswith("MEGATRON_PATCH")]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the two processes say, by the kind of patching."""
    tree = tmp_path_factory.mktemp("patched") / "tree"
    assert patched_tree.main(["--output", str(tree)]) == 0
    add_compiled(tree)
    said = {}
    for name, path in {"at run time": (), "in the source": (tree,)}.items():
        done = starter.run(CODE, path=path, **dict.fromkeys(OURS))
        assert done.returncode == 0, done.stdout + done.stderr
        said[name] = json.loads(done.stdout)
    assert said["in the source"]["root"] == os.path.realpath(tree)
    assert said["at run time"]["root"] != os.path.realpath(tree)
    return said


def test_what_is_applied_at_run_time_is_there_in_the_source(runs):
    there = runs["in the source"]["states"]
    assert "drifted" not in there.values()
    states = runs["at run time"]["states"]
    assert "applied" in states.values()
    expected = {id: "upstreamed" if s == "applied" else s for id, s in states.items()}
    assert there == expected


def test_the_same_code_runs(runs):
    """So what tests show of one they show of the other."""
    states = runs["at run time"]["states"]
    applied = [patch for patch in SERIES if states[patch.id] == "applied"]
    edited = {edit.target for p in applied for v in p.variants for edit in v.edits}
    one, other = runs["in the source"]["code"], runs["at run time"]["code"]
    assert one.keys() & edited
    assert [target for target in {*one, *other} if one.get(target) != other.get(target)] == []
