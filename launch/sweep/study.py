"""Smart search: which point a trial tries. Called by whatever runs a trial, from many nodes.

The point of a `bayes` trial comes from Optuna's TPE (Bergstra et al. 2011). The run directories are the truth and the
study a view of them: a trial that the study has not heard of is found by its files, so that a job that died, a damaged
journal or a new `storage` loses nothing. One lock for the sweep makes read, decide and write one step.
"""

from __future__ import annotations

import json
import math
import os
import re
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, Literal

from launch.sweep.lock import locked
from launch.sweep.points import sample, search_bounds, text_of
from launch.sweep.sweep_json import sweep_of
from launch.sweep.sweep_types import Distribution, Sweep, Values
from launch.sweep.trials import to_words
from recipes.metric import METRICS, best_of
from recipes.text import format_duration
from resnet.rundir.attempts import told_to_end
from resnet.rundir.files import to_json, write_atomic
from resnet.rundir.metrics_log import read_metrics
from resnet.rundir.status import read_status
from resnet.rundir.sweep.sweep_file import read_sweep

if TYPE_CHECKING:
    import optuna

MOST_STARTUP = 10
"""Trials that have to end before TPE suggests any: Optuna's own number; fewer in a sweep of less than 40 trials."""

SECONDS_A_TRIAL, SECONDS_A_RECORD = 0.02, 3e-4
"""Processor time of ask and tell together, all under the sweep's lock, and what each earlier trial adds to it: measured
(docs/sweeps.md). A database in the journal's place takes longer, and the lock is the same."""
CROWDED_SECONDS = 60.0

End = Literal["finished", "pruned", "failed"]


def values(run_dir: Path, metric: str) -> list[float]:
    """The metric (top1, top5: percent; loss) at each evaluation of a run, in order; NaN where it was not finite."""
    rows = {row["step"]: row[f"val/{metric}"] for row in read_metrics(run_dir) if f"val/{metric}" in row}
    return [math.nan if value is None else float(value) for value in rows.values()]


def ask(sweep_dir: Path, number: int) -> dict[str, str]:
    """The point that trial `number` of a `bayes` sweep tries: swept key -> text of an override.

    A trial keeps its point, in trial-NUMBER/slurm/point.json. Raises ValueError if the storage of the sweep
    cannot be opened.
    """
    file = _point_file(sweep_dir, number)
    if not file.exists():
        data = read_sweep(sweep_dir)
        sweep = sweep_of(data)
        with locked(sweep_dir):
            if not file.exists():
                study = _Study(sweep_dir, data, sweep)
                study.catch_up()
                point = suggest(sweep, data["seed"], number, study.records())
                file.parent.mkdir(parents=True, exist_ok=True)
                write_atomic(file, to_json({"point": point, "words": to_words(sweep, point)}, indent=1) + "\n")
                study.add(number, None)
    return json.loads(file.read_text(encoding="utf-8"))["point"]


def tell(sweep_dir: Path, number: int, state: End, value: float | None = None) -> None:
    """Tell the study how a trial that was asked for has ended; telling it again changes nothing.

    value: of the metric; else the best that a finished trial has logged, the last that a pruned one has. Without any
    that is finite the trial counts as failed. A trial that is continued after it failed or was pruned is told anew.
    Raises ValueError if the storage of the sweep cannot be opened.
    """
    data = read_sweep(sweep_dir)
    with locked(sweep_dir):
        _Study(sweep_dir, data, sweep_of(data)).end(number, state, value)


def crowding(trials: int, at_once: int) -> str | None:
    """What is to be said before a search of so many trials; None where they will hardly wait for one another."""
    at_once, each = min(at_once, trials), SECONDS_A_TRIAL + SECONDS_A_RECORD * trials
    if each * at_once < CROWDED_SECONDS:
        return None
    shortest = format_duration(each * at_once)
    return (
        f"at the end of {trials:,} trials the search takes {each:.1f} s for each, one after the other: with {at_once} "
        f"at once, trials of less than {shortest} wait for one another (--parallel runs fewer)"
    )


def suggest(sweep: Sweep, seed: int, number: int, history: Iterable[optuna.trial.FrozenTrial]) -> dict[str, str]:
    """The point to try in view of the trials before: a pure function, which draws by (seed, number).

    Until enough have ended it is the point of the same number of a random search, `launch.sweep.points.sample`.
    """
    import optuna

    assert sweep.metric is not None
    history = [*history]
    ended = sum(trial.state.is_finished() for trial in history)
    if ended < min(MOST_STARTUP, max(3, (sweep.run_cap or 4 * MOST_STARTUP) // 4)):
        return sample(sweep, seed, number)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = optuna.samplers.TPESampler(
            seed=Random(f"{seed}-{number}").getrandbits(32),
            n_startup_trials=0,
            multivariate=True,
            constant_liar=True,
        )
    study = optuna.create_study(direction=METRICS[sweep.metric].goal, sampler=sampler)
    study.add_trials(history)
    found = study.ask(_distributions(sweep)).params
    return {key: _text(parameter, found[key]) for key, parameter in sweep.parameters.items()}


def _text(parameter: Values | Distribution, found: Any) -> str:
    return found if isinstance(parameter, Values) else text_of(parameter, found)


def _distributions(sweep: Sweep) -> dict[str, optuna.distributions.BaseDistribution]:
    return {key: _distribution(parameter) for key, parameter in sweep.parameters.items()}


def _distribution(parameter: Values | Distribution) -> optuna.distributions.BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(parameter, Values):
        weights = parameter.probabilities or [1.0] * len(parameter.texts)
        likely = [text for text, weight in zip(parameter.texts, weights, strict=True) if weight > 0]
        return CategoricalDistribution([*dict.fromkeys(likely)])
    low, high = search_bounds(parameter)
    if parameter.kind == "int_uniform":
        return IntDistribution(int(low), int(high))
    return FloatDistribution(low, high, log=parameter.log)


def _position(parameter: Values | Distribution, text: str) -> Any:
    """Where TPE sees a text: what was run, after rounding, but within the bounds of the search."""
    if isinstance(parameter, Values):
        return text
    low, high = search_bounds(parameter)
    return int(text) if parameter.kind == "int_uniform" else min(max(float(text), low), high)


class _Study:
    """The sweep's study in Optuna's storage; whoever has one holds the sweep's lock."""

    def __init__(self, sweep_dir: Path, data: Mapping[str, Any], sweep: Sweep) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.sweep_dir, self.sweep = sweep_dir, sweep
        assert sweep.metric is not None
        self.metric = sweep.metric
        self.storage = _storage(sweep_dir, data.get("storage"))
        self.study = optuna.create_study(
            study_name=f"{data['name']}-{int(data['created'])}",
            storage=self.storage,
            direction=METRICS[self.metric].goal,
            load_if_exists=True,
        )

    def records(self) -> list[optuna.trial.FrozenTrial]:
        """One of each trial that has not failed: how it ended best, or that it runs."""
        return [trial for trial in self._furthest().values() if trial.state.name != "FAIL"]

    def _furthest(self) -> dict[int, optuna.trial.FrozenTrial]:
        """By the trial's number; one that was continued after its end has several records."""
        found: dict[int, optuna.trial.FrozenTrial] = {}
        for record in self.study.get_trials(deepcopy=False):
            number = record.user_attrs["number"]
            if number not in found or _RANK[record.state.name] >= _RANK[found[number].state.name]:
                found[number] = record
        return found

    def catch_up(self) -> None:
        """Enter the trials that the study has not heard of, and ends that nobody told."""
        known = self._furthest()
        for number in _numbers(self.sweep_dir):
            if number not in known:
                if _point_file(self.sweep_dir, number).exists():
                    self.add(number, _end_of(self._run_dir(number)))
            elif known[number].state.name == "RUNNING" and (state := _end_of(self._run_dir(number))):
                self.end(number, state)

    def add(self, number: int, state: End | None, value: float | None = None) -> None:
        """A new record of a trial; state None: it runs."""
        import optuna

        point = json.loads(_point_file(self.sweep_dir, number).read_text(encoding="utf-8"))["point"]
        name, value, step = self._result(number, state, value)
        template = optuna.trial.create_trial(
            state=optuna.trial.TrialState[name],
            value=value,
            params={key: _position(parameter, point[key]) for key, parameter in self.sweep.parameters.items()},
            distributions=_distributions(self.sweep),
            intermediate_values={} if value is None else {step: value},
            user_attrs={"number": number},
        )
        self.study.add_trial(template)

    def end(self, number: int, state: End, value: float | None = None) -> None:
        import optuna

        record = self._furthest().get(number)
        name, value_or_none, step = self._result(number, state, value)
        if record is None or (record.state.is_finished() and _RANK[name] > _RANK[record.state.name]):
            self.add(number, state, value)
        elif not record.state.is_finished():
            study_id = self.storage.get_study_id_from_name(self.study.study_name)
            record_id = self.storage.get_trial_id_from_study_id_trial_number(study_id, record.number)
            if value_or_none is not None:
                self.storage.set_trial_intermediate_value(record_id, step, value_or_none)
            told = None if value_or_none is None else [value_or_none]
            self.storage.set_trial_state_values(record_id, optuna.trial.TrialState[name], told)

    def _result(self, number: int, state: End | None, value: float | None) -> tuple[str, float | None, int]:
        """Optuna's name of the state, the value, and the number of evaluations, by which TPE ranks pruned trials."""
        if state in (None, "failed"):
            return ("FAIL" if state else "RUNNING"), None, 0
        seen = values(self._run_dir(number), self.metric)
        if value is None:
            finite = [one for one in seen if math.isfinite(one)]
            value = best_of(seen, METRICS[self.metric].goal) if state == "finished" else finite[-1] if finite else None
        if value is None or not math.isfinite(value):
            return "FAIL", None, 0
        return ("COMPLETE" if state == "finished" else "PRUNED"), value, len(seen)

    def _run_dir(self, number: int) -> Path:
        return self.sweep_dir / trial_name(number)


_RANK = {"FAIL": 0, "RUNNING": 1, "PRUNED": 2, "COMPLETE": 3}


def trial_name(number: int) -> str:
    """The run's name of a `bayes` trial, which has no point yet to be named by."""
    return f"trial-{number:04d}"


def _point_file(sweep_dir: Path, number: int) -> Path:
    return sweep_dir / trial_name(number) / "slurm" / "point.json"


def _numbers(sweep_dir: Path) -> list[int]:
    """Of the trials that have a directory."""
    with os.scandir(sweep_dir) as entries:
        return sorted(int(found[1]) for entry in entries if (found := re.fullmatch(r"trial-(\d+)", entry.name)))


def _end_of(run_dir: Path) -> End | None:
    """How a trial has ended by its files; None: it has not, or will be continued."""
    state = read_status(run_dir).get("state")
    if state in ("finished", "failed"):
        return state
    if state == "stopped" and (run_dir / "slurm" / "pruned").exists():
        return "pruned"
    return "failed" if state == "stopped" and told_to_end(run_dir) == "cancelled" else None


def _storage(sweep_dir: Path, url: str | None) -> optuna.storages.BaseStorage:
    import optuna
    from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

    if url is not None:
        import sqlalchemy.exc

        try:
            return optuna.storages.RDBStorage(os.path.expandvars(url))
        except (ImportError, optuna.exceptions.OptunaError, sqlalchemy.exc.SQLAlchemyError) as error:
            raise ValueError(f"the sweep's storage cannot be opened: {str(error).splitlines()[0]}") from error
    file = str((sweep_dir / "slurm" / "study.journal").absolute())
    if not _is_intact(Path(file)):
        os.replace(file, f"{file}.damaged")
    return optuna.storages.JournalStorage(JournalFileBackend(file, lock_obj=JournalFileOpenLock(file)))


def _is_intact(journal: Path) -> bool:
    """Whether every line can be read: on some NFS servers a node that dies leaves half a line, or zeros."""
    try:
        content = journal.read_bytes()
        for line in content.splitlines():
            json.loads(line)
    except FileNotFoundError:
        return True
    except ValueError:
        return False
    return not content or content.endswith(b"\n")
