"""The files that a source's path means: one file, or those of a directory with the kind's ending."""

from __future__ import annotations

import stat
from pathlib import Path

from fedctl_agent.sources.source import Source
from fedctl_agent.trainers.contract import JobError, refuse
from fedctl_wire.sources import shown


def data_files(source: Source, ending: str) -> list[Path]:
    """The files of a source, sorted by name.

    Raises:
        JobError: `source` when the path is not there, cannot be read, or is no regular file; refused,
            `no_data`, when it is a directory without such a file.
    """
    where = f"source {source.name!r}: {shown(source.path)}"
    try:
        mode = source.path.stat().st_mode
        files = sorted(source.path.glob(f"*{ending}")) if stat.S_ISDIR(mode) else [source.path]
        odd = [path for path in files if not stat.S_ISREG(path.stat().st_mode)]
    except FileNotFoundError as error:
        raise JobError("source", f"source {source.name!r}: {shown(error.filename)} does not exist") from error
    except (OSError, ValueError) as error:  # too long a path, for one; or a zero byte in it
        cause = error.strerror if isinstance(error, OSError) else error
        raise JobError("source", f"{where} cannot be read: {cause}") from error
    if not files:
        raise refuse("no_data", f"{where} holds no {ending} file")
    if odd:  # a pipe or a device would never end
        raise JobError("source", f"source {source.name!r}: {shown(odd[0])} is not a regular file")
    return files


def data_file(source: Source) -> Path:
    """The one file of a source that is no directory.

    Raises:
        JobError: As `data_files`.
    """
    if source.path.is_dir():
        raise JobError("source", f"source {source.name!r}: {shown(source.path)} is a directory, not a file")
    return data_files(source, "")[0]
