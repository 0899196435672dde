"""Send runs to Slurm clusters; `launch` is also the command. Never imports torch.

    import launch

    run = launch.submit("resnet50_imagenet", cluster="mine", nodes=4)     # a resnet.Run
    run.status["state"]

What `__all__` names is kept from version to version; all else is internal.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from launch.api import submit
    from resnet.process.version import VERSION as __version__

__all__ = ["__version__", "submit"]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return importlib.import_module("resnet.process.version").VERSION
    if name == "submit":
        return importlib.import_module("launch.api").submit
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
