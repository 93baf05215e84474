"""Commands of `mlx-ane`: each module has HELP, add_arguments(parser), run(args)."""
