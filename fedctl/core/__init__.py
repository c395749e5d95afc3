"""Pure decisions and plain facts: errors, the home directory, plans, selectors, the round machine."""
