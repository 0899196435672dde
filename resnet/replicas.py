"""Whether the ranks still hold one and the same network: a bit that flips in one of them is found, and the rank named.

Ranks begin with equal weights and add the same gradients to them, so that weights, the optimizer's moments and the
average of the weights stay equal to the last bit. Where they are not, hardware has computed or kept something wrong
without an error: silent data corruption (Dixit et al. 2021, arXiv:2102.11245).
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence

import torch
import torch.distributed as dist

from recipes.text import listed
from resnet.process.environment import node_name
from resnet.ranks import of_all_ranks
from resnet.state import TrainState, networks

_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int32, 16: torch.int32}
"""By bytes of an element, as what it is read: in four bytes at most, a change of one is never lost in the sum."""
_CHUNK = 1 << 15
"""Elements that a CPU takes at once, so that what is made of them stays in its caches: three times as fast."""


class SilentCorruption(RuntimeError):
    """A device computed or kept something wrong without an error; the message names its rank, where that is known.

    own: whether it is the fault of this rank.
    """

    def __init__(self, message: str, own: bool) -> None:
        super().__init__(f"silent data corruption: {message}")
        self.own = own


def check_replicas(state: TrainState) -> None:
    """Compare the ranks' states: one reduction of two numbers a tensor. With one rank it looks for NaN alone.

    BatchNorm's running statistics are not compared, which differ from rank to rank.
    Raises SilentCorruption where ranks differ, and FloatingPointError where weights are not finite; on all ranks alike.
    """
    broken = _not_finite(state)
    if not dist.is_initialized() or dist.get_world_size() == 1:
        differ, is_broken = False, bool(broken)
    else:
        tensors = replicated(state)
        sums = checksums([*tensors.values()])
        # Of the complements the largest is that of the smallest: both ends in one reduction.
        ends = torch.cat([broken.long()[None], sums, ~sums])
        dist.all_reduce(ends, op=dist.ReduceOp.MAX)
        largest, smallest = ends[1:].chunk(2)
        differ, is_broken = torch.stack([(largest != ~smallest).any(), ends[0] > 0]).tolist()
        if differ:
            _blame([*tensors], sums)
    if is_broken:
        raise FloatingPointError(f"weights are not finite after step {state.step}: not saved")


def _not_finite(state: TrainState) -> torch.Tensor:
    tensors = [t for network in networks(state) for t in network.state_dict().values() if t.is_floating_point()]
    return (~torch.isfinite(torch.stack(torch._foreach_norm(tensors)))).any()


def replicated(state: TrainState) -> dict[str, torch.Tensor]:
    """By name, what is the same on all ranks and on their devices: parameters, their moments, and their averages."""
    found: dict[str, torch.Tensor] = {}
    for name, parameter in state.model.named_parameters():
        found[name] = parameter
        for moment, value in state.optimizer.state.get(parameter, {}).items():
            # Counts of steps may lie on the host.
            if isinstance(value, torch.Tensor) and value.device == parameter.device:
                found[f"{moment} of {name}"] = value
    # Until it has taken in weights it is a copy of those that this rank began with.
    if state.ema and state.ema.updates:
        found |= {f"average of {name}": parameter for name, parameter in state.ema.module.named_parameters()}
    return found


@torch.no_grad()
def checksums(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """int64 (tensors,), on their device: of each the bits of its elements as numbers, times 1, 3, 5, ... in the order
    they have in memory, added up modulo 2**64.

    Any change of one element changes the sum, and so does a swap of two unequal ones: a difference of less than 2**32
    times an odd number, or times one below 2**32, is not 0 modulo 2**64. Nothing makes the host wait.
    """
    words = [_in_memory(tensor).view(_WORDS[tensor.element_size()]) for tensor in tensors]
    odd = 2 * torch.arange(max(len(word) for word in words), device=words[0].device) + 1
    length = _CHUNK if odd.device.type == "cpu" else len(odd)
    sums = [
        [(part * times).sum() for part, times in zip(word.split(length), odd[: len(word)].split(length), strict=True)]
        for word in words
    ]
    return torch.stack([torch.stack(of_parts).sum() for of_parts in sums])


def _in_memory(tensor: torch.Tensor) -> torch.Tensor:
    """(elements,), without a copy where the tensor has no gaps."""
    return tensor.detach().permute(sorted(range(tensor.dim()), key=tensor.stride, reverse=True)).reshape(-1)


def _blame(names: Sequence[str], sums: torch.Tensor) -> None:
    """Raise SilentCorruption, unless only ranks on devices of different kinds differ."""
    gathered = [torch.empty_like(sums) for _ in range(dist.get_world_size())]
    dist.all_gather(gathered, sums)
    rows = [tuple(row.tolist()) for row in gathered]
    hosts, kinds = zip(*of_all_ranks((node_name(), device_kind(sums.device))), strict=True)
    rank = dist.get_rank()
    for kind in dict.fromkeys(kinds):
        alike = [each for each in range(len(rows)) if kinds[each] == kind]
        wrong = odd_ones([rows[each] for each in alike])
        if wrong == []:
            continue
        named = alike if wrong is None else [alike[each] for each in wrong]
        places = listed([f"rank {each} on {hosts[each]}" for each in named])
        apart = [name for name, values in zip(names, zip(*(rows[e] for e in alike), strict=True), strict=True)
                 if len(set(values)) > 1]  # fmt: skip
        what = f"{listed(apart)} of {len(names)} tensors"
        if wrong is None:
            told = f"{places} hold different values of {what}, and there is no majority that tells which are right"
        else:
            told = f"{places}: values that differ from the other ranks', in {what}"
        raise SilentCorruption(f"{told}; not saved", own=wrong is not None and rank in named)
    if rank == 0:
        told = f"on devices of different kinds, which round differently: {listed([*dict.fromkeys(kinds)])}"
        print(f"the ranks' weights differ, {told}", file=sys.stderr, flush=True)


def odd_ones(values: Sequence[object]) -> list[int] | None:
    """Which of the values differ from the most frequent one; None where that is not one of two at least."""
    (most, times), *others = Counter(values).most_common(2)
    if others and (times == 1 or others[0][1] == times):
        return None
    return [number for number, value in enumerate(values) if value != most]


def device_kind(device: torch.device) -> str:
    """What decides, beside the bits that go in, how a device rounds."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{torch.backends.cpu.get_cpu_capability()} CPU, {torch.get_num_threads()} threads"
