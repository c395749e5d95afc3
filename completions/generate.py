"""Write the completion files of bash, zsh and fish from the commands themselves.

    python completions/generate.py           # after a command or an option was added or changed
    python completions/generate.py --check   # exit code 1 when a file is not what would be written

What is fixed in each file is its template in `templates/`; what is written here are the words of the
commands. Names of devices, models, rounds and labels are asked for at the TAB: `fedctl __complete`.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from fedctl.cli.app import root
from fedctl.models import BUILDERS

HERE = Path(__file__).resolve().parent
_SHELLS = {"bash": "fedctl.bash", "zsh": "_fedctl", "fish": "fedctl.fish"}
_MARK = "@@COMMANDS@@"  # a line of each template

# What a value is, by the word that stands for it in the help. What is not here has nothing to offer.
_KINDS = {
    "NAMES": "devices",
    "NAME": "devices",
    "DEVICE": "devices",
    "CHANGES": "labels",
    "MODEL": "models",
    "NAME[@VERSION]": "models",
    "ROUND": "rounds",
    "KEY=VALUE": "labels",
    "CONDITIONS": "labels",
    "FILE": "files",
    "PATH": "files",
    "DIR": "directories",
    "FORMAT": "words:table,json,jsonl,name",
}
_OWN_KINDS = {  # where the same word means something else: (path of the command, word)
    ("devices add", "NAME"): "none",  # a new one
    ("devices add", "URL"): "words:ssh://,https://,unix://",
    ("devices upgrade", "--via"): "words:ssh://",
    ("devices rekey", "--via"): "words:ssh://",
    ("devices add", "--via"): "words:ssh://",
    ("model create", "NAME"): "none",
    ("model create", "--builder"): "words:" + ",".join(BUILDERS),
    ("round list", "MODEL"): "model-names",
    ("round start", "MODEL"): "model-names",
}


@dataclass(frozen=True, slots=True)
class Option:
    """One option, all its spellings."""

    names: tuple[str, ...]
    kind: str | None  # None: a flag
    metavar: str
    about: str


@dataclass(frozen=True, slots=True)
class Place:
    """A positional argument."""

    kind: str
    title: str
    repeats: bool


@dataclass(frozen=True, slots=True)
class Level:
    """What may follow `fedctl PATH`."""

    path: str
    words: tuple[tuple[str, str], ...]  # the next word, with a line about it; empty for a command
    options: tuple[Option, ...]
    places: tuple[Place, ...]


def levels(command: Any, path: str = "") -> Iterator[Level]:
    """Every command and group below `command`, itself included."""
    context = typer.Context(command, info_name=path)
    names = command.list_commands(context) if hasattr(command, "list_commands") else []
    words = tuple((name, command.get_command(context, name).get_short_help_str(60)) for name in names)
    params = [p for p in command.get_params(context) if not getattr(p, "hidden", False)]
    yield Level(
        path,
        words,
        tuple(_option(p, path) for p in params if p.param_type_name == "option"),
        tuple(_place(p, path) for p in params if p.param_type_name == "argument"),
    )
    for name in names:
        _, loaded, _ = command.resolve_command(context, [name])
        yield from levels(loaded, f"{path} {name}".strip())


def _option(parameter: Any, path: str) -> Option:
    names = (*parameter.opts, *parameter.secondary_opts)
    name = next(n for n in names if n.startswith("--"))
    about = (parameter.help or "").rstrip(".")
    if parameter.is_flag or getattr(parameter, "count", False):
        return Option(names, None, "", about)
    metavar = parameter.metavar or ""
    return Option(names, _kind(parameter, path, (name, metavar)), metavar or "VALUE", about)


def _place(parameter: Any, path: str) -> Place:
    """An argument; its help may name two kinds that it takes, such as `[NAMES]... on|off`."""
    parts = re.sub(r"[\[\].]", "", parameter.metavar or parameter.name.upper()).split()
    kinds = [_kind(parameter, path, (part,)) for part in parts]
    return Place("+".join(dict.fromkeys(kinds)), parts[-1], parameter.nargs != 1)


def _kind(parameter: Any, path: str, words: Sequence[str]) -> str:
    """What stands where the last of `words` does: a kind of names, a list of words, files or nothing."""
    for word in words:
        if (path, word) in _OWN_KINDS:
            return _OWN_KINDS[path, word]
    choices = getattr(parameter.type, "choices", None)
    if choices:
        return "words:" + ",".join(str(getattr(choice, "value", choice)) for choice in choices)
    parts = words[-1].split("|")
    spelt = [part for part in parts if part.islower()]  # the others stand for something
    if spelt and len(parts) > 1:
        return f"words:{','.join(spelt)}"
    return next((_KINDS[part] for part in parts if part in _KINDS), "none")


# ---------------------------------------------------------------------- bash and fish: one table each


def _bash(found: Sequence[Level]) -> Iterator[str]:
    for level in found:
        yield f'        "{level.path}")'
        if level.words:
            yield f'            words="{" ".join(name for name, _ in level.words)}"'
        yield f'            flags="{" ".join(n for o in level.options for n in o.names)}"'
        valued = " ".join(f"{n}={o.kind}" for o in level.options if o.kind for n in o.names)
        yield f'            valued="{valued}"'
        if level.places:
            yield f'            places="{" ".join(_place_word(place) for place in level.places)}"'
        yield "            ;;"


def _fish(found: Sequence[Level]) -> Iterator[str]:
    for level in found:
        yield f"        case {_quoted(level.path)}"
        for name, about in level.words:
            yield f"            set -a __fedctl_words {_quoted(name)}\\t{_quoted(about)}"
        for option in level.options:
            for name in option.names:
                yield f"            set -a __fedctl_flags {_quoted(name)}\\t{_quoted(option.about)}"
                if option.kind:
                    yield f"            set -a __fedctl_valued {_quoted(f'{name}={option.kind}')}"
        if level.places:
            yield f"            set -a __fedctl_places {' '.join(_place_word(p) for p in level.places)}"


def _place_word(place: Place) -> str:
    return place.kind + ("..." if place.repeats else "")


# ---------------------------------------------------------------------- zsh: `_arguments`


def _zsh(found: Sequence[Level]) -> Iterator[str]:
    for level in found:
        yield f"{_zsh_function(level.path)}() {{"
        if not level.path:
            yield "    local program=$words[1]"
        if level.words:
            yield "    local curcontext=$curcontext state"
            yield "    local -a line members"
            yield "    local -A opt_args"
        yield f"    _arguments -s -S {'-C ' if level.words else ''}\\"
        specs = [spec for option in level.options for spec in _zsh_option(option)]
        specs += _zsh_places(level)
        yield from (f"        {spec} \\" for spec in specs[:-1])
        yield f"        {specs[-1]}{' && return' if level.words else ''}"
        if level.words:
            yield from _zsh_members(level)
        yield "}"
        yield ""


def _zsh_function(path: str) -> str:
    return "_".join(["_fedctl", *path.split()])


def _zsh_option(option: Option) -> Iterator[str]:
    """One specification a spelling; an option may be given again, as `-l` may."""
    about = _zsh_text(option.about)
    for name in option.names:
        if option.kind is None:
            yield _quoted(f"*{name}[{about}]")
        else:
            equals = "=" if name.startswith("--") else "+"
            title = _zsh_text(option.metavar)
            yield _quoted(f"*{name}{equals}[{about}]:{title}:{_zsh_action(option.kind)}")


def _zsh_places(level: Level) -> list[str]:
    if level.words:
        return [_quoted("1:command:->command"), _quoted("*::argument:->argument")]
    return [
        _quoted(f"{'*' if place.repeats else number}:{_zsh_text(place.title)}:{_zsh_action(place.kind)}")
        for number, place in enumerate(level.places, start=1)
    ]


def _zsh_members(level: Level) -> Iterator[str]:
    yield "    case $state in"
    yield "        command)"
    yield "            members=("
    for name, about in level.words:
        yield f"                {_quoted(f'{name}:{_zsh_text(about)}')}"
    yield "            )"
    yield "            _describe -t commands command members"
    yield "            ;;"
    yield "        argument)"
    yield "            case $words[1] in"
    for name, _ in level.words:
        yield f"                {name}) {_zsh_function(f'{level.path} {name}')} ;;"
    yield "            esac"
    yield "            ;;"
    yield "    esac"


def _zsh_action(kind: str) -> str:
    if "+" in kind:
        return f" _fedctl_names {kind.replace('+', ' ')}"
    if kind.startswith("words:"):
        ends = "-S ''" if "://" in kind else ""
        words = " ".join(word.replace(":", "\\:") for word in kind.removeprefix("words:").split(","))
        return f"compadd {ends} -- {words}" if ends else f"({words})"
    fixed = {"none": " ", "files": "_files", "directories": "_files -/"}
    return fixed.get(kind) or f" _fedctl_names {kind}"  # the space: called with these words and no others


def _zsh_text(text: str) -> str:
    """Text inside a specification, where colons and brackets end its parts."""
    return re.sub(r"([\[\]:\\])", r"\\\1", text)


def _quoted(text: str) -> str:
    """In single quotes; what all of it means in zsh, and in fish where there is no backslash."""
    return "'" + text.replace("'", "'\\''") + "'"


_TABLES = {"bash": _bash, "zsh": _zsh, "fish": _fish}


def render(shell: str, found: Sequence[Level]) -> str:
    """The completion file of one shell."""
    template = (HERE / "templates" / _SHELLS[shell]).read_text()
    table = "\n".join(_TABLES[shell](found)).replace("…", "...")  # readable in any locale
    return template.replace(f"{_MARK}\n", f"{table}\n")


def main() -> int:
    """Write the files, or say which are stale."""
    found = list(levels(root()))
    stale = 0
    for shell, name in _SHELLS.items():
        text = render(shell, found)
        path = HERE / name
        if "--check" not in sys.argv[1:]:
            path.write_text(text)
        elif not path.exists() or path.read_text() != text:
            print(f"{path.name} is stale: run python completions/generate.py", file=sys.stderr)
            stale = 1
    return stale


if __name__ == "__main__":
    sys.exit(main())
