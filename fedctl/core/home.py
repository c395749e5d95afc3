"""Where the workstation keeps its state: one directory, `FEDCTL_HOME`."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from fedctl.core.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Home:
    """Paths below the state directory; nothing here touches the disk."""

    path: Path

    @classmethod
    def from_environment(cls) -> Home:
        """`$FEDCTL_HOME`, else `fedctl` under the XDG state directory.

        Raises:
            ConfigError: When a `~` in it stands for no directory.
        """
        explicit = os.environ.get("FEDCTL_HOME")
        state = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
        path = Path(explicit) if explicit else Path(state) / "fedctl"
        try:
            return cls(path.expanduser().absolute())
        except RuntimeError as error:  # no such user, or one without a home directory
            raise ConfigError(
                f"cannot tell where {path} is: {path.parts[0]} is nobody's home directory",
                hint="set FEDCTL_HOME to the path of a directory",
                subject=str(path),
                code="home",
            ) from error

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

    @property
    def demo_mark(self) -> Path:
        """A file that is there from the first to the last moment of a demo's home."""
        return self.path / "demo.mark"

    def bundle(self, model: str, version: int) -> Path:
        """Directory of one model version's bundle."""
        return self.path / "models" / model / str(version)

    def round(self, round_id: int) -> Path:
        """Working directory of a round: its updates and intermediate files."""
        return self.path / "rounds" / str(round_id)
