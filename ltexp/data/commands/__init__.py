"""What `ltexp data` does: prepare, check, show, cache."""
