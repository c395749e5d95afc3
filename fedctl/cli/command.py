"""What every command has in common: global flags wherever they are put, examples, a rendered result.

Groups are lazy: help and suggestions come from names and first lines; a command is imported and built
by Typer only when it is the one to run.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import typer
from typer.core import TyperCommand, TyperGroup, TyperOption
from typer.main import get_command

from fedctl.cli.output import Format, View, show
from fedctl.core.errors import ExitCode

_Function = TypeVar("_Function", bound=Callable[..., View])
Loader = Callable[[], Any]  # gives a Typer command or group


class Session:
    """What the global flags said; filled in while the command line is parsed."""

    form: Format | None = None
    quiet: bool = False
    verbose: bool = False
    command: str = ""  # that runs, e.g. "fedctl devices add"

    @property
    def machine(self) -> bool:
        """Whether a program reads the result, so that nothing else may stand on stdout."""
        return self.form not in {None, Format.TABLE}


class _WithExamples:
    """A help page that ends with its examples as they are written."""

    epilog: str | None

    def format_epilog(self, _ctx: Any, formatter: Any) -> None:
        """Write the examples without wrapping them."""
        if self.epilog:
            formatter.write_paragraph()
            formatter.write(f"{self.epilog}\n")


class Command(_WithExamples, TyperCommand):
    """A command whose function returns a `View`; rendering it is the command's last step."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.params.extend(global_options())

    def invoke(self, ctx: Any) -> ExitCode:
        """Run the function and show what it returned; the value is the process's exit code."""
        session = session_of(ctx)
        session.command = ctx.command_path
        view: View = super().invoke(ctx)
        show(view, session.form, quiet=session.quiet)
        return view.exit_code


class Group(_WithExamples, TyperGroup):
    """Commands that are loaded when they are used: name to (first line of its help, loader)."""

    def __init__(
        self, name: str, description: str, members: Mapping[str, tuple[str, Loader]], **settings: Any
    ) -> None:
        super().__init__(
            name=name,
            help=description,
            commands=[TyperCommand(word, short_help=summary) for word, (summary, _) in members.items()],
            no_args_is_help=True,
            rich_markup_mode=None,
            **settings,
        )
        self.params.extend(global_options())
        self._members = members

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """Find the command that the next word names, and load it."""
        name, _, rest = super().resolve_command(ctx, args)
        _, load = self._members[name or ""]
        return name, load(), rest


class Verb:
    """One command: a function that Typer reads, and examples, one a line."""

    def __init__(self, name: str, function: Callable[..., View], *, examples: str) -> None:
        self.name = name
        self.summary = (inspect.getdoc(function) or "").partition("\n")[0]
        self._function = function
        self._examples = examples

    def load(self) -> Any:
        """Let Typer build the command."""
        app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
        app.command(self.name, cls=Command, epilog=epilog(self._examples))(self._function)
        return get_command(app)


class Noun:
    """A first word with verbs of its own; those of other modules are imported when they are used."""

    def __init__(self, name: str, description: str) -> None:
        self._name = name
        self._description = description
        self._verbs: dict[str, tuple[str, Loader]] = {}

    def verb(self, name: str, *, examples: str) -> Callable[[_Function], _Function]:
        """Register a function as the command `name`."""

        def register(function: _Function) -> _Function:
            verb = Verb(name, function, examples=examples)
            self._verbs[name] = (verb.summary, verb.load)
            return function

        return register

    def verb_elsewhere(self, name: str, summary: str, module: str) -> None:
        """Register the command `name` that `module` has as its `verb`, with the first line of its help."""

        def load() -> Any:
            return importlib.import_module(module).verb.load()

        self._verbs[name] = (summary, load)

    def load(self) -> Group:
        """The group of its verbs."""
        return Group(self._name, self._description, self._verbs)


def epilog(examples: str) -> str:
    """Examples, one a line, as the end of a help page."""
    return "\n".join(["Examples:", *(f"  {line.strip()}" for line in examples.strip().splitlines())])


def session_of(ctx: Any) -> Session:
    """The session that a context belongs to."""
    session: Session = ctx.find_root().obj
    return session


def global_options() -> list[TyperOption]:
    """`-o`, `-q` and `-v`, fresh for one command."""
    return [
        TyperOption(
            param_decls=["-o", "--output"],
            type=str,
            metavar="FORMAT",
            help="Show the result as table, json, jsonl or name.",
            expose_value=False,
            callback=_set_form,
        ),
        TyperOption(
            param_decls=["-q", "--quiet"],
            is_flag=True,
            help="No progress and no notes.",
            expose_value=False,
            callback=_set_quiet,
        ),
        TyperOption(
            param_decls=["-v", "--verbose"],
            is_flag=True,
            help="Show the chain of causes of an error.",
            expose_value=False,
            callback=_set_verbose,
        ),
    ]


def _set_form(ctx: Any, _param: Any, value: str | None) -> None:
    if value is None:
        return
    try:
        session_of(ctx).form = Format(value)
    except ValueError:
        raise typer.BadParameter(f"{value!r} is not one of {', '.join(Format)}") from None


def _set_quiet(ctx: Any, _param: Any, value: object) -> None:
    session_of(ctx).quiet |= bool(value)


def _set_verbose(ctx: Any, _param: Any, value: object) -> None:
    session_of(ctx).verbose |= bool(value)
