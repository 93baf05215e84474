"""`python -m mlx_ane` is the command `mlx-ane`."""

import sys

from mlx_ane.cli import main

sys.exit(main())
