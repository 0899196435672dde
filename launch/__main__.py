"""`python -m launch`: the command `launch`."""

from launch.cli import main

if __name__ == "__main__":
    main()
