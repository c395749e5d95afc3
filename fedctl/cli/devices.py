"""`fedctl devices`: the wearables of the fleet."""

from __future__ import annotations

from typing import Annotated

import typer

from fedctl.cli import device_views as views
from fedctl.cli.command import Noun, session_of
from fedctl.cli.device_options import HostKey, Name, SshConfig, admin_login
from fedctl.cli.options import (
    Labels,
    Limit,
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

app = Noun("devices", "Add, list and remove wearables.")

app.verb_elsewhere("add", "Install the agent on devices, enrol them and start them.", "fedctl.cli.device_add")
app.verb_elsewhere(
    "upgrade",
    "Bring the agent of this fedctl onto devices that have another one.",
    "fedctl.cli.device_upgrade",
)
app.verb_elsewhere(
    "rekey", "Put fedctl's restricted login back on devices, or replace its key.", "fedctl.cli.device_rekey"
)


@app.verb(
    "list",
    examples="""
    fedctl devices list
    fedctl devices list 'watch-*' -l ward=3
    fedctl devices list -o json
    fedctl devices list -l 'ward in (3,4),role!=holdout' -o name
    """,
)
def list_(names: Names = None, *, label: Labels = None, limit: Limit = None) -> View:
    """List the devices of the fleet, as they were at their last contact.

    Nothing is sent to a device: "fedctl devices ping" asks them.
    """
    with reading() as store:
        return views.listed(selected(store, names, label, limit))


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
    limit: Limit = None,
) -> View:
    """Set or remove labels of devices.

    A device with role=holdout never trains: it measures versions on data that no round has seen.
    """
    from fedctl.core.selector import parse_label_changes
    from fedctl.ops import devices

    names = [word for word in words if word == "-" or ("=" not in word and not word.endswith("-"))]
    changes = parse_label_changes([word for word in words if word not in names])
    if not changes:
        raise _no_label(words[-1] if label or len(words) > 1 else None)
    with writing() as store:
        return views.labelled(devices.label(store, chosen(store, names, label, limit), changes))


@app.verb(
    "note",
    examples="""
    fedctl devices note watch-01 'strap renewed, worn on the left'
    fedctl devices note watch-01 ''
    """,
)
def note(
    name: Name,
    text: Annotated[str, typer.Argument(metavar="TEXT", help="One line; '' takes the note away.")],
) -> View:
    """Write a note about a device, in place of the one it has; "fedctl devices show" shows it."""
    from fedctl.ops import devices

    with writing() as store:
        return views.noted(devices.note(store, name, text))


@app.verb(
    "maintenance",
    examples="""
    fedctl devices maintenance watch-01 on
    fedctl devices maintenance -l ward=3 on
    fedctl devices maintenance 'watch-*' off
    """,
)
def maintenance(
    words: Annotated[list[str], typer.Argument(metavar="[NAMES]... on|off", help="Devices, then on or off.")],
    *,
    label: Labels = None,
    limit: Limit = None,
) -> View:
    """Keep devices out of rounds and pushes for a while, or let them in again.

    They stay enrolled, are shown with this state, and are still pinged and checked. A round that runs
    already goes on with them.
    """
    from fedctl.ops import devices

    *names, state = words
    if state not in {"on", "off"}:
        raise UsageError(
            f"the last word is {state!r}, neither 'on' nor 'off'",
            hint="for example: fedctl devices maintenance watch-01 on",
            subject=state,
        )
    with writing() as store:
        chosen_ones = chosen(store, names, label, limit)
        return views.maintained(devices.maintenance(store, chosen_ones, on=state == "on"))


@app.verb(
    "ping",
    examples="""
    fedctl devices ping
    fedctl devices ping -l ward=3 --timeout 5
    fedctl devices list -l ward=3 -o name | fedctl devices ping -
    fedctl devices ping -o jsonl
    """,
)
def ping(
    ctx: typer.Context,
    names: Names = None,
    *,
    label: Labels = None,
    limit: Limit = None,
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
            selected(store, names, label, limit),
            timeout_s=timeout,
            parallel=parallel,
            observer=watcher,
        )
    return views.pinged(outcomes)


app.verb_elsewhere(
    "check",
    "Go the way to devices step by step: where does it end, and what is the way out?",
    "fedctl.cli.device_check",
)


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
    limit: Limit = None,
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
        doomed = chosen(store, names, label, limit)
        if not yes:
            _agree(f"Remove {', '.join(d.name for d in doomed)}?")
        outcomes = devices.remove(
            store,
            home(),
            doomed,
            admin=admin_login(ssh_config, accept_host_key, watcher),
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
