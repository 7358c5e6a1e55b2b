"""`ltexp COMMAND ...` is `python -m ltexp.COMMAND ...`."""

import os
import runpy
import signal
import sys

from ltexp import __version__
from ltexp.config.path import conf_dir, docs_dir
from ltexp.names import unknown_name
from ltexp.processes.memory import keep_memory
from ltexp.terminal import print_anywhere, printed_whole
from ltexp.usage import folded

COMMANDS = {
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
TRAINING = {  # the commands that train, and what makes them show something instead
    "train": {"-h", "--help", "--hydra-help", "-c", "--cfg", "-i", "--info"},
    "reproduce": {"-h", "--help", "list", "show", "plan", "compare"},
}


def main() -> None:
    """Runs the command named first on the command line."""
    print_anywhere()
    with printed_whole():
        run_command()


def run_command() -> None:
    """The same; what is printed may be lost."""
    if not trains(sys.argv[1:]):
        end_with_the_reader()
    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help"):
        lines = [f"  {command:<12}{text}" for command, text in COMMANDS.items()]
        head = [f"ltexp {__version__}: long-tailed recognition", "", "usage: ltexp COMMAND ...", ""]
        print(folded("\n".join([*head, *lines])))
        print(f"\nltexp COMMAND --help says more.\nchoices: {conf_dir()}\ndocs: {docs_dir()}")
        return
    if sys.argv[1] in ("-V", "--version"):
        print(f"ltexp {__version__}")
        return
    command = sys.argv.pop(1)
    if command not in COMMANDS:
        print(f"ltexp: {unknown_name('command', command, COMMANDS)}", file=sys.stderr)
        sys.exit(2)
    keep_memory()
    if current_folder() not in sys.path:  # nor may a process of ours take a random.py of the folder for Python's
        os.environ["PYTHONSAFEPATH"] = "1"
    sys.argv[0] = f"ltexp {command}"
    runpy.run_module(f"ltexp.{command}", run_name="__main__", alter_sys=False)


def trains(arguments: list[str]) -> bool:
    """Whether a command line is one that trains."""
    words = {argument.partition("=")[0] for argument in arguments[1:]}
    return arguments[:1] != [] and arguments[0] in TRAINING and not words & TRAINING[arguments[0]]


def current_folder() -> str:
    """Where it was typed, against which paths are read; ends with a line where that was removed meanwhile."""
    try:
        return os.getcwd()
    except FileNotFoundError:
        print("ltexp: the current folder no longer exists: change to one that does, such as `cd ~`", file=sys.stderr)
        sys.exit(2)


def end_with_the_reader() -> None:
    """What is piped into `head` ends with it and without a word, as other commands do; a training does not."""
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)


if __name__ == "__main__":
    main()
