"""`launch status SWEEP`: counts, the leaderboard, how sure it is, and the winner's recipe."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from launch.runs.chain import Row, chain_rows, goes_on
from launch.runs.chain import lines as chain_lines
from launch.runs.state import rows
from launch.sweep.text import lines, to_csv, to_object, write_best
from resnet.rundir.files import to_json
from resnet.rundir.sweep.results import Board, folders, results, sweep_so_far
from slurm.queue import asked_once


def show(sweep_dir: Path, arguments: argparse.Namespace, width: int | None) -> str:
    """The sweep as text, JSON or CSV, or the path of its picture."""
    with asked_once():
        board, _ = _board(sweep_dir)
        chain = chain_rows(sweep_dir)
    if arguments.json:
        return to_json(to_object(board) | {"chain": chain}, indent=1)
    if arguments.csv:
        return to_csv(board).rstrip()
    if arguments.plot:
        from launch.sweep.plot import plot

        file = sweep_dir / "sweep.png"
        plot(board, file)
        return str(file)
    return "\n".join([*lines(board, width), *_chain_lines(chain)])


def look(sweep_dir: Path, width: int | None) -> tuple[list[str], bool, bool]:
    """Its lines, whether all trials are over, and whether Slurm was asked."""
    with asked_once():
        board, open_jobs = _board(sweep_dir)
        chain = chain_rows(sweep_dir)
    waiting = sum(number for state, number in board.counts.items() if state in ("running", "queued"))
    told = [*lines(board, width), *_chain_lines(chain)]
    return told, not waiting and not goes_on(chain), open_jobs or goes_on(chain)


def _chain_lines(chain: Sequence[Row]) -> list[str]:
    return ["", *chain_lines(chain)] if chain else []


def _board(sweep_dir: Path) -> tuple[Board, bool]:
    sweep = sweep_so_far(sweep_dir)
    found = rows(folders(sweep))
    board = results(sweep, found)
    write_best(sweep_dir, board)
    return board, any(row["job_id"] and not row["over"] for row in found)
