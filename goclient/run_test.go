package main

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
	"unicode/utf8"
	"unsafe"
)

const goodSnapshot = `{"system_status":{},"metrics":{},"activities":[],"timestamp":"15:04:05"}`

// Most of these tests wait rather than compute, so many may run at once.
func TestMain(m *testing.M) {
	flag.Parse()
	flag.Set("test.parallel", "40")
	os.Exit(m.Run())
}

func TestFlagsBadUsageExits2WithOneLine(t *testing.T) {
	for _, args := range [][]string{
		{"-clients", "0"}, {"-clients", "x"}, {"-clients", "100000000"}, {"-nonsense"}, {"extra"},
		{"-url", "localhost:3001/x"}, {"-url", "ftp://x/"}, {"-url", "http://[::1"},
		{"-stalled", "2"}, {"-stalled", "-1"}, {"-check", "all"}, {"-duration", "-1s"},
		{"-header", "nothing"}, {"-header", "A: b\r\nC: d"}, {"-token-file", "/nowhere"},
		{"-publish", "x"}, {"-rounds", "3"}, {"-publish", "http://localhost/", "-body", "/nowhere"},
		{"-forward", "x"}, {"-forward", "http://x/", "-doctor"}, {"-direct", "http://x/"},
		{"-url", "http://y/", "-forward", "http://x/", "-forward-method", "P T"},
		{"-url", "http://y/", "-forward", "http://x/", "-forward-method", "GET"},
		{"-url", "http://y/", "-forward", ""}, {"-url", "http://y/", "-forward-method", "POST"},
		{"-forward", "http://x/"},
		{"http://a/", "http://b/"}, {"-url", "http://a/", "http://b/"}, {"http://a/", "-nonsense"},
		{"-X", "P T"}, {"-X", ""}, {"-X", "HEAD"}, {"-d", "@/nowhere"}, {"-until", ""},
		{"-events", "-1"}, {"-repeat"}, {"-max-event-bytes", "0"}, {"-cacert", "/nowhere"},
		{"-d", "x", "-doctor"}, {"-until", "x", "-url", "http://y/", "-forward", "http://x/"},
		{"-event", "x"}, {"-url", "http://y/", "-forward", "http://x/", "-event", ""},
		{"-doctor", "-direct", "x"}, {"-pid", "999999999"}, {"-publish", ""},
		{"-doctor", "-direct", ""},
		{"-repeat", "-d", "x", "-once"}, {"-repeat", "-X", "GET"}, {"-header", "X Key: 1"},
		{"-header", "X-Key : 1"}, {"-header", "Kéy: 1"}, {"-header", ": 1"},
	} {
		code, out, errs := client(t, args...)
		if code != 2 || out != "" || !strings.HasPrefix(errs, "sse-client: ") ||
			strings.Count(errs, "\n") != 1 {
			t.Errorf("%q: got %d, %q, %q", args, code, out, errs)
		}
	}
}

// A flag that does nothing would promise something.
func TestFlagsWithoutEffectAreBadUsage(t *testing.T) {
	const always = "-url http://y/ -header A:b -k -json -duration 1s -heartbeat 1s " +
		"-max-event-bytes 9"
	const watch = "-X PUT|-d x|-until x|-events 1|-events 1 -repeat|-check json|-debug|" +
		"-clients 2|-rate 1|-stalled 1|-slow 1"
	const publish = "-method PUT|-gap 3s|-rounds 1|-body " // and a file
	const forward = "-forward-method POST|-event x"
	body := writeFile(t, "{}")

	for _, tt := range []struct{ mode, right, wrong string }{
		{"", watch + "|-once|-gzip", publish + body + "|" + forward + "|-direct http://x/"},
		{"-publish http://x/", watch + "|-once|-gzip|" + publish + body,
			forward + "|-direct http://x/"},
		{"-forward http://x/", "-once|-gzip|" + forward,
			watch + "|" + publish + body + "|-direct http://x/"},
		{"-doctor", "-direct http://x/", watch + "|-once|-gzip|" + publish + body + "|" + forward},
	} {
		mode := always + " " + tt.mode + " "
		for _, flags := range strings.Split(tt.right, "|") {
			if _, err := parseFlags(strings.Fields(mode+flags), io.Discard); err != nil {
				t.Errorf("%s%s: %v", mode, flags, err)
			}
		}
		for _, flags := range strings.Split(tt.wrong, "|") {
			_, err := parseFlags(strings.Fields(mode+flags), io.Discard)
			name, _, _ := strings.Cut(flags, " ")
			if err == nil || !strings.HasPrefix(err.Error(), name+" ") {
				t.Errorf("%s%s: got %v, want an error about %s", mode, flags, err, name)
			}
		}
	}
}

// Each flag has one line in the table or none, and each line has known flags.
func TestFlagsOfModesAreKnown(t *testing.T) {
	f := flag.NewFlagSet("", flag.ContinueOnError)
	new(options).define(f)
	seen := map[string]bool{}
	for _, line := range flagModes {
		for _, name := range line.flags {
			if f.Lookup(name) == nil || seen[name] {
				t.Errorf("-%s is unknown, or stands there twice", name)
			}
			seen[name] = true
		}
	}
}

func TestFlagsNameUnexpectedArgument(t *testing.T) {
	for args, want := range map[string]string{
		"http://a/ http://b/":          `"http://b/"`,
		"http://a/ -once b c":          `"b"`,
		"-url http://a/ http://b/ c":   `"http://b/"`,
		"http://b/ -url http://a/":     `"http://b/"`,
		"http://a/ http://b/ http://c": `"http://b/"`,
	} {
		_, err := parseFlags(strings.Fields(args), io.Discard)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %s named", args, err, want)
		}
	}
}

func TestHelpNamesFlagsAndJSONKeys(t *testing.T) {
	code, help, _ := client(t, "-h")
	if code != 0 {
		t.Errorf("exit status %d", code)
	}
	for _, file := range []string{"report.go", "meter.go", "histogram.go", "forward.go"} {
		source, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range regexp.MustCompile(`json:"(\w+)`).FindAllSubmatch(source, -1) {
			if !strings.Contains(help, string(m[1])) {
				t.Errorf("-h does not explain %s", m[1])
			}
		}
	}

	f := flag.NewFlagSet("", flag.ContinueOnError)
	new(options).define(f)
	f.VisitAll(func(defined *flag.Flag) {
		line := regexp.MustCompile(`(?m)^  (URL, |-h, |-d BODY, |)-` + defined.Name + `\b.*(\n {10}.*)*`)
		text := line.FindString(help)
		if text == "" {
			t.Errorf("-h does not explain -%s", defined.Name)
		}
		hasDefault := defined.DefValue != "" && defined.DefValue != "0" && defined.DefValue != "false"
		if hasDefault && !strings.Contains(text, shortDuration(defined.DefValue)) {
			t.Errorf("-h does not say that -%s is %s by default: %s", defined.Name,
				defined.DefValue, text)
		}
	})
}

// shortDuration gives 0s as 0.
func shortDuration(s string) string {
	if s == "0s" {
		return "0"
	}
	return s
}

// Each task has an example, and its flags are read.
func TestHelpFitsTerminalAndHasExamples(t *testing.T) {
	_, help, _ := client(t, "-h")
	for _, line := range strings.Split(help, "\n") {
		if utf8.RuneCountInString(line) > 80 {
			t.Errorf("over 80 columns: %s", line)
		}
	}

	example := regexp.MustCompile(`(?m)^([A-Z][A-Z ]+)\n    sse-client ((?:.*\\\n)*.*)$`)
	question := writeFile(t, "{}")
	tasks := 0
	for _, m := range example.FindAllStringSubmatch(help, -1) {
		tasks++
		line := strings.NewReplacer("\\\n", " ", "'", "", " URL", "", "@question.json",
			"@"+question).Replace(m[2])
		if _, err := parseFlags(strings.Fields(line), io.Discard); err != nil {
			t.Errorf("%s: %s: %v", m[1], line, err)
		}
	}
	if tasks != 7 {
		t.Errorf("%d tasks have an example", tasks)
	}
}

func TestFlagsStandBeforeAndAfterURL(t *testing.T) {
	url := serve(t, func(_ int, w http.ResponseWriter, r *http.Request) {
		begin(w, "data: a\n\n")
	})
	for _, args := range [][]string{
		{"-once", "-clients", "2", url},
		{url, "-once", "-clients", "2"},
		{"-once", url, "-clients", "2"},
		{"-once", "-clients", "2", "-url", url},
	} {
		if s := clientJSON(t, 0, args...); s.Events != 2 || s.URL != url {
			t.Errorf("%q: got %d events of %s", args, s.Events, s.URL)
		}
	}
	if _, err := parseFlags([]string{url, "-forward", url}, io.Discard); err != nil {
		t.Errorf("-forward with the URL as an argument: %v", err)
	}
}

// Each problem is found where it is looked for, and makes the exit status 1; nothing else does.
func TestCheckFindsEachProblem(t *testing.T) {
	bad := "id: 1\ndata: " + goodSnapshot + "\n\nid: 2\ndata: {\"system_status\":1,\"metrics\":2}\n\n" +
		"id: 3\ndata: {]\n\nid: 3\ndata: " + goodSnapshot + "\n\nid: 1\nevent: ping\ndata: now\n\n"
	text := "id: 9\ndata: hello\n\nid: a:1\ndata: {\"a\":1}\n\nid: a:0\ndata: {\"metrics\":1}\n\n"
	for _, tt := range []struct{ check, stream, want string }{
		{"none", bad, ""},
		{"ids", bad, "2 " + wrongID},
		{"json", bad, "2 " + wrongJSON + ", 2 " + wrongID},
		{"snapshot", bad, "1 " + wrongJSON + ", 2 " + wrongID + ", 1 " + wrongKeys},
		{"auto", bad, "1 " + wrongJSON + ", 2 " + wrongID + ", 1 " + wrongKeys},
		{"auto", text, ""},
		{"ids", text, ""},
		{"json", text, "1 " + wrongJSON},
		{"snapshot", text, "1 " + wrongJSON + ", 2 " + wrongKeys},
		{"json", "data: {]\n\ndata: {]\n\n", "2 " + wrongJSON},
		{"snapshot", "data: []\n\n", "1 " + wrongKeys},
		{"auto", "data: " + strings.Repeat("x", defaultMaxEvent+1) + "\n\ndata: a\n\n", "1 " + wrongSize},
	} {
		stream := tt.stream
		url := serve(t, func(_ int, w http.ResponseWriter, r *http.Request) { begin(w, stream) })
		code := 0
		if tt.want != "" {
			code = 1
		}
		if got := problems(clientJSON(t, code, "-url", url, "-once", "-check",
			tt.check)); got != tt.want {
			t.Errorf("-check %s: got %q, want %q", tt.check, got, tt.want)
		}
	}
}

func TestCheckAllowsRepeatedLastIDOnly(t *testing.T) {
	url := serve(t, func(n int, w http.ResponseWriter, r *http.Request) {
		id := []int{5, 5, 4}
		if n == len(id) {
			w.WriteHeader(http.StatusNoContent)
			return
		}
		begin(w, fmt.Sprintf("retry: 10\nid: %d\ndata: a\n\n", id[n]))
	})
	s := clientJSON(t, 1, "-url", url, "-check", "ids")
	if got, want := problems(s), "1 "+wrongID; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestCheckReportsUnopenedStream(t *testing.T) {
	url := rawServe(t, nil)
	url = strings.Replace(url, "127.0.0.1", "127.0.0.2", 1) // nobody listens there
	s := clientJSON(t, 1, "-url", url, "-once")
	if got := problems(s); got != "1 "+wrongUnopened ||
		s.ErrorKinds["connecting: connection refused"] != 1 {
		t.Errorf("got %s, %v", got, s.ErrorKinds)
	}
}

func TestCheckReportsSilentStream(t *testing.T) {
	t.Parallel()
	url := serve(t, func(_ int, w http.ResponseWriter, r *http.Request) {
		begin(w, ": heartbeat\n\n")
		<-r.Context().Done()
	})
	for heartbeat, want := range map[string]string{"50ms": "2 " + wrongSilent, "1m": "", "0": ""} {
		heartbeat, want := heartbeat, want
		t.Run(heartbeat, func(t *testing.T) {
			t.Parallel()
			code := 0
			if want != "" {
				code = 1
			}
			s := clientJSON(t, code, "-url", url, "-duration", "1s", "-clients", "2",
				"-heartbeat", heartbeat)
			if got := problems(s); got != want {
				t.Errorf("got %q, want %q", got, want)
			}
		})
	}
}

func TestDebugPrintsEventsAndHeartbeats(t *testing.T) {
	url := serve(t, func(_ int, w http.ResponseWriter, r *http.Request) {
		begin(w, "id: 4\ndata: {\"a\":1}\n\n: heartbeat\n\nevent: tick\ndata: \x1b[2J\ndata: b\n\n")
	})
	_, out, errs := client(t, "-url", url, "-once", "-debug")
	for _, want := range []string{`event     id=4 data={"a":1}`, `heartbeat : heartbeat`,
		`event     id=4 name=tick data="\x1b[2J\nb"`, `close     ended by the server`} {
		if !regexp.MustCompile(`(?m)^\d\d:\d\d:\d\d\.\d{3} ` + regexp.QuoteMeta(want) +
			`$`).MatchString(out) {
			t.Errorf("no line %q in\n%s", want, out)
		}
	}
	if errs != "" || !strings.Contains(out, "wrong         nothing") {
		t.Errorf("got %s%s", out, errs)
	}
}

func TestProgressIsPlainWithoutTerminal(t *testing.T) {
	m := newMeter(newChecker("auto"), 0, 1)
	m.total = totals{Open: 3, Events: 40, Heartbeats: 5, Errors: 6}
	done, r, w := make(chan struct{}), bytes.Buffer{}, new(lockedWriter)
	w.w = &r
	finished := make(chan struct{})
	go func() {
		m.progress(w, 10*time.Millisecond, done)
		close(finished)
	}()
	for w.lines() < 2 {
		time.Sleep(time.Millisecond)
	}
	close(done)
	<-finished
	want := "0s: 3 streams open, 40 events (4000/s), 6 errors, 5 heartbeats\n"
	if line, rest, _ := strings.Cut(r.String(), "\n"); line+"\n" != want ||
		strings.Contains(rest, "\r") {
		t.Errorf("got %q, want %q", r.String(), want)
	}
}

func TestProgressNeverWraps(t *testing.T) {
	t.Parallel()
	text := progressText(95*time.Second, &totals{Open: 10000, Events: 1 << 60}, 1e6)
	if !strings.HasPrefix(text, "1m35s: 10000 streams open") {
		t.Errorf("got %s", text)
	}
	for _, width := range []int{200, 80, 20, 1, 0} {
		master, slave := openTerminal(t, width)
		m := newMeter(newChecker("auto"), 0, 1)
		m.total = totals{Open: 10000, Events: 1 << 60, Heartbeats: 1 << 60}
		done := make(chan struct{})
		finished := make(chan struct{})
		go func() {
			defer close(finished)
			m.progress(slave, time.Hour, done)
		}()

		var out []byte
		buf := make([]byte, 4096)
		for bytes.Count(out, []byte(eraseLine)) < 3 {
			n, err := master.Read(buf)
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, buf[:n]...)
		}
		close(done)
		<-finished

		if width == 0 { // not known
			width = 80
		}
		for _, line := range strings.Split(string(out), eraseLine) {
			if len(line) >= width || strings.Contains(line, "\n") {
				t.Errorf("%d columns: %d are written: %q", width, len(line), line)
			}
		}
	}
}

// openTerminal opens a terminal so many columns wide.
func openTerminal(t *testing.T, columns int) (master, slave *os.File) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Skip("there are no terminals here: ", err)
	}
	t.Cleanup(func() { master.Close() })
	var number, locked int32
	size := [4]uint16{24, uint16(columns)}
	for request, to := range map[uintptr]unsafe.Pointer{
		ioctlUnlock: unsafe.Pointer(&locked),
		ioctlNumber: unsafe.Pointer(&number),
		ioctlSize:   unsafe.Pointer(&size),
	} {
		_, _, errno := syscall.Syscall(syscall.SYS_IOCTL, master.Fd(), request, uintptr(to))
		if errno != 0 {
			t.Skip("there are no terminals like those of Linux here: ", errno)
		}
	}
	slave, err = os.OpenFile(fmt.Sprint("/dev/pts/", number), os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Skip("the terminal cannot be opened: ", err)
	}
	t.Cleanup(func() { slave.Close() })
	return master, slave
}

// Requests of Linux, ioctl_tty(2).
const (
	ioctlUnlock = 0x40045431 // TIOCSPTLCK
	ioctlNumber = 0x80045430 // TIOCGPTN
	ioctlSize   = 0x5414     // TIOCSWINSZ
)

// The spread of an event counts the streams that were open when it appeared, and no others.
func TestSpreadCountsOpenStreamsOnly(t *testing.T) {
	m := newMeter(newChecker("auto"), 0, 3)
	viewers := []*viewer{{m: m, n: 0}, {m: m, n: 1}, {m: m, n: 2}}
	viewers[0].opened(&conn{start: time.Now()})
	viewers[1].opened(&conn{start: time.Now()})
	t0 := time.Now().Add(time.Millisecond)
	ev := &event{id: []byte("1"), hasID: true, data: []byte("a")}
	viewers[0].event(ev, t0)
	viewers[1].event(ev, t0.Add(80*time.Millisecond))
	viewers[2].opened(&conn{start: time.Now()})
	viewers[2].since = t0.Add(time.Second)
	viewers[2].event(ev, t0.Add(2*time.Second)) // the newest event, because the stream is new
	for i := 2; i < 2+2*keepIDs; i++ {          // none of these is seen twice
		ev.id = []byte(strconv.Itoa(i))
		viewers[0].event(ev, t0.Add(time.Duration(i)*time.Second))
	}
	m.finish(viewers, t0)
	s := m.summary(time.Second)
	if m.spread.n != 1 || s.Spread.Max != 80 {
		t.Errorf("got %d spreads, %+v; want one of 80 ms", m.spread.n, s.Spread)
	}
	if len(m.recent) != 0 || s.Gaps.P50 < 980 || s.Gaps.P50 > 1020 {
		t.Errorf("got %d ids, gaps %+v", len(m.recent), s.Gaps)
	}
}

func TestAwayCountsFromEventToEvent(t *testing.T) {
	m := newMeter(newChecker("auto"), 0, 1)
	v := &viewer{m: m}
	t0 := time.Now()
	ev := &event{data: []byte("a")}
	v.opened(&conn{start: t0})
	v.event(ev, t0)
	v.event(ev, t0.Add(time.Second))
	v.closed(io.EOF)
	v.opened(&conn{start: t0}) // a connection without an event
	v.closed(io.EOF)
	v.opened(&conn{start: t0})
	v.event(ev, t0.Add(4*time.Second))
	v.event(ev, t0.Add(5*time.Second))
	if s := m.summary(time.Second); m.away.n != 1 || s.Away.Max != 3000 {
		t.Errorf("got %d times away, %+v; want one of 3 s", m.away.n, s.Away)
	}
}

func TestPublishMeasuresEachStream(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	s := clientJSON(t, 0, "-url", h.url, "-clients", "20", "-publish", h.url+"/pub", "-rounds", "4",
		"-gap", "20ms", "-body", writeFile(t, "the body"), "-header", "X-Key: 1")
	if s.Rounds != 4 || *s.Mixed != 0 || *s.Missed != 0 || s.Events != 20+4*20 {
		t.Errorf("got %d rounds, %d mixed, %d missed, %d events", s.Rounds, *s.Mixed, *s.Missed,
			s.Events)
	}
	if d, l := s.Delivery, s.Last; d == nil || l == nil || d.Max != l.Max || d.P50 > l.Max {
		t.Errorf("got %+v and %+v", s.Delivery, s.Last)
	}
	if got, want := h.requests(), strings.Repeat("POST the body 1 application/json\n",
		4); got != want {
		t.Errorf("the server got\n%s", got)
	}
}

// Without the publishes that a frozen server delays, it would look well most of the time.
func TestPublishCountsWhatFrozenServerDelays(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	const frozen = 500 * time.Millisecond
	var requests atomic.Int32
	trigger := serve(t, func(_ int, w http.ResponseWriter, r *http.Request) {
		if requests.Add(1) == 10 {
			time.Sleep(frozen)
		}
		h.send()
	})
	s := clientJSON(t, 0, "-url", h.url, "-publish", trigger, "-rounds", "50", "-gap", "20ms")
	if *s.Late < 15 {
		t.Errorf("%d of 50 publishes came late, want about 25: 500 ms are 25 gaps", *s.Late)
	}
	if least := millis(frozen * 3 / 10); s.Delivery.P90 < least {
		t.Errorf("got %+v, want 100 ms and more in a tenth of all, or more", *s.Delivery)
	}
	if s.Delivery.Max < millis(frozen) || s.Last.P90 < s.Delivery.P90 {
		t.Errorf("got %+v and, for the last stream, %+v", *s.Delivery, *s.Last)
	}
}

func TestPublishMeasuresFromWhenItWasDue(t *testing.T) {
	m := newMeter(newChecker("none"), 0, 1)
	v := &viewer{m: m}
	v.opened(&conn{})
	for i := 0; i < 2; i++ {
		due := time.Now().Add(-time.Second)
		m.beginRound(due, i == 1)
		v.event(&event{data: []byte("a")}, due.Add(1500*time.Millisecond))
		m.endRound(nil)
	}
	if p := &m.published; p.delivery.max != 1500*time.Millisecond || p.late != 1 || p.delivery.n != 2 {
		t.Errorf("%d deliveries, %v at most, %d late", p.delivery.n, p.delivery.max, p.late)
	}
}

func TestSummaryShowsHowFineItsNumbersAre(t *testing.T) {
	moments := func(streams int) *summary {
		s := &summary{Streams: streams, Wrong: []*finding{}}
		s.OpenedOnce = streams
		start := moment{client: usage{rss: 1 << 20}, server: usage{rss: 1 << 20}}
		settled := moment{client: usage{rss: 2 << 20}, server: usage{rss: 9 << 20, cpu: 1}}
		end := moment{client: usage{cpu: 1}, server: usage{cpu: 3}, events: 4000, bytes: 8000}
		s.use(1, start, settled, end)
		return s
	}
	s := moments(500)
	if *s.CPUStep != 2.5 || *s.ConnectStep != 20 { // a tick is 10 ms
		t.Errorf("steps of %v µs a delivery and %v µs a stream", *s.CPUStep, *s.ConnectStep)
	}
	var out bytes.Buffer
	s.write(&out)
	for _, want := range []string{"500.00 µs CPU a delivery, in steps of 2.50", "in steps of 20.0",
		"note          memory: with under 1000 streams"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in\n%s", want, out.String())
		}
	}
	if notes := moments(1000).Notes; len(notes) != 0 {
		t.Errorf("with 1,000 streams: %q", notes)
	}
}

func TestPublishLeavesOutMixedRounds(t *testing.T) {
	m := newMeter(newChecker("auto"), 0, 1)
	v := &viewer{m: m}
	v.opened(&conn{start: time.Now()})
	for round, ids := range [][]string{{"1"}, {"2", "3"}, {"4"}} {
		start := beginRound(m)
		for i, id := range ids {
			ev := &event{id: []byte(id), hasID: true}
			v.event(ev, start.Add(time.Duration(round+i+1)*time.Millisecond))
		}
		m.endRound(nil)
	}
	if p := &m.published; p.rounds != 3 || p.mixed != 1 || p.missed != 0 || p.last.n != 2 {
		t.Errorf("%d rounds, %d mixed, %d missed, %d measured", p.rounds, p.mixed, p.missed,
			p.last.n)
	}
}

// beginRound begins a round that is due now.
func beginRound(m *meter) time.Time {
	m.beginRound(time.Now(), false)
	m.round.due = m.round.start
	return m.round.start
}

// A server that hangs until the run ends is not well.
func TestPublishCountsWhatEndBreaksOff(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		fourth func(r *http.Request)
		text   string
	}{
		"no answer":   {func(r *http.Request) { <-r.Context().Done() }, "no answer"},
		"no delivery": {func(r *http.Request) {}, "0 of 1 streams reached"},
	} {
		tt := tt
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHub(t)
			trigger := serve(t, func(n int, w http.ResponseWriter, r *http.Request) {
				if n == 3 {
					tt.fourth(r)
					return
				}
				h.send()
			})
			s := clientJSON(t, 1, "-url", h.url, "-publish", trigger, "-gap", "20ms",
				"-duration", "6s")
			if got := problems(s); got != "1 "+wrongUnfinished {
				t.Fatalf("wrong is %q, want one %s", got, wrongUnfinished)
			}
			if got := s.Wrong[0].Example; !strings.HasPrefix(got, "publish 4: "+tt.text+" in ") {
				t.Errorf("the example is %q", got)
			}
			if s.Rounds != 4 || *s.Unfinished != 1 || *s.Missed != 0 {
				t.Errorf("%d publishes, %d broken off, %d missed", s.Rounds, *s.Unfinished, *s.Missed)
			}
		})
	}
}

// Most runs end within a publish that is well.
func TestPublishEndsWellWithinOne(t *testing.T) {
	for age, want := range map[time.Duration]int{time.Second / 2: 0, 2 * time.Second: 1} {
		m := newMeter(newChecker("none"), 0, 1)
		v := &viewer{m: m}
		v.opened(&conn{start: time.Now()})
		start := beginRound(m)
		v.event(&event{data: []byte("a")}, start.Add(time.Millisecond))
		m.endRound(nil)

		m.breakRound(beginRound(m).Add(age))
		m.judgeRounds(0)
		p := &m.published
		if len(m.wrong) != want || p.rounds != 2 || p.unfinished != 1 || p.delivery.n != 1 {
			t.Errorf("after %v: %d problems, %d rounds, %d broken off, %d deliveries", age,
				len(m.wrong), p.rounds, p.unfinished, p.delivery.n)
		}
	}
}

// What ended too early did not measure what it was to measure.
func TestPublishFewerThanRoundsIsWrong(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	for _, rounds := range []string{"0", "3"} {
		rounds := rounds
		t.Run(rounds, func(t *testing.T) {
			t.Parallel()
			s := clientJSON(t, 1, "-url", h.url, "-publish", h.url+"/pub", "-rounds", rounds,
				"-duration", "500ms") // the first publish comes later
			if got := problems(s); got != "1 "+wrongRounds {
				t.Errorf("wrong is %q, want one %s", got, wrongRounds)
			}
		})
	}
}

// A publish is late among those that are counted.
func TestPublishIsLateOnlyIfCounted(t *testing.T) {
	m := newMeter(newChecker("none"), 0, 1)
	m.beginRound(time.Now(), true)
	if p := &m.published; p.late != 0 || p.rounds != 0 {
		t.Errorf("while it runs: %d late of %d", p.late, p.rounds)
	}
	m.breakRound(time.Now())
	if p := &m.published; p.late != 1 || p.rounds != 1 {
		t.Errorf("when it is over: %d late of %d", p.late, p.rounds)
	}
}

// publishOnce sends one publish as these flags ask for.
func publishOnce(t *testing.T, args ...string) error {
	t.Helper()
	o, err := parseFlags(args, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	return newPublisher(o).publish(context.Background())
}

func TestPublishSendsHostOfHeader(t *testing.T) {
	hosts := make(chan string, 1)
	edge := serve(t, func(_ int, w http.ResponseWriter, r *http.Request) {
		hosts <- r.Host
	})
	if err := publishOnce(t, "-publish", edge, "-header", "Host: example.com"); err != nil {
		t.Fatal(err)
	}
	if got := <-hosts; got != "example.com" {
		t.Errorf("got Host %q", got)
	}
}

func TestPublishReportsFailure(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	s := clientJSON(t, 1, "-url", h.url, "-publish", h.url+"/none", "-rounds", "2", "-gap", "1ms")
	if got, want := problems(s), "2 "+wrongPost; got != want || *s.Missed != 0 {
		t.Errorf("got %q, want %q", got, want)
	}
}

// What came before the request, or a second time, is no delivery; a missing one is counted.
func TestPublishCountsDeliveredAndMissed(t *testing.T) {
	m := newMeter(newChecker("none"), 0, 2)
	a, b := &viewer{m: m}, &viewer{m: m, n: 1}
	a.opened(&conn{start: time.Now()})
	b.opened(&conn{start: time.Now()})
	old := &event{id: []byte("1"), hasID: true}
	a.event(old, time.Now())
	start := beginRound(m)
	b.event(old, start.Add(time.Second)) // a saw it before the request
	fresh := &event{id: []byte("2"), hasID: true}
	a.event(fresh, start.Add(30*time.Millisecond))
	a.event(fresh, start.Add(time.Second))
	m.endRound(nil)
	p := &m.published
	if p.missed != 1 || p.mixed != 0 || p.delivery.n != 1 || p.last.max != 30*time.Millisecond {
		t.Errorf("got %d missed, %d mixed, %d deliveries, last %v", p.missed, p.mixed,
			p.delivery.n, p.last.max)
	}
	beginRound(m)
	start = start.Add(time.Minute)
	m.round.start, m.round.due = start, start
	b.event(fresh, start.Add(time.Millisecond))
	a.event(fresh, start.Add(20*time.Millisecond)) // the id does not tell events apart here
	m.endRound(nil)
	if p.missed != 2 || p.last.max != 30*time.Millisecond || p.delivery.n != 2 {
		t.Errorf("got %d missed, %d deliveries, last %v", p.missed, p.delivery.n, p.last.max)
	}
}

func TestPIDMeasuresServer(t *testing.T) {
	t.Parallel()
	if runtime.GOOS != "linux" {
		t.Skip("needs /proc")
	}
	h := newHub(t)
	s := clientJSON(t, 0, "-url", h.url, "-publish", h.url+"/pub", "-rounds", "2", "-gap", "1ms",
		"-pid", strconv.Itoa(os.Getpid()))
	for name, x := range map[string]*float64{"rss_before_mib": s.RSSBefore,
		"rss_after_mib":      s.RSSAfter,
		"rss_per_stream_kib": s.RSSPerStream, "cpu_us_per_delivery": s.DeliveryCPU,
		"client_cpu_us_per_delivery": s.ClientCPU, "bytes_per_delivery": s.BytesPer} {
		if x == nil {
			t.Errorf("no %s", name)
		}
	}
	if s.RSSBefore != nil && *s.RSSBefore < 1 {
		t.Errorf("this process has %v MiB", *s.RSSBefore)
	}
}

// A hub is a server whose /pub sends an event to all streams.
type hub struct {
	url   string
	mu    sync.Mutex
	id    int
	chans map[chan string]bool
	got   strings.Builder
}

func newHub(t *testing.T) *hub {
	h := &hub{id: 1, chans: map[chan string]bool{}}
	h.url = serve(t, func(_ int, w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path == "/stream":
			h.stream(w, r)
		case strings.HasSuffix(r.URL.Path, "/pub"):
			body, _ := io.ReadAll(r.Body)
			h.mu.Lock()
			fmt.Fprintln(&h.got, r.Method, string(body), r.Header.Get("X-Key"),
				r.Header.Get("Content-Type"))
			h.mu.Unlock()
			h.send()
		default:
			http.Error(w, "no such path", http.StatusNotFound)
		}
	})
	return h
}

func (h *hub) stream(w http.ResponseWriter, r *http.Request) {
	c := make(chan string, 10)
	h.mu.Lock()
	h.chans[c] = true
	h.mu.Unlock()
	begin(w, "id: 1\ndata: hello\n\n")
	for {
		select {
		case s := <-c:
			begin(w, s)
		case <-r.Context().Done():
			return
		}
	}
}

func (h *hub) send() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.id++
	for c := range h.chans {
		c <- fmt.Sprintf("id: %d\ndata: x\n\n", h.id)
	}
}

func (h *hub) requests() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.got.String()
}

var discardLog = log.New(io.Discard, "", 0)

func mustURL(t *testing.T, s string) *url.URL {
	t.Helper()
	u, err := url.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

func mustTarget(t *testing.T, s string) *target {
	t.Helper()
	to, err := newTarget(s, nil, false)
	if err != nil {
		t.Fatal(err)
	}
	return to
}

func writeFile(t *testing.T, text string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

type lockedWriter struct {
	mu sync.Mutex
	w  *bytes.Buffer
}

func (l *lockedWriter) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(p)
}

func (l *lockedWriter) lines() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return bytes.Count(l.w.Bytes(), []byte("\n"))
}
