"""Exit codes, streams and forms of the installed command."""

from __future__ import annotations

import json
import os
import pty
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from fedctl import __version__
from fedctl.core.home import Home
from fedctl.core.records import Device, DeviceState
from fedctl.store import Store
from tests.integration.cli.conftest import PATIENCE_S, PROGRAM, Run

BAD_NAMES = [
    "a b",
    "a/b",
    "..",
    "../../etc",
    "'",
    '"; drop table device; --',
    "$(id)",
    "-",
    "ü",
    "A",
    "x" * 64,
]
CREATE = ("--input", "3", "--hidden", "4", "--classes", "2")


def device(index: int, *, notes: str = "") -> Device:
    return Device(
        name=f"watch-{index:03d}",
        url=f"ssh://someone@a-rather-long-host-name-{index}.wearables.example.org:2222",
        host_key=None,
        identity_key=f"{index:064x}",
        serial=index + 1,
        arch="aarch64",
        python="3.11.2",
        agent_version="0.1.0",
        state=DeviceState.ENROLLED,
        enrolled_at="2026-03-01T08:00:00.000Z",
        last_seen=None,
        notes=notes,
        labels={"ward": str(index % 3), "building": "the-one-behind-the-park"},
    )


def add_devices(home: Path, number: int, *, notes: str = "") -> None:
    with Store.open(Home(home)) as store, store.transaction():
        for index in range(number):
            store.add_device(device(index, notes=notes))


def test_version_needs_neither_typer_nor_a_home() -> None:
    program = "import sys; sys.argv = ['fedctl', '--version']\nfrom fedctl.cli.main import main\nmain()\n"
    check = "print([m for m in ('typer', 'dataclasses', 'json', 'importlib.metadata') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program + check], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [f"fedctl {__version__}", "[]"]


def test_version_may_also_follow_another_flag(fedctl: Run) -> None:
    assert fedctl("-q", "--version").stdout == f"fedctl {__version__}\n"


@pytest.mark.parametrize("words", [("--help",), ("devices", "--help"), ("round", "start", "--help")])
def test_help_is_plain_and_fits_80_columns(fedctl: Run, words: tuple[str, ...]) -> None:
    done = fedctl(*words)
    assert (done.returncode, done.stderr) == (0, "")
    assert "Examples:" in done.stdout or words == ("devices", "--help")
    assert "\x1b" not in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80


@pytest.mark.parametrize(
    "words",
    [
        ("nonsense",),
        ("devices", "lst"),
        ("devices", "list", "--bogus"),
        ("devices", "show"),
        ("devices", "list", "-o", "yaml"),
        ("round", "start", "--rounds", "many"),
        ("round", "start", "--rounds", "0"),
        ("round", "show", "x"),
        ("round", "start", "--deadline", "soon"),
    ],
)
def test_wrong_words_are_usage_errors_in_either_form(inside: Run, words: tuple[str, ...]) -> None:
    done = inside(*words)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("fedctl: ")
    assert "Traceback" not in done.stderr
    if "-o" not in words:
        done = inside(*words, "-o", "json")
        assert (done.returncode, done.stdout) == (2, "")
        assert json.loads(done.stderr)["error"]["code"] == "usage"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("round", "start", "--rounds", "many"), "'many' is not a whole number of at least 1"),
        (("devices", "ping", "--timeout", "x"), "'x' is not a number from 0.001 to 86400"),
        (("round", "show", "x"), "'x' is not a whole number of at most "),
    ],
)
def test_a_number_that_is_none_is_told_the_range(inside: Run, words: tuple[str, ...], said: str) -> None:
    assert said in inside(*words).stderr


def test_a_noun_alone_is_its_help_on_stderr(fedctl: Run) -> None:
    for words in ((), ("devices",)):
        done = fedctl(*words)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith("Usage: fedctl")


def test_without_a_fleet_every_reader_says_how_to_begin(fedctl: Run) -> None:
    for words in (("devices", "list"), ("model", "list"), ("round", "list"), ("devices", "ping")):
        done = fedctl(*words)
        assert (done.returncode, done.stdout) == (10, "")
        assert "fedctl init" in done.stderr


def test_init_and_init_again(fedctl: Run, home: Path) -> None:
    first, second = fedctl("init", "-o", "json"), fedctl("-o", "json", "init")
    assert (first.returncode, second.returncode) == (0, 0)
    one, two = json.loads(first.stdout), json.loads(second.stdout)
    assert one.pop("created") is True
    assert two.pop("created") is False
    assert one == two
    assert one["home"] == str(home)
    assert home.stat().st_mode & 0o777 == 0o700
    assert fedctl("init", "-q").stdout == ""
    other = fedctl("init", "--root-key", str(home / "other"))
    assert (other.returncode, other.stdout) == (10, "")


def test_an_empty_fleet_lists_nothing_but_a_selector_must_match(fedctl: Run) -> None:
    fedctl("init")
    done = fedctl("devices", "list")
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr == "no devices yet: fedctl devices add NAME URL\n"
    for words in (("devices", "ping"), ("model", "list"), ("round", "list")):
        done = fedctl(*words)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (0, "", 1)
        assert done.stderr.startswith("no ")
        for flags in (("-q",), ("-o", "json"), ("-o", "name")):
            assert fedctl(*words, *flags).stderr == ""
    assert json.loads(fedctl("devices", "list", "-o", "json").stdout) == {"schema_version": 1, "devices": []}
    for words in (("watch-*",), ("-l", "ward=3"), ("watch-01",)):
        done = fedctl("devices", "list", *words)
        assert (done.returncode, done.stdout) == (5, "")
    assert fedctl("devices", "show", "x").returncode == 5
    assert fedctl("round", "show", "1").returncode == 5
    assert fedctl("model", "show", "x").returncode == 5


@pytest.mark.parametrize("place", ["before", "between", "behind"])
def test_global_flags_stand_anywhere(fedctl: Run, home: Path, place: str) -> None:
    fedctl("init")
    add_devices(home, 2)
    words = {
        "before": ("-o", "name", "devices", "list"),
        "between": ("devices", "--output=name", "list"),
        "behind": ("devices", "list", "-oname"),
    }[place]
    assert fedctl(*words).stdout.splitlines() == ["watch-000", "watch-001"]


def test_the_forms_of_a_listing(fedctl: Run, home: Path) -> None:
    fedctl("init")
    add_devices(home, 3)
    listed = json.loads(fedctl("devices", "list", "-o", "json", "-l", "ward=1").stdout)
    (found,) = listed["devices"]
    assert (found["name"], found["role"], found["last_seen"]) == ("watch-001", "train", None)
    lines = fedctl("devices", "list", "-o", "jsonl").stdout.splitlines()
    assert [json.loads(line)["name"] for line in lines] == ["watch-000", "watch-001", "watch-002"]
    assert (
        json.loads(fedctl("devices", "show", "watch-001", "-o", "json").stdout)["device"]["deployments"] == []
    )


@pytest.mark.parametrize("columns", ["60", "80", "200"])
def test_tables_drop_columns_and_never_wrap(fedctl: Run, home: Path, columns: str) -> None:
    fedctl("init")
    add_devices(home, 5)
    done = fedctl("devices", "list", COLUMNS=columns)
    lines = done.stdout.splitlines()
    assert len(lines) == 6
    assert max(map(len, lines)) <= int(columns)
    assert ("url" in lines[0]) is (columns == "200")


def test_listing_loads_nothing_heavy(fedctl: Run, home: Path, environment: dict[str, str]) -> None:
    fedctl("init")
    add_devices(home, 2)
    program = """
import sys
from fedctl.cli.app import run
for words in (["--help"], ["devices", "list", "-o", "json"], ["devices", "list"], ["round", "--help"]):
    assert run(words) == 0
heavy = {"sqlite_utils", "httpx", "httpcore", "paramiko", "numpy", "cryptography", "pydantic", "rich"}
assert not heavy.intersection(sys.modules), heavy.intersection(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("name", BAD_NAMES)
def test_names_that_are_none_are_refused_and_make_nothing(inside: Run, home: Path, name: str) -> None:
    inside("init")
    before = sorted(home.rglob("*"))
    for command in (
        ("model", "create", *CREATE, "--", name),
        ("devices", "add", "--", name, "unix:///nowhere"),
    ):
        done = inside(*command)
        assert (done.returncode, done.stdout) == (2, ""), done.stderr
        assert "Traceback" not in done.stderr
    assert inside("devices", "show", "--", name).returncode == 5
    assert inside("model", "show", "--", name).returncode == 5
    assert [p for p in sorted(home.rglob("*")) if "-" not in p.suffix] == before  # but for SQLite's -wal


def test_a_model_from_draft_to_file(fedctl: Run, home: Path, tmp_path: Path) -> None:
    fedctl("init")
    made = fedctl("model", "create", "har", *CREATE, "--hidden", "5,6", "--scale", "none", "-o", "json")
    assert made.returncode == 0, made.stderr
    shapes = [t["shape"] for t in json.loads(made.stdout)["manifest"]["tensors"] if len(t["shape"]) == 2]
    assert sorted(n for shape in shapes for n in shape) == [2, 3, 4, 4, 5, 5, 6, 6]
    taken = fedctl("model", "create", "har", *CREATE, "-o", "json")
    assert (taken.returncode, json.loads(taken.stderr)["error"]["subject"]) == (2, "har")
    assert fedctl("model", "list", "-o", "name").stdout == "har\n"
    assert "draft" in fedctl("model", "show", "har").stdout
    path = tmp_path / "har.safetensors"
    assert fedctl("model", "export", "har", str(path), "-q").stdout == ""
    assert fedctl("model", "export", "har", str(path)).returncode == 2
    streamed = fedctl("model", "export", "har", "-")
    assert (streamed.returncode, streamed.stdout) == (2, "")
    assert fedctl("model", "export", "har@1", str(path), "--force").returncode == 0
    weights = home / "models" / "har" / "1" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    damaged = fedctl("model", "export", "har", str(path), "--force")
    assert damaged.returncode == 8
    assert str(weights) in damaged.stderr
    assert fedctl("model", "push", "har", "x").returncode in {5, 8}


def test_changing_without_a_selection_is_refused(fedctl: Run, home: Path) -> None:
    fedctl("init")
    add_devices(home, 1)
    fedctl("model", "create", "har", *CREATE)
    for words in (("devices", "remove"), ("model", "push", "har"), ("devices", "label", "ward=4")):
        done = fedctl(*words)
        assert (done.returncode, done.stdout) == (2, "")
        assert "no device was named" in done.stderr


def test_removing_without_a_terminal_needs_to_be_told_so(fedctl: Run, home: Path) -> None:
    fedctl("init")
    add_devices(home, 2)
    done = fedctl("devices", "remove", "watch-000", "--forget", "-o", "json")
    assert (done.returncode, done.stdout) == (2, "")
    assert "--yes" in json.loads(done.stderr)["error"]["hint"]
    assert fedctl("devices", "list", "-o", "name").stdout == "watch-000\nwatch-001\n"
    told = fedctl("devices", "remove", "watch-000", "--forget", "--yes", "-o", "name")
    assert (told.returncode, told.stdout) == (0, "watch-000\n"), told.stderr


def test_a_device_added_by_an_alias_of_another_configuration_says_so(fedctl: Run, home: Path) -> None:
    fedctl("init")
    alias = {"admin_url": "ssh://127.0.0.8:1"}  # as if it resolved to another address then
    with Store.open(Home(home)) as store:
        store.add_device(
            replace(device(0), url="ssh://pi@127.0.0.9:1", host_key="ssh-ed25519 AAAA", facts=alias)
        )
    words = ("devices", "remove", "watch-000", "--yes", "-o", "json")
    (row,) = json.loads(fedctl(*words).stdout)["devices"]
    assert row["error"]["message"].startswith("device watch-000 could not be reached at 127.0.0.8 port 1")
    assert "-F FILE" in row["error"]["hint"]
    (home / "config").touch()
    (row,) = json.loads(fedctl(*words, "-F", str(home / "config")).stdout)["devices"]
    assert "-F FILE" not in row["error"]["hint"]
    (row,) = json.loads(fedctl(*words, "--forget").stdout)["devices"]
    assert row["steps"][0].startswith("left its agent as it is: could not be reached at")


def test_labels_are_set_and_removed(fedctl: Run, home: Path) -> None:
    fedctl("init")
    add_devices(home, 3)
    done = fedctl("devices", "label", "watch-00[01]", "role=holdout", "building-", "-o", "jsonl")
    assert [json.loads(line)["labels"] for line in done.stdout.splitlines()] == [
        {"role": "holdout", "ward": "0"},
        {"role": "holdout", "ward": "1"},
    ]
    assert fedctl("devices", "list", "-l", "role=holdout", "-o", "name").stdout == "watch-000\nwatch-001\n"
    assert fedctl("devices", "label", "watch-000", "role=hold-out").returncode == 2
    assert fedctl("devices", "label", "-q", "watch-000", "ward=9").stdout == ""
    for words in (("watch-000", "ward"), ("-l", "ward=1", "ward")):
        wrong = fedctl("devices", "label", *words)
        assert wrong.returncode == 2
        assert "'ward' is no label: it lacks '='" in wrong.stderr
    assert "no label was given" in fedctl("devices", "label", "watch-000").stderr


def test_no_traceback_unless_asked_for(fedctl: Run, home: Path) -> None:
    fedctl("init")
    (home / "fedctl.db").write_bytes(b"this is no database at all, and long enough to be looked at" * 100)
    plain = fedctl("devices", "list")
    assert plain.returncode == 10
    assert "Traceback" not in plain.stderr
    assert str(home / "fedctl.db") in plain.stderr
    verbose = fedctl("devices", "list", "-v")
    assert "Traceback" in verbose.stderr
    assert verbose.stderr.splitlines()[-len(plain.stderr.splitlines()) :] == plain.stderr.splitlines()


def test_a_newer_database_is_left_alone(fedctl: Run, home: Path) -> None:
    fedctl("init")
    with sqlite3.connect(home / "fedctl.db") as connection:
        connection.execute("PRAGMA user_version = 9999")
    connection.close()
    for words in (("devices", "list"), ("model", "create", "har", *CREATE), ("init",)):
        done = fedctl(*words, "-o", "json")
        assert (done.returncode, done.stdout) == (10, "")
        assert json.loads(done.stderr)["error"]["code"] == "newer_database"


def test_a_file_in_the_homes_place(fedctl: Run, home: Path) -> None:
    home.write_text("")
    for words in (("init",), ("devices", "list")):
        done = fedctl(*words)
        assert (done.returncode, done.stdout) == (10, "")
        assert str(home) in done.stderr


def test_a_read_only_home(home: Path, environment: dict[str, str], fedctl: Run) -> None:
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("a read-only mount needs root and unshare(1)")
    fedctl("init")
    add_devices(home, 1)
    script = 'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && exec "$@"'

    def read_only(*words: str) -> subprocess.CompletedProcess[str]:
        command = ["unshare", "-m", "sh", "-c", script, str(home), str(PROGRAM), *words]
        return subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=PATIENCE_S, check=False
        )

    listed = read_only("devices", "list", "-o", "name")
    if "mount" in listed.stderr:
        pytest.skip(f"cannot mount here: {listed.stderr}")
    assert (listed.returncode, listed.stdout) == (0, "watch-000\n"), listed.stderr
    for words in (("init",), ("model", "create", "har", *CREATE), ("devices", "label", "watch-000", "a=b")):
        done = read_only(*words)
        assert (done.returncode, done.stdout) == (10, ""), done.stderr
        assert str(home) in done.stderr


def test_a_full_disk_under_the_output(environment: dict[str, str], fedctl: Run) -> None:
    fedctl("init")
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [PROGRAM, "devices", "list", "-o", "json"],
            env=environment,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
    assert done.returncode == 10
    assert json.loads(done.stderr)["error"]["message"].startswith("cannot write the output")


def test_a_reader_that_leaves_early_is_no_error(home: Path, environment: dict[str, str], fedctl: Run) -> None:
    fedctl("init")
    add_devices(home, 200, notes="n" * 2000)  # more than a pipe holds
    script = '"$0" devices list -o jsonl | head -n 1; echo "${PIPESTATUS[0]}"'
    done = subprocess.run(
        ["bash", "-c", script, PROGRAM],
        env=environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    first, status = done.stdout.splitlines()
    assert json.loads(first)["name"] == "watch-000"
    assert (status, done.stderr) == ("0", "")


def on_a_terminal(words: list[str], environment: dict[str, str]) -> str:
    """What a person sees who runs this on an 80-column terminal."""
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [PROGRAM, *words], env=environment, stdin=subprocess.DEVNULL, stdout=follower, stderr=follower
    )
    os.close(follower)
    seen = b""
    while True:
        try:
            block = os.read(leader, 4096)
        except OSError:  # EIO: the last writer has closed it
            break
        if not block:
            break
        seen += block
    os.close(leader)
    process.wait(PATIENCE_S)
    return seen.decode()


@pytest.mark.parametrize(
    ("extra", "coloured"),
    [({"TERM": "xterm"}, True), ({"TERM": "xterm", "NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)],
)
def test_colour_is_for_terminals_that_want_it(
    home: Path, environment: dict[str, str], fedctl: Run, extra: dict[str, str], *, coloured: bool
) -> None:
    fedctl("init")
    add_devices(home, 1)
    words = ["devices", "ping"]
    seen = on_a_terminal(words, {**environment, **extra, "COLUMNS": "80"})
    assert "✗" in seen
    assert ("\x1b[31m✗" in seen) is coloured


def test_json_is_indented_for_people(home: Path, environment: dict[str, str], fedctl: Run) -> None:
    fedctl("init")
    add_devices(home, 1)
    seen = on_a_terminal(["devices", "list", "-o", "json"], {**environment, "TERM": "xterm"})
    assert json.loads(seen)["devices"][0]["name"] == "watch-000"
    assert '\n  "devices": [' in seen.replace("\r", "")


def test_ascii_where_the_locale_is_not_utf8(home: Path, fedctl: Run) -> None:
    fedctl("init")
    add_devices(home, 1)
    done = fedctl("devices", "ping", LC_ALL="C")
    assert done.returncode == 3  # it lacks a host key
    assert done.stdout.isascii()
    assert " x " in done.stdout


def test_an_interrupt_ends_with_130_and_no_traceback(
    home: Path, environment: dict[str, str], fedctl: Run, tmp_path: Path
) -> None:
    fedctl("init")
    silent = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(silent))
        listener.listen()
        with Store.open(Home(home)) as store:
            store.add_device(replace(device(0), url=f"unix://{silent}"))
        words = [PROGRAM, "devices", "ping", "--timeout", "60", "-o", "json"]
        process = subprocess.Popen(
            words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        listener.settimeout(PATIENCE_S)
        connection, _ = listener.accept()  # the command waits for an answer now
        with connection:
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, out) == (130, "")
    assert json.loads(err)["error"]["code"] == "interrupted"
