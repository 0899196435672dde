"""A folder that huggingface.co takes as it is: weights, config, how the network was trained and how good it is."""

from __future__ import annotations

from pathlib import Path

from recipes.load import to_yaml
from resnet.run_recipe import load_run_recipe
from resnet.rundir.files import to_json, write_atomic
from resnet.rundir.metrics_log import read_metrics
from resnet.rundir.provenance import read_provenance
from resnet.tools.eval_data import EvalData
from resnet.tools.export.card import card
from resnet.tools.export.formats import (
    SAFETENSORS,
    Given,
    Product,
    layout,
    write_safetensors,
    write_source,
    write_timm,
)
from resnet.tools.export.measure import Measured
from resnet.tools.export.public import RECIPE, description, public_recipe
from resnet.tools.export.timm_config import is_timms
from resnet.tools.export.torchvision_source import builder_of

_CURVES = "curves.png"


def check_push(repo: str) -> None:
    """Raise ValueError where nothing can be uploaded to a repository of huggingface.co."""
    from huggingface_hub import get_token
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise ValueError(f"--push {repo}: {str(error).splitlines()[0]}") from None
    if get_token() is None:
        raise ValueError("--push needs a token of huggingface.co: run `hf auth login`, or set HF_TOKEN")


def push(folder: Path, repo: str) -> str:
    """Upload a folder, into a repository that is made where there is none, and return its address.

    Raises OSError where huggingface.co refuses it or cannot be reached.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        address = api.create_repo(repo, exist_ok=True)
        api.upload_folder(repo_id=repo, folder_path=folder, commit_message="resnet export --format hub")
    except Exception as error:
        # Of its own kinds, of its HTTP client's, and of the system's.
        raise OSError(f"{folder} stands, but could not be uploaded to {repo}: {str(error).splitlines()[0]}") from error
    return str(address)


def write_hub(folder: Path, given: Given, size: int) -> list[Product]:
    """Weights and config.json: timm's where timm has the network, else ours, with model.py where that can build it."""
    if is_timms(given.trained.recipe.model):
        return write_timm(folder, given, size)
    (ours,), file = write_safetensors(folder, given, size), folder / SAFETENSORS
    said = description(given.trained, given.classes)
    write_atomic(folder / "config.json", to_json({key: said[key] for key in said if key != RECIPE}, indent=2))
    if builder_of(given.trained.recipe.model) is None:
        return [ours]
    write_source(folder, given, file.name)
    return [Product(file, {"kind": "torchvision", "path": str(file), **layout(given)})]


def write_card(folder: Path, given: Given, measured: Measured, data: EvalData) -> None:
    """README.md, recipe.yaml and the run's curves.

    measured: of the weights file beside them, on some of `data`.
    """
    trained = given.trained
    write_atomic(folder / "recipe.yaml", to_yaml(public_recipe(trained.recipe)))
    drawn = trained.run_dir is not None and _draw_curves(trained.run_dir, len(given.classes), folder / _CURVES)
    write_atomic(folder / "README.md", card(given, measured, data, _CURVES if drawn else None))


def _draw_curves(run_dir: Path, classes: int, file: Path) -> bool:
    """As the report does; returns whether there was anything to draw."""
    from resnet.tools.report.curves import learning_rates
    from resnet.tools.report.plots import draw_curves

    if not (rows := read_metrics(run_dir)):
        return False
    recipe, derived = load_run_recipe(run_dir).recipe, read_provenance(run_dir).get("plan") or {}
    draw_curves(rows, file, learning_rates(recipe, derived, rows), classes > 5)
    return True
