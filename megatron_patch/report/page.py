"""A report as one page of HTML that needs nothing else: no script, no network, no font.

What comes from source, from the environment and from records is text, and escaped.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Iterator, Sequence

from .. import __version__
from ..inspection import summary
from ..settings import ACCEPT
from ..verdicts import Verdict
from .changes import Change, Line
from .collecting import Entry, Function, Report
from .groups import Group, groups, reviewed
from .showing import shown
from .style import CSS

#: What all reports begin with, and nothing else does.
BEGINNING = '<!doctype html>\n<html lang="en">\n<!-- megatron_patch report -->\n'


def page(report: Report) -> str:
    """The page, with a line end at its end."""
    parts = groups(report.entries)
    functions = report.functions
    links = [(group.name, f"{group.heading}: {len(group.entries)}") for group in parts]
    links += [("functions", f"Patched functions: {len(functions)}")]
    links += [("environment", "Environment"), ("settings", "Settings")]
    items = "".join(f'<li><a href="#_{name}">{text(label)}</a></li>' for name, label in links)
    body = [
        '<a class="skip" href="#_main">Skip to what was found</a>',
        f"<header><h1>megatron_patch report</h1>\n<p>{text(report.megatron)}</p>\n"
        f"<p>{text(report.made)}: {text(summary(report.findings))}</p></header>",
        f'<nav aria-label="Sections"><ul>{items}</ul></nav>',
        '<main id="_main">',
        *(_section(group.name, group.heading, _group(group)) for group in parts),
        _section("functions", "Patched functions", _functions(functions)),
        _section("environment", "Environment", _table(report.environment)),
        _section("settings", "Settings", _table(report.settings)),
        "</main>",
    ]
    return BEGINNING + _head(report) + "<body>\n" + "\n".join(body) + "\n</body>\n</html>\n"


def text(value: object) -> str:
    """Any text in the page, escaped for content and for the value of an attribute."""
    return html.escape(shown(str(value)))


def _head(report: Report) -> str:
    return (
        '<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        # Whatever is in it, a browser asks nobody for anything, and runs nothing.
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        f'<meta name="generator" content="megatron_patch {text(__version__)}">\n'
        f"<title>megatron_patch report: {text(report.megatron)}</title>\n"
        f"<style>{CSS}</style>\n</head>\n"
    )


def _section(name: str, heading: str, content: str) -> str:
    return (
        # No patch has an id that begins so.
        f'<section id="_{name}" aria-labelledby="_{name}-heading">'
        f'<h2 id="_{name}-heading">{text(heading)}</h2>\n{content}\n</section>'
    )


def _table(rows: Iterable[tuple[str, str]]) -> str:
    lines = "".join(
        f'<tr><th scope="row">{text(name)}</th><td>{text(value)}</td></tr>\n'
        for name, value in rows
    )
    return f'<table class="plain">\n{lines}</table>'


def _group(group: Group) -> str:
    return "\n".join(_entry(entry, is_open=group.name == "look") for entry in group.entries)


def _entry(entry: Entry, *, is_open: bool) -> str:
    patch, finding = entry.patch, entry.finding
    rows = [
        ("what it is", reviewed(entry)),
        ("without it", patch.symptom),
        ("with it", patch.outcome),
        ("in this source", finding.found),
        ("why", finding.reason),
    ]
    if entry.status is not None:
        rows.append(("in this process", f"{entry.status.state}: {entry.status.reason}"))
    if finding.verdict is Verdict.DRIFTED:
        rows.append(("known source", "; ".join(finding.known)))
    if finding.accept is not None:
        rows.append(("to accept it", f"{ACCEPT}={finding.accept}"))
    tone = "look" if is_open else "fine" if entry.changes else "quiet"
    label = finding.found if entry.status is None else str(entry.status.state)
    terms = "".join(f"<dt>{text(name)}</dt><dd>{text(value)}</dd>\n" for name, value in rows)
    return (
        f"<details{' open' * is_open}><summary><code>{text(patch.id)}</code>"
        f'<span class="{tone}">{text(label)}</span>'
        f'<span class="what">{text(patch.summary)}</span></summary>\n'
        # A browser that is led to what is inside opens it.
        f'<div class="body" id="{text(patch.id)}"><dl>\n{terms}</dl>\n{_drift(entry)}'
        f"{''.join(map(_change, entry.changes))}</div></details>"
    )


def _drift(entry: Entry) -> str:
    """What `check --diff` shows of it."""
    if entry.finding.diff is None:
        return ""
    lines = [_line(row) for row in entry.finding.explanation]
    return _block(f"Where {entry.patch.id} does not fit", "What is not as it was expected", lines)


def _line(row: str) -> Line:
    if row.startswith(("--- ", "+++ ", "@@ ")):
        return Line("@", row)
    return Line(row[0], row[1:]) if row[:1] in ("+", "-", " ") else Line("", row)


def _change(change: Change) -> str:
    heading = f"<code>{text(change.name)}</code>"
    return _block(f"Change of {change.name}", heading, change.lines, place=change.place)


def _block(label: str, heading: str, lines: Iterable[Line], *, place: str = "") -> str:
    """Lines of code under a heading. They scroll by themselves, with the keyboard too."""
    where = f'<p class="place">{_path(place)}</p>' if place else ""
    return (
        f'<h3>{heading}</h3>{where}<pre tabindex="0" role="group" aria-label="{text(label)}">'
        f"<code>{''.join(_rows(lines))}</code></pre>\n"
    )


def _path(place: str) -> str:
    """A path, which is best broken between its parts."""
    return text(place).replace("/", "/<wbr>")


def _rows(lines: Iterable[Line]) -> Iterator[str]:
    tags = {
        "+": ("<ins>", "</ins>"),
        "-": ("<del>", "</del>"),
        "@": ('<span class="gap">', "</span>"),
    }
    for sign, row in lines:
        start, end = tags.get(sign, ("<span>", "</span>"))
        yield f"{start}{text(row if sign == '@' else sign + row)}{end}\n"


def _functions(functions: Sequence[Function]) -> str:
    if not functions:
        return "<p>None: all code that runs is that of the tree.</p>"
    return f'<ul class="functions">{"".join(map(_function, functions))}</ul>'


def _function(function: Function) -> str:
    links = "".join(f'<li><a href="#{text(p)}">{text(p)}</a></li>' for p in function.patches)
    return (
        f"<li><div><code>{text(function.name)}</code>"
        f'<span class="place">{_path(function.place)}</span></div><ul>{links}</ul></li>\n'
    )
