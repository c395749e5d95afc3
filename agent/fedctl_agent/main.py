"""Entry point of `fedctl-agent`: parse, import what the command needs and nothing else, run it.

Exit codes are those of `fedctl`: 0, 2 for usage, 7 when another one runs, 8 for a key that is none,
10 for the state directory, the socket or the disk.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    import argparse

_USAGE, _LOCKED, _TRUST, _CONFIG = 2, 7, 8, 10


def main() -> None:
    """Run the command line's command; ends the process with its exit code."""
    words = sys.argv[1:]
    if len(words) == 3 and words[:2] == ["dial-stdio", "--socket"]:
        from fedctl_agent.dial_stdio import run  # one a channel: not even argparse is loaded for it

        sys.exit(run(words[2]))
    _run(_parse(words))


def _parse(words: list[str]) -> argparse.Namespace:
    import argparse
    from pathlib import Path

    from fedctl_agent import __version__

    parser = argparse.ArgumentParser(prog="fedctl-agent", description="The part of fedctl on a wearable.")
    parser.add_argument("--version", action="version", version=f"fedctl-agent {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text in (
        ("serve", "run the daemon"),
        ("supervise", "run the daemon, and again whenever it ends"),
        ("stop", "end daemon and supervisor"),
        ("keygen", "make the identity key unless there is one; print its public half"),
    ):
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("--state-dir", type=Path, required=True, metavar="DIR")
        if name in {"serve", "supervise"}:
            command.add_argument("--socket", type=Path, metavar="PATH", help="default: agent.sock in DIR")
        if name == "serve":
            command.add_argument("--group", action="store_true", help="let the socket's group connect, too")
    text = "open this device to one enrolment over HTTPS; print the one-time token for it"
    enrol = commands.add_parser("enrol", help=text, description=text)
    enrol.add_argument("--state-dir", type=Path, metavar="DIR", help="default: this machine's, or the user's")
    enrol.add_argument(
        "--listen", metavar="ADDRESS:PORT", help="where to listen; default: as before, else 0.0.0.0:7443"
    )
    dial = commands.add_parser("dial-stdio", help="connect stdin and stdout to the daemon's socket")
    dial.add_argument("--socket", required=True, metavar="PATH")
    return parser.parse_args(words)


def _run(options: argparse.Namespace) -> None:
    from fedctl_agent.processes import AlreadyRunningError
    from fedctl_wire.errors import WireError

    try:
        _COMMANDS[options.command](options)
    except AlreadyRunningError as error:
        _fail(str(error), _LOCKED)
    except WireError as error:
        _fail(str(error), _TRUST)
    except OSError as error:
        _fail(f"cannot use {options.state_dir}: {error}", _CONFIG)


def _serve(options: argparse.Namespace) -> None:
    from fedctl_agent.daemon.server import serve

    mode = 0o660 if options.group else 0o600
    serve(options.state_dir, socket=options.socket, socket_mode=mode)


def _supervise(options: argparse.Namespace) -> None:
    from fedctl_agent.state import StateDir
    from fedctl_agent.supervise import supervise

    supervise(StateDir(options.state_dir.absolute()), socket=options.socket)


def _stop(options: argparse.Namespace) -> None:
    from fedctl_agent.processes import stop
    from fedctl_agent.state import StateDir

    stop(StateDir(options.state_dir.absolute()))


def _keygen(options: argparse.Namespace) -> None:
    from fedctl_agent.keygen import keygen
    from fedctl_agent.state import StateDir

    sys.stdout.write(keygen(StateDir(options.state_dir.absolute())) + "\n")


def _enrol(options: argparse.Namespace) -> None:
    from fedctl_agent.enrol import default_state_dir, enrol
    from fedctl_agent.settings import Address
    from fedctl_agent.state import StateDir
    from fedctl_wire.errors import WireError

    try:
        listen = None if options.listen is None else Address.parse(options.listen)
    except WireError as error:
        _fail(f"--listen: {error}", _USAGE)
    options.state_dir = options.state_dir or default_state_dir()
    opened = enrol(StateDir(options.state_dir.absolute()), listen)
    sys.stdout.write(opened.token + "\n")
    sys.stdout.flush()  # it stands above the explanation also where both go to one file
    sys.stderr.write(opened.explanation + "\n")
    if opened.warning:
        sys.stderr.write(f"fedctl-agent: {opened.warning}\n")


def _fail(message: str, code: int) -> NoReturn:
    sys.stderr.write(f"fedctl-agent: {message}\n")
    sys.exit(code)


_COMMANDS = {"serve": _serve, "supervise": _supervise, "stop": _stop, "keygen": _keygen, "enrol": _enrol}

if __name__ == "__main__":
    main()
