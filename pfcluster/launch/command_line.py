"""Command lines from dataclasses, built by tyro, with one-sentence errors.

tyro prints its errors into a box and exits; its hook for errors is private. This module is the only place that reads
tyro's output: everything else receives a ConfigError.
"""

from __future__ import annotations

import contextlib
import difflib
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, TypeVar, get_args, get_type_hints

import tyro

from pfcluster.config import ConfigError

T = TypeVar("T")
BOX = re.compile(r"[\u2500-\u257f]+")
RULE = re.compile(r"\s*-{3,}\s*")


def parse(kind: type[T], arguments: Sequence[str], *, prog: str = "pfcluster", default: T | None = None) -> T:
    """Parse all arguments into a dataclass; `default` gives the values of options that are left out.

    Raises ConfigError for an option that does not exist, naming similar ones, and for a value that does not fit.
    `--help` prints the help and raises SystemExit(0).
    """
    options, rest = parse_known(kind, arguments, prog=prog, default=default)
    if rest:
        raise ConfigError(unknown_option(rest[0], kind, prog))
    return options


def parse_known(
    kind: type[T], arguments: Sequence[str], *, prog: str = "pfcluster", default: T | None = None
) -> tuple[T, list[str]]:
    """Parse the arguments that belong to a dataclass; returns it and the remaining arguments in their order."""
    given: dict[str, Any] = {} if default is None else {"default": default}
    arguments = join_quoted(arguments)
    if is_help(arguments):
        tyro.cli(kind, args=["--help"], prog=prog, **given)
    text = io.StringIO()
    try:
        with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
            options, rest = tyro.cli(kind, args=list(arguments), prog=prog, return_unknown_args=True, **given)
    except SystemExit as error:
        words = sentence(text.getvalue())
        if words.startswith("Missing from"):
            words = f"missing: {', '.join(_missing(kind, arguments))}; `{prog} --help` lists the options"
        raise ConfigError(words) from error
    return options, rest


HELP = ("-h", "--help")
"""Help options, which are recognised even after one of `QUOTING`."""
QUOTING = ("--build",)
"""Options whose value is another command's options."""


def join_quoted(arguments: Sequence[str]) -> list[str]:
    """`--build "--size 112"` as `--build="--size 112"`: tyro treats every word that begins with -- as an option. A
    single word, as in `--build --no-detect`, is recognised as a value only after `QUOTING`.
    """
    words: list[str] = []
    for word in arguments:
        before = words[-1] if words else ""
        quoted = before in QUOTING or (" " in word and before.startswith("--") and "=" not in before)
        if word.startswith("-") and quoted and word not in HELP:
            words[-1] += f"={word}"
        else:
            words.append(word)
    return words


def is_help(arguments: Sequence[str]) -> bool:
    """Whether the arguments ask for help."""
    return any(word in HELP for word in arguments)


def sentence(text: str) -> str:
    """The error inside tyro's box, without title, borders, the option's help and the footer."""
    sections: list[list[str]] = [[]]
    for line in BOX.sub(" ", text).splitlines():
        if RULE.fullmatch(line) or not line.strip():
            sections.append([])
        else:
            sections[-1].append(line.strip())
    sections = [section for section in sections if section]
    words = " ".join(sections[1] if len(sections) > 1 else sections[0] if sections else ["the arguments do not fit"])
    words = re.sub(r"^Error parsing (--\S+:)", r"\1", words)
    return re.sub(r"^Error parsing \S*: ", "", words)


def unknown_option(word: str, kind: type, prog: str) -> str:
    """An error message for an argument that no option takes."""
    if word.lower() in ("true", "false"):
        return f"unexpected argument {word!r}: a switch takes no value: write --section.name or --section.no-name"
    if not word.startswith("-"):
        return f"unexpected argument {word!r}; `{prog} --help` lists the options"
    name = word.partition("=")[0]
    near = difflib.get_close_matches(name.replace("_", "-"), list(option_names(kind)), n=2)
    hint = f"did you mean {' or '.join(near)}?" if near else f"`{prog} --help` lists the options"
    return f"no option {name}; {hint}"


def option_names(kind: type, prefix: str = "--") -> Iterator[str]:
    """The options of a dataclass and of the dataclasses in it."""
    hints = get_type_hints(kind, include_extras=True)
    for field in fields(kind):
        hint = hints[field.name]
        marks = getattr(hint, "__metadata__", ())
        bare = get_args(hint)[0] if marks else hint
        name = f"{prefix}{field.name.replace('_', '-')}"
        if is_dataclass(bare):
            inlined = any(getattr(mark, "name", None) == "" for mark in marks)
            yield from option_names(bare, prefix if inlined else f"{name}.")  # type: ignore[arg-type]
        else:
            yield name


def _missing(kind: type, arguments: Sequence[str]) -> list[str]:
    """Required options missing from the arguments; positional ones by their placeholder."""
    given = {word.partition("=")[0].replace("_", "-") for word in arguments}
    hints = get_type_hints(kind, include_extras=True)
    names = []
    for field in fields(kind):
        if field.default is MISSING and field.default_factory is MISSING:
            marks = getattr(hints[field.name], "__metadata__", ())
            option = f"--{field.name.replace('_', '-')}"
            name = field.name.upper() if tyro.conf.Positional in marks else option
            if option not in given:
                names.append(name)
    return names
