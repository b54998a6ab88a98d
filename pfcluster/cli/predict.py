"""`pfcluster predict` and `pfcluster export`: use a trained model, and write it as files."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from pfcluster.inference.builtin_models import default_model
from pfcluster.inference.crops import Cropper, DetectedFaces, WhichFaces, WholePhotos
from pfcluster.inference.errors import InferenceError
from pfcluster.inference.model_card import int8_sentence
from pfcluster.inference.prediction import Counts, PredictionOptions, check_options, run_prediction
from pfcluster.inference.sources import ReadOptions, list_inputs
from pfcluster.inference.tables import partial_file
from pfcluster.launch.command_line import parse
from pfcluster.system.terminal import plain_column, plain_console

if TYPE_CHECKING:
    from pfcluster.inference.model_info import ModelInfo
    from pfcluster.inference.predictor import Predictor

INTERRUPTED = 130


@dataclass(frozen=True, kw_only=True)
class PredictOptions:
    """Classify the faces of photos and videos, and write a table with one row per face."""

    inputs: tyro.conf.Positional[Annotated[tuple[str, ...], tyro.conf.arg(metavar="INPUT [INPUT ...]")]]
    """Photos, folders (searched recursively), patterns, videos, or the number of a webcam."""
    model: str | None = None
    """A folder or file of `pfcluster export`, a run, user/name on the Hugging Face hub, or builtin:NAME. Default:
    builtin:fer2013, if it is installed."""
    output: Path | None = None
    """Table to write: .csv, .jsonl or .parquet. Default: print a line for each face."""
    poker_face: Path | None = None
    """Folder for pictures of each face beside its poker face."""
    annotate: Path | None = None
    """Folder for photos and videos with boxes and labels; for a single video also a name that ends in .mp4."""
    detect: bool = True
    """Find faces and align them; with --no-detect every photo is a crop of a face."""
    faces: WhichFaces = "all"
    """All faces of a photo, or the one that training would use, which is found faster."""
    batch_size: int = 32
    """Faces per batch of the network."""
    device: str = "auto"
    """cpu, cuda, cuda:N, or auto: a GPU if there is one."""
    engine: Literal["torch", "onnx", "onnx-int8"] = "torch"
    """What computes the network. onnx: onnxruntime on the CPU, without torch, for crops (--no-detect) and a folder of
    `pfcluster export --format onnx`; onnx-int8: its quantised classifier."""
    frame_step: int = 1
    """Use every n-th frame of videos."""
    max_frames: int | None = None
    """Stop videos and webcams at this frame."""


def predict(arguments: list[str]) -> int:
    """Classify the faces of photos and videos."""
    options = parse(PredictOptions, arguments, prog="pfcluster predict")
    if not options.inputs:
        raise ValueError("missing: INPUT; `pfcluster predict --help` lists the options")
    for number in (signal.SIGINT, signal.SIGTERM):  # SIGINT, too: a shell lets background jobs ignore it
        signal.signal(number, _interrupt)
    inputs, messages = list_inputs(options.inputs), plain_console(stderr=True)
    for note in inputs.notes:
        messages.print(note, soft_wrap=True)
    prediction = PredictionOptions(
        output=options.output,
        poker_faces=options.poker_face,
        annotate=options.annotate,
        batch_size=options.batch_size,
        read=ReadOptions(options.frame_step, options.max_frames),
        how={"detect": options.detect, "faces": options.faces, "engine": options.engine},
    )
    predictor = _load(options)
    check_options(prediction, inputs, predictor.info)
    cropper = _cropper(options, predictor)
    started = time.perf_counter()
    try:
        with _Progress(messages, len(inputs.sources), shown=options.output is not None) as advance:
            show: Callable[[str], None] = lambda line: plain_console().print(line, soft_wrap=True)  # noqa: E731
            counts = run_prediction(inputs.sources, predictor, cropper, prediction, show=show, advance=advance)
    except KeyboardInterrupt:
        has_rows = options.output is not None and partial_file(options.output).exists()
        kept = "; rows are kept, and the same command continues after them" if has_rows else ""
        messages.print(f"stopped{kept}")
        return INTERRUPTED
    _print_counts(messages, counts, time.perf_counter() - started, options.output)
    return 0


def _interrupt(*_: Any) -> NoReturn:
    raise KeyboardInterrupt


def _load(options: PredictOptions) -> Predictor:
    if options.engine == "torch":
        from pfcluster.inference.load import load

        return load(options.model or _default_model(), device=options.device).predictor
    from pfcluster.inference.onnx_predictor import OnnxPredictor

    if options.detect:
        raise InferenceError(
            f"--engine {options.engine} works without torch, which the face detector (MTCNN) needs: use crops of faces"
            " with --no-detect, or --engine torch"
        )
    if options.model is None:
        raise InferenceError(f"--engine {options.engine} needs --model, a folder of `pfcluster export --format onnx`")
    if options.device not in ("auto", "cpu"):
        raise InferenceError(
            f"--engine {options.engine} computes on the CPU, so --device {options.device} needs --engine torch"
        )
    return OnnxPredictor(Path(options.model), int8=options.engine == "onnx-int8")


def _default_model() -> str:
    name = default_model()
    plain_console(stderr=True).print(f"no --model: {name} is used", soft_wrap=True)
    return name


def _cropper(options: PredictOptions, predictor: Predictor) -> Cropper:
    preprocessing = predictor.info.preprocessing
    if not options.detect:
        return WholePhotos(preprocessing)
    from pfcluster.inference.torch_predictor import TorchPredictor

    assert isinstance(predictor, TorchPredictor)
    return DetectedFaces(preprocessing, str(predictor.device), options.faces)


class _Progress:
    """A progress bar over the sources, with faces per second; gives the function that advances it."""

    def __init__(self, console: Console, total: int, *, shown: bool) -> None:
        columns = (BarColumn(), MofNCompleteColumn(), plain_column("{task.description}"), TimeElapsedColumn())
        self._bar = Bar(*columns, console=console, disable=not shown, redirect_stdout=False)
        self._task = self._bar.add_task("", total=total)
        self._started = time.perf_counter()

    def __enter__(self) -> Callable[[Counts], None]:
        self._bar.start()
        return self._advance

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def _advance(self, counts: Counts) -> None:
        rate = counts.faces / max(1e-9, time.perf_counter() - self._started)
        self._bar.update(self._task, completed=counts.sources, description=f"{counts.faces} faces, {rate:.1f} faces/s")


def _print_counts(console: Console, counts: Counts, seconds: float, output: Path | None) -> None:
    rate = f"{counts.faces / max(seconds, 1e-9):.1f} faces/s"
    console.print(
        f"{counts.faces} faces in {counts.frames} photos or frames, in {seconds:.1f} s ({rate})", soft_wrap=True
    )
    if counts.kept_rows:
        console.print(f"rows kept of an earlier attempt: {counts.kept_rows}")
    if counts.without:
        console.print(f"rows with a reason instead of a label (column `reason`): {counts.without}")
    if output is not None:
        console.print(f"table: {output}", soft_wrap=True)


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """Write the best checkpoint of a run, or a model, as a model: weights, config and model card."""

    run: tyro.conf.Positional[Path]
    """Run folder, the folder of a checkpoint, or a model as `pfcluster predict --model` takes it."""
    output: Path
    """Folder to write, or a file that ends in .safetensors, which holds weights and config."""
    format: Literal["safetensors", "onnx", "torch-export", "timm", "space"] = "safetensors"
    """safetensors: what pfcluster loads; onnx: graphs for onnxruntime; torch-export: graphs for torch.export.load;
    timm: the encoder for timm.create_model; space: a folder that runs as a Hugging Face Space, with the page of
    `pfcluster app`."""
    int8: bool = False
    """With --format onnx: write the classifier with 8-bit weights, too, and measure its accuracy."""
    precision: Literal["float32", "float16"] = "float32"
    """Type of the weights in the file. float32 loads back bit for bit; float16 has half the size."""
    discriminator: bool = False
    """Write the discriminator as well (discriminator.safetensors)."""
    shards: str | None = None
    """Where the run's shards are now, if they have been moved: their manifest says how photos were cropped."""
    license: str | None = None
    """Licence of the weights, by its name on the Hugging Face hub; default: apache-2.0 for synthetic faces, else
    other."""


def export(arguments: list[str]) -> int:
    """Write a run as a model."""
    options = parse(ExportOptions, arguments, prog="pfcluster export")
    info = _export(options)
    console = plain_console()
    console.print(
        f"{info.name}: {info.network.kind}, {info.network.size} px, {', '.join(info.classes)}", soft_wrap=True
    )
    if info.preprocessing.template_faces is not None:
        console.print(
            f"the training data is not aligned: faces are aligned to the mean of {info.preprocessing.template_faces} of"
            " its faces",
            soft_wrap=True,
        )
    for line in _runtime_lines(info, options.output):
        console.print(line, soft_wrap=True)
    console.print(f"model: {options.output}", soft_wrap=True)
    return 0


def _export(options: ExportOptions) -> ModelInfo:
    if options.int8 and options.format != "onnx":
        raise InferenceError(f"--int8 needs --format onnx; --format {options.format} has no quantised classifier")
    described: dict[str, str | None] = {"shards": options.shards, "license": options.license}
    if options.format == "safetensors":
        from pfcluster.inference.export import export_run

        return export_run(
            options.run, options.output, precision=options.precision, discriminator=options.discriminator, **described
        )
    if options.format == "space":
        from pfcluster.inference.space import export_space

        if options.discriminator:
            raise InferenceError("--discriminator is an option of --format safetensors; leave it out for space")
        return export_space(options.run, options.output, precision=options.precision, **described)
    from pfcluster.inference.export_runtimes import export_runtime

    for name, given in (
        ("--precision float16", options.precision != "float32"),
        ("--discriminator", options.discriminator),
    ):
        if given:
            raise InferenceError(f"{name} is an option of --format safetensors; leave it out for {options.format}")
    return export_runtime(options.run, options.output, options.format, int8=options.int8, **described)


def _runtime_lines(info: ModelInfo, output: Path) -> list[str]:
    """Files of another runtime, with their checks."""
    runtime = info.runtime
    if runtime is None:
        return []
    lines = []
    for name in runtime.files:
        difference = runtime.largest_difference.get(name)
        check = "" if difference is None else f", differs from torch by at most {difference:.1e} ({runtime.checked_on})"
        lines.append(f"{name}: {(output / name).stat().st_size / 1e6:.2f} MB{check}")
    if runtime.int8 is not None:
        lines.append(f"int8: {int8_sentence(runtime.int8)}")
    if runtime.format != "timm" and not info.generates:
        lines.append("no graph for poker faces: the model classifies only")
    return lines
