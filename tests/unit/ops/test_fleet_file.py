"""Fleet files: both formats say the same, and every mistake is found at once, with its line."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedctl.core.errors import ConfigError, FedctlError, UsageError
from fedctl.ops.fleet_file import FileRow, read_fleet_file

KEY = "SHA256:" + 43 * "a"
SOURCE = 'kind = "npz"\npath = "/data"\nfeatures = "x"\nlabel = "y"\n'


def read(directory: Path, text: str | bytes, name: str = "fleet.csv") -> list[FileRow]:
    path = directory / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return list(read_fleet_file(path).rows)


def mistakes(directory: Path, text: str | bytes, name: str = "fleet.csv") -> list[str]:
    with pytest.raises(FedctlError) as caught:
        read(directory, text, name)
    assert isinstance(caught.value, UsageError)
    assert caught.value.hint
    head, *lines = caught.value.message.splitlines()
    return [line.strip().removeprefix(f"{directory / name}:") for line in lines or [head]]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "recorder.toml").write_text(SOURCE)
    (tmp_path / "token").write_text("secret")
    return tmp_path


CSV = f"""# the first floor
name,url,labels,label.site,note,source,placement,host_key,token_file

watch-1,ssh://pi@192.0.2.1,ward=3; role=holdout,lab,"worn, left",recorder.toml,user,{KEY},
watch-2,unix:///run/a.sock,,,,,,,
watch-3,https://192.0.2.3,,,,,,,token
"""
TOML = f"""
[[device]]
name = "watch-1"
url = "ssh://pi@192.0.2.1"
labels = {{ward = 3, role = "holdout", site = "lab"}}
note = "worn, left"
source = "recorder.toml"
placement = "user"
host_key = "{KEY}"

[[device]]
name = "watch-2"
url = "unix:///run/a.sock"

[["device"]]
name = "watch-3"
url = "https://192.0.2.3"
token_file = "token"
"""


@pytest.mark.parametrize(
    ("text", "name", "lines"), [(CSV, "fleet.csv", [4, 5, 6]), (TOML, "fleet.toml", [2, 11, 15])]
)
def test_both_formats_say_the_same(directory: Path, text: str, name: str, lines: list[int]) -> None:
    one, two, three = read(directory, text, name)
    assert [row.line for row in (one, two, three)] == lines
    assert (one.device.name, one.device.url, one.device.note) == (
        "watch-1",
        "ssh://pi@192.0.2.1",
        "worn, left",
    )
    assert one.device.labels == {"ward": "3", "role": "holdout", "site": "lab"}
    assert one.device.source == directory / "recorder.toml"
    assert (one.placement, one.host_key, one.token_file) == ("user", KEY, None)
    assert (two.device.labels, two.device.note, two.device.source, two.placement) == ({}, None, None, None)
    assert three.token_file == directory / "token"


@pytest.mark.parametrize(
    "text",
    [
        "\ufeffname,url\r\nwatch-1,unix:///a\r\n",
        "name;url;labels\nwatch-1;unix:///a;ward=3\n",
        "url,name\nunix:///a,watch-1",
        'name , url\n watch-1 , "unix:///a"\n\n\n',
        "name,url,note,labels\nwatch-1,unix:///a\n",  # cells that are missing at the end are empty
    ],
)
def test_what_spreadsheets_write_is_read(directory: Path, text: str) -> None:
    (row,) = read(directory, text)
    assert (row.device.name, row.device.url) == ("watch-1", "unix:///a")


def test_every_mistake_is_told_with_its_line(directory: Path) -> None:
    text = """name,url,labels,source,placement,host_key,note
Watch 1,unix:///a,,,,,
watch-2,telnet://b,,,,,
watch-3,unix:///c,,recorder.toml,,,
watch-4,ssh://d,ward,,,,
watch-5,ssh://e,,none.toml,,,
watch-6,ssh://f,,,root,,
watch-7,ssh://g,,,,MD5:aa,
,ssh://h,,,,,
watch-9,,,,,,
watch-10,ssh://i,role=hold-out,,,,
watch-11,ssh://j,a=1;a=2,,,,
watch-12,ssh://k,,,,,"two
lines"
watch-13,unix:///a2,,,,,
watch-13,unix:///a3,,,,,
watch-15,unix:///a2,,,,,
watch-16,unix:///a4,,,,,,,too,many
"""
    found = mistakes(directory, text)
    assert [int(line.partition(":")[0]) for line in found] == [18]  # the shape of the table comes first
    found = mistakes(directory, text.rsplit("watch-16", 1)[0])
    expected = [
        (2, "'Watch 1'"),
        (3, "telnet://b"),
        (4, "source is for ssh:// devices only"),
        (5, "label 'ward' is not of the form key=value"),
        (6, "cannot read the source"),
        (7, "placement 'root' is not one of auto, system, user"),
        (8, "host_key 'MD5:aa'"),
        (9, "it has no name"),
        (10, "it has no url"),
        (11, "holdout"),
        (12, "'a' is given twice"),
        (13, "one line"),
        (16, "name watch-13 stands in line 15 already"),
        (17, "url unix:///a2 stands in line 15 already"),
    ]
    for line, (number, words) in zip(found, expected, strict=True):
        assert line.startswith(f"{number}: "), line
        assert words in line


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is empty"),
        ("# nothing\n\n", "is empty"),
        ("name,url\n", "names no device"),
        ("name,adress\nwatch-1,x\n", "unknown column 'adress'"),
        ("name,url,name\nw,unix:///a,w\n", "the column 'name' comes twice"),
        ("watch-1,unix:///a\n", "the header has no column 'name'"),
        ("name,url,label.\nw,unix:///a,x\n", "unknown column 'label.'"),
        ('name,url\n"watch-1,unix:///a\n', "this is no CSV"),
        (b"name,url\nw\xff,unix:///a\n", "no UTF-8 text"),
        ("name,url\n" + "x" * 200_000 + ",unix:///a\n", "this is no CSV"),
    ],
)
def test_a_table_that_is_none_is_named(directory: Path, text: str | bytes, said: str) -> None:
    assert any(said in line for line in mistakes(directory, text))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("device = 3\n", "1: devices are [[device]] tables"),
        ("[device]\nname = 'a'\n", "1: devices are [[device]] tables"),
        ("\n[[devices]]\nname = 'a'\n", "2: unknown key 'devices'"),
        ("[[device]]\nname = 3\nurl = 'unix:///a'\n", "1: 'name' is not a string"),
        ("[[device]]\nname = 'a'\nurl = 'unix:///a'\nlables = {}\n", "1: unknown column 'lables', did you"),
        ("[[device]]\nname = 'a'\nurl = 'unix:///a'\nlabels = {x = true}\n", "not a string"),
        ("[[device]\n", "is no TOML"),
        ("", "names no device"),
    ],
)
def test_a_toml_that_is_none_is_named(directory: Path, text: str, said: str) -> None:
    assert any(said in line for line in mistakes(directory, text, "fleet.toml"))


def test_many_mistakes_are_counted_not_listed(directory: Path) -> None:
    lines = mistakes(directory, "name,url\n" + "".join(f"W{n},unix:///{n}\n" for n in range(50)))
    assert len(lines) == 21
    assert lines[-1] == "and 30 more"


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        read_fleet_file(tmp_path / "fleet.csv")
