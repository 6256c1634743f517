"""One run in a folder at a time.

    take(folder)             UserError where another process is writing there
    release()                releases this process's locks; cli.script does so at its end

The lock is the operating system's, on the file .lock: it ends with its process, killed or not. Without locks (Windows,
some network drives) a note says so.
"""
import atexit
import os
from pathlib import Path

from common import UserError

try:
    import fcntl
except ImportError:                                          # Windows
    fcntl = None

HELD = {}                                                    # path of .lock -> (open file, folders made for it)


def take(folder):
    """Makes the folder and locks it for this process, for one run after the other."""
    path = Path(folder).resolve() / ".lock"
    if path in HELD and path.exists():
        return
    release(folder)                                          # of a folder that was removed since, as in a notebook
    made = [parent for parent in path.parents if not parent.exists()]
    while path not in HELD:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "a+")
        try:
            if fcntl is None:
                raise OSError("no locks here")
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            file.seek(0)
            number = file.read().strip()
            file.close()
            raise UserError(f"another run is writing to {folder} (process {number or 'unknown'}); wait for it, or give "
                            "another --save") from error
        except OSError:
            print(f"note: {folder} cannot be locked here; do not start a second run into it")
        try:
            current = os.path.samestat(os.fstat(file.fileno()), os.stat(path))
        except FileNotFoundError:                            # the run before has just ended and removed it
            current = False
        if current:
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
            HELD[path] = file, made
        else:
            file.close()


def release(folder=None):
    """Releases the lock of one folder, or all; an empty folder that was made for it is removed."""
    for path in [Path(folder).resolve() / ".lock"] if folder else list(HELD):
        file, made = HELD.pop(path, (None, []))
        if file:
            path.unlink(missing_ok=True)                     # before the lock is given back
            file.close()
        for parent in made:
            try:
                parent.rmdir()
            except OSError:                                  # it holds something
                break


atexit.register(release)
