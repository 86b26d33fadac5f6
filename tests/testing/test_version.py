from __future__ import annotations

from pathlib import Path

import pytest
from packaging.version import Version

from megatron_patch import sources
from megatron_patch.testing.version import core_release, core_version

from ..unit.trees import python

ASK = "from megatron_patch.testing import version; print(version.core_version())"


def say(root: Path, text: str) -> Path:
    info = root / "megatron" / "core" / "package_info.py"
    info.parent.mkdir(parents=True)
    info.write_text(text)
    return info


@pytest.mark.parametrize("suffix", ["", "rc0"])
def test_a_checkout_is_asked_and_not_what_else_is_installed(tmp_path, suffix):
    text = f"MAJOR = 7\nMINOR = 8\nPATCH = 9\nPRE_RELEASE = '{suffix}'\nraise OSError\n"
    say(tmp_path, text)
    metadata = tmp_path / "megatron_core-1.2.3.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: megatron-core\nVersion: 1.2.3")
    done = python("-c", ASK, path=tmp_path)
    assert done.stdout == f"7.8.9{suffix}\n", done.stderr


def test_a_pre_release_counts_as_the_release_that_it_leads_to(monkeypatch):
    for version, release in {"0.18.0rc0": "0.18", "0.16.1": "0.16.1"}.items():
        monkeypatch.setattr(sources, "megatron_version", lambda version=version: version)
        assert core_version() == version
        assert core_release() == Version(release)
        assert not core_release().is_prerelease


def test_no_megatron(tmp_path):
    done = python("-c", ASK, path=tmp_path)
    assert done.returncode == 1
    assert "RuntimeError: there is no module megatron.core.package_info: install" in done.stderr


def test_a_file_without_a_version_is_named(tmp_path):
    info = say(tmp_path, "MAJOR, MINOR, PATCH = 1, 2, 3\n")
    done = python("-c", ASK, path=tmp_path)
    assert done.returncode == 1
    assert f"RuntimeError: {info} says no version: it has to set MAJOR" in done.stderr
