"""The ids and groups among the arguments of a command, which may begin with ``-``."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

#: The commands that take ids, and their options that take a value.
TAKE_IDS = ("status", "check", "report", "export", "apply", "revert")
VALUED = ("--megatron", "--output", "--only", "--against", "--html")


def with_ids(arguments: Sequence[str], names: Collection[str]) -> list[str]:
    """The arguments with each id of a list of patches as ``--only=ID``.

    ``argparse`` would take ``-ID`` for an option, and ids after an option for an error. ``names``
    are those of patches and groups: ``run`` takes ids in front of ``--`` only, where a word that is
    none of them is the command to run.
    """
    command, *others = arguments or [""]
    if command == "run":
        return [command, *_of_run(others, names)]
    return [command, *_of_ids(others)] if command in TAKE_IDS else list(arguments)


def _of_ids(arguments: Sequence[str]) -> Iterator[str]:
    option = ""  # whose value is the next argument
    ended = False  # no options from here on
    for argument in arguments:
        if option:
            yield f"{option}={argument}"
            option = ""
        elif ended or not (argument.startswith("--") or argument == "-h"):
            yield f"--only={argument}"
        elif argument == "--":
            ended = True
        elif len(argument) > 2 and any(name.startswith(argument) for name in VALUED):
            option = argument
        else:
            yield argument
    if option:
        yield option


def _of_run(arguments: Sequence[str], names: Collection[str]) -> Iterator[str]:
    left = list(arguments)
    while left and left[0] != "--":
        word = left.pop(0)
        if len(word) > 2 and "--only".startswith(word) and left:
            yield f"--only={left.pop(0)}"
        elif word.startswith("--") or word == "-h":
            yield word
        elif word.startswith("-") or ("--" in left and _are_names(word, names)):
            yield f"--only={word}"
        else:
            left.insert(0, word)
            break
    yield from left


def _are_names(word: str, names: Collection[str]) -> bool:
    return all(part.strip().removeprefix("-").strip() in names for part in word.split(","))
