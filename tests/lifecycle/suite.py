"""Every order of import, patch, re-patch and unpatch: one suite that each backport inherits.

Each test runs in a process of its own (:mod:`.fresh`), on the real Megatron that is installed. A
subclass says what its backport is, what becomes of it on which release, and how to see that it
works. Where the release has the fix, or no such target, the same tests assert that nothing is
touched; those that act on a target which is not there are skipped.
"""

from __future__ import annotations

import ast
import builtins
import functools
import importlib
import importlib.util
import inspect
import json
import logging
import multiprocessing
import os
import shutil
import subprocess
import sys
import threading
import types
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.machinery import PathFinder, SourceFileLoader
from pathlib import Path
from typing import Any, ClassVar
from unittest import mock

import pytest
import torch
from packaging.specifiers import SpecifierSet

from .. import processor_time
from .fresh import ROOT, InFreshProcess, environment

ABSENT = object()
RELEASE = os.environ["TESTED_MEGATRON_CORE"]  # from `tests/conftest.py`

Snapshot = dict[tuple[str, ...], object]

FOREIGN_FORMS = ("replacement", "closure", "wrapper")


class Lifecycle(InFreshProcess):
    """The cases. A subclass must define all that is declared here, and may replace no test."""

    timeout = 120  # a minute, and as much again for a machine that is busy

    patch_id: ClassVar[str]
    kind: ClassVar[str]

    targets: ClassVar[tuple[str, ...]]
    """What the patch replaces on each release that it applies to, as ``module:Class.method``."""

    states: ClassVar[Mapping[str, str]]
    """Once all targets are imported: the state, by a requirement that the release meets."""

    def thing(self) -> Any:
        """Something that Megatron's own code has built, to see the patch work on."""
        raise NotImplementedError

    def improved(self, thing: Any) -> bool:
        """Whether ``thing`` behaves as with the upstream change."""
        raise NotImplementedError

    expected: ClassVar[str]  # of `states`, on the installed release

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        own = set(vars(cls))
        missing = {"patch_id", "kind", "targets", "states", "thing", "improved"} - own
        if missing:
            raise TypeError(f"{cls.__name__} does not define {', '.join(sorted(missing))}")
        replaced = [name for name in own if name.startswith("test") and hasattr(Lifecycle, name)]
        if replaced:
            raise TypeError(f"{cls.__name__} replaces {', '.join(sorted(replaced))}")
        if not cls.targets:
            raise TypeError(f"{cls.__name__} names no targets")
        found = [state for spec, state in cls.states.items() if RELEASE in SpecifierSet(spec)]
        if len(found) != 1:
            raise TypeError(f"{cls.__name__}: states says {found} of {RELEASE}; expected one state")
        cls.expected = found[0]

    # What is there, and whose it is

    @classmethod
    def modules(cls) -> tuple[str, ...]:
        return tuple(dict.fromkeys(target.partition(":")[0] for target in cls.targets))

    @property
    def applies(self) -> bool:
        return self.expected == "applied"

    @property
    def fixed_upstream(self) -> bool:
        return self.expected == "upstreamed"

    @property
    def has_target(self) -> bool:
        return self.expected != "not_applicable"

    def import_targets(self) -> None:
        for name in self.modules():
            importlib.import_module(name)

    def place(self, target: str) -> tuple[Any, str]:
        """The class or module that holds a target, and the target's name there."""
        if not self.has_target:
            pytest.skip(f"megatron-core {RELEASE} has no {target}")
        module, _, qualname = target.partition(":")
        *scopes, name = qualname.split(".")
        owner: Any = sys.modules[module]
        for scope in scopes:
            owner = vars(owner)[scope]
        return owner, name

    def snapshot(self) -> Snapshot:
        """Everything in the namespaces of the targets' modules and of the classes in them."""
        if self.has_target:
            self.thing()  # the first one may stand in for hardware, which is no difference here
        owners: dict[str, Any] = {name: sys.modules[name] for name in self.modules()}
        for name, module in list(owners.items()):
            found = [c for c in vars(module).values() if getattr(c, "__module__", None) == name]
            owners.update({c.__qualname__: c for c in found if inspect.isclass(c)})
        found = {(label, n): v for label, owner in owners.items() for n, v in vars(owner).items()}
        functions = {key: value for key, value in found.items() if inspect.isfunction(value)}
        codes = {(*key, "code"): value.__code__ for key, value in functions.items()}
        return {**found, **codes}

    def touched(self) -> list[str]:
        """The targets whose code is not that of their modules' files."""
        found = []
        for target in self.targets if self.has_target else ():
            owner, name = self.place(target)
            value = vars(owner)[name]
            function = getattr(value, "fget", None) or getattr(value, "__func__", value)
            if inspect.unwrap(function).__code__ != code_in_file(*target.split(":")):
                found.append(target)
        return found

    def state_below(self, form: str) -> str:
        """The state with somebody else's patch in one of the forms that they come in.

        Code that has the change and that theirs calls still has it.
        """
        hidden = self.applies or (self.fixed_upstream and form == "replacement")
        return "shadowed" if hidden else self.expected

    def state(self) -> str:
        import megatron_patch

        (entry,) = (e for e in megatron_patch.status() if e.id == self.patch_id)
        assert entry.reason
        print(entry)  # seen when the case fails
        return entry.state.value

    # What must be true

    def assert_settled(self, *things: Any) -> None:
        """The state is the release's, and so is everything that can be seen of it."""
        # In this order: asking for the state must not be what applies the patch.
        same(self.touched(), list(self.targets) if self.applies else [])
        self.assert_improved(self.applies or self.fixed_upstream, *things)
        same(self.state(), self.expected)

    def assert_untouched(self, *things: Any) -> None:
        """Megatron is as it was released."""
        same(self.touched(), [])
        self.assert_improved(self.fixed_upstream, *things)

    def assert_improved(self, expected: bool, *things: Any) -> None:
        if self.has_target:
            for thing in (*things, self.thing()):
                same(self.improved(thing), expected)

    # How a case begins, in this process or in a new one

    def begin(self) -> None:
        # The other patches are off, so that only this one touches anything.
        os.environ.setdefault("MEGATRON_PATCH", self.patch_id)
        # A warning is a failure unless the test records it.
        warnings.filterwarnings("always", message=f"{self.patch_id} is ")
        warnings.showwarning = functools.partial(self.shown, warnings.showwarning)
        harness()

    def shown(self, show: Callable[..., None], message: object, *rest: Any) -> None:
        """What becomes of a warning. An ``Exception`` would not get through ours."""
        if str(message).startswith(f"{self.patch_id} is "):
            pytest.fail(str(message))
        show(message, *rest)

    def report(self, importing_us: bool = True) -> dict[str, object]:
        """What a process of its own sees: JSON, since its assertions might be optimised away."""
        self.begin()
        if importing_us:
            importlib.import_module("megatron_patch")
        self.import_targets()
        return {
            "touched": self.touched(),
            "improved": self.has_target and self.improved(self.thing()),
            "state": self.state() if "megatron_patch" in sys.modules else None,
        }

    @property
    def settled_report(self) -> dict[str, object]:
        return {
            "touched": list(self.targets) if self.applies else [],
            "improved": self.applies or self.fixed_upstream,
            "state": self.expected,
        }

    @property
    def untouched_report(self) -> dict[str, object]:
        return {"touched": [], "improved": self.fixed_upstream, "state": None}

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        if "parent" in metafunc.fixturenames:
            parts = self.targets[0].partition(":")[0].split(".")
            metafunc.parametrize("parent", [".".join(parts[:n]) for n in range(1, len(parts))])

    # Orders of import

    def test_imported_before_megatron(self):
        import megatron_patch  # noqa: F401

        same(self.state(), "pending")
        self.import_targets()
        self.assert_settled()

    def test_imported_after_megatron(self):
        self.import_targets()
        before = self.snapshot()
        import megatron_patch  # noqa: F401

        self.assert_settled()
        same(identical(before, self.snapshot()), not self.applies)

    def test_imported_between_a_parent_package_and_the_target(self, parent):
        importlib.import_module(parent)
        there = all(name in sys.modules for name in self.modules())
        import megatron_patch  # noqa: F401

        if not there:
            same(self.state(), "pending")
        self.import_targets()
        self.assert_settled()

    def test_imported_while_the_target_is_being_imported(self):
        main = self.modules()[0]
        seen = []
        original = builtins.__import__

        def importing(name, globals=None, *rest, **named):
            if not seen and globals is not None and globals.get("__name__") == main:
                seen.append(main in sys.modules)
                import megatron_patch  # noqa: F401

                seen.append(self.state())
            return original(name, globals, *rest, **named)

        builtins.__import__ = importing
        self.import_targets()
        builtins.__import__ = original
        same(seen, [True, "pending"])
        self.assert_settled()

    def test_imported_after_somebody_took_the_class_by_name(self):
        module, _, qualname = self.targets[0].partition(":")
        name = qualname.partition(".")[0]
        namespace: dict[str, Any] = {}
        if self.has_target:
            exec(f"from {module} import {name}", namespace)
        import megatron_patch  # noqa: F401

        self.import_targets()
        self.assert_settled()
        if self.has_target:
            assert namespace[name] is getattr(sys.modules[module], name)

    def test_imported_when_things_have_been_built_already(self):
        self.import_targets()
        things = [self.thing(), self.thing()] if self.has_target else []
        self.assert_improved(self.fixed_upstream, *things[1:])  # one of them has been used
        import megatron_patch  # noqa: F401

        self.assert_settled(*things)

    def test_megatron_imported_lazily_inside_a_function(self):
        import megatron_patch  # noqa: F401

        def launch():
            same(self.state(), "pending")
            self.import_targets()
            return [self.thing()] if self.has_target else []

        self.assert_settled(*launch())

    @pytest.mark.parametrize("attempt", range(3))
    def test_eight_threads_import_at_once(self, attempt):
        sys.setswitchinterval(1e-5)
        barrier = threading.Barrier(8)
        wrong: list[BaseException] = []

        def work(name: str) -> None:
            try:
                barrier.wait()
                importlib.import_module(name)
            except BaseException as error:
                wrong.append(error)

        names = ["megatron_patch", self.modules()[0]] * 4
        threads = [threading.Thread(target=work, args=[name]) for name in names]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        same(wrong, [])
        self.import_targets()
        self.assert_settled()

    # Install and uninstall

    def test_installed_twice(self):
        self.import_targets()
        import megatron_patch

        before = self.snapshot()
        megatron_patch.install()
        assert identical(before, self.snapshot())
        self.assert_settled()

    @pytest.mark.parametrize("times", [1, 2])
    def test_uninstall_puts_the_very_original_objects_back(self, times):
        self.import_targets()
        before = self.snapshot()
        import megatron_patch

        things = [self.thing()] if self.has_target else []
        for _ in range(times):
            megatron_patch.uninstall()
            assert identical(before, self.snapshot())
            same(self.state(), "disabled")
        self.assert_untouched(*things)

    def test_uninstalled_when_imported_before_megatron(self):
        import megatron_patch

        self.import_targets()
        megatron_patch.uninstall()
        same(self.state(), "disabled")
        self.assert_untouched()

    def test_uninstalled_before_megatron_is_imported(self):
        import megatron_patch

        megatron_patch.uninstall()
        self.import_targets()
        same(self.state(), "disabled")
        self.assert_untouched()

    def test_installed_again(self):
        import megatron_patch

        megatron_patch.uninstall()
        megatron_patch.install()
        self.import_targets()
        self.assert_settled()
        things = [self.thing()] if self.has_target else []
        for _ in range(2):
            megatron_patch.uninstall()
            self.assert_untouched(*things)
            megatron_patch.install()
            self.assert_settled(*things)

    def test_target_reloaded_before_us(self):
        self.import_targets()
        self.reload_targets()
        import megatron_patch  # noqa: F401

        self.assert_settled()

    def test_target_reloaded_after_us(self):
        import megatron_patch

        self.import_targets()
        for _ in range(2):
            self.reload_targets()
            self.assert_settled()
        megatron_patch.uninstall()
        same(self.state(), "disabled")
        self.assert_untouched()

    def test_target_reloaded_while_uninstalled(self):
        import megatron_patch

        self.import_targets()
        megatron_patch.uninstall()
        self.reload_targets()
        same(self.state(), "disabled")
        self.assert_untouched()
        megatron_patch.install()
        self.assert_settled()

    def reload_targets(self) -> None:
        for name in self.modules():
            importlib.reload(sys.modules[name])

    # Somebody else's patches

    @pytest.mark.parametrize("form", FOREIGN_FORMS)
    def test_somebody_elses_patch_from_before_is_reported_and_left_alone(self, form):
        self.import_targets()
        owner, name = self.place(self.targets[0])
        original = vars(owner)[name]
        setattr(owner, name, foreign(form, original))
        before = self.snapshot()
        with recorded(self.patch_id) as messages:
            import megatron_patch

            same(self.state(), self.state_below(form))
            assert identical(before, self.snapshot())
            megatron_patch.uninstall()
            assert identical(before, self.snapshot())
        same(len(messages), self.state_below(form) == "shadowed")
        setattr(owner, name, original)
        megatron_patch.install()
        self.assert_settled()

    @pytest.mark.parametrize("form", FOREIGN_FORMS)
    def test_somebody_elses_patch_on_top_is_reported_until_it_is_gone(self, form):
        self.import_targets()
        import megatron_patch  # noqa: F401

        owner, name = self.place(self.targets[0])
        ours = vars(owner)[name]
        theirs = foreign(form, ours)
        setattr(owner, name, theirs)
        with recorded(self.patch_id) as messages:
            same(self.state(), self.state_below(form))
        same(len(messages), self.state_below(form) == "shadowed")
        assert vars(owner)[name] is theirs
        setattr(owner, name, ours)
        self.assert_settled()

    @pytest.mark.parametrize("form", FOREIGN_FORMS)
    def test_somebody_elses_patch_on_top_is_not_undone_by_uninstall(self, form):
        self.import_targets()
        before = self.snapshot()
        import megatron_patch

        owner, name = self.place(self.targets[0])
        ours = vars(owner)[name]
        theirs = foreign(form, ours)
        setattr(owner, name, theirs)
        with_theirs = self.snapshot()
        with recorded(self.patch_id) as messages:
            megatron_patch.uninstall()
            assert identical(with_theirs, self.snapshot())
            same(self.state(), "shadowed" if self.applies else "disabled")
        same(len(messages), self.applies)
        setattr(owner, name, ours)
        same(self.state(), "applied" if self.applies else "disabled")
        self.assert_improved(self.applies or self.fixed_upstream)
        megatron_patch.uninstall()
        assert identical(before, self.snapshot())
        same(self.state(), "disabled")

    @pytest.mark.parametrize("when", ["before", "on top"])
    def test_strict_mode_refuses_somebody_elses_patch(self, when):
        os.environ["MEGATRON_PATCH_STRICT"] = "1"
        self.import_targets()
        if when == "on top":
            importlib.import_module("megatron_patch")
        owner, name = self.place(self.targets[0])
        setattr(owner, name, foreign("replacement", vars(owner)[name]))
        before = self.snapshot()

        def install():
            importlib.import_module("megatron_patch").install()

        if self.state_below("replacement") == "shadowed":
            message = raised("StrictModeError", install)
            assert self.patch_id in message, message
            assert self.targets[0] in message, message
        else:
            install()
        assert identical(before, self.snapshot())

    # Settings

    @pytest.mark.parametrize(
        ("text", "selected"),
        [
            ("", True),
            ("all", True),
            ("none", False),
            ("{id}", True),
            ("-{id}", False),
            ("{kind}", True),
            ("{other kind}", False),
            ("{kind},-{id}", False),
            ("none,{id}", True),
        ],
    )
    def test_selected_by_the_environment(self, text, selected):
        os.environ["MEGATRON_PATCH"] = self.selection(text)
        import megatron_patch  # noqa: F401

        same(self.state(), "pending" if selected else "disabled")
        self.import_targets()
        if selected:
            self.assert_settled()
        else:
            same(self.state(), "disabled")
            self.assert_untouched()

    def test_selection_read_again_at_each_install(self):
        self.import_targets()
        before = self.snapshot()
        import megatron_patch

        os.environ["MEGATRON_PATCH"] = "none"
        megatron_patch.install()
        same(self.state(), "disabled")
        assert identical(before, self.snapshot())
        self.assert_untouched()
        os.environ["MEGATRON_PATCH"] = self.patch_id
        megatron_patch.install()
        self.assert_settled()

    @pytest.mark.parametrize("text", ["nonsense", "-nonsense", "{id},nonsense", "{id}s"])
    def test_unknown_name_in_the_environment_is_an_error_at_import(self, text):
        os.environ["MEGATRON_PATCH"] = self.selection(text)
        message = raised("SettingsError", lambda: importlib.import_module("megatron_patch"))
        wrong = self.selection(text).rpartition(",")[2]
        for word in ("MEGATRON_PATCH", wrong, "all", "none", "performance", "correctness"):
            assert word in message, message
        assert self.patch_id in message.partition("expected")[2], message
        self.import_targets()
        self.assert_untouched()

    def selection(self, text: str) -> str:
        (other,) = {"performance", "correctness"} - {self.kind}
        names = {"{id}": self.patch_id, "{kind}": self.kind, "{other kind}": other}
        return functools.reduce(lambda t, name: t.replace(name, names[name]), names, text)

    # Source that is not known, strict mode, failure

    @pytest.mark.parametrize("first", ["megatron_patch", "megatron"])
    def test_strict_mode_has_nothing_to_say_of_known_source(self, first):
        os.environ["MEGATRON_PATCH_STRICT"] = "1"
        records: list[logging.LogRecord] = []
        handler = logging.Handler()
        handler.emit = records.append  # type: ignore[method-assign]
        logging.getLogger("megatron_patch").addHandler(handler)
        self.import_both(first)
        self.assert_settled()
        same([r for r in records if r.levelno >= logging.WARNING], [])

    @pytest.mark.parametrize("first", ["megatron_patch", "megatron"])
    def test_unknown_source_is_told_of_once_and_left_alone(self, first):
        self.change_source()
        with recorded(self.patch_id) as messages:
            self.import_both(first)
            before = self.snapshot()
            import megatron_patch

            for _ in range(2):
                same(self.state(), "drifted")
                megatron_patch.install()
        same(len(messages), 1)
        assert self.targets[0] in messages[0], messages
        assert identical(before, self.snapshot())
        self.assert_untouched()

    def test_strict_mode_refuses_unknown_source_that_is_imported(self):
        self.change_source()
        os.environ["MEGATRON_PATCH_STRICT"] = "1"
        self.import_targets()
        before = self.snapshot()
        message = raised("StrictModeError", lambda: importlib.import_module("megatron_patch"))
        assert self.patch_id in message, message
        assert self.targets[0] in message, message
        assert "megatron_patch" not in sys.modules
        assert not [f for f in sys.meta_path if type(f).__module__.startswith("megatron_patch")]
        assert identical(before, self.snapshot())
        self.assert_untouched()

    def test_strict_mode_refuses_unknown_source_when_it_is_imported(self):
        self.change_source()
        os.environ["MEGATRON_PATCH_STRICT"] = "1"
        import megatron_patch

        message = raised("StrictModeError", self.import_targets)
        assert self.patch_id in message, message
        assert self.targets[0] in message, message
        megatron_patch.uninstall()
        self.import_targets()
        same(self.state(), "disabled")
        self.assert_untouched()

    def import_both(self, first: str) -> None:
        if first == "megatron_patch":
            importlib.import_module("megatron_patch")
        self.import_targets()
        importlib.import_module("megatron_patch")

    def change_source(self) -> None:
        """Have the first target imported, from now on, with one more statement without effect."""
        if not self.has_target:
            pytest.skip(f"megatron-core {RELEASE} has no {self.targets[0]}")
        module, _, qualname = self.targets[0].partition(":")

        class Loader(SourceFileLoader):
            def path_stats(self, path):
                raise OSError("so that no bytecode is looked for")

            def get_data(self, path):
                return with_one_more_statement(super().get_data(path).decode(), qualname).encode()

        class Finder:
            @staticmethod
            def find_spec(fullname, path=None, target=None):
                spec = PathFinder.find_spec(fullname, path) if fullname == module else None
                if spec is not None:
                    assert spec.origin is not None
                    spec.loader = Loader(fullname, spec.origin)
                return spec

        assert module not in sys.modules
        sys.meta_path.insert(0, Finder)  # type: ignore[arg-type]

    def test_failure_at_any_change_takes_the_others_back(self):
        self.import_targets()
        before = self.snapshot()
        owner, _ = self.place(self.targets[0])
        made = 0
        failing = 0

        class Failing(type(owner)):  # type: ignore[misc]
            def __setattr__(self, name, value):
                nonlocal made
                made += 1
                if made == failing:
                    raise RuntimeError(f"cannot set {name}")
                super().__setattr__(name, value)

        owner.__class__ = Failing
        import megatron_patch

        self.assert_settled()
        count = made
        assert (count >= len(self.targets)) if self.applies else (count == 0)
        for failing in range(1, count + 1):
            megatron_patch.uninstall()
            made = 0
            with recorded(self.patch_id) as messages:
                megatron_patch.install()
                same(self.state(), "failed")
            assert identical(before, self.snapshot())
            same(len(messages), 1 if failing == 1 else 0)  # it warns once
            (entry,) = (e for e in megatron_patch.status() if e.id == self.patch_id)
            assert "cannot set" in entry.reason, entry
            assert not messages or "cannot set" in messages[0], messages
        failing = 0
        megatron_patch.uninstall()
        megatron_patch.install()
        self.assert_settled()

    # Other processes, other ways to start

    @pytest.mark.parametrize("when", ["pending", "settled"])
    def test_forked_child_of_a_process_that_imports_us(self, when):
        import megatron_patch  # noqa: F401

        if when == "settled":
            self.import_targets()
        same(self.state(), "pending" if when == "pending" else self.expected)
        with multiprocessing.get_context("fork").Pool(1) as pool:
            same(pool.apply(self.report, [False]), self.settled_report)

    def test_spawned_child_of_a_main_module_that_imports_us(self, tmp_path):
        script = tmp_path / "launch.py"
        script.write_text(SPAWNING.format(imports="import megatron_patch", case=type(self)))
        reports = run_as_main(script)
        same(reports, [self.settled_report] * 2)
        import megatron_patch  # noqa: F401

        self.import_targets()
        self.assert_settled()

    def test_spawned_child_that_does_not_import_us(self, tmp_path):
        import megatron_patch  # noqa: F401

        self.import_targets()
        self.assert_settled()
        script = tmp_path / "launch.py"
        script.write_text(SPAWNING.format(imports="", case=type(self)))
        # Unpatched until its own code imports us, and honest from then on.
        same(run_as_main(script), [self.untouched_report, self.settled_report])

    def test_ranks_started_with_torchrun(self, tmp_path):
        script, result = tmp_path / "rank.py", tmp_path / "reports.json"
        script.write_text(RANK.format(case=type(self)))
        launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
        run_python(*launch, str(script), str(result), GLOO_SOCKET_IFNAME="lo")
        same(json.loads(result.read_text()), [self.settled_report] * 2)

    def test_optimised_interpreter(self):
        code = (
            "import json\n"
            "from {case.__module__} import {case.__qualname__} as Case\n"
            "assert False, 'python -O removes this'\n"
            "print(json.dumps(Case().report()))"
        )
        output = run_python("-O", "-c", code.format(case=type(self)))
        same(json.loads(output.splitlines()[-1]), self.settled_report)

    def test_imported_from_a_zip_file(self, tmp_path):
        spec = importlib.util.find_spec("megatron_patch")
        package = Path(spec.origin).parent
        archive = shutil.make_archive(
            str(tmp_path / "archive"), "zip", package.parent, package.name
        )
        sys.path.insert(0, archive)
        import megatron_patch  # noqa: F401

        loaded = [m for n, m in sys.modules.items() if n.partition(".")[0] == "megatron_patch"]
        assert all(m.__file__.startswith(archive + os.sep) for m in loaded), loaded
        self.import_targets()
        self.assert_settled()

    def test_importing_us_imports_neither_torch_nor_megatron_and_is_quick(self, tmp_path):
        listing = (
            "import sys; before = set(sys.modules); "
            "import megatron_patch; print(*set(sys.modules) - before)"
        )
        settings = {"PYTHONPYCACHEPREFIX": str(tmp_path), "PYTHONDONTWRITEBYTECODE": ""}
        modules = run_python("-c", listing, **settings).split()
        assert "megatron_patch" in modules
        found = {name.partition(".")[0] for name in modules}
        same(found & {"torch", "megatron", "numpy"}, set())
        same(found & {"ast", "dataclasses", "inspect"}, set())  # half of the time there is

        def seconds(code: str) -> float:
            before = processor_time.of_children()
            run_python("-c", code, **settings)
            return processor_time.of_children() - before

        # Seconds say little on an unknown machine: asyncio, which servers import, is the measure.
        with_us = with_asyncio = float("inf")
        for _ in range(30):
            with_us = min(with_us, seconds("import megatron_patch"))
            with_asyncio = min(with_asyncio, seconds("import asyncio"))
            if with_us < with_asyncio:
                return
        raise AssertionError(f"{with_us:.3f} s, an interpreter with asyncio {with_asyncio:.3f} s")


SPAWNING = """
import multiprocessing
{imports}
from {case.__module__} import {case.__qualname__} as Case

if __name__ == "__main__":
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        reports = [pool.apply(Case().report, [importing_us]) for importing_us in (False, True)]
"""

RANK = """
import json, sys
from pathlib import Path
from torch import distributed
from {case.__module__} import {case.__qualname__} as Case

distributed.init_process_group("gloo")
reports = [None] * distributed.get_world_size()
distributed.all_gather_object(reports, Case().report())
if distributed.get_rank() == 0:
    Path(sys.argv[1]).write_text(json.dumps(reports))
distributed.destroy_process_group()
"""


def same(actual: object, expected: object) -> None:
    """Assert, and say what was found: pytest does not rewrite assertions in other processes."""
    assert actual == expected, f"{actual!r}, expected {expected!r}"


def identical(one: Snapshot, other: Snapshot) -> bool:
    """Whether two snapshots hold the very same objects; prints what differs."""
    names = one.keys() | other.keys()
    different = [n for n in names if one.get(n, ABSENT) is not other.get(n, ABSENT)]
    print("different:", different)
    return not different


def raised(name: str, function: Callable[[], object]) -> str:
    """The message of what ``function`` raises; the class, by its name, need not exist yet."""
    with pytest.raises(Exception) as caught:  # noqa: PT011
        function()
    same(caught.type.__name__, name)
    return str(caught.value)


@contextmanager
def recorded(patch_id: str) -> Iterator[list[str]]:
    """Messages of the warnings of one patch, filled at the end; they are no errors here.

    As where nobody has set up logging, which Megatron does: what a handler writes to stderr is no
    warning besides.
    """
    messages: list[str] = []
    with (
        warnings.catch_warnings(record=True) as caught,
        mock.patch.object(logging.Logger, "hasHandlers", return_value=False),
    ):
        warnings.simplefilter("always")
        yield messages
    ours = [w for w in caught if w.category.__name__ == "MegatronPatchWarning"]
    messages.extend(m for m in (str(w.message) for w in ours) if m.startswith(patch_id))


def foreign(form: str, original: Any) -> Any:
    """Somebody else's patch of ``original``, in one of the forms that they come in."""
    if form == "replacement":
        return lambda self, *args, **kwargs: None

    def theirs(*args, **kwargs):
        return original(*args, **kwargs)

    return functools.wraps(original)(theirs) if form == "wrapper" else theirs


@functools.cache
def _code_of_file(name: str) -> types.CodeType:
    path = Path(str(sys.modules[name].__file__))
    return compile(path.read_text(), str(path), "exec", dont_inherit=True)


def code_in_file(module: str, qualname: str) -> types.CodeType:
    """The code that a function has when it is compiled from its module's file."""
    code = _code_of_file(module)
    for name in qualname.split("."):
        (code,) = (c for c in code.co_consts if isinstance(c, types.CodeType) and c.co_name == name)
    return code


def with_one_more_statement(text: str, qualname: str) -> str:
    """The source of a module with a ``pass`` at the end of one function."""
    body: list[ast.stmt] = ast.parse(text).body
    for name in qualname.split("."):
        (node,) = (n for n in body if getattr(n, "name", None) == name)
        body = node.body  # type: ignore[attr-defined]
    lines = text.splitlines(keepends=True)
    lines.insert(body[-1].end_lineno or 0, " " * body[-1].col_offset + "pass\n")
    return "".join(lines)


def run_python(*arguments: str, **settings: str) -> str:
    """The output of a new interpreter, which must succeed."""
    done = subprocess.run(
        [sys.executable, *arguments],
        env={**environment(), **settings},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"exit status {done.returncode}: {done.stdout}"
    return done.stdout


def run_as_main(script: Path) -> list[dict[str, object]]:
    """Run a script as the main module of this process, which saves an import of torch."""
    main = types.ModuleType("__main__")
    main.__file__ = str(script)
    sys.modules["__main__"] = main
    exec(compile(script.read_text(), script, "exec"), vars(main))
    reports: list[dict[str, object]] = main.reports
    return reports


HARNESS = "megatron_patch_testing"


def harness() -> types.ModuleType:
    """``megatron_patch.testing`` under a name of its own: importing it must not install us.

    Call it before Megatron is imported, for Megatron to find a flash-attn.
    """
    if HARNESS not in sys.modules:
        directory = ROOT / "megatron_patch" / "testing"
        spec = importlib.util.spec_from_file_location(
            HARNESS, directory / "__init__.py", submodule_search_locations=[str(directory)]
        )
        assert spec is not None
        assert spec.loader is not None
        module = sys.modules[HARNESS] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        if not (importlib.util.find_spec("flash_attn") and torch.cuda.is_available()):
            stand_in = importlib.import_module(f"{HARNESS}.flash_attn_module")
            stand_in.installed().__enter__()
    return sys.modules[HARNESS]
