"""`ltexp <verb> ...` is `python -m ltexp.<verb> ...`."""

import runpy
import sys

from ltexp import __version__
from ltexp.names import unknown_name

VERBS = {
    "methods": "what there is to choose from: methods, losses, samplers ...",
    "train": "train a run or a sweep: one or more stages on one dataset",
    "reproduce": "published tables: show them, run what is missing, compare",
    "evaluate": "evaluate a finished run again, or with a classifier that needs no training",
    "report": "tables and figures from any set of runs",
    "data": "prepare, check and show datasets",
}


def main() -> None:
    """Runs the verb named first on the command line."""
    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help"):
        lines = [f"  {verb:<11}{text}" for verb, text in VERBS.items()]
        print("\n".join([f"ltexp {__version__}: long-tailed recognition", "", "usage: ltexp VERB ...", "", *lines]))
        print("\nEach verb has its own --help.")
        return
    if sys.argv[1] in ("-V", "--version"):
        print(f"ltexp {__version__}")
        return
    verb = sys.argv.pop(1)
    if verb not in VERBS:
        print(f"ltexp: {unknown_name('verb', verb, VERBS)}", file=sys.stderr)
        sys.exit(2)
    sys.argv[0] = f"ltexp {verb}"
    runpy.run_module(f"ltexp.{verb}", run_name="__main__", alter_sys=False)


if __name__ == "__main__":
    main()
