"""A Megatron tree on disk. Not part of what ``import megatron_patch`` imports."""

from __future__ import annotations

import io
import tokenize
from dataclasses import dataclass
from pathlib import Path

from .errors import NotMegatronError, SourceMissingError
from .sources import find_module_spec

ENDS = (".py", ".pyc")  # a tree may have been compiled, and its source been taken away


@dataclass(frozen=True)
class SourceTree:
    """A Megatron tree on disk that need not be importable: ``root`` holds ``megatron/core``."""

    root: Path

    @classmethod
    def at(cls, directory: Path) -> SourceTree:
        """The tree that ``directory`` is the root, the ``megatron`` or the ``core`` folder of.

        Raises ``NotMegatronError`` when it is none of these.
        """
        full = directory.resolve()
        depth = {"megatron": 1, "core": 2}.get(full.name, 0)
        for root in (directory, full.parents[depth - 1] if depth else full):
            if any(
                (root / "megatron" / "core").joinpath(f"__init__{end}").is_file() for end in ENDS
            ):
                return cls(root)
        raise NotMegatronError(
            f"{directory} is not a Megatron tree: expected megatron/core/__init__.py in it; name "
            "the root of a Megatron-LM checkout, or the site-packages that Megatron-Core is in"
        )

    @classmethod
    def installed(cls) -> SourceTree:
        """The tree that ``import megatron.core`` would take.

        Raises ``NotMegatronError`` when there is none, or when it is not a directory.
        """
        spec = find_module_spec("megatron.core")
        if spec is None or spec.origin is None:
            raise NotMegatronError("Megatron-Core is not installed: pip install megatron-core")
        return cls.at(Path(spec.origin).parent)

    def path(self, module: str) -> Path | None:
        """The file of ``module``, ``None`` if there is none."""
        return self._file(module, ".py")

    def _file(self, module: str, end: str) -> Path | None:
        base = self.root.joinpath(*module.split("."))
        for path in (base.with_name(base.name + end), base / f"__init__{end}"):
            if path.is_file():
                return path
        return None

    def read(self, module: str) -> str | None:
        """The source text of ``module``, ``None`` if there is no such module.

        Raises ``SourceMissingError`` when it is compiled only, or when its file cannot be read or
        is not text of the encoding that it names.
        """
        path = self.path(module)
        if path is None:
            compiled = self._file(module, ".pyc")
            if compiled is not None:
                raise SourceMissingError(f"{compiled}: compiled, and its source is not there")
            return None
        try:
            return text_of(self.content(path))
        except OSError as error:
            raise SourceMissingError(f"{path} cannot be read: {error.strerror}") from error
        except (LookupError, UnicodeError, SyntaxError) as error:
            # The rest of the message is advice to whoever opens the file.
            why = str(error).partition(";")[0]
            raise SourceMissingError(f"{path} is not text of its encoding: {why}") from error

    def content(self, path: Path) -> bytes:
        """What is in a file of the tree. Raises ``OSError`` when it cannot be read."""
        return path.read_bytes()


def text_of(content: bytes) -> str:
    """The text of source in the encoding that it says it has, each line end a line feed.

    Raises ``UnicodeError`` when it is not in that encoding, and ``LookupError`` or ``SyntaxError``
    when there is no such encoding of text.
    """
    encoding, _ = tokenize.detect_encoding(io.BytesIO(content).readline)
    return io.TextIOWrapper(io.BytesIO(content), encoding).read()
