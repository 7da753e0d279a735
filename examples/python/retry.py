"""What the examples do when a call breaks: wait and try again, unless the server refused."""

import sys
import time

import grpc

# What a call ends with while the server restarts: the next attempt may succeed.
TEMPORARY = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNKNOWN,
}
PAUSE = 0.5


def again(attempt):
    """Calls `attempt` until it returns, with a pause after each that broke. A refusal ends the program."""
    while True:
        try:
            return attempt()
        except grpc.RpcError as error:
            if error.code() not in TEMPORARY:
                print(error.details(), file=sys.stderr)
                raise SystemExit(1) from None
        time.sleep(PAUSE)
