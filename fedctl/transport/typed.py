"""A device's address as the admin typed it: what a hint must say for the command to work when pasted.

The address that a row has is the resolved one; the admin may have typed an alias of an SSH configuration,
and only with that file does the alias, the user's key or the way through a jump host exist.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path

from fedctl_wire.codec import Json

URL_FACT = "admin_url"  # of a device's row: the address as typed
CONFIG_FACT = "admin_config"  # of a device's row: the absolute path that -F named; None: the user's own


def typed_facts(url: str, ssh_config: Path | None) -> dict[str, Json]:
    """What a device's row keeps of the words that it was added with."""
    return {URL_FACT: url, CONFIG_FACT: None if ssh_config is None else str(ssh_config.absolute())}


def typed_config(facts: Mapping[str, Json]) -> Path | None:
    """The file that -F named; None when there was none, or it is gone."""
    kept = facts.get(CONFIG_FACT)
    return Path(kept) if isinstance(kept, str) and Path(kept).is_file() else None


def typed_words(facts: Mapping[str, Json], url: str) -> str:
    """The words behind `fedctl devices add NAME`; `url` is the row's, for one that keeps no other."""
    config = facts.get(CONFIG_FACT)
    option = f" -F {shlex.quote(config)}" if isinstance(config, str) else ""
    return f"{facts.get(URL_FACT, url)}{option}"
