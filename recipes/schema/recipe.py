"""The typed recipe: every key a run can be given, with its unit, meaning and default.

Keys are read from YAML and the command line by `recipes.load`. Where a group has variants (`optimizer`, `schedule`,
`data`) each variant lists only the keys it uses, so that a key which would have no effect is an error. The keys of
`data` and `augment` are in `schema_data`, those of `optimizer` and `schedule` in `schema_optimization`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from recipes.schema.data import Augment, Data
from recipes.schema.fields import Count, Duration, DurationField, Fraction, Group, NonNegative, Positive, off_is_none
from recipes.schema.optimizer import ConstantSchedule, Optimizer, Schedule, Sgd


class Model(Group):
    """The network: torchvision's ResNet with the variations below."""

    name: (
        Literal[
            "resnet18", "resnet34", "resnet50", "resnet101", "resnet152",
            "resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d", "wide_resnet50_2", "wide_resnet101_2",
        ]
        | None
    ) = None  # fmt: skip
    """A torchvision ResNet; or leave it out and give `block` and `layers`."""
    block: Literal["basic", "bottleneck"] | None = None
    """Residual block of a net given by hand."""
    layers: Annotated[list[Count], Field(min_length=3, max_length=4)] | None = None
    """Blocks in each of the three or four stages (64, 128, 256, 512 planes; four times that after bottlenecks)."""
    num_classes: Count | None = None
    """Classes; taken from the data where it is not given, checked against it where it is."""
    stem: Literal["imagenet", "cifar"] = "imagenet"
    """imagenet: 7x7 convolution of stride 2; cifar: 3x3 of stride 1."""
    maxpool: bool | None = None
    """3x3 max-pooling of stride 2 after the stem; null: with the imagenet stem only."""
    activation: str = "relu"
    """Any activation of torch.nn by its snake-case name: relu, silu, leaky_relu, gelu, mish, hardswish ..."""
    activation_args: dict[str, float | bool] = {}
    """Arguments of the activation, as in {negative_slope: 0.1}."""
    groups: Count | None = None
    """Groups of the bottleneck's 3x3 convolution (ResNeXt); null: the named net's own."""
    width_per_group: Count | None = None
    """Base width of a group (ResNeXt, Wide ResNet); null: the named net's own."""
    zero_init_residual: bool = False
    """Start the last BatchNorm weight of each block at 0 (Goyal et al. 2017, arXiv:1706.02677, section 5.1)."""
    blurpool: bool = False
    """Low-pass filter before each stride-2 convolution (Zhang 2019, arXiv:1904.11486, as FFCV's recipes do)."""
    stochastic_depth: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Probability of dropping the last block's branch; grows linearly from 0 at the first (Huang et al. 2016)."""
    sync_batchnorm: bool = False
    """Normalise over all ranks' micro-batches (GPUs only)."""
    pretrained: str | None = None
    """Weights to start from: a .safetensors or .pth file, a run directory, or a torchvision tag, as IMAGENET1K_V2."""
    freeze_backbone: bool = False
    """Train the classifier only; the rest keeps its weights and its BatchNorm statistics."""

    @model_validator(mode="after")
    def _one_way_of_naming(self) -> Model:
        by_hand = (self.block is not None, self.layers is not None)
        if self.name is None and not all(by_hand):
            raise ValueError("needs a name (as in model.name=resnet50), or block and layers")
        if self.name is not None and any(by_hand):
            raise ValueError(f"has the name {self.name} and also block or layers: model.name=null builds by hand")
        basic = self.block == "basic" or self.name in ("resnet18", "resnet34")
        if basic and (self.groups not in (None, 1) or self.width_per_group not in (None, 64)):
            raise ValueError("groups and width_per_group need bottleneck blocks (torchvision's basic block has none)")
        if self.freeze_backbone and self.pretrained is None:
            raise ValueError("freeze_backbone without pretrained weights would train a classifier on random features")
        return self


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


class Eval(Group):
    """Evaluation on the validation images."""

    every: Count = 1
    """Epochs from one evaluation to the next; there is always one at the end."""
    batch_size: Count | None = None
    """Images of one forward pass on one device; null: the micro-batch of training."""
    flip: bool = False
    """Test-time augmentation: average the logits of the image and its mirror image."""
    metric: Literal["top1", "top5", "loss"] = "top1"
    """What `best` means."""


class Checkpoint(Group):
    """What is kept of the run's state."""

    every: DurationField = Duration(1, "epochs")
    """Steps, epochs or minutes from one checkpoint to the next."""
    keep: Count = 2
    """Newest checkpoints to keep."""
    max_failures: Count = 3
    """Saves in a row that may fail (disk full, no permission) before the run stops."""
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
    """First step recorded."""
    steps: Count = 5
    """Steps recorded."""


class Evidence(Group):
    """What the recipe is known to reach, and where that is known from."""

    source: str
    """Paper, repository or model card the hyperparameters are from."""
    top1: float | None = None
    """Expected top-1 in percent; null: none is known."""
    band: tuple[float, float] | None = None
    """Range in percent within which a run counts as reproduced."""
    weights: Literal["best", "last"] = "best"
    """Whether `top1` is of the best evaluation or of the last one."""
    evaluation: str = ""
    """The evaluation `top1` was read under: resolution, weights, test-time augmentation."""
    measured: str = "never measured here"
    """What was measured with this program, by which command."""
    notes: str = ""
    """Where the recipe differs from its source, and choices the source leaves open."""


class Recipe(Group):
    """All that defines a training run. Nothing changes one after it is loaded."""

    name: str = "unnamed"
    """The recipe's name: its file's, unless given."""
    description: str = ""
    """One line on what the recipe is for."""
    model: Model
    data: Data
    augment: Augment = Augment()
    epochs: Positive
    """Passes over the training data; a fraction ends the run within an epoch."""
    max_steps: Count | None = None
    """End the run after so many steps, with the schedule of all its epochs (for a try); null: go on to the end."""
    batch_size: Annotated[int, Field(ge=2)]
    """Images of one optimizer step over all devices together."""
    max_batch_per_device: Annotated[int, Field(ge=2)] | None = None
    """Most images of one forward pass on one device: larger shares are accumulated. BatchNorm sees this micro-batch."""
    optimizer: Optimizer = Sgd(name="sgd")
    schedule: Schedule = ConstantSchedule(name="constant")
    loss: Literal["cross_entropy", "bce"] = "cross_entropy"
    """bce: binary cross-entropy of each class on its own (Wightman et al. 2021, arXiv:2110.00476)."""
    bce_target_threshold: Fraction | None = None
    """With bce: targets above it count as 1, others as 0; null: targets as they are."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the target spread evenly over the classes."""
    grad_clip_norm: Annotated[Positive | None, BeforeValidator(off_is_none)] = None
    """Largest L2 norm of the gradient of a step; null: not clipped."""
    grad_clip_value: Annotated[Positive | None, BeforeValidator(off_is_none)] = None
    """Largest absolute value of a gradient's element; null: not clipped."""
    precision: Literal["auto", "bf16", "fp16", "no"] = "auto"
    """Autocast type; auto: bf16 on a GPU that has it, else fp16 on a GPU, else none."""
    channels_last: bool = True
    """Keep images and weights in NHWC order in memory."""
    deterministic: bool = False
    """Use deterministic kernels only, so that a resumed run is bitwise equal on GPUs too (slower)."""
    compile: bool = False
    """Compile the network with torch.compile."""
    device: Literal["auto", "cuda", "cpu"] = "auto"
    """cuda: refuse to run without a GPU."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Of the initial weights, the order of the data and the augmentation."""
    ema: Annotated[Ema | None, BeforeValidator(off_is_none)] = None
    eval: Eval = Eval()
    checkpoint: Checkpoint = Checkpoint()
    log_every: Count = 50
    """Steps from one line of metrics.jsonl to the next."""
    watchdog: Annotated[Positive | None, BeforeValidator(off_is_none)] = 20
    """Minutes without a step after which a rank ends, with the stacks of its threads in its log; null: never."""
    profile: Annotated[Profile | None, BeforeValidator(off_is_none)] = None
    wandb: Wandb = Wandb()
    run: Run = Run()
    resume: str = "auto"
    """auto: continue the run of that name if there is one; never: refuse to; a path: start from that checkpoint."""
    progress: Literal["auto", "bar", "lines", "off"] = "auto"
    """auto: a live bar on a terminal, plain lines elsewhere."""
    evidence: Evidence | None = None

    @model_validator(mode="after")
    def _together(self) -> Recipe:
        if self.bce_target_threshold is not None and self.loss != "bce":
            raise ValueError("bce_target_threshold needs loss=bce")
        if self.model.freeze_backbone and self.optimizer.backbone_lr_scale != 1.0:
            raise ValueError("optimizer.backbone_lr_scale has no effect with model.freeze_backbone=true")
        if (warmup := getattr(self.schedule, "warmup_epochs", 0)) and warmup >= self.epochs:
            raise ValueError(f"schedule.warmup_epochs {warmup:g} leaves nothing of epochs {self.epochs:g}")
        cycled = self.schedule.name == "onecycle" and self.schedule.cycle_momentum
        if cycled and self.optimizer.name == "sgd" and self.optimizer.momentum == 0:
            raise ValueError("schedule.cycle_momentum needs optimizer.momentum above 0")
        return self


NOT_TRAINING = (
    "name",
    "description",
    "wandb",
    "run",
    "resume",
    "progress",
    "evidence",
    "profile",
    "log_every",
    "watchdog",
)
"""Top-level keys that do not change what is trained."""
