"""`fedctl devices`: the wearables of the fleet."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedctl.cli import device_views as views
from fedctl.cli.command import Noun, session_of
from fedctl.cli.options import (
    BOTH_WHEELS,
    Labels,
    Names,
    Parallel,
    RootKey,
    Timeout,
    chosen,
    confirm,
    home,
    prompts,
    reading,
    selected,
    writing,
)
from fedctl.cli.output import View
from fedctl.core.errors import UsageError

if TYPE_CHECKING:
    from fedctl.cli.progress import Watcher
    from fedctl.ops.devices import AdminLogin

app = Noun("devices", "Add, list and remove wearables.")

Name = Annotated[str, typer.Argument(metavar="NAME", help="The device's name in the fleet.")]
SshConfig = Annotated[
    Path | None, typer.Option("-F", "--ssh-config", metavar="FILE", help="Your OpenSSH configuration to use.")
]
HostKey = Annotated[
    str | None,
    typer.Option("--accept-host-key", metavar="SHA256:…", help="Trust an unknown SSH host key like this."),
]


@app.verb(
    "add",
    examples="""
    fedctl devices add watch-01 ssh://pi@192.0.2.41
    fedctl devices add watch-01 ssh://pi@192.0.2.41 --label ward=3
    fedctl devices add watch-02 ssh://pi@192.0.2.42:2222 --source recorder.toml
    fedctl devices add watch-03 ssh://pi@192.0.2.43 --dry-run
    fedctl devices add local unix:///run/fedctl-agent/agent.sock
    """,
)
def add(  # noqa: PLR0913 - one parameter an option
    ctx: typer.Context,
    name: Name,
    url: Annotated[str, typer.Argument(metavar="URL", help="ssh://[user@]host[:port] or unix://PATH.")],
    *,
    label: Annotated[
        list[str] | None, typer.Option("-l", "--label", metavar="KEY=VALUE", help="A label to give it.")
    ] = None,
    source: Annotated[
        Path | None, typer.Option("--source", metavar="FILE", help="TOML saying where its data is; copied.")
    ] = None,
    wheels: Annotated[
        Path | None, typer.Option("--wheels", metavar="DIR", help="Take wheels from here, not an index.")
    ] = None,
    accept_host_key: HostKey = None,
    ssh_config: SshConfig = None,
    root_key: RootKey = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")] = False,
) -> View:
    """Install the agent on a device, enrol it and start it.

    Run again, it changes only what is missing. With unix://PATH it enrols an agent that runs already.
    Exit code 10: the device cannot carry an agent.
    """
    from fedctl.cli.progress import Watcher
    from fedctl.core.selector import parse_label_changes
    from fedctl.ops import devices, fleet

    labels = {key: value for key, value in parse_label_changes(label or ()).items() if value is not None}
    wanted = devices.NewDevice(name=name, url=url, labels=labels, source=source)
    with writing() as store, Watcher(quiet=session_of(ctx).quiet) as watcher:
        if fleet.both_wheels_installed():
            watcher.note(BOTH_WHEELS)
        result = devices.add(
            store,
            home(),
            wanted,
            admin=_admin(ssh_config, accept_host_key, watcher),
            root_key=root_key,
            wheels=wheels,
            dry_run=dry_run,
            observer=watcher,
        )
    return views.added(result)


@app.verb(
    "list",
    examples="""
    fedctl devices list
    fedctl devices list 'watch-*' -l ward=3
    fedctl devices list -o json
    fedctl devices list -l role=holdout -o name
    """,
)
def list_(names: Names = None, *, label: Labels = None) -> View:
    """List the devices of the fleet, as they were at their last contact.

    Nothing is sent to a device: "fedctl devices ping" asks them.
    """
    with reading() as store:
        return views.listed(selected(store, names, label))


@app.verb(
    "show",
    examples="""
    fedctl devices show watch-01
    fedctl devices show watch-01 -o json
    """,
)
def show(name: Name) -> View:
    """Show what the fleet knows about one device."""
    with reading() as store:
        return views.shown(store.device(name), store.deployments(device=name))


@app.verb(
    "label",
    examples="""
    fedctl devices label watch-01 ward=3
    fedctl devices label 'watch-*' role=holdout
    fedctl devices label -l ward=3 ward=4 spare-
    """,
)
def label_(
    words: Annotated[
        list[str],
        typer.Argument(metavar="[NAMES]... CHANGES...", help="Devices, then KEY=VALUE or KEY- to remove it."),
    ],
    *,
    label: Labels = None,
) -> View:
    """Set or remove labels of devices.

    A device with role=holdout never trains: it measures versions on data that no round has seen.
    """
    from fedctl.core.selector import parse_label_changes
    from fedctl.ops import devices

    names = [word for word in words if "=" not in word and not word.endswith("-")]
    changes = parse_label_changes([word for word in words if word not in names])
    if not changes:
        raise _no_label(words[-1] if label or len(words) > 1 else None)
    with writing() as store:
        return views.labelled(devices.label(store, chosen(store, names, label), changes))


@app.verb(
    "ping",
    examples="""
    fedctl devices ping
    fedctl devices ping -l ward=3 --timeout 5
    fedctl devices ping -o jsonl
    """,
)
def ping(
    ctx: typer.Context,
    names: Names = None,
    *,
    label: Labels = None,
    timeout: Timeout = 10.0,
    parallel: Parallel = 64,
) -> View:
    """Ask devices whether they are there.

    Exit code 3: some did not answer. 4: none did.
    """
    from fedctl.cli.progress import Watcher
    from fedctl.ops import devices

    with writing() as store, Watcher(quiet=session_of(ctx).quiet) as watcher:
        outcomes = devices.ping(
            store,
            home(),
            selected(store, names, label),
            timeout_s=timeout,
            parallel=parallel,
            observer=watcher,
        )
    return views.pinged(outcomes)


@app.verb(
    "remove",
    examples="""
    fedctl devices remove watch-01
    fedctl devices remove 'old-*' --purge --yes
    fedctl devices remove watch-09 --forget
    """,
)
def remove(  # noqa: PLR0913 - one parameter an option
    ctx: typer.Context,
    names: Names = None,
    *,
    label: Labels = None,
    accept_host_key: HostKey = None,
    ssh_config: SshConfig = None,
    root_key: RootKey = None,
    purge: Annotated[bool, typer.Option("--purge", help="Delete the agent's state directory too.")] = False,
    forget: Annotated[
        bool, typer.Option("--forget", help="Strike it off though it does not answer.")
    ] = False,
    yes: Annotated[bool, typer.Option("-y", "--yes", help="Do not ask.")] = False,
) -> View:
    """Stop and delete the agent on devices and strike them off the fleet.

    The data that a device recorded is never touched. Without a terminal it needs --yes.
    """
    from fedctl.cli.progress import Watcher
    from fedctl.ops import devices

    with writing() as store, Watcher(quiet=session_of(ctx).quiet) as watcher:
        doomed = chosen(store, names, label)
        if not yes:
            _agree(f"Remove {', '.join(d.name for d in doomed)}?")
        outcomes = devices.remove(
            store,
            home(),
            doomed,
            admin=_admin(ssh_config, accept_host_key, watcher),
            root_key=root_key,
            purge=purge,
            forget=forget,
            observer=watcher,
        )
    return views.removed(outcomes)


def _no_label(word: str | None) -> UsageError:
    """The error for words without a change; `word` is the one that stands where a label should."""
    message = "no label was given" if word is None else f"{word!r} is no label: it lacks '='"
    return UsageError(message, hint="for example: fedctl devices label watch-01 ward=3", subject=word or "")


def _agree(question: str) -> None:
    """Ask before what cannot be taken back; without a terminal silence is no consent.

    Raises:
        UsageError: There is nobody to ask.
    """
    if not prompts():
        raise UsageError("nobody can be asked whether to remove", hint="say it with --yes", subject="--yes")
    if not confirm(question):
        raise typer.Abort


def _admin(ssh_config: Path | None, accept_host_key: str | None, watcher: Watcher) -> AdminLogin:
    from fedctl.ops.devices import AdminLogin

    def ask(question: str) -> bool:
        watcher.pause()
        return confirm(question)

    asker = ask if prompts() else None
    return AdminLogin(ssh_config=ssh_config, accept_host_key=accept_host_key, ask=asker)
