"""The `rlsmooth` command."""


def main() -> None:
    """Run the command that the arguments name."""
