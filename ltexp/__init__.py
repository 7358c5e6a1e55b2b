"""ltexp: long-tailed recognition, every method a composition of config choices."""

__version__ = "0.1.0"
