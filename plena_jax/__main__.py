"""``python -m plena_jax``: the same as the ``plena`` command."""

import sys

from plena_jax.cli import main

sys.exit(main())
