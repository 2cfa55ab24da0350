"""``python -m retroformer`` is ``retroformer``."""

import sys

from retroformer.cli import main

sys.exit(main())
