package main

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand"
	"net"
	"net/http"
	"os/exec"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"
)

const gzipRequest = "GET /dashboard/stream HTTP/1.1\r\nHost: localhost\r\nAccept-Encoding: gzip\r\n\r\n"

// inflated reads the head of a compressed stream, and gives what follows as a plain one.
func (c *client) inflated(t testing.TB) *client {
	t.Helper()
	head := ""
	for line := c.line(t); line != "\r\n"; line = c.line(t) {
		head += line
	}
	if !strings.Contains(head, "\r\nContent-Encoding: gzip\r\n") || !strings.Contains(head, "\r\nVary: Origin, Accept-Encoding\r\n") {
		t.Fatalf("the head is %q", head)
	}
	z, err := gzip.NewReader(c.r)
	if err != nil {
		t.Fatal(err)
	}
	plain := &client{Conn: c.Conn, r: bufio.NewReader(z)}
	if line := plain.line(t); !strings.HasPrefix(line, "retry: ") {
		t.Fatalf("the stream begins with %q", line)
	}
	return plain
}

func TestStreamIsCompressedWhereThatIsAccepted(t *testing.T) {
	t.Parallel()
	s := startServer(t)
	s.waitForSnapshot(t)
	for accept, want := range map[string]string{
		"": "", "identity": "", "br, zstd": "", "gzip;q=0": "", "gzip; q=0.0": "", "br, gzip ;q=0": "", "gzip;q=x": "", "xgzip": "", "*": "",
		"gzip": "gzip", "GZip": "gzip", "gzip, deflate, br, zstd": "gzip", "br;q=1.0, gzip;q=0.8, *;q=0.1": "gzip", "deflate , gzip; q=1": "gzip",
	} {
		_, head, _ := s.request(t, "GET", "/dashboard/stream", "Accept-Encoding", accept)
		if head.Get("Content-Encoding") != want || head.Get("Vary") != "Origin, Accept-Encoding" {
			t.Errorf("Accept-Encoding %q gets %v", accept, head)
		}
	}
}

// Where a header is as RFC 9110 wants it, its first gzip decides; where it is not, nothing is compressed that does not ask for it.
func FuzzAcceptEncoding(f *testing.F) {
	for _, line := range []string{"gzip, deflate, br, zstd", "br;q=1.0, gzip;q=0.8, *;q=0.1", "GZip ; q=0.000", "GZIP", "gzip;q=1.", "gzip;\tq=0", "x-gzip,,gzip", "gzip;q=NaN", "gzip;q=0x1p-2", "g zip", ";gzip,"} {
		f.Add(line, "gzip;q=0")
		f.Add("identity", line)
	}
	element := regexp.MustCompile("^[ \t]*([!#$%&'*+.^_`|~0-9A-Za-z-]+)(?:[ \t]*;[ \t]*[qQ]=(0(?:\\.[0-9]{0,3})?|1(?:\\.0{0,3})?))?[ \t]*$")
	reference := func(header string) (accepts, valid bool) {
		decided := false
		for _, part := range strings.Split(header, ",") {
			m := element.FindStringSubmatch(part)
			if m == nil && strings.Trim(part, " \t") != "" {
				return false, false
			}
			if m != nil && !decided && strings.EqualFold(m[1], "gzip") {
				decided, accepts = true, m[2] == "" || strings.ContainsAny(m[2], "123456789")
			}
		}
		return accepts, true
	}
	f.Fuzz(func(t *testing.T, first, second string) {
		accepts := func(lines ...string) bool {
			return acceptsGzip(&http.Request{Header: http.Header{"Accept-Encoding": lines}})
		}
		header := first + "," + second
		got := accepts(first, second)
		want, valid := reference(header)
		if valid && got != want && !(want && strings.Contains(header, "\t")) { // a tab may cost the compression
			t.Errorf("%q is taken for %v, want %v", header, got, want)
		}
		if got && !strings.Contains(strings.ReplaceAll(strings.ToLower(header), " ", ""), "gzip") {
			t.Errorf("%q is taken for gzip", header)
		}
		if got != accepts(header) || got != accepts("br", header, "*;q=0") {
			t.Errorf("%q is something else on one line, or beside others", header)
		}
	})
}

// Streams that join at any time and are skipped now and then, with heartbeats between the
// snapshots: every byte decodes to what the plain stream holds.
func TestCompressedStreamsDecodeToThePlainOne(t *testing.T) {
	t.Parallel()
	s := startServer(t, "-interval", "60ms", "-heartbeat", "200ms")
	s.waitForSnapshot(t)
	ctx, cancel := context.WithTimeout(context.Background(), 6*time.Second)
	defer cancel()
	plain := map[int64]string{}
	var wg sync.WaitGroup
	follow := func(seen func(id int64, data string)) (beats int) {
		c := dial(t, s.addr, gzipRequest)
		c.Conn.(*net.TCPConn).SetReadBuffer(8 << 10)
		defer c.Close()
		defer context.AfterFunc(ctx, func() { c.Close() })()
		c = c.inflated(t)
		var id int64
		lines := bufio.NewScanner(c.r)
		lines.Buffer(nil, 1<<20)
		for lines.Scan() {
			switch line := lines.Text(); {
			case line == ": heartbeat":
				beats++
			case strings.HasPrefix(line, "id: "):
				fmt.Sscan(line[4:], &id)
			case strings.HasPrefix(line, "data: "):
				seen(id, line[6:])
			case line != "" && !strings.HasPrefix(line, "retry: ") && ctx.Err() == nil:
				t.Errorf("a line is %q", line)
			}
		}
		return beats
	}
	wg.Add(1)
	go func() { // what a plain stream would hold; frames come 50 ms apart
		defer wg.Done()
		for ; ctx.Err() == nil; time.Sleep(time.Millisecond) {
			f := s.newest.Load()
			_, data, _ := strings.Cut(string(f.bytes), "data: ")
			plain[f.id] = strings.TrimSuffix(data, "\n\n")
		}
	}()
	type pair struct {
		id   int64
		data string
	}
	got := make([][]pair, 12)
	beats := make([]int, len(got))
	for i := range got {
		i := i
		wg.Add(1)
		go func() {
			defer wg.Done()
			time.Sleep(time.Duration(rand.Intn(2000)) * time.Millisecond)
			beats[i] = follow(func(id int64, data string) {
				got[i] = append(got[i], pair{id, data})
				if i%3 == 0 && rand.Intn(10) == 0 {
					time.Sleep(time.Second) // is behind
				}
			})
		}()
	}
	go func() { // some snapshots are large, and do not become small
		for ctx.Err() == nil {
			noise := make([]byte, rand.Intn(30<<10))
			rand.Read(noise)
			s.send(t, "PUT", "/dashboard/snapshot", fmt.Sprintf(`{"system_status":{"status":"online"},"noise":"%x"}`, noise), "Content-Type", "application/json")
			time.Sleep(time.Duration(rand.Intn(100)) * time.Millisecond)
		}
	}()
	wg.Wait()
	allBeats := 0
	for i, list := range got {
		allBeats += beats[i]
		if len(list) < 3 {
			t.Errorf("stream %d got %d snapshots", i, len(list))
		}
		var last int64
		compared := 0
		for n, p := range list {
			isCut := n == len(list)-1 && strings.HasPrefix(plain[p.id], p.data) // by the end of the test
			if want, ok := plain[p.id]; ok && p.data != want && !isCut {
				t.Errorf("stream %d: %d is %.200s, want %.200s", i, p.id, p.data, want)
			} else if ok {
				compared++
			}
			if p.id <= last {
				t.Errorf("stream %d: %d comes after %d", i, p.id, last)
			}
			last = p.id
		}
		if compared < len(list)*3/4 {
			t.Errorf("stream %d: of %d snapshots %d are known", i, len(list), compared)
		}
	}
	if n := s.debug(t).Skipped; n == 0 || allBeats < len(got) {
		t.Errorf("%d snapshots were skipped, %d heartbeats came", n, allBeats)
	}
}

// The forms of frames, without a server: each history of a stream that can be.
func TestKeyAndDeltaBlocksDecodeWhateverWasSkipped(t *testing.T) {
	s := testServer(t)
	for round := 0; round < 200; round++ {
		type stream struct {
			c    *SSEConnection
			want bytes.Buffer
			got  bytes.Buffer
		}
		var z compressor
		total := uint64(0)
		streams := make([]*stream, 5)
		for i := range streams {
			streams[i] = &stream{c: &SSEConnection{gzip: true}}
			streams[i].got.WriteString(gzipHead)
		}
		for id := int64(1); id < 30; id++ {
			f := &frame{id: id, bytes: eventBytes(id, []byte(formatSnapshot(figures{cpu: float64(rand.Intn(100))}, s.feed, time.Now())))}
			due := rand.Intn(3)
			total += uint64(due)
			for _, x := range streams {
				for n := due - rand.Intn(2); n > 0; n-- { // one may be missed
					x.got.Write(heartbeatBlock)
					x.want.Write(heartbeatBytes)
					x.c.heard++
				}
			}
			f.compress = sync.OnceFunc(func() { z.compress(f, total) })
			for _, x := range streams {
				if rand.Intn(5) == 0 {
					continue // it is skipped
				}
				x.got.Write(x.c.form(f))
				x.want.Write(f.bytes)
				x.c.last, x.c.heard = id, 0
			}
		}
		for i, x := range streams {
			r, err := gzip.NewReader(&x.got)
			if err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(r)
			if !errors.Is(err, io.ErrUnexpectedEOF) { // there is no trailer, as in a stream that is cut
				t.Errorf("reading ends with %v", err)
			}
			if !bytes.Equal(got, x.want.Bytes()) {
				t.Fatalf("stream %d decodes to\n%q\nwant\n%q", i, got, x.want.Bytes())
			}
		}
	}
}

func TestCompressedStreamHasAtMostFifteenPercentOfThePlainBytes(t *testing.T) {
	t.Parallel()
	s := startServer(t, "-interval", "100ms", "-heartbeat", "500ms")
	for i := 0; i < feedLength; i++ {
		s.add(newActivity(time.Now(), "info", fmt.Sprintf("Deployed v%d to production by somebody", rand.Intn(1e6))))
	}
	s.waitForSnapshot(t)
	plain := s.stream(t)
	dial(t, s.addr, gzipRequest).inflated(t).event(t)
	for i := 0; i < 30; i++ {
		plain.event(t)
	}
	var bytes [2]uint64
	for _, c := range s.debug(t).Streams {
		if c.Encoding == "gzip" {
			bytes[1] = c.Bytes / uint64(c.Events)
		} else {
			bytes[0] = c.Bytes / uint64(c.Events)
		}
	}
	if bytes[1] == 0 || bytes[1]*100 > bytes[0]*15 {
		t.Errorf("a snapshot takes %d bytes plain and %d compressed", bytes[0], bytes[1])
	}
}

func TestCompressedStreamEndsWithARetryToo(t *testing.T) {
	t.Parallel()
	s := startServer(t)
	s.waitForSnapshot(t)
	c := dial(t, s.addr, gzipRequest).inflated(t)
	c.event(t)
	s.stop()
	rest, err := io.ReadAll(c.r)
	if !errors.Is(err, io.ErrUnexpectedEOF) || !strings.HasPrefix(string(rest), "retry: ") || !strings.HasSuffix(string(rest), "\n\n") {
		t.Errorf("the stream ends with %q, %v", rest, err)
	}
}

// Nothing follows each heartbeat until it was read.
func TestCompressedHeartbeatWaitsForNothing(t *testing.T) {
	t.Parallel()
	s := startServer(t, "-interval", "1h", "-heartbeat", "1h")
	s.waitForSnapshot(t)
	c := dial(t, s.addr, gzipRequest).inflated(t)
	c.event(t)
	for i := 0; i < 3; i++ {
		s.beat(time.Now())
		if line := c.line(t); line != ": heartbeat\n" {
			t.Errorf("the next line is %q", line)
		}
		c.line(t)
	}
}

func TestNothingIsCompressedWhileNoCompressedStreamIsOpen(t *testing.T) {
	t.Parallel()
	s := startServer(t, "-interval", "50ms")
	s.stream(t).event(t)
	isCompressed := func() bool {
		s.zip.mu.Lock()
		defer s.zip.mu.Unlock()
		return s.zip.id == s.newest.Load().id
	}
	if isCompressed() {
		t.Error("a frame is compressed for nobody")
	}
	c := dial(t, s.addr, gzipRequest).inflated(t)
	c.event(t)
	eventually(t, "frames are compressed", isCompressed)
	c.Close()
	eventually(t, "frames are compressed no more", func() bool { return !isCompressed() })
}

func TestFrameIsCompressedOnceAndCountedForEachStream(t *testing.T) {
	var z compressor
	var streams []*SSEConnection
	for i := 0; i < 3; i++ {
		c, reader := connectionPair(t)
		go io.Copy(io.Discard, reader)
		c.gzip = true
		streams = append(streams, c)
	}
	times := 0
	for id := int64(1); id <= 2; id++ {
		f := &frame{id: id, bytes: eventBytes(id, []byte("x"))}
		f.compress = sync.OnceFunc(func() { times++; z.compress(f, 0) })
		for _, c := range streams {
			if err := c.offer(f, 0, time.Now(), true); err != nil || c.last != id || c.events != uint64(id) {
				t.Errorf("of %d frames %d were sent, the last is %d, %v", id, c.events, c.last, err)
			}
		}
	}
	if times != 2 {
		t.Errorf("2 frames were compressed %d times for 3 streams", times)
	}
}

func TestDeltaBuildsOnAFewHeartbeatsAtMost(t *testing.T) {
	var z compressor
	z.compress(&frame{id: 1, bytes: eventBytes(1, []byte("x"))}, 0)
	for _, beats := range []uint64{maxBeats, 1 << 20} { // of a year
		f := &frame{id: z.id + 1, bytes: eventBytes(z.id+1, []byte("x"))}
		c := &SSEConnection{gzip: true, last: z.id, heard: beats}
		f.compress = sync.OnceFunc(func() { z.compress(f, z.beats+beats) })
		form := c.form(f)
		if isDelta := bytes.Equal(form, f.delta); isDelta != (beats <= maxBeats) {
			t.Errorf("after %d heartbeats a delta is sent: %v", beats, isDelta)
		}
	}
}

func TestClientsThatAskForGzipThemselvesReadTheStream(t *testing.T) {
	t.Parallel()
	s := startServer(t, "-interval", "100ms", "-heartbeat", "300ms")
	resp, err := http.Get("http://" + s.addr + "/dashboard/stream") // net/http asks for gzip and decodes it
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if !resp.Uncompressed {
		t.Error("net/http got a plain stream")
	}
	c := &client{r: bufio.NewReader(resp.Body)}
	for i := 0; i < 10; i++ {
		if line, err := c.r.ReadString('\n'); err != nil {
			t.Fatalf("%q, %v", line, err)
		}
	}
	curl, err := exec.LookPath("curl")
	if err != nil {
		t.Skip("curl is not installed")
	}
	out, _ := exec.Command(curl, "-sN", "-m", "2", "--compressed", "http://"+s.addr+"/dashboard/stream").Output()
	if n := strings.Count(string(out), "\ndata: {\"system_status\""); n < 5 || !strings.Contains(string(out), "\n: heartbeat\n") {
		t.Errorf("curl --compressed shows %d snapshots of %q", n, out)
	}
}
