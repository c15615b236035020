"""The entry point of `python -m lora_studio`, and of workers, which run this file by its path.

A worker must import this very copy of the package, from any working directory and whether or not the package is
installed. Python puts the folder of a script first on sys.path; the package is in that folder's parent.
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # not in the processes that a pool of the worker spawns: they inherit sys.path
    if not __package__:
        folder = Path(__file__).resolve().parent
        sys.path = [str(folder.parent), *(entry for entry in sys.path if Path(entry).resolve() != folder)]

    from lora_studio.cli.main import main

    main()
