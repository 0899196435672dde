"""The process, run by its path, that makes a sweep known to W&B: a request of JSON on standard input, `id ID` printed.

A process of its own: wandb may print, ask for a key, or hang.
"""

from __future__ import annotations

import json
import sys


def main() -> None:
    import wandb

    print("id", wandb.sweep(**json.load(sys.stdin)))


if __name__ == "__main__":
    # This folder, whose files are no modules of their own.
    del sys.path[0]
    main()
