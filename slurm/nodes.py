"""Which of a job's nodes are trained on. Only the standard library."""

from __future__ import annotations

from collections.abc import Callable, Sequence


class Nodes:
    """The nodes of a job in Slurm's order, of which the first good ones are in use; others are spare.

    wanted: how many are trained on; None: all. ranks: of a node.
    """

    def __init__(self, names: Sequence[str], wanted: int | None, ranks: int) -> None:
        self.names, self.ranks = list(names), ranks
        self.wanted = wanted or len(self.names)
        self.left_out: dict[str, str] = {}
        """Why, by the node."""

    @property
    def good(self) -> list[str]:
        return [name for name in self.names if name not in self.left_out]

    @property
    def kept(self) -> list[str]:
        """Those that stay in the job: the good ones, and the first, on which the batch script runs."""
        return [name for name in self.names if name == self.names[0] or name not in self.left_out]

    @property
    def in_use(self) -> list[str]:
        return self.good[: self.wanted]

    @property
    def spares(self) -> list[str]:
        return self.good[self.wanted :]

    def leave_out(self, node: str, why: str) -> None:
        if node in self.names:
            self.left_out.setdefault(node, why)

    def shrink(self, fits: Callable[[int], bool]) -> bool:
        """Where too few are good, train on fewer, if as many ranks fit the run; returns whether it can go on."""
        if len(self.good) < self.wanted:
            self.wanted = next((count for count in range(len(self.good), 0, -1) if fits(count * self.ranks)), 0)
        return self.wanted > 0

    def only(self, nodes: Sequence[str]) -> list[str]:
        """What srun is told so that it starts tasks on these nodes; [] where they are all of the job's."""
        return [] if list(nodes) == self.names else [f"--nodes={len(nodes)}", f"--nodelist={','.join(nodes)}"]

    def options(self) -> list[str]:
        """What srun is told so that it starts the ranks; [] where it does so by itself."""
        if not (where := self.only(self.in_use)):
            return []
        return [*where, f"--ntasks={self.ranks * len(self.in_use)}", f"--ntasks-per-node={self.ranks}"]
