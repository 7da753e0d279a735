// Package retry is what the examples do when a call breaks: wait and try again, unless the server refused.
package retry

import (
	"log"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
)

// Pause is the time between two attempts.
const Pause = 500 * time.Millisecond

// Dial connects to a server.
func Dial(address string) *grpc.ClientConn {
	conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		log.Fatal(err)
	}
	return conn
}

// Again calls attempt until it gives no error, with a pause after each that broke. A refusal ends the program.
func Again(attempt func() error) {
	for ; ; time.Sleep(Pause) {
		err := attempt()
		if err == nil {
			return
		}
		if !IsTemporary(err) {
			log.Fatal(err)
		}
	}
}

// IsTemporary says whether the next attempt may succeed, as after the end of a stream or while the server restarts.
func IsTemporary(err error) bool {
	switch status.Code(err) {
	case codes.Unavailable, codes.DeadlineExceeded, codes.ResourceExhausted, codes.Aborted, codes.Canceled,
		codes.Internal, codes.Unknown:
		return true
	default:
		return false
	}
}
