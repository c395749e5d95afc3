"""Reading on a full disk: what is known stays readable while nothing can be written."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from fedctl.core.home import Home
from fedctl.ops.fleet import init

_READ = """
import resource, sys
from pathlib import Path
from fedctl.core.home import Home
from fedctl.store import ReadStore
resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))  # no file can grow, as on a full disk
with ReadStore.open(Home(Path(sys.argv[1]))) as store:
    print(store.fleet().uuid)
"""


def test_the_database_is_read_although_no_file_can_grow(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    uuid = init(home).fleet.uuid
    command = [sys.executable, "-c", _READ, str(home.path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.stderr) == (uuid, "")
