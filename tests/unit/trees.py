"""Megatron trees that a test writes, and the package's command on them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import megatron_patch
from megatron_patch.backports import SERIES
from megatron_patch.edits import Target

# A directory with the package under test and nothing else, wherever that is installed.
_directory = tempfile.TemporaryDirectory(prefix="megatron_patch-")
PACKAGE_PARENT = _directory.name
Path(PACKAGE_PARENT, "megatron_patch").symlink_to(Path(megatron_patch.__file__).parent)

ID = "input-position-view-cache"
#: The modules that have to be imported for each patch to have a state.
MODULES = sorted({Target.parse(patch.target).module for patch in SERIES})
IMPORT_ALL = f"import {', '.join(MODULES)}"


def environment(*path: Path | str, **variables: str) -> dict[str, str]:
    """The environment of a child that imports the package under test, and what ``path`` holds."""
    search = os.pathsep.join([*map(str, path), PACKAGE_PARENT])
    return {**os.environ, "PYTHONPATH": search, **variables}


def python(*arguments: str, path: Path | None = None, isolate: bool = True, **variables: str):  # type: ignore[no-untyped-def]
    """Python without site-packages, so that only what ``path`` holds is installed."""
    return subprocess.run(
        [sys.executable, *["-S"] * isolate, *arguments],
        cwd=PACKAGE_PARENT,
        env=environment(*[path] * bool(path), **variables),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def command(*arguments: str, path: Path | None = None, isolate: bool = True, **variables: str):  # type: ignore[no-untyped-def]
    """``python -m megatron_patch``."""
    return python("-m", "megatron_patch", *arguments, path=path, isolate=isolate, **variables)


def write_tree(root: Path, context: str, version: tuple[int, int, int] | None = None) -> Path:
    """A Megatron of empty modules, but ``context`` for ``dynamic_context``; returns that file.

    Its packages raise when they are imported, unless ``version`` is ``None``.
    """
    for module in MODULES:
        file = root.joinpath(*module.split(".")).with_suffix(".py")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(context if file.stem == "dynamic_context" else "")
        for package in list(file.parents)[: module.count(".") - 1]:
            (package / "__init__.py").write_text("" if version is None else "raise OSError\n")
    core = root / "megatron" / "core"
    if version is not None:
        names = ("MAJOR", "MINOR", "PATCH")
        lines = [f"{name} = {number}" for name, number in zip(names, version, strict=True)]
        info = core / "package_info.py"
        info.write_text("\n".join([*lines, "PRE_RELEASE = 'rc1'", "raise OSError"]))
    return core / "inference" / "contexts" / "dynamic_context.py"


PATCHABLE = """
class DynamicInferenceContext:
    def __init__(self):
        self.padded_active_token_count = 1

    def current_input_and_position_ids(self, *, num_warmup_tokens=None):
        return 1
"""


def write_patchable_tree(root: Path) -> dict[str, str]:
    """A Megatron that one patch applies to, and the variables that it needs for that."""
    write_tree(root, PATCHABLE)
    (root / "megatron" / "core" / "__init__.py").touch()
    checked = command("check", "--json", "--megatron", str(root))
    (line,) = (
        patch["accept"] for patch in json.loads(checked.stdout)["patches"] if patch["accept"]
    )
    return {"MEGATRON_PATCH": ID, "MEGATRON_PATCH_ACCEPT": line}
