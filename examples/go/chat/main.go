// Chat in a room of Weir. From the repository's root, with the stubs that examples/go/README.md makes:
//
//	go run -C examples/go ./chat -user ann
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

	"google.golang.org/grpc/metadata"

	pb "weir-examples/chatpb"
	"weir-examples/retry"
)

// room is a room and how far it was read.
type room struct {
	chat       pb.ChatServiceClient
	name, user string
	// position is the sequence read last, once it is known.
	position atomic.Uint64
	isKnown  bool
	// log is the id of the log that the position is of: a server with another one refuses it.
	log []string
}

func main() {
	user := flag.String("user", "", "who you are")
	name := flag.String("room", "general", "the room")
	address := flag.String("address", "127.0.0.1:50051", "the server's gRPC port")
	flag.Parse()
	conn := retry.Dial(*address)
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
	for ; ; time.Sleep(retry.Pause) {
		if err := r.read(shown); !retry.IsTemporary(err) {
			log.Fatal(err)
		}
	}
}

// read prints what is said until the stream breaks.
func (r *room) read(shown chan<- struct{}) error {
	ctx := metadata.NewOutgoingContext(context.Background(), metadata.MD{"log-id": r.log})
	request := &pb.SubscribeRequest{Room: r.name, User: r.user}
	isNew := !r.isKnown
	if !isNew {
		position := r.position.Load()
		request.AfterSequence = &position
	}
	stream, err := r.chat.SubscribeMessages(ctx, request)
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
		r.isKnown, r.log = true, header.Get("log-id")
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
	var reply *pb.SendMessageResponse
	retry.Again(func() (err error) {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		reply, err = r.chat.SendMessage(ctx, request)
		return err
	})
	return reply.GetSequence()
}
