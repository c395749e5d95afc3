"""The bridge between an SSH channel and the agent's socket, as its own process on pipes."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import pytest

from fedctl_agent import dial_stdio

BANNER = b"fedctl-agent dial-stdio 1\n"
PROGRAM = "import sys; from fedctl_agent import dial_stdio; sys.exit(dial_stdio.run(sys.argv[1]))"


@contextmanager
def bridge(path: Path) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
    )
    try:
        yield process
    finally:
        for pipe in (process.stdin, process.stdout):
            if pipe is not None and not pipe.closed:
                pipe.close()
        process.kill()
        process.wait()


@contextmanager
def agent(path: Path) -> Iterator[socket.socket]:
    """A listening socket at any path."""
    with socket.socket(socket.AF_UNIX) as listener:
        directory = os.open(path.parent, os.O_PATH)
        listener.bind(f"/proc/self/fd/{directory}/{path.name}")
        os.close(directory)
        listener.listen()
        listener.settimeout(30)
        yield listener


@contextmanager
def connected(path: Path) -> Iterator[tuple[subprocess.Popen[bytes], socket.socket]]:
    with agent(path) as listener, bridge(path) as process:
        link, _ = listener.accept()
        with link:
            link.settimeout(30)
            assert process.stdout is not None
            assert process.stdout.read(len(BANNER)) == BANNER
            yield process, link


def test_carries_bytes_both_ways(tmp_path: Path) -> None:
    with connected(tmp_path / "s") as (process, link):
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"question")
        assert link.recv(100) == b"question"
        link.sendall(b"answer")
        assert process.stdout.read(6) == b"answer"


def test_carries_much_at_once_in_both_directions(tmp_path: Path) -> None:
    data = os.urandom(2_000_000)
    with connected(tmp_path / "s") as (process, link):
        assert process.stdin is not None
        assert process.stdout is not None
        with ThreadPoolExecutor(2) as senders:
            senders.submit(write_and_close, process.stdin, data)
            senders.submit(link.sendall, data)
            assert read_all(process.stdout, len(data)) == data
            assert read_all(link.makefile("rb", buffering=0), len(data)) == data
        assert link.recv(1) == b""  # the end of stdin arrived as a half-close
        link.close()
        assert process.wait() == 0


def write_and_close(pipe: IO[bytes], data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[pipe.write(view) :]
    pipe.close()


def read_all(stream: IO[bytes], size: int) -> bytes:
    received = b""
    while len(received) < size:
        block = stream.read(65536)
        assert block
        received += block
    return received


def test_a_path_longer_than_a_socket_address(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 100) / ("e" * 100)
    deep.mkdir(parents=True)
    with connected(deep / "agent.sock"):
        pass


@pytest.mark.parametrize(("listening", "name"), [(False, b"ENOENT"), (True, b"ECONNREFUSED")])
def test_names_the_cause_when_the_agent_is_down(tmp_path: Path, *, listening: bool, name: bytes) -> None:
    path = tmp_path / "agent.sock"
    if listening:
        with agent(path):
            pass  # the file stays, nobody listens
    with bridge(path) as process:
        assert process.stdout is not None
        text = process.stdout.read()
        assert text.startswith(b"fedctl-agent dial-stdio: " + name + b": cannot reach the agent at ")
        assert str(path).encode() in text
        assert text.endswith(b"\n")
        assert process.wait() == 1


def test_an_early_answer_arrives_although_the_agent_reads_no_more(tmp_path: Path) -> None:
    answer = b"HTTP/1.1 413 Content Too Large\r\n\r\n" + b"x" * 200_000
    with connected(tmp_path / "s") as (process, link):
        assert process.stdin is not None
        assert process.stdout is not None
        link.shutdown(socket.SHUT_RD)  # EPIPE for the bridge from now on
        for _ in range(100):  # far more than pipe and socket hold: the bridge must go on reading
            process.stdin.write(b"y" * 65536)
        link.sendall(answer)
        link.close()
        received = b""
        while block := process.stdout.read(65536):
            received += block
        assert received == answer
        assert process.wait() == 0


def test_ends_when_the_agent_closes(tmp_path: Path) -> None:
    with connected(tmp_path / "s") as (process, link):
        link.close()
        assert process.wait() == 0


def test_ends_when_the_caller_goes_during_a_long_poll(tmp_path: Path) -> None:
    with connected(tmp_path / "s") as (process, link):
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"GET /v1/tasks/x?wait=30 HTTP/1.1\r\n\r\n")
        link.recv(100)
        process.stdout.close()  # stdin stays open: only POLLERR on stdout can tell
        assert process.wait() == 0


def test_does_not_spin_while_the_caller_is_slow(tmp_path: Path) -> None:
    with connected(tmp_path / "s") as (process, link):
        assert process.stdout is not None
        link.sendall(b"z" * 100_000)
        link.close()  # a hang-up that stays signalled while stdout is full
        before = _cpu_ticks(process.pid)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.5)
        assert _cpu_ticks(process.pid) - before < 20  # of 50 if it spun
        received = b""
        while block := process.stdout.read(65536):
            received += block
        assert len(received) == 100_000


def test_is_quick_to_start() -> None:
    program = "import sys; before = set(sys.modules); from fedctl_agent import dial_stdio; "
    program += "print(sorted(set(sys.modules) - before))"
    root = Path(dial_stdio.__file__).parent.parent
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", f"import sys; sys.path.insert(0, {str(root)!r}); {program}"],
        capture_output=True,
        text=True,
        check=True,
    )
    heavy = {"socket", "selectors", "enum", "re", "typing", "pathlib", "argparse", "json"}
    assert not heavy & set(done.stdout.replace("'", " ").replace(",", " ").split())


def _cpu_ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return int(fields[11]) + int(fields[12])
