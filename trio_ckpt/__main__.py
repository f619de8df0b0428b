"""``python -m trio_ckpt`` and the script ``trio-ckpt``."""

import importlib.util
import sys

if importlib.util.find_spec("click") is None or importlib.util.find_spec("rich") is None:
    sys.stderr.write("trio-ckpt needs click and rich: pip install 'trio-ckpt[cli]'\n")
    sys.exit(8)  # EXIT_NOT_INSTALLED, which stands behind them

from trio_ckpt.cli import main as main

if __name__ == "__main__":
    sys.exit(main())
