"""`python -m resnet`: the command `resnet`."""

from resnet.tools.cli import main

if __name__ == "__main__":
    main()
