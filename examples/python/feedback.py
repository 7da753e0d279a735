"""Give feedback and hear the answers: a bidirectional stream that survives a restart of the server.

From the repository's root:

    python -m pip install grpcio grpcio-tools
    python -m grpc_tools.protoc -I proto --python_out=examples/python --grpc_python_out=examples/python feedback.proto
    python examples/python/feedback.py ann

Each line that is typed is one feedback. `weir feedback reply` answers it; the answer shows here, now or the next time.
"""

import argparse
import sys
import threading
import uuid

import feedback_pb2
import feedback_pb2_grpc
import grpc
from retry import again


class Consumer:
    """What a consumer says, and how much of it the server has thanked for."""

    def __init__(self, service, name):
        self.service, self.name = service, name
        self.changed = threading.Condition()
        self.said = []
        self.answered = 0
        self.is_done = False

    def read(self):
        """Takes one feedback from each line of stdin."""
        for line in sys.stdin:
            # The key makes it safe to send it again when the answer got lost.
            feedback = feedback_pb2.FeedbackRequest(
                consumer_id=self.name, feedback=line.rstrip("\n"), idempotency_key=str(uuid.uuid4())
            )
            with self.changed:
                self.said.append(feedback)
                self.changed.notify_all()
        with self.changed:
            self.is_done = True
            self.changed.notify_all()

    def requests(self, is_over):
        """Everything unanswered, then what is new, until stdin ends or the stream `is_over`."""
        sent = self.answered
        while True:
            with self.changed:
                self.changed.wait_for(lambda: sent < len(self.said) or self.is_done or is_over.is_set())
                if is_over.is_set() or sent == len(self.said):
                    return
            yield self.said[sent]
            sent += 1

    def converse(self):
        """Sends and prints until the stream ends."""
        is_over = threading.Event()
        try:
            for response in self.service.SendFeedback(self.requests(is_over)):
                if response.kind == feedback_pb2.STAFF_REPLY:
                    print(f"{response.author}: {response.response_message}", flush=True)
                    continue
                print(response.response_message, flush=True)
                self.answered += 1
        finally:
            is_over.set()
            with self.changed:
                self.changed.notify_all()


def main():
    parser = argparse.ArgumentParser(description="Give feedback to whoever runs this Weir.")
    parser.add_argument("consumer", help="who you are")
    parser.add_argument("--address", default="127.0.0.1:50051")
    args = parser.parse_args()
    with grpc.insecure_channel(args.address) as channel:
        consumer = Consumer(feedback_pb2_grpc.FeedbackServiceStub(channel), args.consumer)
        threading.Thread(target=consumer.read, daemon=True).start()
        # A stream that ends without an error ends because stdin did and everything is answered.
        again(consumer.converse)


if __name__ == "__main__":
    main()
