"""Which slots of the KV cache hold something else than they should, and who has read them."""

from __future__ import annotations

from collections.abc import Iterator

from .observing import Forward

Slot = tuple[int, int]
"""A block, and a place in it."""


def _slots(forward: Forward, row: int, first: int, size: int) -> Iterator[tuple[int, Slot]]:
    """The positions of a row's request from one on to the last that it has, with their slots."""
    _, _, offset, count = forward.rows[row]
    table = forward.tables[row]
    for position in range(first, offset + count):
        if position // size < len(table):
            yield position, (table[position // size], position % size)


def spoilt(forwards: list[Forward], size: int) -> dict[tuple[int, int], int]:
    """(request, part) -> number of the first forward pass in which it reads what is not its own.

    Keys and values of a token that went astray are missing where they belong, until the position
    is written again, and overwrite those of the request that owns the slot where they went. What
    is computed from wrong ones is wrong too. ``size``: tokens of a block.
    """
    found: dict[tuple[int, int], int] = {}
    bad: set[Slot] = set()
    for number, forward in enumerate(forwards):
        astray = {(row, position): block for row, position, block in forward.astray}
        wrong: set[Slot] = set()
        for row, (_, _, offset, _) in enumerate(forward.rows):
            for position, slot in _slots(forward, row, offset, size):
                if (row, position) in astray:
                    wrong |= {slot, (astray[row, position], position % size)}
                else:
                    bad.discard(slot)
        bad |= wrong
        for row, (index, part, offset, _) in enumerate(forward.rows):
            if any(slot in bad for _, slot in _slots(forward, row, 0, size)):
                found.setdefault((index, part), number)
                bad.update(slot for _, slot in _slots(forward, row, offset, size))
    return found


def contested(forwards: list[Forward], size: int) -> int | None:
    """The number of the first forward pass in which a token goes astray into a slot that another
    request writes to as well, so that the last one to do so counts. None if there is none.
    """
    for number, forward in enumerate(forwards):
        astray = {(row, position): block for row, position, block in forward.astray}
        went = [
            [
                (astray.get((row, position), block), place)
                for position, (block, place) in _slots(forward, row, offset, size)
            ]
            for row, (_, _, offset, _) in enumerate(forward.rows)
        ]
        for row, position in astray:
            slot = astray[row, position], position % size
            if any(slot in slots for other, slots in enumerate(went) if other != row):
                return number
    return None


def forgotten(forwards: list[Forward], size: int) -> dict[tuple[int, int], int]:
    """(request, part) -> number of the first forward pass for which its table lacks a block of the
    tokens that it has had. ``size``: tokens of a block.
    """
    found: dict[tuple[int, int], int] = {}
    for number, forward in enumerate(forwards):
        for (index, part, offset, _), table in zip(forward.rows, forward.tables, strict=False):
            if -1 in table[: offset // size]:
                found.setdefault((index, part), number)
    return found


def older(forwards: list[Forward], size: int) -> set[tuple[int, int]]:
    """Parts of requests that found keys and values of other weights than they began with."""
    found: set[tuple[int, int]] = set()
    seen: set[tuple[int, int]] = set()
    versions: dict[Slot, int] = {}
    for forward in forwards:
        for row, (index, part, offset, _) in enumerate(forward.rows):
            cached = [slot for at, slot in _slots(forward, row, 0, size) if at < offset]
            if (index, part) not in seen:
                seen.add((index, part))
                if any(versions.get(slot) != forward.version for slot in cached):
                    found.add((index, part))
        for row, (_, _, offset, _) in enumerate(forward.rows):
            for _, slot in _slots(forward, row, offset, size):
                versions[slot] = forward.version
    return found


def rewritten(forwards: list[Forward], size: int) -> set[tuple[int, int]]:
    """Parts of requests of which another one wrote keys and values anew, with other weights."""
    found: set[tuple[int, int]] = set()
    versions: dict[Slot, int] = {}
    own: dict[tuple[int, int], dict[Slot, int]] = {}
    for forward in forwards:
        for row, (index, part, offset, _) in enumerate(forward.rows):
            for _, slot in _slots(forward, row, offset, size):
                versions[slot] = forward.version
                own.setdefault((index, part), {})[slot] = forward.version
        for row, (index, part, *_) in enumerate(forward.rows):
            wrote = own.get((index, part), {})
            if any(wrote.get(slot, now) != now for slot, now in _now(forward, row, versions, size)):
                found.add((index, part))
    return found


def _now(
    forward: Forward, row: int, versions: dict[Slot, int], size: int
) -> Iterator[tuple[Slot, int]]:
    """The slots of a request, and the version of what is there."""
    for _, slot in _slots(forward, row, 0, size):
        if slot in versions:
            yield slot, versions[slot]


def went_to_another(forwards: list[Forward], number: int) -> bool:
    """Whether all tokens that went astray in a forward pass went to blocks of other requests.

    Such a request had the block when it was last in a forward pass, and has been evicted since.
    """
    forward = forwards[number]
    present = {(index, part) for index, part, *_ in forward.rows}
    others: dict[tuple[int, int], list[int]] = {}
    for before in forwards[:number]:
        for (index, part, *_), table in zip(before.rows, before.tables, strict=True):
            others[index, part] = table
    held = {block for of, table in others.items() if of not in present for block in table}
    return all(block in held for _, _, block in forward.astray)
