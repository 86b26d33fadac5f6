"""The file that a ledger is in: one digest a line, so that its diffs can be read."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from megatron_patch.errors import LedgerError
from megatron_patch.ledger import FORMAT

from .commits import natural
from .ledger import Entries, Ledger


def as_text(ledger: Ledger) -> str:
    """The ledger as JSON, the same for equal ledgers."""
    surveyed = sorted(ledger.surveyed.items(), key=lambda item: natural(item[0]))
    heads = ",\n".join(f"{_json(branch)}: {_json(head)}" for branch, head in surveyed)
    targets = []
    for target, digests in sorted(ledger.targets.items()):
        lines = [
            f"{_json(digest)}: {_json(dict(sorted(entry.items(), key=_order)))}"
            for digest, entry in sorted(digests.items())
        ]
        targets.append(f"{_json(target)}: " + "{\n" + ",\n".join(lines) + "\n}")
    return (
        f'{{\n"format": {ledger.format},\n"surveyed": {{\n{heads}\n}},\n"targets": {{\n'
        + ",\n".join(targets)
        + "\n}\n}\n"
    )


def _json(value: object) -> str:
    return json.dumps(value)


def _order(item: tuple[str, list[str]]) -> tuple[bool, tuple[tuple[int, str], ...]]:
    return item[0] != "releases", natural(item[0])


def write(ledger: Ledger, path: Path) -> None:
    """Write the file whole or not at all. Raises ``LedgerError`` when it cannot be written."""
    replace(path, as_text(ledger))


def replace(path: Path, text: str) -> None:
    """Write a text whole or not at all. Raises ``LedgerError`` when it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with open(handle, "w", encoding="utf-8", newline="\n") as file:
                file.write(text)
            os.chmod(name, 0o644)
            os.replace(name, path)
        except BaseException:
            os.unlink(name)
            raise
    except OSError as error:
        raise LedgerError(f"{path} cannot be written: {error.strerror}") from error


def load(path: Path) -> Ledger:
    """Read the file. Raises ``LedgerError`` when it is no ledger, or has another format."""
    again = "write it with tools/survey.py, without --check"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise LedgerError(f"{path} cannot be read: {error.strerror}; {again}") from error
    except ValueError as error:
        raise LedgerError(f"{path} is no ledger: {error}; {again}") from error
    if not isinstance(found, dict) or "format" not in found:
        raise LedgerError(f"{path} is no ledger: it has no format; {again}")
    if found["format"] != FORMAT:
        raise LedgerError(
            f"{path} has format {found['format']}, and this version of megatron_patch has format "
            f"{FORMAT}: use the version of megatron_patch that wrote the file, or {again}"
        )
    try:
        return Ledger(dict(found["surveyed"]), dict(found["targets"]))
    except (KeyError, TypeError, ValueError) as error:
        raise LedgerError(f"{path} is no ledger: {error!r}; {again}") from error


def differences(old: Ledger, new: Ledger) -> Iterator[str]:
    """A line for each branch, target and digest that is not the same in both."""
    heads = (old.surveyed, new.surveyed)
    for branch in sorted({*old.surveyed, *new.surveyed}, key=natural):
        before, after = (side.get(branch, "not surveyed") for side in heads)
        if before != after:
            yield f"{branch}: {before[:12]} -> {after[:12]}"
    for target in sorted({*old.targets, *new.targets}):
        if target not in new.targets or target not in old.targets:
            yield f"{target}: {'a new target' if target in new.targets else 'no target any more'}"
            continue
        yield from _differences_of(target, old.targets, new.targets)


def _differences_of(target: str, old: Entries, new: Entries) -> Iterator[str]:
    for digest in sorted({*old[target], *new[target]}):
        before, after = old[target].get(digest), new[target].get(digest)
        if before is None:
            yield f"{target}: {digest} is new: {_json(after)}"
        elif after is None:
            yield f"{target}: {digest} is gone: {_json(before)}"
        elif before != after:
            yield f"{target}: {digest}: {_json(before)} -> {_json(after)}"
