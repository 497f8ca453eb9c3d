package main

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
	"unsafe"
)

// Not parallel: it counts what the whole process holds.
func TestShutdownLeavesNothing(t *testing.T) {
	startServer(t).stop() // opens what Go's poller keeps
	runtime.GC()
	goroutines, files := runtime.NumGoroutine(), openFiles(t)

	s := startServer(t, "-interval", "50ms", "-heartbeat", "200ms")
	var clients []*client
	for i := 0; i < 300; i++ {
		clients = append(clients, s.stream(t))
	}
	for _, c := range clients {
		c.event(t)
	}
	for _, c := range clients[:100] {
		c.Close()
	}
	half := s.connect(t, "GET /dash")
	s.stop()
	for _, c := range append(clients, half) {
		c.Close()
	}

	eventually(t, fmt.Sprintf("%d goroutines are left", goroutines), func() bool {
		return runtime.NumGoroutine() <= goroutines
	})
	eventually(t, fmt.Sprintf("%d files are open", files), func() bool {
		return openFiles(t) <= files
	})
}

func TestShutdownSendsRetryLast(t *testing.T) {
	t.Parallel()
	s := startServer(t, "-interval", "0")
	plain, compressed := s.stream(t), s.gzipStream(t)
	plain.event(t)
	compressed.event(t)
	io.WriteString(plain, "bytes that the server did not ask for")
	want := s.trigger(t).ID
	s.stop()

	for _, c := range []*client{plain, compressed} {
		got := c.event(t).id
		if got != want {
			t.Errorf("the last event is %d, want %d", got, want)
		}
	}
	end, err := io.ReadAll(plain.r)
	if err != nil || !retryPattern.Match(end) {
		t.Errorf("after it comes %q, %v", end, err)
	}
	end, err = io.ReadAll(compressed.r)
	if err != nil || !retryPattern.Match(end) {
		t.Errorf("after it the compressed stream has %q, %v", end, err)
	}
}

// retryPattern is the line with which a stream ends.
var retryPattern = regexp.MustCompile(`^retry: [1-4]\d\d\d\n\n$`)

func TestShutdownAdmitsNoStream(t *testing.T) {
	t.Parallel()
	s := startServer(t)
	s.stop()
	ok := s.reserve(&SSEConnection{fd: notOpen})
	if ok {
		t.Error("a stream was admitted")
	}
}

func TestStreamBeginsWithNewestSnapshot(t *testing.T) {
	t.Parallel()
	s := startServer(t, "-interval", "0")
	s.waitForSnapshot(t)
	s.trigger(t)
	want := s.trigger(t).ID
	got := s.stream(t).event(t).id
	if got != want {
		t.Errorf("the first event is %d, the newest is %d", got, want)
	}
}

func TestStreamWaitsForFirstSnapshot(t *testing.T) {
	t.Parallel()
	s := startServer(t, "-interval", "0")
	c := s.stream(t)
	if s.newest.Load() != nil {
		t.Skip("the machine is too slow to be there before the first snapshot")
	}
	got := c.event(t).id
	want := s.newest.Load().id
	if got != want {
		t.Errorf("the first event is %d, the first snapshot is %d", got, want)
	}
}

func TestEventIDsIncreaseWhateverTheClockDoes(t *testing.T) {
	t.Parallel()
	s := testServer(t)
	now := time.Now()
	s.board.putExternal([]byte("{}"), now)
	var last int64
	steps := []time.Duration{0, 0, time.Second, -time.Hour, time.Millisecond, 0, 2 * time.Hour}
	for _, step := range steps {
		now = now.Add(step)
		id := s.publish(now).id
		if id <= last {
			t.Errorf("after a step of %v id %d follows %d", step, id, last)
		}
		last = id
	}
	if last != now.UnixMilli() {
		t.Errorf("id %d is not the clock's %d", last, now.UnixMilli())
	}
}

// The wall clock cannot be set here, so its readings come without the monotonic clock's.
func TestEventIDsAndRatesSurviveClockSteps(t *testing.T) {
	t.Parallel()
	s := testServer(t)
	h := newTestHost(t)
	s.sampler = h.sampler
	var last int64
	for i, step := range []time.Duration{0, time.Second, -time.Hour, time.Millisecond,
		24 * time.Hour, -24 * time.Hour, 2 * time.Second} {
		h.clock.advance(step)
		write(t, h.proc+"/net/dev", netDev(i*1_250_000, "eth0"))
		write(t, h.proc+"/stat", busyStat(1000+10*i, 5000+10*i))
		h.measure(t)
		now := h.clock.now()
		s.readHost()
		id := s.publish(now).id
		if id <= last {
			t.Errorf("after a step of %v id %d follows %d", step, id, last)
		}
		last = id

		m := s.board.view(time.Now()).metrics
		if m.cpu < 0 || m.cpu > 100 || m.network < 0 || math.IsInf(m.network, 0) {
			t.Errorf("after a step of %v cpu is %v, network %v", step, m.cpu, m.network)
		}
	}
}

func TestEventIDsIncreaseAcrossRestart(t *testing.T) {
	t.Parallel()
	now := time.Now()
	var last int64
	for restart := 0; restart < 3; restart++ {
		s := testServer(t)
		for i := 0; i < 3; i++ {
			now = now.Add(minInterval)
			s.board.putExternal([]byte("{}"), now)
			id := s.publish(now).id
			if id <= last {
				t.Errorf("after %d restarts id %d follows %d", restart, id, last)
			}
			last = id
		}
	}
}

// The clients read fast enough to get each event.
func TestBroadcastReachesEachReaderOnceInOrder(t *testing.T) {
	t.Parallel()
	const clients, rounds = 520, 5 // enough for several workers
	s := startServer(t, "-interval", "0")
	s.waitForSnapshot(t)

	var readers sync.WaitGroup
	got := make([][]int64, clients)
	begun := make(chan bool, clients) // has room for all, so that no reader waits
	for i := range got {
		i, c := i, s.stream(t)
		readers.Add(1)
		go func() {
			defer readers.Done()
			got[i] = append(got[i], c.event(t).id)
			begun <- true
			for len(got[i]) < rounds+1 {
				got[i] = append(got[i], c.event(t).id)
			}
		}()
	}
	for range got {
		<-begun
	}

	want := []int64{s.newest.Load().id}
	for i := 0; i < rounds; i++ {
		reply := s.trigger(t)
		want = append(want, reply.ID)
		if reply.Streams != clients {
			t.Errorf("a broadcast reached %d of %d streams", reply.Streams, clients)
		}
	}
	readers.Wait()
	for i := range got {
		if !slices.Equal(got[i], want) {
			t.Fatalf("client %d got %d, want %d", i, got[i], want)
		}
	}
}

// Not parallel: others would allocate at the same time.
func TestBroadcastAllocatesNothingPerStream(t *testing.T) {
	allocations := func(streams int) float64 {
		s := testServer(t)
		for i := 0; i < streams; i++ {
			_, reader := testStream(t, s, false)
			go io.Copy(io.Discard, reader)
		}
		var id int64
		return testing.AllocsPerRun(50, func() {
			id++
			s.newest.Store(newEvent(id, time.Now(), []byte("x")))
			s.forEachStream(time.Now(), s.offer)
			s.sweeper.last = time.Time{}
			s.sweep(time.Now())
		})
	}
	few, many := allocations(10), allocations(200)
	if many > few+10 {
		t.Errorf("a broadcast to 10 streams allocates %v times, to 200 streams %v times", few, many)
	}
}

func TestHeartbeatReachesEachStream(t *testing.T) {
	t.Parallel()
	s := startServer(t, "-interval", "50ms", "-heartbeat", "200ms")
	for _, c := range []*client{s.stream(t), s.stream(t)} {
		events, heartbeats := 0, 0
		for heartbeats < 3 || events < 2 {
			line := c.line(t)
			if strings.HasPrefix(line, "id: ") {
				events++
			}
			if line != ": heartbeat\n" {
				continue
			}
			heartbeats++
			next := c.line(t)
			if next != "\n" {
				t.Errorf("after a heartbeat comes %q", next)
			}
		}
	}
}

func TestHeartbeatsFromBeforeAreNotSent(t *testing.T) {
	t.Parallel()
	s := startServer(t, "-interval", "0", "-heartbeat", "1h")
	s.waitForSnapshot(t)
	s.heartbeat(time.Now())
	c := s.stream(t)
	c.event(t)
	s.trigger(t)
	line := c.line(t)
	if !strings.HasPrefix(line, "id: ") {
		t.Errorf("a new stream got %q", line)
	}
}

func TestFanOutVisitsStreamsInOrder(t *testing.T) {
	t.Parallel()
	s := testServer(t)
	var conns []*SSEConnection
	open := func(n int) {
		for i := 0; i < n; i++ {
			c := &SSEConnection{fd: notOpen}
			s.reserve(c)
			conns = append(conns, c)
		}
	}
	check := func(when string) {
		t.Helper()
		var got, want []uint64
		for _, c := range conns {
			want = append(want, c.number)
		}
		count := s.forEachStream(time.Now(), func(c *SSEConnection, _ time.Time) error {
			got = append(got, c.number)
			return nil
		})
		if !slices.Equal(got, want) || count != len(want) {
			t.Errorf("%s %d streams were visited: %d, want %d", when, count, got, want)
		}
	}

	open(100)
	check("at first")
	for _, i := range []int{70, 40, 0} {
		s.remove(conns[i], io.EOF)
		conns = slices.Delete(conns, i, i+1)
	}
	check("after three were closed")
	open(10)
	check("after ten were opened")
}

func TestFanOutVisitsEachStreamOnce(t *testing.T) {
	t.Parallel()
	conns := make([]*SSEConnection, 2000) // enough for several workers
	for i := range conns {
		conns[i] = &SSEConnection{number: uint64(i)}
	}
	visits := make([]atomic.Int64, len(conns))
	count, failures := callForEach(conns, time.Now(), func(c *SSEConnection, _ time.Time) error {
		visits[c.number].Add(1)
		switch c.number % 4 {
		case 0:
			return errLagging
		case 1:
			return io.EOF
		}
		return nil
	})

	for i := range visits {
		n := visits[i].Load()
		if n != 1 {
			t.Errorf("stream %d was visited %d times", i, n)
		}
	}
	if count != 1000 || len(failures) != 500 {
		t.Errorf("%d calls succeeded and %d failed, want 1000 and 500", count, len(failures))
	}
	for c, err := range failures {
		if c.number%4 != 1 || err != io.EOF {
			t.Errorf("stream %d failed with %v", c.number, err)
		}
	}
}

func TestBroadcastLeavesGoneStreamForLater(t *testing.T) {
	t.Parallel()
	s := testServer(t)
	c, reader := testStream(t, s, false)
	reset(reader)
	s.newest.Store(newEvent(1, time.Now(), []byte("x")))

	count := s.forEachStream(time.Now(), s.offer)
	if count != 0 || c.fd < 0 {
		t.Errorf("a broadcast reached %d streams; the descriptor is %d", count, c.fd)
	}
	s.forEachStream(time.Now(), s.catchUp)
	if c.fd != isClosed || len(s.conns) > 0 {
		t.Errorf("after that the descriptor is %d, and %d streams are open", c.fd, len(s.conns))
	}
}

func TestStreamStalledDelaysNoOther(t *testing.T) {
	t.Parallel()
	const rounds = 5
	s := startServer(t, "-interval", "0")
	s.waitForSnapshot(t)
	stalled := s.connOf(t, s.smallReader(t))
	fill(t, s.SSEServer, stalled)
	var clients []*client
	for i := 0; i < 100; i++ {
		clients = append(clients, s.stream(t))
		clients[i].event(t)
	}

	for i := 0; i < rounds; i++ {
		reply := s.trigger(t)
		if reply.Streams != 100 {
			t.Errorf("the broadcast reached %d streams, want the 100 that read", reply.Streams)
		}
		for _, c := range clients {
			id := c.event(t).id
			if id != reply.ID {
				t.Errorf("event %d came, want %d", id, reply.ID)
			}
		}
	}

	stalled.mu.Lock()
	defer stalled.mu.Unlock()
	if len(stalled.unsent) > 8192 || stalled.traffic.skipped < rounds-1 {
		t.Errorf("the stalled stream holds %d bytes and has skipped %d events",
			len(stalled.unsent), stalled.traffic.skipped)
	}
	if runtime.GOOS == "linux" {
		n := notSent(t, stalled.fd)
		if n > 4096 {
			t.Errorf("%d bytes wait in the kernel", n)
		}
	}
}

func TestStreamStalledForThirtySecondsIsReset(t *testing.T) {
	t.Parallel()
	s := testServer(t)
	s.board.putExternal(largeSnapshot, time.Now())
	stalled, stalledReader := testStream(t, s, false)
	reading, reader := testStream(t, s, false)
	go io.Copy(io.Discard, reader)
	fill(t, s, stalled)

	since := stalled.lastProgress
	s.forEachStream(since.Add(stallLimit-time.Millisecond), s.catchUp)
	if len(s.conns) != 2 {
		t.Fatalf("%d streams are open just before the limit, want 2", len(s.conns))
	}
	s.forEachStream(since.Add(stallLimit), s.catchUp)
	if len(s.conns) != 1 || s.totals.closed["stalled"] != 1 {
		t.Errorf("after the limit %d are open, closed %v", len(s.conns), s.totals.closed)
	}
	_, err := readAll(stalledReader)
	if !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the stalled client reads %v, want a reset", err)
	}

	e := s.publish(time.Now())
	eventually(t, "the other stream gets the next event", func() bool {
		s.forEachStream(time.Now(), s.catchUp)
		return reading.last == e.id && len(reading.unsent) == 0
	})
}

// The client first reads what had left the server, then at most one event that waited there, then
// the newest one.
func TestStreamResumesAfterStall(t *testing.T) {
	t.Parallel()
	if runtime.GOOS != "linux" {
		t.Skip("needs Linux's TCP_NOTSENT_LOWAT")
	}
	s := startServer(t, "-interval", "0")
	s.waitForSnapshot(t)
	client := s.stream(t)
	client.event(t)
	c := s.connOf(t, client)
	s.board.putExternal(largeSnapshot, time.Now())
	fill(t, s.SSEServer, c)
	s.board.putExternal([]byte("{}"), time.Now())
	for i := 0; i < 30; i++ {
		s.publish(time.Now())
	}

	newest := s.newest.Load()
	c.mu.Lock()
	waiting, begun := notSent(t, c.fd), c.last
	c.mu.Unlock()
	if waiting > len(largeSnapshot)+100 || begun == newest.id {
		t.Errorf("%d bytes wait unsent, the last of event %d; the newest is %d",
			waiting, begun, newest.id)
	}

	e := client.event(t)
	for e.id < begun {
		e = client.event(t)
	}
	if e.id != begun {
		t.Fatalf("event %d was never begun, the last was %d", e.id, begun)
	}
	e = client.event(t)
	if e.id != newest.id {
		t.Errorf("after the last old event comes %d, want the newest, %d", e.id, newest.id)
	}
}

func TestSweepFindsClosedClientsWithinTwoSeconds(t *testing.T) {
	t.Parallel()
	s := startServer(t, "-interval", "0") // so that only the sweep finds them
	var clients []*client
	for i := 0; i < 10; i++ {
		clients = append(clients, s.stream(t))
		clients[i].event(t)
	}
	for i, c := range clients {
		if i%2 == 0 {
			reset(c.Conn)
		}
		c.Close()
	}

	closed := time.Now()
	eventually(t, "all are gone", func() bool { return s.debug(t).Open == 0 })
	d := time.Since(closed)
	if d > 2*time.Second {
		t.Errorf("closed clients were gone only after %v", d)
	}
	n := s.debug(t).Closed["client"]
	if n != 10 {
		t.Errorf("%d of 10 were counted as closed by the client", n)
	}
}

func TestStreamResetInMidEventHarmsNoOther(t *testing.T) {
	t.Parallel()
	s := startServer(t, "-interval", "50ms")
	stays, leaves := s.stream(t), s.stream(t)
	stays.event(t)
	leaves.read(t, 20) // a part of an event
	reset(leaves.Conn)

	eventually(t, "the stream is removed", func() bool { return s.debug(t).Closed["client"] == 1 })
	last := stays.event(t).id
	id := stays.event(t).id
	open := s.debug(t).Open
	if id <= last || open != 1 {
		t.Errorf("event %d follows %d, %d streams are open", id, last, open)
	}
}

// Streams come and go while broadcasts and heartbeats run.
func TestStreamsSurviveAStorm(t *testing.T) {
	t.Parallel()
	const crowd, visits = 20, 8
	s := startServer(t, "-interval", "50ms", "-heartbeat", "200ms")
	s.waitForSnapshot(t)
	stays := s.stream(t)

	var visitors sync.WaitGroup
	for i := 0; i < crowd; i++ {
		random := rand.New(rand.NewSource(int64(i)))
		visitors.Add(1)
		go func() {
			defer visitors.Done()
			for n := 0; n < visits; n++ {
				visitStream(t, s.addr, random)
			}
		}()
	}
	visitors.Wait()

	eventually(t, "only one stream is left", func() bool { return s.debug(t).Open == 1 })
	d := s.debug(t)
	closed := d.Closed["client"] + d.Closed["error"]
	if closed != crowd*visits || d.Opened != crowd*visits+1 {
		t.Errorf("%d were opened, %v were closed", d.Opened, d.Closed)
	}
	var last int64
	for i := 0; i < 5; i++ {
		e := stays.event(t)
		if e.id <= last || !snapshotPattern.Match(e.data) {
			t.Fatalf("event %d follows %d: %s", e.id, last, e.data)
		}
		last = e.id
	}
}

// visitStream opens a stream, reads a random part of it, and closes or resets it.
func visitStream(t *testing.T, addr string, random *rand.Rand) {
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Error(err)
		return
	}
	defer conn.Close()

	io.WriteString(conn, streamRequest)
	conn.SetReadDeadline(time.Now().Add(10 * time.Second))
	part := make([]byte, 17+random.Intn(2000))
	n, err := io.ReadAtLeast(conn, part, 17+random.Intn(len(part)-16))
	if err != nil || !strings.HasPrefix(string(part[:n]), "HTTP/1.1 200 OK\r\n") {
		t.Errorf("a stream begins with %q, %v", part[:n], err)
	}
	if random.Intn(2) == 0 {
		reset(conn)
	}
}

func TestStreamHoldsNoGoroutine(t *testing.T) {
	const streams = 200
	s := startServer(t, "-interval", "1h")
	s.stream(t).event(t)
	before := runtime.NumGoroutine()
	for i := 0; i < streams; i++ {
		s.stream(t)
	}
	eventually(t, "the streams hold no goroutine", func() bool {
		return runtime.NumGoroutine() <= before+2 // a request may be under way: the probe
	})
	open := s.debug(t).Open
	if open != streams+1 {
		t.Errorf("%d streams are open", open)
	}
}

func TestStreamRemovedTwiceCountsOnce(t *testing.T) {
	t.Parallel()
	s := testServer(t)
	c, _ := testStream(t, s, false)
	s.remove(c, errStalled)
	s.remove(c, io.EOF)
	if s.totals.closed["stalled"] != 1 || s.totals.closed["client"] != 0 {
		t.Errorf("closed %v", s.totals.closed)
	}
}

func TestReasonOfEachError(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		err  error
		want string
	}{
		{errShutdown, "shutdown"},
		{errStalled, "stalled"},
		{io.EOF, "client"},
		{syscall.EPIPE, "client"},
		{syscall.ECONNRESET, "client"},
		{syscall.ETIMEDOUT, "stalled"}, // the kernel has seen it first
		{syscall.EBADF, "error"},
		{fmt.Errorf("duplicating a descriptor: %w", syscall.EMFILE), "error"},
	} {
		got := reasonOf(c.err)
		if got != c.want {
			t.Errorf("a stream that ends with %v is counted under %q, want %q", c.err, got, c.want)
		}
	}
}

func TestChunkBytes(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, got, want string
	}{
		{"a line", string(newChunk([]byte("x\n")).whole), "2\r\nx\n\r\n"},
		{"an event", string(newEvent(7, time.Now(), []byte(`{"a":1}`)).plain.whole),
			"15\r\nid: 7\ndata: {\"a\":1}\n\n\r\n"},
		{"its data", string(newEvent(7, time.Now(), []byte(`{"a":1}`)).plain.data),
			"id: 7\ndata: {\"a\":1}\n\n"},
		{"200 bytes", string(newChunk(bytes.Repeat([]byte("x"), 200)).whole),
			"c8\r\n" + strings.Repeat("x", 200) + "\r\n"},
		{"a heartbeat", string(plainHeartbeat.whole), "d\r\n: heartbeat\n\n\r\n"},
		{"its data", string(plainHeartbeat.data), ": heartbeat\n\n"},
		{"a compressed heartbeat", string(gzipHeartbeat.whole),
			"17\r\n\x00\x0d\x00\xf2\xff: heartbeat\n\n\x00\x00\x00\xff\xff\r\n"},
		{"its data", string(gzipHeartbeat.data),
			"\x00\x0d\x00\xf2\xff: heartbeat\n\n\x00\x00\x00\xff\xff"},
		{"the end of gzip", string(gzipEnd(0x01020304, 0x0a0b0c0d)),
			"\x03\x00\x04\x03\x02\x01\x0d\x0c\x0b\x0a"},
		{"the last chunk", lastChunk, "0\r\n\r\n"},
	} {
		if c.got != c.want {
			t.Errorf("%s is %q, want %q", c.name, c.got, c.want)
		}
	}
}

// The forms of an event without a server, for whatever a stream can have got before.
func TestGzipKeyAndDeltaDecode(t *testing.T) {
	t.Parallel()
	for round := 0; round < 10; round++ {
		var encoder gzipEncoder
		var heartbeats uint64 // due so far
		streams := make([]*gzipRecord, 5)
		for i := range streams {
			streams[i] = newGzipRecord()
		}
		for id := int64(1); id < 30; id++ {
			due := rand.Intn(3)
			heartbeats += uint64(due)
			e := newEvent(id, time.Now(), randomSnapshot(time.Now()))
			encodedAt := heartbeats
			e.compress = sync.OnceFunc(func() { encoder.encode(e, encodedAt) })
			for _, s := range streams {
				for n := due - rand.Intn(2); n > 0; n-- { // a lagging one may skip one
					s.addHeartbeat()
				}
				if rand.Intn(5) > 0 { // or the event
					s.addEvent(e)
				}
			}
		}
		for _, s := range streams {
			s.check(t)
		}
	}
}

// A gzipRecord holds what a compressed stream got, and what that should decode to.
type gzipRecord struct {
	conn      SSEConnection
	got, want bytes.Buffer
}

func newGzipRecord() *gzipRecord {
	r := &gzipRecord{conn: SSEConnection{gzip: true}}
	r.got.WriteString(gzipHead)
	return r
}

func (r *gzipRecord) addHeartbeat() {
	r.got.Write(gzipHeartbeat.data)
	r.want.Write(plainHeartbeat.data)
	r.conn.heartbeatsSinceEvent++
	r.conn.addToChecksum(plainHeartbeat.data)
}

func (r *gzipRecord) addEvent(e *event) {
	r.got.Write(r.conn.encode(e))
	r.want.Write(e.plain.data)
	r.conn.noteBegun(e)
}

// check ends the stream as the server would.
func (r *gzipRecord) check(t *testing.T) {
	t.Helper()
	r.got.Write(r.conn.encodeEnd())
	got := gunzip(t, r.got.Bytes())
	end, hasAll := bytes.CutPrefix(got, r.want.Bytes())
	if !hasAll || !retryPattern.Match(end) {
		t.Fatalf("a stream decodes to\n%q\nwant\n%q and a retry", got, r.want.Bytes())
	}
}

// gunzip decodes b, which must be one whole member and nothing else.
func gunzip(t testing.TB, b []byte) []byte {
	t.Helper()
	r := bytes.NewReader(b)
	reader, err := gzip.NewReader(r)
	if err != nil {
		t.Fatalf("%v in %q", err, b)
	}
	reader.Multistream(false)
	got, err := io.ReadAll(reader)
	if err != nil || r.Len() > 0 {
		t.Errorf("decoding ends with %v, %d bytes are left", err, r.Len())
	}
	return got
}

// randomSnapshot is the host's, with ten activities.
func randomSnapshot(now time.Time) []byte {
	m := metrics{
		time:         now,
		cpu:          100 * rand.Float64(),
		memory:       60 + rand.Float64(),
		disk:         23,
		network:      200 * rand.Float64(),
		responseTime: float64(1 + rand.Intn(3)),
		status:       "online",
		message:      "System running normally",
	}
	return formatSnapshot(m, deployments, now)
}

var deployments = func() []activity {
	var list []activity
	for i := 0; i < 10; i++ {
		message := fmt.Sprintf("Deployed v%d to production by somebody", rand.Intn(1e6))
		list = append(list, newActivity(time.Now(), "info", message))
	}
	return list
}()

func TestGzipTakesAtMostFifteenPercent(t *testing.T) {
	t.Parallel()
	var encoder gzipEncoder
	plain, plainReader := connectionPair(t)
	compressed, compressedReader := connectionPair(t)
	compressed.gzip = true
	go io.Copy(io.Discard, plainReader)
	go io.Copy(io.Discard, compressedReader)

	now := time.Now()
	for id := int64(1); id <= 30; id++ {
		now = now.Add(2 * time.Second)
		e := newEvent(id, now, randomSnapshot(now))
		heartbeats := uint64(id / 10)
		e.compress = sync.OnceFunc(func() { encoder.encode(e, heartbeats) })
		for _, c := range []*SSEConnection{plain, compressed} {
			offerAll(t, c, e, heartbeats)
		}
	}
	got, all := compressed.traffic.bytes, plain.traffic.bytes
	if got == 0 || got*100 > all*15 {
		t.Errorf("%d bytes plain are %d compressed", all, got)
	}
}

func TestGzipDeltaBridgesAHundredHeartbeats(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		heartbeats uint64
		isDelta    bool
	}{
		{0, true},
		{maxDeltaHeartbeats, true},
		{maxDeltaHeartbeats + 1, false},
		{1 << 20, false}, // of a year
	} {
		var encoder gzipEncoder
		encoder.encode(newEvent(1, time.Now(), []byte("x")), 0)
		e := newEvent(2, time.Now(), []byte("x"))
		e.compress = func() { encoder.encode(e, c.heartbeats) }
		stream := &SSEConnection{gzip: true, last: 1, heartbeatsSinceEvent: c.heartbeats}
		got := bytes.Equal(stream.encode(e), e.delta.data)
		if got != c.isDelta {
			t.Errorf("after %d heartbeats a delta frame is sent: %v", c.heartbeats, got)
		}
	}
}

// An event that was encoded twice would be its own base.
func TestGzipEncodesEachEventOnce(t *testing.T) {
	t.Parallel()
	s := testServer(t)
	var conns []*SSEConnection
	for i := 0; i < 3; i++ {
		c, reader := testStream(t, s, true)
		go io.Copy(io.Discard, reader)
		conns = append(conns, c)
	}
	s.board.putExternal([]byte(`{"first":true}`), time.Now())
	first := s.publish(time.Now())
	s.forEachStream(time.Now(), s.catchUp)
	var before []uint64
	for _, c := range conns {
		before = append(before, c.traffic.bytes)
	}

	s.board.putExternal([]byte(`{"second":true}`), time.Now())
	second := s.publish(time.Now())
	s.forEachStream(time.Now(), s.catchUp)
	if second.deltaBase != first.id {
		t.Errorf("the base of the delta frame is %d, want %d", second.deltaBase, first.id)
	}
	for i, c := range conns {
		n := c.traffic.bytes - before[i]
		if c.traffic.events != 2 || n != uint64(len(second.delta.data)) {
			t.Errorf("a stream got %d events, the second in %d bytes, want %d",
				c.traffic.events, n, len(second.delta.data))
		}
	}
}

func TestGzipIsIdleWithoutGzippedStream(t *testing.T) {
	t.Parallel()
	s := startServer(t, "-interval", "50ms")
	s.stream(t).event(t)
	isEncoded := func() bool {
		s.encoder.mu.Lock()
		defer s.encoder.mu.Unlock()
		return s.encoder.lastID == s.newest.Load().id
	}
	if isEncoded() {
		t.Error("an event is compressed without need")
	}
	c := s.gzipStream(t)
	c.event(t)
	eventually(t, "events are compressed", isEncoded)
	c.Close()
	eventually(t, "events are compressed no more", func() bool { return !isEncoded() })
}

// The client gets nothing else until it has read each heartbeat.
func TestGzipHeartbeatWaitsForNothing(t *testing.T) {
	t.Parallel()
	s := startServer(t, "-interval", "1h", "-heartbeat", "1h")
	s.waitForSnapshot(t)
	c := s.gzipStream(t)
	c.event(t)
	for i := 0; i < 3; i++ {
		s.heartbeat(time.Now())
		line, next := c.line(t), c.line(t)
		if line != ": heartbeat\n" || next != "\n" {
			t.Errorf("the next lines are %q and %q", line, next)
		}
	}
}

// Streams join at different times and some of them lag, with heartbeats between the events. Each
// stream must decode to what the events were, and end as a whole gzip member.
func TestGzipStreamsDecodeToThePlainOne(t *testing.T) {
	t.Parallel()
	const streams, rounds, pauseEach = 9, 40, 10
	s := startServer(t, "-interval", "1h", "-heartbeat", "1h")
	s.waitForSnapshot(t)
	pacer := s.stream(t)
	pacer.event(t)

	events := map[int64]string{s.newest.Load().id: string(s.newest.Load().plain.data)}
	gates := make([]chan bool, rounds/pauseEach) // closed one after the other
	for i := range gates {
		gates[i] = make(chan bool)
	}
	got := make([]*gzipReading, 0, streams)
	var readers sync.WaitGroup
	for round := 0; round < rounds; round++ {
		if round%3 == 0 && len(got) < streams {
			r := &gzipReading{client: s.gzipStream(t), isSlow: len(got)%3 == 0}
			got = append(got, r)
			readers.Add(1)
			go func() {
				defer readers.Done()
				r.readTo(`"round":39}`, gates)
			}()
		}
		if round%3 == 1 {
			s.heartbeat(time.Now())
		}
		noise := make([]byte, rand.Intn(6<<10)) // does not become small
		rand.Read(noise)
		snapshot := fmt.Sprintf(`{"noise":"%x","round":%d}`, noise, round)
		s.board.putExternal([]byte(snapshot), time.Now())
		e := s.publish(time.Now())
		events[e.id] = string(e.plain.data)
		for pacer.event(t).id != e.id {
		}
		if round%pauseEach == pauseEach-1 {
			close(gates[round/pauseEach])
		}
	}
	readers.Wait()

	heartbeats := 0
	for i, r := range got {
		heartbeats += r.heartbeats
		r.check(t, fmt.Sprint("stream ", i), events)
	}
	skipped := s.debug(t).Skipped
	if skipped == 0 || heartbeats < streams {
		t.Errorf("%d events were skipped, %d heartbeats came", skipped, heartbeats)
	}

	s.stop()
	for i, r := range got {
		end, err := io.ReadAll(r.client.r) // checks what the trailer has
		if err != nil || !endPattern.Match(end) {
			t.Errorf("stream %d ends with %q, %v", i, end, err)
		}
	}
}

// endPattern is what may follow the last line of data.
var endPattern = regexp.MustCompile(`^\n(: heartbeat\n\n)*retry: [1-4]\d\d\d\n\n$`)

// A gzipReading is what a client read from a compressed stream.
type gzipReading struct {
	client     *client
	isSlow     bool
	events     []received
	heartbeats int
	err        error
}

// readTo reads up to the event that ends so. A slow client waits at the gates.
func (r *gzipReading) readTo(end string, gates []chan bool) {
	var e received
	for !strings.HasSuffix(string(e.data), end) {
		line, err := r.client.r.ReadString('\n')
		line = strings.TrimSuffix(line, "\n")
		switch {
		case err != nil:
			r.err = err
			return
		case line == ": heartbeat":
			r.heartbeats++
		case strings.HasPrefix(line, "id: "):
			fmt.Sscan(line[len("id: "):], &e.id)
		case strings.HasPrefix(line, "data: "):
			e.data = []byte(line[len("data: "):])
			r.events = append(r.events, e)
			if r.isSlow && len(r.events)%3 == 0 && len(gates) > 0 {
				<-gates[0]
				gates = gates[1:]
			}
		case line != "":
			r.err = fmt.Errorf("a line is %q", line)
			return
		}
	}
}

func (r *gzipReading) check(t *testing.T, name string, events map[int64]string) {
	t.Helper()
	if r.err != nil || len(r.events) < 3 {
		t.Errorf("%s got %d events, then %v", name, len(r.events), r.err)
	}
	var last int64
	for _, e := range r.events {
		got := fmt.Sprintf("id: %d\ndata: %s\n\n", e.id, e.data)
		if got != events[e.id] {
			t.Errorf("%s: event %d is %.200q, want %.200q", name, e.id, got, events[e.id])
		}
		if e.id <= last {
			t.Errorf("%s: event %d follows %d", name, e.id, last)
		}
		last = e.id
	}
}

func TestGzipIsReadByUsualClients(t *testing.T) {
	t.Parallel()
	s := startServer(t, "-interval", "50ms", "-heartbeat", "200ms")
	url := "http://" + s.addr + "/dashboard/stream"
	for agent, isGzip := range map[string]bool{"Mozilla/5.0": true, "Go-http-client/1.1": false} {
		req, err := http.NewRequest("GET", url, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("User-Agent", agent)
		resp, err := http.DefaultClient.Do(req) // accepts gzip and decodes it
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		isChunked := slices.Equal(resp.TransferEncoding, []string{"chunked"})
		if resp.Uncompressed != isGzip || !isChunked {
			t.Errorf("net/http as %s got a stream with gzip: %v, chunks: %v",
				agent, resp.Uncompressed, isChunked)
		}
		readUsual(t, resp.Body)
	}

	curl, err := exec.LookPath("curl")
	if err != nil {
		t.Skip("curl is not installed")
	}
	cmd := exec.Command(curl, "-sN", "-m", "10", "--compressed", "-A", "Mozilla/5.0", url)
	output, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	err = cmd.Start()
	if err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer cmd.Process.Kill()
	readUsual(t, output)
}

// readUsual reads a stream until it had some events and a heartbeat.
func readUsual(t *testing.T, r io.Reader) {
	t.Helper()
	events, heartbeats := 0, 0
	lines := bufio.NewScanner(r)
	for (events < 5 || heartbeats < 1) && lines.Scan() {
		switch {
		case strings.HasPrefix(lines.Text(), `data: {"system_status"`):
			events++
		case lines.Text() == ": heartbeat":
			heartbeats++
		}
	}
	if events < 5 || heartbeats < 1 {
		t.Errorf("%d events and %d heartbeats came, then %v", events, heartbeats, lines.Err())
	}
}

// The server may stop while the request's descriptor is duplicated.
func TestBeginOnAClosedStreamClosesTheSocket(t *testing.T) {
	t.Parallel()
	pair, reader := connectionPair(t)
	c := &SSEConnection{fd: notOpen}
	wasOpen := c.close(errShutdown)
	if !wasOpen {
		t.Error("a stream that has not begun is closed already")
	}
	c.begin(pair.fd, "head", newEvent(1, time.Now(), []byte("x")), 0)
	pair.fd = isClosed

	got, err := readAll(reader)
	if err != nil || len(got) > 0 || c.fd != isClosed {
		t.Errorf("the client reads %q, %v; the descriptor is %d", got, err, c.fd)
	}
}

func TestOfferSendsEventTakenInPartWhole(t *testing.T) {
	t.Parallel()
	for _, chunked := range []bool{false, true} {
		checkEventTakenInPart(t, chunked)
	}
}

func checkEventTakenInPart(t *testing.T, chunked bool) {
	t.Helper()
	c, reader := connectionPair(t)
	c.chunked = chunked
	big := func(id int64) *event {
		return newEvent(id, time.Now(), bytes.Repeat([]byte{'a' + byte(id)}, 1<<20))
	}
	now := time.Now()
	err := c.sendDue(big(1), 0, now, false)
	if err != errLagging || len(c.unsent) == 0 {
		t.Fatalf("1 MiB was taken at once: %v", err)
	}
	for id := int64(2); id < 5; id++ { // 1 is finished first, then 4 is the newest
		c.sendDue(big(id), 1, now, true)
	}
	all := make(chan []byte, 1) // read once
	go func() {
		b, _ := readAll(reader)
		all <- b
	}()
	offerAll(t, c, big(4), 1)
	if c.traffic.skipped != 2 || c.traffic.events != 2 {
		t.Errorf("%d events were skipped and %d sent, want 2 and 2",
			c.traffic.skipped, c.traffic.events)
	}
	c.close(io.EOF)

	var want []byte
	for _, part := range []chunk{big(1).plain, big(4).plain, plainHeartbeat} {
		want = append(want, c.wire(part)...)
	}
	got := <-all
	if !bytes.Equal(got, want) {
		t.Errorf("%d bytes arrived, want %d: event 1, event 4 and a heartbeat", len(got), len(want))
	}
}

// At the shutdown, too, a part of an event is finished first.
func TestCloseFinishesAnEventTakenInPart(t *testing.T) {
	t.Parallel()
	for _, isGzip := range []bool{false, true} {
		for _, taken := range []int{1, 3, 20} { // in the size line, after it, in the data
			c, reader := connectionPair(t)
			c.gzip = isGzip
			c.chunked = true
			c.send(c.encodeStart())
			e := newEvent(1, time.Now(), randomSnapshot(time.Now()))
			var encoder gzipEncoder
			e.compress = func() { encoder.encode(e, 0) }

			whole := c.encode(e)
			c.send(whole[:taken])
			c.noteBegun(e)
			c.unsent = whole[taken:]
			c.close(errShutdown)

			all, err := readAll(reader)
			if err != nil {
				t.Fatal(err)
			}
			chunks := chunksOf(t, string(all))
			body := []byte(strings.Join(chunks, ""))
			if isGzip {
				body = gunzip(t, body)
			}
			hasEvent := bytes.Contains(body, append([]byte("\n"), e.plain.data...))
			if len(chunks) != 3 || !hasEvent || !bytes.HasSuffix(body, []byte("\n\n")) {
				t.Errorf("gzip %v, %d bytes taken: %d chunks, the body is %q",
					isGzip, taken, len(chunks), body)
			}
		}
	}
}

// Other streams do not wait for a lagging one, even if the kernel would take the event by now.
func TestOfferOnlyNotesEventOfLaggingStream(t *testing.T) {
	t.Parallel()
	c, _ := connectionPair(t)
	now := time.Now()
	c.lastProgress = now
	e := newEvent(1, now, []byte("x"))
	err := c.sendDue(e, 0, now, false)
	if err != errLagging || c.traffic.bytes != 0 || c.pending != 1 {
		t.Errorf("%d bytes were sent, event %d is pending, %v", c.traffic.bytes, c.pending, err)
	}
	err = c.sendDue(e, 0, now, true)
	if err != nil || c.last != 1 || c.isLagging() {
		t.Errorf("after it caught up, the last event is %d, %v", c.last, err)
	}
}

func TestOfferKeepsPendingEventFromOlderOne(t *testing.T) {
	t.Parallel()
	c, reader := connectionPair(t)
	now := time.Now()
	c.lastProgress = now
	c.pending = 3
	c.sendDue(newEvent(2, now, []byte("x")), 0, now, true)
	c.sendDue(newEvent(3, now, []byte("y")), 0, now, true)
	c.close(io.EOF)
	got, _ := readAll(reader)
	want := "id: 3\ndata: y\n\n"
	if string(got) != want {
		t.Errorf("the stream got %q, want %q", got, want)
	}
}

func TestOfferSendsNoEventTwiceNorAfterANewerOne(t *testing.T) {
	t.Parallel()
	c, reader := connectionPair(t)
	for _, id := range []int64{5, 5, 3, 6, 4, 6} {
		c.sendDue(newEvent(id, time.Now(), []byte("x")), 0, time.Now(), true)
	}
	c.close(io.EOF)
	got, _ := readAll(reader)
	want := "id: 5\ndata: x\n\nid: 6\ndata: x\n\n"
	if string(got) != want {
		t.Errorf("the stream got %q, want %q", got, want)
	}
}

// On an edge, the external snapshot may be deleted while a stream has yet to get it.
func TestOfferOfNoEventEndsLagging(t *testing.T) {
	t.Parallel()
	c, reader := connectionPair(t)
	since := time.Now()
	c.lastProgress = since
	c.pending = 3
	err := c.sendDue(nil, 1, since.Add(stallLimit), true)
	if err != nil || c.isLagging() {
		t.Errorf("without an event the stream is lagging: %v, %v", c.isLagging(), err)
	}
	err = c.sendDue(newEvent(4, since, []byte("x")), 1, since, false)
	if err != nil {
		t.Errorf("the next event: %v", err)
	}
	c.close(io.EOF)
	got, _ := readAll(reader)
	want := ": heartbeat\n\nid: 4\ndata: x\n\n"
	if string(got) != want {
		t.Errorf("the stream got %q, want %q", got, want)
	}
}

// Bytes that the client sent would make close(2) a reset, which drops what is unsent. The client
// reads only after its stream was closed.
func TestCloseDeliversAllDespiteInput(t *testing.T) {
	t.Parallel()
	c, reader := connectionPair(t)
	reader.(*net.TCPConn).SetReadBuffer(4096)
	for id := int64(1); c.pending == 0 && len(c.unsent) == 0; id++ {
		c.sendDue(newEvent(id, time.Now(), bytes.Repeat([]byte("x"), 4096)), 0, time.Now(), true)
	}
	io.WriteString(reader, strings.Repeat("POST / HTTP/1.1\r\n\r\n", 50))
	eventually(t, "the bytes have arrived", func() bool {
		n, _, _ := syscall.Recvfrom(c.fd, make([]byte, 1), syscall.MSG_PEEK)
		return n > 0
	})
	want := c.traffic.bytes
	c.close(io.EOF)

	got, err := readAll(reader)
	if err != nil || uint64(len(got)) != want {
		t.Errorf("%d of %d bytes arrived, %v", len(got), want, err)
	}
}

// Not parallel: it makes the system calls what they are where their numbers are not known.
func TestSocketFallbacksMoveTheSameBytes(t *testing.T) {
	sendto, recvfrom := sendtoCall, recvfromCall
	defer func() { sendtoCall, recvfromCall = sendto, recvfrom }()
	e := newEvent(1, time.Now(), bytes.Repeat([]byte("0123456789"), 100<<10))
	want := append(slices.Clone(e.plain.data), plainHeartbeat.data...)

	for _, name := range []string{"raw calls", "fallbacks"} {
		if name == "fallbacks" {
			sendtoCall, recvfromCall = 0, 0
		}
		c, reader := connectionPair(t)
		all := make(chan []byte, 1) // read once
		go func() {
			b := make([]byte, len(want))
			reader.SetReadDeadline(time.Now().Add(10 * time.Second))
			n, _ := io.ReadFull(reader, b)
			all <- b[:n]
		}()
		offerAll(t, c, e, 1)
		got := <-all
		if !bytes.Equal(got, want) || c.traffic.bytes != uint64(len(want)) {
			t.Errorf("%s: %d bytes were sent and %d arrived, want %d",
				name, c.traffic.bytes, len(got), len(want))
		}

		err := c.checkClient()
		if err != nil {
			t.Errorf("%s: without input: %v", name, err)
		}
		io.WriteString(reader, "bytes that the server did not ask for")
		err = c.checkClient()
		if err != nil {
			t.Errorf("%s: with input: %v", name, err)
		}
		reader.(*net.TCPConn).CloseWrite()
		eventually(t, name+" see the end of the input", func() bool {
			return c.checkClient() == io.EOF
		})
		reset(reader)
		eventually(t, name+" see the reset", func() bool {
			return reasonOf(c.sendDue(newEvent(2, time.Now(), []byte("x")), 1, time.Now(), true)) == "client"
		})
	}
}

// A fullConn is a connection in a process that has no descriptor to spare.
type fullConn struct {
	net.Conn
}

func (fullConn) SyscallConn() (syscall.RawConn, error) {
	return nil, syscall.EMFILE
}

func TestStreamThatCannotBeTakenOverIsRejected(t *testing.T) {
	t.Parallel()
	closed, _ := tcpPair(t)
	closed.Close()
	open, reader := tcpPair(t) // but a ResponseRecorder cannot be hijacked
	s := testServer(t)

	for i, conn := range []net.Conn{fullConn{}, closed, open} {
		for _, accept := range []string{typeEvents, "*/*"} {
			r := httptest.NewRequest("GET", "/dashboard/stream", nil)
			r = r.WithContext(context.WithValue(r.Context(), connKey{}, conn))
			r.Host = "localhost"
			r.Header.Set("Accept", accept)
			w := httptest.NewRecorder()
			s.ServeHTTP(w, r)
			checkRejectedStream(t, accept, w)
		}
		n := uint64(2 * (i + 1))
		totals := s.totals
		if totals.opened != 0 || totals.rejected != n || len(totals.closed) > 0 {
			t.Errorf("after a %T: opened %d, rejected %d, closed %v, want only %d rejected", conn,
				totals.opened, totals.rejected, totals.closed, n)
		}
		if len(s.conns) > 0 {
			t.Errorf("after a %T %d streams are open", conn, len(s.conns))
		}
	}

	open.Close()
	_, err := readAll(reader)
	if err != nil {
		t.Errorf("a duplicate stayed open: %v", err)
	}
}

func checkRejectedStream(t *testing.T, accept string, w *httptest.ResponseRecorder) {
	t.Helper()
	code, body := 503, regexp.MustCompile(`^The server is unable to open a stream: [^\n]+\.\n$`)
	if accept == typeEvents {
		code, body = 200, regexp.MustCompile(`^retry: \d{4,5}\n: unable to open a stream\n\n$`)
	}
	if w.Code != code || !body.MatchString(w.Body.String()) {
		t.Errorf("a request for %s gets %d %q", accept, w.Code, w.Body)
	}
	hasWait := w.Header().Get("Retry-After") != ""
	if hasWait != (code == 503) || w.Header().Get("Connection") != "close" {
		t.Errorf("a request for %s gets %v", accept, w.Header())
	}
}

func TestGzipIsForBrowsersByDefault(t *testing.T) {
	t.Parallel()
	const firefox = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"
	for _, c := range []struct {
		header    []string // besides Accept-Encoding
		byDefault bool
	}{
		{nil, false},
		{[]string{"User-Agent", firefox}, true},
		{[]string{"User-Agent", "Mozilla/5.0"}, true},
		{[]string{"User-Agent", "sse-client/1.2"}, true},
		{[]string{"User-Agent", "node", "Sec-Fetch-Mode", "cors"}, true},
		{[]string{"Sec-Fetch-Mode", "no-cors"}, true},
		{[]string{"User-Agent", "Ruby"}, false},
		{[]string{"User-Agent", "python-requests/2.32.3"}, false},
		{[]string{"User-Agent", "curl/8.5.0"}, false},
		{[]string{"User-Agent", "Go-http-client/1.1"}, false},
		{[]string{"User-Agent", "mozilla/5.0"}, false},
		{[]string{"User-Agent", "Opera Mozilla/5.0"}, false},
		{[]string{"User-Agent", "my-sse-client/1"}, false},
	} {
		for _, isVarnish := range []bool{false, true} {
			for _, accept := range []string{"gzip, deflate, br", "gzip;q=0", "br", ""} {
				r := accessRequest("GET", "/dashboard/stream", c.header...)
				r.Header.Set("Accept-Encoding", accept)
				if isVarnish {
					r.Header.Set("X-Varnish", "32770")
				}
				accepts := strings.HasPrefix(accept, "gzip,")
				got := wantsGzip(r, gzipBrowsers)
				if want := c.byDefault && accepts && !isVarnish; got != want {
					t.Errorf("%v gets gzip by default: %v, want %v", r.Header, got, want)
				}
				if got := wantsGzip(r, gzipOff); got {
					t.Errorf("%v gets gzip though it is off", r.Header)
				}
				got = wantsGzip(r, gzipAll)
				if got != accepts && !isVarnish {
					t.Errorf("%v gets gzip with all: %v, want %v", r.Header, got, accepts)
				}
			}
		}
	}
}

func TestGzipSettingDecides(t *testing.T) {
	t.Parallel()
	for setting, want := range map[string]map[string]string{ // by User-Agent
		"browsers": {"Mozilla/5.0": "gzip", "curl/8": ""},
		"all":      {"Mozilla/5.0": "gzip", "curl/8": "gzip"},
		"off":      {"Mozilla/5.0": "", "curl/8": ""},
	} {
		s := testServer(t, "-gzip", setting)
		for agent, encoding := range want {
			r := accessRequest("HEAD", "/dashboard/stream",
				"User-Agent", agent, "Accept-Encoding", "gzip")
			w := httptest.NewRecorder()
			s.ServeHTTP(w, r)
			if got := w.Header().Get("Content-Encoding"); got != encoding {
				t.Errorf("with -gzip %s %s gets %q, want %q", setting, agent, got, encoding)
			}
		}
	}
}

func TestGzipAcceptEncoding(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		header string
		want   bool
	}{
		{"", false},
		{"identity", false},
		{"br, zstd", false},
		{"gzip;q=0", false},
		{"gzip; q=0.0", false},
		{"br, gzip ;q=0", false},
		{"gzip;q=x", false},
		{"xgzip", false},
		{"*", false},
		{"gzip", true},
		{"GZip", true},
		{"gzip, deflate, br, zstd", true},
		{"br;q=1.0, gzip;q=0.8, *;q=0.1", true},
		{"deflate , gzip; q=1", true},
	} {
		r := &http.Request{Header: http.Header{"Accept-Encoding": {c.header}}}
		got := acceptsGzip(r)
		if got != c.want {
			t.Errorf("Accept-Encoding %q: %v, want %v", c.header, got, c.want)
		}
	}
}

// Where a header is valid (RFC 9110), its first gzip decides. Where it is not, nothing is
// compressed for a header that does not contain gzip.
func FuzzAcceptEncoding(f *testing.F) {
	for _, line := range []string{"gzip, deflate, br, zstd", "br;q=1.0, gzip;q=0.8, *;q=0.1",
		"GZip ; q=0.000", "GZIP", "gzip;q=1.", "gzip;\tq=0", "x-gzip,,gzip", "gzip;q=NaN",
		"gzip;q=0x1p-2", "g zip", ";gzip,"} {
		f.Add(line, "gzip;q=0")
		f.Add("identity", line)
	}
	f.Fuzz(func(t *testing.T, first, second string) {
		accepts := func(lines ...string) bool {
			return acceptsGzip(&http.Request{Header: http.Header{"Accept-Encoding": lines}})
		}
		header := first + "," + second
		got := accepts(first, second)
		want, valid := referenceAcceptsGzip(header)
		isTabbed := want && strings.Contains(header, "\t") // a tab may cost the compression
		if valid && got != want && !isTabbed {
			t.Errorf("%q is taken for %v, want %v", header, got, want)
		}
		compact := strings.ReplaceAll(strings.ToLower(header), " ", "")
		if got && !strings.Contains(compact, "gzip") {
			t.Errorf("%q is taken for gzip", header)
		}
		if got != accepts(header) || got != accepts("br", header, "*;q=0") {
			t.Errorf("%q is something else on one line, or beside others", header)
		}
	})
}

var codingPattern = regexp.MustCompile("^[ \t]*([!#$%&'*+.^_`|~0-9A-Za-z-]+)" +
	"(?:[ \t]*;[ \t]*[qQ]=(0(?:\\.[0-9]{0,3})?|1(?:\\.0{0,3})?))?[ \t]*$")

func referenceAcceptsGzip(header string) (accepts, valid bool) {
	isDecided := false
	for _, part := range strings.Split(header, ",") {
		m := codingPattern.FindStringSubmatch(part)
		if m == nil && strings.Trim(part, " \t") != "" {
			return false, false
		}
		if m == nil || isDecided || !strings.EqualFold(m[1], "gzip") {
			continue
		}
		isDecided = true
		accepts = m[2] == "" || strings.ContainsAny(m[2], "123456789")
	}
	return accepts, true
}

func BenchmarkBroadcast(b *testing.B) {
	for _, streams := range []int{100, 1000, 5000} {
		b.Run(fmt.Sprint(streams), func(b *testing.B) {
			s := testServer(b)
			for i := 0; i < streams; i++ {
				_, reader := testStream(b, s, false)
				go io.Copy(io.Discard, reader)
			}
			e := newEvent(1, time.Now(), bytes.Repeat([]byte("x"), 550))
			b.ReportAllocs()
			b.ResetTimer()
			for i := 0; i < b.N; i++ {
				s.newest.Store(&event{id: int64(i + 1), plain: newChunk(e.plain.data)})
				s.forEachStream(time.Now(), s.offer)
			}
			delivery := float64(b.Elapsed().Nanoseconds()) / float64(b.N*streams)
			b.ReportMetric(delivery, "ns/delivery")
		})
	}
}

// publish broadcasts at once, whenever the last broadcast was.
func (s *SSEServer) publish(now time.Time) *event {
	s.publishing.Lock()
	defer s.publishing.Unlock()
	return s.publishLocked(now)
}

const gzipRequest = "GET /dashboard/stream HTTP/1.1\r\nHost: localhost\r\n" +
	"User-Agent: Mozilla/5.0\r\nAccept-Encoding: gzip\r\n\r\n"

// gzipStream opens a compressed stream and reads its head. The client reads the rest as plain text.
func (s *server) gzipStream(t testing.TB) *client {
	t.Helper()
	c := s.connect(t, gzipRequest)
	c.Conn.(*net.TCPConn).SetReadBuffer(8 << 10)
	head := c.header(t)
	if !strings.Contains(head, "\r\nContent-Encoding: gzip\r\n") ||
		!strings.Contains(head, "\r\nVary: Origin, Accept-Encoding, User-Agent\r\n") {
		t.Fatalf("the head is %q", head)
	}

	reader, err := gzip.NewReader(c.r)
	if err != nil {
		t.Fatal(err)
	}
	c.r = bufio.NewReader(reader)
	line := c.line(t)
	if !strings.HasPrefix(line, "retry: ") {
		t.Fatalf("the stream begins with %q", line)
	}
	return c
}

// connOf is the server's side of a client's stream.
func (s *server) connOf(t testing.TB, c *client) *SSEConnection {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	for conn := range s.conns {
		if conn.remote == c.LocalAddr().String() {
			return conn
		}
	}
	t.Fatal("the server does not know the stream")
	return nil
}

// smallReader opens a stream with the smallest receive buffer.
func (s *server) smallReader(t testing.TB) *client {
	t.Helper()
	c := s.stream(t)
	c.Conn.(*net.TCPConn).SetReadBuffer(1)
	return c
}

// largeSnapshot fills a client's receive buffer within a few events.
var largeSnapshot = []byte(`{"noise":"` + strings.Repeat("x", 32<<10) + `"}`)

// fill broadcasts until the kernel takes nothing more for c, whose client does not read.
func fill(t testing.TB, s *SSEServer, c *SSEConnection) {
	t.Helper()
	const enough = 100

	rejected := 0 // in a row
	for i := 0; i < 50000 && rejected < enough; i++ {
		c.mu.Lock()
		before, isLagging := c.traffic.bytes, c.isLagging()
		c.mu.Unlock()
		if !isLagging {
			s.publish(time.Now())
		}
		s.forEachStream(time.Now(), s.catchUp)

		if c.currentTraffic().bytes > before {
			rejected = 0
			continue
		}
		rejected++
		time.Sleep(time.Millisecond) // the client's kernel may have to acknowledge
	}
	if rejected < enough {
		t.Fatal("the kernel takes ever more")
	}
}

// offerAll offers c an event and the heartbeats until c has got everything.
func offerAll(t testing.TB, c *SSEConnection, e *event, beats uint64) {
	t.Helper()
	eventually(t, "the stream has got everything", func() bool {
		err := c.sendDue(e, beats, time.Now(), true)
		if err != nil && err != errLagging {
			t.Fatal(err)
		}
		return err == nil
	})
}

// testStream opens a stream of a server that does not run. It also returns its client's end.
func testStream(t testing.TB, s *SSEServer, gzip bool) (*SSEConnection, net.Conn) {
	t.Helper()
	c, reader := connectionPair(t)
	c.gzip = gzip
	ok := s.reserve(c)
	if !ok {
		t.Fatal("the server has no room")
	}
	return c, reader
}

// connectionPair is a stream that belongs to no server, and its client's end.
func connectionPair(t testing.TB) (*SSEConnection, net.Conn) {
	t.Helper()
	accepted, reader := tcpPair(t)
	raw, err := accepted.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	fd, err := duplicate(raw)
	if err != nil {
		t.Fatal(err)
	}
	accepted.Close()
	configureSocket(fd)

	c := &SSEConnection{fd: fd}
	t.Cleanup(func() { c.close(io.EOF) })
	return c, reader
}

// tcpPair is the two ends of a connection.
func tcpPair(t testing.TB) (accepted, reader net.Conn) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	reader, err = net.Dial("tcp", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { reader.Close() })
	accepted, err = listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { accepted.Close() })
	return accepted, reader
}

// readAll reads up to the end of a connection. It waits for that for ten seconds.
func readAll(conn net.Conn) ([]byte, error) {
	conn.SetReadDeadline(time.Now().Add(10 * time.Second))
	return io.ReadAll(conn)
}

// reset closes a connection at once, whatever is unread or unsent.
func reset(conn net.Conn) {
	conn.(*net.TCPConn).SetLinger(0)
	conn.Close()
}

// notSent is the number of bytes in a socket's send queue that have not left it.
func notSent(t testing.TB, fd int) int {
	t.Helper()
	const siocoutqnsd = 0x894B // of Linux

	var n int32
	_, _, errno := syscall.Syscall(syscall.SYS_IOCTL, uintptr(fd), siocoutqnsd,
		uintptr(unsafe.Pointer(&n)))
	if errno != 0 {
		t.Fatal(errno)
	}
	return int(n)
}

func openFiles(t testing.TB) int {
	t.Helper()
	names, err := os.ReadDir("/dev/fd")
	if err != nil {
		t.Skip(err)
	}
	return len(names)
}

func TestStreamCountsAPendingEventThatIsDeleted(t *testing.T) {
	t.Parallel()
	c := &SSEConnection{pending: 7}
	c.notePending(nil)
	if c.pending != 0 || c.traffic.skipped != 1 {
		t.Errorf("pending %d, skipped %d, want 0 and 1", c.pending, c.traffic.skipped)
	}
}

func TestStreamWithoutADescriptorIsNotCounted(t *testing.T) {
	t.Parallel()
	s := testServer(t)
	if !s.reserve(&SSEConnection{fd: notOpen}) {
		t.Fatal("there is no room")
	}
	s.board.update(metrics{time: time.Now()}, nil)
	s.publish(time.Now())
	streams := s.newest.Load().streams
	if streams != 0 || len(s.conns) != 1 {
		t.Errorf("a broadcast reached %d streams, %d are known, want 0 and 1", streams, len(s.conns))
	}
}
