"""Device URLs: what is accepted, and that nothing dangerous is."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedctl.core.errors import FedctlError, UsageError
from fedctl.transport import Endpoint, connect


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("unix:///run/agent.sock", Endpoint("unix", path="/run/agent.sock")),
        ("unix:///a%20b/s", Endpoint("unix", path="/a b/s")),
        ("ssh://watch", Endpoint("ssh", host="watch")),
        ("ssh://pi@192.0.2.41", Endpoint("ssh", user="pi", host="192.0.2.41")),
        ("ssh://pi@192.0.2.41:2222/", Endpoint("ssh", user="pi", host="192.0.2.41", port=2222)),
        ("ssh://Watch-1", Endpoint("ssh", host="Watch-1")),  # OpenSSH's aliases have cases
        ("ssh://pi@[2001:DB8::1]", Endpoint("ssh", user="pi", host="2001:DB8::1")),
        ("ssh://pi@[fe80::1%25eth0]:22", Endpoint("ssh", user="pi", host="fe80::1%eth0", port=22)),
        ("https://watch", Endpoint("https", host="watch", port=7443)),
        ("https://[::1]:8443/", Endpoint("https", host="::1", port=8443)),
        ("ssh://pi@[fe80::1%eth0]:22", Endpoint("ssh", user="pi", host="fe80::1%eth0", port=22)),
    ],
)
def test_parses(url: str, expected: Endpoint) -> None:
    assert Endpoint.parse(url) == expected
    assert Endpoint.parse(expected.url) == expected


@pytest.mark.parametrize(
    "url",
    [
        "",
        "watch-1",
        "/run/agent.sock",
        "unix://relative/agent.sock",
        "unix:///",
        "https://",
        "https://pi@watch",
        "https://watch:0",
        "https://watch/v1",
        "http://watch",
        "ssh://",
        "ssh://pi:secret@watch",
        "ssh://pi@watch:99999",
        "ssh://pi@watch:port",
        "ssh://pi@watch:0",
        "ssh://pi@watch/some/path",
        "ssh://pi@watch?x=1",
        "ssh://-oProxyCommand=touch%20x",
        "ssh://-F@watch",
        "ssh://a b@watch",
        "ssh://wat'ch",
        "ssh://[::1",
    ],
)
def test_refuses(url: str) -> None:
    with pytest.raises(UsageError) as caught:
        Endpoint.parse(url)
    assert "ssh://[user@]host" in caught.value.hint


@given(st.text())
def test_any_text_is_parsed_or_refused(text: str) -> None:
    try:
        endpoint = Endpoint.parse(text)
    except FedctlError:
        return
    assert Endpoint.parse(endpoint.url) == endpoint


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1))
def test_a_socket_path_survives_the_url(name: str) -> None:
    endpoint = Endpoint("unix", path=f"/run/{name}/s")
    assert Endpoint.parse(endpoint.url) == endpoint


def test_ssh_needs_a_pinned_host_key() -> None:
    with pytest.raises(UsageError, match="watch-1 is reached by SSH but has no host key"):
        connect(device="watch-1", url="ssh://pi@watch")


def test_importing_the_package_loads_no_heavy_module() -> None:
    program = (
        "import sys, fedctl.transport as t; t.connect(device='d', url='unix:///s').close(); "
        "print(sorted({'httpx', 'httpcore', 'paramiko', 'cryptography', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
