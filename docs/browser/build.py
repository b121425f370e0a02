"""Put beside the page what it needs: the digits model as graphs, and onnxruntime-web, which npm fetches.

python docs/browser/build.py && python -m http.server --directory docs/browser
"""

from __future__ import annotations

import subprocess
import tarfile
import tempfile
from pathlib import Path

import hybvit
from hybvit.export.folder import export_graphs

HERE = Path(__file__).resolve().parent
PACKAGE = "onnxruntime-web@1.30.0"
FILES = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")


def fetch_runtime(folder: Path) -> None:
    """Extract the WebAssembly runtime from its npm package."""
    folder.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as place:
        packed = subprocess.run(["npm", "pack", PACKAGE, "--silent"], cwd=place, check=True, capture_output=True, text=True)
        with tarfile.open(Path(place) / packed.stdout.split()[-1]) as archive:
            for name in FILES:
                member = archive.extractfile(f"package/dist/{name}")
                assert member is not None, name
                (folder / name).write_bytes(member.read())


if __name__ == "__main__":
    export_graphs(hybvit.load("digits", "cpu"), HERE / "model")
    fetch_runtime(HERE / "ort")
