"""Where the workstation keeps its state: one directory, `FEDCTL_HOME`."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Home:
    """Paths below the state directory; nothing here touches the disk."""

    path: Path

    @classmethod
    def from_environment(cls) -> Home:
        """`$FEDCTL_HOME`, else `fedctl` under the XDG state directory."""
        explicit = os.environ.get("FEDCTL_HOME")
        if explicit:
            return cls(Path(explicit).expanduser().absolute())
        state = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
        return cls(Path(state).expanduser().absolute() / "fedctl")

    @property
    def database(self) -> Path:
        """The SQLite state database."""
        return self.path / "fedctl.db"

    @property
    def keys(self) -> Path:
        """Directory of the root, operator and login keys, mode 0700."""
        return self.path / "keys"

    @property
    def wheels(self) -> Path:
        """Cache of wheels for devices."""
        return self.path / "cache" / "wheels"

    @property
    def locks(self) -> Path:
        """Directory of lock files, one a fleet and model."""
        return self.path / "locks"

    def bundle(self, model: str, version: int) -> Path:
        """Directory of one model version's bundle."""
        return self.path / "models" / model / str(version)

    def round(self, round_id: int) -> Path:
        """Working directory of a round: its updates and intermediate files."""
        return self.path / "rounds" / str(round_id)
