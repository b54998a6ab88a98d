"""The order of imports (docs/contributing.md, Rooms): they point down only, and heavy packages stay out of the core."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "pfcluster"

ROOMS = (
    "system",
    "config",
    "distributed",
    "runs",
    "checkpoint",
    "data",
    "models",
    "engine",
    "evaluate",
    "tracking",
    "training",
    "inference",
    "profiling",
    "report",
    "experiments",
    "launch",
    "sweep",
    "cli",
)
"""From the bottom up."""
BUILDERS_OF_NETS = ("factory", "from_runs", "pretrained")
"""Modules of `models` that read configs, runs and checkpoints; the others are nets and losses."""
LAUNCHERS = ("launch/slurm", "launch/ray")
"""Packages on top of the other modules of `launch`."""
IMPORTERS_OF_LAUNCHERS = {
    "launch/status.py",
    "sweep/executors.py",
    "sweep/ray.py",
    "sweep/slurm.py",
    "cli/submit.py",
    "cli/train.py",
}
"""Files that choose a launcher or belong to one. No file of `launch` imports these."""
ONLY_WHERE_USED = {
    "deepspeed",
    "ray",
    "optuna",
    "submitit",
    "facenet_pytorch",
    "gradio",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "pandas",
    "pyarrow",
    "webdataset",
    "timm",
    "torchmetrics",
    "torchvision",
    "matplotlib",
    "cv2",
    "sklearn",
    "umap",
    "wandb",
    "mlflow",
    "trackio",
}


def room(module: str) -> str:
    """The first part under pfcluster of a module's name."""
    return module.split(".")[1] if "." in module else module


def test_every_room_is_named():
    rooms = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert rooms == set(ROOMS)
    assert {path.name for path in PACKAGE.glob("*.py")} <= {"__init__.py", "__main__.py"}


def imports(path: Path):
    """Imported modules of a file, or names in them, and whether at its top: (name, top)."""
    tree = ast.parse(path.read_text())
    top = {id(node) for node in tree.body}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, id(node) in top
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                yield f"{node.module}.{alias.name}", id(node) in top


def own_files():
    """All files inside rooms; the package's own __init__.py and __main__.py stand above them."""
    return sorted(path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE)


def test_imports_point_down():
    wrong = []
    for path in own_files():
        importer = path.relative_to(PACKAGE).with_suffix("").parts[0]
        for name, _ in imports(path):
            if name.startswith("pfcluster.") and ROOMS.index(room(name)) > ROOMS.index(importer):
                wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    assert not wrong


def test_launchers_are_imported_by_named_files_only():
    importers = set()
    for path in own_files():
        file = path.relative_to(PACKAGE)
        for name, _ in imports(path):
            package = next((each for each in LAUNCHERS if is_in(name, each)), None)
            if package not in (None, file.parent.as_posix()):
                importers.add(file.as_posix())
            if file.parts[0] == "launch":
                assert not any(is_in(name, each.removesuffix(".py")) for each in IMPORTERS_OF_LAUNCHERS), (path, name)
    assert importers == IMPORTERS_OF_LAUNCHERS


def is_in(name: str, place: str) -> bool:
    """Whether an imported name is, or belongs to, a package or module, given as its path below pfcluster."""
    return f"{name}.".startswith(f"pfcluster.{place.replace('/', '.')}.")


def test_nets_and_losses_know_torch_and_each_other_only():
    paths = {path for path in (PACKAGE / "models").glob("*.py") if path.stem not in BUILDERS_OF_NETS}
    assert {"vit", "pf_vit", "discriminator", "losses"} <= {path.stem for path in paths}
    for path in sorted(paths):
        for name, _ in imports(path):
            assert not name.startswith("pfcluster.") or name.startswith("pfcluster.models"), (path, name)


def test_engines_know_no_net():
    for path in sorted((PACKAGE / "engine").glob("*.py")):
        for name, _ in imports(path):
            assert not name.startswith("pfcluster.models"), (path, name)


def test_heavy_packages_are_imported_where_they_are_used():
    for path in own_files():
        for name, top in imports(path):
            assert not (top and name.split(".")[0] in ONLY_WHERE_USED), (path, name)


def test_the_core_imports_without_the_packages_of_clusters_and_preparation():
    blocked = "deepspeed ray submitit webdataset facenet_pytorch simplejpeg rich cv2 tyro"
    code = (
        f"import sys; [sys.modules.__setitem__(name, None) for name in {blocked!r}.split()];"
        "import pfcluster.training, pfcluster.profiling.flops, pfcluster.config.presets; print('imported')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.stdout.strip() == "imported", done.stderr
