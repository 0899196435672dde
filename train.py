"""Train what a recipe says: accelerate launch train.py recipe=quickstart [key=value ...]"""

import gc
import sys


def main() -> None:
    # While modules are imported nothing is garbage, and looking for it takes a third of the time.
    gc.disable()
    import resnet.process.signals  # noqa: F401  (notes which process started this one, before seconds have passed)
    from resnet.run import main

    gc.enable()
    sys.exit(main(sys.argv[1:]))


if __name__ == "__main__":
    main()
