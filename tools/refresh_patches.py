"""Write `patches/`: the series as source for each pin, and the tables made from the records.

    python tools/refresh_patches.py            # after any change of a record, or of the pins
    python tools/refresh_patches.py --check    # in CI: writes nothing, fails when something is old

`patches/VERSION/` holds `series` and a patch for each backport that is applicable to that release
and on by default. A patch that is on only when it is selected by name changes what a model answers.
It is left out, because `git am patches/VERSION/*.patch` takes all that is there; `megatron-patch
export --only ID` writes it. Where nothing is applicable, `series` is empty.

Also writes `patches/README.md`, the table of backports in `README.md`, `docs/symptoms.md`, and the
outlines of the pins' files, `megatron_patch/ledger/outlines.json`. Any other file in `patches/` is
removed.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

from megatron_patch import export  # noqa: E402
from megatron_patch.backports import SERIES  # noqa: E402
from megatron_patch.definitions import no_search_for_garbage  # noqa: E402
from megatron_patch.errors import DriftedError, NotMegatronError  # noqa: E402
from megatron_patch.export import UPSTREAM  # noqa: E402
from megatron_patch.judge import judge  # noqa: E402
from megatron_patch.model import Patch  # noqa: E402
from megatron_patch.outlines import Outline, as_json  # noqa: E402
from megatron_patch.source_edits import source_patches  # noqa: E402
from megatron_patch.source_tree import SourceTree  # noqa: E402
from megatron_patch.verdicts import Verdict  # noqa: E402
from tools import pins  # noqa: E402
from tools.history.digests import targets_of  # noqa: E402
from tools.outlining import outlines_of  # noqa: E402
from tools.pins import Pin  # noqa: E402

PATCHES = "patches"
OUTLINES = "megatron_patch/ledger/outlines.json"
# What is in backticks, `name()`, and names with an underscore.
CODE = re.compile(r"(`[^`]+`|\w[\w.]*\(\)|[\w.]*_[\w.]*\w)")
SYMPTOMS = "docs/symptoms.md"
BEGIN, END = "<!-- backports:begin -->", "<!-- backports:end -->"


@dataclass(frozen=True)
class PinnedSeries:
    """The series on one pin: files by name, and what becomes of each patch, by id."""

    version: str
    files: dict[str, bytes]
    cells: dict[str, str]
    drifted: tuple[str, ...]
    outlines: dict[str, Outline]


def pinned_series(version: str, tree: SourceTree, series: Sequence[Patch]) -> PinnedSeries:
    """Make the files for a pin. Raises `DriftedError` when edits of known source do not fit it."""
    judgements = {patch.id: judge(patch, tree.read, series=series) for patch in series}
    applicable = {id for id, judgement in judgements.items() if judgement.variant is not None}
    selected = [patch.id for patch in series if patch.default and patch.id in applicable]
    made, _ = source_patches(tree, series, selected)
    cells = {id: judgement.verdict.value for id, judgement in judgements.items()}
    cells |= {id: "opt-in" for id in applicable}
    for entry in made:
        name = export.file_name(entry)
        cells[entry.patch.id] = f"[{entry.number:04}]({version}/{name})"
    return PinnedSeries(
        version,
        export.files(made),
        cells,
        tuple(
            f"{id} on {version}: {judgement.reason}"
            for id, judgement in judgements.items()
            if judgement.verdict is Verdict.DRIFTED
        ),
        outlines_of(tree, targets_of(series)),
    )


@no_search_for_garbage()
def generated(
    pinned: Sequence[Pin], series: Sequence[Patch], cache: Path, readme: str | None = None
) -> tuple[dict[str, bytes], list[str]]:
    """All files, by path, and the patches that are drifted on some pin.

    `readme` is the text of `README.md`; without it only the files of the pins are made.
    """
    made = []
    for pin in pinned:
        with pins.source(pin.version, cache) as tree:
            made.append(pinned_series(pin.version, tree, series))
    files = {
        f"{PATCHES}/{entry.version}/{name}": content
        for entry in made
        for name, content in entry.files.items()
    }
    if readme is not None:
        files[f"{PATCHES}/README.md"] = patches_readme(made, series).encode()
        files["README.md"] = with_table(readme, backports_table(made, series)).encode()
        files[SYMPTOMS] = symptoms_page(made, series).encode()
        outlines = {digest: found for entry in made for digest, found in entry.outlines.items()}
        files[OUTLINES] = as_json(outlines).encode()
    return files, [text for entry in made for text in entry.drifted]


def backports_table(made: Sequence[PinnedSeries], series: Sequence[Patch]) -> str:
    """The table in `README.md`: what each pin gets."""
    rows = [
        (
            _linked(patch),
            f"{patch.origin} {_pull_request(patch)}"
            if patch.upstream_pr
            else f"[ours]({_report(patch)})",
            str(patch.kind),
            *(_short(entry.cells[patch.id]) for entry in made),
        )
        for patch in series
    ]
    versions = (entry.version for entry in made)
    return _table(("id", "origin", "kind", *versions), rows)


def _linked(patch: Patch) -> str:
    opt_in = "" if patch.default else " (opt-in)"
    return f"[`{patch.id}`]({SYMPTOMS}#{patch.id}){opt_in}"


def symptoms_page(made: Sequence[PinnedSeries], series: Sequence[Patch]) -> str:
    """`docs/symptoms.md`: what a user sees, on which pins, and what there is with the patch."""
    sections = []
    for patch in series:
        there = [entry for entry in made if _short(entry.cells[patch.id]) in ("patched", "opt-in")]
        versions = ", ".join(entry.version for entry in there) or "no pinned release"
        opt_in = "" if patch.default else " Only when it is selected by name."
        sections.append(
            f"## {patch.id}\n\n{markdown(_sentence(patch.symptom))}\n\n"
            f"On {versions}. With the patch: {markdown(patch.outcome)}.{opt_in}\n"
        )
    return "\n".join([SYMPTOMS_HEAD, *sections])


def _sentence(text: str) -> str:
    """With a capital, unless it begins with a name."""
    is_word = text.partition(" ")[0].isalpha()
    return f"{text[:1].upper()}{text[1:]}." if is_word else f"{text}."


def _short(cell: str) -> str:
    """A cell of `patches/README.md`, for a column of a wider table."""
    words = {Verdict.UPSTREAMED.value: "has it", Verdict.NOT_APPLICABLE.value: ""}
    return "patched" if cell.startswith("[") else words.get(cell, cell)


def with_table(text: str, table: str) -> str:
    """`text` with the table between the markers; as it is when there are none."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    return f"{before}{begin}\n{table}\n{end}{after}" if end else text


def patches_readme(made: Sequence[PinnedSeries], series: Sequence[Patch]) -> str:
    """`patches/README.md`."""
    rows = [(f"`{patch.id}`", *(entry.cells[patch.id] for entry in made)) for patch in series]
    table = _table(("patch", *(entry.version for entry in made)), rows)
    head = README_HEAD.format(version=made[0].version)
    return "\n".join([head, table, "", README_LEGEND, *map(_section, series)])


SYMPTOMS_HEAD = """\
<!-- Made by tools/refresh_patches.py from the records in megatron_patch/backports/. -->

# What you see without a patch

Search this page for the words of your error message, or for what is wrong. Each section is one
patch, by its id: which pinned releases need it, and what there is with `import megatron_patch`.
`patches/README.md` has the rest of its record.
"""

README_HEAD = """\
<!-- Made by tools/refresh_patches.py from the records in megatron_patch/backports/. -->

# The series as source

The edits that `import megatron_patch` makes at run time, as commits, for a fork that prefers
source. Each directory is for the release that it is named after; in a git repository of that
release:

```console
git am ~/megatron_patch/patches/{version}/*.patch
```

For a tree that has other changes too, make the series from that tree:
`megatron-patch export --megatron ~/fork --output ~/series`. Either way, `megatron-patch check` and
the runtime then say `upstreamed`.
"""

README_LEGEND = """\
The number is the patch's place in the series. `upstreamed`: the release has the change.
`not_applicable`: it has no such code, or never needed the change. `opt-in`: it changes what a model
answers, so it is not in the directory; `megatron-patch export --only ID` writes it. `drifted`: the
source is not known, and is left alone.
"""


def _section(patch: Patch) -> str:
    opt_in = "" if patch.default else "- Only when it is selected by name.\n"
    upstream = f"has no such change; [what we know](../{_report(patch)})"
    if patch.upstream_commit:
        upstream = (
            f"{_pull_request(patch)}, "
            f"[{patch.upstream_commit[:10]}]({UPSTREAM}/commit/{patch.upstream_commit}) of "
            f"{patch.upstream_date}, in megatron-core {patch.fixed_in}"
        )
    return f"""\
## {patch.id}

{markdown(patch.summary)}.

- Without it: {markdown(patch.symptom)}.
- With it: {markdown(patch.outcome)}.
- Upstream: {upstream}.
{opt_in}- For megatron-core `{patch.releases}`; last changed {patch.updated}.
- To be removed when {markdown(patch.removal)}.
"""


def _pull_request(patch: Patch) -> str:
    return f"[#{patch.upstream_pr}]({UPSTREAM}/pull/{patch.upstream_pr})"


def _report(patch: Patch) -> str:
    """What upstream is to be told of a defect that we have found."""
    return f"docs/upstream/{patch.id}.md"


def markdown(text: str) -> str:
    """Plain text for Markdown: names and calls as code, and no character with a meaning."""
    parts = CODE.split(text)
    parts[::2] = (re.sub(r"([\\*_<\[\]])", r"\\\1", part) for part in parts[::2])
    parts[1::2] = (f"`{part.strip('`')}`" for part in parts[1::2])
    return "".join(parts).replace("|", r"\|")


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in (head, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(head), *lines[1:]])


def outdated(repository: Path, files: dict[str, bytes], only_pin: str | None = None) -> list[str]:
    """Paths of files that are to be written or removed, sorted."""
    below = repository / PATCHES / (only_pin or "")
    there = {p.relative_to(repository).as_posix() for p in below.rglob("*") if p.is_file()}
    return sorted(
        path
        for path in there | files.keys()
        if path not in files
        or not (repository / path).is_file()
        or (repository / path).read_bytes() != files[path]
    )


def write(repository: Path, files: dict[str, bytes], paths: Sequence[str]) -> None:
    """Bring the outdated `paths` up to date; says what was done."""
    for path in paths:
        file = repository / path
        if path in files:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(files[path])
            print(f"wrote {path}")
        else:
            file.unlink()
            if not any(file.parent.iterdir()):
                file.parent.rmdir()
            print(f"removed {path}")


def _only(version: str, pinned: Sequence[Pin]) -> list[Pin]:
    chosen = [pin for pin in pinned if pin.version == version]
    if not chosen:
        known = ", ".join(pin.version for pin in pinned)
        raise pins.PinError(f"{version} is not a pin; expected one of {known}")
    return chosen


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the tool; returns the exit status."""
    parser = argparse.ArgumentParser(
        description="Write patches/ and the tables that are made from the records.",
        epilog="Exit status: 0; 1 when a patch is drifted on a pin, or with --check when something "
        "is not up to date; 2 when the source of a pin cannot be had.",
    )
    parser.add_argument("--check", action="store_true", help="write nothing")
    parser.add_argument(
        "--only-pin", metavar="VERSION", help="write the directory of that pin alone, and no table"
    )
    pins.add_cache_option(parser)
    options = parser.parse_args(arguments)
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    try:
        pinned = pins.read_pins((REPOSITORY / "tox.ini").read_text(encoding="utf-8"))
        if options.only_pin is None:
            files, drifted = generated(pinned, SERIES, options.cache, readme)
        else:
            files, drifted = generated(_only(options.only_pin, pinned), SERIES, options.cache)
    except (pins.PinError, NotMegatronError) as error:
        print(f"refresh_patches: {error}", file=sys.stderr)
        return 2
    except DriftedError as error:
        print(f"refresh_patches: {error}", file=sys.stderr)
        return 1
    paths = outdated(REPOSITORY, files, options.only_pin)
    if options.check and paths:
        print(f"{len(paths)} files are out of date: run tools/refresh_patches.py")
        print(*(f"  {path}" for path in paths), sep="\n")
    elif not paths:
        print("all files are up to date")
    else:
        write(REPOSITORY, files, paths)
    for text in drifted:
        print(f"drifted: {text}", file=sys.stderr)
    return int(bool(drifted or (options.check and paths)))


if __name__ == "__main__":
    sys.exit(main())
