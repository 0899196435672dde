"""From the words of `launch chain` to steps: the run each acts on, and the one it makes, settled before any begins."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from launch.runs.checks import check_name
from launch.runs.here import programs_environment
from recipes.load import load
from recipes.schema.recipe import Recipe
from recipes.text import suggestion
from resnet.rundir.chain import TRAIN, train_words
from resnet.rundir.sweep.sweep_file import read_sweep

STEPS = ("eval", "predict", "features", "report", "export", "quantize", "prune", TRAIN)
"""Commands that take one run."""
MAKES = {"prune": "pruned", TRAIN: "tuned"}
"""Those that make another run, with what is added to the name of the one they take."""
Step = dict[str, Any]
"""As `resnet.rundir.chain.read_chain` gives it."""


def settle(subject: Path, is_sweep: bool, commands: Sequence[str]) -> tuple[list[Step], list[Recipe]]:
    """The steps that words say, `--` between them, for a run or a sweep; and the recipe of each `train` among them.

    Raises ValueError for what is wrong with them, as far as it can be known before the first has run.
    """
    lines = _split(commands)
    names = _check_words(lines)
    steps: list[Step] = []
    recipes: list[Recipe] = []
    changes: list[str] = []
    # The winner is not known yet: what is made of it is called so.
    run_dir = subject / "winner" if is_sweep else subject
    acts_on = None if is_sweep else str(subject)
    for number, ((command, *words), name) in enumerate(zip(lines, names, strict=True), 1):
        step: Step = {"command": command, "words": words, "acts_on": acts_on, "makes": None, "job_id": None}
        if command in MAKES:
            try:
                if name and Path(name).name != name:
                    raise ValueError(f"--name {name}: give a name without slashes; it will lie beside {run_dir.name}")
                made = run_dir.with_name(name or f"{run_dir.name}-{MAKES[command]}")
                if command == TRAIN:
                    changes += words
                    recipe, made = _load(subject, is_sweep, changes, words, made)
                    recipes.append(recipe)
                    step["words"] = _placed(words, made)
                else:
                    check_name(made)
                    step["words"] = words if name else [*words, "--name", made.name]
                _refuse_taken(command, made, steps)
            except ValueError as error:
                raise ValueError(f"step {number} ({command}): {error}") from error
            step["makes"] = acts_on = str(made)
            run_dir = made
        steps.append(step)
    return steps, recipes


def _split(words: Sequence[str]) -> list[list[str]]:
    lines: list[list[str]] = [[]]
    for word in words:
        if word == "--":
            lines.append([])
        else:
            lines[-1].append(word)
    for number, line in enumerate(lines, 1):
        if not line:
            raise ValueError(f"step {number} is empty: launch chain RUN -- STEP ... -- STEP ..., as -- eval -- report")
        if line[0] not in STEPS:
            raise ValueError(f"step {number}: no step {line[0]!r}: {suggestion(line[0], STEPS)}")
    return lines


def _check_words(lines: Sequence[Sequence[str]]) -> list[str | None]:
    """What each step names its new run by --name. Raises ValueError, a line each, for words that it does not take.

    Asked of another process: the commands are the training program's.
    """
    asked = [[line[0], "RUN", *line[1:]] for line in lines if line[0] != TRAIN]
    command = [sys.executable, "-m", "resnet.tools.check_words", json.dumps(asked)]
    answers = iter(json.loads(subprocess.check_output(command, env=programs_environment(), text=True)) if asked else [])
    found = [{"problem": None, "name": None} if line[0] == TRAIN else next(answers) for line in lines]
    wrong = [
        f"step {number} ({line[0]}): {answer['problem']}"
        for number, (line, answer) in enumerate(zip(lines, found, strict=True), 1)
        if answer["problem"]
    ]
    if wrong:
        raise ValueError("\n".join(wrong))
    return [answer["name"] if line[0] in MAKES else None for line, answer in zip(lines, found, strict=True)]


def _known_recipe(subject: Path, is_sweep: bool) -> Path:
    """A recipe that is there now and has the keys of the one that is to be trained on."""
    if not is_sweep:
        return subject / "recipe.yaml"
    trials = (subject / trial["name"] for trial in read_sweep(subject)["trials"])
    files = (file for trial in trials for file in (trial / "recipe.yaml", trial / "slurm" / "recipe.yaml"))
    if found := next((file for file in files if file.is_file()), None):
        return found
    raise ValueError("no trial has begun: nothing tells the recipe yet")


def _load(
    subject: Path, is_sweep: bool, changes: Sequence[str], words: Sequence[str], made: Path
) -> tuple[Recipe, Path]:
    """The recipe of a `train` step by all changes so far, and the directory of the run that it makes."""
    keys = {word.partition("=")[0] for word in words}
    for key in {"recipe", "resume"} & keys:
        raise ValueError(f"{key}= is the chain's: it trains on from the weights of the run before, in a new run")
    # The weights are not there yet: those of what is there stand for them.
    recipe = load(train_words(_known_recipe(subject, is_sweep), subject, changes)).recipe
    root = Path(recipe.run.root).expanduser().absolute() if "run.root" in keys else made.parent
    made = root / ((recipe.run.name if "run.name" in keys else None) or made.name)
    check_name(made)
    run = recipe.run.model_copy(update={"name": made.name, "root": str(made.parent)})
    return recipe.model_copy(update={"run": run}), made


def _placed(words: Sequence[str], made: Path) -> list[str]:
    """The words of a `train` step with its place; it is no trial of a sweep, whatever the run before it was."""
    own = [word for word in words if word.partition("=")[0] not in ("run.name", "run.root")]
    place = [f"run.root={json.dumps(str(made.parent))}", f"run.name={json.dumps(made.name)}"]
    return ["wandb.sweep=null", *own, *place]


def _refuse_taken(command: str, made: Path, steps: Sequence[Step]) -> None:
    if made.exists() or any(step["makes"] == str(made) for step in steps):
        option = "run.name=NAME" if command == TRAIN else "--name NAME"
        raise ValueError(f"{made} is there already: choose another name ({option})")
