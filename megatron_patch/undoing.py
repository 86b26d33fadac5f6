"""Take the edits of a patch out of a definition's syntax tree, where somebody has made them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum
from typing import cast

from .definitions import statements_of
from .edits import Before, Edit, Replace, Substitute, source_of
from .fingerprint import FunctionTree, equal, without_docstring
from .matching import exchanged, places, with_field


class Gone(Enum):
    """What cannot be had back from edited source."""

    WHOLE = "a function that was replaced as a whole"


def undone(
    node: FunctionTree,
    edits: Sequence[Edit],
    rows: Callable[[str], Sequence[int] | None] = lambda code: None,
) -> FunctionTree | Gone | None:
    """The tree that one patch's ``edits`` of one target have made ``node`` from.

    ``None`` when the edits are not in there, and ``Gone.WHOLE`` when they have replaced it as a
    whole. ``node`` is not changed. ``rows`` gives for code what :func:`~.matching.places` can take
    of the text that ``node``, or what it was made from, has been parsed from.
    """
    for edit in reversed(edits):
        body = without_docstring(node)
        if isinstance(edit, Replace):
            (new,) = statements_of(source_of(edit.function))
            same = equal(without_docstring(cast(FunctionTree, new)), body)
            return Gone.WHOLE if same and edit is edits[0] else None
        if isinstance(edit, Before):
            statements = statements_of(edit.statements)
            if not equal(body[: len(statements)], statements):
                return None
            head = node.body[: len(node.body) - len(body)]
            node = with_field(node, "body", [*head, *body[len(statements) :]])
        elif isinstance(edit, Substitute):
            # What is taken out, be there a comment in its place, has left nothing to find.
            is_kept = bool(statements_of(edit.put))
            found = places(node, edit.put, edit.find, rows(edit.put)) if is_kept else []
            if len(found) != 1:
                return None
            node = exchanged(node, found[0], statements_of(edit.find))
    return node
