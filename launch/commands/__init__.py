"""The subcommands of `launch`, one a file: `add_arguments(parser)` and `run(arguments)`. Nobody imports them."""
