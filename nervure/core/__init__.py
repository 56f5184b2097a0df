"""The ground floor: errors, checks, files, schemas, progress."""
