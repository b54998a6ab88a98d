"""Models on the Hugging Face hub, by the conventions of its client. Imported only where it is used.

`HubModel.from_pretrained("user/name")` and `HubModel.save_pretrained`, `push_to_hub` are huggingface_hub's own; the
files are those of a model folder.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCard, PyTorchModelHubMixin
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from pfcluster.inference.errors import InferenceError
from pfcluster.inference.model_card import model_card
from pfcluster.inference.model_folder import with_precision, write_weights
from pfcluster.inference.model_info import CONFIG_FILE, WEIGHTS_FILE, ModelInfo, info_of, to_dict, to_json
from pfcluster.inference.torch_predictor import build_net, load_weights
from pfcluster.system.atomic_files import write_atomically

CLIENT_ERRORS = (HfHubHTTPError, HFValidationError, LocalTokenNotFoundError)
TRANSPORT_ERRORS: tuple[type[Exception], ...] = (
    OfflineModeIsEnabled,
    ConnectionError,
    *(base for base in HfHubHTTPError.__bases__ if issubclass(base, Exception) and base is not OSError),
)
"""Those of the client's HTTP library, which depends on its version, come after CLIENT_ERRORS: they are base classes."""


class HubModel(nn.Module, PyTorchModelHubMixin, library_name="pfcluster", pipeline_tag="image-classification"):
    """A net whose parameters have their own names, as in `model.safetensors`, with the client's functions."""

    net: nn.Module
    """The net; its submodules are registered instead of itself."""

    def __init__(self, config: dict[str, Any]) -> None:
        """`config`: the content of config.json. Raises InferenceError."""
        super().__init__()
        self.info = info_of(config, "the model's config.json")
        self._adopt(build_net(self.info))

    def _adopt(self, net: nn.Module) -> None:
        """Register the parts of a net as this module's own, so that their names have no prefix."""
        object.__setattr__(self, "net", net)
        for name, part in net.named_children():
            self.add_module(name, part)

    def forward(self, images: Tensor) -> Any:
        """What the net computes of images, b 3 z z in -1..1."""
        return self.net(images)

    def generate_model_card(self, *_: Any, **__: Any) -> ModelCard:
        """The card of a model folder."""
        return ModelCard(model_card(self.info), ignore_metadata_errors=True)

    def _save_pretrained(self, save_directory: Path) -> None:
        info, weights = with_precision(self.info, self.net.state_dict(), "float32")
        write_weights(save_directory / WEIGHTS_FILE, info, weights)
        write_atomically(save_directory / CONFIG_FILE, to_json(info))

    @classmethod
    def _load_as_safetensor(cls, model: Any, model_file: str, map_location: str, strict: bool) -> Any:
        try:
            weights = load_file(model_file)
        except (SafetensorError, ValueError) as error:
            raise InferenceError(f"{model_file} is damaged: {error}; download it again") from error
        load_weights(model.net, weights, model.info, model_file)
        return model.to(torch.device(map_location)).eval()

    @classmethod
    def _load_as_pickle(cls, model: Any, model_file: str, map_location: str, strict: bool) -> Any:
        raise InferenceError(f"{model_file} is a pickle, which is not opened; the model needs model.safetensors")


def pull(repo_id: str, revision: str | None) -> tuple[ModelInfo, nn.Module]:
    """Download a model, or take it from the client's cache. Raises InferenceError."""
    try:
        model = HubModel.from_pretrained(repo_id, revision=revision)
    except TypeError as error:  # the client calls the model without a config
        raise InferenceError(f"{repo_id} on the hub has no config.json, so it is not a pfcluster model") from error
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise InferenceError(f"no model {repo_id} on the hub that you may read: {_reason(error)}") from error
    except LocalEntryNotFoundError as error:
        raise _not_in_cache(repo_id, error) from error
    except EntryNotFoundError as error:
        raise InferenceError(
            f"{repo_id} on the hub has no model.safetensors, so it is not a pfcluster model"
        ) from error
    except (json.JSONDecodeError, *CLIENT_ERRORS) as error:
        raise InferenceError(f"{repo_id} cannot be loaded from the hub: {_reason(error)}") from error
    except TRANSPORT_ERRORS as error:
        raise _not_in_cache(repo_id, error) from error
    return model.info, model.net


def push(info: ModelInfo, net: nn.Module, repo_id: str, **options: Any) -> str:
    """Upload a model; -> the address of the commit. Raises InferenceError."""
    try:
        return str(as_hub_model(info, net).push_to_hub(repo_id, **options))
    except CLIENT_ERRORS as error:
        raise InferenceError(
            f"{repo_id} cannot be written on the hub: {_reason(error)}; log in with `hf auth login`"
        ) from error
    except TRANSPORT_ERRORS as error:
        raise InferenceError(
            f"{repo_id} cannot be written on the hub, because the hub cannot be reached: {_reason(error)}; save the"
            " model as a folder, and upload that where there is a network (`hf upload`)"
        ) from error


def _not_in_cache(repo_id: str, error: Exception) -> InferenceError:
    return InferenceError(
        f"{repo_id} is not in the hub's cache, and the hub cannot be reached: {_reason(error)}; use a local folder, or"
        " download it where there is a network (`hf download`) and copy the folder"
    )


def as_hub_model(info: ModelInfo, net: nn.Module) -> HubModel:
    """A model with the client's functions."""
    info, weights = with_precision(info, net.state_dict(), "float32")
    model = HubModel(config=to_dict(info))
    load_weights(model.net, weights, info, info.name)
    return model.eval()


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
