"""PyTorch as runtime of a model: builds the net that a model's config describes, and computes with it.

Legend as in predictor.py.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pfcluster.config import ConfigError, DataConfig, ModelConfig, PfMagConfig, RunConfig
from pfcluster.data import transforms
from pfcluster.engine.precision import autocast
from pfcluster.evaluate.attention import attention_maps
from pfcluster.evaluate.classification import logits_function
from pfcluster.inference.errors import InferenceError, NoGeneratorError
from pfcluster.inference.model_info import EncoderInfo, GeneratorInfo, ModelInfo, NetworkInfo
from pfcluster.models import factory
from pfcluster.models.cnn import SmallCNN
from pfcluster.models.pf_vit import PFViT
from pfcluster.models.vit import Classifier


def network_info(config: RunConfig) -> NetworkInfo:
    """The net of a run's config, fine-tuning or PF-MAG."""
    model, pf_mag = config.model, config.pf_mag
    if model.architecture == "cnn":
        return NetworkInfo(
            kind="cnn",
            size=config.data.size,
            cnn_widths=model.cnn_widths,
            cnn_convolutions=model.cnn_convolutions,
        )
    encoder = EncoderInfo(
        patch=model.patch,
        width=model.width,
        depth=model.depth,
        heads=model.heads,
        mlp_ratio=model.mlp_ratio,
        stem_channels=model.stem_channels,
    )
    if config.objective == "finetune":
        return NetworkInfo(kind="vit", size=config.data.size, encoder=encoder)
    generator = GeneratorInfo(
        width=model.decoder_width,
        depth=model.decoder_depth,
        heads=model.decoder_heads,
        separator_ratio=pf_mag.separator_ratio,
        fusion=pf_mag.fusion,
        fusion_bias=pf_mag.fusion_bias,
        class_mask_bias=pf_mag.class_mask_bias,
        patch_mask_bias=pf_mag.patch_mask_bias,
        patch_overlap=pf_mag.patch_overlap,
        erasure=pf_mag.erasure_start is not None,
    )
    return NetworkInfo(kind="pf_vit", size=config.data.size, encoder=encoder, generator=generator)


def build_net(info: ModelInfo) -> nn.Module:
    """The net of a model, with random weights. Raises InferenceError if the sizes do not fit together."""
    try:
        net = factory.build(_config(info.network), len(info.classes), load_init=False)["model"].eval()
    except ConfigError as error:
        raise InferenceError(f"the sizes of the model {info.name} do not fit together: {error}") from error
    if isinstance(net, PFViT) and net.erasure is not None:
        net.erasure.drop_training_state()
    return net


def _config(network: NetworkInfo) -> RunConfig:
    """A config whose net is the one described. Raises ConfigError."""
    data, encoder, generator = DataConfig(size=network.size), network.encoder, network.generator
    if encoder is None:
        widths, convolutions = network.cnn_widths, network.cnn_convolutions
        model = ModelConfig(architecture="cnn", cnn_widths=widths, cnn_convolutions=convolutions)
        return RunConfig(data=data, model=model)
    sizes = dict(vars(encoder))
    if generator is None:
        return RunConfig(data=data, model=ModelConfig(**sizes))
    sizes |= {f"decoder_{name}": getattr(generator, name) for name in ("width", "depth", "heads")}
    options = {name: value for name, value in vars(generator).items() if name not in ("width", "depth", "heads")}
    options["erasure_start"] = 0 if options.pop("erasure") else None
    return RunConfig(objective="pf_mag", data=data, model=ModelConfig(**sizes), pf_mag=PfMagConfig(**options))


def load_weights(net: nn.Module, weights: Mapping[str, Tensor], info: ModelInfo, source: str) -> None:
    """Load weights into a net. Raises InferenceError if they are damaged, not finite, or do not fit."""
    actual = weights_sha256(weights)
    if actual != info.weights_sha256:
        raise InferenceError(
            f"{source} is damaged: the checksum of its weights is {actual[:12]}..., its config says"
            f" {info.weights_sha256[:12]}...; copy or export the model again"
        )
    infinite = not_finite(weights)
    if infinite:
        raise InferenceError(
            f"{source} cannot be used: {len(infinite)} of its {len(weights)} tensors hold values that are not finite"
            f" numbers, the first is {infinite[0]}; export an earlier checkpoint, or train the model again"
        )
    try:
        net.load_state_dict(
            {name: value.float() if value.dtype == torch.float16 else value for name, value in weights.items()}
        )
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise InferenceError(f"the weights of {source} are not those of its config: {reason}; export it again") from (
            error
        )


def not_finite(weights: Mapping[str, Tensor]) -> list[str]:
    """Names of the tensors with NaN or infinite values."""
    return [name for name, value in weights.items() if value.is_floating_point() and not value.isfinite().all()]


def weights_sha256(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and values of all tensors, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        value = weights[name].detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def features(net: nn.Module, images: Tensor) -> Tensor:
    """Input of the last layer: images b 3 z z in -1..1 -> b d."""
    if isinstance(net, SmallCNN):
        return net.features(images).mean((2, 3))
    if isinstance(net, PFViT):
        return net.class_features(images)
    assert isinstance(net, Classifier)
    return net.encoder(images)[:, 0]


def head(net: nn.Module) -> nn.Module:
    """The last layer: features b d -> logits b k."""
    layer = net.classifier if isinstance(net, PFViT) else net.head
    assert isinstance(layer, nn.Linear)
    return layer


def select_device(name: str) -> torch.device:
    """ "auto": a GPU if there is one. Raises InferenceError for a GPU that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InferenceError(f"--device must be auto, cpu, cuda or cuda:N, got {name!r}") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InferenceError(
            f"--device is {name}, but torch sees {torch.cuda.device_count()} CUDA devices here; use cpu"
        )
    return device


class TorchPredictor:
    """See `Predictor`. On GPUs the network computes in bf16, except for poker faces."""

    def __init__(self, info: ModelInfo, net: nn.Module, device: str = "auto") -> None:
        """Raises InferenceError."""
        self.info = info
        self.device = select_device(device)
        self.net = net.to(self.device).eval().requires_grad_(False)

    @torch.inference_mode()
    def logits(self, crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        """See `Predictor`."""
        with self._autocast():
            return _array(logits_function(self.net)(self._input(crops)))

    @torch.inference_mode()
    def features(self, crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        """See `Predictor`. The class token of a ViT, of PF-ViT the one of its emotion tokens."""
        images = self._input(crops)
        with self._autocast():
            return _array(features(self.net, images))

    @torch.inference_mode()
    def poker_faces(self, crops: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """See `Predictor`."""
        net = self._pf_vit()
        return _pixels(net.generator(net.separate(self._input(crops))[2]))

    @torch.inference_mode()
    def emotion_views(self, crops: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """What the generator makes of the emotion tokens alone: b s s 3 -> b z z 3. Raises NoGeneratorError."""
        net = self._pf_vit()
        return _pixels(net.generator(net.separate(self._input(crops))[1]))

    @torch.inference_mode()
    def transfer(self, emotion_crops: NDArray[np.uint8], face_crops: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The faces of one batch with the expressions of another: b s s 3 twice -> b z z 3. Raises NoGeneratorError."""
        return _pixels(self._pf_vit().transfer(self._input(emotion_crops), self._input(face_crops)))

    def attention(self, crops: NDArray[np.uint8]) -> NDArray[np.float32] | None:
        """Grad-CAM++ maps of the predicted class in 0..1: b s s 3 -> b z z; None for a net that is not a ViT.

        Not for several threads at once: a hook is in the net while it computes.
        """
        if not isinstance(self.net, PFViT | Classifier):
            return None
        return _array(attention_maps(self.net, self._input(crops))[0])

    def _pf_vit(self) -> PFViT:
        if not isinstance(self.net, PFViT) or self.net.separator is None:
            raise NoGeneratorError(self.info.name)
        return self.net

    def network_input(self, crops: NDArray[np.uint8]) -> Tensor:
        """The network's input: b s s 3 -> b 3 z z in -1..1, on the CPU."""
        return self._input(crops).cpu()

    def _input(self, crops: NDArray[np.uint8]) -> Tensor:
        images = torch.from_numpy(np.ascontiguousarray(crops)).permute(0, 3, 1, 2).to(self.device)
        return transforms.network_input(images, self.info.network.size)

    def _autocast(self) -> torch.autocast:
        return autocast(self.device, "bf16" if self.device.type == "cuda" else "fp32")


def _pixels(images: Tensor) -> NDArray[np.uint8]:
    """b 3 z z around -1..1 -> uint8 b z z 3."""
    pixels: NDArray[np.uint8] = transforms.to_uint8(images).permute(0, 2, 3, 1).contiguous().cpu().numpy()
    return pixels


def _array(values: Tensor) -> NDArray[np.float32]:
    array: NDArray[np.float32] = values.float().cpu().numpy()
    return array
