// Give feedback and hear the answers: a bidirectional stream that survives a restart of the server. From the repository's
// root, with the stubs that examples/go/README.md makes:
//
//	go run -C examples/go ./feedback -consumer ann
//
// Each line that is typed is one feedback. `weir feedback reply` answers it; the answer shows here, now or the next time.
package main

import (
	"bufio"
	"context"
	"crypto/rand"
	"flag"
	"fmt"
	"io"
	"os"
	"sync"

	pb "weir-examples/feedbackpb"
	"weir-examples/retry"
)

// consumer is what somebody says, and how much of it the server has thanked for.
type consumer struct {
	service  pb.FeedbackServiceClient
	name     string
	mutex    sync.Mutex
	changed  *sync.Cond
	said     []*pb.FeedbackRequest
	answered int
	isDone   bool
}

func main() {
	name := flag.String("consumer", "", "who you are")
	address := flag.String("address", "127.0.0.1:50051", "the server's gRPC port")
	flag.Parse()
	conn := retry.Dial(*address)
	defer conn.Close()
	c := &consumer{service: pb.NewFeedbackServiceClient(conn), name: *name}
	c.changed = sync.NewCond(&c.mutex)
	go c.read()
	// A stream that ends without an error ends because stdin did and everything is answered.
	retry.Again(c.converse)
}

// read takes one feedback from each line of stdin.
func (c *consumer) read() {
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		// The key makes it safe to send it again when the answer got lost.
		c.change(func() {
			request := &pb.FeedbackRequest{ConsumerId: c.name, Feedback: lines.Text(), IdempotencyKey: rand.Text()}
			c.said = append(c.said, request)
		})
	}
	c.change(func() { c.isDone = true })
}

func (c *consumer) change(change func()) {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	change()
	c.changed.Broadcast()
}

// converse sends and prints until the stream ends.
func (c *consumer) converse() error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	stream, err := c.service.SendFeedback(ctx)
	if err != nil {
		return err
	}
	// Wakes the sender when the stream is over, so that it takes nothing more.
	stop := context.AfterFunc(ctx, func() { c.change(func() {}) })
	defer stop()
	go c.send(ctx, stream)
	for {
		response, err := stream.Recv()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if response.GetKind() == pb.FeedbackResponseKind_STAFF_REPLY {
			fmt.Printf("%s: %s\n", response.GetAuthor(), response.GetResponseMessage())
			continue
		}
		fmt.Println(response.GetResponseMessage())
		c.change(func() { c.answered++ })
	}
}

// send sends everything unanswered, then what is new, until stdin ends or the stream is over.
func (c *consumer) send(ctx context.Context, stream pb.FeedbackService_SendFeedbackClient) {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	for sent := c.answered; ; sent++ {
		for sent == len(c.said) && !c.isDone && ctx.Err() == nil {
			c.changed.Wait()
		}
		if ctx.Err() != nil {
			return
		}
		if sent == len(c.said) {
			// What breaks it shows where the answers are read.
			_ = stream.CloseSend()
			return
		}
		next := c.said[sent]
		c.mutex.Unlock()
		err := stream.Send(next)
		c.mutex.Lock()
		if err != nil {
			return
		}
	}
}
