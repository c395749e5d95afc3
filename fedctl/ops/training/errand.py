"""Work outside rounds: the plan of one kind of task, signed under a round uuid of its own."""

from __future__ import annotations

import uuid
from collections.abc import Iterable

from fedctl.core.plan import task_plan
from fedctl.ops.session import FleetSession
from fedctl.release.bundle import Bundle
from fedctl.release.plan import sign_plan
from fedctl_wire.messages import TaskKind
from fedctl_wire.signing import Envelope


def errand_plan(
    session: FleetSession, base: Bundle, kind: TaskKind, devices: Iterable[str]
) -> tuple[str, Envelope]:
    """The uuid and the signed plan under which these devices run `kind` on `base`; nothing is stored."""
    round_uuid = str(uuid.uuid4())
    plan = task_plan(
        fleet=session.fleet.uuid,
        round_id=round_uuid,
        manifest=base.manifest,
        bundle=base.sha256,
        kind=kind,
        devices=tuple(devices),
    )
    return round_uuid, sign_plan(plan, session.operator_key)
