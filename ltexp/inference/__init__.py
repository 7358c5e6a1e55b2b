"""What a finished run is good for: predictions of new images, and its model in a format of others."""
