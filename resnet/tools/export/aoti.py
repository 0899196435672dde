"""Programs of torch.export compiled for this kind of CPU, by AOTInductor."""

from __future__ import annotations

import io
from typing import Any

import torch

from resnet.tools.export.tracing import CannotExport

FREEZING = {"freezing": True, "compile_threads": 1}
"""The weights are constants: those in int8 are packed for its kernels."""


def has_compiler() -> bool:
    """Whether there is the C++ compiler that AOTInductor needs: g++, or the one that CXX names."""
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        get_cpp_compiler()
    except RuntimeError:
        return False
    return True


def compiled(program: torch.export.ExportedProgram) -> bytes:
    """The package of a program, with all that it needs.

    Raises `CannotExport` where the C++ compiler fails, and what torch does, of many kinds.
    """
    from torch._inductor import aoti_compile_and_package, config
    from torch._inductor.exc import CppCompileError
    from torch._inductor.utils import fresh_cache

    settings: dict[str, Any] = {**FREEZING}
    if hasattr(config.aot_inductor, "enable_line_tables"):
        # Of torch 2.14 on: a megabyte for debuggers.
        settings["aot_inductor.enable_line_tables"] = False
    package = io.BytesIO()
    # A cache would keep what is compiled once.
    try:
        with fresh_cache():
            aoti_compile_and_package(program, package_path=package, inductor_configs=settings)
    except CppCompileError as error:
        lines = [line for line in str(error).splitlines() if "error" in line.lower()] or [str(error)]
        raise CannotExport(f"the C++ compiler failed ({lines[-1].strip()})") from error
    return package.getvalue()
