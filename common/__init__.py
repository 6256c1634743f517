import errno
import os

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)             # of an OSError: no room, no quota, too large a file


class UserError(ValueError):
    """An error the user can fix; scripts print it as one line and exit with status 2."""


def say(*words):
    """print, by the first of torchrun's processes only."""
    if os.environ.get("RANK", "0") == "0":
        print(*words, flush=True)
