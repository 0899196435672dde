"""`accelerate launch`, run by its path, that leaves with the code of the first rank that did not end well.

Accelerate 1.15 itself leaves with 1 whatever the code was, and prints a traceback.
"""

from __future__ import annotations

import gc
import logging
import subprocess
import sys


def main() -> int:
    """Launch what the command line says; returns the ranks' exit code, that of a killed one as a shell gives it."""
    # While modules are imported nothing is garbage, and looking for it takes a third of the time.
    gc.disable()
    from accelerate.commands.launch import main as launch
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    gc.enable()
    logging.disable()
    code = 0
    try:
        launch()
    except subprocess.CalledProcessError as error:
        code = error.returncode
    except ChildFailedError as error:
        code = error.get_first_failure()[1].exitcode
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    # This folder, whose files are no modules of their own.
    del sys.path[0]
    sys.exit(main())
