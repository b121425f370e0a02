"""Install hybvit in an empty environment with the oldest or the newest versions that pyproject.toml allows, and use it.

    python benchmarks/install.py oldest [--python 3.12] [--keep FOLDER]

It needs uv (`pip install uv`), and downloads torch unless uv's cache has it. The wheel is built, installed and used away from
this clone, as a user has it. The last line says what worked, with which versions.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESOLUTIONS = {"oldest": "lowest-direct", "newest": "highest"}
TINY = "--train.steps=4 --train.batch_size=8 --model.dim=16 --model.depth=2 --model.heads=2 --train.preview_every=0"
QUICK = (
    "--limit=40 --samples=20 --steps=2 --bound-images=4 --bound-draws=4 --attack-images=4 "
    "--attack-steps=2 --corruption-images=4 --certified-images=2 --certified-votes=20 --reading-images=4 --reading-attacks=2"
)
COMMANDS = (  # a user's first minutes
    "--version",
    "doctor",
    "sample fashion-mnist -n 2 --steps 2 --folder drawn",
    "classify fashion-mnist drawn/000000.png",
    f"train digits {TINY}",
    f"evaluate runs/digits {QUICK} --report",
)


def run(*command: str | Path, cwd: Path | None = None) -> None:
    print("$", *command, flush=True)
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}  # no source but the installed one
    subprocess.run([str(word) for word in command], cwd=cwd, env=clean, check=True)


def direct_dependencies() -> list[str]:
    """The names of the packages that pyproject.toml asks for, without extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return [re.match(r"[\w-]+", requirement)[0] for requirement in project["dependencies"]]


def versions(python: Path) -> str:
    code = "import platform, sys; from importlib.metadata import version as v; "
    code += "print('python', platform.python_version(), *(f'{n} {v(n)}' for n in sys.argv[1:]), sep=', ')"
    return subprocess.run(
        [python, "-c", code, *direct_dependencies()], capture_output=True, text=True, check=True
    ).stdout.strip()


def check(which: str, python: str, folder: Path) -> None:
    """Build the wheel, install it with these versions into ``folder``, and run COMMANDS there."""
    uv, environment, away = (
        shutil.which("uv") or sys.exit("uv is not installed: pip install uv"),
        folder / "venv",
        folder / "work",
    )
    away.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(folder / "dist", ignore_errors=True)  # wheels of other versions, in a folder that is kept
    run(uv, "build", "--quiet", "--wheel", "--out-dir", folder / "dist", ROOT)
    run(uv, "venv", "--quiet", "--clear", "--python", python, environment)
    (wheel,) = (folder / "dist").glob("*.whl")
    interpreter = environment / "bin" / "python"
    direct = ("--requirements", ROOT / "pyproject.toml")  # else uv takes the oldest wheel of hybvit, and all others new
    run(uv, "pip", "install", "--quiet", "--python", interpreter, "--resolution", RESOLUTIONS[which], wheel, *direct)
    run(uv, "pip", "check", "--python", interpreter)
    run(interpreter, "-c", "from hybvit import HybViTClassifier; HybViTClassifier(max_iter=1)", cwd=away)
    for command in COMMANDS:
        run(environment / "bin" / "hybvit", *command.split(), cwd=away)
    print(f"{which}: {len(COMMANDS)} commands worked with {versions(interpreter)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("which", choices=RESOLUTIONS)
    parser.add_argument("--python", default=f"{sys.version_info.major}.{sys.version_info.minor}", help="version (this one)")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="install here, and keep it (a temporary folder)")
    args = parser.parse_args()
    if args.keep is not None:
        check(args.which, args.python, args.keep.resolve())
        return
    with tempfile.TemporaryDirectory() as folder:
        check(args.which, args.python, Path(folder))


if __name__ == "__main__":
    main()
