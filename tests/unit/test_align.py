"""Alignment: similarity transform and warp on known geometry; MTCNN on real photos."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pfcluster.data.build.align import (
    AlignedFace,
    Face,
    Hint,
    LandmarkAligner,
    Rejected,
    choose_face,
    crop_listed_box,
    overlap,
    resize,
    similarity,
    template,
    warp,
)
from pfcluster.data.build.detect import FaceAligner

real_data = pytest.mark.skipif("PFCLUSTER_REAL_DATA" not in os.environ, reason="PFCLUSTER_REAL_DATA is not set")


def face(left: float, top: float, right: float, bottom: float) -> Face:
    return Face((left, top, right, bottom), np.zeros((5, 2)), 1.0)


def spot(width: int, height: int, x: float, y: float, radius: float) -> np.ndarray:
    """A bright disc on grey: uint8 h w 3."""
    columns, rows = np.meshgrid(np.arange(width), np.arange(height))
    inside = np.hypot(columns - x, rows - y) <= radius
    return np.repeat(np.where(inside, 255, 90)[..., None], 3, axis=2).astype(np.uint8)


def centre_of_brightness(image: np.ndarray) -> np.ndarray:
    rows, columns = np.nonzero(image[..., 0] > 200)
    return np.array([columns.mean(), rows.mean()])


def test_similarity_recovers_rotation_scale_and_shift() -> None:
    angle, scale, shift = 0.4, 2.5, np.array([7.0, -3.0])
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    points = template(112)
    matrix = similarity(points, scale * points @ rotation.T + shift)
    np.testing.assert_allclose(matrix, np.column_stack([scale * rotation, shift]), atol=1e-9)


def test_similarity_has_no_reflection() -> None:
    points = template(112)
    matrix = similarity(points * [-1, 1], points)
    assert np.linalg.det(matrix[:, :2]) > 0


def test_template_scales_with_the_crop() -> None:
    np.testing.assert_allclose(template(224), 2 * template(112))
    np.testing.assert_allclose(template(112)[0], (38.2946, 51.6963))


@pytest.mark.parametrize("scale", [1.5, 0.8, 0.3, 0.11])
def test_warp_follows_the_matrix(scale: float) -> None:
    """Also if the photo is reduced first."""
    x, y = 431.0, 282.0
    image = spot(900, 600, x, y, 6 / scale)
    matrix = np.array([[scale, 0, 50 - scale * x], [0, scale, 61 - scale * y]])
    crop = warp(image, matrix, 112)
    assert crop.shape == (112, 112, 3)
    np.testing.assert_allclose(centre_of_brightness(crop), (50, 61), atol=0.3)


def test_warp_is_black_outside_the_photo() -> None:
    crop = warp(np.full((20, 20, 3), 200, np.uint8), np.array([[1.0, 0, 30], [0, 1, 30]]), 112)
    assert crop[0, 0].tolist() == [0, 0, 0]
    assert crop[40, 40].tolist() == [200, 200, 200]


def test_default_rule_selects_the_large_central_face() -> None:
    large_off_centre, small_central, middling = face(0, 0, 60, 60), face(90, 90, 110, 110), face(70, 70, 130, 130)
    assert choose_face([large_off_centre, small_central, middling], 200, 200) is middling
    assert choose_face([small_central, face(20, 20, 180, 180)], 200, 200).box == (20, 20, 180, 180)


def test_resize_crops_the_central_square() -> None:
    image = np.zeros((40, 80, 3), np.uint8)
    image[:, 20:60] = 255
    assert (resize(image, 20) == 255).all()
    assert resize(image, 64).shape == (64, 64, 3)


def test_photos_without_faces_are_rejected() -> None:
    """Also in a batch with photos of other sizes, and for photos too small for MTCNN's first net."""
    torch.set_num_threads(1)
    noise = np.random.default_rng(0).integers(0, 255, (120, 120, 3), dtype=np.uint8)
    flat = np.full((120, 120, 3), 128, np.uint8)
    results = FaceAligner(48).align([flat, noise, np.zeros((9, 9, 3), np.uint8), np.zeros((300, 80, 3), np.uint8)])
    assert [type(result) for result in results] == [Rejected] * 4
    assert isinstance(results[2], Rejected)
    assert (results[2].reason, results[2].detail) == ("no face found", "photo of 9x9 px")


def test_errors_of_the_detector_itself_are_raised() -> None:
    """Not taken for photos without faces: here a net whose weights do not fit, in batches and single photos."""
    aligner = FaceAligner(48)
    aligner._detector.pnet.conv1 = torch.nn.Conv2d(4, 10, 3)
    photo = np.zeros((120, 120, 3), np.uint8)
    for photos in ([photo], [photo] * 3):
        with pytest.raises(RuntimeError, match="to have 4 channels"):
            aligner.align(photos)


def wild_photos(count: int) -> list[np.ndarray]:
    """Photos of 350 x 350 px from all over the dataset."""
    root = Path(os.environ["PFCLUSTER_REAL_DATA"]) / "wild"
    with open(root / "legend.csv", newline="") as file:
        names = [row["image"] for row in csv.DictReader(file)]
    photos: list[np.ndarray] = []
    for name in names[:: len(names) // (count * 2)]:
        with Image.open(root / "images" / name) as picture:
            if picture.size == (350, 350) and len(photos) < count:
                photos.append(np.array(picture.convert("RGB")))
    return photos


@real_data
def test_real_faces_are_aligned_to_the_template() -> None:
    """Eyes detected in the crops are at the template's positions; single faces deviate by shape and pose."""
    torch.set_num_threads(1)
    photos = wild_photos(24)
    aligner = FaceAligner(112)
    crops = [result.image for result in aligner.align(photos) if isinstance(result, AlignedFace)]
    assert len(crops) >= 23
    landmarks = [choose_face(faces, 112, 112).landmarks for faces in aligner.detect(crops) if faces]
    assert len(landmarks) == len(crops)
    offsets = np.array(landmarks) - template(112)
    assert np.abs(offsets[:, :2].mean(axis=0)).max() < 2
    assert np.linalg.norm(offsets[:, :2], axis=2).mean() < 4


@real_data
def test_landmarks_of_faces_at_the_edge() -> None:
    """A face that fills its photo gets the same landmarks as with a margin around it."""
    torch.set_num_threads(1)
    aligner = FaceAligner(112)
    distances = []
    for photo in wild_photos(12):
        padded = np.pad(photo, ((200, 200), (200, 200), (0, 0)), constant_values=128)
        tight, wide = aligner.detect([photo])[0], aligner.detect([padded])[0]
        a = choose_face(tight, 350, 350)
        b = choose_face(wide, 750, 750)
        distances.append(np.linalg.norm(a.landmarks - (b.landmarks - 200), axis=1).mean())
    assert np.median(distances) < 8  # of 350 px


@real_data
def test_crop_does_not_depend_on_the_batch() -> None:
    torch.set_num_threads(1)
    photos = wild_photos(10)
    aligner = FaceAligner(96)
    batched, single = aligner.align(photos), [aligner.align([photo])[0] for photo in photos]
    for one, other in zip(batched, single, strict=True):
        assert isinstance(one, AlignedFace)
        assert isinstance(other, AlignedFace)
        np.testing.assert_allclose(one.face.landmarks, other.face.landmarks, atol=0.01)


@real_data
def test_a_face_too_small_for_the_crop_is_rejected() -> None:
    torch.set_num_threads(1)
    photo = np.array(Image.fromarray(wild_photos(1)[0]).resize((60, 60)))
    canvas = np.full((200, 200, 3), 90, np.uint8)
    canvas[70:130, 70:130] = photo
    result = FaceAligner(512).align([canvas])[0]
    assert isinstance(result, Rejected)
    assert result.reason == "face too small"


def test_largest_and_most_central_rules() -> None:
    large_off_centre, small_central = face(0, 0, 60, 60), face(90, 90, 110, 110)
    assert choose_face([large_off_centre, small_central], 200, 200, "largest") is large_off_centre
    assert choose_face([large_off_centre, small_central], 200, 200, "most-central") is small_central


def test_overlap_of_boxes() -> None:
    assert overlap((0, 0, 2, 2), (0, 0, 2, 2)) == 1
    assert overlap((0, 0, 2, 2), (1, 0, 3, 2)) == pytest.approx(1 / 3)
    assert overlap((0, 0, 2, 2), (3, 0, 4, 2)) == 0
    assert overlap((1, 1, 1, 1), (1, 1, 1, 1)) == 0


def test_landmark_aligner_crops_without_detection() -> None:
    points = template(60) + np.array([40, 20])
    image = spot(200, 120, *points[2], 4)
    hints = [
        Hint(landmarks=tuple(map(tuple, points.tolist()))),
        Hint(),
        Hint(landmarks=((5.0, 5.0),) * 5),
        Hint(landmarks=((float("nan"), 5.0), *((x, x) for x in range(4)))),
        Hint(landmarks=tuple(map(tuple, (points / 20).tolist()))),
    ]
    results = LandmarkAligner(112).align([image] * 5, hints)
    assert isinstance(results[0], AlignedFace)
    np.testing.assert_allclose(centre_of_brightness(results[0].image), template(112)[2], atol=0.5)
    np.testing.assert_allclose(results[0].face.box, (39.5, 19.5, 99.5, 79.5), atol=0.5)
    reasons = [result.reason for result in results[1:] if isinstance(result, Rejected)]
    assert reasons == ["no landmarks", "invalid landmarks", "invalid landmarks", "face too small"]


@pytest.mark.parametrize(("shift", "is_cropped"), [((-12, 0), True), ((-20, 0), False), ((600, 400), False)])
def test_at_most_one_listed_landmark_may_be_outside_the_photo(shift: tuple[int, int], is_cropped: bool) -> None:
    """Those of a photo at another resolution would give a black crop."""
    points = template(60) + np.array([-10, 20]) + np.array(shift)
    hint = Hint(landmarks=tuple(map(tuple, points.tolist())))
    result = LandmarkAligner(60).align([np.full((120, 200, 3), 90, np.uint8)], [hint])[0]
    assert isinstance(result, AlignedFace) == is_cropped, points
    if isinstance(result, Rejected):
        assert result.reason == "landmarks outside the photo"
        assert result.detail.endswith("of 5 landmarks, in a photo of 200 x 120 px")


def test_the_square_around_a_listed_box() -> None:
    image = np.random.default_rng(0).integers(0, 256, (100, 160, 3), np.uint8)
    exact = crop_listed_box(image, (90, 10, 130, 50), 40)
    assert isinstance(exact, AlignedFace)
    np.testing.assert_array_equal(exact.image, image[10:50, 90:130])
    assert exact.face.box == (90, 10, 130, 50)
    assert exact.face.landmarks.shape == (0, 2)
    halved = crop_listed_box(image, (90, 20, 130, 40), 20)  # the longer side counts
    assert isinstance(halved, AlignedFace)
    means = image[10:50, 90:130].reshape(20, 2, 20, 2, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(halved.image, means, atol=1)
    across_the_edge = crop_listed_box(image, (-10, 0, 30, 40), 40)
    assert isinstance(across_the_edge, AlignedFace)
    np.testing.assert_array_equal(across_the_edge.image[:, 10:], image[:40, :30])
    assert not across_the_edge.image[:, :10].any()
    reasons = [crop_listed_box(image, box, 40) for box in ((161, 0, 181, 20), (0, 0, 9, 9))]
    assert [one.reason for one in reasons if isinstance(one, Rejected)] == [
        "face box outside the photo",
        "face too small",
    ]


@real_data
def test_a_given_box_selects_the_face() -> None:
    """Two faces side by side: the box decides, whatever the rule; a box next to both selects none."""
    torch.set_num_threads(1)
    left, right = wild_photos(2)
    both = np.concatenate([left, right], axis=1)
    aligner = FaceAligner(112)
    faces = aligner.detect([both])[0]
    assert len(faces) >= 2
    halves = [
        max((one for one in faces if (one.box[0] < 350) == first), key=lambda one: one.box[2]) for first in (1, 0)
    ]
    hints = [Hint(box=one.box) for one in halves] + [Hint(box=(340, 0, 360, 10))]
    results = aligner.align([both] * 3, hints)
    for result, expected in zip(results[:2], halves, strict=True):
        assert isinstance(result, AlignedFace)
        assert overlap(result.face.box, expected.box) > 0.9
    assert isinstance(results[2], Rejected)
    assert results[2].reason == "no face at the given box"
    results = FaceAligner(112, skip_multiple=True).align([both, left])
    assert isinstance(results[0], Rejected)
    assert results[0].reason == "multiple faces"


@real_data
def test_searching_large_faces_first_selects_the_same_face() -> None:
    torch.set_num_threads(1)
    photos = wild_photos(24)
    small = np.full((400, 500, 3), 120, np.uint8)
    small[150:220, 100:170] = np.array(Image.fromarray(photos[0]).resize((70, 70)))
    photos.append(small)
    aligner = FaceAligner(112)
    results, detected = aligner.align(photos), aligner.detect(photos)
    for photo, result, faces in zip(photos, results, detected, strict=True):
        if not faces:
            continue
        assert isinstance(result, AlignedFace)
        expected = choose_face(faces, photo.shape[1], photo.shape[0])
        eyes = np.linalg.norm(expected.landmarks[0] - expected.landmarks[1])
        assert overlap(result.face.box, expected.box) > 0.6
        assert np.linalg.norm(result.face.landmarks - expected.landmarks, axis=1).mean() < 0.25 * eyes
