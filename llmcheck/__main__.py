"""``python -m llmcheck``."""

import sys

from llmcheck.cli import main

if __name__ == "__main__":
    sys.exit(main())
