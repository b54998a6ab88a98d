"""Attention maps, embeddings, failures, and the page that shows them."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from pfcluster.cli.main import main
from pfcluster.evaluate import embedding, figures
from pfcluster.evaluate.attention import attention_maps, grad_cam_plus_plus, min_max_scale, overlay
from pfcluster.evaluate.failures import draw_failures
from pfcluster.evaluate.run_comparison import PicturesError, draw_faces, open_runs, run_labels
from pfcluster.models import factory
from pfcluster.models.vit import Classifier, ViT
from pfcluster.report.gallery import write_pictures
from pfcluster.report.write import write_report
from pfcluster.training import run
from tests.tiny import DATA, config


def test_grad_cam_plus_plus_equals_hand_computed_map():
    activations = torch.tensor([[[1.0, 2.0], [3.0, 5.0]]])  # b n d: two patches, two channels
    gradients = torch.tensor([[[0.5, -1.0], [0.0, -2.0]]])  # channel 2 has negative gradients
    weight = 0.5 / (2 + 0.5 * (1 + 3))
    assert torch.allclose(grad_cam_plus_plus(activations, gradients), torch.tensor([[weight * 1, weight * 3]]))


def test_grad_cam_plus_plus_equals_derivatives_by_autograd():
    """With S = Σ g A and Y = exp(S), autograd computes the first three derivatives."""
    gradients = torch.tensor([0.3, -0.2, 0.7], dtype=torch.float64)
    activations = torch.tensor([0.4, 1.1, 0.2], dtype=torch.float64, requires_grad=True)
    score = torch.exp(gradients @ activations)
    (first,) = torch.autograd.grad(score, activations, create_graph=True)
    second = torch.stack(
        [torch.autograd.grad(one, activations, create_graph=True)[0][i] for i, one in enumerate(first)]
    )
    third = torch.stack(
        [torch.autograd.grad(one, activations, retain_graph=True)[0][i] for i, one in enumerate(second)]
    )
    alpha = second / (2 * second + activations.sum() * third)
    expected = (alpha * first.relu()).sum() * activations
    maps = grad_cam_plus_plus(activations.detach().view(1, 3, 1), gradients.view(1, 3, 1))
    assert torch.allclose(maps[0] * score, expected)


def test_grad_cam_plus_plus_bounds_weights_near_the_pole():
    """g ΣA = -2 + 1e-6 in the first channel: the paper's weight would be a million."""
    activations = torch.tensor([[[-4.0, 1.0], [2.000001, 1.0]]])
    assert grad_cam_plus_plus(activations, torch.ones_like(activations)).max() < 10


class LinearModel(nn.Module):
    """Logit k is the sum of channel k over the patches, a 4 x 4 grid of mean colours."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Module()
        block = nn.Module()
        block.norm1 = nn.Identity()
        self.encoder.blocks = nn.ModuleList([block])

    def forward(self, images):
        patches = nn.functional.avg_pool2d(images, images.shape[-1] // 4).flatten(2).transpose(1, 2)
        tokens = torch.cat([torch.full_like(patches[:, :1], 9), patches], dim=1)
        return self.encoder.blocks[-1].norm1(tokens)[:, 1:].sum(1)


def test_attention_map_of_linear_model_is_channel_of_predicted_class():
    images = torch.zeros(2, 3, 16, 16)
    images[0, 1, 4:8, 8:12] = 1.0  # class 1, by patch (1, 2)
    images[0, 0, 12:, :4] = 0.9
    images[1, 2] = torch.linspace(0, 1, 16)  # class 2, more to the right
    maps, logits = attention_maps(LinearModel(), images)
    assert logits.argmax(1).tolist() == [1, 2]
    assert maps.shape == (2, 16, 16)
    assert maps[0, 5:7, 9:11].min() > 0.5
    assert maps[0, 12:].max() == 0  # the other class's evidence
    assert (maps[1].diff(dim=1) >= 0).all()
    assert maps[1, :, :2].max() == 0


def bright_patch_counter() -> Classifier:
    """A ViT whose logit of class 1 is brightness: channel 0 of a token is its patch's mean, and the class token attends
    uniformly to channel 0 of all tokens.
    """
    torch.manual_seed(0)
    model = Classifier(ViT(size=32, patch=8, width=8, depth=1, heads=1), width=8, classes=2)
    block = model.encoder.blocks[0]
    with torch.no_grad():
        model.encoder.patch_embed.weight[0] = 1 / 64
        for layer in (block.attn.qkv, block.attn.proj, block.mlp.fc2, model.head):
            layer.weight.zero_()
        block.attn.qkv.weight[16, 0] = 1.0  # value 0 of channel 0; no query and no key
        block.attn.proj.weight[0, 0] = 1.0
        model.head.weight[1, 0] = 1.0
        model.head.bias[0] = -10.0
    return model.eval()


def test_attention_map_of_vit_peaks_at_the_decisive_patch():
    images = torch.full((2, 3, 32, 32), -0.5)
    images[0, :, 8:16, 24:] = 1.0
    images[1, :, 24:, :8] = 1.0
    maps, logits = attention_maps(bright_patch_counter(), images)
    patches = nn.functional.avg_pool2d(maps.unsqueeze(1), 8).flatten(1)
    assert logits.argmax(1).tolist() == [1, 1]
    assert patches.argmax(1).tolist() == [4 + 3, 12 + 0]


@pytest.mark.parametrize("ratio", [0.25, 0.0])
def test_attention_maps_of_pf_vit_with_and_without_separator(ratio):
    settings = config("pf_mag")
    settings = replace(settings, pf_mag=replace(settings.pf_mag, separator_ratio=ratio))
    model = factory.build(settings, 5)["model"].eval().requires_grad_(False)
    images = torch.rand(3, 3, 32, 32) * 2 - 1
    maps, logits = attention_maps(model, images)
    assert torch.equal(logits.argmax(1), model.classify(images).argmax(1))
    assert maps.shape == (3, 32, 32)
    assert ((maps >= 0) & (maps <= 1)).all()
    assert maps.amax((1, 2)).max() > 0
    assert not any(module._forward_hooks for module in model.modules())


def test_maps_are_scaled_separately_and_constant_maps_become_zero():
    assert min_max_scale(torch.tensor([[1.0, 3.0, 2.0], [4.0, 4.0, 4.0]])).tolist() == [[0, 1, 0.5], [0, 0, 0]]
    pixels = overlay(torch.zeros(1, 3, 2, 2), torch.tensor([[[0.0, 1.0], [0.5, 0.5]]]))
    assert (pixels.shape, pixels.dtype) == ((1, 2, 2, 3), torch.uint8)
    assert pixels[0, 0, 1, 0] > pixels[0, 0, 1, 2]  # turbo maps 1 to red


def test_failures_are_misclassified_samples_in_an_order_shared_by_runs():
    labels = torch.arange(30) % 3
    logits = torch.zeros(30, 3)
    logits[:, 1] = torch.linspace(1, 2, 30)
    failures = draw_failures(logits, labels, 8, seed=0)
    assert len(failures) == 8
    assert all(failure.truth == labels[failure.index] != 1 for failure in failures)
    assert all(failure.top_classes[0][0] == 1 for failure in failures)
    shares = logits.softmax(1)
    assert failures[0].top_classes[0][1] == pytest.approx(shares[failures[0].index, 1].item())
    assert failures == draw_failures(logits, labels, 8, seed=0) != draw_failures(logits, labels, 8, seed=1)
    better = logits.clone()
    better[labels == 0, 0] = 9  # another run that classifies class 0 correctly
    fewer = [failure.index for failure in draw_failures(better, labels, 30, seed=0)]
    assert fewer == [failure.index for failure in draw_failures(logits, labels, 30, seed=0) if failure.truth == 2]


def test_silhouette_is_high_for_separated_and_low_for_mixed_classes():
    labels = torch.arange(40) % 2
    noise = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    separated = embedding.silhouette(noise + 50 * labels.unsqueeze(1), labels)
    mixed = embedding.silhouette(noise, labels)
    assert separated > 0.9 > 0.2 > mixed > -0.2
    assert embedding.silhouette(noise, torch.zeros(40)) is None


def test_tsne_keeps_neighbours_and_is_deterministic():
    labels = torch.arange(60) % 2
    features = torch.randn(60, 6, generator=torch.Generator().manual_seed(0)) + 50 * labels.unsqueeze(1)
    points = embedding.tsne(features, seed=3)
    assert points.shape == (60, 2)
    assert embedding.silhouette(torch.from_numpy(points), labels) > 0.5
    assert np.array_equal(points, embedding.tsne(features, seed=3))


def test_large_split_is_subsampled_by_seed():
    drawn = embedding.draw_points(5000, seed=0)
    assert len(drawn.unique()) == embedding.MAX_POINTS
    assert torch.equal(drawn, embedding.draw_points(5000, seed=0))
    assert embedding.draw_points(30, seed=0).tolist() == list(range(30))


def test_percent_rounds_up_to_100_only_for_certainty():
    assert [figures.percent(share) for share in (1.0, 0.997, 0.991, 0.004)] == ["100 %", "> 99 %", "99 %", "0 %"]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fine-tuned ViT, a PF-ViT, MAE, a judge, a run on other faces and one that has not finished."""
    root = tmp_path_factory.mktemp("study")
    other = replace(DATA, synthetic=replace(DATA.synthetic, seed=DATA.synthetic.seed + 1))
    runs = {
        "scratch": config("finetune", name="scratch"),
        "pf-vit": config("pf_mag", name="pf-vit"),
        "mae": config("mae", name="mae", epochs=1),
        "judge": replace(
            config("finetune", name="judge", epochs=1), model=replace(config("finetune").model, architecture="cnn")
        ),
        "other": config("finetune", name="other", data=other, epochs=1),
    }
    for name, values in runs.items():
        run(values, root / name / "seed-0")
    unfinished = root / "unfinished" / "seed-0"
    unfinished.mkdir(parents=True)
    (unfinished / "config.json").write_bytes((root / "scratch/seed-0/config.json").read_bytes())
    return root


@pytest.mark.slow
def test_pictures_of_several_runs_are_on_a_page_and_in_the_report(study, capsys):
    folders = [study / name / "seed-0" for name in ("scratch", "pf-vit", "mae")]
    assert main(["pictures", *map(str, folders), "--images", "3"]) == 0
    assert f"pictures: {study / 'pictures/index.html'}" in capsys.readouterr().out
    listed = [picture["file"] for picture in json.loads((study / "pictures/pictures.json").read_text())]
    assert listed[:2] == ["attention.png", "tsne.png"]
    assert [name for name in listed if name.startswith("failures")] == [
        "failures-1-scratch-seed-0.png",
        "failures-2-pf-vit-seed-0.png",
    ]
    for name in listed:
        assert (study / "pictures" / name).read_bytes().startswith(b"\x89PNG")
    html = (study / "pictures/index.html").read_text()
    assert html.count("data:image/png") == len(listed) + 3  # and the grids that PF-ViT (two) and MAE wrote
    assert "<svg" in html
    assert "http://" not in html + "https://"
    report = write_report(study).html.read_text()
    assert "Grad-CAM++ of the predicted class; test faces drawn with seed 0" in report
    first = (study / "pictures/tsne.png").read_bytes()
    write_pictures(folders, study / "pictures", images=3)
    assert (study / "pictures/tsne.png").read_bytes() == first


def test_umap_is_drawn_if_installed(study, tmp_path, monkeypatch):
    class UMAP:
        def __init__(self, **options: object) -> None:
            pass

        def fit_transform(self, points):
            return points[:, :2]

    monkeypatch.setitem(sys.modules, "umap", SimpleNamespace(UMAP=UMAP))
    monkeypatch.setattr(embedding, "has_umap", lambda: True)
    files = write_pictures([study / "scratch/seed-0"], tmp_path, images=2, split="validation")
    assert "umap.png" in [picture.file for picture in files.pictures]
    assert not any("UMAP" in note for note in files.notes)
    monkeypatch.setattr(embedding, "has_umap", lambda: False)
    assert embedding.UMAP_MISSING in write_pictures([study / "scratch/seed-0"], tmp_path, images=2).notes


def test_drawn_faces_depend_on_the_seed_and_not_on_the_run(study):
    first, second = open_runs([study / name / "seed-0" for name in ("scratch", "pf-vit")])
    assert draw_faces(first, 6, seed=1).tolist() == draw_faces(second, 6, seed=1).tolist()
    assert draw_faces(first, 6, seed=1).tolist() != draw_faces(first, 6, seed=2).tolist()
    assert len(first.split.labels()[draw_faces(first, len(first.classes), seed=1)].unique()) == len(first.classes)


@pytest.mark.parametrize(
    ("names", "why"),
    [
        (["scratch/seed-0", "other/seed-0"], "have different faces.*draw the pictures of each separately"),
        (["unfinished/seed-0"], "has not finished"),
        (["mae/seed-0"], "no classifier was given"),
        (["judge/seed-0"], r"is a CNN \(a judge\)"),
        (["scratch"], "pass the folder of one run, such as .*scratch/seed-0"),
        (["nothing"], "is not a run"),
    ],
)
def test_runs_that_cannot_be_drawn_raise(study, tmp_path, names, why):
    with pytest.raises(PicturesError, match=why):
        write_pictures([study / name for name in names], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_runs_are_labelled_by_name_and_seed_or_by_folder_if_shared():
    scratch, other = config("finetune", name="scratch"), config("finetune", name="mae-vit")
    configs = {Path("runs/a/seed-0"): scratch, Path("runs/b/seed-0"): scratch, Path("runs/c"): other}
    assert run_labels(configs) == ["a/seed-0", "b/seed-0", f"mae-vit, seed {other.seed}"]


def test_open_runs_rejects_mae(study):
    with pytest.raises(PicturesError, match="MAE pre-training, which has no classifier"):
        open_runs([study / "mae/seed-0"])
