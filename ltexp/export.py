"""A finished run's model as an ONNX file, checked against the model: `ltexp export RUN`.

    ltexp export RUN                               # RUN/model.onnx
    ltexp export RUN out=birds.onnx size=224

The file's input is `images`, float32 (N, 3, S, S), RGB in [0, 1], already of the size that the network reads; it holds
the normalisation. Its outputs are `logits` (N, C) and `probabilities` (N, C). The names of the classes are in its
metadata (`classes`, a JSON list). Needs: pip install 'ltexp[export]'.

keys:
  out=FILE     default: RUN/model.onnx
  size=S       default: the run's own
  stage=NAME   stage1, stage2 ...; default: the last
"""

import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

from ltexp.config.words import parse_value, run_command, split_words
from ltexp.errors import ConfigError, LtexpError

KEYS = ("out", "size", "stage")
NEEDED = ("onnx", "onnxscript", "onnxruntime")


def run(words: Sequence[str]) -> int:
    """The command; answers its exit status.

    Raises:
        LtexpError: for a wrong command line, a run that cannot be loaded, or a file that does not answer as the model.
    """
    places, options = split_words(words, KEYS)
    if len(places) != 1:
        raise ConfigError("name one run's folder: ltexp export RUN [key=value ...]")
    size = parse_value("size", options["size"]) if "size" in options else None
    if size is not None and (not isinstance(size, int) or size < 1):
        raise ConfigError(f"invalid size={options['size']}: expected a whole number of 1 or more")
    if absent := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        raise LtexpError(f"there is no {absent[0]} here: pip install 'ltexp[export]'")

    # imports torch: only once the command line is sound
    from ltexp.inference.onnx_file import write_onnx
    from ltexp.inference.predictor import load_predictor

    folder = Path(places[0])
    predictor = load_predictor(folder, options.get("stage"), "cpu")
    path = Path(options.get("out", folder / "model.onnx")).expanduser()
    difference, size = write_onnx(predictor, path, size)
    megabytes = path.stat().st_size / 1e6
    print(f"{path}: {predictor.stage}, images (N, 3, {size}, {size}), {megabytes:.1f} MB")
    print(f"checked with onnxruntime: probabilities differ from the model's by at most {difference:.1g}")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m ltexp.export`."""
    return run_command("ltexp export", __doc__, run, arguments)


if __name__ == "__main__":
    sys.exit(main())
