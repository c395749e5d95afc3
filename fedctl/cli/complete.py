"""`fedctl __complete KIND [PREFIX]`: what the completion files ask at a TAB, answered without Typer.

One name a line, a tab and a few words about it behind it. Never an error: there is nowhere to show one.
"""

from __future__ import annotations

import os
from collections.abc import Sequence


def answer(words: Sequence[str]) -> None:
    """Write the names of a kind that begin with what has been typed."""
    from fedctl.core.errors import ConfigError
    from fedctl.core.home import Home
    from fedctl.store.names import names

    kind, prefix = (*words, "", "")[:2]
    try:
        found = names(Home.from_environment().database, kind, prefix)
        text = "".join(f"{name}\t{about}\n" for name, about in found)
        os.write(1, text.encode("utf-8", "surrogateescape"))
    except (ConfigError, OSError):
        return
