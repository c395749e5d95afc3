"""`fedctl init`."""

from __future__ import annotations

from fedctl.cli.command import Verb
from fedctl.cli.options import BOTH_WHEELS, RootKey, home
from fedctl.cli.output import View
from fedctl.ops import fleet


def init(root_key: RootKey = None) -> View:
    """Create the fleet: home directory, root, operator and login key, and state database.

    The home is $FEDCTL_HOME, by default fedctl in the XDG state directory. A fleet that is there
    already is shown and left as it is.
    """
    result = fleet.init(home(), root_key=root_key)
    verb = "created" if result.created else "exists already"
    kept = result.root_key.is_relative_to(result.home) if result.root_key else False
    where = f"Root key: {result.root_key or 'moved away; name it with --root-key PATH'}"
    advice = " (enrols devices; move it off this machine and name it with --root-key PATH)." if kept else ""
    sentences = [f"Fleet {result.fleet.uuid} {verb} in {result.home}.", f"{where}{advice}"]
    if fleet.both_wheels_installed():
        sentences.append(BOTH_WHEELS)
    return View(
        body={
            "fleet": result.fleet.uuid,
            "home": str(result.home),
            "root_key": str(result.root_key) if result.root_key else None,
            "root_public_key": result.fleet.root_key,
            "operator_public_key": result.fleet.operator_key,
            "created": result.created,
        },
        blocks=[sentences],
        names=[result.fleet.uuid],
        action=True,
    )


app = Verb(
    "init",
    init,
    examples="""
    fedctl init
    fedctl init --root-key /media/usb/fedctl-root
    """,
)
