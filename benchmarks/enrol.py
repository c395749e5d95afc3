"""Enrol 20 devices from a file, each at its own sshd on a loopback address, as its own user; then once more.

Needs root: sudo python benchmarks/enrol.py [--devices 20] [--wheels DIR]. Both times it is the command
`fedctl devices add -f fleet.csv`, from its start to its end: the first installs an agent on every device,
starts and enrols it; the second finds nothing to do. What a device has to be sent of NumPy, psutil and
cryptography is fetched into the cache by an addition beforehand that is not counted (or taken from
`--wheels`). The last line is one JSON object: `first_s`, `again_s`, `devices`.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from fedctl.core.home import Home
from fedctl.ops.fleet import init
from fedctl.transport.sshlink import fingerprint
from tests.system import SshBed, Sshd, _command, _remove_user, make_key, ssh_bed

PROGRAM = str(Path(sys.executable).with_name("fedctl"))


@dataclass(frozen=True, slots=True)
class Board:
    """One device: a user with a home directory, and the server at which it logs in."""

    name: str
    user: str
    sshd: Sshd

    def row(self) -> dict[str, str]:
        """Its line of the fleet file."""
        return {
            "name": self.name,
            "url": f"ssh://{self.user}@{self.sshd.address}:{self.sshd.port}",
            "host_key": fingerprint(self.sshd.host_key),
            "labels": "role=train",
        }


def main() -> None:
    """Set the bed up, measure, print."""
    parser = argparse.ArgumentParser(description="Enrol devices from a file, over real SSH servers.")
    parser.add_argument("--devices", type=int, default=20)
    parser.add_argument("--wheels", type=Path, help="take wheels from here, not an index")
    options = parser.parse_args()
    os.environ["SYSTEM_TESTS"] = "1"  # who starts this has asked for it
    with ssh_bed() as bed:
        key = make_key(bed.directory / "admin")
        config = write_config(bed.directory, key)
        with boards(bed, key, options.devices + 1) as (spare, *devices):
            home = Home(bed.directory / "fleet")
            init(home)
            words = ["-F", str(config), *(["--wheels", str(options.wheels)] if options.wheels else [])]
            add(home, write_file(bed.directory / "spare.csv", [spare]), words)
            file = write_file(bed.directory / "fleet.csv", devices)
            first_s, again_s = (add(home, file, words) for _ in range(2))
    print(json.dumps({"first_s": first_s, "again_s": again_s, "devices": len(devices)}))


def add(home: Home, file: Path, words: Sequence[str]) -> float:
    """Run the command; its seconds."""
    command = [PROGRAM, "devices", "add", "-f", str(file), *words, "-q"]
    begin = time.perf_counter()
    done = subprocess.run(
        command,
        env={**os.environ, "FEDCTL_HOME": str(home.path)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    seconds = round(time.perf_counter() - begin, 2)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    print(f"{file.name}: {seconds} s", file=sys.stderr)
    return seconds


@contextlib.contextmanager
def boards(bed: SshBed, key: Path, count: int) -> Iterator[list[Board]]:
    """`count` users, each behind a running server of its own; removed with all they started at the end."""
    with contextlib.ExitStack() as undo:
        made = []
        for number in range(count):
            user, home = f"{bed.user}-{number:02d}", bed.directory / f"home-{number:02d}"
            _command("useradd", "-m", "-d", str(home), "-s", "/bin/bash", "-p", "*", user)
            undo.callback(_remove_user, user)
            keys = home / ".ssh" / "authorized_keys"
            keys.parent.mkdir(mode=0o700)
            keys.write_text(key.with_suffix(".pub").read_text())
            for path in (keys.parent, keys):
                shutil.chown(path, user, user)
            sshd = Sshd(
                bed.sshd.program,
                bed.directory / f"sshd-{number:02d}",
                address=f"127.0.2.{number + 1}",
                directives=["AuthorizedKeysFile .ssh/authorized_keys"],
            )
            undo.callback(sshd.stop)
            made.append(Board(f"watch-{number:02d}", user, sshd))
        with ThreadPoolExecutor(8) as starters:
            list(starters.map(lambda board: board.sshd.start(), made))
        yield made


def write_config(directory: Path, key: Path) -> Path:
    """The person's OpenSSH configuration: only this key, no agent."""
    path = directory / "ssh_config"
    path.write_text(
        f"Host *\n  IdentityFile {key}\n  IdentitiesOnly yes\n  IdentityAgent none\n"
        f"  UserKnownHostsFile {directory / 'known_hosts'}\n"
    )
    return path


def write_file(path: Path, devices: Sequence[Board]) -> Path:
    """The fleet file."""
    rows = [board.row() for board in devices]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


if __name__ == "__main__":
    main()
