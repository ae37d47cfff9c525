"""How the programs of a download end: their JSON line, their messages, their exit status."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping

from tools.download.supervise import stop_on_sigterm


def run_program(work: Callable[[], Mapping[str, object]]) -> int:
    """Do the work of a program and print what it returns as one JSON line.

    Returns:
        The exit status: 0 done, 1 failed, 2 wrong use, 130 and 143 stopped.
    """
    try:
        with stop_on_sigterm():
            result = work()
    except (ValueError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (OSError, RuntimeError) as error:
        print(f"failed: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as stop:
        print("stopped; the same command goes on", file=sys.stderr)
        return getattr(stop, "exit_status", 130)
    print(json.dumps(result))
    return 0
