"""Which Megatron-Core this process has, as its source says.

A checkout on ``PYTHONPATH`` has no metadata of a distribution, and metadata that is found may be of
another one. So nothing here asks for it, and nothing imports Megatron.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from packaging.version import Version


def core_version() -> str:
    """The whole version, such as ``0.18.0rc0``: for people, and for reports.

    Raises:
        RuntimeError: there is no Megatron-Core, or its ``package_info`` has no version.
    """
    # Not before: this package also works by itself, in a process that is not to be patched yet.
    from megatron_patch import sources

    version = sources.megatron_version()
    if version is not None:
        return version
    spec = sources.find_module_spec(sources.PACKAGE_INFO)
    if spec is None:
        raise RuntimeError(
            f"there is no module {sources.PACKAGE_INFO}: install megatron-core, or put a checkout "
            "of Megatron-LM on PYTHONPATH"
        )
    raise RuntimeError(
        f"{spec.origin} says no version: it has to set MAJOR, MINOR and PATCH to numbers, as "
        "Megatron-Core's own does; restore that file, or put another checkout on PYTHONPATH"
    )


def core_release() -> Version:
    """The release that the source is of, or on its way to: 0.18.0 for ``0.18.0rc0``.

    For comparisons. In ``packaging`` 0.18.0rc0 is before 0.18, but upstream's main has that version
    from the day on which 0.17 was cut, and is closer to 0.18 than to 0.17.

    Raises:
        RuntimeError: see :func:`core_version`.
    """
    from packaging.version import Version

    return Version(Version(core_version()).base_version)
