"""A report says what is there, in text and in a page that needs nothing else."""

from __future__ import annotations

import itertools
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from megatron_patch import cli, report
from megatron_patch.commands import report as command
from megatron_patch.edits import Add, Before, Replace, Substitute
from megatron_patch.errors import TreeError
from megatron_patch.model import Kind
from megatron_patch.report import collecting, file
from megatron_patch.report.showing import shown
from megatron_patch.report.style import CSS
from megatron_patch.settings import Settings
from megatron_patch.states import PatchStatus, State

from .sample import digest_in, make_patch
from .source_trees import MODULE, PATH, write

HOSTILE = "</code></pre><script>alert('&')</script>\u202e\x1b[31m"
TEXT = f"""\
class Thing:
    def one(self):
        # {HOSTILE}
        return 1

    def two(self):
        x = 2
        return x

    def three(self):
        return 3
"""
DRIFTED = TEXT.replace("return 3", "return 3 + 0")


def one(self: object) -> int:
    return 11


def hook(self: object) -> None:
    self.seen = True  # type: ignore[attr-defined]


def helper() -> str:
    """A helper."""
    return "<b>"


known = digest_in(TEXT)
SERIES = (
    make_patch(Substitute(f"{MODULE}:Thing.one", "return 1", "return 11"), known=known, id="first"),
    make_patch(
        Before(f"{MODULE}:Thing.one", hook),
        Add(f"{MODULE}:helper", helper),
        known=known,
        id="second",
    ),
    make_patch(Replace(f"{MODULE}:Thing.three", one), known=known, id="third"),
    make_patch(Substitute(f"{MODULE}:Thing.two", "x = 2", "x = 4"), known=known, id="opt")._replace(
        default=False, summary=HOSTILE
    ),
)


@pytest.fixture(autouse=True)
def _environment(monkeypatch):  # type: ignore[no-untyped-def]
    monkeypatch.setattr(command, "SERIES", SERIES)
    for name in ("", "_ACCEPT", "_RECORDS", "_STRICT"):
        monkeypatch.delenv(f"MEGATRON_PATCH{name}", raising=False)


def made(root: Path, text: str = DRIFTED, **options):  # type: ignore[no-untyped-def]
    tree = write(root, text)
    on = Settings.from_environment(SERIES)
    return report.collected(tree, SERIES, [patch.id for patch in SERIES], on, **options)


class Page(HTMLParser):
    """Reads a page, and fails where tags do not match."""

    VOID = ("meta", "wbr")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.content = ""
        self.feed(text)
        self.close()
        assert self.stack == []

    def handle_starttag(self, tag, attributes):  # type: ignore[no-untyped-def]
        assert len(dict(attributes)) == len(attributes)
        self.tags.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.stack.append(tag)

    def handle_endtag(self, tag):  # type: ignore[no-untyped-def]
        assert self.stack.pop() == tag, (tag, self.getpos())

    def handle_data(self, data):  # type: ignore[no-untyped-def]
        if self.stack and self.stack[-1] != "style":
            self.content += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def test_the_page_is_whole_and_asks_for_nothing(tmp_path):
    text = report.page(made(tmp_path))
    page = Page(text)
    assert not {name for name, _ in page.tags} & {"script", "link", "img", "iframe", "base", "form"}
    values = {key: value for _, attributes in page.tags for key, value in attributes.items()}
    assert not {"src", "srcset", "style", "onclick", "action"} & values.keys()
    assert re.findall(r"url\(|@import|https?:", text) == []
    (policy,) = (m["content"] for m in page.all("meta") if m.get("http-equiv"))
    assert policy == "default-src 'none'; style-src 'unsafe-inline'"


def test_each_link_leads_to_the_one_place_of_its_name(tmp_path):
    page = Page(report.page(made(tmp_path)))
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids))
    links = [a["href"] or "" for a in page.all("a")]
    assert {link[:1] for link in links} == {"#"}
    assert {link[1:] for link in links} <= set(ids)
    named = [a["aria-labelledby"] for _, a in page.tags if "aria-labelledby" in a]
    assert set(named) <= set(ids)
    assert {"first", "second"} <= {link[1:] for link in links}


def test_what_a_screen_reader_goes_by(tmp_path):
    page = Page(report.page(made(tmp_path)))
    assert page.all("html") == [{"lang": "en"}]
    for landmark in ("header", "nav", "main", "h1", "title"):
        assert len(page.all(landmark)) == 1, landmark
    levels = [int(name[1]) for name, _ in page.tags if re.fullmatch("h[1-6]", name)]
    assert all(b - a <= 1 for a, b in itertools.pairwise(levels))
    for block in page.all("pre"):  # they scroll: the keyboard has to get there
        assert block["tabindex"] == "0"
        assert block["role"] == "group"  # a region each would be a landmark each
        assert block["aria-label"]
    assert {row.get("scope") for row in page.all("th")} == {"row"}
    assert len(page.all("details")) == len(page.all("summary")) == len(SERIES)
    assert page.all("a")[0] == {"class": "skip", "href": "#_main"}


def test_a_phone_is_wide_enough(tmp_path):
    page = Page(report.page(made(tmp_path)))
    (viewport,) = (m["content"] for m in page.all("meta") if m.get("name") == "viewport")
    assert viewport == "width=device-width, initial-scale=1"
    assert "prefers-color-scheme: dark" in CSS
    assert re.search(r"\npre \{[^}]*overflow-x: auto", CSS)
    assert re.search(r"\nbody \{[^}]*overflow-wrap: anywhere", CSS)
    narrow = CSS.partition("@media (max-width: 40rem)")[0]
    sizes = re.findall(r"(?<!max-)(?:min-)?width: ([\d.]+)rem", narrow)
    assert sizes
    assert all(float(size) * 16 < 390 - 32 for size in sizes)


def test_what_is_from_source_is_text(tmp_path):
    text = report.page(made(tmp_path))
    assert "alert(" in text
    assert "<script" not in text
    assert "&lt;/code&gt;&lt;/pre&gt;&lt;script&gt;alert(&#x27;&amp;&#x27;)" in text
    assert "\\u202e\\x1b[31m" in text
    assert not {"\u202e", "\x1b"} & set(text + report.text(made(tmp_path)))
    assert "<b>" not in text
    text.encode()


def test_text_of_others_is_shown_as_it_is_otherwise():
    assert shown("é\tx\n") == "é\tx\n"
    assert shown("a\0b\r\udcff\u200b") == "a\\x00b\\r\\udcff\\u200b"
    assert shown("a\nb", ends=False) == "a\\nb"


def test_the_page_says_what_was_found(tmp_path):
    content = Page(report.page(made(tmp_path))).content
    for part in (
        "1 drifted; 1 off",
        "Needs a look: 1",
        "Will be patched: 2",
        "Patched functions: 2",
        f"{PATH}:2",
        f"{PATH} (new)",
        "-        return 1",
        "+        return 11",
        "+        self.seen = True",
        "not set",
        "the patch puts a whole",
        "MEGATRON_PATCH_ACCEPT=third@",
        "applicable, but off (opt-in)",
    ):
        assert part in content, part


def test_a_patch_is_shown_on_top_of_those_before_it(tmp_path):
    found = made(tmp_path)
    changes = {entry.patch.id: entry.changes for entry in found.entries}
    (first,) = changes["first"]
    signs = [line for line in first.lines if line.sign in "+-"]
    assert signs == [("-", "        return 1"), ("+", "        return 11")]
    second, added = changes["second"]
    assert ("+", "        self.seen = True") in second.lines
    assert (" ", "        return 11") in second.lines
    assert (added.name, added.line) == ("helper", 0)
    assert {line.sign for line in added.lines} == {"+"}
    assert changes["third"] == changes["opt"] == ()
    assert [(f.name, f.patches) for f in found.functions] == [
        ("helper", ("second",)),
        ("Thing.one", ("first", "second")),
    ]


def test_lines_that_are_left_out_are_counted(tmp_path):
    rows = "\n".join(f"        x = {n}" for n in range(20))
    text = TEXT.replace("        x = 2", rows + "\n        x = 2")
    patch = make_patch(
        Substitute(f"{MODULE}:Thing.two", "x = 10", "x = 99"), known=digest_in(text), id="long"
    )
    on = Settings(frozenset({"long"}))
    found = report.collected(write(tmp_path, text), [patch], ["long"], on)
    ((change,),) = (entry.changes for entry in found.entries)
    assert [line.text for line in change.lines if line.sign == "@"] == ["8 lines", "8 lines"]
    assert sum(line.sign in " -" for line in change.lines) == 7


def test_the_text_fits_a_terminal(tmp_path):
    lines = report.text(made(tmp_path)).splitlines()
    assert [line for line in lines if len(line) > 80 and " " in line.strip()] == []
    text = "\n".join(lines)
    for part in ("Needs a look (1)", "third: drifted", "+        return 11", f"    {PATH}:2"):
        assert part in text


def test_states_of_a_process(tmp_path):
    def status(id: str, state: State) -> PatchStatus:
        return PatchStatus(id, Kind.CORRECTNESS, state, f"why <{id}>", None, None)

    states = [status("first", State.SHADOWED), status("second", State.APPLIED)]
    states += [status("third", State.DRIFTED), status("opt", State.DISABLED)]
    content = Page(report.page(made(tmp_path, states=states))).content
    assert "shadowed: why <first>" in content
    assert "Needs a look: 2" in content
    assert "Patched, or to be patched: 1" in content
    assert "in this process: shadowed: why <first>" in report.text(made(tmp_path, states=states))


def test_of_process_asks_this_process(tmp_path, monkeypatch):
    tree = write(tmp_path, TEXT)
    monkeypatch.setattr(collecting.SourceTree, "installed", lambda: tree)
    found = report.of_process()
    assert {entry.status.id for entry in found.entries if entry.status} == {
        entry.patch.id for entry in found.entries
    }
    assert found.megatron == f"megatron-core of unknown version in {tmp_path}"


def run(root: Path, *arguments: str, text: str = DRIFTED) -> int:
    write(root, text)
    return cli.main(["report", "--megatron", str(root), *arguments])


def test_the_exit_status_is_that_of_check(tmp_path, capsys):
    assert run(tmp_path) == 3
    assert run(tmp_path, text=TEXT) == 0
    assert run(tmp_path, "-third") == 0
    capsys.readouterr()
    assert run(tmp_path, "first", "opt") == 0
    said = capsys.readouterr().out
    assert "ids of the command line" in said
    assert "first,opt" in said
    assert "second:" not in said


def test_against_shows_the_whole_method(tmp_path, capsys):
    write(tmp_path / "known", TEXT)
    assert run(tmp_path / "fork", "third", "--against", str(tmp_path / "known")) == 3
    assert "+    return 3 + 0" in capsys.readouterr().out


def test_the_page_is_written_whole(tmp_path, capsys):
    out = tmp_path / "report.html"
    assert run(tmp_path / "fork", "--html", str(out)) == 3
    first = out.read_text("utf-8")
    Page(first)
    assert run(tmp_path / "fork", "--html", str(out), text=TEXT) == 0
    assert out.read_text("utf-8") != first
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["report.html"]


def test_what_is_no_report_is_left_alone(tmp_path, capsys):
    out = tmp_path / "notes.html"
    out.write_text("<!doctype html>mine")
    assert run(tmp_path / "fork", "--html", str(out)) == 1
    assert f"{out} is there, and is no report of megatron_patch; add --force" in (
        capsys.readouterr().err
    )
    assert out.read_text() == "<!doctype html>mine"
    assert run(tmp_path / "fork", "--html", str(out), "--force") == 3
    Page(out.read_text("utf-8"))
    (tmp_path / "folder").mkdir()
    assert run(tmp_path / "fork", "--html", str(tmp_path / "folder"), "--force") == 1
    assert list((tmp_path / "folder").iterdir()) == []


def test_a_report_that_cannot_be_written_leaves_the_earlier_one(tmp_path, monkeypatch):
    found = made(tmp_path / "fork")
    out = tmp_path / "report.html"
    report.write(found, out)
    before = out.read_bytes()

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(file.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        report.write(found, out)
    assert out.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["report.html"]


def test_a_link_to_a_report_stays_a_link(tmp_path):
    found = made(tmp_path / "fork")
    report.write(found, tmp_path / "real.html")
    (tmp_path / "link.html").symlink_to(tmp_path / "real.html")
    report.write(found, tmp_path / "link.html")
    assert (tmp_path / "link.html").is_symlink()
    (tmp_path / "other").write_text("mine")
    (tmp_path / "link.html").unlink()
    (tmp_path / "link.html").symlink_to(tmp_path / "other")
    with pytest.raises(TreeError, match="is no report"):
        report.write(found, tmp_path / "link.html")


def test_a_tree_that_cannot_be_read_is_reported(tmp_path):
    found = made(tmp_path, "def (:\n")
    assert [entry.changes for entry in found.entries] == [()] * len(SERIES)
    Page(report.page(found))
