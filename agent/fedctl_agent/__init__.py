"""What runs on a wearable: a small daemon, and a worker that verifies, trains and evaluates."""

__version__ = "0.2.0"
RELEASED_AT = "2026-11-24T00:00:00Z"  # it is no earlier than this, whatever the device's clock says
