"""From text to numbers: words, a vocabulary, and rows of word numbers of one length."""

import html
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

Tokens = npt.NDArray[np.int32]

PADDING, UNKNOWN = 0, 1  # their numbers; words follow from 2 on
SPECIAL = ("<padding>", "<unknown>")
# AG's News has lost the ampersands of its character references: " #39;s" for "'s", "quot;" for a quotation mark
_NUMBERED = re.compile(r" ?#(\d{1,7});")
_NAMED = re.compile(r"\b(?:quot|amp|lt|gt|nbsp);")
_WORD = re.compile(r"[^\W_]+(?:'[^\W\d_]+)?")


def words(text: str) -> list[str]:
    """The words of `text`: runs of letters and digits in lower case, with an ending such as `'s`; no punctuation."""
    text = html.unescape(_NAMED.sub(" ", _NUMBERED.sub(lambda found: _character(int(found.group(1))), text)))
    return _WORD.findall(text.replace("\\", " ").lower())


def _character(number: int) -> str:
    return chr(number) if number <= 0x10FFFF and not 0xD800 <= number <= 0xDFFF else " "


def build_vocabulary(texts: Iterable[Sequence[str]], min_count: int) -> tuple[str, ...]:
    """The words that occur at least `min_count` times, the most frequent first, equals in alphabetical order.

    Args:
        texts: each a list of words.
        min_count: at least 1.

    Returns:
        Words by number; those of numbers 0 and 1 are `SPECIAL`.
    """
    counts = Counter(word for text in texts for word in text)
    kept = sorted(
        (word for word, count in counts.items() if count >= min_count), key=lambda word: (-counts[word], word)
    )
    return (*SPECIAL, *kept)


def encode(texts: Sequence[Sequence[str]], numbers: Mapping[str, int], length: int) -> Tokens:
    """(N, length) int32: each text's first `length` words by number, padded at the end.

    Args:
        texts: each a list of words.
        numbers: the number of each word of the vocabulary; any other word is unknown.
        length: the number of words of a row.
    """
    rows = np.full((len(texts), length), PADDING, dtype=np.int32)
    for row, text in zip(rows, texts, strict=True):
        found = [numbers.get(word, UNKNOWN) for word in text[:length]]
        row[: len(found)] = found
    return rows
