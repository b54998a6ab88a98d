"""The model card, `README.md` of a model folder, in the layout of the Hugging Face hub."""

from __future__ import annotations

import json
import re

from pfcluster.inference.model_info import Figures, ModelInfo, Preprocessing, Training
from pfcluster.inference.runtime_info import (
    CLASSIFIER_EXPORT,
    CLASSIFIER_ONNX,
    FEATURES,
    INPUT,
    LOGITS,
    POKER_FACE_EXPORT,
    POKER_FACE_ONNX,
    POKER_FACES,
    TIMM_FILE,
    Int8Info,
    RuntimeInfo,
    TimmInfo,
)

EMOTION_LAW = (
    "The EU AI Act, Art. 5(1)(f), forbids inferring emotions of people at work and in education, except for medical or"
    " safety reasons; other emotion recognition is high-risk (Annex III) and must be disclosed to the people concerned"
    " (Art. 50(3))."
)
POKER_FACE_LAW = (
    "Poker faces are synthetic images of a real person: mark them as such (Art. 50(4)). `pfcluster predict"
    " --poker-face` does so in the pixels and in the metadata."
)
PLAIN_YAML = re.compile(r"(?!(?:true|false|null|yes|no|on|off|y|n)$)[a-z][a-z0-9.+-]*", re.IGNORECASE)
"""Text that YAML reads as itself without quotes, such as apache-2.0."""
SPLITS = ("train", "validation", "test")
KINDS = {
    "cnn": "a small convolutional classifier (the *judge* of pfcluster)",
    "vit": "a vision transformer with a linear head",
    "pf_vit": "PF-ViT, which classifies the expression and generates the *poker face*: the same face without"
    " expression",
}


def model_card(info: ModelInfo) -> str:
    """Markdown with the hub's YAML header."""
    sections = [
        _header(info),
        f"# {info.name}\n\nThis model is {KINDS[info.network.kind]}. It was trained with pfcluster {info.version} on"
        f" {_data(info.training)}.\n\nClasses, in the order of the outputs: {', '.join(info.classes)}.",
        *info.notes,
        _usage(info),
        _intended(info),
        f"## Data and training\n\n{_training(info)}\n\n{_preprocessing(info.preprocessing, info.network.size)}",
        _figures(info),
        _limits(info),
        "## How to cite\n\nCite pfcluster (its `CITATION.cff`), the paper of PF-ViT"
        " ([Li et al., IEEE TCSS 2024](https://arxiv.org/abs/2207.11081)) and the authors of the data.",
    ]
    return "\n\n".join(sections) + "\n"


def _header(info: ModelInfo) -> str:
    tags = ["facial-expression-recognition", "pfcluster", "pytorch_model_hub_mixin", "model_hub_mixin"]
    lines = [
        "---",
        f"library_name: {info.library}",
        f"license: {yaml_text(info.license)}",
        "pipeline_tag: image-classification",
    ]
    return "\n".join([*lines, "tags:", *(f"- {tag}" for tag in tags), "---"])


def yaml_text(text: str) -> str:
    """Text as a YAML scalar, in quotes if YAML would read it as something else."""
    return text if PLAIN_YAML.fullmatch(text) else json.dumps(text, ensure_ascii=False)


def _data(training: Training) -> str:
    return f"{training.dataset} ({training.votes} votes)" if training.votes else training.dataset


def _usage(info: ModelInfo) -> str:
    if info.runtime is not None:
        return _runtime_usage(info, info.runtime)
    lines = ["## Use", "", "    pfcluster predict photos/ --model THIS_FOLDER --output faces.csv", ""]
    lines += ["    import pfcluster", "", '    model = pfcluster.load("THIS_FOLDER")  # or the id on the hub']
    lines += ['    faces = model.predict("photo.jpg")']
    if info.generates:
        lines += ['    poker_faces = model.poker_face("photo.jpg")']
    return "\n".join(lines)


def _runtime_usage(info: ModelInfo, runtime: RuntimeInfo) -> str:
    side = info.preprocessing.crop_size
    if runtime.format == "timm":
        assert runtime.timm is not None
        lines = _timm_lines(runtime.timm, info.network.size)
    elif runtime.format == "onnx":
        lines = ["    pfcluster predict crops/ --no-detect --engine onnx --model THIS_FOLDER --output faces.csv", ""]
        lines += ["    import onnxruntime", ""]
        lines += [f'    session = onnxruntime.InferenceSession("THIS_FOLDER/{CLASSIFIER_ONNX}")']
        lines += [f'    logits, features = session.run(["{LOGITS}", "{FEATURES}"], {{"{INPUT}": crops}})']
        if info.generates:
            lines += [f'    generator = onnxruntime.InferenceSession("THIS_FOLDER/{POKER_FACE_ONNX}")']
            lines += [f'    (poker_faces,) = generator.run(["{POKER_FACES}"], {{"{INPUT}": crops}})']
        lines += ["", f"ONNX opset {runtime.opset}. {_graphs(info, side)}"]
    else:
        lines = ["    import torch", ""]
        lines += [f'    classifier = torch.export.load("THIS_FOLDER/{CLASSIFIER_EXPORT}").module()']
        lines += ["    logits, features = classifier(crops)"]
        if info.generates:
            lines += [f'    generator = torch.export.load("THIS_FOLDER/{POKER_FACE_EXPORT}").module()']
            lines += ["    poker_faces = generator(crops)"]
        lines += ["", _graphs(info, side)]
    checks = ", ".join(f"{name} {value:.1e}" for name, value in runtime.largest_difference.items())
    lines += ["", f"Largest difference to torch, on {runtime.checked_on}: {checks}."]
    if runtime.int8 is not None:
        lines += ["", f"With 8-bit weights: {int8_sentence(runtime.int8)}."]
    return "\n".join(["## Use", "", *lines])


def _graphs(info: ModelInfo, side: int) -> str:
    size = info.network.size
    images = f" Poker faces are float32, batch x 3 x {size} x {size}, around -1..1." if info.generates else ""
    return (
        f"`{INPUT}` are uint8, batch x {side} x {side} x 3, RGB, of any number; resizing and normalisation are in the"
        f" graph.{images}"
    )


def _timm_lines(timm: TimmInfo, size: int) -> list[str]:
    options = ", ".join(f"{name}={value}" for name, value in timm.options.items())
    head = (
        "The head is pfcluster's classifier."
        if timm.options["num_classes"]
        else "PF-ViT's separator and classifier have no place in timm's ViT, so there is no head."
    )
    return [
        "    import timm",
        "",
        f'    model = timm.create_model("{timm.name}", checkpoint_path="THIS_FOLDER/{TIMM_FILE}", {options})',
        "    tokens = model.eval().forward_features(images)  # class token first",
        "",
        f"`images` are float32, batch x 3 x {size} x {size}, pixels / 127.5 - 1. {head}",
    ]


def int8_sentence(int8: Int8Info) -> str:
    """What quantisation costs in accuracy."""
    figures = int8.figures
    if figures is None:
        return f"accuracy not measured: {int8.reason}"
    lost = 100 * (figures.accuracy_float32 - figures.accuracy_int8)
    return (
        f"accuracy {100 * figures.accuracy_int8:.2f} %, with float32 {100 * figures.accuracy_float32:.2f} % (loss"
        f" {lost:.2f} points), the same label for {100 * figures.agreement:.2f} % of the {figures.n:,} images of the"
        f" {figures.split} split"
    )


def _intended(info: ModelInfo) -> str:
    return (
        "## Intended use\n\nResearch on facial expressions and on their removal from photos. An expression is not an"
        " emotion: the labels name what a face shows to annotators, not what a person feels. Not for decisions about"
        f" people.\n\n{EMOTION_LAW}" + (f" {POKER_FACE_LAW}" if info.generates else "")
    )


def _training(info: ModelInfo) -> str:
    training = info.training
    splits = [split for split in SPLITS if split in training.samples]
    samples = ", ".join(f"{training.samples[split]:,} {split}" for split in splits)
    commit = f", commit {training.commit}" if training.commit else ""
    command = f"\n\nRepeat the training with\n\n    {training.command}" if training.command else ""
    return (
        f"{_data(training)}: {samples} images. Objective {training.objective}, seed {training.seed}, checkpoint of step"
        f" {training.step}{commit}.{command}"
    )


def _preprocessing(preprocessing: Preprocessing, size: int) -> str:
    points = ", ".join(f"({x:.3f}, {y:.3f})" for x, y in preprocessing.template)
    jpeg = "" if preprocessing.jpeg_quality is None else f", stored as JPEG of quality {preprocessing.jpeg_quality}"
    origin = (
        "the template of `pfcluster build`"
        if preprocessing.template_faces is None
        else f"the mean of {preprocessing.template_faces} faces detected in the training data, which is not aligned"
    )
    grey = " The training images are grey: crops of colour photos become grey first." if preprocessing.grey else ""
    return (
        f"A face is cropped at {preprocessing.crop_size} px{jpeg}, such that both eyes, the nose and the mouth's"
        f" corners lie at {points} of the side ({origin}).{grey} The network gets {size} px, pixels / 127.5 - 1."
    )


def _figures(info: ModelInfo) -> str:
    figures = info.figures
    if figures is None:
        return f"## Figures\n\n{info.no_figures or 'The run has not been evaluated.'}"
    lines = ["## Figures", "", _summary(figures)]
    if figures.warning:
        lines += ["", f"Note: {figures.warning}."]
    if info.over_seeds is not None:
        seeds = info.over_seeds
        lines += [
            "",
            f"Over the {len(seeds.seeds)} seeds of the study the accuracy is {100 * seeds.accuracy_mean:.2f} ±"
            f" {100 * seeds.accuracy_std:.2f} % (std); this model is the one of seed {info.training.seed}.",
        ]
    if figures.per_class:
        lines += ["", "| class | accuracy |", "| --- | ---: |"]
        names = [name for name in info.classes if name in figures.per_class]
        lines += [f"| {name} | {100 * figures.per_class[name]:.1f} % |" for name in names]
    if info.poker_faces:
        lines += [
            "",
            "Poker faces: " + ", ".join(f"{name} {_number(value)}" for name, value in sorted(info.poker_faces.items())),
        ]
    return "\n".join(lines)


def _summary(figures: Figures) -> str:
    images = f"{figures.n:,} images" if figures.n else "images"
    return (
        f"{figures.split.capitalize()} split, {images}, one seed: accuracy {100 * figures.accuracy:.2f} %, mean class"
        f" accuracy {100 * figures.mean_class_accuracy:.2f} %, macro F1 {100 * figures.macro_f1:.2f} %."
    )


def _number(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _limits(info: ModelInfo) -> str:
    lines = [
        "## Limits",
        "",
        "- The figures hold for the data named above; on other photos, people and cameras expect less.",
        "- No figures per age, sex or skin colour: the data has no such labels.",
        "- Faces in profile, occluded or below 20 px may not be detected.",
    ]
    if info.training.dataset == "synthetic":
        lines.append("- Trained on rendered faces only: of use on real photos as a demonstration at most.")
    if info.preprocessing.template_faces is not None:
        lines.append("- The training data is not aligned: crops of other photos match it on average only.")
    return "\n".join(lines)
