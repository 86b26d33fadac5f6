"""Put a record at the end of the series, in the text of ``megatron_patch/backports``."""

from __future__ import annotations


def with_record(text: str, folder: str, name: str, constant: str) -> str:
    """``text`` with the import of a record, in order, and with the record last in ``SERIES``.

    Raises ``ValueError`` when the text is not in the form of that file.
    """
    lines = text.splitlines()
    new = f"from .{folder}.{name} import {constant}"
    imports = [n for n, line in enumerate(lines) if line.startswith(("from .ours.", "from .up"))]
    begin = next((n for n, line in enumerate(lines) if line.startswith("SERIES: ")), None)
    if not imports or begin is None or ")" not in lines[begin:]:
        raise ValueError("expected imports from `.ours` or `.upstream`, and `SERIES: ... = (`")
    lines.insert(lines.index(")", begin), f"    {constant},")
    # By the name of the module alone, as ruff sorts them.
    module = new.split()[1]
    place = next((n for n in imports if lines[n].split()[1] > module), imports[-1] + 1)
    lines.insert(place, new)
    return "\n".join(lines) + "\n"
