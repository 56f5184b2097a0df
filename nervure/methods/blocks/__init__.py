"""Methods that remove blocks: Energy, and its yardsticks."""
