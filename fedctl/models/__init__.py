"""Builders of training graphs, checked here before they travel."""
