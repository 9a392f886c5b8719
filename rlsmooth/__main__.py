"""`python -m rlsmooth` is the `rlsmooth` command, which a launcher such as torchrun starts by its module."""

import sys

from rlsmooth.scripts.main import main

if __name__ == "__main__":
    sys.exit(main())
