"""What a finished run's model says of images: `ltexp predict RUN FOLDER`.

    ltexp predict RUN photos                       # every image at or below the folder
    ltexp predict RUN one.jpg other.png            # single images
    ltexp predict RUN photos out=answers.csv probabilities=true

Writes a CSV with a row for each image: image (its path), label, class, probability. The run's data is not needed.

keys:
  out=FILE             default: the terminal
  probabilities=true   a column for each class as well
  stage=NAME           stage1, stage2 ...; default: the last
  accelerator=NAME     auto | cpu | gpu
  max_pixels=N         larger images are refused; default: the run's
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from ltexp.config.words import parse_value, read_flag, run_command, split_words
from ltexp.errors import ConfigError
from ltexp.files import is_file_to_be, write_text

KEYS = ("out", "probabilities", "stage", "accelerator", "max_pixels")


def run(words: Sequence[str]) -> int:
    """The command; answers its exit status.

    Raises:
        LtexpError: for a wrong command line, a run that cannot be loaded, or what is no image.
    """
    places, options = split_words(words, KEYS)
    if len(places) < 2:
        raise ConfigError("name a run's folder and images: ltexp predict RUN FOLDER [key=value ...]")
    every_class = bool(read_flag(options, "probabilities"))
    folder, *images = places
    if absent := [name for name in images if not Path(name).exists()]:
        raise ConfigError(f"no such image or folder: {absent[0]}")

    # imports torch: only once the command line is sound
    from ltexp.inference.predictor import load_predictor
    from ltexp.inference.transform import listed

    most = parse_value("max_pixels", options["max_pixels"]) if "max_pixels" in options else None
    predictor = load_predictor(Path(folder), options.get("stage"), options.get("accelerator", "auto"), most)
    found = [path for name in images for path in listed(name)[0]]
    prediction = predictor.predict(found)
    text = prediction.csv(every_class)
    if "out" not in options:
        print(text, end="")
        return 0
    out = Path(options["out"]).expanduser()
    write_text(out, text)
    if is_file_to_be(out):  # a pipe gets the text alone
        print(f"{len(found)} images: {out}")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m ltexp.predict`."""
    return run_command("ltexp predict", __doc__, run, arguments)


if __name__ == "__main__":
    sys.exit(main())
