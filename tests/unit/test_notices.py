"""A patch that is not active is reported once, wherever a process sends its messages."""

from __future__ import annotations

import pytest

from .test_running import variables
from .trees import IMPORT_ALL, python

__all__ = ["variables"]

TOLD = "input-position-view-cache is drifted: unknown source"


def told(variables, before: str = "", *options: str, **settings: str):  # type: ignore[no-untyped-def]
    """What a process with a drifted patch says on stderr."""
    drifted = {**variables, "MEGATRON_PATCH_ACCEPT": "", **settings}
    code = f"import logging, sys, warnings\n{before}\nimport megatron_patch\n{IMPORT_ALL}\n"
    done = python(*options, "-c", code, **drifted)
    assert done.returncode == int("MEGATRON_PATCH_STRICT" in settings), done.stderr
    return done.stderr


@pytest.mark.parametrize(
    ("before", "options", "how"),
    [
        ("", [], "MegatronPatchWarning: "),
        ("logging.basicConfig()", [], "WARNING:megatron_patch:"),
        ("", ["-W", "ignore"], "megatron_patch: "),
        ("", ["-W", "error"], "megatron_patch: "),
        ("logging.basicConfig()", ["-W", "ignore"], "WARNING:megatron_patch:"),
        ("logging.basicConfig(level='ERROR')", [], "MegatronPatchWarning: "),
        ("logging.basicConfig(stream=sys.stdout)", [], "MegatronPatchWarning: "),
        ("logging.getLogger('megatron_patch').propagate = False", [], "MegatronPatchWarning: "),
        ("warnings.filterwarnings('ignore', 'other')", [], "MegatronPatchWarning: "),
        ("warnings.simplefilter('ignore', DeprecationWarning)", [], "MegatronPatchWarning: "),
        ("warnings.simplefilter('ignore', UserWarning)", [], "megatron_patch: "),
    ],
)
def test_a_drifted_patch_is_on_stderr_once(variables, before, options, how):
    said = told(variables, before, *options)
    assert said.count(TOLD) == 1, said
    assert f"{how}{TOLD}" in said


def test_a_log_file_gets_a_record_beside_the_warning(variables, tmp_path):
    file = tmp_path / "log"
    said = told(variables, f"logging.basicConfig(filename={str(file)!r})")
    assert said.count(TOLD) == 1
    assert f"MegatronPatchWarning: {TOLD}" in said
    assert file.read_text().count(f"WARNING:megatron_patch:{TOLD}") == 1


def test_what_is_raised_is_not_told_besides(variables):
    said = told(variables, MEGATRON_PATCH_STRICT="1")
    assert said.count(TOLD) == 1
    assert f"StrictModeError: {TOLD}" in said.splitlines()[-1]
