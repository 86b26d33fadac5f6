"""One engine a process, whatever is imported again and under whatever name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import megatron_patch
from megatron_patch.backports.upstream.input_position_view_cache import GETTER

from .trees import ID, IMPORT_ALL, python, write_patchable_tree

START = f"""
import importlib, json, sys, warnings
warnings.simplefilter("error")

def show(package):
    context = sys.modules["{GETTER.partition(":")[0]}"].DynamicInferenceContext
    getter = vars(context)["current_input_and_position_ids"]
    (state,) = (entry.state for entry in package.status() if entry.id == "{ID}")
    how = [str(state), hasattr(getter, "__megatron_patch__"), package.State(state) is state]
    print(json.dumps(how))

"""
APPLIED = ["applied", True, True]
DISABLED = ["disabled", False, True]

PURGE = """
for name in [name for name in sys.modules if name.partition(".")[0] == "megatron_patch"]:
    del sys.modules[name]
"""


@pytest.fixture(scope="module")
def variables(tmp_path_factory):  # type: ignore[no-untyped-def]
    """A Megatron on the path, and what one patch needs to be applied to it."""
    root = tmp_path_factory.mktemp("megatron")
    return {"path": root, **write_patchable_tree(root)}


def run(code: str, variables: dict[str, str]) -> list[list[object]]:
    done = python("-c", START + code, **variables)
    assert (done.returncode, done.stderr) == (0, "")
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("imports", [f"import megatron_patch; {IMPORT_ALL}", f"{IMPORT_ALL}; import megatron_patch"])  # fmt: skip # noqa: E501
def test_reloaded(variables, imports):
    code = f"""
{imports}
engine = megatron_patch._engine
importlib.reload(megatron_patch)
show(megatron_patch)
assert megatron_patch._engine is engine
megatron_patch.uninstall()
show(megatron_patch)
importlib.reload(megatron_patch)
show(megatron_patch)
megatron_patch.uninstall()
show(megatron_patch)
print(json.dumps([type(finder).__name__ for finder in sys.meta_path[:1]]))
"""
    assert run(code, variables)[:-1] == [APPLIED, DISABLED, APPLIED, DISABLED]
    assert run(code, variables)[-1] != ["PostImportFinder"]


def test_a_reload_that_raises_leaves_the_engine_as_it_was(variables):
    code = f"""
import megatron_patch, os
{IMPORT_ALL}
os.environ["MEGATRON_PATCH"] = "typo"
try:
    importlib.reload(megatron_patch)
except megatron_patch.SettingsError:
    show(megatron_patch)
os.environ["MEGATRON_PATCH"] = "none"
importlib.reload(megatron_patch)
show(megatron_patch)
"""
    assert run(code, variables) == [APPLIED, DISABLED]


@pytest.mark.parametrize("when", ["before", "after"])
def test_imported_anew_when_it_was_taken_out_of_the_modules(variables, when):
    code = f"""
import megatron_patch as first
{IMPORT_ALL if when == "before" else ""}
{PURGE}
import megatron_patch
from megatron_patch import engine, errors
assert megatron_patch is first
assert engine.Engine is type(first._engine)
assert errors.SettingsError is first.SettingsError
{IMPORT_ALL}
show(megatron_patch)
show(first)
first.uninstall()
show(megatron_patch)
"""
    assert run(code, variables) == [APPLIED, APPLIED, DISABLED]


@pytest.mark.parametrize("uninstalled", [False, True])
def test_imported_anew_when_what_was_imported_was_put_back(variables, uninstalled):
    code = f"""
from unittest import mock
{IMPORT_ALL}
with mock.patch.dict(sys.modules):
    import megatron_patch as first
    {"first.uninstall()" if uninstalled else ""}
import megatron_patch
assert (megatron_patch is first) != {uninstalled}
show(megatron_patch)
megatron_patch.uninstall()
show(megatron_patch)
"""
    assert run(code, variables) == [APPLIED, DISABLED]


@pytest.fixture
def vendored(variables, tmp_path):  # type: ignore[no-untyped-def]
    """A package that has a copy of this one in it, and our own on the path too."""
    (tmp_path / "vendor").mkdir()
    (tmp_path / "vendor" / "__init__.py").touch()
    source = Path(megatron_patch.__file__).parent
    shutil.copytree(source, tmp_path / "vendor" / "megatron_patch")
    return f"sys.path.insert(0, {str(tmp_path)!r})\n"


@pytest.mark.parametrize("first", ["megatron_patch", "vendor.megatron_patch"])
@pytest.mark.parametrize("when", ["before", "between", "after"])
def test_a_copy_under_another_name(variables, vendored, first, when):
    (second,) = {"megatron_patch", "vendor.megatron_patch"} - {first}
    order = [f"import {first}", f"import {second}"]
    order.insert(["before", "between", "after"].index(when), IMPORT_ALL)
    code = f"""
{vendored}
{"; ".join(order)}
show({first})
show({second})
from {second} import status, install
from {second}.errors import SettingsError
assert SettingsError is {first}.SettingsError is {second}.SettingsError
{second}.uninstall()
show({first})
install()
show({first})
"""
    assert run(code, variables) == [APPLIED, APPLIED, DISABLED, APPLIED]


def test_a_copy_that_could_not_be_imported_is_not_the_first(variables, vendored):
    code = f"""
{vendored}
import os
right, os.environ["MEGATRON_PATCH"] = os.environ["MEGATRON_PATCH"], "typo"
for name in ("megatron_patch", "vendor.megatron_patch", "megatron_patch"):
    try:
        importlib.import_module(name)
    except ValueError as error:
        print(json.dumps(type(error).__name__))
os.environ["MEGATRON_PATCH"] = right
import vendor.megatron_patch, megatron_patch
{IMPORT_ALL}
show(megatron_patch)
show(vendor.megatron_patch)
"""
    assert run(code, variables) == ["SettingsError"] * 3 + [APPLIED] * 2


def test_threads_import_two_copies_at_once(variables, vendored):
    code = f"""
{vendored}
import threading
sys.setswitchinterval(1e-5)
barrier = threading.Barrier(8)
names = ["megatron_patch", "vendor.megatron_patch"] * 4

def work(name):
    barrier.wait()
    importlib.import_module(name).status()

threads = [threading.Thread(target=work, args=[name]) for name in names]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
import megatron_patch, vendor.megatron_patch
assert megatron_patch._engine is vendor.megatron_patch._engine
{IMPORT_ALL}
show(megatron_patch)
show(vendor.megatron_patch)
"""
    for _ in range(2):
        assert run(code, variables) == [APPLIED] * 2
