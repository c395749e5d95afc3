"""What a job computes: one module a trainer."""
