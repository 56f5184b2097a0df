"""Dynamic sparse training: what goes, what comes, when, and the hook that makes it so."""
