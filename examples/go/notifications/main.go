// Follow a user's notifications, and those for everybody: a server stream that survives a restart of the server. From the
// repository's root, with the stubs that examples/go/README.md makes:
//
//	go run -C examples/go ./notifications -user ann
//
// `weir notify --user ann --title Hello` sends one.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"strconv"

	"google.golang.org/grpc/metadata"

	"weir-examples/retry"
	pb "weir-examples/streamingpb"
)

// follower is a user's notifications and how far they were read.
type follower struct {
	service pb.StreamingServiceClient
	user    string
	// position is the sequence read last; nil until the server has answered.
	position *uint64
	// log is the id of the log that the position is of: a server with another one refuses it.
	log []string
	// missing is how many more to show; below zero: all.
	missing int
}

func main() {
	user := flag.String("user", "", "whose notifications")
	count := flag.Int("count", -1, "end after so many")
	address := flag.String("address", "127.0.0.1:50051", "the server's gRPC port")
	flag.Parse()
	conn := retry.Dial(*address)
	defer conn.Close()
	f := &follower{service: pb.NewStreamingServiceClient(conn), user: *user, missing: *count}
	retry.Again(f.follow)
}

// follow prints notifications until the stream breaks or enough came.
func (f *follower) follow() error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	ctx = metadata.NewOutgoingContext(ctx, metadata.MD{"log-id": f.log})
	request := &pb.SubscribeRequest{UserId: f.user, AfterSequence: f.position}
	stream, err := f.service.SubscribeToNotifications(ctx, request)
	if err != nil {
		return err
	}
	// The header says where the stream begins, so that not even a break before the first notification loses one.
	header, err := stream.Header()
	if err != nil {
		return err
	}
	if after := header.Get("after-sequence"); f.position == nil && len(after) > 0 {
		position, err := strconv.ParseUint(after[0], 10, 64)
		if err != nil {
			return err
		}
		f.position, f.log = &position, header.Get("log-id")
	}
	for f.missing != 0 {
		notification, err := stream.Recv()
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return err
		}
		position := notification.GetSequence()
		f.position = &position
		f.missing--
		fmt.Printf("[%s] %s: %s\n", notification.GetCategory(), notification.GetTitle(), notification.GetBody())
	}
	return nil
}
