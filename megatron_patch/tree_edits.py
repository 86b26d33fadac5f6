"""Make edits in the tree of a definition, for code that is to run.

In a file the same edits are made in the text, and :mod:`.rewrite` proves that what they leave there
parses to the tree that they make here.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence
from typing import cast

from .definitions import Definition
from .edits import Before, Replace, Substitute, source_of
from .fingerprint import FunctionTree
from .line_numbers import File, lines_around, renumber
from .matching import Bindings, exchanged, mark
from .rewrite import prefixed, replaced
from .segments import margin_of
from .substituting import only_place


def edited(
    definition: Definition,
    tree: FunctionTree,
    edits: Sequence[Replace | Before | Substitute],
    file: File,
    label: str,
) -> FunctionTree:
    """``tree``, that of the definition or one made from it, after edits in this order.

    Nodes that edits leave alone are shared, and have their line numbers. Those of the edits have
    numbers of ``file``, that of the definition; see :mod:`.line_numbers` for the ``label``. Raises
    ``RewriteError`` when an edit does not fit.
    """
    for edit in edits:
        if isinstance(edit, Substitute):
            place = only_place(definition, tree, edit)
            new = ast.parse(edit.put).body  # nobody else's
            text = _filled(edit.put, place.bindings)
            renumber(new, edit.put, text, lines_around(place.nodes, file), file, label)
            tree = exchanged(tree, place, new)
        elif isinstance(edit, Replace):
            text = source_of(edit.function)
            new = ast.parse(text).body
            renumber(new, text, text, lines_around([tree], file), file, label)
            mark(new)
            tree = replaced(definition, tree, new[0])
            _indent_docstring(tree, margin_of(definition.segment))
        else:
            new = ast.parse(edit.statements).body
            renumber(new, edit.statements, edit.statements, [], file, label)
            mark(new)
            tree = prefixed(definition, tree, edit, new)
    return tree


def _indent_docstring(tree: FunctionTree, margin: str) -> None:
    """Give the lines of a docstring the margin of the method that they are in, as text has it."""
    text = ast.get_docstring(tree, clean=False)
    if text is not None:
        first, *others = text.split("\n")
        # Its last line is not blank in the file: the quotes are there.
        filled = [margin + line if line.strip() else line for line in others[:-1]]
        docstring = cast(ast.Constant, cast(ast.Expr, tree.body[0]).value)
        docstring.value = "\n".join([first, *filled, *(margin + line for line in others[-1:])])


def _filled(put: str, bindings: Bindings) -> str:
    """``put`` with what its metavariables stand for, each in one line."""
    # The longest first: one may begin as another does.
    for name, node in sorted(bindings.items(), key=lambda item: -len(item[0])):
        put = put.replace(name, ast.unparse(node).replace("\n", " "))
    return put
