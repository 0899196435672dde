"""Train ResNets and use what was trained.

    import resnet

    recipe = resnet.load_recipe("quickstart", {"optimizer.lr": 0.1})
    model = resnet.build_model(recipe, num_classes=10)

    run = resnet.Run("my-run")              # a name in runs/, or a path
    run.status["state"], run.metrics()[-1]
    run.predict("photos/", top=5)
    run.evaluate(**{"eval.flip": True})

What `__all__` names is kept from version to version; all else is internal. torch is imported once weights are touched.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from recipes.schema.recipe import Recipe
    from resnet.api import (
        Evaluation,
        Prediction,
        Run,
        WeightsInfo,
        board,
        build_model,
        compare,
        diff,
        evaluate,
        load,
        load_recipe,
        report,
        runs,
        weights_info,
    )
    from resnet.process.version import VERSION as __version__

__all__ = [
    "Evaluation",
    "Prediction",
    "Recipe",
    "Run",
    "WeightsInfo",
    "__version__",
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

_HOMES = {
    "Evaluation": "resnet.tools.evaluate",
    "Prediction": "resnet.tools.predict",
    "Recipe": "recipes.schema.recipe",
    "Run": "resnet.api",
    "WeightsInfo": "resnet.weights_file",
    "board": "resnet.api",
    "build_model": "resnet.api",
    "compare": "resnet.api",
    "diff": "resnet.api",
    "evaluate": "resnet.api",
    "load": "resnet.api",
    "load_recipe": "resnet.api",
    "report": "resnet.api",
    "runs": "resnet.api",
    "weights_info": "resnet.api",
}
"""By name: the module that is imported once the name is used."""


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return importlib.import_module("resnet.process.version").VERSION
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
