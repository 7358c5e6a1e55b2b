"""From a command line to running processes: compose, check, freeze, start."""
