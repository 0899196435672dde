"""Building the parts of a run from its recipe. Everything a user can have got wrong is a ValueError here."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs
from torch import nn

from recipes.plan import Plan, effective_decay
from recipes.schema.recipe import Recipe
from recipes.text import listed
from resnet.agreement import STEP_TIMEOUT
from resnet.data.copying import Stopped
from resnet.data.kept import memory_for
from resnet.data.node_memory import NodeMemory
from resnet.data.order import Kind, Order, balanced_counts
from resnet.data.sources.files import Files, Lister, Place, lists_itself
from resnet.data.sources.index import FOLDER, Index, Listed, Told
from resnet.data.sources.registry import LISTED, Splits, open_sources, open_splits
from resnet.data.sources.source import Source
from resnet.data.stage import stage
from resnet.ema import Ema
from resnet.inference import input_dtype
from resnet.losses import class_weights
from resnet.metrics import Window
from resnet.net import build_model, freeze_backbone
from resnet.optim import build_optimizer
from resnet.plugins import check_logits, own_model
from resnet.pretrained import load_pretrained
from resnet.process.environment import cores_of_rank, threads_asked
from resnet.process.open_files import allow_open_files
from resnet.ranks import first_of_ranks, meet_at_rank_0, of_node, together
from resnet.state import TrainState


def build_accelerator(recipe: Recipe) -> Accelerator:
    """Join the process group of the launcher, if there is one, and choose the device.

    Raises ValueError where there is no GPU but the recipe wants one, and where ranks would train on their own.
    """
    on_cpu = takes_cpu(recipe)
    if on_cpu and recipe.data.decode == "gpu":
        why = "device=cpu" if recipe.device == "cpu" else "torch finds no GPU on this machine"
        raise ValueError(f"data.decode=gpu needs a GPU, and {why}: use data.decode=cpu")
    if on_cpu:
        threads = threads_asked() or cores_of_rank()
        # Accelerate sets another number where this is not set.
        os.environ["OMP_NUM_THREADS"] = str(threads)
        torch.set_num_threads(threads)
    if (ranks := os.environ.get("WORLD_SIZE", "")).isdigit() and int(ranks) > 1:
        allow_open_files(int(ranks), int(os.environ.get("RANK", "0")))
        # From torch 2.8 on gloo connects to those alone that a rank talks to: the others of a ring, and of a tree.
        os.environ.setdefault("TORCH_GLOO_LAZY_INIT", "1")
        meet_at_rank_0()
    # torch renames the argument in 2.15 and keeps the old name, which older versions need.
    warnings.filterwarnings("ignore", message=".*broadcast_buffers", category=FutureWarning)
    accelerator = Accelerator(
        mixed_precision=choose_precision(recipe, on_cpu),
        cpu=on_cpu,
        kwargs_handlers=[
            DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True),
            InitProcessGroupKwargs(timeout=STEP_TIMEOUT),
        ],
    )
    # `accelerate launch --cpu` with several machines sets an address but no number of processes.
    asked = os.environ.get("WORLD_SIZE", "several" if "MASTER_ADDR" in os.environ else "1")
    if str(accelerator.num_processes) != asked:
        raise ValueError(
            f"{asked} processes were launched but this one sees {accelerator.num_processes}: each would train alone. "
            "On CPUs launch with: accelerate launch --multi_gpu --num_processes N train.py ..."
        )
    if accelerator.device.type == "cuda":
        torch.backends.cudnn.benchmark = not recipe.deterministic
    if recipe.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    return accelerator


def takes_cpu(recipe: Recipe) -> bool:
    """Whether a recipe computes on the CPU here. Raises ValueError where there is no GPU but the recipe wants one."""
    has_gpu = torch.cuda.is_available()
    if recipe.device == "cuda" and not has_gpu:
        raise ValueError("device=cuda, but torch finds no GPU on this machine (nvidia-smi says what there is)")
    return recipe.device == "cpu" or not has_gpu


def choose_precision(recipe: Recipe, on_cpu: bool) -> str:
    """Accelerate's name of the autocast type. Raises ValueError for fp16 without a GPU."""
    if recipe.precision == "auto":
        return "no" if on_cpu else "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if recipe.precision == "fp16" and on_cpu:
        raise ValueError("precision=fp16 needs a GPU: use precision=no, or auto to let the device decide")
    return recipe.precision


def stage_data(recipe: Recipe, local_rank: int, stopped: Callable[[], bool]) -> Mapping[str, str] | None:
    """Copy the data to this machine's own disk; by key, where it is now.

    stopped: whether to leave it, as the run is to end: None, on all ranks. Raises ValueError, on all ranks.
    """

    def copies() -> Mapping[str, str] | None:
        try:
            return stage(recipe.data, stopped, print) if local_rank == 0 else {}
        except Stopped:
            return None

    found = together(copies)
    if first_of_ranks(True if found is None else None):
        return None
    return of_node(found or None) or {}


def share_memory(recipe: Recipe, train: Source, val: Source, local_rank: int) -> NodeMemory | None:
    """Memory that the ranks of this machine keep images in; None where the recipe wants none. Raises ValueError."""
    if recipe.data.cache in ("none", "device"):
        return None
    own = together(lambda: memory_for(recipe, train, val) if local_rank == 0 else None)
    found = of_node(None if own is None else (own.size, own.address))

    def opened() -> NodeMemory | None:
        if own is not None or found is None:
            return own
        try:
            return NodeMemory(*found)
        except OSError as error:
            if recipe.data.cache == "auto":
                return None  # the batches are the same
            raise ValueError(
                f"data.cache=memory: the memory of another rank of this machine cannot be opened ({error}): "
                "set data.cache=none"
            ) from error

    return together(opened)


def build_data(recipe: Recipe, copies: Mapping[str, str] | None = None) -> tuple[Source, Source]:
    """Training and validation images, as `build_splits`; those to test on are left out."""
    train, val = open_sources(recipe.data, copies, recipe.model.in_channels, _index(recipe, copies))
    _check_classes(recipe, train)
    return train, val


def build_splits(recipe: Recipe, copies: Mapping[str, str] | None = None, lister: Lister | None = None) -> Splits:
    """The images of a recipe. Raises ValueError also where the class count is not the recipe's.

    copies: by key of `data`, where it has been copied to. lister: see `open_splits`; None: by the index in `run.root`.
    """
    lister = lister or _index(recipe, copies)
    splits = open_splits(recipe.data, copies, recipe.model.in_channels, lister)
    _check_classes(recipe, splits.train)
    return splits


def build_splits_of_ranks(recipe: Recipe, copies: Mapping[str, str], rank: int, local_rank: int) -> Splits:
    """The same on every rank of a run: of folders and CSV files rank 0 finds what they hold, and tells the others.

    Raises ValueError, on all ranks, also where the first rank of a machine sees other files than rank 0.
    """
    if recipe.data.source not in LISTED:
        return together(lambda: build_splits(recipe, copies, lists_itself), local_rank, first_alone=True)
    index = Index(_index_folder(recipe), not copies, _rebuilds(recipe), tells=dist.is_initialized())
    found = together(lambda: build_splits(recipe, copies, index) if rank == 0 else None)
    told = first_of_ranks(index.told if rank == 0 else None)
    assert told is not None
    lister = Told(told, compares=local_rank == 0, rank=rank)
    if not dist.is_initialized() or all(listed.path for listed in told.values()):
        return together(lambda: found or build_splits(recipe, copies, lister))
    return _listed_on_machine(recipe, copies, told, index if rank == 0 else lister, rank, local_rank)


def _listed_on_machine(
    recipe: Recipe, copies: Mapping[str, str], told: Mapping[str, Listed], first: Lister, rank: int, local_rank: int
) -> Splits:
    """Where no index could be written for all: one rank a machine lists, and its others map a list of their own.

    first: the lister of that one rank.
    """
    leads = local_rank == 0
    made = together(lambda: TemporaryDirectory(prefix="resnet-lists-") if leads else contextlib.nullcontext(""))
    with made as folder:
        own = Index(Path(folder), keeps=False, tells=True)

        def lister(key: str, place: Place, listing: Callable[[], Files]) -> Files:
            return own(key, place, lambda: first(key, place, listing))

        found = together(lambda: build_splits(recipe, copies, lister) if leads else None)
        paths = of_node({key: listed.path for key, listed in own.told.items()} if leads else None) or {}
        # What a container does not see of its machine is listed again.
        seen = {key: path for key, path in paths.items() if path is not None and os.path.isfile(path)}
        others = Told({key: listed._replace(path=seen.get(key)) for key, listed in told.items()}, False, rank)
        return together(lambda: found or build_splits(recipe, copies, others))


def _index(recipe: Recipe, copies: Mapping[str, str] | None) -> Lister:
    """The index beside the runs, where there are any."""
    folder = _index_folder(recipe)
    return Index(folder, not copies, _rebuilds(recipe)) if folder.parent.is_dir() else lists_itself


def _index_folder(recipe: Recipe) -> Path:
    return Path(recipe.run.root).expanduser().absolute() / FOLDER


def _rebuilds(recipe: Recipe) -> bool:
    return getattr(recipe.data, "index", "auto") == "rebuild"


def _check_classes(recipe: Recipe, train: Source) -> None:
    given, found = recipe.model.num_classes, len(train.classes)
    if given is not None and given != found:
        few = ", ".join(train.classes[:5]) + (" ..." if found > 5 else "")
        raise ValueError(f"model.num_classes={given}, but {recipe.data.train} has {found} classes ({few})")


def build_order(recipe: Recipe, train: Source, kind: Kind = "bijection") -> Order:
    """Which training image stands at which position of an epoch. Raises ValueError for shares of no such classes."""
    data, sizes = recipe.data, class_sizes(train)
    shares = {number: data.class_shares[name] for number, name in enumerate(train.classes) if name in data.class_shares}
    if unknown := sorted(data.class_shares.keys() - {*train.classes}):
        raise ValueError(f"data.class_shares names {listed(unknown)}, and the classes are {listed(train.classes)}")
    if empty := [train.classes[number] for number in shares if not sizes[number]]:
        raise ValueError(f"data.class_shares names {listed(empty)}, of which there are no images")
    if len(shares) == np.count_nonzero(sizes) and abs(total := sum(shares.values()) - 1) > 1e-6:
        raise ValueError(f"data.class_shares names every class and adds up to {total + 1:g} instead of 1")
    drawn = balanced_counts(data.balance, sizes, shares)
    return Order(train.labels, recipe.seed, recipe.batch_size, data.repeats, drawn, kind)


def class_sizes(train: Source) -> np.ndarray:
    """Images of each class (classes,)."""
    return np.bincount(train.labels, minlength=len(train.classes))


def build_class_weights(recipe: Recipe, train: Source, order: Order) -> torch.Tensor | None:
    """Weights of the classes in the loss (classes,), by what an epoch draws. Raises ValueError."""
    return class_weights(recipe, train.classes, class_sizes(train) if order.drawn is None else order.drawn)


def initial_model(
    recipe: Recipe, classes: int, names: Sequence[str] = (), pretrained: bool = True
) -> tuple[nn.Module, str]:
    """As `build_model_for`, by the random numbers as they are, and before BatchNorm knows of other ranks."""
    if recipe.model.plugin:
        return own_model(recipe.model.plugin, classes, recipe.model.in_channels), ""
    model, note = build_model(recipe.model, classes), ""
    if recipe.model.pretrained and pretrained:
        note = load_pretrained(model, recipe.model.pretrained, recipe.run.root, names, recipe.augment)
    if recipe.model.freeze_backbone:
        freeze_backbone(model)
    return model, note


def build_model_for(
    recipe: Recipe, classes: int, names: Sequence[str] = (), pretrained: bool = True
) -> tuple[nn.Module, str]:
    """The network with its initial weights on the CPU, and what to say of pretrained ones ("" for none).

    names: of the classes, by which a pretrained classifier is kept. pretrained: False: a checkpoint's weights follow.
    """
    torch.manual_seed(recipe.seed)
    model, note = initial_model(recipe, classes, names, pretrained)
    if recipe.model.sync_batchnorm:
        if not torch.cuda.is_available() or recipe.device == "cpu":
            raise ValueError("model.sync_batchnorm needs GPUs (torch's SyncBatchNorm has no CPU version)")
        return nn.SyncBatchNorm.convert_sync_batchnorm(model), note
    return model, note


def build_state(recipe: Recipe, plan: Plan, model: nn.Module, accelerator: Accelerator) -> TrainState:
    """Model on its device, optimizer, average and scaler, at step 0."""
    device = accelerator.device
    memory_format = torch.channels_last if recipe.channels_last else torch.contiguous_format
    model = model.to(device=device, memory_format=memory_format)  # pyright: ignore[reportCallIssue]
    ema = None
    if recipe.ema:
        ema = Ema(model, effective_decay(recipe.ema, recipe.batch_size, recipe.epochs), recipe.ema.every)
    elif recipe.swa:
        ema = Ema(model, decay=None)
    fp16 = accelerator.mixed_precision == "fp16"
    return TrainState(
        model=model,
        optimizer=build_optimizer(model, recipe.optimizer, plan.lr),
        scaler=torch.amp.GradScaler(device.type, enabled=fp16),
        ema=ema,
        window=Window(device),
    )


def wrap(recipe: Recipe, plan: Plan, model: nn.Module, accelerator: Accelerator, step: int) -> nn.Module:
    """The network as it is trained from `step` on: autocast and DDP by Accelerate, torch.compile around it."""
    network = accelerator.prepare_model(model)
    if recipe.compile:
        network = torch.compile(network)
    if accelerator.num_processes > 1:
        _settle_buckets(recipe, plan, network, model, accelerator, step)
    return network  # pyright: ignore[reportReturnType]


def _settle_buckets(recipe: Recipe, plan: Plan, network, model: nn.Module, accelerator: Accelerator, step: int) -> None:
    """Two passes thrown away: DDP sorts its gradient buckets anew after the first, which changes the order of its sums.

    Without them the first step of a resumed run would add up in another order than the same step of a run that went on.
    """
    on_gpu = accelerator.device.type == "cuda"
    images, size = (plan.micro_batch, plan.image_size(step)) if on_gpu or recipe.compile else (2, 64)
    before = {name: tensor.clone() for name, tensor in model.named_buffers()}
    memory_format = torch.channels_last if recipe.channels_last else torch.contiguous_format
    dtype = input_dtype(recipe, accelerator.mixed_precision)
    noise = torch.randn(images, recipe.model.in_channels, size, size, device=accelerator.device, dtype=dtype)
    noise = noise.contiguous(memory_format=memory_format)
    for _ in range(2):
        output = network(noise)
        if recipe.model.plugin:
            check_logits(recipe.model.plugin, output, images)
        output.float().square().mean().backward()
        for parameter in model.parameters():
            parameter.grad = None
    with torch.no_grad():
        for name, tensor in model.named_buffers():
            tensor.copy_(before[name])
