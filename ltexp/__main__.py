"""`ltexp <verb> ...` is `python -m ltexp.<verb> ...`."""

import os
import runpy
import signal
import sys

from ltexp import __version__
from ltexp.config.path import conf_dir, docs_dir
from ltexp.names import unknown_name
from ltexp.processes.memory import keep_memory
from ltexp.terminal import print_anywhere

VERBS = {
    "methods": "what there is to choose from: methods, losses, samplers ...",
    "train": "train a run or a sweep: one or more stages on one dataset",
    "reproduce": "published tables: show them, run what is missing, compare",
    "evaluate": "evaluate a finished run again, or with a classifier that needs no training",
    "predict": "what a finished run's model says of your images, as a CSV file",
    "export": "a finished run's model as an ONNX file",
    "report": "tables and figures from any set of runs",
    "data": "prepare, unpack, check and show datasets",
    "completion": "tab completion for bash, zsh and fish",
}
TRAINS = ("train", "reproduce")


def main() -> None:
    """Runs the verb named first on the command line."""
    print_anywhere()
    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help"):
        lines = [f"  {verb:<12}{text}" for verb, text in VERBS.items()]
        print("\n".join([f"ltexp {__version__}: long-tailed recognition", "", "usage: ltexp VERB ...", "", *lines]))
        print(f"\nEach verb has its own --help.\nchoices: {conf_dir()}\ndocs: {docs_dir()}")
        return
    if sys.argv[1] in ("-V", "--version"):
        print(f"ltexp {__version__}")
        return
    verb = sys.argv.pop(1)
    if verb not in VERBS:
        print(f"ltexp: {unknown_name('verb', verb, VERBS)}", file=sys.stderr)
        sys.exit(2)
    keep_memory()
    if os.getcwd() not in sys.path:  # nor may a process of ours take a random.py of the folder for Python's
        os.environ["PYTHONSAFEPATH"] = "1"
    if verb not in TRAINS or sys.argv[1:2] in (["list"], ["show"], ["compare"], ["--help"]):
        end_with_the_reader()
    sys.argv[0] = f"ltexp {verb}"
    runpy.run_module(f"ltexp.{verb}", run_name="__main__", alter_sys=False)


def end_with_the_reader() -> None:
    """What is piped into `head` ends with it and without a word, as other commands do; a training does not."""
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)


if __name__ == "__main__":
    main()
