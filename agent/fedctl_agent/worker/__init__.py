"""The worker: verifies every envelope, imports NumPy once, forks one job a task."""
