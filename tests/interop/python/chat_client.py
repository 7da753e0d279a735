"""What Python clients expect of chat.ChatService: `chat_client.py HOST:PORT CHECK`.

Each check prints one line about what it measured and ends with an exception when an expectation fails.
"""

import random
import sys
import threading
import time

import chat_pb2
import chat_pb2_grpc
import grpc
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from grpc_status import rpc_status

SOON = 60
LONG = 600


def connect(address):
    """A connection of its own, as every process has; messages up to 10 MiB."""
    limit = 10 * 1024 * 1024
    return grpc.insecure_channel(
        address,
        options=[
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.max_receive_message_length", limit),
            ("grpc.max_send_message_length", limit),
        ],
    )


def expect(condition, *about):
    if not condition:
        raise AssertionError(" ".join(map(str, about)))


def equal(actual, expected):
    expect(actual == expected, "expected", repr(expected), "but got", repr(actual))


def now():
    timestamp = Timestamp()
    timestamp.GetCurrentTime()
    return timestamp


def methods(address):
    """The five methods, called without any of the fields that Weir added."""
    with connect(address) as channel:
        chat = chat_pb2_grpc.ChatServiceStub(channel)
        room = "python"

        subscription = chat.SubscribeMessages(chat_pb2.SubscribeRequest(room=room, user="Alice"), timeout=SOON)
        welcome = next(subscription)
        equal((welcome.id, welcome.user, welcome.type), ("system", "System", chat_pb2.SYSTEM))
        equal(welcome.content, f"Welcome to room {room}, Alice!")
        expect(not welcome.HasField("timestamp") or welcome.timestamp.seconds > 0, "a welcome without a time")

        reply = chat.SendMessage(chat_pb2.SendMessageRequest(user="Alice", content="Hi!", room=room), timeout=SOON)
        heard = next(subscription)
        equal((heard.id, heard.user, heard.content, heard.room), (reply.message_id, "Alice", "Hi!", room))
        equal((heard.timestamp, heard.type), (reply.timestamp, chat_pb2.CHAT))
        expect(abs(heard.timestamp.ToSeconds() - time.time()) < SOON, "the server's time", heard.timestamp)

        batch = [
            chat_pb2.Message(id=f"batch_{i}", user="Bob", content=f"Part {i}", room=room, timestamp=now(), type=chat_pb2.CHAT)
            for i in range(5)
        ]
        uploaded = chat.UploadMessages(iter(batch), timeout=SOON)
        equal((uploaded.message_count, uploaded.success), (5, True))
        for sent in batch:
            heard = next(subscription)
            expect(heard.sequence > 0, "a record without a sequence")
            heard.ClearField("sequence")
            equal(heard, sent)

        said = threading.Event()

        def conversation():
            for i in range(3):
                yield chat_pb2.Message(id=f"client_{i}", user="Charlie", content=f"Number {i}", room=room, timestamp=now())
            said.wait(SOON)

        talk = chat.Chat(conversation(), timeout=SOON)
        heard = iter(message for message in talk if message.content != "Server is alive!")
        for i in range(3):
            echo = next(heard)
            equal((echo.id, echo.user, echo.content), (f"echo_client_{i}", "Server", f"Echo: Number {i}"))
            equal((echo.room, echo.type), (room, chat_pb2.SYSTEM))
            equal(next(subscription).id, f"client_{i}")
        chat.SendMessage(chat_pb2.SendMessageRequest(user="Alice", content="I hear you", room=room), timeout=SOON)
        equal(next(heard).content, "I hear you")
        said.set()
        equal(list(heard), [])
        equal(talk.code(), grpc.StatusCode.OK)
        subscription.cancel()

        request = chat_pb2.MetricsRequest(instance_id="server-01", interval_seconds=1)
        metrics = chat.StreamMetrics(request, timeout=SOON)
        seen = {}
        while len(seen) < 3:
            metric = next(metrics)
            equal(metric.labels["instance"], "server-01")
            seen[metric.name] = metric
        expect("core" in seen["cpu_usage"].labels, "no core", seen["cpu_usage"])
        equal(seen["memory_usage"].labels["type"], "resident")
        expect(1 < seen["memory_usage"].value < 10_000, "MiB resident", seen["memory_usage"].value)
        expect("endpoint" in seen["requests_per_second"].labels, "no endpoint")
        metrics.cancel()

        health = health_pb2_grpc.HealthStub(channel)
        for service in ("", "chat.ChatService"):
            answer = health.Check(health_pb2.HealthCheckRequest(service=service), timeout=SOON)
            equal(answer.status, health_pb2.HealthCheckResponse.SERVING)
    print("five methods and the health as expected")


def fan_out(address, subscribers=6, count=5000):
    """Everyone gets everything, in order and unchanged, whatever its size."""
    chance = random.Random(7)
    letters = "abcdefgh äöü€𝄞\n\0"
    contents = []
    for _ in range(count):
        text = "".join(chance.choices(letters, k=3000)).encode()[: chance.randrange(3001)]
        contents.append(text.decode(errors="ignore"))
    ready, failures = threading.Barrier(subscribers + 1), []

    def follow(number):
        try:
            with connect(address) as channel:
                request = chat_pb2.SubscribeRequest(room="fan-out", user=f"reader {number}")
                stream = chat_pb2_grpc.ChatServiceStub(channel).SubscribeMessages(request, timeout=LONG)
                equal(next(stream).id, "system")
                ready.wait(SOON)
                last = 0
                for i, content in enumerate(contents):
                    message = next(stream)
                    equal((message.id, message.content), (f"m{i}", content))
                    expect(message.sequence > last, "sequence", message.sequence, "after", last)
                    last = message.sequence
                stream.cancel()
        except BaseException as failure:
            failures.append(failure)
            ready.abort()

    threads = [threading.Thread(target=follow, args=[number], daemon=True) for number in range(subscribers)]
    for thread in threads:
        thread.start()
    ready.wait(SOON)
    began = time.monotonic()
    with connect(address) as channel:
        messages = (
            chat_pb2.Message(id=f"m{i}", user="writer", content=content, room="fan-out")
            for i, content in enumerate(contents)
        )
        uploaded = chat_pb2_grpc.ChatServiceStub(channel).UploadMessages(messages, timeout=LONG)
        equal(uploaded.message_count, count)
    for thread in threads:
        thread.join(LONG)
        expect(failures or not thread.is_alive(), "a subscriber still waits")
    if failures:
        raise failures[0]
    print(f"{subscribers} subscribers received {count} messages each in {time.monotonic() - began:.1f} s")


def million(address, count=1_000_000):
    """One upload of very many small messages is never cut off."""
    message = chat_pb2.Message(id="m", user="bulk", room="million")
    message.content = "x" * (64 - message.ByteSize() - 2)
    equal(message.ByteSize(), 64)
    began = time.monotonic()
    with connect(address) as channel:
        chat = chat_pb2_grpc.ChatServiceStub(channel)
        uploaded = chat.UploadMessages((message for _ in range(count)), timeout=LONG)
    equal((uploaded.message_count, uploaded.success), (count, True))
    took = time.monotonic() - began
    print(f"{count} messages of 64 bytes uploaded in {took:.1f} s, {count / took:.0f} a second")


def details(address):
    """A refusal says what to mend, in the standard details."""
    with connect(address) as channel:
        chat = chat_pb2_grpc.ChatServiceStub(channel)

        def refused(call, code):
            try:
                answer = call()
                if hasattr(answer, "__next__"):
                    next(answer)
            except grpc.RpcError as error:
                equal(error.code(), code)
                status = rpc_status.from_call(error)
                expect(status, "no details for", error.details())
                equal((status.code, status.message), (code.value[0], error.details()))
                return error.details(), status.details
            raise AssertionError("it was not refused")

        def detail(details, kind):
            for packed in details:
                found = kind()
                if packed.Unpack(found):
                    return found
            raise AssertionError(f"no {kind.__name__}")

        invalid = grpc.StatusCode.INVALID_ARGUMENT
        send = chat_pb2.SendMessageRequest
        for request, message, fields in [
            (send(room="r", content="hi"), "user is required", ["user"]),
            (send(user="ann", content="hi"), "room is required", ["room"]),
            (send(user="ann", room="r" * 257), None, ["room"]),
            (send(), None, ["user", "room"]),
        ]:
            text, packed = refused(lambda: chat.SendMessage(request, timeout=SOON), invalid)
            expect(message in (None, text), text)
            violations = detail(packed, error_details_pb2.BadRequest).field_violations
            equal([violation.field for violation in violations], fields)

        bad = [chat_pb2.Message(user="ann", room="r"), chat_pb2.Message(user=" ", room="r")]
        _, packed = refused(lambda: chat.UploadMessages(iter(bad), timeout=SOON), invalid)
        equal(detail(packed, error_details_pb2.BadRequest).field_violations[0].field, "messages[1].user")

        request = chat_pb2.SubscribeRequest(room="empty", user="ann", after_sequence=1 << 60)
        refused(lambda: chat.SubscribeMessages(request, timeout=SOON), grpc.StatusCode.OUT_OF_RANGE)
        request = chat_pb2.MetricsRequest(interval_seconds=-1)
        refused(lambda: chat.StreamMetrics(request, timeout=SOON), invalid)
        request = chat_pb2.MetricsRequest(instance_id="elsewhere")
        _, packed = refused(lambda: chat.StreamMetrics(request, timeout=SOON), grpc.StatusCode.NOT_FOUND)
        equal(detail(packed, error_details_pb2.ResourceInfo).resource_name, "elsewhere")
    print("every refusal carries its details")


def reflection(address):
    """Reflection v1alpha, which is what Python's package speaks, describes the service."""
    with connect(address) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        expect("chat.ChatService" in database.get_services(), database.get_services())
        service = DescriptorPool(database).FindServiceByName("chat.ChatService")
        served = {method.name for method in service.methods}
        equal(served, {method.name for method in chat_pb2.DESCRIPTOR.services_by_name["ChatService"].methods})
    print("reflection v1alpha describes the service")


def deadlines(address):
    """A stream ends when its deadline passes, and a cancelled one at once."""
    with connect(address) as channel:
        chat = chat_pb2_grpc.ChatServiceStub(channel)
        request = chat_pb2.SubscribeRequest(room="quiet", user="ann")
        began = time.monotonic()
        stream = chat.SubscribeMessages(request, timeout=0.5)
        try:
            for _ in stream:
                pass
            raise AssertionError("the stream ended well")
        except grpc.RpcError as error:
            equal(error.code(), grpc.StatusCode.DEADLINE_EXCEEDED)
        expect(time.monotonic() - began < 10, "the deadline came late")
        stream = chat.SubscribeMessages(request)
        next(stream)
        stream.cancel()
        equal(stream.code(), grpc.StatusCode.CANCELLED)
    print("deadlines and cancellation are honoured")


if __name__ == "__main__":
    checks = {check.__name__: check for check in (methods, fan_out, million, details, reflection, deadlines)}
    checks[sys.argv[2]](sys.argv[1])
