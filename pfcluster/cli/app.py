"""`pfcluster app`: a web page for a trained model."""

from __future__ import annotations

from dataclasses import dataclass

from pfcluster.inference.builtin_models import default_model
from pfcluster.launch.command_line import parse
from pfcluster.system.terminal import plain_console


@dataclass(frozen=True, kw_only=True)
class AppOptions:
    """Serve a web page that shows the expression, poker face and Grad-CAM++ map of a face."""

    model: str | None = None
    """A folder or file of `pfcluster export`, a run, user/name on the Hugging Face hub, or builtin:NAME. Default:
    builtin:fer2013, if it is installed."""
    detect: bool = True
    """Find the face and align it; with --no-detect every photo is a crop of a face."""
    device: str = "auto"
    """cpu, cuda, cuda:N, or auto: a GPU if there is one."""
    host: str = "127.0.0.1"
    """Address to listen at. The default can be reached from this machine only; 0.0.0.0: from everywhere."""
    port: int = 7860
    """Port to listen at."""
    share: bool = False
    """Ask Gradio's servers for a public link to the page; photos then pass through them."""


def main(arguments: list[str]) -> int:
    """Serve the page until it is interrupted."""
    options = parse(AppOptions, arguments, prog="pfcluster app")
    from pfcluster.inference.app import Address, gradio_module, serve
    from pfcluster.inference.load import load

    gradio_module()  # before a large model is loaded
    model = load(options.model or default_model(), device=options.device)
    console = plain_console(stderr=True)
    serve(
        model,
        Address(options.host, options.port, options.share),
        detect=options.detect,
        started=lambda url: console.print(f"the page of {model.info.name}: {url} (Ctrl-C ends it)", soft_wrap=True),
    )
    return 0
