// Upload a file: a client stream that goes on where it broke, also over a restart of the server or of this program. From
// the repository's root, with the stubs that examples/go/README.md makes:
//
//	go run -C examples/go ./upload "$PWD/README.md"
package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"flag"
	"fmt"
	"io"
	"log"
	"os"
	"path/filepath"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	files "weir-examples/filespb"
	"weir-examples/retry"
	pb "weir-examples/streamingpb"
)

const chunkBytes = 64 * 1024

// upload is a file on its way to the server.
type upload struct {
	streaming pb.StreamingServiceClient
	files     files.FilesClient
	file      *os.File
	metadata  *pb.FileMetadata
}

func main() {
	address := flag.String("address", "127.0.0.1:50051", "the server's gRPC port")
	flag.Parse()
	if flag.NArg() != 1 {
		log.Fatal("usage: upload [-address HOST:PORT] FILE")
	}
	file, err := os.Open(flag.Arg(0))
	if err != nil {
		log.Fatal(err)
	}
	defer file.Close()
	metadata, err := describe(file)
	if err != nil {
		log.Fatal(err)
	}
	conn := retry.Dial(*address)
	defer conn.Close()
	u := &upload{pb.NewStreamingServiceClient(conn), files.NewFilesClient(conn), file, metadata}
	var stored *pb.UploadFileResponse
	retry.Again(func() (err error) {
		stored, err = u.send()
		return err
	})
	fmt.Println(stored.GetFileId(), stored.GetBytesUploaded(), stored.GetDownloadUrl())
}

func describe(file *os.File) (*pb.FileMetadata, error) {
	hash := sha256.New()
	size, err := io.Copy(hash, file)
	if err != nil {
		return nil, err
	}
	checksum := hex.EncodeToString(hash.Sum(nil))
	return &pb.FileMetadata{
		Filename:  filepath.Base(file.Name()),
		TotalSize: size,
		Checksum:  checksum,
		// The same file gets the same id, so that a second run goes on with what the first began.
		UploadId: "upload-" + checksum,
	}, nil
}

// committed is how many bytes the server has of it already.
func (u *upload) committed() (int64, error) {
	request := &files.GetUploadRequest{UploadId: u.metadata.GetUploadId()}
	state, err := u.files.GetUpload(context.Background(), request)
	if status.Code(err) == codes.NotFound {
		return 0, nil
	}
	return state.GetCommittedOffset(), err
}

func (u *upload) send() (*pb.UploadFileResponse, error) {
	offset, err := u.committed()
	if err != nil {
		return nil, err
	}
	if _, err := u.file.Seek(offset, io.SeekStart); err != nil {
		return nil, err
	}
	stream, err := u.streaming.UploadFile(context.Background())
	if err != nil {
		return nil, err
	}
	// What breaks the stream while it is written shows when it is closed.
	err = stream.Send(&pb.FileChunk{Data: &pb.FileChunk_Metadata{Metadata: u.metadata}})
	for chunk := make([]byte, chunkBytes); err == nil; {
		var size int
		size, err = io.ReadFull(u.file, chunk)
		if size == 0 {
			break
		}
		data := &pb.FileChunk_Chunk{Chunk: chunk[:size]}
		err = stream.Send(&pb.FileChunk{Data: data, Offset: offset, Size: int64(size)})
		offset += int64(size)
	}
	return stream.CloseAndRecv()
}
