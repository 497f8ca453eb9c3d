// Command naive is the Server-Sent Events server that tutorials show, for comparison. It has a
// goroutine and a channel for each client, http.Flusher, and a map of the channels under a mutex.
package main

import (
	"flag"
	"fmt"
	"log"
	"net/http"
	"sync"
	"time"
)

// payload is a recorded snapshot; its argument 2 is the time.
const payload = `{"system_status":{"status":"online","uptime":"2 days, 14 hours",` +
	`"last_check":"%[2]s","message":"System running normally"},` +
	`"metrics":{"cpu":"45%%","memory":"67%%","disk":"23%%","network":"125 Mbps","response_time":"87ms"},` +
	`"activities":[{"time":"%[2]s","message":"Dashboard updated","level":"info","css_class":"activity-info"},` +
	`{"time":"%[2]s","message":"Test broadcast","level":"info","css_class":"activity-info"}],` +
	`"timestamp":"%[2]s"}`

// A Broker sends each event to the channel of every client.
type Broker struct {
	mu      sync.Mutex // guards the rest
	clients map[chan []byte]struct{}
	newest  []byte
	id      int64
}

// broadcast returns the number of clients. A client whose channel is full misses the event.
func (b *Broker) broadcast() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := time.Now()
	if b.id++; b.id < now.UnixMilli() {
		b.id = now.UnixMilli()
	}
	b.newest = []byte(fmt.Sprintf("id: %[1]d\ndata: "+payload+"\n\n", b.id, now.Format("15:04:05")))
	for c := range b.clients {
		select {
		case c <- b.newest:
		default:
		}
	}
	return len(b.clients)
}

func (b *Broker) add() chan []byte {
	b.mu.Lock()
	defer b.mu.Unlock()
	c := make(chan []byte, 10) // a client may lag ten events
	c <- b.newest
	b.clients[c] = struct{}{}
	return c
}

func (b *Broker) remove(c chan []byte) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.clients, c)
}

// GET /dashboard/stream
func (b *Broker) stream(w http.ResponseWriter, r *http.Request) {
	flusher, ok := w.(http.Flusher)
	if !ok {
		http.Error(w, "Streaming is not supported", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-cache")
	fmt.Fprint(w, "retry: 2000\n")
	c := b.add()
	defer b.remove(c)
	for {
		select {
		case <-r.Context().Done():
			return
		case event := <-c:
			if _, err := w.Write(event); err != nil {
				return
			}
			flusher.Flush()
		}
	}
}

func main() {
	addr := flag.String("addr", ":3003", "`address` to listen on")
	interval := flag.Duration("interval", 2*time.Second, "time between snapshots, 0: only triggered")
	flag.Parse()
	b := &Broker{clients: make(map[chan []byte]struct{})}
	b.broadcast()
	if *interval > 0 {
		go func() {
			for range time.Tick(*interval) {
				b.broadcast()
			}
		}()
	}
	http.HandleFunc("/dashboard/stream", b.stream)
	http.HandleFunc("/dashboard/trigger-test", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprintf(w, `{"message":"Test broadcast","streams":%d}`+"\n", b.broadcast())
	})
	http.HandleFunc("/health", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintln(w, "OK")
	})
	log.Fatal(http.ListenAndServe(*addr, nil))
}
