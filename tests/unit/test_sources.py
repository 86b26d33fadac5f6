"""Source text without an import."""

from __future__ import annotations

import importlib
import py_compile
import sys
import zipfile

import pytest

from megatron_patch.errors import SourceMissingError
from megatron_patch.source_tree import SourceTree
from megatron_patch.sources import find_module_spec, megatron_version, read_source


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


@pytest.fixture
def compiled_info(tmp_path, monkeypatch):  # type: ignore[no-untyped-def]
    """A ``megatron.core`` that has only compiled modules, and no other."""
    others = {name: module for name, module in sys.modules.items() if is_megatron(name)}
    for name in others:
        del sys.modules[name]
    core = tmp_path / "megatron" / "core"
    core.mkdir(parents=True)
    for name, text in {
        "__init__": "",
        "package_info": "MAJOR = 7\nMINOR = 8\nPATCH = 9\nPRE_RELEASE = 'rc1'\n",
    }.items():
        (core / f"{name}.py").write_text(text)
        py_compile.compile(str(core / f"{name}.py"), cfile=str(core / f"{name}.pyc"), doraise=True)
        (core / f"{name}.py").unlink()
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name in filter(is_megatron, list(sys.modules)):
        del sys.modules[name]
    sys.modules.update(others)


def is_megatron(name: str) -> bool:
    return name.partition(".")[0] == "megatron"


def test_the_version_of_a_megatron_without_source_is_known_once_it_is_imported(compiled_info):
    assert megatron_version() is None
    importlib.import_module("megatron.core.package_info")
    assert megatron_version() == "7.8.9rc1"
    assert megatron_version(SourceTree.at(compiled_info).read) is None


@pytest.mark.parametrize("text", ["MAJOR = (", "MAJOR = 1\0", "MAJOR = '\ud800'", "(" * 9999])
def test_a_version_that_cannot_be_read(text):
    assert megatron_version(lambda name: text) is None


def test_a_version_beside_what_the_compiler_warns_of():
    text = "MAJOR = 1\nMINOR = 2\nPATCH = 3\nx = '\\d'\n"
    assert megatron_version(lambda name: text) == "1.2.3"


def test_a_file_that_cannot_be_read_has_no_source(tmp_path):
    (tmp_path / "megatron" / "core").mkdir(parents=True)
    (tmp_path / "megatron" / "core" / "__init__.py").write_text("")
    (tmp_path / "megatron" / "core" / "broken.py").symlink_to("/proc/self/mem")
    with pytest.raises(SourceMissingError, match=r"broken\.py cannot be read: Input/output error"):
        SourceTree.at(tmp_path).read("megatron.core.broken")
