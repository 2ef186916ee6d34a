"""`python -m loffta_cli`: the same as `loffta`, for where the script is not on PATH (SLURM jobs, say)."""

import sys

from .main import main

if __name__ == "__main__":
    sys.exit(main())
