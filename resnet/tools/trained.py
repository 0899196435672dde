"""What a tool is pointed at: the weights of a run or of a file, with the recipe and the classes that go with them."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from recipes.library import names
from recipes.load import Loaded, load, load_over
from recipes.schema.recipe import Recipe
from resnet.checkpoint.commit import newest_first
from resnet.checkpoint.snapshot import EMA, MODEL
from resnet.data.sources.given import LISTS
from resnet.data.sources.image_folder import is_image
from resnet.run_recipe import load_run_recipe
from resnet.run_weights import ENDINGS, FINAL, has_average, weights_of
from resnet.rundir.evaluation import class_names, read_evaluation
from resnet.rundir.find import ROOT, find_run, is_run
from resnet.trained_network import outputs_of
from resnet.weights_file import PREPARED, WeightsInfo, read_info, read_weights, refuse_own_code

UNKNOWN = "(not known)"
"""`data.train` and `data.val` of a recipe that is known by its weights alone."""


class Trained(NamedTuple):
    """Weights that can be used, and what belongs to them."""

    name: str
    """For tables, as `first@step-500`."""
    weights: Path
    recipe: Recipe
    classes: list[str]
    """Names in the order of the network's outputs; empty where nothing names them."""
    run_dir: Path | None
    """None: the file is of no run."""
    averaged: bool | None = None
    """Whether the weights are an average (EMA, SWA); None where nothing tells."""
    notes: tuple[str, ...] = ()
    """What the user should know of how the recipe was read."""


def find_trained(text: str, root: str | Path = ROOT, plain: bool = False, overrides: Sequence[str] = ()) -> Trained:
    """The weights that a user names.

    text: RUN, RUN@best, RUN@last, RUN@step-500, RUN@final, or a file of weights. RUN is a name under `root` or a path;
    alone it means the weights a finished run leaves, or those of its best checkpoint until then. A file in a run
    directory is of that run; for another one its recipe comes from what the file says of itself, or from `recipe=`.
    plain: the trained weights where their average (EMA, SWA) would be taken. overrides: `a.b=value`, changes to the
    recipe.
    Raises ValueError where there are no such weights, or nothing tells their recipe.
    """
    path = Path(text).expanduser()
    if path.is_file():
        if is_image(path.name) or path.name.lower().endswith(LISTS):
            what = "an image" if is_image(path.name) else "a list of images"
            give = "give a run or a file of weights there, and images behind it (`resnet eval`: as --data)"
            raise ValueError(f"{text} is {what}: {give}")
        return _of_file(text, path, plain, overrides)
    if path.suffix in ENDINGS:
        raise ValueError(f"there is no file {text}: give weights ({', '.join(ENDINGS)}), or a run")
    name, at, which = text.rpartition("@")
    if at and not _is_run(text, root):
        run_dir = find_run(name, root)
        return of_run(text, run_dir, weights_of(run_dir, which, plain), overrides)
    run_dir = find_run(text, root)
    file, note = _best_or_last(run_dir, plain)
    found = of_run(text, run_dir, file, overrides)
    return found._replace(notes=(*found.notes, note)) if note else found


def _best_or_last(run_dir: Path, plain: bool) -> tuple[Path, str]:
    """The weights a run is known by, and what is to be said of them: before its first evaluation none is the best."""
    try:
        return weights_of(run_dir, "best", plain), ""
    except ValueError:
        if (run_dir / FINAL).is_file() or not newest_first(run_dir / "checkpoints"):
            raise
        file = weights_of(run_dir, "last", plain)
        return file, f"{run_dir} has not been evaluated yet: {file.parent.name} is taken, its newest checkpoint"


def _is_run(text: str, root: str | Path) -> bool:
    with contextlib.suppress(ValueError):
        return bool(find_run(text, root))
    return False


def of_run(name: str, run_dir: Path, weights: Path, overrides: Sequence[str] = ()) -> Trained:
    """A run with one of its weights files. overrides: changes to its recipe."""
    loaded = load_run_recipe(run_dir, overrides)
    averaged = weights.name != MODEL and (weights.name == EMA or has_average(run_dir))
    info = read_info(weights)
    classes = info.classes if info else class_names(run_dir) if read_evaluation(run_dir) else []
    return Trained(name, weights, loaded.recipe, classes, run_dir, averaged, loaded.notes)


def _of_file(name: str, file: Path, plain: bool, overrides: Sequence[str]) -> Trained:
    given = any(word.partition("=")[0] == "recipe" for word in overrides)
    if not given and (run_dir := _run_of_file(file)) is not None:
        if plain and file.name == EMA:
            raise ValueError(f"{file} is an average: the plain weights are in {file.with_name(MODEL)}")
        return of_run(name, run_dir, file, overrides)
    info = read_info(file)
    if given:
        loaded = load(overrides)
    elif info is not None:
        refuse_own_code(info, file)
        loaded = _described(info, file, overrides)
    else:
        raise ValueError(f"{file} does not say which network it is of: add recipe=NAME (`launch recipes` lists them)")
    classes, notes = info.classes if info else [], [*loaded.notes]
    if not classes and (run_dir := _run_of_recipe(overrides)) is not None and read_evaluation(run_dir):
        found = class_names(run_dir)
        if len(found) == outputs_of(read_weights(file), file):
            classes = found
            notes.append(f"{file} names no classes: those of {run_dir} are taken")
    return Trained(name, file, loaded.recipe, classes, None, None, tuple(notes))


def _run_of_recipe(overrides: Sequence[str]) -> Path | None:
    """The run directory whose recipe `recipe=` names."""
    path = next(
        (Path(value).expanduser() for key, _, value in (word.partition("=") for word in overrides) if key == "recipe"),
        Path(),
    )
    folder = path.parent if path.name == "recipe.yaml" else path
    return folder if (folder / "recipe.yaml").is_file() else None


def _described(info: WeightsInfo, file: Path, overrides: Sequence[str]) -> Loaded:
    """The recipe of weights by what they say of themselves: their own where it comes with the program."""
    augment = {key: getattr(info, key) for key in PREPARED}
    values: dict[str, Any] = {"model": info.model.model_dump(mode="json"), "augment": augment, "loss": info.loss}
    if info.recipe not in names() or len(info.mean) != 3:  # whose data is RGB
        values |= {"data": {"source": "image_folder", "train": UNKNOWN, "val": UNKNOWN}, "epochs": 1, "batch_size": 64}
    if info.pixel_max is not None:
        values["data"] = values.get("data", {}) | {"pixel_max": info.pixel_max}
    return load_over(info.recipe, values, str(file), overrides)


def _run_of_file(file: Path) -> Path | None:
    """The run directory that a file lies in: beside its recipe, in a checkpoint, or among the weights kept for good."""
    above = file.absolute().parents
    return next((folder for folder in above[:3] if is_run(folder)), None)
