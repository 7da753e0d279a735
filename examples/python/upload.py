"""Upload a file: a client stream that goes on where it broke, also over a restart of the server or of this program.

From the repository's root:

    python -m pip install grpcio grpcio-tools
    python -m grpc_tools.protoc -I proto --python_out=examples/python --grpc_python_out=examples/python \\
        streaming/v1/streaming.proto weir/v1/files.proto
    python examples/python/upload.py README.md
"""

import argparse
import hashlib
import os

import grpc
from retry import again
from streaming.v1 import streaming_pb2, streaming_pb2_grpc
from weir.v1 import files_pb2, files_pb2_grpc

CHUNK_BYTES = 64 * 1024


class Upload:
    """A file on its way to the server."""

    def __init__(self, channel, path):
        self.streaming = streaming_pb2_grpc.StreamingServiceStub(channel)
        self.files = files_pb2_grpc.FilesStub(channel)
        self.path = path
        with open(path, "rb") as file:
            checksum = hashlib.file_digest(file, "sha256").hexdigest()
        self.metadata = streaming_pb2.FileMetadata(
            filename=os.path.basename(path),
            total_size=os.path.getsize(path),
            checksum=checksum,
            # The same file gets the same id, so that a second run goes on with what the first began.
            upload_id=f"upload-{checksum}",
        )

    def committed(self):
        """How many bytes the server has of it already."""
        try:
            return self.files.GetUpload(files_pb2.GetUploadRequest(upload_id=self.metadata.upload_id)).committed_offset
        except grpc.RpcError as error:
            if error.code() != grpc.StatusCode.NOT_FOUND:
                raise
            return 0

    def chunks(self, offset):
        yield streaming_pb2.FileChunk(metadata=self.metadata)
        with open(self.path, "rb") as file:
            file.seek(offset)
            while chunk := file.read(CHUNK_BYTES):
                yield streaming_pb2.FileChunk(chunk=chunk, offset=offset, size=len(chunk))
                offset += len(chunk)

    def send(self):
        return self.streaming.UploadFile(self.chunks(self.committed()))


def main():
    parser = argparse.ArgumentParser(description="Upload a file to Weir.")
    parser.add_argument("file")
    parser.add_argument("--address", default="127.0.0.1:50051")
    args = parser.parse_args()
    with grpc.insecure_channel(args.address) as channel:
        stored = again(Upload(channel, args.file).send)
        print(stored.file_id, stored.bytes_uploaded, stored.download_url)


if __name__ == "__main__":
    main()
