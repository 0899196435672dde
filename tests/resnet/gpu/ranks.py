"""One rank of a run whose ranks share a GPU: as train.py, but over gloo, since NCCL takes one rank a GPU."""

import functools
import os
import sys

import torch
import torch.distributed as dist
from accelerate.utils import InitProcessGroupKwargs

import resnet.build
import resnet.run
from resnet.main import main

if __name__ == "__main__":
    # Else Accelerate lets DDP look for the GPU that has the rank's number.
    os.environ["ACCELERATE_BYPASS_DEVICE_MAP"] = "true"
    resnet.build.InitProcessGroupKwargs = functools.partial(InitProcessGroupKwargs, backend="gloo")  # pyright: ignore
    torch.backends.cudnn.allow_tf32 = False
    train = resnet.run.train_to_an_end

    def over_gloo(*arguments: object) -> int:
        assert dist.get_backend() == "gloo"
        return train(*arguments)

    resnet.run.train_to_an_end = over_gloo
    sys.exit(main(sys.argv[1:]))
