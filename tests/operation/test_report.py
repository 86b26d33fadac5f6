"""The report of the installed Megatron, in a terminal, in a process and in a browser."""

from __future__ import annotations

import html
import re
import shutil
import subprocess
import sys

import pytest

from megatron_patch.source_tree import SourceTree

from ..unit.test_report import Page
from .test_command import MODULE, megatron_patch_command

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next((found for name in NAMES if (found := shutil.which(name))), None)
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
#: A window of Chromium is never as narrow as a phone's, but a frame is.
FRAME = """<!doctype html><title>frame</title>
<iframe style="width: {width}px; height: {height}px; border: 0" srcdoc="{page}"></iframe>
<script>
addEventListener("load", () => {{
  const inside = document.querySelector("iframe").contentDocument;
  const blocks = [...inside.querySelectorAll("pre")];
  document.documentElement.dataset.inner = inside.defaultView.innerWidth;
  document.documentElement.dataset.wide = inside.documentElement.scrollWidth;
  document.documentElement.dataset.scrolling =
    blocks.filter((block) => block.scrollWidth > block.clientWidth).length;
}});
</script>"""


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> str:  # type: ignore[no-untyped-def]
    file = tmp_path_factory.mktemp("report") / "report.html"
    done = megatron_patch_command("report", "--html", str(file))
    assert done.returncode in (0, 3), done.stderr
    assert done.stdout == f"wrote {file}\n"
    text: str = file.read_text(encoding="utf-8")
    return text


def test_the_page_of_the_release(written):
    page = Page(written)
    assert f"in {SourceTree.installed().root.absolute()}" in page.content
    assert "Will be patched: " in page.content
    assert len(page.all("pre")) > 20


def test_the_text_of_the_release():
    done = megatron_patch_command("report")
    assert done.returncode in (0, 3), done.stderr
    assert "Functions that run patched code" in done.stdout
    wide = [x for x in done.stdout.splitlines() if len(x) > 80 and re.search(r"\S\s+\S", x.strip())]
    assert wide == []


def test_the_report_of_a_process(tmp_path):
    script = tmp_path / "serve.py"
    script.write_text(
        f"import importlib, pathlib\nimportlib.import_module('{MODULE}')\n"
        "from megatron_patch import report\n"
        "report.write(report.of_process(), pathlib.Path(__file__).with_name('report.html'))\n"
    )
    done = megatron_patch_command("run", "--", sys.executable, "-W", "ignore", str(script))
    assert done.returncode == 0, done.stderr
    content = Page((tmp_path / "report.html").read_text(encoding="utf-8")).content
    assert "in this process" in content
    assert "block-allocator-reset" in content


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
@pytest.mark.parametrize(("width", "height"), [(390, 844), (1280, 800)])
def test_the_page_itself_never_scrolls_sideways(written, tmp_path, width, height):
    """It does not with all patches unfolded; blocks of code scroll by themselves."""
    file = tmp_path / "frame.html"
    page = html.escape(written.replace("<details>", "<details open>"))
    file.write_text(FRAME.format(width=width, height=height, page=page), encoding="utf-8")
    assert CHROMIUM is not None
    done = subprocess.run(
        [
            CHROMIUM,
            *FLAGS,
            f"--user-data-dir={tmp_path / 'profile'}",
            "--dump-dom",
            file.as_uri(),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    (root,) = re.findall(r"<html[^>]*>", done.stdout)
    found = {k: int(v) for k, v in re.findall(r'data-(\w+)="(\d+)"', root)}
    assert found["inner"] == width
    assert found["wide"] <= width
    assert width > 390 or found["scrolling"] > 10
