"""Random edits of Megatron's source: changed source is refused, source that says the same is not.

Tried for each patch of the series, and each function that decides on it in the installed release.
"""

from __future__ import annotations

import ast
import copy
import difflib
import dis
import textwrap
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from types import CodeType
from zlib import crc32

import pytest
from hypothesis import currently_in_test_context, given, note, settings
from hypothesis import strategies as st

from megatron_patch import definitions
from megatron_patch.backports import SERIES
from megatron_patch.compilation import compile_code
from megatron_patch.definitions import Definition, locate
from megatron_patch.edits import Add, Before, Requires, Target, is_known_by_digest
from megatron_patch.judge import judge
from megatron_patch.ledger import sources_of
from megatron_patch.model import Patch, Source
from megatron_patch.names import used_by
from megatron_patch.rewrite import edited
from megatron_patch.sources import read_source
from megatron_patch.testing.version import core_version
from megatron_patch.verdicts import Judgement, Verdict, find_definition
from tests.unit.sample import make_patch

from .code import FUNCTIONS, Code, Edit, functions, has_docstring, meaning, reduced
from .conftest import Census
from .mutators import (
    CHANGING,
    COMMENTS,
    MISPLACING,
    NEUTRAL,
    Mutator,
    add_comment,
    change_decorators,
    change_default,
    change_signature,
    join_statements,
    make_generator,
    toggle_async,
)

RELEASE = f"megatron-core {core_version()}"
EXAMPLES = settings().max_examples
BYSTANDERS = 2


@dataclass(frozen=True)
class Case:
    """A patch, its verdict on the installed release, and the functions that decide it."""

    patch: Patch
    judgement: Judgement
    targets: tuple[Target, ...]

    @classmethod
    def of(cls, patch: Patch) -> Case:
        judgement = judge(patch, full)
        if judgement.variant:
            dotted = {edit.target for edit in judgement.variant.edits if is_known_by_digest(edit)}
        elif find_definition(patch.target, full) is None:
            dotted = set()  # there is nothing to look at
        else:
            met = filter(_is_met, sources_of(patch))
            dotted = {target for source in met for target, _ in source.digests}
        return cls(patch, judgement, tuple(map(Target.parse, sorted(dotted))))


@cache
def full(module: str) -> str | None:
    """A module's text as it was released."""
    text = read_source(module)
    return text.replace("\r\n", "\n").replace("\r", "\n") if text else text


def _is_met(source: Source) -> bool:
    found = {dotted: find_definition(dotted, full) for dotted, _ in source.digests}
    return all(found[dotted] and found[dotted].digest == known for dotted, known in source.digests)


@cache
def small(case: Case, module: str) -> str:
    """A module's text with no functions but those that the patch looks at, and a few others."""
    text = full(module) or ""
    keep = looked_at(case.patch, module)
    if case.judgement.variant is None:
        deciding = {*case.targets, Target.parse(case.patch.target)}
        keep &= {target.qualname for target in deciding}
    lengths = {
        name: node.end_lineno - node.lineno  # type: ignore[operator]
        for name, node in functions(definitions.module_tree(text))
        if name not in keep
    }
    several = [name for name in lengths if 8 < lengths[name] < 60]
    scopes = {name.rpartition(".")[0] for name in keep}
    several.sort(key=lambda name: name.rpartition(".")[0] not in scopes)
    edits = case.judgement.variant.edits if case.judgement.variant else ()
    used = {name for edit in edits if not isinstance(edit, Requires) for name in used_by(edit)}
    return reduced(text, keep | used | set(several[:BYSTANDERS]))


def looked_at(patch: Patch, module: str) -> set[str]:
    added = (edit.target for variant in patch.variants for edit in variant.edits)
    targets = map(Target.parse, (*patch.targets, *added))
    return {target.qualname for target in targets if target.module == module}


CASES = {patch.id: Case.of(patch) for patch in SERIES}
MUTATED = [(case, target) for case in CASES.values() for target in case.targets]
each_target = pytest.mark.parametrize(
    ("case", "target"), MUTATED, ids=[f"{c.patch.id}-{t.qualname}" for c, t in MUTATED]
)
each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
# At least this many for each target, however many targets there are.
SHARE = max(EXAMPLES // max(1, len(MUTATED)), EXAMPLES // 20)
OF_EACH_SORT = EXAMPLES // 100


@lru_cache(maxsize=64)  # each mutant comes of one original
def names(text: str) -> set[str]:
    """Those of the functions of a module."""
    return {name for name, _ in functions(definitions.module_tree(text))}


@lru_cache(maxsize=64)
def parsed(text: str, qualname: str) -> Code:
    return Code(text, qualname)


@lru_cache(maxsize=2048)
def places(mutator: Mutator, text: str, qualname: str) -> list[Edit]:
    return list(mutator(parsed(text, qualname)))


@lru_cache(maxsize=2048)
def first_place(mutator: Mutator, text: str, qualname: str) -> Edit | None:
    """The first of the places, for which the others need not be found."""
    return next(iter(mutator(parsed(text, qualname))), None)


def some_places(mutator: Mutator, text: str, qualname: str) -> list[Edit]:
    """At most ``OF_EACH_SORT`` of the places, from the first to near the last."""
    if OF_EACH_SORT == 1:
        return list(filter(None, [first_place(mutator, text, qualname)]))
    found = places(mutator, text, qualname)
    return found[:: -(-len(found) // OF_EACH_SORT) or 1]


def mutated(
    data: st.DataObject, mutators: tuple[Mutator, ...], text: str, qualname: str, most: int = 3
) -> str:
    """The text after one to ``most`` edits that hypothesis chooses."""
    fitting = [mutator for mutator in mutators if first_place(mutator, text, qualname)]
    for _ in range(data.draw(st.integers(1, most))):
        mutator = data.draw(st.sampled_from(fitting))
        if found := places(mutator, text, qualname):
            text = parsed(text, qualname).edited(data.draw(st.sampled_from(found)))
    return text


@lru_cache(maxsize=64)
def with_line_ends(text: str) -> str:
    """The text with any line ends."""
    # Not drawn: Hypothesis would try each mutant three times.
    return text.replace("\n", ("\n", "\r\n", "\r")[len(text) % 3])


def says_the_same(new: str, old: str, target: Target) -> bool:
    """Whether the target says the same in a mutant as in the original.

    The mutant has the line ends with which it is judged, so that it is parsed once for both.
    """
    return meaning(with_line_ends(new), target.qualname) == known_meaning(old, target.qualname)


@lru_cache(maxsize=256)
def known_meaning(text: str, qualname: str) -> tuple[tuple[object, ...], ...]:
    """That of an original, with which many mutants are compared."""
    return meaning(text, qualname)


def judgement_on(case: Case, module: str, text: str) -> Judgement:
    """The judgement of the patch when ``text``, with any line ends, is the module."""
    text = with_line_ends(text)
    # Looking for edits of the series in a mutant takes long, and is another way to be known.
    series = SERIES if len(text) % 8 == 0 else ()
    return judge(case.patch, lambda name: text if name == module else full(name), series=series)


def is_of_another_release(case: Case, target: Target, text: str) -> bool:
    """Whether a change made the target what it is in another release that the patch knows.

    0.15 and 0.16 tell one of their functions apart by an annotation alone.
    """
    digests = {dict(source.digests).get(str(target)) for source in sources_of(case.patch)}
    now, before = (
        locate(target.module, source or "", target.qualname)
        for source in (text, full(target.module))
    )
    return now is not None and before is not None and now.digest in digests - {before.digest}


def try_mutants(
    case: Case, module: str, number: int, check: Callable[[st.DataObject, str], None]
) -> None:
    """Call ``check`` with texts to start from: mostly the small one, sometimes the full one."""
    # One in sixteen. What is left of a few tries goes to some of the patches and modules.
    left = crc32(f"{case.patch.id} {module}".encode()) % 16 < number % 16
    for old, share in ((small(case, module), number), (full(module) or "", number // 16 + left)):
        if not share:
            continue

        @settings(max_examples=share)
        @given(st.data(), st.just(old))
        def one(data: st.DataObject, old: str) -> None:
            check(data, old)

        one()


@contextmanager
def told(old: str, new: str) -> Iterator[None]:
    """Print the mutant when an assertion on it fails."""
    try:
        yield
    except Exception:
        lines = difflib.unified_diff(old.splitlines(True), new.splitlines(True), "old", "mutant")
        (note if currently_in_test_context() else print)("".join(lines))
        raise


@each_case
def test_the_patch_knows_the_release(case: Case) -> None:
    assert case.judgement.verdict is not Verdict.DRIFTED
    assert case.targets or case.judgement.verdict is Verdict.NOT_APPLICABLE
    modules = {target.module for target in case.targets}
    assert (
        judge(case.patch, lambda m: small(case, m) if m in modules else full(m)) == case.judgement
    )


@each_target
def test_changed_source_is_refused(case: Case, target: Target, census: Census) -> None:
    refused = census.changed[f"{case.patch.id} {target}"]
    equal = set()

    def refuse(old: str, new: str) -> None:
        if new in refused:
            return
        if says_the_same(new, old, target):
            equal.add(new)
            return
        with told(old, new):
            judgement = judgement_on(case, target.module, new)
            if judgement.verdict is not Verdict.DRIFTED and is_of_another_release(
                case, target, new
            ):
                equal.add(new)
                return
            assert judgement.variant is None
            assert judgement.verdict is Verdict.DRIFTED
            assert str(target) in judgement.reason
        refused.add(new)

    # First single mutations of each sort: among several, one that a digest misses would not show.
    old = small(case, target.module)
    for mutator in CHANGING:
        for edit in some_places(mutator, old, target.qualname):
            refuse(old, parsed(old, target.qualname).edited(edit))

    def check(data: st.DataObject, old: str) -> None:
        refuse(old, mutated(data, CHANGING, old, target.qualname))

    try_mutants(case, target.module, SHARE, check)
    census.equal += len(equal)
    assert len(refused) >= SHARE
    assert len(equal) <= SHARE // 10


@each_target
@pytest.mark.parametrize("mutator", MISPLACING, ids=lambda mutator: mutator.__name__)
def test_a_function_that_is_gone_or_there_twice(
    mutator: Mutator, case: Case, target: Target, census: Census
) -> None:
    old = small(case, target.module)
    for edit in places(mutator, old, target.qualname):
        new = parsed(old, target.qualname).edited(edit)
        with told(old, new):
            judgement = judge(
                case.patch, lambda name, n=new: n if name == target.module else full(name)
            )
            is_gone = not meaning(new, target.qualname)
            is_none = is_gone and str(target) == case.patch.target
            assert judgement.verdict is (Verdict.NOT_APPLICABLE if is_none else Verdict.DRIFTED)
            assert judgement.variant is None
            assert str(target) in judgement.reason
        census.changed[f"{case.patch.id} {target}"].add(new)


@each_target
def test_source_that_says_the_same_is_recognised(
    case: Case, target: Target, census: Census
) -> None:
    recognised = census.neutral[f"{case.patch.id} {target}"]

    def check(data: st.DataObject, old: str) -> None:
        new = mutated(data, NEUTRAL, old, target.qualname)
        if new not in recognised:
            with told(old, new):
                assert says_the_same(new, old, target)
                assert judgement_on(case, target.module, new) == case.judgement
            recognised.add(new)

    try_mutants(case, target.module, SHARE - 2, check)  # some come twice
    assert len(recognised) >= SHARE // 2


@each_case
def test_changes_elsewhere_do_not_matter(case: Case, census: Census) -> None:
    if not case.targets:
        pytest.skip(f"{RELEASE} has nothing for {case.patch.id}")
    recognised: set[str] = set()
    for module in {target.module for target in case.targets}:
        if not names(small(case, module)) - looked_at(case.patch, module):
            continue

        def check(data: st.DataObject, old: str, module: str = module) -> None:
            others = names(old) - looked_at(case.patch, module)
            new = mutated(data, CHANGING, old, data.draw(st.sampled_from(sorted(others))), 5)
            with told(old, new):
                assert judgement_on(case, module, new) == case.judgement
            recognised.add(new)

        try_mutants(case, module, EXAMPLES // 6, check)
    if not recognised:
        pytest.skip(f"{case.patch.id} looks at all functions of its modules in {RELEASE}")
    assert len(recognised) >= EXAMPLES // 10
    census.neutral[case.patch.id] = recognised


def after_edits(case: Case, text: str, target: Target) -> Definition:
    """The target in ``text`` after the patch's edits of it."""
    definition = locate(target.module, text, target.qualname)
    assert definition is not None
    assert case.judgement.variant is not None
    for edit in case.judgement.variant.edits:
        if edit.target == str(target) and not isinstance(edit, (Add, Requires)):
            definition = edited(definition, edit)
    return definition


@lru_cache(maxsize=1024)  # several tests compare mutants with one original
def digest_after_edits(case: Case, text: str, target: Target) -> str:
    return after_edits(case, text, target).digest


def check_edits(case: Case, old: str, new: str, target: Target) -> None:
    with told(old, new):
        result = after_edits(case, new, target)
        assert result.digest == digest_after_edits(case, old, target)
        assert compile_code(result, "<mutant>").co_name == target.name


def skip_unless_edited(case: Case) -> None:
    if case.judgement.variant is None:
        pytest.skip(f"{RELEASE} needs no edits of {case.patch.id}: {case.judgement.verdict}")


@each_case
def test_the_edits_succeed_on_source_that_says_the_same(case: Case, census: Census) -> None:
    """Semicolons are left out: with them the edit of text may raise; see test_rewrite."""
    skip_unless_edited(case)
    mutators = tuple(mutator for mutator in NEUTRAL if mutator is not join_statements)
    compiled = census.edited[case.patch.id]

    def check(data: st.DataObject, old: str, target: Target) -> None:
        new = mutated(data, mutators, old, target.qualname)
        check_edits(case, old, new, target)
        compiled.add(new)

    for target in case.targets:
        number = EXAMPLES // 8 // len(case.targets)
        try_mutants(case, target.module, number, partial(check, target=target))
    assert len(compiled) >= EXAMPLES // 10


@each_case
@pytest.mark.parametrize("comment", COMMENTS)
def test_the_edits_succeed_with_a_comment_on_and_after_each_line(
    comment: str, case: Case, census: Census
) -> None:
    skip_unless_edited(case)
    for target in case.targets:
        old = small(case, target.module)
        edits = [e for e in places(add_comment, old, target.qualname) if e.text.strip() == comment]
        parts, done = [], 0
        for edit in sorted(reversed(edits), key=lambda edit: edit.start):
            parts += [old[done : edit.start], edit.text]
            done = edit.end
        new = "".join([*parts, old[done:]])
        assert meaning(new, target.qualname) == known_meaning(old, target.qualname)
        check_edits(case, old, new, target)
        census.edited[case.patch.id].add(new)


# Names that the edits take from their module.


@each_case
def test_an_import_may_be_missing_exactly_if_the_edits_do_not_use_it(case: Case) -> None:
    """Which names they use is asked of the compiler."""
    skip_unless_edited(case)
    assert case.judgement.variant is not None
    for module in {Target.parse(edit.target).module for edit in case.judgement.variant.edits}:
        old = small(case, module)
        there = imported(old)
        used = compiled_names(case, module, old)
        others = sorted(there - used, key=lambda name: crc32(f"{case.patch.id} {name}".encode()))
        for name in sorted(there & used) + others[:2]:
            new = without_import(old, name)
            with told(old, new):
                judgement = judgement_on(case, module, new)
                if name not in used:
                    assert judgement == case.judgement
                    continue
                assert (judgement.verdict, judgement.variant) == (Verdict.DRIFTED, None)
                assert f"but the edits use {module}:{name}, and no such name" in judgement.reason


@lru_cache(maxsize=256)
def imported(text: str) -> frozenset[str]:
    """The names that a module's import statements bind once."""
    tree = definitions.module_tree(text)
    nodes = [n for n in ast.walk(tree) if isinstance(n, (ast.Import, ast.ImportFrom))]
    found = [alias.asname or alias.name.partition(".")[0] for n in nodes for alias in n.names]
    bound = Counter([*found, *definitions.bound_names(tree.body)])
    return frozenset(name for name in found if bound[name] == 2 and name != "annotations")


def without_import(text: str, name: str) -> str:
    """The text with another name in place of this one in the import statements that bind it."""
    lines = text.encode().split(b"\n")
    tree = definitions.module_tree(text)
    nodes = [n for n in ast.walk(tree) if isinstance(n, (ast.Import, ast.ImportFrom))]
    for node in sorted(nodes, key=lambda n: (n.lineno, n.col_offset), reverse=True):
        new = copy.deepcopy(node)
        bound = [a for a in new.names if (a.asname or a.name.partition(".")[0]) == name]
        for alias in bound:
            alias.asname = f"{name}_of_another_module"
        if bound:
            first, last = node.lineno - 1, node.end_lineno - 1  # type: ignore[operator]
            before, after = lines[first][: node.col_offset], lines[last][node.end_col_offset :]
            lines[first : last + 1] = [before + ast.unparse(new).encode() + after]
    return b"\n".join(lines).decode()


def compiled_names(case: Case, module: str, text: str) -> set[str]:
    """The names that the compiled edits of a module take from it, and the originals do not."""
    assert case.judgement.variant is not None
    found: set[str] = set()
    for edit in case.judgement.variant.edits:
        target = Target.parse(edit.target)
        if target.module != module or isinstance(edit, Requires):
            continue
        if isinstance(edit, Add):
            found |= global_names(as_module(edit.source))
            continue
        original = locate(module, text, target.qualname)
        assert original is not None
        after = as_module(after_edits(case, text, target).segment)
        found |= global_names(after) - global_names(as_module(original.segment))
    return found


def as_module(definition: str) -> CodeType:
    """A module of a definition alone, with its decorators; annotations are not evaluated."""
    future = "from __future__ import annotations\n"
    return compile(future + textwrap.dedent(definition), "<definition>", "exec")


def global_names(code: CodeType) -> set[str]:
    """The names that code, with what is in it, looks up outside of all functions."""
    found = {
        i.argval for i in dis.get_instructions(code) if i.opname in ("LOAD_GLOBAL", "LOAD_NAME")
    }
    inner = [constant for constant in code.co_consts if isinstance(constant, CodeType)]
    return found.union(*map(global_names, inner))


# Hooks whose targets are not known by their digests: any plain method will do.


#: Mutations that may change the kind of a method, or its first parameter.
KINDS = (change_signature, change_decorators, toggle_async, make_generator, change_default)


def touch(self) -> None:  # type: ignore[no-untyped-def]
    self._touched = 1
    self._times = 2


def _sample() -> Patch:
    """A patch with such a hook, for any release."""
    patch = SERIES[0]
    scope = patch.target.rpartition(".")[0]
    return make_patch(
        Requires(patch.target, "the sample is known by it"),
        Before(f"{scope}.reset", touch, "it sets attributes of the sample's own"),
        known=lambda dotted: find_definition(dotted, full).digest,  # type: ignore[union-attr]
    )


HOOKS = [
    (case, edit)
    for case in (*CASES.values(), Case.of(_sample()))
    for edit in (case.judgement.variant.edits if case.judgement.variant else ())
    if isinstance(edit, Before) and edit.independent
]
each_hook = pytest.mark.parametrize(
    ("case", "hook"),
    HOOKS,
    ids=[f"{c.patch.id}-{Target.parse(e.target).qualname}" for c, e in HOOKS],
)


def takes_the_hook(node: ast.stmt, hook: Before) -> bool:
    """Whether this is a plain method of a ``self``, and has a statement to put the hook before."""
    if not isinstance(node, ast.FunctionDef) or node.decorator_list:
        return False
    names = [arg.arg for arg in (*node.args.posonlyargs, *node.args.args)]
    if names[:1] != ["self"] or any(isinstance(n, (ast.Yield, ast.YieldFrom)) for n in own(node)):
        return False
    doc, body = node.body[: has_docstring(node)], node.body[has_docstring(node) :]
    statements = ast.parse(hook.statements).body
    is_there = list(map(ast.dump, body[: len(statements)])) == list(map(ast.dump, statements))
    return bool(body) and not is_there and all(d.end_lineno != body[0].lineno for d in doc)


def own(node: ast.AST) -> Iterator[ast.AST]:
    """What is in a function, but not in the functions in it."""
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, (*FUNCTIONS, ast.Lambda)):
            yield child
            yield from own(child)


def definition_in(text: str, dotted: str) -> Definition:
    found = find_definition(dotted, lambda _: text)
    assert found is not None
    return found


@each_hook
def test_an_independent_hook_fits_any_plain_method_and_nothing_else(
    case: Case, hook: Before, census: Census
) -> None:
    target = Target.parse(hook.target)
    edits, refused = census.edited[f"{case.patch.id} {target}"], census.changed[case.patch.id]

    def check(data: st.DataObject, old: str) -> None:
        mutators = data.draw(st.sampled_from(((*CHANGING, *NEUTRAL), KINDS)))
        new = mutated(data, mutators, old, target.qualname)
        with told(old, new):
            before = definition_in(new, hook.target)
            judgement = judge(
                case.patch,
                lambda name: new if name == target.module else full(name),
                series=(*SERIES, case.patch),
            )
            if not takes_the_hook(before.node, hook):
                # For a variant without this hook the source may be known all the same.
                if judgement.variant is None:
                    assert judgement.verdict is Verdict.DRIFTED
                    assert case.patch.id != "sample" or str(target) in judgement.reason
                else:
                    assert hook not in judgement.variant.edits
                refused.add(new)
                return
            assert judgement.verdict is Verdict.APPLICABLE
            assert judgement.variant == case.judgement.variant
            after = edited(before, hook).node
            put = ast.parse(hook.statements).body
            skip = has_docstring(after)
            assert list(map(ast.dump, after.body[skip : skip + len(put)])) == list(
                map(ast.dump, put)
            )
            del after.body[skip : skip + len(put)]
            assert ast.dump(after) == ast.dump(before.node)
            edits.add(new)

    try_mutants(case, target.module, EXAMPLES, check)
    assert len(edits) >= EXAMPLES // 4
    assert len(refused) >= EXAMPLES // 10
