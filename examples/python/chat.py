"""Chat in a room of Weir.

From the repository's root:

    python -m pip install grpcio grpcio-tools
    python -m grpc_tools.protoc -I proto --python_out=examples/python --grpc_python_out=examples/python chat.proto
    python examples/python/chat.py ann

What is typed is said in the room; what the room says is printed. Two fields make it survive a restart of the server:
`after_sequence` continues a broken subscription, `idempotency_key` makes it safe to say a line again.
"""

import argparse
import os
import sys
import threading
import time
import uuid

import chat_pb2
import chat_pb2_grpc
import grpc
from retry import PAUSE, TEMPORARY, again


class Room:
    """A room, and how far it was read."""

    def __init__(self, chat, room, user):
        self.chat, self.room, self.user = chat, room, user
        self.position = None
        # Which log the position is of: a server with another one refuses it.
        self.log = None
        self.is_followed = threading.Event()
        self.has_moved = threading.Condition()

    def follow(self):
        """Prints what is said, for ever."""
        while True:
            request = chat_pb2.SubscribeRequest(room=self.room, user=self.user, after_sequence=self.position)
            is_new = self.position is None
            try:
                messages = self.chat.SubscribeMessages(request, metadata=self.log)
                header = dict(messages.initial_metadata())
                if is_new and "after-sequence" in header:
                    # Where the stream begins, so that not even a break before the first message loses one.
                    self.position = int(header["after-sequence"])
                    self.log = [("log-id", header["log-id"])]
                for message in messages:
                    self.show(message, is_new)
            except grpc.RpcError as error:
                if error.code() not in TEMPORARY:
                    print(error.details(), file=sys.stderr)
                    os._exit(1)
            time.sleep(PAUSE)

    def show(self, message, is_new):
        # The welcome is no record: it has no sequence, and is no news the second time.
        if message.sequence or is_new:
            print(f"{message.user}: {message.content}", flush=True)
        with self.has_moved:
            self.position = message.sequence or self.position
            self.has_moved.notify_all()
        self.is_followed.set()

    def say(self, text):
        """Returns the line's sequence once it is on disk."""
        request = chat_pb2.SendMessageRequest(
            user=self.user, room=self.room, content=text, idempotency_key=str(uuid.uuid4())
        )
        return again(lambda: self.chat.SendMessage(request, timeout=10)).sequence


def main():
    parser = argparse.ArgumentParser(description="Chat in a room of Weir.")
    parser.add_argument("user")
    parser.add_argument("--room", default="general")
    parser.add_argument("--address", default="127.0.0.1:50051")
    args = parser.parse_args()
    with grpc.insecure_channel(args.address) as channel:
        room = Room(chat_pb2_grpc.ChatServiceStub(channel), args.room, args.user)
        threading.Thread(target=room.follow, daemon=True).start()
        # What is said before the room is followed would not be shown.
        room.is_followed.wait()
        last = 0
        for line in sys.stdin:
            last = room.say(line.rstrip("\n"))
        # What was said last is shown before the end.
        with room.has_moved:
            room.has_moved.wait_for(lambda: (room.position or 0) >= last, timeout=5)


if __name__ == "__main__":
    main()
