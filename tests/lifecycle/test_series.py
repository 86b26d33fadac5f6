"""Every patch of the series alone, installed and uninstalled; and all of them, in both orders."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
import types
from collections.abc import Iterator
from typing import Any

import pytest
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from .fresh import InFreshProcess
from .suite import Snapshot, harness, identical, same

MODELS = {
    "gpt": ("megatron.core.models.gpt.gpt_layer_specs", "megatron.core.models.gpt.gpt_model"),
    "hybrid": (
        "megatron.core.models.mamba.mamba_layer_specs",
        "megatron.core.models.mamba.mamba_model",
    ),
}
RELEASE = Version(os.environ["TESTED_MEGATRON_CORE"])  # from `tests/conftest.py`


class TestSeries(InFreshProcess):
    timeout = 240

    @classmethod
    def modules(cls) -> tuple[str, ...]:
        """All with targets, but those of Mamba layers, which may need a stand-in for Triton."""
        from megatron_patch.model import MAMBA
        from megatron_patch.sources import find_module_spec

        there = (name for name in target_modules() if not name.startswith(MAMBA))
        return tuple(name for name in there if find_module_spec(name) is not None)

    def begin(self) -> None:
        os.environ["MEGATRON_PATCH"] = "none"
        harness()

    def test_each_patch_alone_is_put_in_and_taken_out_again(self):
        import megatron_patch
        from megatron_patch.backports import SERIES

        self.import_targets()
        before = self.snapshot()
        for patch in SERIES:
            os.environ["MEGATRON_PATCH"] = patch.id
            megatron_patch.install()
            states = {entry.id: entry.state.value for entry in megatron_patch.status()}
            same(states.pop(patch.id), expected(patch))
            same(set(states.values()), {"disabled"})
            touched = not identical(before, self.snapshot())
            assert touched is (expected(patch) == "applied"), patch.id
            megatron_patch.uninstall()
            assert identical(before, self.snapshot()), patch.id

    def test_all_patches_after_megatron(self):
        self.import_targets()
        before = self.snapshot()
        megatron_patch = self.all_patches()
        self.assert_settled()
        megatron_patch.uninstall()
        assert identical(before, self.snapshot())

    def test_all_patches_before_megatron(self):
        megatron_patch = self.all_patches()
        same({entry.state.value for entry in megatron_patch.status()}, {"pending"})
        self.import_targets()
        self.assert_settled()
        megatron_patch.uninstall()
        same({entry.state.value for entry in megatron_patch.status()}, {"disabled"})

    @pytest.mark.parametrize("model", ["gpt", "hybrid"])
    def test_all_that_each_process_with_a_model_imports_is_settled(self, model):
        """Others hold up neither the summary nor ``verify_ranks()``."""
        from ..mamba import import_mamba

        megatron_patch = self.all_patches()
        importlib.import_module("megatron.core.inference.engines.dynamic_engine")
        for name in MODELS[model]:
            import_mamba(name)
        cases = megatron_patch._engine.cases.values()
        waiting = {c.patch.id for c in cases if c.state.value == "pending"}
        assert waiting <= {c.patch.id for c in cases if c.patch.may_stay_pending}

    def test_what_runs_is_what_the_edits_make_of_the_text(self):
        """Code that runs comes of edited trees, files of edited text."""
        from megatron_patch import plan, rewrite
        from megatron_patch.fingerprint import equal
        from megatron_patch.line_numbers import File
        from megatron_patch.places import CodeChange
        from megatron_patch.sources import read_source
        from megatron_patch.verdicts import find_definition

        self.import_targets()
        cases = self.all_patches()._engine.cases.values()
        changes = [c for case in cases for c in case.changes if isinstance(c, CodeChange)]
        assert len(changes) > 5
        texts: dict[str, Any] = {}
        for change in changes:
            target = str(change.target)
            released = find_definition(target, read_source)
            assert released is not None
            texts[target] = rewrite.edited(texts.get(target, released), *change.chain[-1][1])
            file = File("", read_source(change.target.module) or "")
            tree = plan.edited_tree(released, change.chain, file)
            assert equal(tree, texts[target].node), target

    def all_patches(self) -> Any:
        """Those that are off by default too."""
        import megatron_patch
        from megatron_patch.backports import SERIES

        os.environ["MEGATRON_PATCH"] = ",".join(patch.id for patch in SERIES)
        megatron_patch.install()
        return megatron_patch

    def assert_settled(self) -> None:
        import megatron_patch
        from megatron_patch.backports import SERIES

        states = {entry.id: entry.state.value for entry in megatron_patch.status()}
        same(states, {patch.id: expected(patch) for patch in SERIES})

    def import_targets(self) -> None:
        from megatron_patch.sources import find_module_spec

        from ..mamba import import_all

        import_all(name for name in target_modules() if find_module_spec(name) is not None)

    def snapshot(self) -> Snapshot:
        """All in the modules that patches change, in their classes, and the code of functions."""
        found: Snapshot = {}
        for name in filter(sys.modules.__contains__, target_modules()):
            module = sys.modules[name]
            classes = [c for c in vars(module).values() if getattr(c, "__module__", None) == name]
            for owner in (module, *filter(inspect.isclass, classes)):
                label = getattr(owner, "__qualname__", "")
                found.update({(name, label, key): item for key, item in vars(owner).items()})
        codes = {
            (*key, str(depth)): code
            for key, item in found.items()
            for depth, code in enumerate(codes_below(item))
        }
        return {**found, **codes}


def codes_below(item: Any) -> Iterator[types.CodeType]:
    """The code of a function, and of those that decorators have put it around."""
    # By type(): a proxy, such as the request of flask and quart, claims another class.
    if type(item) is property:
        item = item.fget
    elif type(item) in (classmethod, staticmethod):
        item = item.__func__
    while type(item) is types.FunctionType:
        yield item.__code__
        item = vars(item).get("__wrapped__")


def target_modules() -> list[str]:
    from megatron_patch.backports import SERIES
    from megatron_patch.engine import modules_of

    return sorted({name for patch in SERIES for name in modules_of(patch)})


def expected(patch: Any) -> str:
    """The state of a selected patch on this release, as its record says."""
    from megatron_patch.edits import Target
    from megatron_patch.sources import find_module_spec

    module = Target.parse(patch.target).module
    if find_module_spec(module) is None:
        # What it is of is a part that this release has not, be it all of a package: that is known
        # once the package around has been imported.
        package = module.rpartition(".")[0]
        while find_module_spec(package) is None:
            package = package.rpartition(".")[0]
        return "not_applicable" if package in sys.modules else "pending"
    if RELEASE in SpecifierSet(patch.releases):
        return "applied"
    is_fixed = patch.fixed_in is not None and Version(patch.fixed_in) <= RELEASE
    return "upstreamed" if is_fixed else "not_applicable"
