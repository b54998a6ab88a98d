"""pfcluster trains, evaluates and applies PF-ViT. `pfcluster.load` loads a trained model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pfcluster.inference.load import load as load

__all__ = ["load"]


def __getattr__(name: str) -> Any:
    """`load`, imported when it is used: `import pfcluster` takes no time and needs no torch."""
    if name == "load":
        from pfcluster.inference.load import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
