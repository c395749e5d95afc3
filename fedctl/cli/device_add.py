"""`fedctl devices add`: one device by its address, or many from a file."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from fedctl.cli import device_views as views
from fedctl.cli.command import Verb, session_of
from fedctl.cli.device_options import HostKey, SshConfig, Via, admin_login
from fedctl.cli.option_groups import grouped
from fedctl.cli.options import BOTH_WHEELS, Parallel, RootKey, home, prompts, writing
from fedctl.cli.output import View
from fedctl.core.errors import UsageError, reason_of

if TYPE_CHECKING:
    from fedctl.cli.progress import Watcher
    from fedctl.store import Store

_TOKEN_BYTES = 4096  # far above any token


@dataclass(frozen=True, slots=True, kw_only=True)
class OneOptions:
    """What is said of one device; with a file each row says it."""

    label: Annotated[
        list[str] | None, typer.Option("-l", "--label", metavar="KEY=VALUE", help="A label to give it.")
    ] = None
    note: Annotated[
        str | None, typer.Option("--note", metavar="TEXT", help="A line about it, for people.")
    ] = None
    source: Annotated[
        Path | None, typer.Option("--source", metavar="FILE", help="TOML saying where its data is; copied.")
    ] = None
    token_file: Annotated[
        Path | None,
        typer.Option("--token-file", metavar="FILE|-", help="https: the token that the device printed."),
    ] = None
    accept_host_key: HostKey = None
    via: Via = None

    def given(self) -> Mapping[str, object]:
        """Those that were said, by the words of the command line."""
        said = {
            "--label": self.label,
            "--note": self.note,
            "--source": self.source,
            "--token-file": self.token_file,
            "--accept-host-key": self.accept_host_key,
            "--via": self.via,
        }
        return {word: value for word, value in said.items() if value}


@dataclass(frozen=True, slots=True, kw_only=True)
class InstallOptions:
    """How the agent gets there, for one device and for many."""

    placement: Annotated[
        bool | None,
        typer.Option("--system/--user", help="ssh: place the agent for the system, or for the login only."),
    ] = None
    wheels: Annotated[
        Path | None, typer.Option("--wheels", metavar="DIR", help="Take wheels from here, not an index.")
    ] = None
    ssh_config: SshConfig = None
    root_key: RootKey = None
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")] = False

    def arguments(self) -> dict[str, Any]:
        """By the names that adding one and adding many share."""
        return {"wheels": self.wheels, "root_key": self.root_key, "dry_run": self.dry_run}

    @property
    def place(self) -> Literal["auto", "system", "user"]:
        """Where the agent is to be."""
        return "auto" if self.placement is None else "system" if self.placement else "user"


@grouped
def add(
    ctx: typer.Context,
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="The device's name in the fleet.")
    ] = None,
    url: Annotated[
        str | None,
        typer.Argument(metavar="[URL]", help="ssh://[user@]host[:port], https://host[:port] or unix://PATH."),
    ] = None,
    *,
    file: Annotated[
        Path | None, typer.Option("-f", "--file", metavar="FILE", help="Add the devices of a .csv or .toml.")
    ] = None,
    one: OneOptions,
    how: InstallOptions,
    parallel: Parallel = 64,
) -> View:
    """Install the agent on devices, enrol them and start them.

    Run again, it changes only what is missing. With unix:// and https:// it enrols an agent that runs
    already; https wants the token that "fedctl-agent enrol" prints at the device.

    A file has the columns name and url, and where wanted labels ("k=v;k=v") or label.KEY, note, source,
    placement, host_key and token_file. All of it is checked before anything is done.

    Exit code 3: some devices of the file failed. 10: the device cannot carry an agent.
    """
    from fedctl.cli.progress import Watcher
    from fedctl.ops import fleet

    _check_words(name, url, file, one)
    with writing() as store, Watcher(quiet=session_of(ctx).quiet) as watcher:
        if fleet.both_wheels_installed():
            watcher.note(BOTH_WHEELS)
        if file is not None:
            return _add_file(store, file, how, parallel, watcher)
        return _add_one(store, str(name), str(url), one, how, watcher)


def _check_words(name: str | None, url: str | None, file: Path | None, one: OneOptions) -> None:
    """One device by name and address, or a file that says all of it.

    Raises:
        UsageError: Neither, or both.
    """
    if file is None and (name is None or url is None):
        raise UsageError(
            "no device was named" if name is None else f"device {name} needs an address",
            hint=f"for example: fedctl devices add {name or 'watch-01'} ssh://pi@192.0.2.41\n"
            "or many: fedctl devices add -f fleet.csv",
        )
    said = {**({"NAME": name} if name else {}), **one.given()}
    if file is not None and said:
        word = next(iter(said))
        raise UsageError(
            f"{word} is for one device, and --file names many",
            hint="put it into the file, in a column of its own",
            subject=word,
        )


def _add_one(
    store: Store, name: str, url: str, one: OneOptions, how: InstallOptions, watcher: Watcher
) -> View:
    from fedctl.core.selector import parse_label_changes
    from fedctl.ops import devices

    labels = {key: value for key, value in parse_label_changes(one.label or ()).items() if value is not None}
    wanted = devices.NewDevice(name=name, url=url, labels=labels, source=one.source, note=one.note)
    result = devices.add(
        store,
        home(),
        wanted,
        admin=admin_login(how.ssh_config, one.accept_host_key, watcher, via=one.via),
        placement=how.place,
        token=_token(store, name, url, one.token_file, watcher),
        observer=watcher,
        **how.arguments(),
    )
    return views.added(result)


def _add_file(store: Store, path: Path, how: InstallOptions, parallel: int, watcher: Watcher) -> View:
    from fedctl.ops.enrolment.many import add_many
    from fedctl.ops.fleet_file import read_fleet_file

    outcomes = add_many(
        store,
        home(),
        read_fleet_file(path),
        admin=admin_login(how.ssh_config, None, watcher),
        placement=how.place,
        parallel=parallel,
        observer=watcher,
        **how.arguments(),
    )
    return views.added_many(outcomes, dry_run=how.dry_run)


def _token(store: Store, name: str, url: str, file: Path | None, watcher: Watcher) -> str | None:
    """The enrolment token of an HTTPS device: from a file, from stdin, or typed without an echo.

    Raises:
        UsageError: The file cannot be read, or the device is not reached by HTTPS.
    """
    from fedctl.ops.enrolment.https import is_enrolled

    https = url.startswith("https://")
    if file is None:
        if not https or is_enrolled(store, name, url) or not prompts():
            return None
        with watcher.silenced():
            question = f"Token of {name} (fedctl-agent enrol)"  # none: a device that was removed comes back
            return str(typer.prompt(question, default="", show_default=False, hide_input=True, err=True))
    if not https:
        raise UsageError(
            "--token-file is for https:// devices",
            hint="leave it out: SSH needs none",
            subject="--token-file",
        )
    if str(file) == "-":
        return sys.stdin.read(_TOKEN_BYTES)
    try:
        with file.open(encoding="utf-8", errors="replace") as stream:
            return stream.read(_TOKEN_BYTES)
    except OSError as error:
        raise UsageError(
            f"cannot read the token file {file}: {reason_of(error)}",
            hint="name the file that holds what `fedctl-agent enrol` printed, or - for stdin",
            subject=str(file),
        ) from error


verb = Verb(
    "add",
    add,
    examples="""
    fedctl devices add watch-01 ssh://pi@192.0.2.41
    fedctl devices add watch-01 ssh://pi@192.0.2.41 -l ward=3 --note 'on loan'
    fedctl devices add watch-02 ssh://pi@192.0.2.42:2222 --source recorder.toml
    fedctl devices add watch-03 https://192.0.2.43 --token-file token.txt
    fedctl devices add -f fleet.csv --dry-run
    fedctl devices add local unix:///run/fedctl-agent/agent.sock
    """,
)
