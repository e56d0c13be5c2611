"""The commands of the binary as functions: each gives the object that the command prints with `--json`."""

import json
import os
import shutil
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
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


def version() -> str:
    """That of the installed package, which is the binary's."""
    try:
        return metadata.version("dijiang")
    except metadata.PackageNotFoundError:
        return "unknown"


def run(*words: str | Path, timeout: float | None = None, verbose: bool = False, **options: Any) -> Any:
    """Calls the binary with these words, these options and `--json`, for example `run("eval", "bundle", task=["copy", "recall"])`.

    `max_tokens=64` is `--max-tokens 64`, `force=True` is `--force`, an option of a list is given for each of it, and one that
    is `None` or `False` is left out. With `verbose`, what the binary says on the way goes to stderr as it comes.
    """
    command = [binary(), *map(str, words), *_written(options), "--json"]
    environment = {**os.environ, "VIRTUAL_ENV": sys.prefix}
    hears, says = os.pipe()
    with ThreadPoolExecutor(1) as ears:
        heard = ears.submit(_listen, hears, verbose)
        try:
            done = subprocess.run(
                command, stdout=subprocess.PIPE, stderr=says, text=True, check=False, timeout=timeout, env=environment
            )
        finally:
            # The listener ends with the last that can say something.
            os.close(says)
    try:
        found = json.loads(done.stdout) if done.stdout.strip() else None
    except json.JSONDecodeError as error:
        raise ValueError(f"dijiang {' '.join(map(str, words))}: it printed text and no object") from error
    said = heard.result()
    if done.returncode != 0:
        raise CommandError(done.returncode, said, found)
    for line in said.splitlines():
        if line.startswith("warning: "):
            warnings.warn(line.removeprefix("warning: "), stacklevel=3)
    return found


def _written(options: dict[str, Any]) -> list[str]:
    words = []
    for name, given in options.items():
        # `n=64` is `-n 64`.
        option = ("-" if len(name) == 1 else "--") + name.replace("_", "-")
        for value in given if isinstance(given, list | tuple) else [given]:
            if value is True:
                words.append(option)
            elif value is not None and value is not False:
                # One word: a value may begin with a dash.
                words.append(f"{option}{'' if len(name) == 1 else '='}{value}")
    return words


def _listen(hears: int, verbose: bool) -> str:
    said = []
    with os.fdopen(hears, encoding="utf-8", errors="replace") as lines:
        for line in lines:
            said.append(line)
            if verbose:
                print(line, end="", file=sys.stderr, flush=True)
    return "".join(said).strip()


def convert(source: str | Path, output: str | Path, *words: str, **options: Any) -> Any:
    """Converts a checkpoint, an ONNX file or a model of the hub: `convert("model", "bundle", recipe="gated", dtype="f16")`."""
    return run("convert", source, "-o", output, *words, **options)


def adapt(source: str | Path, output: str | Path, data: str | Path | list[str | Path], *words: str, **options: Any) -> Any:
    """Converts, trains on the text of `data`, proves and measures: `adapt("model", "bundle", "text.txt", minutes=30)`.

    The same call goes on where an earlier one ended.
    """
    return run("adapt", source, "-o", output, *words, data=data, **options)


def verify(bundle: str | Path, *words: str, **options: Any) -> Any:
    """Runs every form of a bundle against every other."""
    return run("verify", bundle, *words, **options)


def info(bundle: str | Path, **options: Any) -> Any:
    """What a bundle is."""
    return run("info", bundle, **options)
