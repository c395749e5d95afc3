"""A copied disk: two devices with one identity must not both become members."""

from __future__ import annotations

import pytest

from fedctl.core.errors import TrustError
from fedctl.core.home import Home
from fedctl.ops import devices
from fedctl.ops.devices import NewDevice
from fedctl.store import Store
from tests.integration.enrolment.conftest import MakeAgent


def test_a_copy_that_is_not_enrolled_yet_is_found_by_its_key(
    store: Store, home: Home, make_agent: MakeAgent
) -> None:
    original, copy = make_agent("a"), make_agent("b")
    copy.stop()
    for name in ("key.pem", "key.pub"):
        (copy.state / "identity" / name).write_bytes((original.state / "identity" / name).read_bytes())
    copy.start()
    devices.add(store, home, NewDevice(name="watch-1", url=original.url))
    with pytest.raises(TrustError, match="shows the identity of watch-1") as error:
        devices.add(store, home, NewDevice(name="watch-2", url=copy.url))
    assert error.value.code == "identity_in_use"
    assert len(store.devices()) == 1
