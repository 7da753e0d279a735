// The checks of chat.ChatService by a Go client: go-client HOST:PORT methods|million.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	pb "weir-interop/chatpb"
)

const (
	soon = time.Minute
	room = "go"
)

func main() {
	checks := map[string]func(pb.ChatServiceClient) error{"methods": methods, "million": million}
	if err := run(os.Args[1], checks[os.Args[2]]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(address string, check func(pb.ChatServiceClient) error) error {
	conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer conn.Close()
	return check(pb.NewChatServiceClient(conn))
}

// methods calls the five methods without any of the fields that Weir added.
func methods(client pb.ChatServiceClient) error {
	ctx, cancel := context.WithTimeout(context.Background(), soon)
	defer cancel()
	heard, err := client.SubscribeMessages(ctx, &pb.SubscribeRequest{Room: room, User: "Alice"})
	if err != nil {
		return err
	}
	welcome, err := heard.Recv()
	if err != nil {
		return fmt.Errorf("no welcome: %w", err)
	}
	if welcome.GetId() != "system" || welcome.GetContent() != "Welcome to room go, Alice!" ||
		welcome.GetType() != pb.MessageType_SYSTEM {
		return fmt.Errorf("an odd welcome: %v", welcome)
	}
	for _, check := range []func(context.Context, pb.ChatServiceClient, pb.ChatService_SubscribeMessagesClient) error{
		unary, upload, conversation,
	} {
		if err := check(ctx, client, heard); err != nil {
			return err
		}
	}
	if err := refusal(ctx, client); err != nil {
		return err
	}
	if err := metrics(ctx, client); err != nil {
		return err
	}
	fmt.Println("five methods as expected")
	return nil
}

func unary(ctx context.Context, client pb.ChatServiceClient, heard pb.ChatService_SubscribeMessagesClient) error {
	reply, err := client.SendMessage(ctx, &pb.SendMessageRequest{User: "Alice", Content: "Hi!", Room: room})
	if err != nil {
		return err
	}
	if age := time.Since(reply.GetTimestamp().AsTime()); age < -soon || age > soon {
		return fmt.Errorf("the server's time is %v away", age)
	}
	return expect(heard, &pb.Message{
		Id: reply.GetMessageId(), User: "Alice", Content: "Hi!", Room: room, Timestamp: reply.GetTimestamp(),
	})
}

func upload(ctx context.Context, client pb.ChatServiceClient, heard pb.ChatService_SubscribeMessagesClient) error {
	stream, err := client.UploadMessages(ctx)
	if err != nil {
		return err
	}
	var sent []*pb.Message
	for i := range 5 {
		message := &pb.Message{
			Id: fmt.Sprintf("batch_%d", i), User: "Bob", Content: fmt.Sprintf("Part %d", i), Room: room,
			Timestamp: timestamppb.Now(), Type: pb.MessageType_CHAT,
		}
		if err := stream.Send(message); err != nil {
			return err
		}
		sent = append(sent, message)
	}
	reply, err := stream.CloseAndRecv()
	if err != nil {
		return err
	}
	if reply.GetMessageCount() != 5 || !reply.GetSuccess() {
		return fmt.Errorf("an odd reply to the upload: %v", reply)
	}
	return expect(heard, sent...)
}

func conversation(ctx context.Context, client pb.ChatServiceClient, heard pb.ChatService_SubscribeMessagesClient) error {
	talk, err := client.Chat(ctx)
	if err != nil {
		return err
	}
	for i := range 3 {
		said := &pb.Message{
			Id: fmt.Sprintf("client_%d", i), User: "Charlie", Content: fmt.Sprintf("Number %d", i), Room: room,
			Timestamp: timestamppb.Now(),
		}
		if err := talk.Send(said); err != nil {
			return err
		}
		echo, err := answer(talk)
		if err != nil {
			return err
		}
		if echo.GetId() != "echo_"+said.GetId() || echo.GetUser() != "Server" || echo.GetContent() != "Echo: "+said.GetContent() {
			return fmt.Errorf("an odd echo: %v", echo)
		}
		if err := expect(heard, said); err != nil {
			return err
		}
	}
	if err := talk.CloseSend(); err != nil {
		return err
	}
	if message, err := answer(talk); !errors.Is(err, io.EOF) {
		return fmt.Errorf("the conversation did not end: %v, %v", message, err)
	}
	return nil
}

// answer returns the next message that is more than a sign of life.
func answer(talk pb.ChatService_ChatClient) (*pb.Message, error) {
	for {
		message, err := talk.Recv()
		if err != nil || message.GetContent() != "Server is alive!" {
			return message, err
		}
	}
}

// expect receives the messages as they were sent, each with a larger sequence than the one before.
func expect(heard pb.ChatService_SubscribeMessagesClient, sent ...*pb.Message) error {
	last := uint64(0)
	for _, want := range sent {
		got, err := heard.Recv()
		if err != nil {
			return err
		}
		if got.GetSequence() <= last {
			return fmt.Errorf("sequence %d after %d", got.GetSequence(), last)
		}
		last, got.Sequence = got.GetSequence(), 0
		if !proto.Equal(got, want) {
			return fmt.Errorf("heard %v instead of %v", got, want)
		}
	}
	return nil
}

func refusal(ctx context.Context, client pb.ChatServiceClient) error {
	_, err := client.SendMessage(ctx, &pb.SendMessageRequest{Room: room})
	told := status.Convert(err)
	if told.Code() != codes.InvalidArgument || told.Message() != "user is required" {
		return fmt.Errorf("an odd refusal: %v", err)
	}
	for _, detail := range told.Details() {
		if bad, is := detail.(*errdetails.BadRequest); is && bad.GetFieldViolations()[0].GetField() == "user" {
			return nil
		}
	}
	return fmt.Errorf("no detail names the field: %v", told.Details())
}

func metrics(ctx context.Context, client pb.ChatServiceClient) error {
	stream, err := client.StreamMetrics(ctx, &pb.MetricsRequest{InstanceId: "server-01", IntervalSeconds: 1})
	if err != nil {
		return err
	}
	missing := map[string]string{"cpu_usage": "core", "memory_usage": "type", "requests_per_second": "endpoint"}
	for len(missing) > 0 {
		metric, err := stream.Recv()
		if err != nil {
			return fmt.Errorf("without %v: %w", missing, err)
		}
		if metric.GetLabels()["instance"] != "server-01" {
			return fmt.Errorf("an odd instance: %v", metric)
		}
		if label, is := missing[metric.GetName()]; is && metric.GetLabels()[label] == "" {
			return fmt.Errorf("no %s: %v", label, metric)
		}
		delete(missing, metric.GetName())
	}
	return nil
}

// million uploads a million messages of 64 bytes in one call.
func million(client pb.ChatServiceClient) error {
	const count = 1_000_000
	ctx, cancel := context.WithTimeout(context.Background(), 5*soon)
	defer cancel()
	message := &pb.Message{Id: "m", User: "bulk", Room: "million"}
	message.Content = strings.Repeat("x", 64-proto.Size(message)-2)
	if size := proto.Size(message); size != 64 {
		return fmt.Errorf("a message of %d bytes", size)
	}
	began := time.Now()
	stream, err := client.UploadMessages(ctx)
	if err != nil {
		return err
	}
	for i := range count {
		if err := stream.Send(message); err != nil {
			_, cause := stream.CloseAndRecv()
			return fmt.Errorf("cut off after %d messages: %w, %v", i, err, cause)
		}
	}
	reply, err := stream.CloseAndRecv()
	if err != nil {
		return err
	}
	if reply.GetMessageCount() != count || !reply.GetSuccess() {
		return fmt.Errorf("an odd reply to the upload: %v", reply)
	}
	took := time.Since(began)
	fmt.Printf("%d messages of 64 bytes uploaded in %.1f s, %.0f a second\n", count, took.Seconds(), count/took.Seconds())
	return nil
}
