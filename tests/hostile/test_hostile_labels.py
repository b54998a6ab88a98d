"""Damaged or random listings: refused with an error message, or every photo has the label of its row."""

from __future__ import annotations

import csv
import io
import math
import re
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import get_args

from hypothesis import example, given, settings
from hypothesis import strategies as st

from pfcluster.data.build.errors import BuildError
from pfcluster.data.build.plan import PlanOptions, make_plan
from pfcluster.data.labels import CANONICAL, VOCABULARIES
from pfcluster.data.raw.base import RawDataError, RawDataset, ReadOptions, VotingMode, read_bytes
from pfcluster.data.raw.fer2013 import VOTE_COLUMNS, vote
from pfcluster.data.raw.landmarks import with_openface
from pfcluster.data.raw.readers import READERS, read_raw
from pfcluster.data.raw.spool import spool
from tests.hostile.conftest import TIMES
from tests.hostile.damage import Damage, assert_explains, damages

MODES: tuple[VotingMode, ...] = get_args(VotingMode)
EMOTIONS = ("happy", "sad", "neutral", "Fear", "anger")
PLAN = PlanOptions(val_share=0.2, test_share=0.0, samples_per_shard=4, seed=0)
MANY = settings(max_examples=100 * TIMES)


@contextmanager
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as root:
        yield Path(root)


def put(path: Path, data: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def list_and_plan(source: Path, options: ReadOptions | None = None, kind: str = "auto") -> RawDataset | None:
    """List a dataset, read all photos and plan a build; None if the dataset is refused."""
    try:
        dataset = read_raw(source, options, kind=kind)
        dataset = spool(dataset, source.with_name("spool"))
    except RawDataError as error:
        assert_explains(error, str(source))
        return None
    for photo in dataset.photos:
        f"{photo.source}{photo.label}{photo.identity}".encode()
        if photo.size >= 0:
            try:
                read_bytes(photo)
            except OSError as error:
                assert_explains(error)
    try:
        make_plan({"input": dataset}, PLAN)
    except BuildError as error:
        assert_explains(error)
    return dataset


def add_landmarks(dataset: RawDataset, tables: Path) -> None:
    try:
        with_landmarks = with_openface({"input": dataset}, tables)["input"]
    except RawDataError as error:
        assert_explains(error, str(tables))
    else:
        assert [photo.label for photo in with_landmarks.photos] == [photo.label for photo in dataset.photos]


def check_intact_rows(dataset: RawDataset | None, text: bytes, rows: Mapping[str, tuple[str, str]]) -> None:
    """Photos whose row is intact in the damaged text have its label. `rows`: source and label by row."""
    if dataset is None:
        return
    times = Counter(photo.source for photo in dataset.photos)
    labels = {photo.source: photo.label for photo in dataset.photos if times[photo.source] == 1}
    for line in text.decode("utf-8-sig").splitlines():
        if line in rows:
            source, label = rows[line]
            assert labels.get(source, label) == label


AMOUNTS = st.one_of(st.integers(0, 10), st.floats(0, 1e300, allow_subnormal=True), st.just(1), st.just(5e-324))


@settings(max_examples=150 * TIMES)
@given(votes=st.lists(AMOUNTS, min_size=10, max_size=10), mode=st.sampled_from(MODES))
@example(votes=[0] * 10, mode="probability")
@example(votes=[5, 5, 5, 5, 0, 0, 0, 0, 0, 0], mode="probability")
def test_votes_give_a_valid_label_and_fractions(votes: list[float], mode: VotingMode) -> None:
    label, shares = vote(votes, mode)
    assert label in VOTE_COLUMNS
    assert bool(shares) == (label in CANONICAL)
    if shares:
        assert len(shares) == len(CANONICAL)
        assert min(shares) >= 0
        assert math.isclose(sum(shares), 1, rel_tol=1e-9)
        assert shares[CANONICAL.index(label)] == max(shares)
        assert mode == "argmax" or votes[VOTE_COLUMNS.index(label)] > 1
    certain = {name: count for name, count in zip(VOTE_COLUMNS, votes, strict=True) if count > 1}
    if mode == "majority" and shares:
        assert certain[label] > sum(certain.values()) / 2
    if mode == "argmax" and any(votes):
        assert label == VOTE_COLUMNS[votes.index(max(votes))]


CELLS = st.text(st.characters(codec="utf-8", exclude_characters="\0\r\n"), max_size=12)
ROWS = st.lists(st.tuples(st.sampled_from(EMOTIONS), CELLS), min_size=1, max_size=6)
CSV = {f"{i}.png,{label},p{i}": (f"{i}.png", label) for i, label in enumerate(EMOTIONS * 3)}


@MANY
@given(
    rows=ROWS,
    delimiter=st.sampled_from(",;\t"),
    newline=st.sampled_from(("\n", "\r\n", "\r")),
    quoting=st.sampled_from((csv.QUOTE_ALL, csv.QUOTE_MINIMAL)),
    mark=st.sampled_from((b"", b"\xef\xbb\xbf")),
)
def test_csv_dialects(rows: list[tuple[str, str]], delimiter: str, newline: str, quoting: int, mark: bytes) -> None:
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, delimiter=delimiter, lineterminator=newline, quoting=quoting)  # type: ignore[arg-type]
    writer.writerow(("image", "emotion", "identity"))
    writer.writerows((f"{i}.png", label, person) for i, (label, person) in enumerate(rows))
    with folder() as root:
        dataset = list_and_plan(put(root / "t.csv", mark + buffer.getvalue().encode()))
    assert dataset is not None
    assert [(photo.source, photo.label) for photo in dataset.photos] == [
        (f"{i}.png", label) for i, (label, _) in enumerate(rows)
    ]


@MANY
@given(damage=damages())
def test_damaged_tables(damage: Damage) -> None:
    header = b"image,emotion,identity"
    with folder() as root:
        for i in range(3):
            put(root / f"{i}.png", f"picture {i}")
        text = damage(b"\n".join([header, *map(str.encode, CSV)]))
        dataset = list_and_plan(put(root / "t.csv", text))
        check_intact_rows(dataset, text, CSV if re.match(header + rb"\r?\n", text) else {})


LONG = st.sampled_from(("x" * 300, "y/" * 3000, "z" * 140_000, '"' * 99, "../" * 40 + "etc/passwd", "/etc/passwd", "."))
WILD_CELLS = CELLS | LONG | st.sampled_from(("\0", "\r", '"', "..", "/", "\ufeff", "-1", "3", "nan", "1e999"))
ENCODINGS = st.sampled_from(("utf-8", "utf-8-sig", "utf-16", "utf-32", "latin-1", "cp1252", "shift-jis"))
HEADERS = {
    "t.csv": "image,emotion,identity,usage",
    "t.tsv": "path\tlabel",
    "fer2013.csv": "emotion,pixels,Usage",
    "fer2013new.csv": "Usage,Image name," + ",".join(VOTE_COLUMNS),
    "training.csv": "subDirectory_filePath,face_x,face_y,face_width,face_height,facial_landmarks,expression,valence",
    "automatically_annotated.csv": "",
    "label.lst": "",
    "EmoLabel/list_patition_label.txt": "",
}


@settings(max_examples=150 * TIMES)
@given(
    name=st.sampled_from(sorted(HEADERS)),
    rows=st.lists(st.lists(WILD_CELLS, max_size=12), max_size=5),
    delimiter=st.sampled_from((",", ";", "\t", " ")),
    encoding=ENCODINGS,
    kind=st.sampled_from((*READERS, "auto", "auto")),
)
def test_random_listings(name: str, rows: list[list[str]], delimiter: str, encoding: str, kind: str) -> None:
    text = "\n".join([HEADERS[name], *map(delimiter.join, rows)])
    with folder() as root:
        for below in ("FER2013Train", "Image/aligned", "image"):
            (root / below).mkdir(parents=True)
        put(root / "validation.csv", HEADERS["training.csv"])
        source = put(root / name, text.encode(encoding, "replace"))
        for place in (source, root):
            dataset = list_and_plan(place, kind=kind)
            if dataset is not None:
                add_landmarks(dataset, root)


PIXELS = {f"{i}": " ".join(str(10 * i + j) for j in range(4)) for i in range(7)}
FER = [f"{i},{text},{'Training' if int(i) % 3 else 'PublicTest'}" for i, text in PIXELS.items()]
VOTES = [
    f"{row.split(',')[2]},fer{i:07d}.png,{','.join('8' if i == j else '0' for j in range(10))}"
    for i, row in enumerate(FER)
]


def grey(text: str) -> bytes:
    return b"P5 2 2 255\n" + bytes(map(int, text.split()))


@MANY
@given(damage=damages())
def test_damaged_fer2013(damage: Damage) -> None:
    text = damage("\n".join(["emotion,pixels,Usage", *FER]).encode())
    expected = {grey(pixels): VOCABULARIES["fer2013"][i] for i, pixels in PIXELS.items()}
    with folder() as root:
        dataset = list_and_plan(put(root / "fer2013.csv", text))
        if dataset is None or not text.startswith(b"emotion,pixels,Usage\n"):
            return
        lines = text.split(b"\n")
        for photo in dataset.photos:
            line = lines[int(photo.source[3:10]) + 1].decode("latin-1")
            if line in FER:
                assert photo.label == expected[read_bytes(photo)] == VOCABULARIES["fer2013"][line[0]]


@MANY
@given(damage=damages(), mode=st.sampled_from(MODES))
def test_damaged_ferplus_votes(damage: Damage, mode: VotingMode) -> None:
    text = damage("\n".join([HEADERS["fer2013new.csv"], *VOTES]).encode())
    with folder() as root:
        put(root / "fer2013.csv", "\n".join(["emotion,pixels,Usage", *FER]))
        dataset = list_and_plan(put(root / "fer2013new.csv", text).parent, ReadOptions(votes=mode))
        lines = [line for line in re.split("\r\n|\r|\n", text.decode("latin-1")) if line]
        if dataset is None or b'"' in text or len(lines) != len(VOTES) + 1:
            return
        for number, (photo, line) in enumerate(zip(dataset.photos, lines[1:], strict=True)):
            if line == VOTES[number]:
                assert photo.label == VOTE_COLUMNS[number]
                assert read_bytes(photo) == grey(PIXELS[str(number)])


LANDMARKS_CELL = ";".join(f"{i}.5" for i in range(136))
ROW_OF = {
    "rafdb": lambda i: (f"train_{i:05d}.jpg", f"train_{i:05d}.jpg {i}"),
    "expw": lambda i: (f"{i}.jpg", f"{i}.jpg 0 1 2 30 40 50.5 {i}"),
    "affectnet": lambda i: (f"0/{i}.jpg", f"0/{i}.jpg,1,2,30,40,{LANDMARKS_CELL},{i},0,0"),
}


def rows_of(dataset: str) -> dict[str, tuple[str, str]]:
    """A row for each label number of a dataset; source and label by row."""
    made = {label: ROW_OF[dataset](int(number)) for number, label in VOCABULARIES[dataset].items()}
    return {row: (source, label) for label, (source, row) in made.items()}


LISTS = {
    "EmoLabel/list_patition_label.txt": ("", rows_of("rafdb")),
    "label/label.lst": ("", rows_of("expw")),
    "training.csv": (HEADERS["training.csv"] + ",arousal\n", rows_of("affectnet")),
}


@settings(max_examples=150 * TIMES)
@given(name=st.sampled_from(sorted(LISTS)), damage=damages())
def test_damaged_rafdb_expw_and_affectnet_lists(name: str, damage: Damage) -> None:
    header, rows = LISTS[name]
    text = damage((header + "\n".join(rows)).encode())
    with folder() as root:
        (root / "Image" / "aligned").mkdir(parents=True)
        put(root / "validation.csv", LISTS["training.csv"][0])
        put(root / name, text)
        dataset = list_and_plan(root)
        check_intact_rows(dataset, text, rows if text.startswith(header.encode()) else {})
        for photo in dataset.photos if dataset else ():
            assert not photo.landmarks or len(photo.landmarks) == 5
            assert all(map(math.isfinite, (*(photo.box or ()), *sum(photo.landmarks, ()))))
