"""What `import resnet` offers: recipes, networks, and runs with what they measured and learnt.

Nothing here changes the process that calls it: threads, environment, signals, random numbers and child processes stay.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from resnet.api.recipe import build_model, load, load_recipe, weights_info
from resnet.api.run import Run
from resnet.api.several import board, compare, diff, evaluate, report, runs

if TYPE_CHECKING:
    from resnet.tools.evaluate import Evaluation
    from resnet.tools.predict import Prediction
    from resnet.weights_file import WeightsInfo

__all__ = [
    "Evaluation",
    "Prediction",
    "Run",
    "WeightsInfo",
    "board",
    "build_model",
    "compare",
    "diff",
    "evaluate",
    "load",
    "load_recipe",
    "report",
    "runs",
    "weights_info",
]
