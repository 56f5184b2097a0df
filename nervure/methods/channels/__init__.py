"""Methods that cut units by a ranking."""
