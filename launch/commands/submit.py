"""`launch submit`: send a run to Slurm."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from launch.arguments import WORDS_USAGE, Words, add_grow, growing, split_words
from launch.runs.expected import expected, limit_of, lines
from launch.runs.go_in import placed
from launch.runs.held import Holding
from launch.runs.read_once import read_once
from launch.runs.requests import Place, Request, submission_of
from launch.runs.send import SNAPSHOTS, prepare, shown, submit
from launch.runs.send import told as told_jobs
from launch.runs.sizes import Sizes, others_left_out
from launch.runs.slices import described
from recipes.load import Loaded, load
from recipes.plan import either, samples_known
from recipes.schema.recipe import Recipe
from recipes.text import plural
from resnet.process.exit_codes import FINISHED
from resnet.rundir.attempts import newest_step, read_attempts
from slurm.code_copy import snapshot_path
from slurm.profile import Profile, load_profile, wrong_in_list
from slurm.queue import asked_once
from slurm.sbatch import SlurmError, Submission, expected_start, script


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = (
        f"launch submit recipe=NAME cluster=NAME {WORDS_USAGE} [--dry-run | --rehearse [--keep] | --in JOBID] [--debug]"
    )
    parser.add_argument(
        "words",
        nargs="*",
        metavar="KEY=VALUE",
        help="recipe=NAME and changes to it; cluster=NAME or FILE.yaml and changes to it, as in slurm.nodes=4",
    )
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--dry-run", action="store_true", help="print what would be sent, and what is expected")
    how.add_argument("--rehearse", action="store_true", help="send it for a few steps and tell what would go wrong")
    how.add_argument(
        "--in", dest="job", metavar="JOBID", help="train now, on the nodes of a job that you hold (salloc)"
    )
    add_grow(parser)
    parser.add_argument("--keep", action="store_true", help="keep the directory of a rehearsal in which all was well")


def run(arguments: argparse.Namespace) -> int:
    words = split_words(arguments.words, needs_cluster=not arguments.job)
    if arguments.keep and not arguments.rehearse:
        raise ValueError("--keep is for --rehearse: a run's directory always stays")
    if arguments.job:
        if growing(arguments):
            raise ValueError(f"--grow: job {arguments.job} has its nodes already")
        return _submit_in(arguments.job, words)
    if words.cluster is None:
        raise ValueError("give cluster=NAME: a profile of the cluster (`launch doctor` lists and checks them)")
    changes = [*words.slurm, *growing(arguments)]
    if wrong := wrong_in_list(words.cluster):
        raise ValueError(f"cluster={words.cluster}: {wrong}")
    places = [Place(name, load_profile(name, changes)) for name in words.cluster.split(",")]
    loaded = load(words.recipe)
    if arguments.rehearse:
        from launch.runs.rehearsal import rehearse

        if len(places) > 1:
            raise ValueError(
                f"cluster={words.cluster}: rehearse on one cluster at a time, as cluster={places[0].cluster}"
            )
        return rehearse(loaded, *places[0], arguments.keep)
    return _submit(loaded, places, arguments.dry_run)


@asked_once()
@read_once()
def _submit(loaded: Loaded, places: Sequence[Place], dry_run: bool) -> int:
    prepared = prepare(loaded, places)
    run_dir, recipe, requests, _ = prepared
    if prepared.is_new and len(places) == 1 and (note := others_left_out(recipe, places[0].profile, requests[0].sizes)):
        print(f"note: {note}", file=sys.stderr)
    if dry_run:
        print(_dry_run(run_dir, requests, places, recipe))
        return FINISHED
    jobs = submit(prepared, places)
    name = shown(run_dir)
    # Of several one may be left, where Slurm has refused the others.
    sent = next((one for one in requests if one.is_of(jobs[0])), requests[0])
    size = f": {_size(*sent[1:])}" if len(jobs) == 1 else ""
    print(
        f"{run_dir.name} {told_jobs(jobs)}{size}; {_batch(sent.sizes, recipe)}\n"
        + _what_to_type(name, f"launch retry {name} goes on", _next_logs(run_dir))
    )
    return FINISHED


def _what_to_type(name: str, then: str, logs: Path) -> str:
    """For a run that was sent. then: what is so once it is cancelled."""
    return (
        f"  follow   launch status {name}     launch logs {name} -f\n"
        f"  end      launch cancel {name}     (saves a checkpoint first; {then})\n"
        f"  logs     {logs}"
    )


def _next_logs(run_dir: Path) -> Path:
    return run_dir / "logs" / f"attempt-{len(read_attempts(run_dir)) + 1}"


def _submit_in(job_id: str, words: Words) -> int:
    """Start a run in an allocation, and leave it to itself."""
    loaded = load(words.recipe)
    cpu_ranks = 1 if loaded.recipe.device == "cpu" else None
    holding = Holding.of(job_id, words.cluster, words.slurm, False, cpu_ranks=cpu_ranks)
    prepared = prepare(loaded, [holding.place])
    run_dir, name = prepared.run_dir, shown(prepared.run_dir)
    logs = _next_logs(run_dir)
    submit(prepared, [holding.place], holding=holding)
    print(
        f"{placed(holding, run_dir)}; {_batch(prepared.requests[0].sizes, prepared.recipe)}\n"
        + _what_to_type(name, f"job {job_id} stays yours", logs)
    )
    return FINISHED


def _size(profile: Profile, sizes: Sizes) -> str:
    each = profile.devices_in_words
    if profile.is_range:
        nodes = [size for size in sizes.nodes if profile.least_nodes <= size <= profile.most_nodes]
        free = ", as are free at each start" if len(nodes) > 1 else ""
        return f"{either(*nodes)} node{'s' * (max(nodes) > 1)} x {each}{free}"
    size = f"{plural(profile.most_nodes, 'node')} x {each}"
    return f"{size} and {plural(profile.spare_nodes, 'node')} to spare" if profile.spare_nodes else size


def _batch(sizes: Sizes, recipe: Recipe) -> str:
    plan = sizes.plan
    accumulated = f" in {plan.accumulation} micro-batches" if plan.accumulation > 1 else ""
    if recipe.max_batch_per_device == "auto":
        accumulated = ", in micro-batches found at the start"
    steps = f", {plan.end_step} steps" if samples_known(recipe.data) else ""
    each = f"{plan.batch_size // plan.world_size} per rank{accumulated}"
    if sizes.micro_batch:
        auto = "at most " if recipe.max_batch_per_device == "auto" else ""
        each = f"in micro-batches of {auto}{sizes.micro_batch}"
    return f"batch {plan.batch_size}, {each}; lr {plan.lr:g}; {recipe.epochs:g} epochs{steps}"


def _dry_run(run_dir: Path, requests: Sequence[Request], places: Sequence[Place], recipe: Recipe) -> str:
    snapshot = snapshot_path(run_dir.parent / SNAPSHOTS)
    submissions = [submission_of(run_dir, recipe, request, snapshot, Path.cwd()) for request in requests]
    _, profile, sizes = requests[0]
    facts = [f"run directory   {run_dir}"]
    if len(requests) == 1:
        starts = [expected_start(submissions[0])]
        ranks = either(*(nodes * profile.local_ranks for nodes in sizes.nodes))
        facts += [f"ranks           {ranks}: {_size(profile, sizes)}", f"training        {_batch(sizes, recipe)}"]
        facts += [f"expected start  {starts[0]}"]
        facts += [f"slices          {described(slice_)}"] if (slice_ := submissions[0].slice) else []
    else:
        starts = list(map(_start, submissions))
        facts += [f"training        {_batch(sizes, recipe)}"]
        facts += [f"waits in        {len(requests)} places, and is trained by the job that starts first:"]
        facts += [f"  {request.in_words}: {start}" for request, start in zip(requests, starts, strict=True)]
    sent = list(zip(requests, submissions, starts, strict=True))
    facts += [*_takes(run_dir, recipe, places, sent), "nothing was sent"]
    return "\n".join([script(submissions[0]), "", *(f"# {line}" for fact in facts for line in fact.splitlines())])


def _start(submission: Submission) -> str:
    try:
        return f"expected start {expected_start(submission)}"
    except SlurmError as error:
        return str(error)


def _takes(
    run_dir: Path, recipe: Recipe, places: Sequence[Place], sent: Sequence[tuple[Request, Submission, str]]
) -> Iterator[str]:
    """What the run would take on each cluster, and when it would end there.

    sent: each request with what is sent for it, and what Slurm says of its start.
    """
    for place in places:
        there = [one for one in sent if one[0].cluster == place.cluster]
        told = _takes_there(run_dir, recipe, place, there)
        yield from told if len(places) == 1 else (f"on {place.cluster}: {' '.join(line.split())}" for line in told)


def _takes_there(
    run_dir: Path, recipe: Recipe, place: Place, sent: Sequence[tuple[Request, Submission, str]]
) -> list[str]:
    request, submission, _ = sent[0]
    limit = limit_of(place.profile, submission.slice)
    try:
        found = expected(recipe, *place, run_dir.parent, request.sizes.nodes, limit, newest_step(run_dir))
    except ValueError as error:
        return [f"takes           not known: {error}"]
    return [*lines(found, place.profile, _first([start.removeprefix("expected start ") for _, _, start in sent]))]


def _first(starts: Sequence[str]) -> str:
    """Of several that Slurm expects; not a date where it expects none."""
    return min(starts, key=lambda start: (not start[:1].isdigit(), start))
