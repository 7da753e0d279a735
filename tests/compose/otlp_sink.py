"""An OTLP receiver that counts: otlp_sink.py PORT FILE. Writes into FILE how many requests with spans came so far."""

import sys
from concurrent import futures

import grpc

EXPORT = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"


class Sink(grpc.GenericRpcHandler):
    def __init__(self, path):
        self.path = path
        self.count = 0

    def service(self, details):
        if details.method != EXPORT:
            return None
        return grpc.unary_unary_rpc_method_handler(self.export)

    def export(self, request, _context):
        # An empty answer is an answer without complaints.
        if request:
            self.count += 1
            with open(self.path, "w", encoding="utf-8") as file:
                file.write(str(self.count))
        return b""


def main():
    port, path = sys.argv[1:]
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=2))
    server.add_generic_rpc_handlers((Sink(path),))
    if server.add_insecure_port(f"0.0.0.0:{port}") == 0:
        sys.exit(f"port {port} is taken")
    server.start()
    server.wait_for_termination()


if __name__ == "__main__":
    main()
