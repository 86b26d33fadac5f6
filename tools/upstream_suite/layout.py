"""A folder in which upstream's tests run, made of links to a checkout and of copies of its tests.

Nothing is written to the checkout: compiled files go elsewhere (`PYTHONPYCACHEPREFIX`), and the
tests, beside which pytest and some tests write, are copied. Their top `conftest.py` is left out: it
downloads data. The plugin provides what else tests need of it.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from megatron_patch.errors import NotMegatronError
from megatron_patch.source_tree import SourceTree

TESTS = Path("tests/unit_tests")
# Not taken over from a checkout: `tools` is where the plugin is imported from.
LEFT_OUT = frozenset({"tests", "tools", "megatron"})
INI = """[pytest]
markers =
    internal: of upstream
    flaky: of upstream
    flaky_in_dev: of upstream
    experimental: of upstream
    asyncio: a coroutine
    timeout: of pytest-timeout, not used
"""


class LayoutError(Exception):
    """The tests cannot be laid out to run; the message says what was expected."""


def build(folder: Path, checkout: Path, installed: bool = False) -> SourceTree:
    """Make `folder` a place to run the tests of `checkout` in; returns the Megatron that they test.

    Args:
        folder: does not exist yet.
        installed: test the `megatron.core` that is installed, and not that of the checkout.

    Raises:
        LayoutError: the checkout has no tests, or there is no `megatron.core`.
    """
    tests = checkout / TESTS
    if not tests.is_dir():
        raise LayoutError(f"{checkout} has no {TESTS}: expected a checkout of Megatron-LM")
    try:
        source = SourceTree.installed() if installed else SourceTree.at(checkout)
    except NotMegatronError as error:
        raise LayoutError(str(error)) from None
    folder.mkdir(parents=True)
    for entry in checkout.iterdir():
        if entry.name not in LEFT_OUT and not entry.name.startswith("."):
            _link(folder, entry)
    (folder / "megatron").mkdir()
    packages = checkout / "megatron"
    for entry in packages.iterdir() if packages.is_dir() else ():
        if entry.name != "core":
            _link(folder / "megatron", entry)
    _link(folder / "megatron", source.root / "megatron" / "core")
    _copy_tests(folder / "tests", checkout / "tests")
    (folder / "pytest.ini").write_text(INI)
    return SourceTree.at(folder)


def _link(folder: Path, target: Path) -> None:
    (folder / target.name).symlink_to(target.resolve())


def _copy_tests(folder: Path, tests: Path) -> None:
    folder.mkdir()
    for entry in tests.iterdir():
        if entry.name != TESTS.name and entry.name != "__pycache__":
            _link(folder, entry)
    copied = folder / TESTS.name
    shutil.copytree(tests / TESTS.name, copied, ignore=shutil.ignore_patterns("__pycache__"))
    (copied / "conftest.py").unlink(missing_ok=True)
    # Else `import tests` would find the next `tests` on the path that is a package.
    for package in (folder, copied):
        if not (package / "__init__.py").exists():
            (package / "__init__.py").touch()
