"""What is computed of a finished run's stages."""
