"""φ, the frozen face-recognition net of L_ort: InceptionResnetV1 trained on VGGFace2, through facenet-pytorch.

Legend: b images, f features.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

INPUT_SIZE = 160
FILE_NAME = "20180402-114759-vggface2.pt"


class RecognitionError(ValueError):
    """The recognition net cannot be had: says what was tried and what would do."""


class Recognition(nn.Module):
    """Features of faces by a net that knows identities, not expressions. Takes images in -1..1, no gradients of its
    own.
    """

    def __init__(self, net: nn.Module, layer: Literal["feature_map", "embedding"] = "feature_map") -> None:
        super().__init__()
        self.layer = layer
        self.net = net.eval().requires_grad_(False).to(memory_format=torch.channels_last)

    def train(self, mode: bool = True) -> Recognition:
        """Stays in evaluation mode whatever the modules around it do."""
        return super().train(False)

    def forward(self, images: Tensor) -> Tensor:
        """b 3 h w in -1..1 -> features b f, not normalised: the last map before pooling, or the 512-d unit embedding.

        The net was trained on (pixel - 127.5) / 128, which is 0.996 of our range.
        """
        faces = functional.interpolate(images, size=INPUT_SIZE, mode="bilinear", align_corners=False)
        faces = (faces * (127.5 / 128)).contiguous(memory_format=torch.channels_last)
        if self.layer == "embedding":
            return self.net(faces)
        for name, child in self.net.named_children():
            if name == "avgpool_1a":
                break
            faces = child(faces)
        return faces.flatten(1)


def find_weights(local: str | None) -> Path:
    """The file of φ's weights: the given one, or facenet-pytorch's own download where it is or can be had.

    Under several processes let one call this first: the download takes no lock. Raises RecognitionError.
    """
    options = (
        "give the file with --pf-mag.recognition-weights FILE, or leave the net out with"
        " --pf-mag.recognition none (the paper's ablation: the cosine of the tokens)"
    )
    if local is not None:
        if not Path(local).is_file():
            raise RecognitionError(f"pf_mag.recognition_weights: no file {local}; {options}")
        return Path(local)
    home = Path(os.environ.get("TORCH_HOME", Path.home() / ".cache" / "torch"))
    cached = home / "checkpoints" / FILE_NAME
    if cached.is_file():
        return cached
    url = f"https://github.com/timesler/facenet-pytorch/releases/download/v2.2.9/{FILE_NAME}"
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(cached), progress=False)
    except OSError as error:
        raise RecognitionError(f"cannot download the recognition net from {url}: {error}; {options}") from error
    return cached


def load_net(weights: Path) -> nn.Module:
    """InceptionResnetV1 with the weights of a file. Raises RecognitionError."""
    from facenet_pytorch import InceptionResnetV1

    net = InceptionResnetV1(pretrained=None, classify=False)
    try:
        state = torch.load(weights, map_location="cpu", weights_only=True)
        state = {name: value for name, value in state.items() if not name.startswith("logits.")}
        net.load_state_dict(state)
    except (OSError, RuntimeError, AttributeError, ValueError) as error:
        raise RecognitionError(f"{weights} holds no weights of InceptionResnetV1: {error}") from error
    return net
