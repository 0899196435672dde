"""What a cluster is: the typed profile, its YAML files, and `slurm.KEY=VALUE` on the command line."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import AfterValidator, BeforeValidator, Field, StringConstraints, ValidationError, model_validator

from recipes.errors import wording
from recipes.keys import keep_spelling, kinds
from recipes.library import config_folder
from recipes.load import parse_value
from recipes.schema.fields import Count, Group
from recipes.text import plural, show, suggestion
from recipes.yaml12 import UNREADABLE, Loader
from slurm.environment_copy import kind_of

FOLDER = Path(__file__).parent / "clusters"
AUTO = "auto"
"""Limits that are found for each attempt; auto:LIMIT: that are no longer than this."""
TIME = re.compile(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?")


def seconds(time: str) -> int:
    """A limit as Slurm writes it: minutes, M:S, H:M:S, D-H, D-H:M or D-H:M:S. Raises ValueError for other texts."""
    found = TIME.fullmatch(time.strip())
    if not found:
        raise ValueError("must be minutes, HH:MM:SS or D-HH:MM:SS, auto, or auto with the longest, as auto:12:00:00")
    days, *parts = found.groups()
    first, second, third = (int(part or 0) for part in parts)
    if days is None and parts[2] is None:
        return 60 * first + second
    return ((int(days or 0) * 24 + first) * 60 + second) * 60 + third


def _time(text: str) -> str:
    text = text.strip()
    if text != AUTO:
        seconds(text.removeprefix(f"{AUTO}:"))
    return text


def _node_counts(value: Any) -> Any:
    """A number of nodes, or the least and the most of them as 1-8; 3-3 is 3."""
    found = re.fullmatch(r"\s*(\d+)(?:\s*-\s*(\d+))?\s*", str(value))
    if isinstance(value, bool) or not found or not int(found[1]):
        raise ValueError("must be a number of nodes, 1 or more, or the least and the most, as 1-8")
    least, most = int(found[1]), int(found[2] or found[1])
    if least > most:
        raise ValueError(f"the least comes first: {most}-{least}")
    return least if least == most else f"{least}-{most}"


Word = Annotated[str, StringConstraints(pattern=r"^[^\s]+$")]
NodeCounts = Annotated[int | str, BeforeValidator(_node_counts)]
Time = Annotated[str, AfterValidator(_time)]


class Profile(Group):
    """Where runs are sent, and with what. Nothing of it changes what is trained but the number of ranks."""

    description: str = ""
    """One line for people."""
    partition: Word | None = None
    """Partition, or several with commas; null: the cluster's default, as for the next four."""
    account: Word | None = None
    """Account that is charged."""
    qos: Word | None = None
    """Quality of service, or several with commas, of which `launch submit` has the run wait in each."""
    constraint: Word | None = None
    """Features that the nodes must have, as in a100&nvlink."""
    reservation: Word | None = None
    """Reservation to run in."""
    nodes: NodeCounts = 1
    """Nodes of a run; or the least and the most, as 1-8: as many as are free, at each start anew (docs/queue.md)."""
    spare_nodes: Annotated[int, Field(ge=0)] = 0
    """Nodes more, idle until one of the others fails, whose place one of them takes without a new job."""
    gpus_per_node: Annotated[int, Field(ge=0)] = 1
    """GPUs of a node; one rank each. 0: CPUs only."""
    ranks_per_node: Count | None = None
    """Ranks on a node of a CPU-only run (1); with GPUs there is one for each."""
    gpu_request: Literal["gres", "gpus-per-node"] = "gres"
    """How GPUs are asked for: --gres=gpu:N, or --gpus-per-node=N."""
    gpu_type: Word | None = None
    """Type of the GPUs as Slurm names it, as in a100 for gpu:a100:8."""
    cpus_per_rank: Count = 8
    """Cores of each rank: it has as many data workers, and threads where there is no GPU."""
    mem: Annotated[str, StringConstraints(pattern=r"^\d+[KMGT]?$")] | None = None
    """Memory of a node, as in 200G; 0: all of it; null: the cluster's default."""
    time: Time = "24:00:00"
    """Wall-clock limit of one attempt: minutes, HH:MM:SS or D-HH:MM:SS. A longer run goes on in another attempt. auto:
    slices that fit the gaps of the queue; auto:12:00:00: of no more than twelve hours (docs/queue.md)."""
    signal_lead: Annotated[int, Field(ge=1, le=65535)] = 120
    """Seconds before the limit at which the run is told to save and stop. With time=auto until its own are measured;
    set to another number than this one it is the least of them too."""
    grow: Annotated[float, Field(gt=0)] | None = None
    """Minutes from one look to the next for more nodes of a range, on which the run would end sooner; null: never."""
    exclude: Word | None = None
    """Nodes to stay away from, as in n[3-5],n9."""
    exclusive: bool = False
    """Take whole nodes."""
    max_requeues: Annotated[int, Field(ge=0)] = 100
    """Attempts after the first, for whatever reason, after which a run ends."""
    setup: list[str] = []
    """Shell commands, one an entry, on a job's first node before anything else: modules, source venv/bin/activate."""
    container: str | None = None
    """Command in front of python in every rank, as in: apptainer exec --nv --bind /shared resnet.sif.

    The batch script itself runs on the host's python3 (3.9 or newer, no packages needed)."""
    srun_args: list[str] = []
    """More arguments of srun, as in --container-image=... of pyxis."""
    python: str | None = None
    """Python of the ranks; null: the one that submits, or `python3` in a container."""
    run_root: str | None = None
    """Folder of all runs on a file system that all nodes share; run.root on the command line goes before it."""
    scratch: str | None = None
    """Folder on each node's own disk, in $SCRATCH for `stage`; data below it is not looked for at submission."""
    stage: list[str] = []
    """Shell lines that bring data to a node's own disk, run once on every node before the ranks start."""
    stage_environment: Word | None = None
    """Environment of Python on a file system that the nodes share: a folder (a venv), an archive of one (.tar, .tar.gz,
    .tar.zst, .tar.xz) or an image (.sif, .sqsh) that `container` or `srun_args` names. Once before the ranks start it
    is brought to each node's own disk (`scratch`, or /tmp), from which they run."""
    rank_logs: Literal["first", "all"] = "first"
    """Whose logs the run directory gets: the first rank's and those of ranks that fail, or all."""
    check: bool = False
    """Look at every node before the ranks start, in some ten seconds (docs/rehearse.md), and leave bad ones out."""
    interface: str | None = None
    """Network interface between nodes, for NCCL and gloo, as in ib0."""
    environment: dict[str, str] = {}
    """Environment variables of the job."""
    client: dict[str, str] = {}
    """Environment of Slurm's own commands that reaches the cluster from here: {SLURM_CONF: /etc/slurm/two.conf}, or
    {SLURM_CLUSTERS: two} where one accounting database knows them all (docs/queue.md)."""
    sbatch: dict[str, str | int | bool] = {}
    """Any other option of sbatch, by its long name: {mail-type: END, nice: 100}."""

    @model_validator(mode="after")
    def _fits_together(self) -> Profile:
        if self.gpus_per_node and self.ranks_per_node:
            raise ValueError("ranks_per_node is for gpus_per_node=0: with GPUs there is one rank for each")
        if self.qos and (wrong := wrong_in_list(self.qos)):
            raise ValueError(f"qos={self.qos}: {wrong}")
        if self.time != AUTO and (limit := seconds(self.time.removeprefix(f"{AUTO}:"))) <= self.signal_lead:
            raise ValueError(f"signal_lead ({self.signal_lead} s) must be less than time ({limit} s)")
        if self.is_sliced and "time-min" in self.sbatch:
            raise ValueError("time=auto finds sbatch's time-min itself: leave it out, or give time")
        if self.grow and not self.is_range:
            raise ValueError(f"grow={self.grow:g} is for a range of nodes, as nodes=1-8: nodes is {self.nodes}")
        if self.is_range and self.spare_nodes:
            raise ValueError(
                f"spare_nodes={self.spare_nodes} is for one number of nodes: of nodes={self.nodes} those that are left "
                "go on without one that fails"
            )
        if self.stage_environment:
            self._environment_fits(self.stage_environment)
        if unusable := sorted(OURS & {name.replace("_", "-") for name in self.sbatch}):
            raise ValueError(f"sbatch may not set {', '.join(unusable)}: the profile's other keys, or the program, do")
        return self

    def _environment_fits(self, path: str) -> None:
        try:
            kind = kind_of(path)
        except ValueError as error:
            raise ValueError(f"stage_environment={path} {error}") from None
        if not path.startswith("/"):
            raise ValueError(f"stage_environment={path} must be a whole path, as /shared/venv")
        if kind == "image":
            if not any(path in words for words in (self.container or "", *self.srun_args)):
                raise ValueError(f"stage_environment={path} is an image, which container or srun_args must name")
        elif self.container:
            raise ValueError(f"stage_environment={path} must be the image of container={self.container}")
        elif self.python and not self.python.startswith(f"{path.rstrip('/')}/"):
            raise ValueError(
                f"python={self.python} is not in stage_environment={path}: leave it out for its bin/python"
            )

    @property
    def local_ranks(self) -> int:
        return self.gpus_per_node or self.ranks_per_node or 1

    @property
    def devices_in_words(self) -> str:
        """Of a node, as `8 GPUs` or `1 CPU rank`."""
        return plural(self.gpus_per_node, "GPU") if self.gpus_per_node else plural(self.local_ranks, "CPU rank")

    @property
    def each_qos(self) -> list[str | None]:
        """Those in which a run waits, by a job in each."""
        return [*self.qos.split(",")] if self.qos else [None]

    @property
    def is_sliced(self) -> bool:
        """Whether the limit of each attempt is found when it is sent."""
        return self.time.partition(":")[0] == AUTO

    @property
    def longest_slice(self) -> int | None:
        """Minutes of the longest that is asked for; None: what the partition allows."""
        longest = self.time.removeprefix(AUTO).lstrip(":") if self.is_sliced else ""
        return max(1, seconds(longest) // 60) if longest else None

    @property
    def fixed_time(self) -> str:
        """`time` of a job that does not save."""
        return self.time.removeprefix(AUTO).lstrip(":") or Profile().time

    @property
    def least_lead(self) -> int:
        """Seconds that `signal_lead` asks for, whatever saving is measured to take; 0 where it is left as it is."""
        return self.signal_lead if self.signal_lead != Profile.model_fields["signal_lead"].default else 0

    @property
    def least_nodes(self) -> int:
        return int(str(self.nodes).partition("-")[0])

    @property
    def most_nodes(self) -> int:
        return int(str(self.nodes).rpartition("-")[2])

    @property
    def is_range(self) -> bool:
        """Whether a run may be given several numbers of nodes."""
        return self.least_nodes < self.most_nodes

    def on_nodes(self, nodes: int | str) -> Profile:
        """The same for so many nodes, given as the key is; one number does not grow."""
        found = self.model_copy(update={"nodes": _node_counts(nodes)})
        return found if found.is_range else found.model_copy(update={"grow": None})

    @property
    def ranks(self) -> int:
        """Of a run on the most nodes that it may be given."""
        return self.most_nodes * self.local_ranks


OURS = frozenset(
    [
        *("partition", "account", "qos", "constraint", "reservation", "nodes", "exclude", "exclusive", "mem", "time"),
        *("ntasks", "ntasks-per-node", "cpus-per-task", "mincpus", "gres", "gpus-per-node", "signal", "requeue"),
        *("no-requeue", "array", "job-name", "output", "error", "open-mode", "chdir", "wrap", "parsable"),
    ]
)
"""Options of sbatch that follow from the other keys."""


class ProfileError(ValueError):
    """A profile that cannot be used; the message lists every mistake, one a line."""


def wrong_in_list(names: str) -> str | None:
    """What is wrong with names that commas separate; each is to stand for a place of its own."""
    each = names.split(",")
    if "" in each:
        return "a name is missing beside a comma"
    twice = next((name for name in each if each.count(name) > 1), None)
    return twice and f"{twice} is named twice"


def user_folder() -> Path:
    """Where a user keeps profiles of their own."""
    return config_folder() / "clusters"


def profile_names() -> list[str]:
    """Names of the user's profiles and of those that come with the program."""
    return sorted({path.stem for folder in (user_folder(), FOLDER) for path in folder.glob("*.yaml")})


def load_profile(name: str, overrides: Iterable[str] = ()) -> Profile:
    """The profile of a name (the user's go before the program's) or of a YAML file.

    overrides: `slurm.KEY=VALUE`, the values in YAML.
    Raises ProfileError with all mistakes at once.
    """
    if "," in name:
        raise ProfileError(f"cluster={name}: only `launch submit` sends one run to several clusters: give one here")
    path = _find(name)
    try:
        values = _read(path.read_text(encoding="utf-8"))
    except UNREADABLE as error:
        raise ProfileError(f"cannot read {path}: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ProfileError(f"{path} holds no keys: a profile is a YAML mapping")
    return change_profile(values, overrides, str(path))


def change_profile(values: dict[str, Any], overrides: Iterable[str], origin: str) -> Profile:
    """The profile of these values with `slurm.KEY=VALUE` overrides. Raises ProfileError with all mistakes at once."""
    origins = dict.fromkeys(values, origin)
    for argument in overrides:
        key, _, text = argument.removeprefix("slurm.").partition("=")
        group, _, inner = key.partition(".")
        try:
            value = parse_value(text, _annotations(group, inner))
        except UNREADABLE as error:
            raise ProfileError(f"cannot read the value of {argument}: {' '.join(str(error).split())}") from error
        if inner:
            value = {**(values.get(group) or {}), inner: value}
        values, origins = {**values, group: value}, {**origins, group: "command line"}
    try:
        return Profile.model_validate(values)
    except ValidationError as error:
        lines = [_describe(dict(problem), values, origins, origin) for problem in error.errors()]
        raise ProfileError("\n".join(dict.fromkeys(lines))) from None


def _read(text: str) -> Any:
    loader = Loader(text)
    node = loader.get_single_node()
    keep_spelling(node, [Profile])
    return {} if node is None else loader.construct_document(node) or {}


def _annotations(key: str, inner: str) -> list[Any]:
    """What a key, or a key of the mapping that it holds, may be."""
    field = Profile.model_fields.get(key)
    found = kinds(field.annotation) if field else []
    return [get_args(kind)[1] for kind in found if get_origin(kind) is dict] if inner else found


def _find(name: str) -> Path:
    if name.endswith((".yaml", ".yml")) or "/" in name:
        path = Path(name).expanduser()
        if not path.is_file():
            raise ProfileError(f"no cluster profile {path}")
        return path
    for folder in (user_folder(), FOLDER):
        if (path := folder / f"{name}.yaml").is_file():
            return path
    what = suggestion(name, profile_names())
    raise ProfileError(f"no cluster profile {name!r}: {what} Your own belong in {user_folder()}")


def _describe(problem: dict[str, Any], values: dict[str, Any], origins: dict[str, str], origin: str) -> str:
    where = [str(part) for part in problem["loc"]]
    if not where:
        return f"{origin}: {problem['ctx']['error']}"
    key = where[0]
    origin = origins.get(key, origin)
    if problem["type"] == "extra_forbidden":
        return f"unknown key slurm.{key} ({origin}): {suggestion(key, Profile.model_fields, count=1)}"
    message = wording(problem)
    return f"slurm.{key}={show(values[key])} ({origin}): {message[0].lower()}{message[1:]}"
