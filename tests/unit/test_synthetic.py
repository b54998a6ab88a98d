"""Synthetic faces: images do not depend on how they are requested, and action units have the effects that FACS says.

Legend: n faces, h w pixels.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from pfcluster.data.labels import CANONICAL
from pfcluster.data.synthetic import facs
from pfcluster.data.synthetic.contact_sheet import contact_sheet, studio_portraits
from pfcluster.data.synthetic.dataset import SyntheticFaces
from pfcluster.data.synthetic.faces import Faces, concatenate
from pfcluster.data.synthetic.renderer import render


def studio(identities: int = 8, **units: float) -> Faces:
    """Studio portraits without hair, glasses, beard or wrinkles, with the given action units (`au12=1.0`)."""
    faces = studio_portraits(SyntheticFaces(identities, seed=4).faces(range(identities))).neutral_twin()
    for name in ("glasses", "hair_amount", "beard", "age"):
        faces = faces.with_parameter(name, -0.2)
    for name, intensity in units.items():
        faces.action_units[:, facs.column(int(name.removeprefix("au")))] = intensity
    return faces


def change(size: int = 96, **units: float) -> Tensor:
    """Mean absolute difference from the neutral faces: h w, in grey values."""
    faces = studio(**units)
    return (render(faces, size).float() - render(faces.neutral_twin(), size).float()).abs().mean((0, 1))


def rows_of(region: str, size: int = 96) -> slice:
    """The image rows of a studio portrait's upper or lower face."""
    start, end = {"upper": (0.0, 0.56), "lower": (0.56, 1.0)}[region]
    return slice(int(start * size), int(end * size))


@pytest.fixture(scope="module")
def dataset() -> SyntheticFaces:
    return SyntheticFaces(200, size=48, seed=7)


def test_images_do_not_depend_on_the_requested_indices(dataset: SyntheticFaces) -> None:
    all_images = dataset.images()
    for indices in ([0], [199], [3, 150, 3], list(range(17, 93)), list(reversed(range(200)))):
        assert torch.equal(dataset.images(indices), all_images[indices])


def test_samples_do_not_depend_on_the_size_of_the_dataset(dataset: SyntheticFaces) -> None:
    longer = SyntheticFaces(400, size=48, seed=7)
    assert torch.equal(longer.images(range(30)), dataset.images(range(30)))
    assert torch.equal(longer.labels()[:200], dataset.labels())
    assert torch.equal(longer.identities()[:200], dataset.identities())


def test_first_index_continues_the_sequence(dataset: SyntheticFaces) -> None:
    tail = SyntheticFaces(50, size=48, seed=7, first_index=150)
    assert torch.equal(tail.images(), dataset.images(range(150, 200)))
    assert torch.equal(tail.votes(), dataset.votes()[150:])


def test_another_seed_gives_other_faces(dataset: SyntheticFaces) -> None:
    other = SyntheticFaces(200, size=48, seed=8)
    assert not torch.equal(other.images([0]), dataset.images([0]))
    assert not torch.equal(other.identities(), dataset.identities())


def test_images_do_not_depend_on_the_number_of_threads(dataset: SyntheticFaces) -> None:
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        single_threaded = dataset.images(range(70))
        torch.set_num_threads(2)
        assert torch.equal(dataset.images(range(70)), single_threaded)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("size", [32, 48, 65, 96, 224])
def test_images_have_the_requested_size(size: int) -> None:
    images = SyntheticFaces(2, size=size).images()
    assert images.shape == (2, 3, size, size)
    assert images.dtype == torch.uint8
    assert images.float().std() > 20


def test_images_of_two_sizes_agree_after_downsampling(dataset: SyntheticFaces) -> None:
    faces = dataset.faces(range(24)).with_parameter("noise", -1.0)
    small = render(faces, 48).float()
    shrunk = torch.nn.functional.avg_pool2d(render(faces, 192).float(), 4)
    assert (small - shrunk).abs().mean() < 4
    other = shrunk.roll(1, 0)
    assert (small - shrunk).square().mean() < 0.02 * (small - other).square().mean()


def test_neutral_twin_differs_in_action_units_only(dataset: SyntheticFaces) -> None:
    faces = dataset.faces(range(60))
    twin = faces.neutral_twin()
    assert torch.equal(twin.identity, faces.identity)
    assert torch.equal(twin.nuisance, faces.nuisance)
    assert twin.action_units.count_nonzero() == 0
    assert torch.equal(dataset.poker_faces(range(60)), render(twin, 48))


def test_faces_without_action_units_equal_their_twins(dataset: SyntheticFaces) -> None:
    still = dataset.action_units(range(200)).flatten(1).amax(1) == 0
    assert still.any()
    rows = still.nonzero().flatten()
    assert torch.equal(dataset.images(rows), dataset.poker_faces(rows))
    assert set(dataset.true_labels()[still].tolist()) == {CANONICAL.index("neutral")}


def test_neutral_faces_have_weak_action_units_and_others_strong_ones(dataset: SyntheticFaces) -> None:
    strongest = dataset.action_units(range(200)).flatten(1).amax(1)
    neutral = dataset.true_labels() == CANONICAL.index("neutral")
    assert strongest[neutral].max() < 0.2
    assert strongest[~neutral].min() > 0.2


def test_expressions_change_the_face_and_not_the_background() -> None:
    faces = studio_portraits(SyntheticFaces(40, seed=1).faces(range(40)))
    moved = (render(faces, 64).float() - render(faces.neutral_twin(), 64).float()).abs().mean((0, 1))
    assert moved[:, :4].max() == 0
    assert moved[:, -4:].max() == 0
    assert moved[36:56, 20:44].mean() > 10 * moved[:8].mean()
    assert moved[36:56, 20:44].mean() > 2


@pytest.mark.parametrize("unit", facs.ACTION_UNITS)
def test_every_action_unit_is_visible(unit: int) -> None:
    assert change(48, **{f"au{unit}": 1.0}).max() > 8


@pytest.mark.parametrize(
    ("unit", "region"),
    [(1, "upper"), (2, "upper"), (4, "upper"), (5, "upper")] + [(n, "lower") for n in (15, 20, 25, 26)],
)
def test_action_units_change_their_region_only(unit: int, region: str) -> None:
    moved = change(**{f"au{unit}": 1.0})
    elsewhere = rows_of("lower" if region == "upper" else "upper")
    assert moved[rows_of(region)].mean() > 0.2
    assert moved[elsewhere].max() < 0.02 * moved.max()


def mouth_line_height(faces: Faces, across: float, size: int = 192) -> Tensor:
    """Row of the darkest pixel of the mouth in the column at x = `across`: n, in pixels."""
    column = int((1 + across) / 2 * size)
    rows = slice(int(0.62 * size), int(0.88 * size))
    return render(faces, size).float().mean(1)[:, rows, column].argmin(1).float()


def test_lip_corners_rise_with_12_and_sink_with_15() -> None:
    corner = 0.17
    rest = mouth_line_height(studio(), corner)
    assert (mouth_line_height(studio(au12=1.0), corner) < rest).all()
    assert (mouth_line_height(studio(au15=1.0), corner) > rest).all()


def test_jaw_drop_opens_a_dark_mouth() -> None:
    def darkness(faces: Faces) -> Tensor:
        return (render(faces, 96).float().amax(1)[:, 60:92, 36:60] < 60).float().mean((1, 2))

    assert (darkness(studio(au26=1.0)) > darkness(studio()) + 0.02).all()


def test_upper_lid_raiser_increases_the_visible_white_of_the_eyes() -> None:
    def white(faces: Faces) -> Tensor:
        return (render(faces, 96).float().amin(1)[:, 32:52] > 150).float().mean((1, 2))

    dark_skin = {"skin_tone": 0.8}
    rest, wide = studio(), studio(au5=1.0)
    for name, value in dark_skin.items():
        rest, wide = rest.with_parameter(name, value), wide.with_parameter(name, value)
    assert (white(wide) > white(rest)).all()


def test_action_unit_on_one_side_does_not_change_the_other_side() -> None:
    faces = studio()
    faces.action_units[:, facs.column(2), 1] = 1.0
    moved = (render(faces, 96).float() - render(faces.neutral_twin(), 96).float()).abs().mean((0, 1))
    assert moved[:, 56:].max() > 10
    assert moved[:, :40].max() == 0


def test_contempt_is_unilateral_and_other_expressions_are_not() -> None:
    emotions = torch.arange(8).repeat_interleave(50)
    units = facs.intensities(emotions, torch.rand(400, facs.UNIFORMS, generator=torch.Generator().manual_seed(0)))
    lip_pull = units[:, facs.column(12)]
    contempt, happiness = CANONICAL.index("contempt"), CANONICAL.index("happiness")
    sides = lip_pull[emotions == contempt]
    assert (sides.amin(1) < 0.25).all()
    assert (sides.amax(1) > 0.15).all()
    assert (sides.argmax(1) == 0).any()
    assert (sides.argmax(1) == 1).any()
    even = lip_pull[emotions == happiness]
    assert ((even.amin(1) / even.amax(1)) > 0.7).all()


@pytest.mark.parametrize("emotion", CANONICAL[1:])
def test_core_units_are_always_active(emotion: str) -> None:
    emotions = torch.full((100,), CANONICAL.index(emotion))
    units = facs.intensities(emotions, torch.rand(100, facs.UNIFORMS, generator=torch.Generator().manual_seed(1)))
    recipe = facs.recipe(emotion)
    for unit in recipe.core:
        assert (units[:, facs.column(unit)].amax(1) > 0.15).all()
    for unit in recipe.secondary:
        assert (units[:, facs.column(unit)].amax(1) > 0.25).float().mean() < 1
    assert units.min() >= 0
    assert units.max() <= 1


def test_identity_parameters_depend_on_the_identity_number_alone() -> None:
    one, other = SyntheticFaces(300, identities=5, seed=1), SyntheticFaces(300, identities=5, seed=2, first_index=99)
    looks: dict[int, Tensor] = {}
    for part in (one, other):
        for number, row in zip(part.identities().tolist(), part.faces(range(300)).identity, strict=True):
            assert torch.equal(looks.setdefault(number, row), row)
    assert set(looks) == set(range(5))


def test_first_identity_gives_disjoint_identities() -> None:
    train = SyntheticFaces(500, identities=100)
    test = SyntheticFaces(500, identities=50, first_identity=100)
    assert set(train.identities().tolist()) <= set(range(100))
    assert set(test.identities().tolist()) <= set(range(100, 150))


def test_identity_and_expression_are_independent() -> None:
    faces = SyntheticFaces(8000, identities=4)
    for person in range(4):
        counts = torch.bincount(faces.true_labels()[faces.identities() == person], minlength=8).float()
        assert counts.min() > 0.8 * counts.mean()


@pytest.mark.parametrize(("imbalance", "classes"), [(1.0, CANONICAL), (10.0, CANONICAL), (4.0, CANONICAL[1:4])])
def test_imbalance_is_the_ratio_of_first_to_last_class(imbalance: float, classes: tuple[str, ...]) -> None:
    faces = SyntheticFaces(4000, imbalance=imbalance, classes=classes)
    counts = torch.bincount(faces.true_labels(), minlength=len(classes)).double()
    decay = counts[1:] / counts[:-1]
    assert counts[0] / counts[-1] == pytest.approx(imbalance, rel=0.05)
    assert decay.numpy() == pytest.approx(np.full(len(classes) - 1, imbalance ** (-1 / (len(classes) - 1))), rel=0.05)


def test_a_subset_of_classes_has_their_expressions_only() -> None:
    faces = SyntheticFaces(60, classes=("anger", "neutral"))
    lowered = faces.action_units(range(60))[:, facs.column(4)].amax(1)
    assert set(faces.labels().tolist()) == {0, 1}
    assert lowered[faces.labels() == 0].min() > lowered[faces.labels() == 1].max()


def test_without_label_noise_all_annotators_are_right() -> None:
    faces = SyntheticFaces(100, annotators=7)
    assert torch.equal(faces.labels(), faces.true_labels())
    assert torch.equal(faces.votes(), 7 * torch.nn.functional.one_hot(faces.true_labels(), 8))


def test_label_noise_is_the_error_rate_of_annotators_and_the_majority_errs_less() -> None:
    faces = SyntheticFaces(3000, label_noise=0.3, annotators=10)
    votes, truth = faces.votes(), faces.true_labels()
    assert (votes.sum(1) == 10).all()
    right = votes.gather(1, truth[:, None]).double().mean() / 10
    assert right.item() == pytest.approx(0.7, abs=0.01)
    assert torch.equal(faces.labels(), votes.argmax(1))
    assert (faces.labels() == truth).double().mean() > 0.97
    lone = SyntheticFaces(3000, label_noise=0.3, annotators=1)
    assert (lone.labels() == lone.true_labels()).double().mean().item() == pytest.approx(0.7, abs=0.03)
    assert torch.equal(faces.images([5]), lone.images([5]))


def test_label_noise_has_no_effect_with_a_single_class() -> None:
    faces = SyntheticFaces(5, classes=("anger",), label_noise=0.5)
    assert faces.labels().tolist() == [0] * 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"count": 0}, "count must be at least 1, got 0"),
        ({"size": 16}, r"size must lie in 32\.\.224 pixels, got 16"),
        ({"size": 512}, "got 512"),
        ({"classes": ("happy",)}, "classes must be among neutral, .* got 'happy'"),
        ({"classes": ()}, "classes must name at least one"),
        ({"classes": ("fear", "fear")}, "each once"),
        ({"identities": 0}, "identities must be at least 1, got 0"),
        ({"first_identity": -1}, "first_identity must be at least 0, got -1"),
        ({"imbalance": 0.5}, r"imbalance must be at least 1, got 0\.5"),
        ({"imbalance": float("nan")}, "imbalance must be at least 1, got nan"),
        ({"label_noise": 1.0}, r"label_noise must lie in \[0, 1\), got 1\.0"),
        ({"nuisance": -0.1}, r"nuisance must lie in \[0, 1\], got -0\.1"),
        ({"min_intensity": 1.5}, r"min_intensity must lie in \[0, 1\], got 1\.5"),
        ({"annotators": 0}, "annotators must be at least 1, got 0"),
        ({"seed": -3}, "seed must be at least 0, got -3"),
        ({"first_index": -1}, "first_index must be at least 0, got -1"),
    ],
)
def test_invalid_arguments_are_rejected_by_name(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SyntheticFaces(**{"count": 8, **arguments})  # type: ignore[arg-type]


def test_without_nuisance_faces_differ_by_identity_and_expression_only() -> None:
    faces = SyntheticFaces(40, size=48, nuisance=0.0).faces(range(40))
    for name in ("yaw", "roll", "exposure", "background_red"):
        assert faces.parameter(name).unique().numel() == 1, name
    assert all((faces.parameter(name) <= 0).all() for name in ("blur", "noise", "occluder"))
    half, full = (SyntheticFaces(400, size=48, nuisance=share).faces(range(400)) for share in (0.5, 1.0))
    assert half.parameter("yaw").std() == pytest.approx(full.parameter("yaw").std().item() / 2, rel=1e-4)
    assert (half.parameter("blur") > 0).sum() < (full.parameter("blur") > 0).sum()


def test_min_intensity_bounds_the_intensity_of_expressions() -> None:
    faces = SyntheticFaces(300, size=48, classes=("happiness",), min_intensity=0.8)
    smiles = faces.action_units(range(300))[:, facs.column(12)]
    assert (
        smiles.min()
        > 0.8 * facs.SPREAD[0] * 0.9
        > SyntheticFaces(300, size=48, classes=("happiness",)).action_units(range(300))[:, facs.column(12)].min()
    )


def test_invalid_requests_are_rejected_by_name(dataset: SyntheticFaces) -> None:
    with pytest.raises(ValueError, match=r"indices must lie in 0\.\.199, got 200"):
        dataset.images([0, 200])
    with pytest.raises(ValueError, match=r"size must lie in 32\.\.224 pixels, got 31"):
        render(dataset.faces([0]), 31)
    with pytest.raises(ValueError, match=r"action_unit must be one of .* got 3"):
        facs.column(3)
    with pytest.raises(ValueError, match=r"emotion must be one of .* got 'joy'"):
        facs.recipe("joy")
    with pytest.raises(ValueError, match=r"name must be a parameter .* got 'whiskers'"):
        dataset.faces([0]).parameter("whiskers")


def test_faces_can_be_sliced_and_concatenated(dataset: SyntheticFaces) -> None:
    faces = dataset.faces(range(10))
    joined = concatenate([faces[slice(6, 10)], faces[slice(0, 6)]])
    assert len(joined) == 10
    assert torch.equal(render(joined, 32), render(faces, 32).roll(4, 0))


def test_empty_indices_give_no_images(dataset: SyntheticFaces) -> None:
    assert dataset.images([]).shape == (0, 3, 48, 48)


def test_contact_sheet_is_an_image(tmp_path) -> None:
    path = tmp_path / "sheet.png"
    contact_sheet(path, size=32, identities=2, sample_rows=1)
    with Image.open(path) as sheet:
        assert sheet.width == 9 * 32
        assert sheet.height > 3 * 32
