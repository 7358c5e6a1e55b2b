"""From published numbers to runs of ltexp, and back to a table with both. Nothing here imports torch."""
