"""The data of this machine, looked at before they go to a device."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedctl.core.errors import ConfigError
from fedctl.ops import data


def test_data_that_take_too_long_to_read_are_given_up_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data, "_DEADLINE_S", 0.001)  # no process starts within it
    source = tmp_path / "watch.toml"
    source.write_text('kind = "csv"\npath = "days.csv"\nfeatures = ["hr"]\nlabel = "y"\n')
    (tmp_path / "days.csv").write_text("hr,y\n60,0\n")
    with pytest.raises(ConfigError, match=r"watch\.toml could not be read in 0\.001 s") as caught:
        data.check_here(source)
    assert caught.value.hint
