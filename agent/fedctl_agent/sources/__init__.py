"""Where local data comes from: one module a kind of source."""
