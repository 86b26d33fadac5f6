"""Have every start of one environment's Python wait for Megatron: a ``.pth`` in its site-packages.

Python reads such a file at each start, whatever ``PYTHONPATH`` and the other variables are, and
under ``-E`` and ``-I`` too. Only ``-S``, which leaves site-packages out, leaves it out.
"""

from __future__ import annotations

import ast
import os
import re
import site
import sysconfig
from pathlib import Path

from .errors import EnablingError
from .launcher import SITE

NAME = "megatron-patch.pth"
_OURS = "# Written by `megatron-patch enable`; `megatron-patch disable` removes it.\n"
_START = "import os; exec("

# Does nothing where the package has been uninstalled since. As a function of its own file it is
# compiled once, and not at each start.
_CODE = """
import os
if os.path.isfile(file):
    from importlib.machinery import SourceFileLoader
    module = type(os)("_megatron_patch_start")
    module.__file__ = file
    SourceFileLoader(module.__name__, file).exec_module(module)
"""


def folder() -> Path:
    """The site-packages of the interpreter that runs. Raises ``EnablingError`` if it has none."""
    found = sysconfig.get_path("purelib")
    if found not in site.getsitepackages() or not os.path.isdir(found):
        raise EnablingError(
            f"{found} is not a directory where this Python looks for .pth files; use a virtual "
            "environment"
        )
    return Path(found)


def enable() -> tuple[Path, bool]:
    """Write the file. Returns its path, and whether this changed it. Idempotent.

    Raises ``EnablingError`` where site-packages cannot be written, or where the name belongs to a
    file of somebody else's. Then nothing is changed.
    """
    file = folder() / NAME
    text = _text(SITE / "sitecustomize.py")
    if _read(file) == text:
        return file, False
    new = file.with_name(f"{NAME}.{os.getpid()}.new")  # not .pth, so that no start reads half of it
    try:
        try:
            with open(new, "x", encoding="ascii") as opened:
                opened.write(text)
            os.replace(new, file)
        finally:
            new.unlink(missing_ok=True)
    except OSError as error:
        raise EnablingError(
            f"{file} cannot be written: {error.strerror}; enable the patches as the owner of this "
            "Python, or in a virtual environment of your own"
        ) from error
    return file, True


def disable() -> tuple[Path, bool]:
    """Remove the file. Returns its path, and whether it was there. Raises ``EnablingError``."""
    file = folder() / NAME
    if _read(file) is None:
        return file, False
    try:
        file.unlink()
    except OSError as error:
        raise EnablingError(f"{file} cannot be removed: {error.strerror}") from error
    return file, True


def enabled() -> Path | None:
    """The directory of the package that the file starts, this or another; ``None`` without a file.

    Raises ``EnablingError`` when the file is not one of ours.
    """
    text = _read(folder() / NAME)
    if text is None:
        return None
    found = re.search(r"\{'file': (.*)\}\)\n\Z", text)
    try:
        file = Path(ast.literal_eval(found[1] if found else ""))
    except (SyntaxError, ValueError, TypeError):
        raise EnablingError(
            f"{folder() / NAME} is damaged; `megatron-patch enable` writes it anew"
        ) from None
    return file.parent


def _text(file: Path) -> str:
    # In ASCII, since versions of Python read these files in different encodings.
    return f"{_OURS}{_START}{_CODE!a}, {{'file': {os.path.abspath(file)!a}}})\n"


def _read(file: Path) -> str | None:
    """The text of our file, ``None`` without a file. Raises ``EnablingError`` if it is not ours."""
    if not os.path.lexists(file):
        return None
    try:
        text = "" if file.is_symlink() else file.read_text(encoding="ascii", errors="replace")
    except OSError as error:
        raise EnablingError(f"{file} cannot be read: {error.strerror}") from error
    if not text.startswith(_OURS):
        raise EnablingError(f"{file} is not a file that `megatron-patch enable` has written")
    return text
