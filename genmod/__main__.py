"""``python -m genmod`` is the ``genmod`` command."""

import sys

from genmod.cli import main

sys.exit(main())
