"""Train what a recipe says: accelerate launch train.py recipe=quickstart [key=value ...]"""

import sys


def main() -> None:
    from resnet.run import main

    sys.exit(main(sys.argv[1:]))


if __name__ == "__main__":
    main()
