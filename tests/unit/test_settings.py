"""The environment variables."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from megatron_patch.edits import Substitute
from megatron_patch.errors import SettingsError
from megatron_patch.model import NEWEST_RELEASE, Kind
from megatron_patch.settings import Settings, selected

from .sample import make_patch

OUTSIDE = make_patch(Substitute("m:f", "1", "2"), known=lambda _: "0", id="their-own")
SAMPLE = OUTSIDE._replace(sources=None)  # known by the ledger, as all of this package
#: The change of `a` is in the newest release, that of `c` in none; `b` is ours.
SERIES = (
    SAMPLE._replace(id="a", fixed_in=NEWEST_RELEASE),
    SAMPLE._replace(id="b", kind=Kind.PERFORMANCE, upstream_pr=None, fixed_in=None),
    SAMPLE._replace(id="c", fixed_in="999.0.0"),
    SAMPLE._replace(id="opt", default=False),
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "a b c"),
        ("all", "a b c"),
        (" all , ", "a b c"),
        ("none", ""),
        ("a", "a"),
        ("correctness", "a c"),
        ("performance", "b"),
        ("upstream", "a"),
        ("main", "c"),
        ("ours", "b"),
        ("-ours", "a c"),
        ("upstream,main", "a c"),
        ("upstream,b,-a", "b"),
        ("correctness,-main", "a"),
        ("-a", "b c"),
        ("-correctness", "b"),
        ("all,-b", "a c"),
        ("all,opt", "a b c opt"),
        ("opt", "opt"),
        ("-all,b", "b"),
        ("none,a", "a"),
    ],
)
def test_selection(text, expected):
    settings = Settings.from_environment(SERIES, {"MEGATRON_PATCH": text})
    assert settings.selected == set(expected.split())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "a b c their-own"),
        ("outside", "their-own"),
        ("-outside", "a b c"),
        ("upstream,ours", "a b"),
        ("their-own", "their-own"),
        ("-their-own,-a", "b c"),
    ],
)
def test_records_of_others_are_a_group(text, expected):
    assert selected((*SERIES, OUTSIDE), text) == set(expected.split())


@pytest.mark.parametrize("text", ["d", "a,d", "-d", "A", "-none", "a b", "Upstream"])
def test_an_unknown_name_is_an_error_that_lists_the_known_ones(text):
    with pytest.raises(SettingsError, match="unknown name") as caught:
        Settings.from_environment(SERIES, {"MEGATRON_PATCH": text})
    for name in (
        "MEGATRON_PATCH=",
        "all",
        "none",
        "correctness",
        "performance",
        "upstream",
        "ours",
        "a, b, c",
    ):
        assert name in str(caught.value)


@pytest.mark.parametrize(("text", "expected"), [("", False), ("0", False), ("1", True)])
def test_strict(text, expected):
    assert Settings.from_environment((), {"MEGATRON_PATCH_STRICT": text}).strict is expected


def test_strict_takes_nothing_else():
    with pytest.raises(SettingsError, match="MEGATRON_PATCH_STRICT='yes': expected 0 or 1"):
        Settings.from_environment((), {"MEGATRON_PATCH_STRICT": "yes"})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", {}),
        ("a@0123456789abcdef", {"a": {"0123456789abcdef"}}),
        (
            " a@0123456789abcdef, b@00000000000000ff ,a@00000000000000ff,",
            {"a": {"0123456789abcdef", "00000000000000ff"}, "b": {"00000000000000ff"}},
        ),
    ],
)
def test_accept(text, expected):
    assert Settings.from_environment(SERIES, {"MEGATRON_PATCH_ACCEPT": text}).accepted == expected


@pytest.mark.parametrize("text", ["a", "a@", "d@0123456789abcdef", "a@0123", "a@0123456789ABCDEF"])
def test_accept_takes_ids_and_digests_only(text):
    with pytest.raises(
        SettingsError, match="expected a comma-separated list of ID@DIGEST"
    ) as caught:
        Settings.from_environment(SERIES, {"MEGATRON_PATCH_ACCEPT": text})
    assert "a, b, c, opt" in str(caught.value)


def test_a_typo_raises_at_import():
    done = subprocess.run(
        [sys.executable, "-c", "import megatron_patch"],
        env={**os.environ, "MEGATRON_PATCH": "input-position-view-cach"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "unknown name 'input-position-view-cach'" in done.stderr
    assert "input-position-view-cache" in done.stderr
