// Chat in a room of Weir. From the repository's root, with the plugins protoc-gen-go and protoc-gen-go-grpc on the path:
//
//	protoc -I proto chat.proto \
//	  --go_out=examples/go --go_opt=module=weir-chat,Mchat.proto=weir-chat/chatpb \
//	  --go-grpc_out=examples/go --go-grpc_opt=module=weir-chat,Mchat.proto=weir-chat/chatpb
//	go run -C examples/go . -user ann
//
// Without protoc, `python -m grpc_tools.protoc` of the package grpcio-tools does the same.
//
// What is typed is said in the room; what the room says is printed. Two fields make it survive a restart of the server:
// after_sequence continues a broken subscription, idempotency_key makes it safe to say a line again.
package main

import (
	"bufio"
	"context"
	"crypto/rand"
	"flag"
	"fmt"
	"log"
	"os"
	"strconv"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	pb "weir-chat/chatpb"
)

const pause = 500 * time.Millisecond

// room is a room and how far it was read.
type room struct {
	chat       pb.ChatServiceClient
	name, user string
	// position is the sequence read last, once it is known.
	position atomic.Uint64
	isKnown  bool
}

func main() {
	user := flag.String("user", "", "who you are")
	name := flag.String("room", "general", "the room")
	address := flag.String("address", "127.0.0.1:50051", "the server's gRPC port")
	flag.Parse()
	conn, err := grpc.NewClient(*address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		log.Fatal(err)
	}
	defer conn.Close()
	room := &room{chat: pb.NewChatServiceClient(conn), name: *name, user: *user}
	shown := make(chan struct{}, 1)
	go room.follow(shown)
	// What is said before the room is followed would not be shown.
	<-shown

	last := uint64(0)
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		last = room.say(lines.Text())
	}
	// What was said last is shown before the end.
	for deadline := time.After(5 * time.Second); room.position.Load() < last; {
		select {
		case <-shown:
		case <-deadline:
			return
		}
	}
}

// follow prints what is said, for ever.
func (r *room) follow(shown chan<- struct{}) {
	for ; ; time.Sleep(pause) {
		if err := r.read(shown); !isTemporary(err) {
			log.Fatal(err)
		}
	}
}

// read prints what is said until the stream breaks.
func (r *room) read(shown chan<- struct{}) error {
	request := &pb.SubscribeRequest{Room: r.name, User: r.user}
	isNew := !r.isKnown
	if !isNew {
		position := r.position.Load()
		request.AfterSequence = &position
	}
	stream, err := r.chat.SubscribeMessages(context.Background(), request)
	if err != nil {
		return err
	}
	// The header says where the stream begins, so that not even a break before the first message loses one.
	header, err := stream.Header()
	if err != nil {
		return err
	}
	if after := header.Get("after-sequence"); isNew && len(after) > 0 {
		position, _ := strconv.ParseUint(after[0], 10, 64)
		r.position.Store(position)
		r.isKnown = true
	}
	for {
		message, err := stream.Recv()
		if err != nil {
			return err
		}
		// The welcome is no record: it has no sequence, and is no news the second time.
		if message.GetSequence() > 0 || isNew {
			fmt.Printf("%s: %s\n", message.GetUser(), message.GetContent())
		}
		if message.GetSequence() > 0 {
			r.position.Store(message.GetSequence())
			r.isKnown = true
		}
		select {
		case shown <- struct{}{}:
		default:
		}
	}
}

// say returns the line's sequence once it is on disk.
func (r *room) say(text string) uint64 {
	request := &pb.SendMessageRequest{User: r.user, Room: r.name, Content: text, IdempotencyKey: rand.Text()}
	for ; ; time.Sleep(pause) {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		reply, err := r.chat.SendMessage(ctx, request)
		cancel()
		if err == nil {
			return reply.GetSequence()
		}
		if !isTemporary(err) {
			log.Fatal(err)
		}
	}
}

// isTemporary says whether the next attempt may succeed, as after the end of a stream or while the server restarts.
func isTemporary(err error) bool {
	switch status.Code(err) {
	case codes.Unavailable, codes.DeadlineExceeded, codes.ResourceExhausted, codes.Aborted, codes.Canceled,
		codes.Internal, codes.Unknown:
		return true
	default:
		return false
	}
}
