"""Prove on trees on disk: releases as they are installed or unpacked, with no clone at hand."""

from __future__ import annotations

import sys
from collections.abc import Collection, Sequence

from packaging.version import Version

from megatron_patch.judge import judge, trees_kept
from megatron_patch.model import Patch
from megatron_patch.source_tree import SourceTree
from megatron_patch.verdicts import Verdict
from tools.history.trees import Tree

from .answers import Answer, answer
from .runs import Bench
from .wanted import Question, question_at


def ask(
    tree: Tree, patches: Sequence[Patch], reviewed: Collection[str] = ()
) -> tuple[Question, ...]:
    """What the ledger leaves open on the tree: a question for each patch that is drifted there."""
    read = SourceTree.at(tree.root).read
    with trees_kept():
        drifted = [p for p in patches if judge(p, read).verdict is Verdict.DRIFTED]
        found = (question_at(patch, read, reviewed) for patch in drifted)
        return tuple(question for question in found if question is not None)


def has_change(patch: Patch, version: str) -> bool:
    """Whether the record says that ``version`` has the change of ``patch``."""
    return patch.fixed_in is not None and Version(patch.fixed_in) <= Version(version)


def prove(
    tree: Tree,
    patches: Sequence[Patch],
    questions: Sequence[Question],
    python: str = sys.executable,
    seconds: float = 600,
) -> list[Answer]:
    """Answer ``questions`` on the tree, whose version takes the place of a commit."""
    asked = {question.patch for question in questions}
    changed = frozenset(p.id for p in patches if p.id in asked and has_change(p, tree.version))
    with Bench(tree.root, python, seconds) as bench:
        return answer(bench, tree.version, questions, changed, patches)
