"""Vocabularies: each dataset's numbers become names, and names other numbers."""

from __future__ import annotations

import pytest

from pfcluster.data.labels import (
    CANONICAL,
    VOCABULARIES,
    UnknownEmotionError,
    canonical_name,
    classes_of,
    index_mapping,
    name_of,
    neutral_index,
)


@pytest.mark.parametrize(
    ("dataset", "places", "neutral"),
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
def test_every_dataset_s_order_in_affectnet_s(dataset: str, places: list[int], neutral: int) -> None:
    assert index_mapping(classes_of(dataset), CANONICAL) == places
    assert neutral_index(classes_of(dataset)) == neutral


def test_what_a_number_means_hangs_on_the_dataset() -> None:
    assert [name_of(dataset, "5") for dataset in ("rafdb", "affectnet", "fer2013", "ferplus")] == [
        "sadness",
        "disgust",
        "surprise",
        "disgust",
    ]
    assert name_of("rafdb", " 7 ") == "neutral"
    assert name_of("affectnet", "10") == "no-face"
    assert name_of("rafdb", "8") == "8"


def test_what_is_no_emotion_is_no_class() -> None:
    for vocabulary in VOCABULARIES.values():
        for name in set(vocabulary.values()) - set(CANONICAL):
            with pytest.raises(UnknownEmotionError):
                canonical_name(name)


def test_classes_that_the_other_lacks() -> None:
    assert index_mapping(("contempt", "fear"), ("fear", "neutral")) == [None, 0]
    assert neutral_index(("fear",)) is None
