"""The one error of this package."""

from __future__ import annotations


class GraphError(ValueError):
    """A training graph, its inputs or its settings are not what this interpreter runs."""
