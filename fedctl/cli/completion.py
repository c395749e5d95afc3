"""`fedctl completion`: the completion file of a shell, as it was written with this version."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedctl.cli.command import Verb
from fedctl.cli.output import View
from fedctl.core.errors import ConfigError, UsageError

_FILES = {"bash": "fedctl.bash", "zsh": "_fedctl", "fish": "fedctl.fish"}
_HERE = Path(__file__).resolve().parent
# In a wheel they lie beside this module; in a checkout, where packagers look for them, at its top.
_DIRECTORIES = (_HERE / "completions", _HERE.parents[1] / "completions")


def completion(
    shell: Annotated[str, typer.Argument(metavar="bash|zsh|fish", help="Which shell it is for.")],
) -> View:
    """Print the completion file of a shell, with which TAB knows commands, devices, models and labels.

    bash: into ~/.local/share/bash-completion/completions/fedctl. zsh: into a file _fedctl in a directory
    of $fpath. fish: into ~/.config/fish/completions/fedctl.fish. New shells then know it.
    """
    if shell not in _FILES:
        raise UsageError(f"there are no completions for {shell!r}", hint=f"one of: {', '.join(_FILES)}")
    text = _read(_FILES[shell])
    return View({"shell": shell, "text": text}, [text.splitlines()], names=[shell])


def _read(name: str) -> str:
    for directory in _DIRECTORIES:
        if (directory / name).exists():
            return (directory / name).read_text()
    raise ConfigError(
        f"this installation has no {name}", hint="install fedctl again from its wheel", subject=name
    )


app = Verb(
    "completion",
    completion,
    examples="""
    fedctl completion bash > ~/.local/share/bash-completion/completions/fedctl
    fedctl completion zsh > ~/.zfunc/_fedctl
    fedctl completion fish > ~/.config/fish/completions/fedctl.fish
    """,
)
