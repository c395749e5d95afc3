"""Interactive shells on a terminal of their own, in which a test presses TAB."""

from __future__ import annotations

import contextlib
import functools
import os
import pty
import select
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.system import HOW_TO_ENABLE, _libraries, _unpacked, system_tests_enabled

SHELLS = ("bash", "zsh", "fish")
COMPLETIONS = Path(__file__).resolve().parents[1] / "completions"
_PROMPT = b"READY>"
_PATIENCE_S = 30.0
_TAB, _SAVE = "\t", "\x07"  # Ctrl-G writes the line as it stands to $LINE

_START = {  # what each shell reads first: a prompt to wait for, the completions, and the key that saves
    "bash": r"""
        PS1="READY> "
        source {completions}/fedctl.bash
        save() {{ printf "%s\n" "$READLINE_LINE" > $LINE; }}
        bind -x '"\C-g": save'
        """,
    "zsh": r"""
        PS1="READY> "
        {relocate}
        fpath=({completions} $fpath)
        autoload -U compinit && compinit -u -D
        save() {{ print -r -- "$BUFFER" > $LINE }}
        zle -N save && bindkey "^G" save
        """,
    "fish": r"""
        function fish_prompt; echo "READY> "; end
        set -g fish_greeting
        set -g fish_autosuggestion_enabled 0
        source {completions}/fedctl.fish
        bind \cg "commandline > $LINE"
        """,
}


@dataclass(frozen=True, slots=True)
class ShellProgram:
    """How to start a shell."""

    path: str
    environment: dict[str, str]
    relocate: str  # lines for zsh's start-up file that say where the rest of it is


@functools.cache
def shell_program(name: str) -> ShellProgram:
    """The installed shell, or Debian's package unpacked where system tests are enabled; else skips."""
    installed = shutil.which(name)
    if installed:
        return ShellProgram(installed, {}, "")
    if not system_tests_enabled():
        pytest.skip(f"{name} is not installed; install it, or {HOW_TO_ENABLE}")
    return _relocated(name, _unpacked(name))


def _relocated(name: str, root: Path) -> ShellProgram:
    found = [path for path in (root / "bin" / name, root / "usr/bin" / name) if path.exists()]
    assert found, f"the package {name} has no program {name}"
    lines = [f"module_path=({path.parents[1]})" for path in root.rglob("zsh/complete.so")]
    functions = sorted({str(path.parent) for path in root.rglob("zsh/functions/**/*") if path.is_file()})
    lines += [f"fpath=({' '.join(functions)} $fpath)"] if functions else []
    return ShellProgram(str(found[0]), _libraries(root), "\n".join(lines))


class Terminal:
    """One interactive shell with fedctl's completions; `after_tab` is all there is to do with it."""

    def __init__(self, shell: str, directory: Path, program: Path, home: Path) -> None:
        """Start the shell.

        Args:
            shell: One of `SHELLS`.
            directory: An empty one, for its files.
            program: What `fedctl` is to mean.
            home: The fleet's home.
        """
        started = shell_program(shell)
        (directory / "bin").mkdir()
        (directory / "bin" / "fedctl").symlink_to(program)
        self._line = directory / "line"
        environment = {
            **started.environment,
            "PATH": f"{directory / 'bin'}:/usr/bin:/bin",
            "HOME": str(directory),
            "XDG_CONFIG_HOME": str(directory),
            "ZDOTDIR": str(directory),
            "FEDCTL_HOME": str(home),
            "LINE": str(self._line),
            "TERM": "dumb",
            "LC_ALL": "C.UTF-8",
        }
        arguments = _prepare(shell, directory, started)
        self._pid, self._terminal = pty.fork()
        if self._pid == 0:
            with contextlib.suppress(OSError):
                os.chdir(directory)
                os.execve(started.path, [shell, *arguments], environment)  # noqa: S606 - a shell it is
            os._exit(127)
        self._said = b""
        self._wait(lambda: _PROMPT in self._said, "a prompt")

    def after_tab(self, typed: str) -> str:
        """Type words and press TAB; how the line then stands."""
        self._line.unlink(missing_ok=True)
        # Ctrl-U empties what the last call left.
        os.write(self._terminal, ("\x15" + typed + _TAB + _SAVE).encode())
        self._wait(lambda: self._line.exists() and self._line.read_text().endswith("\n"), "the line")
        return self._line.read_text().removesuffix("\n")

    def close(self) -> None:
        """End the shell."""
        os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)
        os.close(self._terminal)

    def _wait(self, condition: Callable[[], object], what: str) -> None:
        deadline = time.monotonic() + _PATIENCE_S
        while not condition():
            assert time.monotonic() < deadline, f"never: {what}; the shell said {self._said!r}"
            if select.select([self._terminal], [], [], 0.01)[0]:
                with contextlib.suppress(OSError):
                    self._said += os.read(self._terminal, 65536)


def _prepare(shell: str, directory: Path, started: ShellProgram) -> list[str]:
    """Write the start-up file; returns the shell's arguments."""
    names = {"bash": "bashrc", "zsh": ".zshrc", "fish": "fish/config.fish"}
    path = directory / names[shell]
    path.parent.mkdir(exist_ok=True)
    path.write_text(_START[shell].format(completions=COMPLETIONS, relocate=started.relocate))
    return {
        "bash": ["--noprofile", "--rcfile", str(path), "-i"],
        "zsh": ["--no-globalrcs", "-i"],
        "fish": ["-i"],
    }[shell]
