"""Started by path, ``python -I -u …/harness/worker/__main__.py request.json``, inside a cell's environment.

Isolated mode leaves the script's folder out of ``sys.path``. So the folder that holds this copy of the package is put
first. The only ``harness`` here is then the worker's own.
"""

import atexit
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    from harness.worker.groups import serve_group
    from harness.worker.introspection.listing import write_families
    from harness.worker.libraries import import_libraries
    from harness.worker.offline import forbid_network
    from harness.worker.orphans import adopt_orphans, end_children
    from harness.worker.run import main, serve_cells

    forbid_network()
    match sys.argv[1:]:
        case ["--warm", device, threads]:
            serve_cells(device=device, threads=int(threads))
        case ["--group", number, request]:
            serve_group(int(number), Path(request))
        case ["--imports", first, device, threads]:
            import_libraries(threads=int(threads), device=device, first=first)
        case ["--families", file]:
            import_libraries(threads=1, device="cpu")
            write_families(Path(file))
        case ["--started", request] | [request]:
            adopt_orphans()
            atexit.register(end_children)  # the first to be registered is the last to run
            main(Path(request), started=sys.argv[1] == "--started")
        case other:
            raise SystemExit(f"what is {other}?")
