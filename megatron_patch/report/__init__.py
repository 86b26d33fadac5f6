"""One page for an incident or a review: what is patched in a Megatron, by which code, and why.

:mod:`.collecting` reads the source, as ``check`` does, and imports no Megatron. :mod:`.text` and
:mod:`.page` write what it found, for a terminal and for a browser; :mod:`.file` puts it on disk.
Not part of what ``import megatron_patch`` imports::

    from megatron_patch import report

    report.write(report.of_process(), Path("incident.html"))
"""

from .collecting import Report, collected, of_process
from .file import write
from .page import page
from .text import text

__all__ = ["Report", "collected", "of_process", "page", "text", "write"]
