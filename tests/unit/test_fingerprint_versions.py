"""Fingerprints are the same on Python 3.10, 3.11, 3.12 and 3.13.

Each interpreter that is installed digests the same files, and is compared with the one that runs
the tests.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from megatron_patch.sources import find_module_spec

ROOT = Path(__file__).parents[2]
RUNNING = f"python3.{sys.version_info.minor}"
VERSIONS = ("python3.10", "python3.11", "python3.12", "python3.13")

# Syntax that every version can parse, with as much as possible in which their trees differ.
CORPUS = r'''
from __future__ import annotations
import os


def f_strings(x, y, w):
    """Doc."""
    a = f"{x}", f"{x!r}", f"{x!s:>{w}}", f"{x:}", f"{x:{y}.{w}f}", f"{x=}", f"{x = !r:^8}"
    b = f"", f"{{}}", f"{{{x}}}", "a" f"{x}" "b", f"a" "b", f"{x}{y}", f"{x}" f"{y}", f"{'q'}"
    c = rf"\d{x}\n", fr"{x}\{y}", F"\t{x}\x41", f"\N{BULLET}{x}", f"{x}\u00e9é世\U0001f600"
    d = f"""{
        x
    } lines {y!a}
    {w:%H:%M}"""
    e = f"{x if y else w}", f"{(lambda q: q)(x)}", f"{ {'k': x}['k'] }", f"{x:{'>'}{10}}", f"{x,}"
    f = f"{x}" if f"{y}" else f"{f'{w}'}", f"{f'{x:{w}}':>{y}}", f"{yield_(x)!r:}", f"a{x:b{y}c}d"
    return a, b, c, d, e, f, f"{x:{{}}}" if False else ""


def strings():
    a = "a", 'b', """c""", r"\d", u"u", b"bytes", rb"\x00", Rb'\d', "\x00\n\t\\\"'", "\ud800"
    b = "one" "two" u"three", b"a" b"b", "", b"", "\N{GREEK SMALL LETTER ALPHA}", "é", "\u2028\x85"
    return a, b, "🎉", "\U000e0100", "\u0378", "\U0001fae9", "\xad"


def numbers():
    a = 0, 1, 0x_ff, 0b1010, 0o17, 1_000_000, 10**100, 123456789012345678901234567890
    b = 1.0, 1e10, 1e-7, .5, 5., 1e400, 0.1, 123456789.123456789, 1e16, 1e22, 5e-324
    return a, b, 1j, 2.5j, 0j, -1, +1, ~1, not 1, True, False, None, ..., -0.0, 1e400j


def matching(command):
    match command:
        case 0 | 1 | -1 | 1 + 2j:
            return "number"
        case "a" | b"b" | None | True:
            return "constant"
        case [x, y, *rest] if x > y:
            return rest
        case (x,) | [x]:
            return x
        case {"k": v, 1: _, **others}:
            return v, others
        case {}:
            return {}
        case Point(x=0, y=0) | os.path.Point(1, z=q):
            return command
        case str() as s:
            return s
        case os.sep:
            return os
        case [*_]:
            pass
        case _:
            return None


@os.first
@os.second(1, key=[2])
@(lambda g: g)
async def asynchronous(a, b: int = 1, /, c: "str" = "x", *d: int, e, f=2, **kwargs: dict) -> None:
    async with a as b, c:
        async for i in b:
            await i
        else:
            yield i
    return_ = [i async for i in a if await i], {i: j for i, j in a}, {i for i in b}, (i for i in c)
    async def inner(): return await a


def parameters(a, b=1, /, c=2, *, d, e=3): return (a, b, c, d, e)


def no_parameters(): pass


def only_stars(*a, **k): return f(*a, *a, **k, **k, x=1)


def types(x: list[int], y: "a | b" = None) -> dict[str, tuple[int, ...]]:
    a: int
    b: list[str] = []
    self.c: int = 1
    (d): int = 2
    e = []  # type: list[int]
    for i in a:  # type: int
        pass
    with a as b:  # type: ignore
        pass
    return e


def scopes():
    global g, h
    n = m = 0
    def inner():
        nonlocal n, m
        n += 1
        return (lambda: n)()
    class Empty: pass
    class Full(Empty, metaclass=type, key=1):
        """Doc of a class in a function."""
        x: int = 1
        def method(self): """Doc only."""
    return inner, Empty, Full


def statements(x):
    try:
        raise ValueError("no") from x
    except (TypeError, ValueError) as error:
        raise
    except OSError:
        pass
    except:
        ...
    else:
        del x, x[0], x.a
    finally:
        assert x, "message"
    with open(x) as f, open(x): pass
    with (open(x) as f, open(x) as g,): pass
    while True:
        if x: break
        elif y: continue
        else: pass
    else:
        return
    for i, (j, *k) in x, x: pass
    import os.path as p, sys
    from . import q
    from ..r import s as t
    a = b = c, *d = x
    x @= y; x //= 1; x **= 2; x >>= 3; x <<= 4; x |= 5; x &= 6; x ^= 7; x %= 8
    print((y := 10), y := 3)
    return


def expressions(a, b):
    x = a if b else a and b or not a, lambda: 0, lambda x, /, y=1, *z, k, **w: (x, y)
    y = a[0], a[1:2], a[::2], a[1:, ..., None], a[b, c], a[(b, c)], a[:]
    z = a < b <= c != d is e is not f in g not in h == i > j >= k
    w = [*a, *b], {**a, "k": b}, {*a}, (), [], {}, (a,), a @ b, a ** -b, -a ** b, ~a // b % c
    v = await_(a)(b)(*c)(k=d), a.b.c, "s".join(a), 1 .real, [i for i in a if i if j for k in l]
    yield a, b
    yield from x
    u = yield
    return x, y, z, w, v, u


def identifiers(größe, 变量, ªb, ﬁ):
    größe.变量 = ªb(ﬁ=1)
    return größe, 变量


def docstring_only(): """Doc."""


def docstring_and_string():
    """Doc."""
    "not a docstring"


def implicit_docstring():
    "Do" "c"
    return __debug__


def not_a_docstring():
    f"Doc"
    b"bytes"


def long_chain(x):
    return x + 1 + 2 + 3 + 4 + 5 + 6 + 7 + 8 + 9 + 10 + 11 + 12 + 13 + 14 + 15 + 16 + 17 + 18 + 19


class Methods(Base):
    @property
    def p(self): return super().p

    @p.setter
    def p_setter(self, value): self.__mangled = value

    @staticmethod
    def s(): return __class__

    @classmethod
    async def c(cls): return [await x async for x in cls]
'''
PYTHON_311 = """
def groups():
    try:
        pass
    except* (TypeError, ValueError) as error:
        raise
    except* OSError:
        pass
    return


def stars(a, *b: *tuple[int, ...]):
    return a[*b], a[b, *b]
"""

PYTHON_312 = """
def generic[T, *Ts, **P](x: T, *y: *Ts) -> T:
    type A[S: int] = list[S]
    return x


def bounds[T: (int, str), S: int](x: T): pass


class C[T]:
    def method[S](self, x: S) -> T:
        return f"{x["a"]}{f"{f"{x}"}"}{'\\n'.join(x)}", f"{x!r:{"a"}>{"b"}}"
"""

SCRIPT = """
import ast, sys
sys.path.insert(0, sys.argv[1])
from megatron_patch.fingerprint import digest
for line in sys.stdin:
    path = line.rstrip("\\n")
    with open(path, encoding="utf-8") as file:
        tree = ast.parse(file.read())
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            print(path, node.lineno, node.name.encode("unicode_escape").decode(), digest(node))
"""


def digests(python: str, paths: list[Path]) -> list[str]:
    """A line for each function: file, line, name and digest, computed without site-packages."""
    done = subprocess.run(
        [python, "-S", "-E", "-X", "utf8", "-W", "ignore", "-c", SCRIPT, str(ROOT)],
        input="".join(f"{path}\n" for path in paths),
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def installed() -> list[Path]:
    """Megatron's inference tree."""
    spec = find_module_spec("megatron.core.inference")
    if spec is None:
        pytest.skip("megatron-core is not installed")
    (package,) = spec.submodule_search_locations or ()
    return sorted(Path(package).rglob("*.py"))


def minor(python: str) -> int:
    return int(python.rpartition(".")[2])


@dataclass(frozen=True)
class Measure:
    """Files, what the running interpreter makes of them, and the oldest Python that reads them."""

    paths: list[Path]
    lines: list[str]
    oldest: int


CORPORA = {"syntax": (10, CORPUS), "syntax of 3.11": (11, PYTHON_311), "of 3.12": (12, PYTHON_312)}


@pytest.fixture(params=[*CORPORA, "installed"], scope="module")
def measure(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Measure:
    oldest, text = CORPORA.get(request.param, (10, ""))
    if sys.version_info.minor < oldest:
        pytest.skip(f"{RUNNING} lacks the syntax")
    paths = [tmp_path_factory.mktemp("syntax") / "corpus.py"] if text else installed()
    if text:
        paths[0].write_text(text, encoding="utf-8")
    return Measure(paths, digests(sys.executable, paths), oldest)


def test_the_measure_tells_functions_apart(measure):
    found = [line.split()[-1] for line in measure.lines]
    assert len(found) >= 2
    assert len(set(found)) > len(found) // 2
    assert all(len(digest) == 16 for digest in found)


@pytest.mark.parametrize("python", [name for name in VERSIONS if name != RUNNING])
def test_every_python_gives_the_same_fingerprints(measure, python):
    path = shutil.which(python)
    if path is None or subprocess.run([path, "-V"], capture_output=True, check=False).returncode:
        pytest.skip(f"{python} is not installed")
    if minor(python) < measure.oldest:
        pytest.skip(f"{python} lacks the syntax")
    found = digests(path, measure.paths)
    different = [f"{a} != {b}" for a, b in zip(measure.lines, found, strict=True) if a != b]
    assert not different, "\n".join(different)
