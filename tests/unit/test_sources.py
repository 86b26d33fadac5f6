"""Source text without an import."""

from __future__ import annotations

import sys
import zipfile

import pytest

from megatron_patch.errors import SourceMissingError
from megatron_patch.sources import find_module_spec, read_source


@pytest.fixture
def tree(tmp_path, monkeypatch):  # type: ignore[no-untyped-def]
    package = tmp_path / "read_package" / "inner"
    package.mkdir(parents=True)
    (tmp_path / "read_package" / "__init__.py").write_text("raise OSError('imported')\n")
    (package / "__init__.py").write_text("raise OSError('imported')\n")
    (package / "leaf.py").write_text("x = 'ü'\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_nothing_is_imported(tree):
    assert read_source("read_package.inner.leaf") == "x = 'ü'\n"
    assert not any(name.startswith("read_package") for name in sys.modules)


@pytest.mark.parametrize(
    "name", ["no_such_package", "read_package.no", "read_package.inner.leaf.below"]
)
def test_what_does_not_exist(tree, name):
    assert find_module_spec(name) is None
    assert read_source(name) is None


def test_a_module_in_a_zip(tmp_path, monkeypatch):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("zipped_package/__init__.py", "")
        archive.writestr("zipped_package/leaf.py", "y = 2\n")
    monkeypatch.syspath_prepend(str(tmp_path / "a.zip"))
    assert read_source("zipped_package.leaf") == "y = 2\n"


def test_a_module_without_text():
    with pytest.raises(SourceMissingError, match="_json has no source text"):
        read_source("_json" if "_json" not in sys.builtin_module_names else "_sre")


def test_a_module_in_a_namespace_package(tmp_path, monkeypatch):
    inner = tmp_path / "outer_package" / "spaced" / "deep"
    inner.mkdir(parents=True)
    (tmp_path / "outer_package" / "__init__.py").write_text("raise OSError('imported')\n")
    (inner / "leaf.py").write_text("z = 3\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert read_source("outer_package.spaced.deep.leaf") == "z = 3\n"
    assert read_source("outer_package.spaced.deep.missing") is None
