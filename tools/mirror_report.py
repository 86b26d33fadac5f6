"""What has become of upstream's tests of the code that we patch: do we still mirror them?

    python tools/mirror_report.py --megatron ~/src/Megatron-LM

Lists each test of a Megatron-LM checkout that touches a target of the series, whether
`tests/upstream` mirrors it, and whether upstream has changed it since. Everything is read as
syntax trees: nothing of Megatron or of the mirror is imported or executed.

A test *touches* a target when its code names the last part of the target (`reset` of
`module:Class.reset`) as an attribute, a variable, a keyword argument or a whole string. Its code is
its own body and what the body names of the same module, and so on: functions, fixtures, methods
of its class and of the bases of that, and `setup_method`, `setup_class` and autouse fixtures, which
run unnamed. The digest is that of the test alone.

Two kinds of names would make nearly every test count, and say nothing about what it is for. They
are left out: dunder names, because every test makes a context, and helpers that we add, because
upstream does not have them. Helpers of other modules are not followed either.

Tests that are mirrored for another reason are listed too, so that their changes are not missed.
"""

from __future__ import annotations

import argparse
import ast
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

from megatron_patch.backports import SERIES  # noqa: E402
from megatron_patch.definitions import locate  # noqa: E402
from megatron_patch.edits import Add, Target  # noqa: E402
from megatron_patch.errors import TargetError  # noqa: E402
from megatron_patch.fingerprint import digest  # noqa: E402
from megatron_patch.ledger import sources_of  # noqa: E402
from megatron_patch.model import HAS_IT, Patch  # noqa: E402

TESTS = Path("tests/unit_tests")
SEARCHED = TESTS / "inference"
MIRROR = REPOSITORY / "tests" / "upstream"
# Run for each test of their class or module without being named by it.
UNNAMED = frozenset({"setup_method", "setup_class", "setUp", "setUpClass", "setup_module"})
FunctionNode = (ast.FunctionDef, ast.AsyncFunctionDef)


class ReportError(Exception):
    """The checkout or the mirror cannot be read; the message says what was expected."""


@dataclass(frozen=True)
class Mark:
    """A `@mirrors(path, test, digest=...)` in our mirror, and where it is."""

    path: str
    test: str
    digest: str
    where: str


@dataclass(frozen=True)
class Row:
    """One upstream test. `state` is `mirrored`, `changed`, `unmirrored` or `gone`."""

    path: str
    test: str
    state: str
    digest: str | None
    mirrored_digest: str | None
    mirrored_by: str | None
    touches: tuple[str, ...]


@dataclass
class Module:
    """One test file: its functions and the names of its classes' bases, by qualified name."""

    functions: dict[str, ast.FunctionDef | ast.AsyncFunctionDef] = field(default_factory=dict)
    bases: dict[str, list[str]] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> Module:
        module = cls()
        module._collect(ast.parse(text).body, "")
        return module

    def _collect(self, body: Sequence[ast.stmt], scope: str) -> None:
        for node in body:
            if isinstance(node, ast.ClassDef):
                self.bases[scope + node.name] = [
                    b.id for b in node.bases if isinstance(b, ast.Name)
                ]
                self._collect(node.body, f"{scope}{node.name}.")
            elif isinstance(node, FunctionNode):
                self.functions[scope + node.name] = node

    def tests(self) -> Iterator[str]:
        """Qualified names of the tests, in the order of the file."""
        return (name for name in self.functions if name.rpartition(".")[2].startswith("test_"))

    def touched(self, test: str, targets: frozenset[str]) -> tuple[str, ...]:
        """The targets that `test` names, itself or through what it names, sorted."""
        scopes = ["", *self._classes(test.rpartition(".")[0])]
        names: set[str] = set()
        seen: set[str] = set()
        waiting = [test, *self._unnamed(scopes)]
        while waiting:
            function = waiting.pop()
            if function not in seen:
                seen.add(function)
                found = _names(self.functions[function])
                names |= found
                inside = {
                    f"{scope}.{name}" if scope else name for scope in scopes for name in found
                }
                waiting += inside & self.functions.keys()
        return tuple(sorted(names & targets))

    def _classes(self, name: str) -> Iterator[str]:
        """The class and its bases in this module."""
        if name in self.bases:
            yield name
            for base in self.bases[name]:
                yield from self._classes(base)

    def _unnamed(self, scopes: Sequence[str]) -> Iterator[str]:
        for name, node in self.functions.items():
            scope, _, last = name.rpartition(".")
            if scope in scopes and (last in UNNAMED or any(map(_is_autouse, node.decorator_list))):
                yield name


def _is_autouse(decorator: ast.expr) -> bool:
    return isinstance(decorator, ast.Call) and any(k.arg == "autouse" for k in decorator.keywords)


def _names(function: ast.AST) -> set[str]:
    """All that a function names: in its body, its arguments and its decorators."""
    names = set()
    for node in ast.walk(function):
        if isinstance(node, ast.Attribute):
            names.add(node.attr)
        elif isinstance(node, ast.Name):
            names.add(node.id)
        elif isinstance(node, (ast.keyword, ast.arg)) and node.arg is not None:
            names.add(node.arg)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            names.add(node.value)
    return names


def target_names(series: Sequence[Patch]) -> frozenset[str]:
    """Last parts of the targets that the series edits, or that have its changes upstream."""
    dotted: set[str] = set()
    for patch in series:
        for source in sources_of(patch):
            dotted |= {target for target, _ in source.digests if source.proved == HAS_IT}
        for variant in patch.variants:
            dotted |= {edit.target for edit in variant.edits if not isinstance(edit, Add)}
    names = {Target.parse(target).name for target in dotted}
    return frozenset(name for name in names if not name.startswith("__"))


def read_marks(mirror: Path) -> list[Mark]:
    """The marks of the mirror, in the order of paths and lines."""
    marks = []
    for path in sorted(mirror.rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, FunctionNode):
                where = f"{path.relative_to(mirror).as_posix()}:{node.lineno}"
                marks += [_mark(d, where) for d in node.decorator_list if _is_mark(d)]
    return marks


def _is_mark(decorator: ast.expr) -> bool:
    if not isinstance(decorator, ast.Call):
        return False
    name = decorator.func
    return isinstance(name, ast.Name) and name.id == "mirrors"


def _mark(decorator: ast.expr, where: str) -> Mark:
    assert isinstance(decorator, ast.Call)
    try:
        path, test = map(ast.literal_eval, decorator.args)
        (value,) = (ast.literal_eval(k.value) for k in decorator.keywords if k.arg == "digest")
    except ValueError as error:
        raise ReportError(
            f"{where}: expected @mirrors('path', 'test', digest='...') with literals: {error}"
        ) from error
    return Mark(str(path), str(test), str(value), where)


def report(checkout: Path, mirror: Path, series: Sequence[Patch]) -> list[Row]:
    """One row for each upstream test that touches a target of `series`, or is mirrored.

    Raises `ReportError` when `checkout` has no tests, or when something does not parse.
    """
    searched = checkout / SEARCHED
    if not searched.is_dir():
        raise ReportError(
            f"{checkout} is not a Megatron-LM checkout with tests: expected the directory "
            f"{SEARCHED}/ there. An installed wheel has no tests; clone "
            "https://github.com/NVIDIA/Megatron-LM and check out the revision to compare with."
        )
    targets = target_names(series)
    marks = {(mark.path, mark.test): mark for mark in read_marks(mirror)}
    watched = {file_of(checkout, path) for path, _ in marks}
    rows = []
    for path in sorted({*searched.rglob("*.py"), *filter(Path.is_file, watched)}):
        text = path.read_text(encoding="utf-8")
        name = path.relative_to(checkout / TESTS).as_posix().removeprefix("inference/")
        try:
            module = Module.parse(text)
        except SyntaxError as error:
            raise ReportError(f"{path} does not parse: {error}") from error
        for test in module.tests():
            mark = marks.pop((name, test), None)
            touches = module.touched(test, targets)
            if touches or mark:
                rows.append(_row(name, test, text, touches, mark))
    rows += [
        Row(mark.path, mark.test, "gone", None, mark.digest, mark.where, ())
        for mark in marks.values()
    ]
    return sorted(rows, key=lambda row: (row.path, row.test))


def file_of(checkout: Path, path: str) -> Path:
    """Upstream's file that the path of a mark names."""
    inference = checkout / SEARCHED / path
    return inference if inference.is_file() else checkout / TESTS / path


def _row(path: str, test: str, text: str, touches: tuple[str, ...], mark: Mark | None) -> Row:
    definition = locate(path, text, test)
    assert definition is not None
    found = digest(definition.node)
    if mark is None:
        return Row(path, test, "unmirrored", found, None, None, touches)
    state = "mirrored" if mark.digest == found else "changed"
    return Row(path, test, state, found, mark.digest, mark.where, touches)


def as_text(rows: Sequence[Row]) -> str:
    """An aligned table, and a line that sums it up."""
    table = [("state", "test", "mirrored by", "touches")]
    for row in rows:
        changed = f" (was {row.mirrored_digest}, is {row.digest})"
        table.append(
            (
                row.state,
                f"{row.path}::{row.test.replace('.', '::')}",
                (row.mirrored_by or "-") + (changed if row.state == "changed" else ""),
                ", ".join(row.touches) or "-",
            )
        )
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in table]
    counts = summary(rows)
    total = ", ".join(f"{count} {state}" for state, count in counts.items())
    return "\n".join([*lines, "", f"{len(rows)} upstream tests: {total}"])


def summary(rows: Sequence[Row]) -> dict[str, int]:
    """How many rows there are in each state."""
    states = [row.state for row in rows]
    return {state: states.count(state) for state in ("mirrored", "changed", "unmirrored", "gone")}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the tool; returns the exit status."""
    parser = argparse.ArgumentParser(
        description="Compare tests/upstream with the tests of a Megatron-LM checkout.",
        epilog="example: git clone --depth 1 https://github.com/NVIDIA/Megatron-LM && "
        "python tools/mirror_report.py --megatron Megatron-LM. Exit status: 0 when every test is "
        "mirrored and unchanged, 1 when one is changed, unmirrored or gone, 2 when DIR is no "
        "checkout with tests.",
    )
    parser.add_argument(
        "--megatron", metavar="DIR", type=Path, required=True, help="a checkout of Megatron-LM"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(arguments)
    try:
        rows = report(options.megatron, MIRROR, SERIES)
    except (ReportError, TargetError) as error:
        print(f"mirror_report: {error}", file=sys.stderr)
        return 2
    if options.json:
        print(json.dumps({"summary": summary(rows), "tests": list(map(asdict, rows))}, indent=2))
    else:
        print(as_text(rows))
    return int(any(row.state != "mirrored" for row in rows))


if __name__ == "__main__":
    sys.exit(main())
