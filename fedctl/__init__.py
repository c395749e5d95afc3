"""fedctl: fleet management and federated learning for wearables, from one terminal, without a server."""

__version__ = "0.2.0"
