"""``python -m ceit`` is the ``ceit`` command, for launchers such as ``accelerate launch -m ceit train ...``."""

import sys

from ceit_cli import main

if __name__ == "__main__":
    sys.exit(main())
