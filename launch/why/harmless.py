"""Lines that name an error and explain no failure: a log of a run that does well has them too."""

from __future__ import annotations

import re

_HARMLESS = re.compile(
    "|".join(
        (
            r"(?:^|[\s:|\[])(?:INFO|DEBUG|WARNING|Warning)(?![\w-])",
            # As `UserWarning: Failed to load image Python extension: 'libjpeg.so.8: cannot open shared object file`.
            r"\b[A-Z]\w*Warning: ",
            # Of torch's C++ code: an address in use that is tried again, as the next port is.
            r"\[[WI]\d{0,4}[ :]?[^]]{0,60}\.cpp:\d+\]",
            r"^wandb: ",
            r"NET/Plugin|Failed to open libibverbs|LD_PRELOAD cannot be preloaded",
            # Slurm goes on from another folder; a shell goes on without its start file.
            r"couldn't chdir to .*: going to ",
            r"/etc/(?:profile|bash)|\.(?:bashrc|bash_profile|profile|zshrc|cshrc|login)\b",
            r"(?:^|\s)/(?:proc|sys)/",
        )
    )
)


def is_harmless(line: str) -> bool:
    """Whether a line is no more than a notice or a warning, or of what a program does without."""
    return bool(_HARMLESS.search(line))
