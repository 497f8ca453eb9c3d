package main

import (
	"bytes"
	"fmt"
	"io"
	"math/rand"
	"net"
	"os"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
	"unsafe"
)

func TestStreamBeginsWithTheNewestSnapshotAtOnce(t *testing.T) {
	t.Parallel()
	s := startServer(t, "-interval", "0")
	s.waitForSnapshot(t)
	s.trigger(t)
	want := s.trigger(t).ID
	if e := s.stream(t).event(t); e.id != want {
		t.Errorf("the first event is %d, the newest is %d", e.id, want)
	}
}

func TestStreamOpenedBeforeTheFirstSnapshotWaitsForIt(t *testing.T) {
	t.Parallel()
	s := startServer(t, "-interval", "0")
	c := s.stream(t)
	if s.newest.Load() != nil {
		t.Skip("the machine is too slow to be there before the first snapshot")
	}
	if e := c.event(t); e.id != s.newest.Load().id {
		t.Errorf("the first event is %d, the first snapshot is %d", e.id, s.newest.Load().id)
	}
}

func TestIDsIncreaseWhateverTheClockDoes(t *testing.T) {
	t.Parallel()
	s := testServer(t)
	now := time.Now()
	last := int64(0)
	for _, step := range []time.Duration{0, 0, time.Second, -time.Hour, time.Millisecond, 0, 2 * time.Hour} {
		now = now.Add(step)
		s.broadcast(now)
		if id := s.newest.Load().id; id <= last {
			t.Errorf("after a step of %v id %d follows %d", step, id, last)
		} else {
			last = id
		}
	}
	if last != now.UnixMilli() {
		t.Errorf("id %d is not the clock's %d", last, now.UnixMilli())
	}
}

// The wall clock cannot be set here. When it steps back, ids rise by one until it has caught up.
func TestIDsAndRatesSurviveStepsOfTheClock(t *testing.T) {
	s := testServer(t)
	now := time.Now()
	var last int64
	for _, step := range []time.Duration{0, time.Second, -time.Hour, time.Millisecond, 24 * time.Hour, -24 * time.Hour, 2 * time.Second} {
		now = now.Add(step)
		s.sample(now.Round(0)) // without the monotonic clock's reading
		if f := s.broadcast(now.Round(0)); f.id <= last {
			t.Errorf("after a step of %v the id is %d, before %d", step, f.id, last)
		} else {
			last = f.id
		}
	}
	if body := fmt.Sprint(s.figures); regexp.MustCompile(`Inf|e\+`).MatchString(body) {
		t.Errorf("the metrics are %s", body)
	}
}

func TestIDsIncreaseAcrossARestart(t *testing.T) {
	t.Parallel()
	before := startServer(t, "-interval", "50ms")
	c := before.stream(t)
	c.event(t)
	last := c.event(t).id
	before.stop()
	if e := startServer(t).stream(t).event(t); e.id <= last {
		t.Errorf("after the restart id %d follows %d", e.id, last)
	}
}

// Every reader must see all snapshots once and in order: they read fast enough for that.
func TestManyReadersEachSeeEverySnapshotOnceAndInOrder(t *testing.T) {
	t.Parallel()
	s := startServer(t, "-interval", "0")
	s.waitForSnapshot(t)
	const clients, rounds = 600, 10 // enough for several workers
	var wg sync.WaitGroup
	seen := make([][]int64, clients)
	ready := make(chan bool, clients)
	for i := 0; i < clients; i++ {
		c := s.stream(t)
		wg.Add(1)
		go func(i int) {
			defer wg.Done()
			for len(seen[i]) < rounds+1 {
				seen[i] = append(seen[i], c.event(t).id)
				if len(seen[i]) == 1 {
					ready <- true
				}
			}
		}(i)
	}
	for i := 0; i < clients; i++ {
		<-ready
	}
	want := []int64{s.newest.Load().id}
	for i := 0; i < rounds; i++ {
		reply := s.trigger(t)
		want = append(want, reply.ID)
		if reply.Streams != clients {
			t.Errorf("a broadcast reached %d of %d streams", reply.Streams, clients)
		}
	}
	wg.Wait()
	for i := range seen {
		if fmt.Sprint(seen[i]) != fmt.Sprint(want) {
			t.Fatalf("client %d saw %d, want %d", i, seen[i], want)
		}
	}
}

func TestStalledReaderDelaysNoOtherAndCostsBoundedMemory(t *testing.T) {
	t.Parallel()
	s := startServer(t, "-interval", "0")
	s.waitForSnapshot(t)
	stalled := s.smallReader(t)
	var clients []*client
	for i := 0; i < 100; i++ {
		clients = append(clients, s.stream(t))
		clients[i].event(t)
	}
	s.fill(t, stalled)
	for i := 0; i < 10; i++ {
		reply := s.trigger(t)
		if reply.Streams != 100 {
			t.Errorf("the broadcast reached %d streams, want the 100 that read", reply.Streams)
		}
		for _, c := range clients {
			for e := c.event(t); e.id != reply.ID; e = c.event(t) {
			}
		}
	}
	c := s.connOf(stalled)
	c.mu.Lock()
	defer c.mu.Unlock()
	if n := len(c.rest); n > 8192 || c.skipped < 9 {
		t.Errorf("the stalled stream holds %d bytes and has skipped %d", n, c.skipped)
	}
	if runtime.GOOS == "linux" {
		if n := notSent(t, c.fd); n > 4096 {
			t.Errorf("%d bytes wait in the kernel, unsent", n)
		}
	}
}

func TestStreamThatTakesNothingForThirtySecondsIsClosed(t *testing.T) {
	t.Parallel()
	s := startServer(t, "-interval", "0")
	s.waitForSnapshot(t)
	stalled, reads := s.smallReader(t), s.stream(t)
	reads.event(t)
	s.fill(t, stalled)
	c := s.connOf(stalled)
	c.mu.Lock()
	since := c.blocked
	c.mu.Unlock()
	s.fanOut(since.Add(stallLimit-time.Millisecond), s.catchUp)
	if n := s.debug(t).Open; n != 2 {
		t.Fatalf("%d streams are open just before the limit, want 2", n)
	}
	s.fanOut(since.Add(stallLimit), s.catchUp)
	if d := s.debug(t); d.Open != 1 || d.Closed["stalled"] != 1 {
		t.Errorf("after the limit %d are open, closed %v", d.Open, d.Closed)
	}
	s.trigger(t)
	reads.event(t)
}

// A reader with the default receive buffer that stops and resumes first reads what had left
// the server, then at most one frame that waited there, then the present one.
func TestReaderThatResumesSeesThePresent(t *testing.T) {
	t.Parallel()
	if runtime.GOOS != "linux" {
		t.Skip("needs Linux's TCP_NOTSENT_LOWAT")
	}
	s := startServer(t, "-interval", "0")
	s.waitForSnapshot(t)
	c := s.stream(t)
	c.event(t)
	s.fill(t, c)
	for i := 0; i < 30; i++ {
		s.broadcast(time.Now())
	}
	sc := s.connOf(c)
	sc.mu.Lock()
	waiting, begun := notSent(t, sc.fd), sc.last
	sc.mu.Unlock()
	newest := s.newest.Load()
	if waiting > len(newest.bytes)+10 || begun == newest.id {
		t.Errorf("%d bytes wait unsent, the last of event %d; the newest is %d of %d bytes",
			waiting, begun, newest.id, len(newest.bytes))
	}
	for e := c.event(t); e.id != begun; e = c.event(t) {
		if e.id > begun {
			t.Fatalf("event %d was never begun, the last was %d", e.id, begun)
		}
	}
	if e := c.event(t); e.id != newest.id {
		t.Errorf("after the last old event comes %d, want the present one, %d", e.id, newest.id)
	}
}

func TestFrameThatTheKernelTookHalfOfArrivesWhole(t *testing.T) {
	t.Parallel()
	c, reader := connectionPair(t)
	big := func(id int64) *frame {
		return &frame{id: id, bytes: eventBytes(id, bytes.Repeat([]byte{'a' + byte(id)}, 3<<20))}
	}
	now := time.Now()
	if err := c.offer(big(1), 0, now, false); err != errBehind || len(c.rest) == 0 {
		t.Fatalf("3 MiB were taken at once: %v", err)
	}
	for id := int64(2); id < 5; id++ {
		c.offer(big(id), 1, now, true) // is in nobody's way: 1 is finished first, then 4 is the newest
	}
	got := make(chan []byte)
	go func() {
		b, _ := io.ReadAll(reader)
		got <- b
	}()
	for err := errBehind; err != nil; time.Sleep(time.Millisecond) {
		if err = c.offer(big(4), 1, now, true); err != nil && err != errBehind {
			t.Fatal(err)
		}
	}
	if c.skipped != 2 || c.events != 2 {
		t.Errorf("skipped %d and sent %d, want 2 and 2", c.skipped, c.events)
	}
	c.close(io.EOF)
	want := append(append([]byte{}, big(1).bytes...), big(4).bytes...)
	if b := <-got; !bytes.Equal(b, append(want, heartbeatBytes...)) {
		t.Errorf("%d bytes arrived, want %d: frame 1, frame 4 and a heartbeat", len(b), len(want)+13)
	}
}

// The others do not wait for one that is behind, nor for the removal of one that is gone.
func TestBroadcastLeavesTheStreamsThatAreBehindOrGoneForLater(t *testing.T) {
	t.Parallel()
	c, reader := connectionPair(t)
	large := bytes.Repeat([]byte("x"), 1<<20)
	id, now := int64(0), time.Now()
	for err := error(nil); err == nil; {
		id++
		err = c.offer(&frame{id: id, bytes: large}, 0, now, false)
	}
	go io.Copy(io.Discard, reader)
	time.Sleep(100 * time.Millisecond) // there is room again
	before := c.bytes
	if err := c.offer(&frame{id: id + 1, bytes: []byte("y")}, 0, now, false); err != errBehind || c.bytes != before || c.owed != id+1 {
		t.Errorf("one that is behind is sent %d bytes, %v", c.bytes-before, err)
	}
	eventually(t, "it has caught up", func() bool {
		return c.offer(&frame{id: id + 1, bytes: []byte("y")}, 0, now, true) == nil && c.last == id+1
	})
	c.close(io.EOF)

	s := testServer(t)
	gone, peer := connectionPair(t)
	s.conns[gone] = struct{}{}
	peer.(*net.TCPConn).SetLinger(0)
	peer.Close()
	s.newest.Store(&frame{id: 1, bytes: []byte("x")})
	if n := s.fanOut(now, s.offer); n != 0 || gone.fd < 0 {
		t.Errorf("a broadcast went to %d streams; the dead one's descriptor is %d", n, gone.fd)
	}
	s.fanOut(now, s.catchUp)
	if gone.fd != isClosed || len(s.conns) > 0 {
		t.Errorf("after that its descriptor is %d, and %d streams are known", gone.fd, len(s.conns))
	}
}

func TestOlderFrameDoesNotTakeThePlaceOfTheOneThatIsOwed(t *testing.T) {
	c, reader := connectionPair(t)
	c.blocked, c.owed = time.Now(), 3
	c.offer(&frame{id: 2, bytes: eventBytes(2, []byte("x"))}, 0, time.Now(), true)
	c.offer(&frame{id: 3, bytes: eventBytes(3, []byte("y"))}, 0, time.Now(), true)
	c.close(io.EOF)
	if got, _ := io.ReadAll(reader); string(got) != "id: 3\ndata: y\n\n" {
		t.Errorf("the stream got %q", got)
	}
}

func TestNoOldFrameAfterANewOneNorTheSameTwice(t *testing.T) {
	t.Parallel()
	c, reader := connectionPair(t)
	for _, id := range []int64{5, 5, 3, 6, 4, 6} {
		c.offer(&frame{id: id, bytes: eventBytes(id, []byte("x"))}, 0, time.Now(), true)
	}
	c.close(io.EOF)
	got, _ := io.ReadAll(reader)
	if want := "id: 5\ndata: x\n\nid: 6\ndata: x\n\n"; string(got) != want {
		t.Errorf("the stream got %q, want %q", got, want)
	}
}

func TestHeartbeatGoesToEachStreamWhateverElseWasSent(t *testing.T) {
	t.Parallel()
	s := startServer(t, "-interval", "50ms", "-heartbeat", "200ms")
	for _, c := range []*client{s.stream(t), s.stream(t)} {
		events, beats := 0, 0
		for beats < 3 {
			switch line := c.line(t); {
			case line == ": heartbeat\n":
				beats++
				if c.line(t) != "\n" {
					t.Error("a heartbeat is not followed by an empty line")
				}
			case strings.HasPrefix(line, "id: "):
				events++
			}
		}
		if events < 2 {
			t.Errorf("%d events and %d heartbeats", events, beats)
		}
	}
}

func TestStreamOpenedAfterHeartbeatsOwesNone(t *testing.T) {
	t.Parallel()
	s := startServer(t, "-interval", "0", "-heartbeat", "1h")
	s.waitForSnapshot(t)
	s.beat(time.Now())
	c := s.stream(t)
	c.event(t)
	s.trigger(t)
	if line := c.line(t); !strings.HasPrefix(line, "id: ") {
		t.Errorf("a new stream got %q for a heartbeat before its time", line)
	}
}

// What nobody asked for would make close(2) a reset that throws away what is unsent: here the
// client reads only after its stream was closed.
func TestAllThatWasSentArrivesAtAClientThatSentBytesNobodyAskedFor(t *testing.T) {
	t.Parallel()
	c, reader := connectionPair(t)
	reader.(*net.TCPConn).SetReadBuffer(4096)
	for id := int64(1); c.owed == 0; id++ {
		c.offer(&frame{id: id, bytes: bytes.Repeat([]byte("x"), 4096)}, 0, time.Now(), true)
	}
	io.WriteString(reader, strings.Repeat("POST / HTTP/1.1\r\n\r\n", 50))
	time.Sleep(20 * time.Millisecond)
	want := c.bytes
	c.close(io.EOF)
	reader.SetReadDeadline(time.Now().Add(10 * time.Second))
	if got, err := io.ReadAll(reader); err != nil || uint64(len(got)) != want {
		t.Errorf("%d of %d bytes arrived, %v", len(got), want, err)
	}
}

func TestStreamThatIsClosedAtShutdownGetsItsRetryLast(t *testing.T) {
	t.Parallel()
	s := startServer(t, "-interval", "0")
	c := s.stream(t)
	c.event(t)
	io.WriteString(c, "bytes that nobody asked for")
	id := s.trigger(t).ID
	s.stop()
	if e := c.event(t); e.id != id {
		t.Errorf("the last event is %d, want %d", e.id, id)
	}
	rest, err := io.ReadAll(c.r)
	if err != nil || !strings.HasPrefix(string(rest), "retry: ") || !strings.HasSuffix(string(rest), "\n\n") {
		t.Errorf("after it comes %q, %v", rest, err)
	}
}

func TestClosedClientIsGoneWithinTwoSeconds(t *testing.T) {
	t.Parallel()
	s := startServer(t, "-interval", "0") // so that only the look for it finds it
	var clients []*client
	for i := 0; i < 10; i++ {
		clients = append(clients, s.stream(t))
		clients[i].event(t)
	}
	for i, c := range clients {
		if i%2 == 0 {
			c.Conn.(*net.TCPConn).SetLinger(0) // a reset
		}
		c.Close()
	}
	closed := time.Now()
	eventually(t, "all are gone", func() bool { return s.debug(t).Open == 0 })
	if d := time.Since(closed); d > 2*time.Second {
		t.Errorf("closed clients were gone after %v only", d)
	}
	if n := s.debug(t).Closed["client"]; n != 10 {
		t.Errorf("%d of 10 were counted as closed by the client", n)
	}
}

func TestResetInTheMiddleOfAFrameRemovesThatStreamOnly(t *testing.T) {
	t.Parallel()
	s := startServer(t, "-interval", "50ms")
	stays, leaves := s.stream(t), s.stream(t)
	stays.event(t)
	leaves.read(t, 20) // some of a frame
	leaves.Conn.(*net.TCPConn).SetLinger(0)
	leaves.Close()
	eventually(t, "the stream is removed", func() bool { return s.debug(t).Closed["client"] == 1 })
	last := stays.event(t).id
	if e := stays.event(t); e.id <= last || s.debug(t).Open != 1 {
		t.Errorf("the other stream has event %d after %d", e.id, last)
	}
}

// A thousand streams come and go while broadcasts and heartbeats run.
func TestStormOfStreamsWhileBroadcastsRun(t *testing.T) {
	t.Parallel()
	s := startServer(t, "-interval", "50ms", "-heartbeat", "200ms")
	s.waitForSnapshot(t)
	stays := s.stream(t)
	var wg sync.WaitGroup
	var bad atomic.Int64
	for g := 0; g < 20; g++ {
		wg.Add(1)
		go func(r *rand.Rand) {
			defer wg.Done()
			for i := 0; i < 50; i++ {
				c, err := net.Dial("tcp", s.addr)
				if err != nil {
					bad.Add(1)
					continue
				}
				io.WriteString(c, "GET /dashboard/stream HTTP/1.1\r\nHost: localhost\r\n\r\n")
				time.Sleep(time.Duration(r.Intn(20)) * time.Millisecond)
				c.SetReadDeadline(time.Now().Add(5 * time.Second))
				b := make([]byte, 1+r.Intn(2000))
				n, err := c.Read(b)
				if err != nil || !strings.HasPrefix("HTTP/1.1 200 OK\r\n", string(b[:min(n, 17)])) {
					bad.Add(1)
				}
				if r.Intn(2) == 0 {
					c.(*net.TCPConn).SetLinger(0)
				}
				c.Close()
			}
		}(rand.New(rand.NewSource(int64(g))))
	}
	wg.Wait()
	if bad.Load() > 0 {
		t.Errorf("%d of 1000 streams got no head", bad.Load())
	}
	eventually(t, "only one stream is left", func() bool { return s.debug(t).Open == 1 })
	d := s.debug(t)
	if n := d.Closed["client"] + d.Closed["error"]; n != 1000 || d.Opened != 1001 {
		t.Errorf("opened %d, closed %v", d.Opened, d.Closed)
	}
	last := int64(0)
	for i := 0; i < 5; i++ {
		e := stays.event(t)
		if e.id <= last || !snapshotPattern.Match(e.data) {
			t.Fatalf("event %d after %d: %s", e.id, last, e.data)
		}
		last = e.id
	}
}

// Not parallel: it counts what the whole process holds.
func TestNothingIsLeftAfterShutdown(t *testing.T) {
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
	eventually(t, fmt.Sprintf("%d files are open", files), func() bool { return openFiles(t) <= files })
}

func TestStreamHoldsNoGoroutine(t *testing.T) {
	s := startServer(t)
	s.stream(t).event(t)
	eventually(t, "the server is at rest", func() bool { return s.debug(t).Open == 1 })
	before := runtime.NumGoroutine()
	for i := 0; i < 200; i++ {
		s.stream(t)
	}
	eventually(t, "no goroutine is left of 200 streams", func() bool {
		return runtime.NumGoroutine() <= before+2 // a request may be under way: the probe
	})
	if n := s.debug(t).Open; n != 201 {
		t.Errorf("%d streams are open", n)
	}
}

func TestNoStreamJoinsOnceTheServerStops(t *testing.T) {
	s := startServer(t)
	s.stop()
	if s.reserve(&SSEConnection{fd: notOpen}) {
		t.Error("a stream was let in")
	}
}

// Not parallel: others would allocate meanwhile.
func TestBroadcastAllocatesNothingPerStream(t *testing.T) {
	allocs := func(streams int) float64 {
		s := testServer(t)
		for i := 0; i < streams; i++ {
			c, reader := connectionPair(t)
			go io.Copy(io.Discard, reader)
			s.conns[c] = struct{}{}
		}
		data := []byte("x")
		id := int64(0)
		return testing.AllocsPerRun(100, func() {
			id++
			s.newest.Store(&frame{id: id, bytes: data})
			s.fanOut(time.Now(), s.offer)
			s.swept = time.Time{}
			s.sweep(time.Now())
		})
	}
	few, many := allocs(10), allocs(200)
	if many > few+10 {
		t.Errorf("a broadcast to 10 streams allocates %v times, to 200 streams %v times", few, many)
	}
}

func BenchmarkBroadcast(b *testing.B) {
	for _, streams := range []int{100, 1000, 5000} {
		b.Run(fmt.Sprint(streams), func(b *testing.B) {
			s := testServer(b)
			for i := 0; i < streams; i++ {
				c, reader := connectionPair(b)
				go io.Copy(io.Discard, reader)
				s.conns[c] = struct{}{}
			}
			data := eventBytes(1, bytes.Repeat([]byte("x"), 550))
			b.ReportAllocs()
			b.ResetTimer()
			for i := 0; i < b.N; i++ {
				s.newest.Store(&frame{id: int64(i + 1), bytes: data})
				s.fanOut(time.Now(), s.offer)
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*streams), "ns/delivery")
		})
	}
}

// connOf is the server's side of a client's stream.
func (s *server) connOf(c *client) *SSEConnection {
	s.mu.Lock()
	defer s.mu.Unlock()
	for sc := range s.conns {
		if sc.remote == c.LocalAddr().String() {
			return sc
		}
	}
	return nil
}

// smallReader opens a stream with the smallest receive buffer.
func (s *server) smallReader(t testing.TB) *client {
	t.Helper()
	c := s.stream(t)
	c.Conn.(*net.TCPConn).SetReadBuffer(1)
	return c
}

// fill broadcasts until the kernel has taken nothing for c, which does not read, for a while.
func (s *server) fill(t testing.TB, c *client) {
	t.Helper()
	sc := s.connOf(c)
	refused := 0
	for i := 0; i < 50000 && refused < 20; i++ {
		s.broadcast(time.Now())
		sc.mu.Lock()
		if sc.owed == 0 {
			refused = 0
		} else {
			refused++
		}
		sc.mu.Unlock()
		if refused > 0 {
			time.Sleep(2 * time.Millisecond)
		}
	}
	if refused < 20 {
		t.Fatal("the kernel takes ever more")
	}
}

// eventBytes is an event as a frame has it.
func eventBytes(id int64, data []byte) []byte {
	return fmt.Appendf(nil, "id: %d\ndata: %s\n\n", id, data)
}

// connectionPair is a stream that belongs to no server, and its client's end.
func connectionPair(t testing.TB) (*SSEConnection, net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	reader, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	f, err := conn.(*net.TCPConn).File()
	if err != nil {
		t.Fatal(err)
	}
	fd, err := syscall.Dup(int(f.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	conn.Close()
	syscall.SetNonblock(fd, true)
	syscall.SetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_SNDBUF, sendBuffer)
	c := &SSEConnection{fd: fd}
	t.Cleanup(func() {
		c.close(io.EOF)
		reader.Close()
	})
	return c, reader
}

// notSent is the number of bytes in a socket's send queue that have not left: SIOCOUTQNSD.
func notSent(t testing.TB, fd int) int {
	t.Helper()
	var n int32
	if _, _, e := syscall.Syscall(syscall.SYS_IOCTL, uintptr(fd), 0x894B, uintptr(unsafe.Pointer(&n))); e != 0 {
		t.Fatal(e)
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
