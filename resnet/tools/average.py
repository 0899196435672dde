"""`resnet average`: the mean of weights that a run has kept, and BatchNorm's statistics estimated for it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from recipes.schema.model import Model
from recipes.text import plural
from resnet.build import build_data
from resnet.checkpoint.commit import newest_first, sha256_of
from resnet.run_weights import FINAL, weights_of
from resnet.state_dicts import mismatches
from resnet.tools.eval_data import THE_RECIPES, open_eval_data
from resnet.tools.evaluate import Evaluation, evaluate
from resnet.tools.export.prune import estimate_statistics
from resnet.tools.export.pruned_run import training_batches
from resnet.tools.output import check_output, open_output, refuse_input
from resnet.tools.trained import of_run
from resnet.tools.weights import load_network, outputs_of
from resnet.weights_file import find_weights, metadata_of, read_info

AVERAGE = "average.safetensors"
"""The file's name in its run directory, unless another is given."""


class Averaged(NamedTuple):
    """What was made."""

    file: Path
    of: list[Path]
    """The files of weights, by their steps."""
    evaluation: Evaluation


def average(
    run_dir: Path,
    checkpoints: Sequence[str] = (),
    last: int | None = None,
    recompute_bn: int | None = None,
    output: Path | None = None,
    overrides: Sequence[str] = (),
    tell: Callable[[str], object] = lambda _: None,
) -> Averaged:
    """Average weights of a run element by element, write them to a file, and evaluate that.

    checkpoints: as best, step-500, epoch-90 or a file of weights; none: all that the run has kept. last: only so many
    of the newest of these. recompute_bn: training images that BatchNorm's statistics are estimated on; None: they are
    averaged as the weights are. output: the file; None: AVERAGE in the run directory. overrides: `a.b=value`, changes
    to the recipe. tell: is called with what is begun.
    Raises ValueError where there are no such weights, or they are of different networks, and for data that cannot be
    used.
    """
    files, place = _chosen(run_dir, checkpoints, last), output or run_dir / AVERAGE
    check_output(place, "--output", (".safetensors",))
    refuse_input(place, "--output", files)
    _refuse_own(place, run_dir)
    trained = of_run(f"the mean of {plural(len(files), 'set')} of weights", run_dir, files[-1], overrides)
    recipe, step = trained.recipe, _step_of(files[-1]) or 0
    network = load_network(recipe, len(trained.classes) or None, files[-1], torch.device("cpu"), tell)
    if recompute_bn and not any(isinstance(module, _BatchNorm) for module in network.modules()):
        raise ValueError("--recompute-bn: this network has no BatchNorm, whose statistics it would estimate")
    network.load_state_dict(_mean(files, network, trained.classes, recipe.model))
    opened = build_data(recipe)
    data = open_eval_data(trained, outputs_of(network, recipe.model, trained.classes), THE_RECIPES, opened)
    if recompute_bn:
        tell("BatchNorm's statistics are estimated anew on training images")
        estimate_statistics(network, training_batches(recipe, opened[0], data, recompute_bn))
    tensors = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    with open_output(place) as file:
        file.write(safetensors.torch.save(tensors, metadata_of(recipe, trained.classes or data.classes, step)))
    return Averaged(place, files, evaluate([trained._replace(weights=place, averaged=True)], data=data)[0])


def _chosen(run_dir: Path, checkpoints: Sequence[str], last: int | None) -> list[Path]:
    """Files of weights, the newest last."""
    files = _different(_named(run_dir, text) for text in checkpoints) if checkpoints else _kept(run_dir)
    if not files:
        raise ValueError(f"{run_dir} has kept no weights yet")
    if last is not None and last > len(files):
        more = "" if checkpoints else "; checkpoint.keep and checkpoint.weights_every keep more in the next run"
        raise ValueError(f"--last {last}: there are weights of {plural(len(files), 'step')} only{more}")
    return sorted(files, key=lambda file: _step_of(file) or 0)[-(last or len(files)) :]


def _different(files: Iterable[Path]) -> list[Path]:
    """Without those of the same content: the best weights are in a checkpoint too."""
    found = {}
    for file in files:
        with file.open("rb") as stream:
            found.setdefault(sha256_of(stream), file)
    return [*found.values()]


def _refuse_own(place: Path, run_dir: Path) -> None:
    """Raise ValueError where an output would be one of the files that a run keeps its weights in."""
    for own in (FINAL, "checkpoints", "weights"):
        if place.resolve().is_relative_to((run_dir / own).resolve()):
            raise ValueError(f"--output {place} is among what {run_dir} keeps its own weights in: give another name")


def _kept(run_dir: Path) -> list[Path]:
    """Of each step one file, where a checkpoint and the weights kept for good are both there."""
    archived = sorted((run_dir / "weights").glob("epoch-*.safetensors"))
    files = [*archived, *(weights_of(run_dir, folder.name) for folder in newest_first(run_dir / "checkpoints"))]
    return list({_step_of(file): file for file in files}.values())


def _named(run_dir: Path, text: str) -> Path:
    if not (found := re.fullmatch(r"epoch-(\d+)", text)):
        return weights_of(run_dir, text)
    file = run_dir / "weights" / f"epoch-{int(found[1]):04d}.safetensors"
    if not file.is_file():
        raise ValueError(f"there is no {file}: checkpoint.weights_every keeps such files")
    return file


def _step_of(file: Path) -> int | None:
    """What a file says of it; None: nothing."""
    info = read_info(file)
    return None if info is None else info.step


def _mean(files: Sequence[Path], network: nn.Module, classes: list[str], model: Model) -> dict[str, Tensor]:
    """Of what is in floating point; the rest is the newest file's. Summed in float64. Raises ValueError."""
    newest = network.state_dict()
    sums = {name: torch.zeros_like(tensor, dtype=torch.float64) for name, tensor in newest.items()}
    for file in files:
        info, tensors = read_info(file), find_weights(file, model).tensors
        if info is not None and classes and info.classes != classes:
            raise ValueError(f"{file} is of other classes than {files[-1]}")
        if wrong := mismatches(tensors, newest):
            raise ValueError(f"{file} does not match {files[-1]}: {wrong}")
        for name, total in sums.items():
            total += tensors[name]
    return {
        name: (sums[name] / len(files)).to(tensor.dtype) if tensor.is_floating_point() else tensor
        for name, tensor in newest.items()
    }
