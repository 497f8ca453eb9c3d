// Package tools is for tests that run programs.
package tools

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"testing"
)

// lastPort is the last port that FreeAddr returned. Ports start at another place in each run.
var lastPort atomic.Int64

// FreeAddr is an address for a server that cannot take a free port by itself. No other test gets
// the port, even while nobody listens there: the kernel hands out ports from 32768 on.
func FreeAddr(t testing.TB) string {
	t.Helper()
	const first, places, each = 21000, 100, 100
	lastPort.CompareAndSwap(0, int64(first+os.Getpid()%places*each))
	for i := 0; i < places*each; i++ {
		port := lastPort.Add(1)
		l, err := net.Listen("tcp", fmt.Sprint(":", port))
		if err == nil {
			l.Close()
			return fmt.Sprint("127.0.0.1:", port)
		}
	}
	t.Fatal("there is no free port")
	return ""
}

// Listens tells whether a server listens at an address.
func Listens(addr string) bool {
	c, err := net.Dial("tcp", addr)
	if err == nil {
		c.Close()
	}
	return err == nil
}

// An Output is what a program has printed so far.
type Output struct {
	mu   sync.Mutex // guards text
	text bytes.Buffer
}

func (o *Output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.Write(b)
}

func (o *Output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.String()
}
