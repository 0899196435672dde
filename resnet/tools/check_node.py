"""What a rank looks at before a job's training starts: its GPU, known products, its node, the network to the others.

    python -m resnet.tools.check_node RUN_DIR

One of as many tasks of `srun` as there will be ranks, which `slurm.node_check` starts and judges: each prints a row of
what it has found alone, then, where there are several, one of what they have found together.
"""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import sys
import tempfile
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from recipes.load import load_file
from resnet.process.check_lines import tell
from resnet.process.environment import machine_memory, node_name
from resnet.process.nvml import Health, health
from resnet.process.stages import age

PRODUCT_SECONDS = 0.5
"""For which known products are made."""
JOIN_TIMEOUT = timedelta(seconds=40)
HELD_GB = 2.0
"""Of a GPU's memory, in use beside what this process has allocated: a context of CUDA is about half a GB."""
SENT_BYTES = {"cuda": 64 * 2**20, "cpu": 2**20}
TIMES = 3
"""That an exchange is made, after one that is not timed: the first connects."""


def main(argv: list[str]) -> int:
    rank, world = int(os.environ.get("SLURM_PROCID", "0")), int(os.environ.get("SLURM_NTASKS", "1"))
    local_rank, local_ranks = int(os.environ.get("SLURM_LOCALID", "0")), world // int(os.environ["SLURM_NNODES"])
    who = {"node": node_name(), "rank": rank}
    facts = _of_node(Path(argv[0])) if local_rank == 0 else {}
    # What all nodes share has been read: one that hangs from here on does so by itself.
    tell(who | {"begun": round(age(), 1)})
    device, bad = _device_and_what_is_wrong(local_rank, facts)
    tell(who | {"device": device.type, "bad": bad, "facts": facts, "after": round(age(), 1)})
    if world > 1:
        try:
            tell(who | together(rank, world, local_ranks, device))
        except (RuntimeError, ValueError, OSError) as error:
            tell(who | {"trouble": f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"})
    sys.stdout.flush()
    # To take leave of ranks that are gone, or hang, could take for ever.
    os._exit(0)


def _device_and_what_is_wrong(local_rank: int, facts: dict[str, Any]) -> tuple[torch.device, list[str]]:
    if not torch.cuda.is_available():
        return torch.device("cpu"), wrong_products(torch.device("cpu"))
    device = torch.device("cuda", local_rank % torch.cuda.device_count())
    try:
        torch.cuda.set_device(device)
        before = _told(device)
        wrong = wrong_products(device)
        return device, [*_of_gpu(device, before, facts), *wrong]
    except RuntimeError as error:
        if "no kernel image" in str(error):
            # This torch was not built for such GPUs, which is no defect: the ranks will tell.
            return device, []
        return device, [f"{device}: {str(error).strip().splitlines()[0]}"]


def _told(device: torch.device) -> Health | None:
    return health(f"GPU-{torch.cuda.get_device_properties(device).uuid}")


def _of_gpu(device: torch.device, before: Health | None, facts: dict[str, Any]) -> list[str]:
    """What is wrong with the GPU by its driver's word, now and a while before, and by who else uses it."""
    properties, told = torch.cuda.get_device_properties(device), _told(device)
    name = f"GPU {device.index} ({properties.name}, {properties.uuid})"
    if told and before:
        # For a moment it may be for other reasons than a defect.
        told = told._replace(slowed=[why for why in told.slowed if why in before.slowed])
    free, whole = torch.cuda.mem_get_info(device)
    held = (whole - free - torch.cuda.memory_reserved(device)) / 1e9
    facts["gpu"] = {"name": properties.name, "free_gb": round(free / 1e9, 1)} | (told._asdict() if told else {})
    found = [*(unhealthy(told) if told else [])]
    if held > HELD_GB:
        found.append(f"others hold {held:.1f} GB of its memory")
    return [f"{name}: {what}" for what in found]


def unhealthy(told: Health) -> list[str]:
    """What by NVIDIA's word speaks against the use of a GPU.

    https://docs.nvidia.com/deploy/a100-gpu-mem-error-mgmt/: after an uncorrectable error a row of memory is replaced at
    the next reset of the GPU, until when the remapping is pending; a remapping that failed is a reason to return it.
    """
    found = []
    if told.ecc_errors:
        found.append(f"{told.ecc_errors} uncorrectable ECC errors since its driver was loaded")
    if told.remap_failed:
        found.append("a row of its memory could not be remapped: it is to be replaced")
    if told.remap_pending:
        found.append("bad memory waits to be remapped: it is to be reset")
    return [*found, *told.slowed]


def wrong_products(device: torch.device, seconds: float = PRODUCT_SECONDS) -> list[str]:
    """Multiply matrices of small integers over and over, whose product is exact in any order of the additions.

    Sums stay below 2^24, up to which a float32 holds every integer; of bfloat16 the exact product is rounded once. On a
    GPU both run on the tensor cores, in enough tiles for all its multiprocessors. What differs is told.
    """
    on_gpu = device.type == "cuda"
    rows, depth = (4096, 1024) if on_gpu else (256, 256)
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randint(-7, 8, shape, generator=generator) for shape in ((rows, depth), (depth, rows)))
    with _exact():
        exact = (left.to(device, torch.float64) @ right.to(device, torch.float64)).round()
        if not torch.equal(exact[:64].cpu().long(), left[:64] @ right):
            return [f"{device}: float64 products of integers are wrong"]
        found = []
        for dtype in (torch.float32, torch.bfloat16) if on_gpu else (torch.float32,):
            a, b, expected = left.to(device, dtype), right.to(device, dtype), exact.to(dtype)
            wrong, times, begin = torch.zeros((), dtype=torch.int64, device=device), 0, time.perf_counter()
            while not times or time.perf_counter() - begin < seconds:
                for _ in range(10):
                    wrong += (a @ b != expected).sum()
                times += 10
                if on_gpu:
                    torch.cuda.synchronize(device)
            if count := int(wrong):
                name = str(dtype).removeprefix("torch.")
                found.append(f"{device}: {count} wrong numbers in {times} known products ({name})")
    return found


@contextlib.contextmanager
def _exact():
    """Tensor cores for float32 too (TF32 holds these integers), no sums in bfloat16."""
    matmul = torch.backends.cuda.matmul
    before = matmul.allow_tf32, matmul.allow_bf16_reduced_precision_reduction
    matmul.allow_tf32, matmul.allow_bf16_reduced_precision_reduction = True, False
    try:
        yield
    finally:
        matmul.allow_tf32, matmul.allow_bf16_reduced_precision_reduction = before


def _of_node(run_dir: Path) -> dict[str, Any]:
    """What this node has left, and what of the run's data cannot be read on it."""
    shared = Path("/dev/shm")
    return {
        "tmp_gb": round(shutil.disk_usage(tempfile.gettempdir()).free / 1e9, 3),
        "shm_gb": round(shutil.disk_usage(shared).free / 1e9, 3) if shared.is_dir() else None,
        "memory_gb": round((machine_memory() or 0) / 1e9, 1) or None,
        "files": resource.getrlimit(resource.RLIMIT_NOFILE)[1],
        "unreadable": _unreadable(run_dir),
    }


def _unreadable(run_dir: Path) -> list[str]:
    """The paths of the recipe's data that cannot be read here; those on a node's own disk are yet to be filled."""
    resolved, scratch = run_dir / "slurm" / "recipe.yaml", os.environ.get("SCRATCH")
    if not resolved.is_file():
        return [] if run_dir.is_dir() else [str(run_dir)]
    try:
        paths = load_file(resolved).recipe.data.paths()
    except ValueError:
        # The ranks will tell.
        return []
    found = []
    for key, text in paths.items():
        path = Path(os.path.expandvars(text)).expanduser() if text else None
        if path is None or (scratch and path.is_relative_to(scratch)):
            continue
        try:
            if path.is_dir():
                next(os.scandir(path), None)
            else:
                path.open("rb").close()
        except OSError as error:
            found.append(f"data.{key}={text}: {error.strerror}")
    return found


def together(rank: int, world: int, local_ranks: int, device: torch.device) -> dict[str, Any]:
    """Join all ranks; the clock as they leave a barrier, and GB/s of exchanges between pairs and of an all-reduce."""
    backend = "nccl" if device.type == "cuda" else "gloo"
    address = f"tcp://{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    dist.init_process_group(backend, init_method=address, rank=rank, world_size=world, timeout=JOIN_TIMEOUT)
    mine = torch.ones(SENT_BYTES[device.type] // 4, device=device)
    dist.all_reduce(mine[:1])
    _await(device)
    clock = time.time()
    rates = []
    for shift in (0, 1):
        if (other := partner(rank, world, local_ranks, shift)) is not None:
            rates.append(_best_rate(device, lambda other=other: _exchange(mine, other), mine.nbytes))
        dist.all_reduce(mine[:1])
        _await(device)
    whole = _best_rate(device, lambda: dist.all_reduce(mine), 2 * (world - 1) / world * mine.nbytes)
    return {"clock": clock, "pair_gbs": max(rates, default=None), "all_reduce_gbs": whole, "backend": backend}


def partner(rank: int, world: int, local_ranks: int, shift: int) -> int | None:
    """The rank of the same place on the node beside this one's, on one side or the other; None for one left over.

    With both shifts each node is measured with two others, so that one that is slow can be told from its neighbours.
    """
    nodes, (node, place) = world // local_ranks, divmod(rank, local_ranks)
    other = node + (1 if (node + shift) % 2 == 0 else -1)
    if nodes % 2 == 0:
        other %= nodes
    return other * local_ranks + place if 0 <= other < nodes and nodes > 1 else None


def _exchange(mine: torch.Tensor, other: int) -> None:
    theirs = torch.empty_like(mine)
    works = dist.batch_isend_irecv([dist.P2POp(dist.isend, mine, other), dist.P2POp(dist.irecv, theirs, other)])
    for work in works:
        work.wait()


def _best_rate(device: torch.device, exchange: Any, sent: float) -> float:
    """GB/s of the quickest of several exchanges."""
    spent = []
    for _ in range(TIMES + 1):
        begin = time.perf_counter()
        exchange()
        _await(device)
        spent.append(time.perf_counter() - begin)
    return sent / min(spent[1:]) / 1e9


def _await(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
