"""Train what a recipe says: accelerate launch train.py recipe=quickstart [key=value ...]"""

import sys

HELP = """\
usage: train.py recipe=NAME [KEY=VALUE ...] [--debug]

Trains what a recipe says, or continues the run of that name:

  accelerate launch train.py recipe=quickstart
  accelerate launch --multi_gpu --num_processes 8 train.py recipe=resnet50_imagenet data.train=... data.val=...
  torchrun --nproc-per-node 8 train.py recipe=resnet50_imagenet optimizer.lr=0.4 run.name=first
  python train.py recipe=mine.yaml

recipe=   a recipe's name (launch recipes), a YAML file or a run directory
KEY=      any key of the recipe (launch keys explains them, launch show recipe=NAME what follows from them)
--debug   show the traceback of a mistake

Leaves with 0 finished, 1 failed, 2 a mistake in the command, 85 stopped with a checkpoint, to be continued."""


def main() -> None:
    if {"-h", "--help"} & {*sys.argv[1:]}:
        print(HELP)
        return
    if "--version" in sys.argv[1:]:
        from resnet.process.version import VERSION

        print(f"resnet-launch {VERSION}")
        return
    import resnet.process.signals  # noqa: F401  (notes which process started this one, before time has passed)
    from resnet.main import main
    from resnet.process.streams import leave

    leave(main(sys.argv[1:]))


if __name__ == "__main__":
    main()
