"""Stages, the run that chains them, the stage cache and the processes they run in."""
