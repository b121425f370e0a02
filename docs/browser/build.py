"""Write the page with what it needs beside it: the digits model as graphs, and onnxruntime-web, which npm fetches.

python docs/browser/build.py && python -m http.server --directory build/browser
"""

from __future__ import annotations

import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

import hybvit
from hybvit.export.folder import export_graphs

HERE = Path(__file__).resolve().parent
BUILT = HERE.parent.parent / "build" / "browser"
PACKAGE = "onnxruntime-web@1.30.0"
FILES = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")


def build(folder: Path) -> None:
    """Write the page into a folder.

    Raises:
        OSError, subprocess.CalledProcessError: there is no npm, or it fetches nothing.
        ConfigError: the packages of the extra ``export`` are missing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    fetch_runtime(folder / "ort")
    export_graphs(hybvit.load("digits", "cpu"), folder / "model")
    for name in ("digits.js", "page.js"):
        shutil.copyfile(HERE / name, folder / name)
    page = (HERE / "index.html").read_text(encoding="utf-8")
    (folder / "index.html").write_text(page.replace("<html", '<html data-model="model"', 1), encoding="utf-8")


def fetch_runtime(folder: Path) -> None:
    """Extract the WebAssembly runtime from its npm package."""
    with tempfile.TemporaryDirectory() as place:
        packed = subprocess.run(["npm", "pack", PACKAGE, "--silent"], cwd=place, check=True, capture_output=True, text=True)
        folder.mkdir(exist_ok=True)
        with tarfile.open(Path(place) / packed.stdout.split()[-1]) as archive:
            for name in FILES:
                member = archive.extractfile(f"package/dist/{name}")
                assert member is not None, name
                (folder / name).write_bytes(member.read())


if __name__ == "__main__":
    build(BUILT)
