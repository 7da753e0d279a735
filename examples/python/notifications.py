"""Follow a user's notifications, and those for everybody: a server stream that survives a restart of the server.

From the repository's root:

    python -m pip install grpcio grpcio-tools
    python -m grpc_tools.protoc -I proto --python_out=examples/python --grpc_python_out=examples/python \\
        streaming/v1/streaming.proto
    python examples/python/notifications.py ann

`weir notify --user ann --title Hello` sends one.
"""

import argparse

import grpc
from retry import again
from streaming.v1 import streaming_pb2, streaming_pb2_grpc


class Notifications:
    """A user's notifications, and how far they were read."""

    def __init__(self, service, args):
        self.service, self.args = service, args
        self.position = None
        # Which log the position is of: a server with another one refuses it.
        self.log = None
        self.missing = args.count

    def follow(self):
        """Prints notifications until the stream ends; returns when as many came as were asked for."""
        while self.missing != 0:
            request = streaming_pb2.SubscribeRequest(
                user_id=self.args.user, categories=self.args.category, after_sequence=self.position
            )
            notifications = self.service.SubscribeToNotifications(request, metadata=self.log)
            header = dict(notifications.initial_metadata())
            if self.position is None and "after-sequence" in header:
                # Where the stream begins, so that not even a break before the first notification loses one.
                self.position = int(header["after-sequence"])
                self.log = [("log-id", header["log-id"])]
            for notification in notifications:
                self.position = notification.sequence
                print(f"[{notification.category}] {notification.title}: {notification.body}", flush=True)
                self.missing -= 1
                if self.missing == 0:
                    break


def main():
    parser = argparse.ArgumentParser(description="Follow a user's notifications.")
    parser.add_argument("user")
    parser.add_argument("--category", action="append", default=[], help="only of this category; may be repeated")
    parser.add_argument("--count", type=int, default=-1, help="end after so many")
    parser.add_argument("--address", default="127.0.0.1:50051")
    args = parser.parse_args()
    with grpc.insecure_channel(args.address) as channel:
        again(Notifications(streaming_pb2_grpc.StreamingServiceStub(channel), args).follow)


if __name__ == "__main__":
    main()
