"""The commands of the binary as functions: each gives the object that the command prints with `--json`."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any


class CommandError(RuntimeError):
    """A command failed: its exit code, what it said, and the object it printed, if it printed one.

    `code` is 1 where a check failed and 2 where the input or the call was wrong.
    """

    def __init__(self, code: int, said: str, found: Any) -> None:
        super().__init__(said or f"dijiang ended with {code}")
        self.code = code
        self.found = found


def binary() -> str:
    """`DIJIANG`, the binary of this environment, or the one on PATH."""
    beside = Path(sys.executable).parent / ("dijiang.exe" if os.name == "nt" else "dijiang")
    found = os.environ.get("DIJIANG") or (str(beside) if beside.is_file() else shutil.which("dijiang"))
    if not found:
        raise FileNotFoundError("the binary `dijiang` was not found; `pip install dijiang` brings it, or set DIJIANG")
    return found


def run(*words: str | Path, timeout: float | None = None) -> Any:
    command = [binary(), *map(str, words), "--json"]
    environment = {"VIRTUAL_ENV": sys.prefix, **os.environ}
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=timeout, env=environment)
    found = json.loads(done.stdout) if done.stdout.strip() else None
    if done.returncode != 0:
        raise CommandError(done.returncode, done.stderr.strip(), found)
    return found


def convert(source: str | Path, output: str | Path, *options: str, timeout: float | None = None) -> Any:
    """Converts a checkpoint or an ONNX file, for example `convert("model", "bundle", "--recipe", "adaptive", "--dtype", "f16")`."""
    return run("convert", source, "-o", output, *options, timeout=timeout)


def verify(bundle: str | Path, *options: str, timeout: float | None = None) -> Any:
    """Runs every form of a bundle against every other."""
    return run("verify", bundle, *options, timeout=timeout)


def info(bundle: str | Path) -> Any:
    """What a bundle is."""
    return run("info", bundle)
