"""Reading a command line into a dataclass, with errors of one line."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import io
import math
import os
import re
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import tyro

# tyro says: title, rule, what is wrong, rule, hints, rule, where help is. The frame around depends on the terminal.
_FRAME = " │|"
_RULE = re.compile(r"[\s╭╰├─╮╯┤-]*")
_REWRITTEN = (
    (r"Error parsing (?:--)?([\w.-]+): invalid literal for int\(\) with base 10: (.+)", r"\1 must be a whole number, got \2"),
    (r"Error parsing (?:--)?([\w.-]+): could not convert string to float: (.+)", r"\1 must be a number, got \2"),
    (r"Error parsing [\w.-]+: (.+)", r"\1"),
    (r"invalid choice (.+?) for argument '(?:--)?([\w.-]+)'\. Expected one of \((.+)\)", r"\2 must be one of \3, got \1"),
    (r"Expected one of \{(.+)\}", r"a command must be given, one of \1"),
)


def parse_arguments(kind: Any, arguments: Sequence[str] | None, **options: Any) -> Any:
    """Read a command line as `tyro.cli` does; what is wrong with it is said in one line.

    Args:
        kind: A dataclass, or a union of subcommands.
        arguments: The command line; None: that of the process.
        **options: Of `tyro.cli`.

    Raises:
        SystemExit: With 2 if something is wrong, which is on stderr then; with 0 after `--help`.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), _without_wrapping(given):
            found = tyro.cli(kind, args=given, **options)
    except SystemExit as exit_:
        if exit_.code not in (None, 0):
            print(f"error: {one_line(said.getvalue())}", file=sys.stderr)  # noqa: T201
        raise SystemExit(exit_.code) from None
    if any(text.lower().lstrip("+-") in ("nan", "inf", "infinity") for text in given):
        for name, value in _numbers(found):
            if not math.isfinite(value):
                print(f"error: {name} must be a finite number, got {value}", file=sys.stderr)  # noqa: T201
                raise SystemExit(2)
    return found


def _numbers(thing: Any, name: str = "") -> Iterator[tuple[str, float]]:
    """Names and values of all numbers in a dataclass."""
    if dataclasses.is_dataclass(thing):
        for field in dataclasses.fields(thing):
            yield from _numbers(getattr(thing, field.name), field.name)
    elif isinstance(thing, float):
        yield name, thing
    elif isinstance(thing, tuple):
        for part in thing:
            yield from _numbers(part, name)


def one_line(text: str) -> str:
    """What tyro says about a wrong command line, as one sentence."""
    parts: list[list[str]] = [[]]
    for line in text.splitlines():
        bare = line.strip(_FRAME)
        if line.lstrip().startswith("╭") or (bare and _RULE.fullmatch(line.strip())):
            parts.append([])
        elif bare:
            parts[-1].append(line.strip("│|").rstrip())
    parts = [part for part in parts if part]
    if not parts:
        return "the command line cannot be read"
    if len(parts) > 1 and len(parts[0]) == 1 and not text.lstrip().startswith("╭"):
        parts = parts[1:]  # without the title
    wrong, hints = parts[0], parts[1:]
    if wrong[0].strip().startswith("Missing from"):
        depth = min(len(line) - len(line.lstrip()) for line in wrong[1:])
        names = [line.split()[0] for line in wrong[1:] if len(line) - len(line.lstrip()) == depth]
        return f"{', '.join(names)} must be given; --help says what it is"
    sentence = " ".join(" ".join(wrong).split()).rstrip(".")
    for pattern, better in _REWRITTEN:
        found = re.fullmatch(pattern, sentence)
        if found:
            sentence = found.expand(better)
            break
    for hint in hints:
        first = hint[0].strip()
        if first.startswith("Perhaps you meant"):
            names = [name for line in hint[1:] for name in re.findall(r"^\s*(--[\w.-]+)", line)]
            sentence += f"; did you mean {' or '.join(dict.fromkeys(names))}?" if names else ""
        elif first.startswith("Available subcommands"):
            known = first.partition(":")[2].split(",")
            tried = sentence.partition(":")[2].split(",")[0].strip()
            close = difflib.get_close_matches(tried, [name.strip() for name in known], n=1)
            sentence += f"; did you mean {close[0]}?" if close else f"; {first[0].lower()}{first[1:]}"
        elif first.startswith("Argument helptext") and sentence.startswith("no type matching"):
            name = hint[1].split()[0].lstrip("-").rpartition(".")[2].replace("-", "_")
            allowed = "a whole number" if "|INT" in sentence else "a number"
            given = re.search(r"instantiated from \['?(.*?)'?\]", sentence)
            sentence = f"{name} must be None or {allowed}, got {given[1] if given else 'something else'}"
    return sentence.replace("'", "") if "must be one of" in sentence else sentence


@contextlib.contextmanager
def _without_wrapping(arguments: list[str]) -> Iterator[None]:
    """Let errors be as wide as they are, but help as wide as the terminal."""
    before = os.environ.get("COLUMNS")
    if not {"-h", "--help"} & set(arguments):
        os.environ["COLUMNS"] = "100000"
    try:
        yield
    finally:
        os.environ.pop("COLUMNS", None)
        if before is not None:
            os.environ["COLUMNS"] = before
