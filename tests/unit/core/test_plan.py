from dataclasses import replace

from fedctl.core.plan import needs_of
from fedctl_wire.messages import DataNeeds
from tests.unit.wire.test_manifest import GOOD


def test_a_plan_names_the_columns_in_the_models_order() -> None:
    assert needs_of(GOOD) == DataNeeds((3,), 2)
    named = replace(GOOD, columns=("temp", "hr", "steps"))
    assert needs_of(named) == DataNeeds((3,), 2, ("temp", "hr", "steps"))
