"""What runs on a wearable: a small daemon, and a worker that verifies, trains and evaluates."""

__version__ = "0.1.0"
