"""The bed itself: a test run that was killed must not trouble the next one."""

from __future__ import annotations

import pwd
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.system import SshBed, remove_stale_beds

pytestmark = pytest.mark.system

_KILLED_RUN = """
import os, signal
from tests.system import ssh_bed
with ssh_bed() as bed:
    print(bed.user, bed.directory, bed.sshd._process.pid, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_run_left_is_removed_and_a_running_bed_stays(bed: SshBed) -> None:
    with subprocess.Popen([sys.executable, "-c", _KILLED_RUN], stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        user, directory, pid = run.stdout.readline().split()  # not to its end: the server holds it open
        run.wait()
    assert pwd.getpwnam(user).pw_dir == f"{directory}/home"
    assert psutil.pid_exists(int(pid))
    remove_stale_beds()
    with pytest.raises(KeyError):
        pwd.getpwnam(user)
    assert not Path(directory).exists()
    assert not psutil.pid_exists(int(pid)) or psutil.Process(int(pid)).status() == psutil.STATUS_ZOMBIE
    assert pwd.getpwnam(bed.user)
    assert bed.directory.exists()
