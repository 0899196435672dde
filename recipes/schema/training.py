"""The keys around training: averaging, evaluation, checkpoints, tracking, places, and what is known of a recipe."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from recipes.schema.fields import (
    Count,
    Duration,
    DurationField,
    Fraction,
    Group,
    NonNegative,
    off_is_none,
)
from recipes.schema.model import is_tag


class Ema(Group):
    """Exponential moving average of weights and BatchNorm statistics, evaluated and saved in their place."""

    decay: Annotated[float, Field(gt=0, lt=1)] = 0.9999
    """Share of the average that one update keeps."""
    every: Count = 1
    """Optimizer steps from one update to the next."""
    rescale: bool = False
    """Read decay as torchvision's references do: 1 - decay is multiplied by batch_size * every / epochs (at most 1)."""
    start_epoch: NonNegative = 0.0
    """Until then the average is a copy of the weights."""


class Swa(Group):
    """Equal average of the weights and BatchNorm statistics that epochs end with (stochastic weight averaging,
    Izmailov et al. 2018, arXiv:1803.05407), evaluated and saved in their place."""

    start_epoch: Count
    """The average begins with the weights after so many epochs, and is a copy of the weights until then."""
    every: Count = 1
    """Epochs from one set of weights that it takes in to the next; those at the end of the run are taken in, too."""


class Distill(Group):
    """Learning from a trained network, which answers the same images (Hinton et al. 2015, arXiv:1503.02531).

    loss = (1 - weight) * the recipe's loss + weight * temperature^2 * KL(teacher || student), of softmax(logits /
    temperature).
    """

    teacher: str
    """The trained network: RUN, RUN@best, RUN@step-N, or a weights file that a run left. Of the same classes."""
    weight: Fraction = 0.5
    """Share of the loss that is the divergence from the teacher; the recipe's own loss has the rest."""
    temperature: Annotated[float, Field(ge=0.01, le=100)] = 4.0
    """What the logits of both networks are divided by before the softmax; higher: smaller probabilities count more.
    Above 100 rounding in float32 would spoil the divergence."""

    @field_validator("teacher")
    @classmethod
    def _names_a_network(cls, value: str) -> str:
        if is_tag(value):
            raise ValueError(f"a tag of torchvision's names no network: give a run or its weights (a run as ./{value})")
        return value


class Eval(Group):
    """Evaluation on the validation images."""

    every: Count = 1
    """Epochs from one evaluation to the next; there is always one at the end."""
    batch_size: Count | None = None
    """Images of one forward pass on one device; null: the micro-batch of training."""
    flip: bool = False
    """Test-time augmentation: average the logits of the image and its mirror image."""
    metric: Annotated[str, Field(min_length=1)] = "top1"
    """What `best` means: top1, top5, loss, or one of plugins.metrics."""


class EarlyStopping(Group):
    """The end of a run whose evaluations become no better; its weights are those of the best evaluation, as always."""

    patience: Count
    """Evaluations (`eval.every`) without a better one, after which the run ends."""
    metric: Annotated[str, Field(min_length=1)] | None = None
    """What has to become better, as `eval.metric` may be; null: that of `eval.metric`."""
    min_delta: NonNegative = 0.0
    """Better by no more than this counts as no better; of top1 and top5 in percentage points."""


class Checkpoint(Group):
    """What is kept of the run's state."""

    every: DurationField = Duration(1, "epochs")
    """Steps, epochs or minutes from one checkpoint to the next; auto: as often as pays, by what a save is measured to
    cost and the number of devices (see `launch show`)."""
    keep: Count = 2
    """Newest checkpoints to keep."""
    weights_every: Count | None = None
    """Keep the weights alone, for good, every so many epochs (weights/epoch-N.safetensors)."""


class Wandb(Group):
    """Weights & Biases: a view of metrics.jsonl. Its trouble never stops a run."""

    mode: Annotated[
        Literal["auto", "online", "offline", "disabled"],
        BeforeValidator(lambda value: "disabled" if off_is_none(value) is None else value),
    ] = "auto"
    """auto: online where a key is set and the server answers within 3 s, offline otherwise."""
    project: str = "resnet"
    """Project."""
    entity: str | None = None
    """User or team; null: the key's own."""
    group: str | None = None
    """Group of runs."""
    sweep: str | None = None
    """Id of the W&B sweep it is a run of, as `launch sweep --wandb-sweep` sets it."""
    tags: list[str] = []
    """Tags."""
    notes: str | None = None
    """Notes."""


class Run(Group):
    """Where the run lives: the folder root/name."""

    root: str = "runs"
    """Folder of all runs."""
    name: str | None = Field(default=None, pattern=r"^[^/\\\x00-\x1f]+$", max_length=200)
    """The run's name; one that exists is continued. null: a new one made of recipe and time."""

    @model_validator(mode="after")
    def _is_a_name(self) -> Run:
        if self.name in (".", ".."):
            raise ValueError(f"name={self.name} is a folder that is there: choose another")
        return self


class Profile(Group):
    """torch.profiler over some steps, written to profile/rank-R.json for chrome://tracing or Perfetto."""

    start: Annotated[int, Field(ge=0)] = 10
    """Steps before the first one that is recorded, of each attempt; one at least, which warms the profiler up."""
    steps: Count = 5
    """Steps recorded."""


class Measured(Group):
    """A measurement with this program."""

    top1: Annotated[float | None, Field(ge=0, le=100)] = None
    """Top-1 in percent, of the best or the last evaluation as `evidence.weights` says; the mean of `seeds` runs."""
    spread: NonNegative | None = None
    """Standard deviation over the runs, in percent points."""
    seeds: Count = 1
    """Runs that `top1` is the mean of."""
    command: str
    """The command that was run; of earlier versions' recipes all that they say."""
    commit: str | None = None
    """Commit of the program."""
    card: str | None = None
    """What it ran on, and how long it took."""


def _of_words(value: Any) -> Any:
    """What earlier versions' recipes say in words."""
    if isinstance(value, str):
        return None if value == "never measured here" else {"command": value}
    return value


class Evidence(Group):
    """What the recipe is known to reach, and where that is known from."""

    recipe: str | None = None
    """The recipe that states it, which a run is compared with; null: the run's own."""
    source: str
    """Paper, repository or model card the hyperparameters are from."""
    top1: float | None = None
    """Expected top-1 in percent; null: none is known. Without a band: an estimate."""
    spread: NonNegative | None = None
    """What `top1` is published with as +-, in percent points: the standard deviation over runs."""
    seeds: Count | None = None
    """Runs that `top1` is the mean (or median) of, where the source says so."""
    band: tuple[float, float] | None = None
    """Range in percent within which a run counts as reproduced."""
    weights: Literal["best", "last"] = "best"
    """Whether `top1` is of the best evaluation or of the last one."""
    evaluation: str = ""
    """The evaluation `top1` was read under: resolution, weights, test-time augmentation."""
    measured: Annotated[Measured | None, BeforeValidator(_of_words)] = None
    """What this program has reached with the recipe; null: never measured."""
    notes: str = ""
    """Where the recipe differs from its source, and choices the source leaves open."""
