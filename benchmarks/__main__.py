"""Runs the benchmarks named on the command line, or all: `python -m benchmarks training losses`."""

import importlib
import pkgutil
import sys

import benchmarks
from ltexp.names import unknown_name


def main() -> None:
    """Each module of this package is a benchmark with a `main()` that prints its ratios."""
    known = [module.name for module in pkgutil.iter_modules(benchmarks.__path__) if not module.name.startswith("_")]
    for name in sys.argv[1:] or known:
        if name not in known:
            sys.exit(f"benchmarks: {unknown_name('benchmark', name, known)}")
    for name in sys.argv[1:] or known:
        print(f"\n== {name}", flush=True)
        importlib.import_module(f"benchmarks.{name}").main()


if __name__ == "__main__":
    main()
