"""Label vocabularies: each dataset's codes map to emotion names, and names to class indices."""

from __future__ import annotations

import pytest

from pfcluster.data.labels import (
    CANONICAL,
    VOCABULARIES,
    UnknownEmotionError,
    canonical_name,
    index_mapping,
    name_of,
    neutral_index,
)


@pytest.mark.parametrize(
    ("dataset", "canonical_indices", "neutral"),
    [
        ("rafdb", [3, 4, 5, 1, 2, 6, 0], 6),
        ("fer2013", [6, 5, 4, 1, 2, 3, 0], 6),
        ("folders", [6, 5, 4, 1, 0, 2, 3], 4),
        ("affectnet", [0, 1, 2, 3, 4, 5, 6, 7], 0),
        ("ferplus", [0, 1, 3, 2, 6, 5, 4, 7], 0),
        ("expw", [6, 5, 4, 1, 2, 3, 0], 6),
        ("ckplus", [0, 6, 7, 5, 4, 1, 2, 3], 0),
        ("jaffe", [6, 5, 4, 1, 0, 2, 3], 4),
    ],
)
def test_vocabulary_lists_emotions_in_the_order_of_the_dataset(
    dataset: str, canonical_indices: list[int], neutral: int
) -> None:
    classes = [name for name in VOCABULARIES[dataset].values() if name in CANONICAL]
    assert index_mapping(classes, CANONICAL) == canonical_indices
    assert neutral_index(classes) == neutral


def test_name_of_depends_on_the_dataset() -> None:
    assert [name_of(dataset, "5") for dataset in ("rafdb", "affectnet", "fer2013", "ferplus")] == [
        "sadness",
        "disgust",
        "surprise",
        "disgust",
    ]
    assert name_of("rafdb", " 7 ") == "neutral"
    assert name_of("affectnet", "10") == "no-face"
    assert name_of("rafdb", "8") == "8"


def test_canonical_name_rejects_codes_without_an_emotion() -> None:
    for vocabulary in VOCABULARIES.values():
        for name in set(vocabulary.values()) - set(CANONICAL):
            with pytest.raises(UnknownEmotionError):
                canonical_name(name)


def test_index_mapping_gives_none_for_missing_classes() -> None:
    assert index_mapping(("contempt", "fear"), ("fear", "neutral")) == [None, 0]
    assert neutral_index(("fear",)) is None
