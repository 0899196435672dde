"""Which of a job's nodes are trained on. Only the standard library."""

from __future__ import annotations

from collections.abc import Callable, Sequence


class Nodes:
    """The nodes of a job in Slurm's order, of which the first good ones are in use; others are spare.

    wanted: how many are trained on; None: all. ranks: of a node.
    sizes: where a job may be given several numbers of nodes, those that its run can be trained on; then as many as it
    has come to are wanted.
    """

    def __init__(self, names: Sequence[str], wanted: int | None, ranks: int, sizes: Sequence[int] = ()) -> None:
        self.names, self.ranks, self._sizes = list(names), ranks, frozenset(sizes)
        self.wanted = max((size for size in sizes if size <= len(self.names)), default=wanted or len(self.names))
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
            fewer = range(len(self.good), 0, -1)
            self.wanted = next((size for size in fewer if size in self._sizes or fits(size * self.ranks)), 0)
        return self.wanted > 0

    def only(self, nodes: Sequence[str]) -> list[str]:
        """What srun is told so that it starts tasks on these nodes; [] where they are all of the job's."""
        return [] if list(nodes) == self.names else [f"--nodes={len(nodes)}", f"--nodelist={','.join(nodes)}"]

    def options(self) -> list[str]:
        """What srun is told so that it starts the ranks; [] where it does so by itself."""
        where = self.only(self.in_use)
        if not where and not self._sizes:
            return []
        return [*where, f"--ntasks={self.ranks * len(self.in_use)}", f"--ntasks-per-node={self.ranks}"]
