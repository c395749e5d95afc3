"""The local policy tightens, never widens."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedctl_agent.daemon.errors import ApiError
from fedctl_agent.daemon.policy import LocalPolicy, PolicyStore, intersect
from fedctl_wire.codec import from_json
from fedctl_wire.errors import WireError
from fedctl_wire.messages import Policy, TaskKind
from fedctl_wire.names import Name
from tests.fakes.daemon_bed import Bed

kinds = st.lists(st.sampled_from(TaskKind), unique=True).map(tuple)
words = st.lists(st.sampled_from(["metrics", "telemetry", "logs", "later"]), unique=True).map(tuple)


def signed(**changes: object) -> Policy:
    return Policy("fleet", Name("wrist-01"), 1, **changes)  # type: ignore[arg-type]


@given(
    kinds, words, st.integers(0, 99), st.none() | kinds, st.none() | words, st.none() | st.integers(-9, 99)
)
def test_nothing_is_allowed_that_one_of_both_forbids(
    allow: tuple[TaskKind, ...],
    share: tuple[str, ...],
    examples: int,
    local_allow: tuple[TaskKind, ...] | None,
    local_share: tuple[str, ...] | None,
    local_examples: int | None,
) -> None:
    local = LocalPolicy(allow=local_allow, share=local_share, min_examples=local_examples)
    policy = intersect(signed(allow=allow, share=share, min_examples=examples), local)
    assert set(policy.allow) == set(allow) & set(allow if local_allow is None else local_allow)
    assert set(policy.share) == set(share) & set(share if local_share is None else local_share)
    assert policy.min_examples == max(examples, local_examples or 0)


def test_the_digest_tells_policies_apart_and_only_them() -> None:
    one = intersect(signed(), LocalPolicy())
    assert one.digest == intersect(signed(), LocalPolicy(min_examples=3)).digest
    assert one.digest != intersect(signed(), LocalPolicy(min_examples=300)).digest


def test_access_stays_none_when_either_says_so() -> None:
    assert intersect(signed(access="none"), LocalPolicy(access="all")).access == "none"
    assert intersect(signed(access="all"), LocalPolicy(access="none")).access == "none"


@pytest.mark.parametrize(
    "raw", [{"alow": []}, {"allow": ["exec"]}, {"min_examples": "20"}, [], {"share": "all"}]
)
def test_a_local_policy_with_mistakes_is_refused(raw: object) -> None:
    with pytest.raises(WireError):
        from_json(LocalPolicy, raw)


def test_a_changed_file_counts_from_the_next_look_on(tmp_path: object) -> None:
    bed = Bed(tmp_path / "state")  # type: ignore[operator]
    bed.fleet.enrol()
    store = PolicyStore(bed.state)
    assert store.effective() is store.effective()
    bed.state.policy_local.write_text('{"share": []}')
    with pytest.raises(ApiError, match="does not share logs"):
        store.effective().require_share("logs")
    bed.state.policy_local.unlink()
    store.effective().require_share("logs")


def test_a_device_without_a_policy_refuses(tmp_path: object) -> None:
    bed = Bed(tmp_path / "state")  # type: ignore[operator]
    with pytest.raises(ApiError, match="refuses everything"):
        PolicyStore(bed.state).effective()
