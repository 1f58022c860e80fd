"""The name of the program, as a user has typed it."""

import sys
from pathlib import Path

PROGRAM = "tandem" if Path(sys.argv[0]).stem == "tandem" else "python -m worker"
