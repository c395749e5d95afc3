"""The candidate of a round: its contributors' updates averaged into the model's next version."""

from __future__ import annotations

from collections.abc import Sequence

from fedctl.aggregation.fedavg import Update, aggregate
from fedctl.core.round_records import RoundDevice
from fedctl.ops.training.site import RoundContext
from fedctl.release.bundle import Bundle, next_version, read_bundle

_WEIGHTS = "candidate.safetensors"  # in the round's directory, until it is part of a bundle


def make_candidate(context: RoundContext, contributors: Sequence[RoundDevice]) -> Bundle:
    """Aggregate these devices' updates, in device order, and sign the result as a bundle.

    Made twice, after a kill in between, it has the same bytes: nobody refers to the first one yet.

    Raises:
        NotMetError: `non_finite`, when the mean holds a NaN or infinity.
        ConfigError: When a file is missing or damaged, or the disk refuses.
    """
    session, round_ = context.session, context.round
    updates = [
        Update(device=row.device, path=context.update_path(row.device), weight=float(row.examples or 0))
        for row in contributors
    ]
    weights = session.home.round(round_.id) / _WEIGHTS
    aggregate(context.base.weights, updates, weights, context.base.manifest)
    version = _version(context)
    return next_version(
        context.base,
        session.home.bundle(round_.model, version),
        version=version,
        weights=weights,
        operator_key=session.operator_key,
    )


def candidate_bundle(context: RoundContext) -> Bundle:
    """The candidate that `make_candidate` left; its signature and hashes are checked.

    Raises:
        TrustError: When a file was changed since.
        ConfigError: When a file is missing.
    """
    directory = context.session.home.bundle(context.round.model, _version(context))
    return read_bundle(directory, context.session.fleet.operator_key)


def _version(context: RoundContext) -> int:
    """The number the round reserved, else the next free one."""
    store, round_ = context.session.store, context.round
    return store.round(round_.id).result_version or store.model(round_.model).latest_version + 1
