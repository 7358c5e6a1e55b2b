"""Runs the campaigns named on the command line, or all: `python -m faults kills inputs`; 1 if any finds a fault."""

import importlib
import pkgutil
import sys
import tempfile
from pathlib import Path

import faults
from ltexp.names import unknown_name

HELPERS = ("commands", "hooks")


def main() -> None:
    """Each campaign is a module with `main(folder)` that prints its figures and returns the faults it found."""
    known = [name for _, name, _ in pkgutil.iter_modules(faults.__path__) if name[0] != "_" and name not in HELPERS]
    for name in sys.argv[1:]:
        if name not in known:
            sys.exit(f"faults: {unknown_name('campaign', name, known)}")
    found: list[str] = []
    for name in sys.argv[1:] or known:
        print(f"\n== {name}", flush=True)
        with tempfile.TemporaryDirectory(prefix="ltexp-faults-") as folder:
            found += importlib.import_module(f"faults.{name}").main(Path(folder))
    print(f"\n{len(found)} faults" + "".join(f"\n  {line}" for line in found))
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
