"""The `vit` command: `app` puts it together, one module a subcommand, what they share in `common`."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit code: 0, 1 when some of many pictures failed, 2 for bad input."""
    try:
        from vit_core.app.cli.app import run  # here, so that a Ctrl-C while modules are imported is quiet as well

        return run(arguments)
    except KeyboardInterrupt:
        return 130
