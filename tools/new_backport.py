"""Start a new backport: write the stubs of its files, and say which source its target has.

    python tools/new_backport.py kv-block-ref-counts \\
        megatron.core.inference.contexts.kv_block_allocator:KVBlockAllocator.release_memory_blocks
    python tools/new_backport.py my-change package.module:Class.method --ours --megatron ~/fork

Writes the record, its hunks beside it, its test module, for a change of ours the report for
upstream, and puts the record at the end of the series. What has to be filled in says `TODO`, and
the contract test fails until it is. All of it is written, or nothing.

Then it prints the digests of TARGET, one a line, and where each was found. Each may need a variant
of its own; often fewer variants will do. It looks at the trees of `--megatron`; without that, at
what the ledger of the package has of TARGET, or else at the installed Megatron-Core.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

from megatron_patch.backports import SERIES  # noqa: E402
from megatron_patch.edits import Target  # noqa: E402
from megatron_patch.errors import (  # noqa: E402
    LedgerError,
    NotMegatronError,
    SourceMissingError,
    TargetError,
)
from megatron_patch.source_tree import SourceTree  # noqa: E402
from megatron_patch.sources import megatron_version  # noqa: E402
from megatron_patch.verdicts import find_definition  # noqa: E402
from tools.history import ledger_file  # noqa: E402
from tools.starting import series  # noqa: E402
from tools.starting.stubs import Stub  # noqa: E402

KEBAB_CASE = re.compile("[a-z][a-z0-9]*(-[a-z0-9]+)+")
SOURCES = Path("megatron_patch", "ledger", "sources.json")
SERIES_FILE = Path("megatron_patch", "backports", "__init__.py")


class StartError(Exception):
    """The backport cannot be started. Nothing was written."""


def check_id(id: str) -> None:
    """Raises ``StartError`` when the id has another form than ours, or is taken."""
    if not KEBAB_CASE.fullmatch(id):
        raise StartError(f"{id!r} is no id: expected two or more words such as `kv-block-counts`")
    if id in {patch.id for patch in SERIES}:
        raise StartError(f"{id} is a backport already: `megatron-patch show {id}`")


def digests_in(trees: Iterable[SourceTree], target: Target) -> dict[str, list[str]]:
    """Digest -> the trees that have it, by version and folder. Raises ``StartError``."""
    found: dict[str, list[str]] = {}
    for tree in trees:
        try:
            definition = find_definition(str(target), tree.read)
        except (SyntaxError, TargetError, SourceMissingError) as error:
            raise StartError(f"{tree.root}: {error}") from error
        version = megatron_version(tree.read) or "of unknown version"
        digest = "none" if definition is None else definition.digest
        found.setdefault(digest, []).append(f"{version} in {tree.root}")
    return found


def surveyed(root: Path, target: Target) -> dict[str, list[str]]:
    """Digest -> the releases, or else the branches, that have it; empty if it is not surveyed."""
    ledger = ledger_file.load(root / SOURCES)
    return {
        digest: list(span.get("releases") or span)
        for digest, span in ledger.targets.get(str(target), {}).items()
    }


def look(root: Path, target: Target, trees: Sequence[Path]) -> dict[str, list[str]]:
    """Digest -> where it is found. Raises ``StartError`` when TARGET is nowhere."""
    found = {} if trees else surveyed(root, target)
    if not found:
        try:
            found = digests_in(
                map(SourceTree.at, trees) if trees else [SourceTree.installed()], target
            )
        except NotMegatronError as error:
            raise StartError(str(error)) from error
    if found.keys() <= {"none"}:
        where = ", ".join(place for places in found.values() for place in places)
        raise StartError(f"{target} is in none of: {where}")
    return found


def first_variant(found: Mapping[str, Sequence[str]]) -> str:
    """Major and minor of the oldest version that has the target; `TODO` where there is none."""
    versions = (re.match(r"(\d+)\.(\d+)", p) for d in found if d != "none" for p in found[d])
    numbers = [(int(v[1]), int(v[2])) for v in versions if v]
    return "{}.{}".format(*min(numbers)) if numbers else "TODO"


def write(root: Path, stub: Stub) -> list[Path]:
    """Write all files, or none; returns their paths. Raises ``StartError``."""
    files = {root / path: text for path, text in stub.files().items()}
    for path in files:
        if path.exists():
            raise StartError(f"{path} exists: remove it, or choose another id")
    index = root / SERIES_FILE
    try:
        before = index.read_text(encoding="utf-8")
        after = series.with_record(before, stub.folder, stub.name, stub.constant)
    except (OSError, ValueError) as error:
        raise StartError(f"{index}: {error}") from error
    written: list[Path] = []
    try:
        for path, text in files.items():
            ledger_file.replace(path, text)
            written.append(path)
        ledger_file.replace(index, after)
    except BaseException as error:
        for path in written:
            path.unlink()
        if isinstance(error, LedgerError):
            raise StartError(str(error)) from error
        raise
    return [*written, index]


def start(root: Path, options: argparse.Namespace) -> str:
    """Start the backport in the repository ``root``; returns what to print.

    Raises ``StartError``.
    """
    check_id(options.id)
    try:
        target = Target.parse(options.target)
        found = look(root, target, options.megatron)
    except (ValueError, LedgerError) as error:
        raise StartError(str(error)) from error
    today = date.today().isoformat()
    stub = Stub(options.id, target, options.ours, first_variant(found), today)
    written = [path.relative_to(root).as_posix() for path in write(root, stub)]
    digests = [f"{digest}  {', '.join(places)}" for digest, places in found.items()]
    return "\n".join(["wrote", *(f"    {path}" for path in written), str(target), *digests])


def main(arguments: Sequence[str] | None = None, root: Path = REPOSITORY) -> int:
    """Start a backport; returns the exit status."""
    parser = argparse.ArgumentParser(
        description="Write the stubs of a new backport, and say which source its target has.",
        epilog="exit status: 0; 2 when the backport cannot be started, and then nothing is written",
    )
    parser.add_argument("id", metavar="ID", help="kebab-case, such as kv-block-ref-counts")
    parser.add_argument("target", metavar="TARGET", help="package.module:Class.method")
    parser.add_argument("--ours", action="store_true", help="upstream has no such change")
    parser.add_argument(
        "--megatron",
        metavar="DIR",
        type=Path,
        nargs="+",
        default=[],
        help="trees to look at; default: the ledger, or else the installed Megatron-Core",
    )
    try:
        print(start(root, parser.parse_args(arguments)))
    except StartError as error:
        print(f"new_backport: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
