"""Started by path, ``python -I -u …/harness/worker/__main__.py request.json``, inside a cell's environment.

Isolated mode leaves the script's folder out of ``sys.path``; the folder that holds this copy of the package is put first, so
that the only ``harness`` here is the worker's own.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    from harness.worker.cell import main
    from harness.worker.offline import forbid_network

    forbid_network()
    main(sys.argv[1])
