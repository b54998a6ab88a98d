"""Shards: what a build makes of dirty data, that it survives being killed, and what the reader refuses."""

from __future__ import annotations

import csv
import io
import json
import os
import pickle
import signal
import subprocess
import sys
import tarfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pfcluster.data.build import build
from pfcluster.data.build_options import BuildOptions
from pfcluster.data.jpeg import encode_jpeg
from pfcluster.data.plan import BuildError
from pfcluster.data.shards import MANIFEST, BadSampleError, ShardError, ShardSplit, load_manifest
from pfcluster.data.split import choose_groups, connected_groups

ROOT = Path(__file__).resolve().parents[2]
SIZE = 24
COLOURS = {"happy": (220, 40, 40), "sad": (40, 60, 220), "neutral": (128, 128, 128), "fear": (40, 200, 60)}
CANONICAL = {"happy": "happiness", "sad": "sadness", "neutral": "neutral", "fear": "fear"}


def picture(label: str, number: int, side: int = 32) -> Image.Image:
    """A square of the label's colour with a corner that tells photos apart."""
    pixels = np.empty((side, side, 3), np.uint8)
    pixels[:] = COLOURS[label]
    pixels[: side // 4, : side // 4] = (number % 256, number // 256, 77)
    return Image.fromarray(pixels)


def make_folder(root: Path, per_class: int = 12, labels: tuple[str, ...] = ("happy", "sad", "neutral")) -> Path:
    for place, label in enumerate(labels):
        (root / label).mkdir(parents=True)
        for number in range(per_class):
            picture(label, 1000 * place + number).save(root / label / f"{number:03d}.png")
    return root


def make_csv(root: Path, rows: list[tuple[str, str, str]]) -> Path:
    """Rows of image, label, identity; photos that do not exist yet are drawn where their name ends in .png."""
    (root / "images").mkdir(parents=True, exist_ok=True)
    with open(root / "legend.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([("image", "emotion", "identity"), *rows])
    for number, (name, label, _) in enumerate(rows):
        if name.endswith(".png") and label in COLOURS and not (root / "images" / name).exists():
            picture(label, number).save(root / "images" / name)
    return root / "legend.csv"


def options(source: Path, output: Path, **changes: object) -> BuildOptions:
    values = {"size": SIZE, "align": "none", "workers": 1, "samples_per_shard": 8, **changes}
    return BuildOptions(input=source, output=output, **values)  # type: ignore[arg-type]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def left_out(folder: Path) -> dict[str, str]:
    """Source (with its row, where it stands twice) -> reason."""
    with open(folder / "left_out.csv", newline="") as file:
        return {f"{row['input']}:{row['source']}:{row['label']}": row["reason"] for row in csv.DictReader(file)}


def run(script: str, *arguments: object, **kwargs: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "shards" / script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, **kwargs)  # type: ignore[call-overload]


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("raw") / "faces")


@pytest.fixture(scope="module")
def built(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """36 photos of 3 classes: 5 shards or so. Tests that change it work on copies."""
    output = tmp_path_factory.mktemp("built") / "shards"
    build(options(raw, output, val_share=0.25))
    return output


@pytest.fixture
def damaged(built: Path, tmp_path: Path) -> Path:
    for name, data in contents(built).items():
        (tmp_path / name).write_bytes(data)
    return tmp_path


# --- what is written -----------------------------------------------------------------------------------------------


def test_reader_gives_the_photos_and_labels_that_went_in(built: Path) -> None:
    split = ShardSplit(built, "train", verify=True)
    assert split.classes == ("neutral", "happiness", "sadness")
    assert (split.size, split.name, len(split)) == (SIZE, "faces", 27)
    images, labels = split.images(range(len(split))), split.labels()
    assert images.shape == (27, 3, SIZE, SIZE)
    assert images.dtype == torch.uint8
    assert labels.dtype == torch.long
    for raw_name, canonical in (("happy", "happiness"), ("sad", "sadness"), ("neutral", "neutral")):
        own = images[labels == split.classes.index(canonical)].float()
        assert len(own) == 9
        expected = torch.tensor(COLOURS[raw_name]).float()
        assert (own[:, :, SIZE // 2, SIZE // 2] - expected).abs().max() < 6
    assert (torch.from_numpy(split.image(3)).permute(2, 0, 1) == images[3]).all()
    assert split.images(torch.tensor([5, 2])).equal(images[[5, 2]])


def test_manifest_counts_add_up_and_name_no_place_of_the_machine(built: Path, raw: Path) -> None:
    manifest = load_manifest(built)
    assert manifest.photos == 36 == sum(split.samples for split in manifest.splits.values())
    assert manifest.splits["validation"].per_class == {"neutral": 3, "happiness": 3, "sadness": 3}
    assert [shard.samples for shard in manifest.splits["train"].shards] == [8, 8, 8, 3]
    assert str(raw.parent) not in (built / MANIFEST).read_text()
    assert not (built / ".build").exists()


def test_webdataset_reads_the_tars(built: Path) -> None:
    import webdataset

    urls = [str(path) for path in sorted(built.glob("train-*.tar"))]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False))
    split = ShardSplit(built, "train")
    assert [sample["__key__"] for sample in samples] == [split.key(index) for index in range(len(split))]
    assert samples[4]["jpg"] == split.jpeg(4)
    record = json.loads(samples[4]["json"])
    assert record["label"] == split.classes[split.labels()[4]]
    assert record["identity"] == split.identities()[4]
    assert record["box"] == [0, 0, 32, 32]
    assert record["landmarks"] is None
    assert not record["source"].startswith("/")


def test_tars_hold_no_times_and_fixed_owners(built: Path) -> None:
    with tarfile.open(built / "train-00000.tar") as archive:
        members = archive.getmembers()
    assert {(m.mtime, m.uname, m.gname, m.mode, m.uid) for m in members} == {(0, "pfcluster", "pfcluster", 0o444, 0)}


def test_grey_jpegs_of_the_right_size_keep_their_bytes_and_give_three_channels(tmp_path: Path) -> None:
    for label in ("sad", "happy"):
        (tmp_path / "raw" / label).mkdir(parents=True)
    originals = set()
    for number, label in enumerate(["sad", "sad", "happy", "happy"]):
        ramp = (np.arange(SIZE * SIZE).reshape(SIZE, SIZE) % 200 + number).astype(np.uint8)
        path = tmp_path / "raw" / label / f"{number}.jpg"
        Image.fromarray(ramp).save(path, quality=60)
        originals.add(path.read_bytes())
    build(options(tmp_path / "raw", tmp_path / "out", val_share=0))
    split = ShardSplit(tmp_path / "out", "train")
    assert {split.jpeg(index) for index in range(4)} == originals
    image = split.image(0)
    assert (image[..., 0] == image[..., 1]).all()
    assert (image[..., 0] == image[..., 2]).all()
    assert image.std() > 0


def test_split_can_be_pickled_for_loader_workers(built: Path) -> None:
    split = pickle.loads(pickle.dumps(ShardSplit(built, "validation")))
    assert len(split) == 9
    assert split.image(0).shape == (SIZE, SIZE, 3)


# --- splits and what is left out -----------------------------------------------------------------------------------


def test_splits_share_no_person_and_rare_classes_reach_validation(tmp_path: Path) -> None:
    rows = [
        (f"{person}_{n}.png", label, f"person{person}") for person in range(20) for n, label in enumerate(CANONICAL)
    ]
    rows = [row for row in rows if row[1] != "fear" or row[2] in ("person3", "person11")]
    build(options(make_csv(tmp_path, rows), tmp_path / "out", val_share=0.2, test_share=0.2))
    splits = {name: ShardSplit(tmp_path / "out", name) for name in ("train", "validation", "test")}
    people = {name: set(split.identities()) for name, split in splits.items()}
    assert not people["train"] & people["validation"]
    assert not people["train"] & people["test"]
    assert not people["validation"] & people["test"]
    assert len(set().union(*people.values())) == 20
    manifest = load_manifest(tmp_path / "out")
    assert manifest.splits["validation"].per_class["fear"] == 1
    assert manifest.splits["train"].per_class["fear"] == 1
    assert 8 <= manifest.splits["test"].samples <= 16


def test_people_tied_by_one_photo_are_one_group() -> None:
    links = [("a", "x"), ("b", "y"), ("c", "y"), ("b", "x"), ("d", "z")]
    groups = connected_groups([(("person", person), ("content", content)) for person, content in links])
    assert groups == [0, 0, 0, 0, 1]


def test_holding_out_never_takes_a_class_s_last_group() -> None:
    members = {0: Counter(fear=1, sadness=3), 1: Counter(fear=1), 2: Counter(disgust=4), 3: Counter(sadness=3)}
    for seed in range(20):
        held = choose_groups(members, 0.5, seed)
        assert 2 not in held
        for label in ("fear", "sadness"):
            groups = {group for group, labels in members.items() if label in labels}
            assert held & groups
            assert groups - held


def test_every_photo_left_out_is_listed_with_its_reason(tmp_path: Path) -> None:
    rows = [(f"{n}.png", label, f"p{n}") for n, label in enumerate(["happy", "sad"] * 4)]
    rows += [
        ("gone.jpg", "happy", "q"),
        ("broken.jpg", "happy", "q"),
        ("empty.jpg", "sad", "q"),
        ("odd.png", "bored", "q"),
        ("0.png", "happy", "p0"),
        ("copy.bin", "sad", "p1"),
        ("twice.png", "happy", "r"),
        ("twice.png", "sad", "r"),
        ("", "sad", "r"),
    ]
    source = make_csv(tmp_path, rows)
    images = tmp_path / "images"
    buffer = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(buffer, "JPEG")
    (images / "broken.jpg").write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])
    (images / "empty.jpg").write_bytes(b"")
    picture("happy", 500).save(images / "odd.png")
    (images / "copy.bin").write_bytes((images / "1.png").read_bytes())
    build(options(source, tmp_path / "out", val_share=0))
    assert left_out(tmp_path / "out") == {
        "input:gone.jpg:happy": "missing file",
        "input:broken.jpg:happy": "unreadable",
        "input:empty.jpg:sad": "unreadable",
        "input:odd.png:bored": "unknown label",
        "input:0.png:happy": "duplicate row",
        "input:copy.bin:sad": "duplicate photo",
        "input:twice.png:happy": "conflicting labels",
        "input:twice.png:sad": "conflicting labels",
        "input::sad": "no image named",
    }
    manifest = load_manifest(tmp_path / "out")
    assert manifest.left_out == Counter(left_out(tmp_path / "out").values())
    assert manifest.splits["train"].samples == 8


def test_photos_of_the_test_input_are_kept_out_of_training(tmp_path: Path) -> None:
    train = make_folder(tmp_path / "train", 6, ("happy", "sad"))
    test = make_folder(tmp_path / "test", 3, ("happy", "sad"))  # the same first three of each class
    (test / "neutral").mkdir()
    picture("neutral", 9).save(test / "neutral" / "x.png")
    build(options(train, tmp_path / "out", test_input=test, val_share=0.34))
    manifest = load_manifest(tmp_path / "out")
    assert manifest.left_out == {"also in the test input": 6}
    assert manifest.splits["test"].samples == 7
    assert manifest.classes == ("neutral", "happiness", "sadness")
    assert manifest.splits["train"].samples + manifest.splits["validation"].samples == 6


def test_photos_without_faces_are_left_out(tmp_path: Path) -> None:
    pytest.importorskip("facenet_pytorch")
    with pytest.raises(BuildError, match=r"no photo gave a face \(no face found: 4\); --align none"):
        build(options(make_folder(tmp_path / "raw", 2, ("happy", "sad")), tmp_path / "out", align="mtcnn"))
    assert not (tmp_path / "out" / MANIFEST).exists()


@pytest.mark.skipif("PFCLUSTER_REAL_DATA" not in os.environ, reason="PFCLUSTER_REAL_DATA is not set")
def test_real_photos_become_aligned_shards(tmp_path: Path) -> None:
    source = Path(os.environ["PFCLUSTER_REAL_DATA"]) / "wild" / "legend.csv"
    result = build(options(source, tmp_path / "out", align="mtcnn", size=112, limit=24, val_share=0.2))
    manifest = result.manifest
    assert manifest.photos == 24
    assert sum(split.samples for split in manifest.splits.values()) >= 20
    with tarfile.open(tmp_path / "out" / "train-00000.tar") as archive:
        records = [json.load(archive.extractfile(m)) for m in archive if m.name.endswith(".json")]  # type: ignore[arg-type]
    assert all(np.shape(record["landmarks"]) == (5, 2) for record in records)


# --- repeatability -------------------------------------------------------------------------------------------------


def test_two_workers_give_the_same_bytes_as_one(raw: Path, built: Path, tmp_path: Path) -> None:
    build(options(raw, tmp_path / "two", val_share=0.25, workers=2))
    assert contents(tmp_path / "two") == contents(built)


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def start_and_interrupt(
    command: list[str], output: Path, number: signal.Signals
) -> tuple[subprocess.Popen[str], list[int]]:
    """Start a build, send it a signal once some shards are finished, and wait for its end."""
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while len(list((output / ".build").glob("*.done.json"))) < 3:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.001)
    workers = children(process.pid)
    process.send_signal(number)
    process.wait(timeout=60)
    return process, workers


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_build_cut_short_goes_on_to_the_same_bytes(tmp_path: Path, number: signal.Signals) -> None:
    raw = make_folder(tmp_path / "raw", 300)
    plain, output = tmp_path / "plain", tmp_path / "cut"
    build(options(raw, plain, samples_per_shard=4))
    command = [sys.executable, str(ROOT / "shards" / "build.py"), "--input", str(raw), "--output", str(output)]
    command += ["--size", str(SIZE), "--align", "none", "--samples-per-shard", "4", "--workers", "2"]
    process, workers = start_and_interrupt(command, output, number)
    if number != signal.SIGKILL:
        assert process.returncode == 130
        assert "Traceback" not in process.communicate()[1]
    deadline = time.monotonic() + 30
    while any(Path(f"/proc/{worker}").exists() for worker in workers):  # none is left behind
        assert time.monotonic() < deadline
        time.sleep(0.01)

    assert not (output / MANIFEST).exists()
    with pytest.raises(ShardError, match="has not finished"):
        load_manifest(output)
    finished = [output / (marker.name.split(".")[0] + ".tar") for marker in (output / ".build").glob("*.done.json")]
    before = {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in finished}
    assert 3 <= len(finished) < 230
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in finished} == before
    left = {name for name in contents(output) if ".tmp" in name}
    assert all(name.startswith(".") for name in left)
    assert {name: data for name, data in contents(output).items() if name not in left} == contents(plain)


def test_a_finished_build_is_not_done_again(raw: Path, damaged: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in damaged.iterdir()}
    result = build(options(raw, damaged, val_share=0.25))
    assert result.photos_now == 0
    assert {path: path.stat().st_mtime_ns for path in damaged.iterdir()} == before


def test_other_options_on_a_build_are_refused_and_named(raw: Path, damaged: Path) -> None:
    with pytest.raises(BuildError, match=r"options.size was 24, now 32.*delete the folder"):
        build(options(raw, damaged, val_share=0.25, size=32))
    with pytest.raises(BuildError, match=r"options.seed was 0, now 5"):
        build(options(raw, damaged, val_share=0.25, seed=5))


def test_a_changed_input_is_noticed(raw: Path, damaged: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = make_folder(tmp_path_factory.mktemp("other") / "faces", 12)
    picture("sad", 4000, 40).save(other / "sad" / "000.png")
    with pytest.raises(BuildError, match="photos or labels have changed"):
        build(options(other, damaged, val_share=0.25))


# --- what the reader refuses ---------------------------------------------------------------------------------------


def test_truncated_tar(damaged: Path) -> None:
    tar = damaged / "train-00001.tar"
    tar.write_bytes(tar.read_bytes()[:-700])
    with pytest.raises(ShardError, match=r"train-00001.tar is cut off: .*build it again"):
        ShardSplit(damaged, "train")
    ShardSplit(damaged, "validation")


def test_changed_bytes_are_found_by_checksum_only(damaged: Path) -> None:
    tar = damaged / "train-00001.tar"
    data = bytearray(tar.read_bytes())
    data[-1] = 1
    tar.write_bytes(data)
    ShardSplit(damaged, "train")
    with pytest.raises(ShardError, match=r"train-00001.tar has changed"):
        ShardSplit(damaged, "train", verify=True)


def test_a_jpeg_that_does_not_decode_is_named(damaged: Path) -> None:
    split = ShardSplit(damaged, "train")
    row = json.loads((damaged / "train-00000.index.json").read_text())[2]
    with open(damaged / "train-00000.tar", "r+b") as tar:
        tar.seek(row["offset"])
        tar.write(bytes(row["size"]))
    with pytest.raises(BadSampleError, match=rf"{row['key']} in .*train-00000.tar does not decode"):
        split.images([0, 1, 2])
    assert split.image(1).shape == (SIZE, SIZE, 3)


def test_a_jpeg_cut_short_is_no_sample(damaged: Path) -> None:
    rows = json.loads((damaged / "train-00000.index.json").read_text())
    rows[0]["size"] -= 200
    (damaged / "train-00000.index.json").write_text(json.dumps(rows))
    with pytest.raises(BadSampleError, match=rows[0]["key"]):
        ShardSplit(damaged, "train").image(0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 7}, "format 7"),
        ({"splits": 3}, "garbles"),
        ({"extra": 1}, "garbles"),
    ],
)
def test_a_wrong_manifest_is_refused(damaged: Path, change: dict[str, object], message: str) -> None:
    values = json.loads((damaged / MANIFEST).read_text())
    (damaged / MANIFEST).write_text(json.dumps({**values, **change}))
    with pytest.raises(ShardError, match=message):
        load_manifest(damaged)


def test_shards_outside_their_folder_and_wrong_indexes_are_refused(damaged: Path) -> None:
    text = (damaged / MANIFEST).read_text()
    (damaged / MANIFEST).write_text(text.replace("train-00000.tar", "../train-00000.tar"))
    with pytest.raises(ShardError, match="outside"):
        load_manifest(damaged)
    (damaged / MANIFEST).write_text(text)
    index = damaged / "train-00000.index.json"
    rows = json.loads(index.read_text())
    index.write_text(json.dumps(rows[1:]))
    with pytest.raises(ShardError, match="does not list"):
        ShardSplit(damaged, "train")
    index.write_text(json.dumps([{**rows[0], "offset": 10**9}, *rows[1:]]))
    with pytest.raises(ShardError, match="outside its tar"):
        ShardSplit(damaged, "train")
    index.write_text("[")
    with pytest.raises(ShardError, match="cannot be read"):
        ShardSplit(damaged, "train")


def test_no_folder_and_no_such_split(built: Path, tmp_path: Path) -> None:
    with pytest.raises(ShardError, match=r"made by shards/build\.py"):
        load_manifest(tmp_path)
    with pytest.raises(ShardError, match="only train, validation"):
        ShardSplit(built, "test")


def test_colour_is_written_without_subsampling() -> None:
    image = np.array(picture("happy", 3, 16))
    with Image.open(io.BytesIO(encode_jpeg(image, 95))) as written:
        assert written.mode == "RGB"
        assert {layer[1:3] for layer in written.layer} == {(1, 1)}


# --- command lines -------------------------------------------------------------------------------------------------


def test_command_lines_work_from_the_scripts_own_folder(raw: Path, built: Path, tmp_path: Path) -> None:
    """There `inspect.py` would shadow Python's own module. Also that the command and the function build the same."""
    arguments = ["--size", SIZE, "--align", "none", "--workers", 1, "--samples-per-shard", 8, "--val-share", 0.25]
    done = run("build.py", "--input", raw, "--output", tmp_path / "out", *arguments, cwd=ROOT / "shards")
    assert done.returncode == 0, done.stderr
    assert "36 photos in, 36 faces out" in done.stdout
    assert contents(tmp_path / "out") == contents(built)
    sheet = tmp_path / "sheet.png"
    shown = run("inspect.py", built, "--sheet", sheet, "--per-class", 4, "--verify", cwd=ROOT / "shards")
    assert shown.returncode == 0, shown.stderr
    assert "6 shards have the manifest's checksums" in shown.stdout
    with Image.open(sheet) as written:
        assert written.size[0] > 4 * SIZE


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--input", "{tmp}/nowhere"], "does not exist"),
        (["--input", "{tmp}/empty"], "holds no photos"),
        (["--input", "{tmp}/unknown"], "labels found are 'bored'"),
        (["--input", "{raw}", "--val-share", "1.5"], "--val-share must lie in [0, 1)"),
        (["--input", "{raw}", "--val-share", "0.6", "--test-share", "0.5"], "must be < 1"),
        (["--input", "{raw}", "--test-input", "{raw}", "--test-share", "0.5"], "give one of them"),
        (["--input", "{raw}", "--size", "huge"], "invalid"),
        (["--input", "{raw}", "--align", "retina"], "invalid"),
        (["--input", "{raw}", "--speed", "9"], "--speed"),
        (["--input", "{raw}", "--output", "{tmp}/file/out"], "cannot be written"),
        (["--input", "{raw}", "--output", "{raw}"], "holds other files"),
    ],
)
def test_wrong_commands_end_with_plain_words(raw: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "unknown" / "bored").mkdir(parents=True)
    picture("sad", 1).save(tmp_path / "unknown" / "bored" / "1.png")
    filled = [argument.format(tmp=tmp_path, raw=raw) for argument in arguments]
    if "--output" not in filled:
        filled += ["--output", str(tmp_path / "out")]
    done = run("build.py", *filled)
    assert done.returncode == 2
    assert "Traceback" not in done.stdout + done.stderr
    assert message in " ".join((done.stdout + done.stderr).split())
    assert not (tmp_path / "out").exists()


def test_inspect_names_damage_and_ends_with_2(damaged: Path) -> None:
    tar = damaged / "train-00000.tar"
    tar.write_bytes(tar.read_bytes()[:-1] + b"x")
    done = run("inspect.py", damaged, "--verify")
    assert done.returncode == 2
    assert "train-00000.tar has changed" in done.stderr
    assert "Traceback" not in done.stderr
    for arguments in (
        ["/nowhere"],
        [damaged, "--per-class", 0],
        [damaged, "--sheet", "/nowhere/x.png"],
        [damaged, "--x"],
    ):
        done = run("inspect.py", *arguments)
        assert done.returncode == 2
        assert "Traceback" not in done.stderr
