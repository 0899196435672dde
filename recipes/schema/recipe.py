"""The typed recipe: every key a run can be given, with its unit, meaning and default.

Keys are read from YAML and the command line by `recipes.load`. Where a group has variants (`optimizer`, `schedule`,
`data`) each variant lists only the keys it uses, so that a key which would have no effect is an error. The keys of
each group are in the file of its name, those of `schedule` beside their formulas in `recipes.schedules`.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from recipes.schedules import ConstantSchedule, OneCycleSchedule, Schedule
from recipes.schema.augment import Augment
from recipes.schema.channels import check_channels, with_grey_means
from recipes.schema.data import Data
from recipes.schema.fields import Count, Fraction, Group, NonNegative, Positive, off_is_none, weights_of_classes
from recipes.schema.model import Model, is_download
from recipes.schema.optimizer import Optimizer, Sgd
from recipes.schema.plugins import PluginFields, Plugins, check_plugins, named_plugins
from recipes.schema.training import Checkpoint, Distill, EarlyStopping, Ema, Eval, Evidence, Profile, Run, Swa, Wandb
from recipes.text import plural


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
    max_batch_per_device: Annotated[int, Field(ge=2)] | Literal["auto"] | None = None
    """Most images of one forward pass on one device: larger shares are accumulated. BatchNorm sees this micro-batch.
    auto: as many as fit into a GPU's memory, found when a run begins and kept by it."""
    optimizer: Optimizer = Sgd(name="sgd")
    schedule: Schedule = ConstantSchedule(name="constant")
    loss: Literal["cross_entropy", "bce", "focal"] = "cross_entropy"
    """bce: binary cross-entropy of each class on its own (Wightman et al. 2021, arXiv:2110.00476); focal: cross-entropy
    that counts what the network is sure of less (Lin et al. 2017, arXiv:1708.02002, of the softmax)."""
    focal_gamma: NonNegative = 2.0
    """With focal: each class's term is multiplied by (1 - probability)^gamma; 0: cross-entropy."""
    class_weights: Annotated[
        Literal["balanced", "effective"] | dict[str, NonNegative] | None, BeforeValidator(weights_of_classes)
    ] = None
    """Weights of the classes in the loss, scaled so that the images of an epoch have 1 on average. balanced: 1 / images
    of the class; effective: by their effective number (Cui et al. 2019, arXiv:1901.05555); {name: weight}: others 1."""
    class_weights_beta: Annotated[float, Field(gt=0, lt=1)] = 0.999
    """With effective: nearer to 1 is nearer to balanced."""
    bce_target_threshold: Fraction | None = None
    """With bce: targets above it count as 1, others as 0; null: targets as they are."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the target spread evenly over the classes."""
    grad_clip_norm: Annotated[Positive | None, BeforeValidator(off_is_none)] = None
    """Largest L2 norm of the gradient of a step; null: not clipped."""
    grad_clip_value: Annotated[Positive | None, BeforeValidator(off_is_none)] = None
    """Largest absolute value of a gradient's element; null: not clipped."""
    grad_clip_adaptive: Annotated[Positive | None, BeforeValidator(off_is_none)] = None
    """Largest L2 norm of the gradient of an output channel (norms and biases: of the layer) as a share of its weights'
    norm, the classifier left out (AGC, Brock et al. 2021, arXiv:2102.06171); null: not clipped."""
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
    swa: Annotated[Swa | None, BeforeValidator(off_is_none)] = None
    distill: Annotated[Distill | None, BeforeValidator(off_is_none)] = None
    eval: Eval = Eval()
    early_stopping: Annotated[EarlyStopping | None, BeforeValidator(off_is_none)] = None
    plugins: Plugins = Plugins()
    checkpoint: Checkpoint = Checkpoint()
    log_every: Count = 50
    """Steps from one line of metrics.jsonl to the next; the end of each epoch has a line too."""
    watchdog: Annotated[Positive | None, BeforeValidator(off_is_none)] = 20
    """Minutes without a step after which a rank ends, with the stacks of its threads in its log; null: never. In a job,
    which starts the ranks again, a 20th of it between steps that are being made, at least a minute."""
    recheck: Annotated[Count | None, BeforeValidator(off_is_none)] = None
    """Steps from one to the next in which ranks compute a part of each other's gradients too, to find a device that
    computes wrong without an error; null: never. One takes a step or two of time: 200 costs less than 1%."""
    profile: Annotated[Profile | None, BeforeValidator(off_is_none)] = None
    wandb: Wandb = Wandb()
    run: Run = Run()
    resume: str = "auto"
    """auto: continue the run of that name if there is one; never: refuse to; a path: start from that checkpoint."""
    progress: Literal["auto", "bar", "lines", "off"] = "auto"
    """auto: a live bar on a terminal, plain lines elsewhere."""
    evidence: Evidence | None = None

    @model_validator(mode="before")
    @classmethod
    def _means_of_grey(cls, values: Any) -> Any:
        return with_grey_means(values)

    @model_validator(mode="after")
    def _of_channels(self) -> Recipe:
        check_channels(self.model.in_channels, self.augment, self.data)
        return self

    @model_validator(mode="after")
    def _with_plugins(self) -> Recipe:
        check_plugins(self)
        return self

    def plugins_named(self) -> dict[str, PluginFields]:
        """Code of the user's own, by the dotted keys that name it."""
        return named_plugins(self)

    @model_validator(mode="after")
    def _together(self) -> Recipe:
        if self.bce_target_threshold is not None and self.loss != "bce":
            raise ValueError("bce_target_threshold needs loss=bce")
        _check_losses(self)
        if self.distill and self.loss == "bce":
            raise ValueError(
                "distill compares softmaxes, and loss=bce trains none: use loss=cross_entropy or distill=off"
            )
        self._check_updates()
        self._check_epochs()
        if (warmup := getattr(self.schedule, "warmup_epochs", 0)) and warmup >= self.epochs:
            raise ValueError(f"schedule.warmup_epochs {warmup:g} leaves nothing of epochs {self.epochs:g}")
        self._check_averages()
        self._check_patience()
        if self.data.cache == "device" and (beyond := self.augment.beyond_cache()):
            wanted = " or ".join(beyond)
            raise ValueError(f"data.cache=device cannot do {wanted}: it keeps images of one size; set data.cache=auto")
        if self.data.decode != "cpu" and self.data.cache == "device":
            raise ValueError("data.cache=device decodes once, on the CPU: set data.decode=cpu")
        if self.data.decode == "region" and self.augment.crop != "random_resized":
            raise ValueError(f"augment.crop={self.augment.crop} takes whole images: set data.decode=cpu")
        stated, found = self.model.num_classes, self.data.classes_stated()
        if None not in (stated, found) and stated != found:
            raise ValueError(f"model.num_classes={stated}, but data.source={self.data.source} has {found} classes here")
        if self.device == "cpu" and self.precision == "fp16":
            raise ValueError("precision=fp16 needs a GPU, and device=cpu: use precision=no, or auto")
        if self.recheck and self.model.sync_batchnorm:
            raise ValueError(
                "recheck computes a micro-batch on another device alone, and model.sync_batchnorm normalises over all: "
                "set recheck=off"
            )
        if self.device == "cpu" and self.model.sync_batchnorm:
            raise ValueError(
                "model.sync_batchnorm needs GPUs (torch's SyncBatchNorm has no CPU version), and device=cpu"
            )
        return self

    def _check_updates(self) -> None:
        """Raise ValueError for keys on how weights are updated that do not go together."""
        if self.model.freeze_backbone:
            self._refuse_of_backbone()
        if self.model.unfreeze and self.optimizer.name == "lamb":
            raise ValueError(
                "model.unfreeze and optimizer.name=lamb do not go together (it counts steps for all layers alike): use "
                "optimizer.name=adamw, sgd or another"
            )
        if self.grad_clip_adaptive and (self.grad_clip_norm or self.grad_clip_value):
            raise ValueError(
                "grad_clip_adaptive clips what grad_clip_norm and grad_clip_value would: set them to off, or it"
            )
        self._check_cycle()

    def _check_cycle(self) -> None:
        """Raise ValueError where a schedule cycles a momentum that there is none of, or that cannot be so high."""
        schedule = self.schedule
        if not isinstance(schedule, OneCycleSchedule) or not schedule.cycle_momentum:
            return
        if getattr(self.optimizer, "momentum", None) == 0:
            raise ValueError("schedule.cycle_momentum needs optimizer.momentum above 0")
        if hasattr(self.optimizer, "betas") and 1 in (schedule.base_momentum, schedule.max_momentum):
            raise ValueError("schedule.base_momentum and max_momentum are Adam's first beta here: give less than 1")

    def _check_epochs(self) -> None:
        """Raise ValueError for what would begin after the last epoch."""
        unfreeze = self.model.unfreeze
        if late := [epoch for epoch in unfreeze if epoch >= self.epochs]:
            raise ValueError(
                f"model.unfreeze has {min(late)}: {unfreeze[min(late)]}, which epochs {self.epochs:g} do not reach: "
                "give earlier epochs, or leave it out"
            )

    def _refuse_of_backbone(self) -> None:
        """Raise ValueError for keys that reach all layers but the classifier, which alone trains."""
        for key, none in (("backbone_lr_scale", 1.0), ("layer_decay", 1.0)):
            if getattr(self.optimizer, key) != none:
                raise ValueError(
                    f"optimizer.{key} has no effect with model.freeze_backbone=true: set optimizer.{key}={none:g}"
                )
        if self.grad_clip_adaptive:
            raise ValueError(
                "grad_clip_adaptive leaves the classifier alone, and model.freeze_backbone=true trains nothing else: "
                "set grad_clip_adaptive=off"
            )

    def _check_averages(self) -> None:
        if self.swa and self.ema:
            raise ValueError("ema and swa are both averages of the weights: set one of them to off")
        if self.swa and self.swa.start_epoch >= self.epochs:
            raise ValueError(f"swa.start_epoch {self.swa.start_epoch} leaves nothing of epochs {self.epochs:g}")
        if self.swa and self.swa.start_epoch + self.swa.every > math.ceil(self.epochs):
            raise ValueError(
                f"swa takes the weights after epoch {self.swa.start_epoch} alone, of which there is no mean: lower "
                "swa.start_epoch or swa.every"
            )

    def _check_patience(self) -> None:
        evaluations = math.ceil(self.epochs / self.eval.every)
        if self.early_stopping and self.early_stopping.patience >= evaluations:
            least = f"give {evaluations - 1} at most, or " if evaluations > 1 else ""
            raise ValueError(
                f"early_stopping.patience {self.early_stopping.patience} has no effect on a run of "
                f"{plural(evaluations, 'evaluation')}, the first of which is always the best until then: {least}set "
                "early_stopping=off"
            )

    @property
    def averages(self) -> bool:
        """Whether an average of the weights is evaluated and saved in their place."""
        return self.ema is not None or self.swa is not None

    def weights_read(self) -> dict[str, str]:
        """By dotted key: the files of weights and runs that training reads; what is fetched is none."""
        named = {"model.pretrained": self.model.pretrained, "distill.teacher": self.distill and self.distill.teacher}
        return {key: source for key, source in named.items() if source and not is_download(source)}


def _check_losses(recipe: Recipe) -> None:
    if recipe.focal_gamma != 2.0 and recipe.loss != "focal":
        raise ValueError("focal_gamma needs loss=focal")
    if recipe.class_weights_beta != 0.999 and recipe.class_weights != "effective":
        raise ValueError("class_weights_beta needs class_weights=effective")
    if isinstance(recipe.class_weights, str) and recipe.data.balance == "oversample":
        raise ValueError(
            f"class_weights={recipe.class_weights} has no effect with data.balance=oversample, which draws all classes "
            "equally often: use one of them"
        )


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
    "recheck",
)
"""Top-level keys that do not change what is trained."""
NOT_IN_DIGEST: dict[str, Any] = {**dict.fromkeys(NOT_TRAINING, True), "data": {"index"}}
"""These, and keys of groups, as pydantic's `exclude`."""
