"""Small images that lie in memory."""
