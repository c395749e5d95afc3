"""The command line as a whole: which nouns there are, and what happens to an error."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from typing import Any

import typer
from typer.core import TyperOption

from fedctl.cli.command import Group, Session, epilog
from fedctl.core.errors import ExitCode, UsageError

NOUNS = {  # name: (one line of `fedctl --help`, module whose `app` has the command)
    "init": ("Create the fleet: keys and state database.", "fedctl.cli.init"),
    "devices": ("Add, list and remove wearables.", "fedctl.cli.devices"),
    "model": ("Create models and put them on devices.", "fedctl.cli.model"),
    "round": ("Train a model on the devices' own data.", "fedctl.cli.round"),
    "data": ("Look at what the devices' data are good for.", "fedctl.cli.data"),
    "demo": ("Watch a whole fleet train on this machine.", "fedctl.cli.demo"),
    "completion": ("Print what a shell needs to complete commands.", "fedctl.cli.completion"),
}
_DESCRIPTION = "Fleet management and federated learning for wearables, without a server."
_EXAMPLES = """
    fedctl demo
    fedctl init
    fedctl devices add watch-01 ssh://pi@192.0.2.41
    fedctl model create health --builder mlp --input 24 --hidden 16 --classes 2
    fedctl round start health --rounds 5
    fedctl devices list -l ward=3 -o json
"""


def run(arguments: Sequence[str]) -> int:
    """Run one command line; everything that can go wrong ends here."""
    session = Session()
    try:
        _check_text(arguments)
        with root().make_context("fedctl", list(arguments), obj=session) as context:
            return int(context.command.invoke(context))
    except typer.Exit as end:
        return end.exit_code
    except BrokenPipeError:  # whoever read the help has gone (`| head -1`)
        from fedctl.cli.screen import discard

        discard(sys.stdout)
        return ExitCode.OK
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - the one catch
        from fedctl.cli.edge import report

        as_json = session.machine or asks_for_json(arguments)
        return report(error, as_json=as_json, verbose=session.verbose, command=session.command)


def root() -> Group:
    """The first level of the command line."""
    members = {name: (summary, _loader(module)) for name, (summary, module) in NOUNS.items()}
    return Group("fedctl", _DESCRIPTION, members, epilog=epilog(_EXAMPLES), params=[_version_option()])


def asks_for_json(arguments: Sequence[str]) -> bool:
    """Whether `-o json` or `-o jsonl` stands anywhere, also behind a word that could not be parsed."""
    line = " ".join(arguments).replace("--output", "-o").replace("-o=", "-o").replace("-o ", "-o")
    return any(word in {"-ojson", "-ojsonl"} for word in line.split())


def _check_text(arguments: Sequence[str]) -> None:
    for word in arguments:
        try:
            word.encode()
        except UnicodeEncodeError:
            raise UsageError(
                f"{word!r} is not text in this locale's encoding",
                hint="use a UTF-8 locale, for example: LC_ALL=C.UTF-8 fedctl …",
            ) from None


def _loader(module: str) -> Any:
    def load() -> Any:
        return importlib.import_module(module).app.load()

    return load


def _version_option() -> TyperOption:
    return TyperOption(
        param_decls=["--version"],
        is_flag=True,
        is_eager=True,
        expose_value=False,
        help="Show the version and exit.",
        callback=_show_version,
    )


def _show_version(ctx: Any, _param: Any, value: object) -> None:
    if value:
        from fedctl import __version__

        typer.echo(f"fedctl {__version__}")
        ctx.exit()
