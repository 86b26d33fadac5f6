"""What the README shows first is what happens."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from megatron_patch import State

from ..conftest import expected_state

README = Path(__file__).parents[2] / "README.md"


def test_the_first_example_prints_what_is_patched():
    (example, *_) = re.findall(r"```python\n(.*?)```", README.read_text("utf-8"), re.DOTALL)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", example],
        env={k: v for k, v in os.environ.items() if k != "MEGATRON_PATCH"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    states = dict(line.split(": ") for line in done.stdout.splitlines())
    assert states["block-allocator-reset"] == expected_state(State.APPLIED)
    assert states.keys() > {"input-position-view-cache", "http-parameters"}


def test_each_page_that_the_readme_links_to_is_there():
    text = README.read_text("utf-8")
    pages = {link.partition("#")[0] for link in re.findall(r"\]\((?!https?:)([^)]+)\)", text)}
    pages |= set(re.findall(r"\]\(([^)#]*)#", text))
    assert len(pages) > 5
    assert [page for page in pages if not (README.parent / page).exists()] == []
    headings = {
        re.sub(r"[^\w\- ]", "", line.lstrip("# ").lower()).strip().replace(" ", "-")
        for line in text.splitlines()
        if line.startswith("#")
    }
    assert set(re.findall(r"\]\(#([^)]+)\)", text)) <= headings
