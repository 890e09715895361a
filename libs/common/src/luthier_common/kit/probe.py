"""`python -m luthier_common.kit.probe [readyz]`: asks the process that serves health in this container how it is.

Exit status 0 when it answers 200. Only the standard library: it runs every few seconds.
"""

import os
import sys
from http.client import HTTPConnection, HTTPException

LIMIT_S = 4.0


def main(arguments: list[str]) -> int:
    """The exit status; what is missing goes to standard output, where the container's engine keeps it."""
    host = os.environ.get("LUTHIER_HEALTH_HOST", "127.0.0.1")
    connection = HTTPConnection(
        "127.0.0.1" if host in ("0.0.0.0", "::") else host,  # noqa: S104 (an address that is compared, not bound)
        int(os.environ.get("LUTHIER_HEALTH_PORT") or 0),
        timeout=LIMIT_S,
    )
    try:
        connection.request("GET", f"/{arguments[0] if arguments else 'healthz'}")
        answer = connection.getresponse()
        sys.stdout.write(answer.read(4096).decode("utf-8", "replace") + "\n")
    except (OSError, HTTPException) as error:
        sys.stdout.write(f"no answer: {type(error).__name__}\n")
        return 1
    finally:
        connection.close()
    return 0 if answer.status == 200 else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
