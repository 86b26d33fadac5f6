"""The ledger of known source: its form, its order, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from megatron_patch import errors, ledger
from megatron_patch.backports import SERIES
from megatron_patch.edits import Substitute
from megatron_patch.judge import judge, variant_of
from megatron_patch.model import HAS_IT, NEEDS_NONE, Source, Variant
from megatron_patch.verdicts import Verdict

from .sample import make_patch

TARGET = "m:Thing.one"
EDIT = Substitute(TARGET, "1", "10")
PATCH = make_patch(EDIT, known=lambda _: "0")._replace(
    variants=(Variant("new", (EDIT,)), Variant("old", (EDIT,)))
)


def entry(proved: str, digest: str) -> dict[str, object]:
    return {"proved": proved, "digests": {TARGET: digest}, "releases": digest, "commit": "abc"}


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """A function that puts a ledger in the place of the package's."""

    def write(content: object) -> Path:
        file = tmp_path / "proofs.json"
        file.write_text(json.dumps(content), encoding="utf-8")
        monkeypatch.setattr(ledger, "FILE", file)
        ledger._read.cache_clear()
        return file

    yield write
    ledger._read.cache_clear()


@pytest.mark.parametrize("found", [0, ledger.FORMAT + 1, "1", None])
def test_a_ledger_of_another_form_is_an_error_that_names_both(write, found):
    file = write({"format": found, "patches": {}} if found is not None else {})
    with pytest.raises(errors.LedgerError) as caught:
        ledger.sources_of(PATCH._replace(sources=None))
    for part in (str(file), f"of format {found}; expected {ledger.FORMAT}", "install the package"):
        assert part in str(caught.value)


def test_what_needs_no_edits_comes_first_and_the_rest_in_the_order_of_the_variants(write):
    entries = [
        entry("old", "1"),
        entry("new", "2"),
        entry(NEEDS_NONE, "3"),
        entry("old", "4"),
        entry(HAS_IT, "5"),
        entry("new", "6"),
    ]
    write({"format": ledger.FORMAT, "patches": {"sample": entries}})
    found = ledger.sources_of(PATCH._replace(sources=None))
    assert [source.releases for source in found] == ["3", "5", "2", "6", "1", "4"]
    assert found[0] == Source(NEEDS_NONE, ((TARGET, "3"),), "3", "abc")


def test_the_sources_of_a_record_of_its_own_are_not_in_the_ledger(write):
    write({"format": ledger.FORMAT, "patches": {"sample": [entry("new", "1")]}})
    assert [source.releases for source in ledger.sources_of(PATCH._replace(sources=()))] == []


def test_a_patch_that_the_ledger_does_not_know_is_drifted_where_its_target_is(write):
    write({"format": ledger.FORMAT, "patches": {}})
    patch = PATCH._replace(sources=None)
    assert ledger.sources_of(patch) == ()
    text = "class Thing:\n    def one(self):\n        return 1\n"
    found = judge(patch, {"m": text}.get)
    assert (found.verdict, found.reason) == (Verdict.DRIFTED, f"{TARGET}: no known source")


def test_source_that_names_no_variant_of_the_record_is_told():
    source = Source("newest", ((TARGET, "0"),), "9.9")
    with pytest.raises(
        ValueError, match="sample has no variant 'newest'; expected one of new, old"
    ):
        variant_of(PATCH, source)
    text = "class Thing:\n    def one(self):\n        return 1\n"
    found = judge(PATCH._replace(sources=(source,)), {"m": text}.get)
    assert (found.verdict, found.variant) == (Verdict.DRIFTED, None)
    assert "sample has no variant 'newest'" in found.reason


def test_the_package_has_its_ledger_and_reads_it_once():
    ledger._read.cache_clear()
    assert all(ledger.sources_of(patch) for patch in SERIES)
    assert ledger._read.cache_info().misses == 1
