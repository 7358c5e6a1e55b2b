"""Checks what the jobs of a sweep are made of: `python -m ltexp.processes.preflight`, their configs on standard input.

A part of a run checks its settings when it is built, which needs torch. One process does that for all jobs when the
sweep starts: the command itself stays without torch, and a mistake in the last job does not wait for the others.
"""

import io
import json
import sys
from contextlib import redirect_stdout

from ltexp.config import names_stage, to_config
from ltexp.config.locate import check_targets
from ltexp.errors import ConfigError, LtexpError
from ltexp.processes.failure import REFUSED
from ltexp.processes.parent import die_with_parent
from ltexp.training.composition import check_composition
from ltexp.training.learning import without_idle_epochs

READ = ("backbone", "trainer")  # what a composition depends on, beside its stages


def main() -> None:
    """Ends with `REFUSED` and prints [job's number, reason] as JSON if a job cannot work."""
    die_with_parent()
    seen: set[str] = set()
    for number, plain in enumerate(json.load(sys.stdin)):
        parts = json.dumps({key: node for key, node in plain.items() if key in READ or names_stage(key)})
        if parts in seen:
            continue
        seen.add(parts)
        try:
            with redirect_stdout(io.StringIO()):  # each run says by itself which epochs it leaves out
                check_targets(json.loads(parts))
                check_composition(without_idle_epochs(to_config(plain)))
        except LtexpError as error:
            if isinstance(error, ConfigError) and error.of_own_part:
                continue  # the run tries it again with its own numbers
            print(json.dumps([number, str(error)]))
            sys.exit(REFUSED)


if __name__ == "__main__":
    main()
