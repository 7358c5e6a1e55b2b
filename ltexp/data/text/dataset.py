"""The target of text datasets in conf/dataset/: a long-tailed subset of articles, as rows of word numbers."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ltexp.config.require import is_whole, require, require_choice
from ltexp.data.intake import open_source
from ltexp.data.tail.profile import IMBALANCES
from ltexp.data.tail.selection import Request, choose, hash_of
from ltexp.data.text.articles import SourceTexts
from ltexp.data.text.tokens import Tokens, build_vocabulary, encode, words
from ltexp.data.types import Ints, LongTailedData, Source, Split


@dataclass(frozen=True, eq=False, kw_only=True)
class TokenSplit(Split):
    """Texts as rows of word numbers.

    Attributes:
        tokens: int32 (N, L); 0 is padding.
    """

    tokens: Tokens
    loader: ClassVar[str] = "ltexp.data.text.loader.TokenLoader"
    unit: ClassVar[str] = "articles"

    def describe(self) -> str:
        """The length of a row."""
        return f"{self.tokens.shape[1]} words each"


def long_tailed_text(
    *,
    source: Source,
    root: str | Path,
    name: str,
    max_per_class: int,
    imbalance: str = "longtail",
    imbalance_ratio: float = 100.0,
    num_classes: int | None = None,
    subset: Mapping[str, Any] | None = None,
    validation: Mapping[str, Any] | None = None,
    max_length: int = 64,
    min_count: int = 2,
) -> LongTailedData:
    """Takes a long-tailed subset of a source's training articles. Imports no torch and leaves global generators alone.

    The vocabulary is that of the chosen training articles (held-out ones aside), made anew each time.

    Args:
        source: where the articles come from.
        root: the data root.
        name: the dataset's name, for records.
        max_per_class: articles of the largest class.
        imbalance, imbalance_ratio, num_classes, subset, validation: see `long_tailed`.
        max_length: words of an article that are read; the rest is cut. Default 64.
        min_count: rarer words count as unknown. Default 2.

    Raises:
        ConfigError: for a setting out of range, unknown, or that leaves a class without articles.
        DataError: for data that is missing, damaged or has too few articles of a class.
    """
    require(is_whole(max_length, 1), "max_length", max_length, "a whole number of 1 or more")
    require(is_whole(min_count, 1), "min_count", min_count, "a whole number of 1 or more")
    require_choice("imbalance", imbalance, IMBALANCES)
    request = Request(name, max_per_class, imbalance, imbalance_ratio, num_classes, subset, validation)
    articles = open_source(source, Path(root), SourceTexts)
    chosen = choose(request, articles.train_labels, articles.test_labels, articles.class_names, articles.unit)
    chosen_words = [
        [words(texts[position]) for position in positions]
        for texts, positions in (
            (articles.train_texts, chosen.train),
            (articles.train_texts, chosen.held_out),
            (articles.test_texts, chosen.test),
        )
    ]
    vocabulary = build_vocabulary(chosen_words[0], min_count)
    numbers = {word: number for number, word in enumerate(vocabulary)}

    def split(texts: list[list[str]], labels: Ints, positions: Ints) -> TokenSplit:
        return TokenSplit(tokens=encode(texts, numbers, max_length), labels=labels[positions], index=positions)

    train = split(chosen_words[0], articles.train_labels, chosen.train)
    held = split(chosen_words[1], articles.train_labels, chosen.held_out) if len(chosen.held_out) else None
    test = split(chosen_words[2], articles.test_labels, chosen.test)
    return LongTailedData(
        name=name,
        imbalance=imbalance,
        imbalance_ratio=request.ratio,
        train=train,
        validation=held,
        test=test,
        class_names=chosen.class_names,
        subset_hash=chosen.subset_hash,
        content_hash=hash_of(train.tokens, train.labels),
        test_hash=hash_of(test.tokens, test.labels, np.array(chosen.class_names), np.array(vocabulary)),
        preprocessing={},
        kind="text",
        backbone_settings={"vocabulary": list(vocabulary)},
    )
