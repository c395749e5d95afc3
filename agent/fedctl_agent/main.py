"""Entry point of `fedctl-agent`."""
