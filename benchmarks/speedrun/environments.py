"""Virtual environments of the rivals, made once and never of ours."""

import shutil
import subprocess
import venv
from pathlib import Path


class NotInstalledError(Exception):
    """A rival's requirements could not be installed; the message is one line."""


def python_of(folder: Path, requirements: tuple[str, ...]) -> Path:
    """The Python of the environment in `folder` with these requirements, which is made where it is not there yet.

    Args:
      folder: it also says what was installed, so that changed requirements make it anew.

    Raises:
      NotInstalledError: pip's reason, in one line.
    """
    python, mark = folder / "bin" / "python", folder / "requirements.txt"
    wanted = "".join(f"{one}\n" for one in requirements)
    if mark.exists() and mark.read_text() == wanted:
        return python
    shutil.rmtree(folder, ignore_errors=True)
    print(f"{folder}: installing {', '.join(requirements)}", flush=True)
    venv.create(folder, with_pip=True)
    command = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *requirements]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or ["nothing"]
        raise NotInstalledError(f"pip says: {errors[0].removeprefix('ERROR: ')}")
    mark.write_text(wanted)  # last: a half-made environment has none
    return python
