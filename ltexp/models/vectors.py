"""Word vectors from a GloVe text file: a word and its numbers on each line, between blanks or tabs."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ltexp.errors import DataError


def read_vectors(path: str | Path, vocabulary: Sequence[str], dim: int) -> dict[int, Tensor]:
    """The vectors (dim,) of those words of `vocabulary` that the file has, by the word's number.

    Args:
        path: the file's path. Every line is looked at; of words in the vocabulary the first line counts. A first line
            of two numbers, as word2vec and fastText write it, is no word's.
        vocabulary: words by number.
        dim: numbers a line must have.

    Raises:
        DataError: with file and line: a line of another width, a number that is none, bytes that are not UTF-8; or the
            file is missing or has none of the words.
    """
    numbers = {word: number for number, word in enumerate(vocabulary)}
    found: dict[int, Tensor] = {}
    try:
        with Path(path).open("rb") as file:
            for line, content in enumerate(file, start=1):
                if line == 1 and _is_header(content, dim):
                    continue
                try:
                    word, values = _parse(content, dim)
                    number = numbers.get(word)
                    if number is not None and number not in found:
                        vector = torch.tensor([float(value) for value in values])
                        if not vector.isfinite().all():
                            raise ValueError(f"'{word}' has numbers that are not finite")
                        found[number] = vector
                except ValueError as error:
                    reason = "bytes that are not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)
                    raise DataError(f"backbone.vectors {path}, line {line}: {reason}") from None
    except OSError as error:
        raise DataError(f"backbone.vectors {path}: {error.strerror or error}") from None
    if not found:
        raise DataError(f"backbone.vectors {path} has none of the dataset's {len(vocabulary)} words")
    return found


def _parse(content: bytes, dim: int) -> tuple[str, list[str]]:
    # from the right: a few of GloVe's words hold blanks
    word, *values = content.decode("utf-8-sig").replace("\t", " ").rstrip("\r\n ").rsplit(" ", dim)
    if len(values) != dim:
        raise ValueError(f"{len(values)} numbers, expected backbone.dim={dim}")
    if " " in word and all(map(_is_number, word.split(" ")[1:])):
        raise ValueError(f"{dim + word.count(' ')} numbers, expected backbone.dim={dim}")
    return word, values


def _is_header(content: bytes, dim: int) -> bool:
    """Whether a line says how many words of which width follow."""
    numbers = content.split()
    return dim > 1 and len(numbers) == 2 and all(number.isdigit() for number in numbers)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
