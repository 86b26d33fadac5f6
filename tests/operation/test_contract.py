"""Each record keeps to the rules of `contract.py`; and a record that breaks one is found."""

from __future__ import annotations

import importlib
import pkgutil
import sys
from collections.abc import Iterator

import pytest

from megatron_patch import backports, ledger
from megatron_patch.backports import SERIES
from megatron_patch.edits import METAVARIABLE, Add, Requires, Substitute
from megatron_patch.hunks import Hunk, Hunks
from megatron_patch.ledger import sources_of
from megatron_patch.model import HAS_IT, NEEDS_NONE, Patch, Source, Variant
from megatron_patch.sources import read_source
from megatron_patch.verdicts import Verdict, find_definition
from tools import pins
from tools.starting.stubs import FILL

from .. import conftest
from ..unit.sample import digest_in, make_patch
from . import contract

RELEASE = str(conftest.RELEASE)
PINS = [pin.version for pin in pins.read_pins((pins.REPOSITORY / "tox.ini").read_text())]


def records() -> Iterator[tuple[str, str, Patch, Hunks | None]]:
    """Module, constant, record and hunks of each file of a record."""
    for folder in ("ours", "upstream"):
        package = importlib.import_module(f"{backports.__name__}.{folder}")
        for info in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            module = importlib.import_module(info.name)
            for name, value in vars(module).items():
                if isinstance(value, Patch):
                    yield info.name, name, value, getattr(module, "HUNKS", None)


RECORDS = list(records())
each_record = pytest.mark.parametrize(
    ("module", "constant", "patch", "hunks"), RECORDS, ids=[patch.id for _, _, patch, _ in RECORDS]
)


@each_record
def test_a_record_keeps_the_contract(module, constant, patch, hunks):
    assert [
        *contract.of_names(patch, module, constant),
        *contract.of_fields(patch),
        *contract.of_releases(patch, PINS),
        *contract.of_ledger(patch),
        *contract.of_hunks(patch, hunks),
    ] == []
    assert FILL not in str(sys.modules[module].__doc__)


@each_record
def test_the_installed_release_says_what_the_record_says(module, constant, patch, hunks):
    assert list(contract.on_release(patch, RELEASE, read_source)) == []
    assert list(contract.on_release(patch, RELEASE, read_source, SERIES)) == []


def test_the_series_has_each_record_once():
    ids = [patch.id for patch in SERIES]
    assert len(set(ids)) == len(ids)
    assert sorted(ids) == sorted(patch.id for _, _, patch, _ in RECORDS)
    assert {patch.sources for patch in SERIES} == {None}
    assert ledger._read(ledger.FILE).keys() == {*ids}


def test_each_report_is_of_a_record_of_ours():
    reports = {path.stem for path in contract.REPORTS.glob("*.md")}
    assert reports == {patch.id for patch in SERIES if patch.upstream_pr is None}


# Records that are wrong on purpose. They are of a module that is made up, and of releases 1.0
# (which needs the patch), 2.0 (which has it) and 0.9 (which has no such function).

TARGET = "m:f"
TEXTS = {"0.9": "", "1.0": "def f(x):\n    return x + 1\n", "2.0": "def f(x):\n    return x + 2\n"}
OLD, NEW = (digest_in(TEXTS[release])(TARGET) for release in ("1.0", "2.0"))
GOOD = make_patch(
    Substitute(TARGET, "x + 1", "x + 2"), known=lambda _: OLD, has_it={TARGET: NEW}
)._replace(releases=">=1,<2", fixed_in="2.0")
HELPER = Add("m:_limit", "_limit = 1")


def said(patch: Patch, hunks: Hunks | None = None) -> str:
    """All that is wrong with the record in that module."""
    found = [
        *contract.of_names(patch, "backports.upstream.sample", "SAMPLE"),
        *contract.of_fields(patch),
        *contract.of_releases(patch, TEXTS),
        *contract.of_ledger(patch),
        *contract.of_hunks(patch, hunks),
    ]
    for release, text in TEXTS.items():
        found += contract.on_release(patch, release, {"m": text}.get)
    return "\n".join(found)


def test_a_record_that_is_right_is_right():
    assert said(GOOD) == ""
    assert [contract.expected(GOOD, release) for release in TEXTS] == [
        Verdict.NOT_APPLICABLE,
        Verdict.APPLICABLE,
        Verdict.UPSTREAMED,
    ]


def source(proved: str = "the sample", digest: str = OLD, **changes: object) -> Source:
    return Source(proved, ((TARGET, digest),), "1.0")._replace(**changes)  # type: ignore[arg-type]


def knowing(*sources: Source) -> Patch:
    """``GOOD``, with further known sources."""
    return GOOD._replace(sources=(*(GOOD.sources or ()), *sources))


def editing(*edits: object) -> Patch:
    """``GOOD``, with further edits."""
    (variant,) = GOOD.variants
    made = Variant(variant.name, (*variant.edits, *edits))  # type: ignore[arg-type]
    return GOOD._replace(variants=(made,))


NUMBER = f"{METAVARIABLE}number"
OTHER = "0123456789abcdef"

WRONG = {
    "for too few releases": (
        GOOD._replace(releases=">=1.5,<2"),
        "is for >=1.5,<2, which is none of the pins",
    ),
    "for a release without the target": (
        GOOD._replace(releases="<2"),
        "sample is not_applicable on 0.9",
    ),
    "for a release that has it": (GOOD._replace(releases=">=1"), "sample is upstreamed on 2.0"),
    "not for a release that needs it": (
        GOOD._replace(releases="<1"),
        "sample is applicable on 1.0",
    ),
    "no specifier": (GOOD._replace(releases="1 or 2"), "'1 or 2' is no version specifier"),
    "fixed too late": (GOOD._replace(fixed_in="3.0"), "sample is upstreamed on 2.0"),
    "fixed in what it is for": (GOOD._replace(fixed_in="1.0"), "for 1.0, and fixed in 1.0"),
    "fixed before": (GOOD._replace(fixed_in="0.9"), "is for 1.0, and fixed in 0.9"),
    "source too many, that needs none": (
        knowing(source(NEEDS_NONE)),
        "source of the sample needs none, as that of 1.0, and is known for 'the sample' too",
    ),
    "source too many, that has it": (knowing(source(HAS_IT)), "sample is upstreamed on 1.0"),
    "source too many, that needs the patch": (
        GOOD._replace(sources=(source(digest=NEW), source())),
        "sample is applicable on 2.0",
    ),
    "source too few": (GOOD._replace(sources=(source(),)), "sample is drifted on 2.0"),
    "source of no variant": (knowing(source("1.1")), "proved is '1.1'; expected one of"),
    "source without digests": (knowing(source(HAS_IT, digests=())), "told by []"),
    "source without a place": (knowing(source(digest=OTHER, releases=" ")), "where the source is"),
    "source of another target": (
        knowing(source(digests=(("m:g", OTHER),))),
        "differ in ['m:f', 'm:g']",
    ),
    "source told by another target": (
        knowing(source(HAS_IT, digests=(("m:g", OTHER),))),
        "told by ['m:g']; the record says ('m:f',)",
    ),
    "source with two digests": (
        knowing(source(digests=((TARGET, OTHER), (TARGET, OLD)))),
        "a target has two digests",
    ),
    "a short digest": (knowing(source(digest=OTHER[1:])), "'123456789abcdef' is no digest"),
    "a digest in capitals": (knowing(source(digest=OTHER.upper())), "is no digest"),
    "no commit": (knowing(source(commit="main")), "'main' is no commit"),
    "a variant that nothing needs": (
        GOOD._replace(variants=(*GOOD.variants, Variant("new", ()))),
        "nothing is known to need variant 'new'",
    ),
    "two variants of one name": (
        GOOD._replace(variants=GOOD.variants * 2),
        "two variants of one name",
    ),
    "two variants with the same edits": (
        GOOD._replace(variants=(*GOOD.variants, GOOD.variants[0]._replace(name="new"))),
        "two variants with the same edits",
    ),
    "a variant named like none": (
        GOOD._replace(variants=(*GOOD.variants, Variant(HAS_IT, ()))),
        "named like source without one",
    ),
    "a hunk that is not there": (
        editing(Substitute(TARGET, "x + 9", "x")),
        "sample on 1.0: m:f: expected `x + 9` exactly once; not found",
    ),
    "a hunk that is there twice": (
        editing(Substitute(TARGET, "x + 2", "x + x"), Substitute(TARGET, "x", "len")),
        "sample on 1.0: m:f: expected `x` exactly once; found 2 times",
    ),
    "a name that the module lacks": (
        editing(Substitute(TARGET, "x + 1", "x + math.pi")),
        "the edits use m:math, and no such name is defined there",
    ),
    "a metavariable on one side": (
        editing(Substitute(TARGET, "2", NUMBER)),
        f"metavariables ['{NUMBER}'] are on one side only",
    ),
    "a metavariable in a string": (
        editing(Substitute(TARGET, f"f('{NUMBER}')", f"g('{NUMBER}')")),
        "a metavariable is not a name of its own",
    ),
    "a helper of another name": (editing(HELPER._replace(target="m:_size")), "defines ['_limit']"),
    "a condition without a reason": (editing(Requires(TARGET, " ")), "does not say why"),
    "another id": (GOOD._replace(id="sample-two"), "expected sample_two.py"),
    "another constant": (GOOD._replace(id="samples"), "the constant SAMPLE; expected SAMPLES"),
    "ours in the folder of upstream's": (
        GOOD._replace(upstream_pr=None),
        "expected it in the folder ours",
    ),
    "ours with a commit of upstream's": (GOOD._replace(upstream_pr=None), "sample is ours, and"),
    "ours without a report": (
        GOOD._replace(upstream_pr=None),
        "there is no docs/upstream/sample.md",
    ),
    "upstream's without a release": (GOOD._replace(fixed_in=None), "upstream's, and says"),
    "upstream's without a commit": (GOOD._replace(upstream_commit="abc"), "'abc' is no commit"),
    "no date": (GOOD._replace(updated="26.11.2026"), "'26.11.2026' is no date"),
    "no pull request": (GOOD._replace(upstream_pr=0), "0 is no pull request"),
    "a summary to be written": (
        GOOD._replace(summary="TODO: it"),
        "summary is to be filled in: 'TODO: it'",
    ),
    "a hunk to be written": (
        editing(Substitute(TARGET, "'TODO'", "1")),
        "the hunk is to be filled in",
    ),
    "a variant to be named": (
        GOOD._replace(variants=(Variant("TODO", GOOD.variants[0].edits),)),
        "a variant is to be named",
    ),
    "no symptom": (GOOD._replace(symptom=" "), "sample has no symptom"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_record_that_is_wrong_is_told(name):
    patch, complaint = WRONG[name]
    assert complaint in said(patch)


def test_a_hunk_of_a_variant_that_there_is_not_is_told():
    (edit,) = GOOD.variants[0].edits
    hunks = Hunks("sample.diff", (Hunk(edit, ("the sample", "0.81")),))  # type: ignore[arg-type]
    assert "a hunk of m:f is of ('the sample', '0.81')" in said(GOOD, hunks)


def test_each_record_has_sources_of_what_the_pins_need():
    """No pin is known by chance: what it is known by says what becomes of it."""
    for patch in SERIES:
        wanted = {contract.expected(patch, pin) for pin in PINS}
        proved = {s.proved for s in sources_of(patch)}
        assert (Verdict.UPSTREAMED in wanted) <= (HAS_IT in proved), patch.id


def decides(patch: Patch, source: Source) -> bool:
    """Whether the installed release is that source, and has what the patch is for."""
    if find_definition(patch.target, read_source) is None:
        return False
    found = {target: find_definition(target, read_source) for target, _ in source.digests}
    return all(found[t] is not None and found[t].digest == d for t, d in source.digests)  # type: ignore[union-attr]


def mutants(patch: Patch, source: Source) -> Iterator[Source]:
    """The entry with one thing changed in it."""
    for index, (target, digest) in enumerate(source.digests):
        rest = source.digests[:index] + source.digests[index + 1 :]
        yield source._replace(digests=rest)
        yield source._replace(digests=(*rest, (target, f"{int(digest, 16) ^ 1:016x}")))
        yield source._replace(digests=(*rest, (f"{target}_", digest)))
        yield source._replace(digests=(*source.digests, (f"{target}_", digest)))
    for proved in {HAS_IT, NEEDS_NONE, "0.1"} - {source.proved}:
        yield source._replace(proved=proved)


@each_record
def test_an_entry_of_the_ledger_that_is_wrong_is_told(module, constant, patch, hunks):
    """Of the entry that the release is recognised by, one thing is changed: that is noticed."""
    known = sources_of(patch)
    deciding = [source for source in known if decides(patch, source)]
    others = tuple(source for source in known if source not in deciding)
    for source in deciding:
        for mutant in mutants(patch, source):
            wrong = patch._replace(sources=(*others, mutant))
            assert [
                *contract.of_ledger(wrong),
                *contract.on_release(wrong, RELEASE, read_source),
            ], mutant
