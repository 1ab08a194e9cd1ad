"""``python -m embedmux.server.cli`` is ``embedmux``."""

import sys

from embedmux.server.cli import main

sys.exit(main())
