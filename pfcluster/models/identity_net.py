"""The identity net φ: a frozen feature extractor for L_ort, and for measuring the identity that poker faces keep.

The paper uses facenet-pytorch's InceptionResnetV1 trained on VGGFace2, and in an ablation timm's ResNet-50 trained on
ImageNet. An identity classifier trained with pfcluster can replace them if neither is available.

Legend: b images, f features.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from pfcluster.models.cnn import SmallCNN
from pfcluster.models.vit import Classifier
from pfcluster.models.weight_files import WeightsError, read_weights

Layer = Literal["feature_map", "embedding"]
FACENET_FILE = "20180402-114759-vggface2.pt"
FACENET_URL = f"https://github.com/timesler/facenet-pytorch/releases/download/v2.2.9/{FACENET_FILE}"
RESNET = "resnet50.a1_in1k"
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class IdentityNetError(ValueError):
    """The identity net cannot be loaded. The message names what was tried, and alternatives."""


class IdentityNet(nn.Module, ABC):
    """A frozen net that maps images in -1..1 to features: the flattened last feature map, or the embedding."""

    size: int
    """Side of the net's square input in pixels."""

    def __init__(self, net: nn.Module, layer: Layer = "feature_map") -> None:
        super().__init__()
        self.layer = layer
        self.net = net.eval().requires_grad_(False).to(memory_format=torch.channels_last)

    def train(self, mode: bool = True) -> IdentityNet:
        """Stay in evaluation mode when a parent module switches modes."""
        return super().train(False)

    def forward(self, images: Tensor) -> Tensor:
        """b 3 h w in -1..1 -> features b f, not normalised."""
        if images.shape[-1] != self.size:
            reduces = images.shape[-1] > self.size
            images = functional.interpolate(
                images, size=self.size, mode="bilinear", align_corners=False, antialias=reduces
            )
        return self.features(images.contiguous(memory_format=torch.channels_last)).flatten(1)

    @abstractmethod
    def features(self, images: Tensor) -> Tensor:
        """b 3 size size in -1..1 -> features of any shape, batch first."""


class FaceNet(IdentityNet):
    """InceptionResnetV1, trained on (pixel - 127.5) / 128; the embedding is 512-d with norm 1."""

    size = 160

    def features(self, images: Tensor) -> Tensor:
        faces = images * (127.5 / 128)
        if self.layer == "embedding":
            return self.net(faces)
        for name, child in self.net.named_children():
            if name == "avgpool_1a":
                break
            faces = child(faces)
        return faces


class ImageNetResNet(IdentityNet):
    """timm's ResNet-50 trained on ImageNet; the embedding is the 2048-d mean over positions."""

    size = 224

    def __init__(self, net: nn.Module, layer: Layer = "feature_map") -> None:
        super().__init__(net, layer)
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(3, 1, 1), persistent=False)

    def features(self, images: Tensor) -> Tensor:
        features = self.net.forward_features(((images + 1) / 2 - self.mean) / self.std)  # type: ignore[operator]
        return features.mean((2, 3)) if self.layer == "embedding" else features


class ClassifierFeatures(IdentityNet):
    """A classifier trained with pfcluster: its feature map or tokens; the embedding is the input of its head."""

    def __init__(self, net: nn.Module, size: int, layer: Layer = "feature_map") -> None:
        super().__init__(net, layer)
        self.size = size

    def features(self, images: Tensor) -> Tensor:
        if isinstance(self.net, SmallCNN):
            features = self.net.features(images)
            return features.mean((2, 3)) if self.layer == "embedding" else features
        assert isinstance(self.net, Classifier)
        tokens = self.net.encoder(images)
        return tokens[:, 0] if self.layer == "embedding" else tokens


def facenet(layer: Layer) -> FaceNet:
    """The paper's φ, without weights."""
    from facenet_pytorch import InceptionResnetV1

    return FaceNet(InceptionResnetV1(pretrained=None, classify=False), layer)


def resnet(layer: Layer) -> ImageNetResNet:
    """The φ of the paper's ablation, without weights."""
    import timm

    return ImageNetResNet(timm.create_model("resnet50", pretrained=False, num_classes=0), layer)


def find_weights(kind: Literal["facenet", "resnet"], local: str | None) -> Path | None:
    """The file of φ's weights: `local`, or facenet-pytorch's download; None for timm's, which are in its hub's cache.

    With several processes call it on one first, because the download takes no lock. Raises IdentityNetError.
    """
    options = (
        "pass the file with --pf-mag.identity-net-weights FILE (reproduce: --identity-net-weights, --resnet-weights),"
        " or use no net with --pf-mag.identity-net tokens (the paper's ablation: the cosine of the tokens)"
    )
    if local is not None:
        if not Path(local).is_file():
            raise IdentityNetError(f"pf_mag.identity_net_weights: no file {local}; {options}")
        return Path(local)
    if kind == "resnet":
        _timm_state(options)
        return None
    cached = Path(torch.hub.get_dir()).parent / "checkpoints" / FACENET_FILE
    if str(cached).startswith("~"):
        raise IdentityNetError(f"HOME is not set, so the identity net has no folder: set TORCH_HOME; {options}")
    if cached.is_file():
        return cached
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(FACENET_URL, str(cached), progress=False)
    except OSError as error:
        raise IdentityNetError(f"cannot download the identity net from {FACENET_URL}: {error}; {options}") from error
    return cached


def load_weights(net: IdentityNet, weights: Path | None) -> None:
    """Load φ's weights from a file in its library's layout, or with None from timm's hub. Raises IdentityNetError."""
    try:
        state = _timm_state("") if weights is None else read_weights(weights, "pf_mag.identity_net_weights").tensors
    except WeightsError as error:
        raise IdentityNetError(str(error)) from error
    kind = "InceptionResnetV1" if isinstance(net, FaceNet) else "ResNet-50"
    net.net.load_state_dict(_matching(state, net.net.state_dict(), f"{weights} holds no weights of {kind}"))


def _matching(state: dict[str, Tensor], expected: dict[str, Tensor], problem: str) -> dict[str, Tensor]:
    """The expected weights, from a state dict with any prefix and other weights. Raises IdentityNetError."""
    first = next(iter(expected))
    prefixes = [name.removesuffix(first) for name in state if name == first or name.endswith(f".{first}")]
    if not prefixes:
        raise IdentityNetError(f"pf_mag.identity_net_weights: {problem}: it has no {first}; use its library's file")
    matching = {name: state.get(min(prefixes, key=len) + name) for name in expected}
    for name, value in expected.items():
        found = matching[name]
        if found is None and name.endswith("num_batches_tracked"):
            matching[name] = value
        elif found is None or found.shape != value.shape or found.is_complex():
            shape = "is missing" if found is None else f"has shape {tuple(found.shape)}, not {tuple(value.shape)}"
            raise IdentityNetError(f"pf_mag.identity_net_weights: {problem}: {name} {shape}; use its library's file")
        elif not torch.isfinite(found).all():
            raise IdentityNetError(f"pf_mag.identity_net_weights: {problem}: {name} is not finite; download it again")
    return {name: value for name, value in matching.items() if value is not None}


def _timm_state(options: str) -> dict[str, Tensor]:
    import timm

    try:
        return timm.create_model(RESNET, pretrained=True, num_classes=0).state_dict()
    except Exception as error:  # the hub's errors have no common base class
        raise IdentityNetError(f"cannot download timm:{RESNET}: {error}; {options}") from error
