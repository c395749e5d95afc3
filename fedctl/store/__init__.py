"""The state database: the only place that speaks SQL."""
