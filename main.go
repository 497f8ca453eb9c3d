// Command sse-server streams a live dashboard of this host over Server-Sent Events.
//
//	GET /                        the page that shows it
//	GET /dashboard/stream        the stream: one JSON snapshot each interval
//	GET /dashboard/trigger-test  adds a test activity and broadcasts at once
//	POST /dashboard/activities   adds an activity and broadcasts at once
//	PUT /dashboard/snapshot      takes the place of this host's own snapshots; DELETE ends that
//	GET /dashboard/history       the figures of the last ten minutes as JSON
//	GET /dashboard/debug         the server's state as JSON
//	GET /metrics                 the same for Prometheus
//	GET /health                  OK
//
// Each setting is a flag and an environment variable (-interval, SSE_INTERVAL); -h lists them.
// SIGINT and SIGTERM end the server and every stream within two seconds, a second one at once.
//
// The file reads in the order in which data flows: settings, life cycle, SSEServer and its
// loops, sampler, snapshot, frame, broadcast, SSEConnection, handlers, parsers.
package main

import (
	"bytes"
	"compress/flate"
	"context"
	"crypto/sha256"
	"crypto/subtle"
	_ "embed"
	"encoding/base64"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math"
	"math/rand"
	"mime"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/signal"
	"regexp"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unicode"
	"unicode/utf8"
	"unsafe"
)

// version is stamped by build.sh (-ldflags "-X main.version=…").
var version = "dev"

//go:embed dashboard.html
var page string

const (
	firstDelay    = 500 * time.Millisecond  // start to first snapshot: rates need two readings
	minInterval   = 50 * time.Millisecond   // between broadcasts: at most twenty a second
	sampleEvery   = 2 * time.Second         // between readings where the interval is 0
	historySpan   = 10 * time.Minute        // of figures that /dashboard/history gives
	historyStep   = 1900 * time.Millisecond // between two of them, at the least
	diskPatience  = 10 * time.Second        // an older answer of statfs(2) is no figure any more
	givenPatience = 10 * time.Second        // a snapshot from elsewhere is stale after that
	probeTimeout  = 2 * time.Second         // for one GET of the probed URL
	retryEvery    = 100 * time.Millisecond  // between tries of a stream that is behind
	sweepEvery    = 1500 * time.Millisecond // between looks whether a client is gone
	stallLimit    = 30 * time.Second        // a stream that takes nothing for so long is closed
	headerTimeout = 5 * time.Second         // for a request's head
	shortTimeout  = 10 * time.Second        // for a whole request; streams are out of its sight
	stopPatience  = 800 * time.Millisecond  // for short requests at shutdown
	flushPatience = 300 * time.Millisecond  // for the log's reader at the end

	vanishLimit  = 45000    // ms, TCP_USER_TIMEOUT: not acknowledged for so long
	maxHeader    = 16 << 10 // bytes of request line and headers
	sendBuffer   = 64 << 10 // bytes, SO_SNDBUF of a stream
	recvBuffer   = 4 << 10  // bytes, SO_RCVBUF of a stream: what a client sends is thrown away
	maxLog       = 16 << 10 // lines of the log that wait for its reader
	maxUserAgent = 128      // characters kept of a User-Agent header
	maxActivity  = 4 << 10  // bytes of a posted activity
	maxMessage   = 500      // characters of its message
	maxSnapshot  = 64 << 10 // bytes of a snapshot from elsewhere
	maxBeats     = 100      // heartbeats since the last frame that a delta may build on
	maxListed    = 100      // open streams that /dashboard/debug lists
	feedLength   = 10       // activities in a snapshot, after "Dashboard updated"
	perWorker    = 256      // streams that make one more worker of a fan-out pay
	testMessage  = "Test broadcast"
	metricsType  = "text/plain; version=0.0.4" // Prometheus' text format

	notOpen, isClosed = -1, -2 // a stream's descriptor before and after

	// Linux's numbers that package syscall does not name; see tcp(7) and send(2).
	onLinux                         = runtime.GOOS == "linux"
	tcpUserTimeout, tcpNotsentLowat = 18, 25
	msgTrunc, msgEOR, msgNoSignal   = 0x20, 0x80, 0x4000
)

// settings are what flags and SSE_… variables say; -h explains each.
type settings struct {
	addr, probe, disk, logFormat string
	token                        string // "": none is asked for
	interval, heartbeat          time.Duration
	origins                      []string
	maxStreams                   int
	edge                         bool // shows snapshots from elsewhere only
	logLevel                     slog.Level
	inForce                      map[string]string // by flag name
}

// parseSettings reads the SSE_… variables that are not empty, then the flags. Its error is one
// line; after -h and -version it is flag.ErrHelp, and what they ask for went to stdout.
func parseSettings(args []string, getenv func(string) string) (s settings, err error) {
	must := func(ok bool, text string, values ...any) {
		if err == nil && !ok {
			err = fmt.Errorf(text, values...)
		}
	}
	fs := flag.NewFlagSet("sse-server", flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	fs.StringVar(&s.addr, "addr", ":3001", "`address` to listen on; port 0 takes a free one")
	fs.DurationVar(&s.interval, "interval", 2*time.Second, "between snapshots; 0: when triggered")
	fs.DurationVar(&s.heartbeat, "heartbeat", 30*time.Second, "between heartbeats")
	fs.StringVar(&s.probe, "probe", "", "`URL` that response_time measures (default own /health)")
	fs.StringVar(&s.disk, "disk", "/", "`path` in the file system whose use is shown")
	origins := fs.String("origins", "http://localhost:3000,http://127.0.0.1:3000",
		"other `origins` whose pages may use the server, with commas between")
	var descriptors syscall.Rlimit // Go raises the soft limit to the hard one at start
	syscall.Getrlimit(syscall.RLIMIT_NOFILE, &descriptors)
	limit := int(min(uint64(descriptors.Cur), 1<<20))
	fs.IntVar(&s.maxStreams, "max-streams", limit-max(limit/20, 64), "most streams open")
	fs.BoolVar(&s.edge, "edge", false, "show snapshots from elsewhere only, never this host's own")
	tokenFile := fs.String("token-file", "", "`path` of a file with the token that requests need")
	fs.StringVar(&s.logFormat, "log-format", "text", "text or json")
	fs.TextVar(&s.logLevel, "log-level", slog.LevelInfo, "debug, info, warn or error")
	fs.VisitAll(func(f *flag.Flag) {
		name := "SSE_" + strings.ToUpper(strings.ReplaceAll(f.Name, "-", "_"))
		f.Usage += " [" + name + "]"
		if v := getenv(name); v != "" {
			e := f.Value.Set(v)
			must(e == nil, "invalid value %q for %s: %w", v, name, e)
		}
	})
	showVersion := fs.Bool("version", false, "print the version") // SSE_VERSION is none of ours
	switch e := fs.Parse(args); {
	case e == nil && *showVersion:
		fmt.Println("sse-server", version)
		return s, flag.ErrHelp
	case e == flag.ErrHelp:
		fmt.Println("sse-server: a live dashboard of this host over Server-Sent Events. Settings:")
		fs.SetOutput(os.Stdout)
		fs.PrintDefaults()
		return s, e
	case e != nil:
		return s, e
	}
	s.origins = strings.FieldsFunc(*origins, func(r rune) bool { return r == ',' || r == ' ' })
	s.inForce = map[string]string{}
	fs.VisitAll(func(f *flag.Flag) { s.inForce[f.Name] = f.Value.String() })
	delete(s.inForce, "version")
	s.token = strings.TrimSpace(getenv("SSE_TOKEN"))
	if *tokenFile != "" {
		text, fileErr := os.ReadFile(*tokenFile)
		s.token = strings.TrimSpace(string(text))
		must(fileErr == nil, "reading -token-file: %w", fileErr)
		must(s.token != "", "-token-file %s is empty", *tokenFile)
	}
	_, port, addrErr := net.SplitHostPort(s.addr)
	_, portErr := net.LookupPort("tcp", port)
	must(fs.NArg() == 0, "argument %q is no flag: -h lists the settings", fs.Arg(0))
	must(addrErr == nil && portErr == nil, "-addr %q is neither host:port nor :port", s.addr)
	must(s.interval == 0 || s.interval >= minInterval, "-interval %v is under 50ms", s.interval)
	must(s.heartbeat >= 2*retryEvery, "-heartbeat %v is under 200ms", s.heartbeat)
	must(s.probe == "" || originOf(s.probe) != "", "-probe %q is no http or https URL", s.probe)
	must(s.disk != "", "-disk %q is no path: name one such as /", s.disk)
	must(!slices.ContainsFunc(s.origins, func(o string) bool { return o != originOf(o) }),
		"-origins %q are not all like https://example.com:8080", s.origins)
	must(s.logFormat == "text" || s.logFormat == "json",
		"-log-format %q is neither text nor json", s.logFormat)
	must(s.maxStreams > 0 && s.maxStreams <= limit,
		"-max-streams %d is under 1 or over what ulimit -n allows", s.maxStreams)
	return s, err
}

func main() {
	signal.Ignore(syscall.SIGPIPE) // neither a dead client nor a dead log pipe ends the server
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(50) // requests leave garbage, open streams none: see Measurements
	}
	s, err := parseSettings(os.Args[1:], os.Getenv)
	status := 2
	if err == nil {
		status = 1
		ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
		context.AfterFunc(ctx, stop) // a second signal has its default effect
		err = run(ctx, s)
	}
	if err != nil && err != flag.ErrHelp {
		fmt.Fprintln(os.Stderr, "sse-server:", err)
		os.Exit(status)
	}
}

// run serves until ctx is done or the listener fails.
func run(ctx context.Context, set settings) error {
	l, err := net.Listen("tcp", set.addr)
	if err != nil {
		return fmt.Errorf("%w: choose another -addr", err)
	}
	w := newLogWriter(os.Stderr)
	defer func() { // waits until the log is written, but not long
		for end := time.Now().Add(flushPatience); w.waiting.Load() > 0 && time.Now().Before(end); {
			time.Sleep(time.Millisecond)
		}
	}()
	opts := &slog.HandlerOptions{Level: set.logLevel}
	formats := map[string]slog.Handler{
		"text": slog.NewTextHandler(w, opts), "json": slog.NewJSONHandler(w, opts)}
	return newSSEServer(set, l, slog.New(formats[set.logFormat])).serve(ctx)
}

// A logWriter writes in the background, so that a log that nobody reads holds nothing up. When
// maxLog lines wait, further ones are dropped and counted.
type logWriter struct {
	lines            chan []byte // capacity maxLog
	waiting, dropped atomic.Int64
}

func newLogWriter(out io.Writer) *logWriter {
	w := &logWriter{lines: make(chan []byte, maxLog)}
	go func() { // ends with the process: out may block for ever
		for b := range w.lines {
			if n := w.dropped.Swap(0); n > 0 {
				b = fmt.Appendf(b, "%d log lines were dropped: nobody read them\n", n)
			}
			out.Write(b)
			w.waiting.Add(-1)
		}
	}()
	return w
}

func (w *logWriter) Write(b []byte) (int, error) {
	select {
	case w.lines <- slices.Clone(b):
		w.waiting.Add(1)
	default:
		w.dropped.Add(1)
	}
	return len(b), nil
}

// An SSEServer owns the listener, the open streams, the newest snapshot and the activity feed.
type SSEServer struct {
	settings
	log      *slog.Logger
	listener net.Listener
	host     *sampler
	started  time.Time
	newest   atomic.Pointer[frame] // of the last snapshot; nil before the first
	beats    atomic.Uint64         // heartbeats that have been due
	behind   chan struct{}         // room for one: some streams are to be tried again
	stopping atomic.Bool
	spent    atomic.Int64 // ns in broadcasts
	zip      compressor

	turn     sync.Mutex // one snapshot at a time; held until the first
	sweeping sync.Mutex // one sweep at a time, and its removals; guards swept
	swept    time.Time
	fan      sync.Mutex       // one fan-out at a time; guards all
	all      []*SSEConnection // the streams of the fan-out under way

	mu              sync.Mutex // guards following
	conns           map[*SSEConnection]struct{}
	closed          map[string]uint64 // streams, by reason
	past            counters          // of closed streams
	lastID          int64
	broadcasts      uint64
	opened, refused uint64 // streams so far, and requests for one; opened numbers them
	figures         figures
	feed            []activity // newest first
	history         []figures  // oldest first
	given           []byte     // the newest snapshot from elsewhere; nil: none ever came
	givenAt         time.Time
	renew           *time.Timer // runs out when that is stale
}

// newSSEServer takes over l; serve closes it.
func newSSEServer(set settings, l net.Listener, log *slog.Logger) *SSEServer {
	if set.probe == "" {
		set.probe = localURL(l) + "/health"
	}
	probe, _ := url.Parse(set.probe)
	set.inForce["probe"], set.inForce["addr"] = probe.Redacted(), l.Addr().String()
	host := &sampler{settings: set, log: log, proc: "/proc", sys: "/sys", alarms: alarms,
		cpuPercent: math.NaN(), response: math.NaN()}
	s := &SSEServer{settings: set, log: log, listener: l, host: host, started: time.Now(),
		conns: map[*SSEConnection]struct{}{}, closed: map[string]uint64{},
		behind: make(chan struct{}, 1)}
	s.renew = time.AfterFunc(time.Hour, func() { s.deliver(s.add()) })
	s.renew.Stop()
	return s
}

// serve runs the server until ctx is done (nil) or its listener fails. When it returns, every
// stream is closed and every goroutine has ended, but for a statfs(2) that hangs.
func (s *SSEServer) serve(ctx context.Context) error {
	s.log.Info("listening", "url", localURL(s.listener)+"/", "version", version,
		"settings", s.inForce)
	if s.token == "" && !s.onLoopback() {
		s.log.Warn("no token: whoever reaches the port can read and trigger; see SSE_TOKEN")
	}
	srv := &http.Server{
		Handler: s, ErrorLog: slog.NewLogLogger(s.log.Handler(), slog.LevelWarn),
		ReadHeaderTimeout: headerTimeout, ReadTimeout: shortTimeout, WriteTimeout: shortTimeout,
		IdleTimeout: headerTimeout, MaxHeaderBytes: maxHeader - 4096, // net/http allows 4 KiB more
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, s, c) // for open
		},
	}
	ctx, stop := context.WithCancel(ctx)
	loops, stopLoops := context.WithCancel(context.Background())
	between := s.interval
	if between == 0 {
		between = sampleEvery
	}
	s.turn.Lock()
	s.sample(time.Now())                       // rates need two readings
	go every(ctx, 0, between, s.host.readDisk) // not joined: statfs(2) may hang
	var wg sync.WaitGroup
	loop := func(ctx context.Context, first, d time.Duration, step func(time.Time)) {
		wg.Add(1)
		go func() { defer wg.Done(); every(ctx, first, d, step) }()
	}
	loop(ctx, 0, between, func(time.Time) { s.host.readProbe(ctx) })
	loop(ctx, s.heartbeat, s.heartbeat, s.beat)
	loop(loops, sweepEvery, sweepEvery, s.sweep)
	loop(loops, firstDelay, between, s.tick) // triggers wait for the first
	wg.Add(1)
	go func() { defer wg.Done(); s.retry(loops) }()
	failed := make(chan error) // read once, at the end
	go func() { err := srv.Serve(s.listener); stop(); failed <- err }()

	<-ctx.Done()
	end := time.Now()
	time.AfterFunc(stopPatience, stopLoops)
	srv.Shutdown(loops) // the loops answer triggers that wait
	srv.Close()         // what is not done by then
	stopLoops()
	s.stopping.Store(true) // none joins any more
	s.renew.Stop()
	n := s.fanOut(end, func(c *SSEConnection, _ time.Time) error {
		s.remove(c, errStopping)
		return nil
	})
	wg.Wait()
	s.log.Info("stopped", "streams", n, "duration", time.Since(end))
	if err := <-failed; err != http.ErrServerClosed {
		return fmt.Errorf("accepting connections: %w", err)
	}
	return nil
}

// tick reads the host and broadcasts that, but for the first time only if there is an interval.
func (s *SSEServer) tick(now time.Time) {
	s.sample(now)
	if s.newest.Load() == nil {
		s.broadcast(now)
		s.turn.Unlock()
	} else if given, fresh := s.hasGiven(now); !fresh && (given || s.interval > 0) {
		s.deliver(s.add())
	}
}

// sample takes over the host's figures, and into the feed each change of an alarm's level.
func (s *SSEServer) sample(now time.Time) {
	f, changes := s.host.sample(now)
	s.add(changes...)
	s.mu.Lock()
	defer s.mu.Unlock()
	first := s.figures.at.IsZero() // it has no rates
	s.figures = f
	for len(s.history) > 0 && now.Sub(s.history[0].at) > historySpan {
		s.history = s.history[1:]
	}
	if n := len(s.history); !first && (n == 0 || now.Sub(s.history[n-1].at) >= historyStep) {
		s.history = append(s.history, f)
	}
}

// add feeds in activities, test broadcasts in a row as one; any snapshot after its id has them.
func (s *SSEServer) add(list ...activity) int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, a := range list {
		if a.Message == testMessage && len(s.feed) > 0 && s.feed[0].Message == testMessage {
			s.feed = s.feed[1:]
		}
		s.feed = append([]activity{a}, s.feed[:min(len(s.feed), feedLength-1)]...)
	}
	return s.lastID
}

// hasGiven tells whether what is on show comes from elsewhere, and whether it is fresh.
func (s *SSEServer) hasGiven(now time.Time) (given, fresh bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.given != nil || s.edge, s.given != nil && now.Sub(s.givenAt) < givenPatience
}

// deliver gives a snapshot after that id, once every stream was offered it. Who asks while one
// is on its way shares the next: a flood makes one each minInterval.
func (s *SSEServer) deliver(after int64) *frame {
	s.turn.Lock()
	defer s.turn.Unlock()
	f := s.newest.Load()
	if f.id <= after {
		time.Sleep(minInterval - time.Since(f.at))
		f = s.broadcast(time.Now())
	}
	return f
}

// broadcast offers every stream a new frame of the last figures and the feed. It needs turn.
func (s *SSEServer) broadcast(now time.Time) *frame {
	s.mu.Lock()
	s.broadcasts++
	s.lastID = max(s.lastID+1, now.UnixMilli())
	f := &frame{id: s.lastID, at: now}
	figures, feed, data, since := s.figures, slices.Clone(s.feed), s.given, s.givenAt
	s.mu.Unlock()
	if data == nil {
		if s.edge {
			figures, feed = unfed, nil
		}
		data = []byte(formatSnapshot(figures, feed, now))
	} else if now.Sub(since) >= givenPatience {
		data = staleSnapshot(data, since)
	}
	f.bytes = fmt.Appendf(nil, "id: %d\ndata: %s\n\n", f.id, data)
	f.compress = sync.OnceFunc(func() { s.zip.compress(f, s.beats.Load()) })
	s.newest.Store(f)
	f.streams = s.fanOut(now, s.offer)
	took := time.Since(now)
	s.spent.Add(int64(took))
	s.log.Debug("broadcast", "id", f.id, "streams", f.streams, "duration", took)
	return f
}

// beat writes a heartbeat to every stream, whatever else was sent.
func (s *SSEServer) beat(now time.Time) {
	s.beats.Add(1)
	s.log.Info("heartbeat", "streams", s.fanOut(now, s.offer))
}

// figures are one reading of the host. NaN, and a negative uptime, mean: not measured.
type figures struct {
	at                time.Time
	cpu, memory, disk float64 // percent
	network           float64 // Mbps
	response          float64 // ms
	uptime            time.Duration
	status, message   string
}

// unfed is what an edge shows that has no snapshot.
var unfed = figures{time.Time{}, math.NaN(), math.NaN(), math.NaN(), math.NaN(), math.NaN(), -1,
	"stale", "No snapshot from elsewhere"}

// A sampler reads the host for all viewers, each reading against the one before.
type sampler struct {
	settings
	log        *slog.Logger
	proc, sys  string            // roots
	alarms     [4]alarm          // of cpu, memory, disk and probe
	cpu        []cpuTimes        // of the last minute, oldest first
	cpuPercent float64           // the last one measured
	net        map[string]uint64 // bytes of each interface that counts
	netAt      time.Time
	failing    sync.Map // whether it is, by source

	mu       sync.Mutex // guards following, which loops of their own measure
	used     float64    // percent of the disk
	usedAt   time.Time
	response float64 // ms; NaN after a failure
	failures float64 // of the probe, in a row
}

// sample reads all figures; each change of an alarm's level comes as an activity.
func (h *sampler) sample(now time.Time) (figures, []activity) {
	h.mu.Lock()
	defer h.mu.Unlock()
	cpu, minute := h.readCPU(now)
	f := figures{at: now, cpu: cpu, disk: h.used, response: h.response, network: h.readNetwork(now),
		memory: readProc(h, "meminfo", parseMeminfo), uptime: readProc(h, "uptime", parseUptime)}
	if now.Sub(h.usedAt) >= max(diskPatience, 3*h.interval) {
		f.disk = math.NaN()
	}
	changes, causes, worst := []activity{}, []string{}, 0
	for i, v := range []float64{minute, f.memory, f.disk, h.failures} {
		a := &h.alarms[i]
		if a.judge(v) {
			changes = append(changes, newActivity(now, levels[a.level].activity, a.text))
		}
		if a.level > 0 {
			causes = append(causes, a.text)
			worst = max(worst, a.level)
		}
	}
	f.status, f.message = levels[worst].status, strings.Join(causes, "; ")
	if worst == 0 {
		f.message = "System running normally"
	}
	return f, changes
}

// readCPU gives the busy percentage since the last reading and, NaN before, over the last minute.
func (h *sampler) readCPU(now time.Time) (percent, minute float64) {
	t := readProc(h, "stat", parseStat)
	if t == (cpuTimes{}) {
		return math.NaN(), math.NaN()
	}
	t.at = now
	h.cpu = append(h.cpu, t)
	if p := t.since(h.cpu[max(len(h.cpu)-2, 0)]); !math.IsNaN(p) {
		h.cpuPercent = p
	}
	for len(h.cpu) > 1 && now.Sub(h.cpu[1].at) >= time.Minute {
		h.cpu = h.cpu[1:]
	}
	if now.Sub(h.cpu[0].at) < time.Minute {
		return h.cpuPercent, math.NaN()
	}
	return h.cpuPercent, t.since(h.cpu[0])
}

// noLink finds the interfaces that are neither physical nor a container's link.
var noLink = regexp.MustCompile("^(lo$|docker|veth|br-|virbr|ifb|tun|tap)")

// readNetwork gives the rate of the physical interfaces since the last reading in Mbps; in a
// container, which has none, that of its links. NaN if no interface has two readings.
func (h *sampler) readNetwork(now time.Time) float64 {
	before, seconds := h.net, now.Sub(h.netAt).Seconds()
	all := readProc(h, "net/dev", parseNetDev)
	h.net, h.netAt = maps.Clone(all), now
	virtual := h.sys + "/devices/virtual/net/"
	_, noSys := os.Lstat(virtual)
	maps.DeleteFunc(h.net, func(name string, _ uint64) bool {
		_, err := os.Lstat(virtual + name)
		return err == nil || noSys != nil
	})
	if len(h.net) == 0 {
		h.net = all
		maps.DeleteFunc(h.net, func(name string, _ uint64) bool { return noLink.MatchString(name) })
	}
	bytes, measured := uint64(0), false
	for name, n := range h.net {
		if was, ok := before[name]; ok && n >= was {
			bytes, measured = bytes+n-was, true
		}
	}
	if !measured || seconds <= 0 {
		return math.NaN()
	}
	return float64(bytes) * 8 / seconds / 1e6
}

// readDisk runs in a loop of its own: statfs(2) on a dead network mount blocks for ever.
func (h *sampler) readDisk(now time.Time) {
	var st syscall.Statfs_t
	h.complain("disk "+h.disk, syscall.Statfs(h.disk, &st))
	h.mu.Lock()
	defer h.mu.Unlock()
	h.usedAt, h.used = now, usedPercent(float64(st.Blocks), float64(st.Bfree), float64(st.Bavail))
}

// probeClient takes a redirect for the answer.
var probeClient = http.Client{
	Timeout: probeTimeout, Transport: &http.Transport{DisableKeepAlives: true},
	CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
}

// readProbe measures a GET of the probed URL with its whole answer; from status 400 on it failed.
func (h *sampler) readProbe(ctx context.Context) {
	start := time.Now()
	req, _ := http.NewRequestWithContext(ctx, "GET", h.probe, nil) // the URL was parsed before
	resp, err := probeClient.Do(req)
	if err == nil {
		_, err = io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		if resp.StatusCode >= 400 {
			err = errors.New("it answers " + resp.Status)
		}
	}
	took := math.Ceil(time.Since(start).Seconds() * 1000)
	if ctx.Err() != nil {
		return
	}
	h.complain("probe", err)
	h.mu.Lock()
	defer h.mu.Unlock()
	h.response, h.failures = math.NaN(), h.failures+1
	if err == nil {
		h.response, h.failures = took, 0
	}
}

// complain logs when a source of figures begins to fail, and when it is well again.
func (h *sampler) complain(source string, err error) {
	if was, _ := h.failing.Swap(source, err != nil); err != nil && was != true {
		h.log.Warn("a figure is missing", "source", source, "err", err)
	} else if err == nil && was == true {
		h.log.Info("a figure is back", "source", source)
	}
}

// levels are what system_status.status and activities call the levels of an alarm.
var levels = [...]struct{ status, activity string }{
	{"online", "info"}, {"degraded", "warning"}, {"critical", "error"}}

// An alarm makes a figure a level with hysteresis: on from one value, off below another.
type alarm struct {
	name, cause string     // cause is a format for the figure
	on, off     [2]float64 // of the warning and of the critical level
	level       int        // 0: all is well
	text        string     // the level in words
}

// alarms are as they are at start, when all is well.
var alarms = [...]alarm{
	{"CPU", " at %.0f%% over the last minute", [2]float64{85, 95}, [2]float64{75, 85}, 0, ""},
	{"Memory", " at %.0f%%", [2]float64{90, 98}, [2]float64{80, 90}, 0, ""},
	{"Disk", " at %.0f%%", [2]float64{90, 98}, [2]float64{80, 90}, 0, ""},
	{"Health probe", " failed (%.0f in a row)", [2]float64{1, 3}, [2]float64{1, 1}, 0, ""},
}

// judge tells whether v changes the level. NaN does not, but the figure is no cause then.
func (a *alarm) judge(v float64) bool {
	was := a.level
	if math.IsNaN(v) {
		a.text = a.name + " cannot be measured any more"
		return false
	}
	a.level, a.text = 0, a.name+" back to normal"
	for i, on := range a.on {
		if v >= on || was > i && v >= a.off[i] {
			a.level, a.text = i+1, a.name+fmt.Sprintf(a.cause, math.Round(v))
		}
	}
	return a.level != was
}

// snapshotFormat has the keys, their order and the formats of the Rails server.
const snapshotFormat = `{"system_status":{"status":"%s","uptime":"%s","last_check":"%s",` +
	`"message":"%s"},"metrics":{"cpu":"%s","memory":"%s","disk":"%s","network":"%s",` +
	`"response_time":"%s"},"activities":%s,"timestamp":"%s"}`

// formatSnapshot shows the figures, and the feed after "Dashboard updated", on one line.
func formatSnapshot(f figures, feed []activity, now time.Time) string {
	updated := newActivity(now, "info", "Dashboard updated")
	activities, _ := json.Marshal(append([]activity{updated}, feed...)) // strings cannot fail
	checked := "N/A"
	if !f.at.IsZero() {
		checked = f.at.Format(time.TimeOnly)
	}
	return fmt.Sprintf(snapshotFormat, f.status, formatUptime(f.uptime), checked, f.message,
		formatFigure(f.cpu, "%"), formatFigure(f.memory, "%"), formatFigure(f.disk, "%"),
		formatFigure(f.network, " Mbps"), formatFigure(f.response, "ms"), activities,
		now.Format(time.TimeOnly))
}

type activity struct {
	Time     string `json:"time"`
	Message  string `json:"message"`
	Level    string `json:"level"`
	CSSClass string `json:"css_class"`
}

func newActivity(t time.Time, level, message string) activity {
	return activity{t.Format(time.TimeOnly), message, level, "activity-" + level}
}

// formatFigure rounds v to an integer, or to tenths where those are under 10 Mbps; NaN is "N/A".
func formatFigure(v float64, unit string) string {
	if math.IsNaN(v) {
		return "N/A"
	} else if tenths := math.Round(v*10) / 10; unit == " Mbps" && tenths < 10 {
		return fmt.Sprintf("%.1f Mbps", tenths)
	}
	return fmt.Sprintf("%.0f%s", math.Round(v), unit)
}

// formatUptime shows the largest unit and, unless it is zero, the next.
func formatUptime(d time.Duration) string {
	if d < 0 {
		return "N/A"
	}
	plural := func(n int, unit string) string { // empty for 0
		return [...]string{"", "1 " + unit, fmt.Sprintf("%d %ss", n, unit)}[min(n, 2)]
	}
	n := int(d / time.Minute)
	parts := []string{plural(n/1440, "day"), plural(n/60%24, "hour"), plural(n%60, "minute"), ""}
	for i, p := range parts[:3] {
		if p != "" {
			return strings.TrimSuffix(p+", "+parts[i+1], ", ")
		}
	}
	return "less than a minute"
}

// A frame is one event, encoded once for all streams. Nobody changes its bytes.
type frame struct {
	id      int64
	at      time.Time
	bytes   []byte
	streams int // that have it, once it was offered to all

	// For compressed streams: the first one calls compress, which makes the rest. The delta is for
	// those that got the frame before, and as many heartbeats since.
	compress   func()
	key, delta []byte
	before     int64
	beats      uint64
}

var heartbeatBytes = []byte(": heartbeat\n\n")

const streamHead = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n" +
	"Cache-Control: no-cache, no-transform\r\nConnection: close\r\n" +
	"X-Accel-Buffering: no\r\nVary: Origin, Accept-Encoding\r\n"

// drawRetry draws a reconnection time in seconds, so that not all clients come back at once.
func drawRetry(least, most int) string {
	return fmt.Sprintf("retry: %d\n", 1000*least+rand.Intn(1000*(most-least)))
}

// gzipHead begins a compressed stream: RFC 1952, no time, no name.
const gzipHead = "\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"

// A compressor compresses each frame once for all streams; see RFC 1951. What it has in its
// window is what a stream has that missed nothing since the last frame.
type compressor struct {
	mu    sync.Mutex    // guards following
	w     *flate.Writer // nil until the first compressed stream
	out   bytes.Buffer
	id    int64  // of the frame in the window
	beats uint64 // that had been due by then
}

// compress makes f's two forms: a delta for streams whose bytes so far end with what is in the
// window and the heartbeats that were due since, and a key for all others. beats is their total.
func (z *compressor) compress(f *frame, beats uint64) {
	z.mu.Lock()
	defer z.mu.Unlock()
	if z.w == nil {
		z.w, _ = flate.NewWriter(&z.out, flate.DefaultCompression) // a valid level
	}
	f.before, f.beats = z.id, beats-z.beats
	if f.beats > maxBeats {
		f.before, f.beats = -1, 0 // no stream's
	}
	z.id, z.beats = f.id, beats
	z.block(bytes.Repeat(heartbeatBytes, int(f.beats)))
	f.delta = z.block(f.bytes)
	z.w.Reset(&z.out)
	f.key = z.block(f.bytes)
}

// block compresses b up to a byte boundary, so that anything may follow.
func (z *compressor) block(b []byte) []byte {
	z.out.Reset()
	z.w.Write(b)
	z.w.Flush()
	return bytes.Clone(z.out.Bytes())
}

// heartbeatBlock ends in an empty block, without which some readers wait for what follows.
var heartbeatBlock = append(stored(heartbeatBytes), stored(nil)...)

// stored makes b a block as it is; b is short.
func stored(b []byte) []byte {
	n := len(b)
	return append([]byte{0, byte(n), byte(n >> 8), ^byte(n), ^byte(n >> 8)}, b...)
}

// acceptsGzip reads Accept-Encoding; RFC 9110, section 12.5.3.
func acceptsGzip(r *http.Request) bool {
	for _, part := range strings.Split(strings.Join(r.Header["Accept-Encoding"], ","), ",") {
		if name, params, err := mime.ParseMediaType(part); name == "gzip" && err == nil {
			q, err := strconv.ParseFloat(params["q"], 64)
			return len(params) == 0 || err == nil && q > 0
		}
	}
	return false
}

// sweep removes the streams whose client is gone, unless that was done a moment ago.
func (s *SSEServer) sweep(now time.Time) {
	s.sweeping.Lock()
	defer s.sweeping.Unlock()
	if now.Sub(s.swept) < retryEvery {
		return
	}
	s.swept = now
	s.fanOut(now, func(c *SSEConnection, _ time.Time) error {
		c.mu.Lock()
		defer c.mu.Unlock()
		return discard(c.fd)
	})
}

// fanOut calls each for every stream, on all cores where that pays, and counts how often all was
// well. Streams that are gone are removed once others no longer wait for that.
func (s *SSEServer) fanOut(now time.Time, each func(*SSEConnection, time.Time) error) int {
	var gone sync.Map // their errors
	defer gone.Range(func(c, err any) bool { return s.remove(c.(*SSEConnection), err.(error)) })
	s.fan.Lock()
	defer s.fan.Unlock()
	s.mu.Lock()
	for c := range s.conns {
		s.all = append(s.all, c)
	}
	s.mu.Unlock()
	var next, count atomic.Int64
	work := func() {
		for i := next.Add(1); i <= int64(len(s.all)); i = next.Add(1) {
			if err := each(s.all[i-1], now); err == nil {
				count.Add(1)
			} else if err != errBehind {
				gone.Store(s.all[i-1], err)
			}
		}
	}
	var wg sync.WaitGroup
	for i := min(runtime.GOMAXPROCS(0), len(s.all)/perWorker); i > 1; i-- {
		wg.Add(1)
		go func() { defer wg.Done(); work() }()
	}
	work()
	wg.Wait()
	clear(s.all) // lets closed streams go
	s.all = s.all[:0]
	return int(count.Load())
}

// offer gives c what it is owed. One that was behind already, or is gone, is left to catchUp, so
// that the others do not wait for it.
func (s *SSEServer) offer(c *SSEConnection, now time.Time) error {
	if c.offer(s.newest.Load(), s.beats.Load(), now, false) == nil {
		return nil
	}
	s.tryAgain()
	return errBehind
}

// tryAgain lets retry know that some streams are behind.
func (s *SSEServer) tryAgain() {
	select {
	case s.behind <- struct{}{}:
	default: // it knows
	}
}

// retry lets streams that are behind catch up, retryEvery after that is known, until ctx ends.
func (s *SSEServer) retry(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.behind:
			time.Sleep(retryEvery)
			s.fanOut(time.Now(), s.catchUp)
		}
	}
}

// catchUp offers c, if it is behind, what is newest by now. Its error says when c is gone.
func (s *SSEServer) catchUp(c *SSEConnection, now time.Time) error {
	err := c.offer(s.newest.Load(), s.beats.Load(), now, true)
	if err == errBehind {
		s.tryAgain()
	}
	return err
}

// reserve puts c, not yet open, into the map; false if the server is full or stopping.
func (s *SSEServer) reserve(c *SSEConnection) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopping.Load() || len(s.conns) >= s.maxStreams {
		return false
	}
	s.opened++
	c.number = s.opened
	s.conns[c] = struct{}{}
	return true
}

// remove closes c and takes it out of the map if there is an err, which says why.
func (s *SSEServer) remove(c *SSEConnection, err error) bool {
	if err == nil || err == errBehind || !c.close(err) {
		return err != nil
	}
	why, ok := reasons[err]
	if !ok {
		why = "error" // the network gave up on it
	}
	s.mu.Lock()
	delete(s.conns, c)
	s.closed[why]++
	s.past = s.past.plus(c.counters)
	n := len(s.conns)
	s.mu.Unlock()
	s.log.Info("stream closed", "stream", c.number, "remote", c.remote, "reason", why, "err", err,
		"duration", time.Since(c.since), "events", c.events, "streams", n)
	return true
}

var (
	errBehind   = errors.New("has not yet got all that it is owed")
	errStalled  = errors.New("took nothing for " + stallLimit.String())
	errStopping = errors.New("the server stops")
	reasons     = map[error]string{ // under which closed streams are counted; others are "error"
		errStopping: "shutdown", errStalled: "stalled",
		io.EOF: "client", syscall.EPIPE: "client", syscall.ECONNRESET: "client"}
)

// An SSEConnection is one stream: a descriptor of its own, out of sight of net/http and of
// Go's poller. A closed descriptor's number may be another connection's a moment later, so it
// is used and closed only under mu.
type SSEConnection struct {
	mu    sync.Mutex // guards following: the first cache line is what each broadcast reads
	fd    int        // notOpen before it is open, isClosed once it is closed
	rest  []byte     // of what was begun
	last  int64      // id of the newest frame begun
	owed  int64      // id of a newer one that the kernel did not take; 0: none
	beats uint64     // heartbeats that were due and are sent
	heard uint64     // heartbeats sent since the newest frame
	gzip  bool       // the stream is compressed
	counters
	blocked time.Time // when the kernel last took something, while the stream is behind
	err     error     // of the last send

	number            uint64
	remote, userAgent string
	since             time.Time
}

// counters count what streams were sent.
type counters struct{ events, skipped, bytes uint64 }

func (n counters) plus(o counters) counters {
	return counters{n.events + o.events, n.skipped + o.skipped, n.bytes + o.bytes}
}

// offer sends what the stream is owed, as far as the kernel takes it without waiting: what was
// begun, the newest frame, a heartbeat. Of a stream that is behind it only notes the frame, unless
// it is to catch up. It returns errBehind if that was not all; after another error, remove it.
func (c *SSEConnection) offer(newest *frame, beats uint64, now time.Time, catchUp bool) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.fd < 0 || c.err != nil {
		return c.err
	}
	isNew := newest != nil && newest.id > c.last && newest.id >= c.owed
	if isNew {
		if c.owed != 0 && c.owed != newest.id {
			c.skipped++
		}
		c.owed = newest.id
	}
	if !catchUp && !c.blocked.IsZero() {
		return errBehind
	}
	before := c.bytes
	if len(c.rest) > 0 {
		c.send(c.rest)
	}
	if isNew && len(c.rest) == 0 && c.send(c.form(newest)) {
		c.last, c.owed, c.heard = newest.id, 0, 0
		c.events++
	}
	heartbeat := heartbeatBytes
	if c.gzip {
		heartbeat = heartbeatBlock
	}
	if c.owed == 0 && beats > c.beats && len(c.rest) == 0 && c.send(heartbeat) {
		c.beats = beats
		c.heard++
	}
	if c.owed == 0 && beats <= c.beats && len(c.rest) == 0 {
		c.blocked = time.Time{}
		return c.err
	}
	if c.bytes > before || c.blocked.IsZero() {
		c.blocked = now
	} else if c.err == nil && now.Sub(c.blocked) >= stallLimit {
		c.err = errStalled
	}
	if c.err == nil {
		return errBehind
	}
	return c.err
}

// ownLine is a line of this stream alone, as it is sent.
func (c *SSEConnection) ownLine(text string) []byte {
	if c.gzip {
		return stored([]byte(text))
	}
	return []byte(text)
}

// form is what of f this stream is sent. It needs mu.
func (c *SSEConnection) form(f *frame) []byte {
	if !c.gzip {
		return f.bytes
	}
	f.compress()
	if c.last == f.before && c.heard == f.beats {
		return f.delta
	}
	return f.key
}

// send offers b to the kernel, which takes what it can at once; if it takes some of it, the rest
// is kept. On Linux it takes nothing while earlier bytes have not left the machine:
// TCP_NOTSENT_LOWAT is 1, and MSG_EOR keeps b from being glued to them. It needs mu.
func (c *SSEConnection) send(b []byte) bool {
	n, err := transfer(syscall.SYS_SENDTO, c.fd, b, len(b), msgNoSignal|msgEOR)
	switch c.err = err; err {
	case nil:
		c.bytes += uint64(n)
		if c.rest = b[n:]; len(c.rest) == 0 {
			c.rest = nil // lets go of the stream's head
		}
		return true
	case syscall.EAGAIN, syscall.EINTR, syscall.ENOBUFS:
		c.err = nil // it is tried again
	}
	return false
}

// close closes the stream, once; the counters are final then. With unread bytes close(2) would be
// a reset that throws away what is unsent. Before the stream is open all this is EBADF.
func (c *SSEConnection) close(why error) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.fd == isClosed {
		return false
	}
	switch why {
	case errStalled:
		reset := &syscall.Linger{Onoff: 1}
		syscall.SetsockoptLinger(c.fd, syscall.SOL_SOCKET, syscall.SO_LINGER, reset)
	case errStopping: // tells the client when to come back
		c.send(append(slices.Clip(c.rest), c.ownLine(drawRetry(1, 5)+"\n")...))
	}
	discard(c.fd)
	syscall.Shutdown(c.fd, syscall.SHUT_WR)
	syscall.Close(c.fd)
	c.fd, c.rest = isClosed, nil
	return true
}

// discard reads away what a client sent; an error, such as io.EOF, means that it is gone. Before
// a stream is open there is nothing (EBADF). On Linux MSG_TRUNC does without a buffer; see tcp(7).
func discard(fd int) error {
	for i := 0; i < 4; i++ {
		n, err := transfer(syscall.SYS_RECVFROM, fd, nil, recvBuffer*4, msgTrunc)
		switch {
		case err == syscall.EAGAIN || err == syscall.EINTR || err == syscall.EBADF:
			return nil
		case err != nil:
			return err
		case n == 0:
			return io.EOF
		}
	}
	return nil
}

// transfer is sendto(2) or recvfrom(2) without an address, on a socket that does not block. As it
// never waits, it goes on Linux without the scheduler's bookkeeping around a system call.
func transfer(call uintptr, fd int, b []byte, n int, flags uintptr) (int, error) {
	if !onLinux && call == syscall.SYS_SENDTO {
		return syscall.Write(fd, b)
	} else if !onLinux {
		return syscall.Read(fd, make([]byte, n))
	}
	p := unsafe.Pointer(unsafe.SliceData(b))
	r, _, e := syscall.RawSyscall6(call, uintptr(fd), uintptr(p), uintptr(n), flags, 0, 0)
	if e != 0 {
		return 0, e
	}
	return int(r), nil
}

// open begins c on a descriptor of the request's connection, which net/http then forgets: head and
// newest frame in one write. Where it fails for want of a descriptor, there can still be an answer.
func (s *SSEServer) open(c *SSEConnection, w http.ResponseWriter, r *http.Request) error {
	raw, _ := r.Context().Value(s).(syscall.Conn).SyscallConn() // of a TCP connection: no error
	fd, err := -1, error(nil)
	gone := raw.Control(func(old uintptr) {
		syscall.ForkLock.RLock()
		defer syscall.ForkLock.RUnlock()
		fd, err = syscall.Dup(int(old))
		syscall.CloseOnExec(fd)
	})
	if err = errors.Join(gone, err); err != nil {
		return err
	}
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		syscall.Close(fd)
		return err
	}
	conn.Close()
	syscall.SetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_SNDBUF, sendBuffer)
	syscall.SetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_RCVBUF, recvBuffer)
	if onLinux {
		syscall.SetsockoptInt(fd, syscall.IPPROTO_TCP, tcpNotsentLowat, 1)
		syscall.SetsockoptInt(fd, syscall.IPPROTO_TCP, tcpUserTimeout, vanishLimit)
	}
	head := streamHead
	if origin := w.Header().Get("Access-Control-Allow-Origin"); origin != "" {
		head += "Access-Control-Allow-Origin: " + origin + "\r\n"
	}
	if c.gzip {
		head += "Content-Encoding: gzip\r\n\r\n" + gzipHead
	} else {
		head += "\r\n"
	}
	s.log.Info("stream opened", "stream", c.number, "remote", c.remote, "user_agent", c.userAgent)
	newest := s.newest.Load()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.fd == isClosed { // by the server's end
		return syscall.Close(fd)
	}
	c.fd, c.beats = fd, s.beats.Load()
	c.rest = append([]byte(head), c.ownLine(drawRetry(1, 5))...)
	if newest != nil {
		c.rest = append(c.rest, c.form(newest)...)
		c.last, c.events = newest.id, 1
	}
	return nil
}

// routes are the handlers by path, with the methods as in an Allow header.
var routes = map[string]struct {
	methods, contentType string
	serve                func(*SSEServer, http.ResponseWriter, *http.Request)
}{
	"/":                       {"GET, HEAD", "text/html; charset=utf-8", (*SSEServer).servePage},
	"/dashboard/history":      {"GET, HEAD", "application/json", (*SSEServer).serveHistory},
	"/dashboard/stream":       {"GET", "text/event-stream", (*SSEServer).serveStream},
	"/dashboard/trigger-test": {"GET", "application/json", (*SSEServer).serveTrigger},
	"/dashboard/activities":   {"POST", "application/json", (*SSEServer).serveActivities},
	"/dashboard/snapshot":     {"PUT, DELETE", "application/json", (*SSEServer).serveSnapshot},
	"/metrics":                {"GET, HEAD", metricsType, (*SSEServer).serveMetrics},
	"/dashboard/debug":        {"GET, HEAD", "application/json", (*SSEServer).serveDebug},
	"/health":                 {"GET, HEAD", "text/plain; charset=utf-8", (*SSEServer).serveHealth},
}

// ServeHTTP finds the route, and lets the pages of allowed origins use it.
func (s *SSEServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Vary", "Origin")
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	origin := r.Header.Get("Origin")
	allowed := slices.Contains(s.origins, origin)
	if allowed {
		h.Set("Access-Control-Allow-Origin", origin)
	}
	rt, ok := routes[r.URL.Path]
	status, sentence := s.refusal(r)
	switch {
	case status != 0:
		if status == 401 {
			h.Set("WWW-Authenticate", `Basic realm="sse-server", charset="UTF-8"`)
		}
		http.Error(w, sentence, status)
	case !ok:
		http.Error(w, "Nothing is here: the page is /, the stream /dashboard/stream.", 404)
	case r.Method == "OPTIONS" && allowed:
		h.Set("Access-Control-Allow-Methods", rt.methods)
		h.Set("Access-Control-Allow-Headers",
			"Authorization, Content-Type, Cache-Control, Last-Event-ID")
		w.WriteHeader(http.StatusNoContent)
	case !slices.Contains(strings.Split(rt.methods, ", "), r.Method):
		h.Set("Allow", rt.methods)
		http.Error(w, "Use "+rt.methods+" here.", 405)
	default:
		h.Set("Content-Type", rt.contentType)
		rt.serve(s, w, r)
	}
}

// refusal gives the status and the sentence for a request that is not allowed; 0 if it is.
func (s *SSEServer) refusal(r *http.Request) (status int, sentence string) {
	isSafe := slices.Contains([]string{"GET", "HEAD", "OPTIONS"}, r.Method)
	isKnown := func(origin string) bool {
		_, host, _ := strings.Cut(origin, "//")
		return hostname(host) == hostname(r.Host)
	}
	switch {
	case r.URL.Path == "/health":
	case s.onLoopback() && r.Host != "" && !isLoopback(r.Host) &&
		!slices.ContainsFunc(s.origins, isKnown):
		return 403, "The server is not known by that host name: add its origin to -origins."
	case r.URL.Path != "/" && !s.isOwnPage(r): // a link to the page is harmless
		return 403, "Pages of other origins need theirs in -origins."
	case s.token == "" && !isSafe && !isLocal(r):
		return 403, "Only this machine's own requests may do that, unless SSE_TOKEN is set."
	case s.token != "" && r.Method != "OPTIONS" && !s.hasToken(r):
		return 401, "Send the server's token: Authorization: Bearer, or as the password."
	}
	return 0, ""
}

// hasToken compares in constant time, and logs whoever sends a wrong one. The token is not empty.
func (s *SSEServer) hasToken(r *http.Request) bool {
	_, given, _ := r.BasicAuth()
	scheme, rest, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	if strings.EqualFold(scheme, "Bearer") {
		given = rest
	}
	isRight := subtle.ConstantTimeCompare([]byte(given), []byte(s.token)) == 1
	if !isRight && scheme != "" {
		s.log.Warn("wrong token", "remote", r.RemoteAddr)
	}
	return isRight
}

// isOwnPage tells whether a request comes from no page, from one of this server, or from one
// of an allowed origin.
func (s *SSEServer) isOwnPage(r *http.Request) bool {
	site, origin := r.Header.Get("Sec-Fetch-Site"), r.Header.Get("Origin")
	own := site == "same-origin" || site == "none"
	if origin == "" && !own {
		origin = originOf(r.Referer())
	}
	if slices.Contains(s.origins, origin) {
		return true
	}
	_, host, _ := strings.Cut(origin, "//")
	return (own || site == "") && (origin == "" || host != "" && strings.EqualFold(host, r.Host))
}

// onLoopback tells whether the server can be reached from this machine only.
func (s *SSEServer) onLoopback() bool {
	return s.listener.Addr().(*net.TCPAddr).IP.IsLoopback()
}

var proxyHeader = regexp.MustCompile("^(Forwarded|Via|X-Forwarded-.*|X-Real-Ip)$")

// isLocal tells whether a request comes from this machine and through no proxy.
func isLocal(r *http.Request) bool {
	for name := range r.Header { // whatever it says, even nothing: a client may have sent that
		if proxyHeader.MatchString(name) {
			return false
		}
	}
	return isLoopback(r.RemoteAddr) && isLoopback(r.Host)
}

func isLoopback(hostport string) bool {
	name := hostname(hostport)
	return name == "localhost" || strings.HasSuffix(name, ".localhost") ||
		net.ParseIP(name).IsLoopback()
}

// hostname is the host of host:port or host, in lower case.
func hostname(hostport string) string {
	u := url.URL{Host: hostport}
	return strings.ToLower(u.Hostname())
}

// pagePolicy allows the page what is written in it, and requests to this server.
var pagePolicy = "default-src 'none'; connect-src 'self'; img-src data:; base-uri 'none'; " +
	"form-action 'none'; frame-ancestors 'self'; script-src " + hashOf("script") +
	"; style-src " + hashOf("style")

// hashOf gives the source expression of the page's one element of that name; see CSP Level 3.
func hashOf(element string) string {
	_, text, _ := strings.Cut(page, "<"+element+">")
	text, _, _ = strings.Cut(text, "</"+element+">")
	sum := sha256.Sum256([]byte(text))
	return "'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "'"
}

// GET /
func (s *SSEServer) servePage(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Security-Policy", pagePolicy)
	w.Header().Set("Referrer-Policy", "no-referrer")
	io.WriteString(w, page)
}

// GET /dashboard/history
func (s *SSEServer) serveHistory(w http.ResponseWriter, _ *http.Request) {
	given, _ := s.hasGiven(time.Now())
	s.mu.Lock()
	history, streams := slices.Clone(s.history), len(s.conns)
	s.mu.Unlock()
	interval := s.interval
	if given { // the figures on show are not this host's, and come at any time
		history, interval = nil, max(interval, givenPatience/3)
	}
	list := make([]string, len(history))
	for i, f := range history {
		list[i] = fmt.Sprintf(`{"time":%d,"cpu":%.2f,"memory":%.2f,"disk":%.0f,"network":%.2f,`+
			`"response_time":%.0f}`, f.at.UnixMilli(), f.cpu, f.memory, f.disk, f.network,
			f.response)
	}
	samples := strings.ReplaceAll(strings.Join(list, ","), "NaN", "null")
	fmt.Fprintf(w, `{"now":%d,"interval":%g,"streams":%d,"samples":[%s]}`+"\n",
		time.Now().UnixMilli(), interval.Seconds(), streams, samples)
}

// GET /dashboard/stream
func (s *SSEServer) serveStream(w http.ResponseWriter, r *http.Request) {
	c := &SSEConnection{fd: notOpen, remote: r.RemoteAddr, since: time.Now(),
		userAgent: fmt.Sprintf("%.*s", maxUserAgent, r.UserAgent()), gzip: acceptsGzip(r)}
	ok := s.reserve(c)
	if !ok {
		s.sweep(c.since) // makes room where clients are gone
		ok = s.reserve(c)
	}
	if !ok || s.remove(c, s.open(c, w, r)) {
		s.refuse(w, r)
		return
	}
	s.remove(c, s.catchUp(c, c.since))
}

// refuse answers a request for a stream when there is no room. EventSource gives up for ever
// on anything but 200, so it gets a stream that ends at once and says when to come back.
func (s *SSEServer) refuse(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	s.refused++
	state := fmt.Sprintf("full, %d streams are open", len(s.conns))
	s.mu.Unlock()
	if s.stopping.Load() {
		state = "stopping"
	}
	s.log.Warn("stream refused", "remote", r.RemoteAddr, "state", state)
	w.Header().Set("Connection", "close")
	if wantsEvents(r) {
		fmt.Fprintf(w, "%s: %s\n\n", drawRetry(5, 30), state)
		return
	}
	w.Header().Set("Retry-After", fmt.Sprint(5+rand.Intn(25)))
	http.Error(w, "The server is "+state+": try again later.", 503)
}

func wantsEvents(r *http.Request) bool {
	return strings.Contains(strings.ToLower(r.Header.Get("Accept")), "text/event-stream")
}

// readBody reads a JSON body of at most limit bytes. Where it is none it answers and gives nil.
func readBody(w http.ResponseWriter, r *http.Request, limit int64) []byte {
	kind, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type"))
	b, err := io.ReadAll(http.MaxBytesReader(w, r.Body, limit))
	_, isTooLarge := err.(*http.MaxBytesError)
	switch {
	case kind != "application/json":
		http.Error(w, "Content-Type must be application/json.", 415)
	case isTooLarge:
		http.Error(w, fmt.Sprintf("The body may have %d bytes at most.", limit), 413)
	case err != nil:
		http.Error(w, "The body did not arrive whole.", 400)
	case !utf8.Valid(b):
		http.Error(w, "The body must be valid UTF-8.", 400)
	case !json.Valid(b) || bytes.TrimSpace(b)[0] != '{':
		http.Error(w, "The body must be one JSON object.", 400)
	default:
		return b
	}
	return nil
}

// POST /dashboard/activities
func (s *SSEServer) serveActivities(w http.ResponseWriter, r *http.Request) {
	body := readBody(w, r, maxActivity)
	if body == nil {
		return
	}
	now := time.Now()
	given, _ := s.hasGiven(now)
	in := map[string]any{"level": "info"}
	json.Unmarshal(body, &in) // it is valid
	message, _ := in["message"].(string)
	level, _ := in["level"].(string)
	n := utf8.RuneCountInString(message)
	switch {
	case len(in) > 2:
		http.Error(w, "The body may have message and level only.", 400)
	case n < 1 || n > maxMessage || strings.ContainsFunc(message, unicode.IsControl):
		http.Error(w, "The message must be 1 to 500 characters, and no control characters.", 400)
	case !slices.Contains([]string{"info", "success", "warning", "error"}, level):
		http.Error(w, "The level must be info, success, warning or error.", 400)
	case given:
		http.Error(w, "Snapshots from elsewhere are shown here: post the activity there.", 409)
	default:
		a := newActivity(now, level, message)
		f := s.deliver(s.add(a))
		w.WriteHeader(http.StatusCreated)
		json.NewEncoder(w).Encode(map[string]any{"activity": a, "id": f.id, "streams": f.streams})
	}
}

// PUT, DELETE /dashboard/snapshot
func (s *SSEServer) serveSnapshot(w http.ResponseWriter, r *http.Request) {
	var line bytes.Buffer
	if r.Method == "PUT" {
		body := readBody(w, r, maxSnapshot)
		if body == nil {
			return
		}
		json.Compact(&line, body) // it is valid
	}
	s.mu.Lock()
	s.given, s.givenAt = line.Bytes(), time.Now()
	if s.renew.Reset(givenPatience); s.given == nil || s.stopping.Load() {
		s.renew.Stop()
	}
	s.mu.Unlock()
	s.deliver(s.add())
	w.WriteHeader(http.StatusNoContent)
}

// staleSnapshot says in the status of a snapshot that it is the last one, where it has one.
func staleSnapshot(data []byte, since time.Time) []byte {
	var top, status map[string]json.RawMessage
	json.Unmarshal(data, &top)
	if json.Unmarshal(top["system_status"], &status) != nil || status["status"] == nil {
		return data
	}
	status["status"] = json.RawMessage(`"stale"`)
	if status["message"] != nil {
		status["message"], _ = json.Marshal("No snapshot since " + since.Format(time.TimeOnly))
	}
	top["system_status"], _ = json.Marshal(status)
	data, _ = json.Marshal(top)
	return data
}

// GET /dashboard/trigger-test
func (s *SSEServer) serveTrigger(w http.ResponseWriter, r *http.Request) {
	if wantsEvents(r) { // the page, by a link that names this as its stream
		http.Error(w, "The trigger is no stream.", 406)
		return
	}
	f := s.deliver(s.add(newActivity(time.Now(), "info", testMessage)))
	fmt.Fprintf(w, `{"id":%d,"message":"%s sent","streams":%d}`+"\n", f.id, testMessage, f.streams)
}

// GET /health
func (s *SSEServer) serveHealth(w http.ResponseWriter, _ *http.Request) {
	io.WriteString(w, "OK")
}

// sent gives the open streams, and what all streams ever were sent.
func (s *SSEServer) sent() ([]*SSEConnection, counters) {
	s.mu.Lock()
	total := s.past
	conns := make([]*SSEConnection, 0, len(s.conns))
	for c := range s.conns {
		conns = append(conns, c)
	}
	s.mu.Unlock()
	for _, c := range conns {
		c.mu.Lock()
		total = total.plus(c.counters)
		c.mu.Unlock()
	}
	return conns, total
}

// GET /metrics
func (s *SSEServer) serveMetrics(w http.ResponseWriter, _ *http.Request) {
	var b []byte
	last := ""
	// metric appends a sample; suffix is what follows the name. NaN is left out.
	metric := func(name, suffix, kind, help string, v any) {
		if v, ok := v.(float64); ok && math.IsNaN(v) {
			return
		}
		if name != last {
			b = fmt.Appendf(b, "# HELP %s %s\n# TYPE %[1]s %[3]s\n", name, help, kind)
			last = name
		}
		b = fmt.Appendf(b, "%s%s %v\n", name, suffix, v)
	}
	conns, total := s.sent()
	cpu, resident, files := processUse()
	given, fresh := s.hasGiven(time.Now())
	s.mu.Lock()
	opened, refused, count := s.opened, s.refused, s.broadcasts
	f, closed := s.figures, maps.Clone(s.closed)
	s.mu.Unlock()

	const took = "sse_broadcast_duration_seconds"
	metric("sse_streams_open", "", "gauge", "Streams open.", len(conns))
	metric("sse_streams_opened_total", "", "counter", "Streams opened.", opened)
	metric("sse_streams_rejected_total", "", "counter", "Streams refused.", refused)
	for _, reason := range []string{"client", "error", "shutdown", "stalled"} {
		metric("sse_streams_closed_total", `{reason="`+reason+`"}`, "counter", "Streams closed.",
			closed[reason])
	}
	metric("sse_frames_sent_total", "", "counter", "Snapshots sent.", total.events)
	metric("sse_frames_skipped_total", "", "counter",
		"Snapshots that streams behind were not sent.", total.skipped)
	metric("sse_bytes_sent_total", "", "counter", "Bytes sent on streams.", total.bytes)
	metric(took, "_sum", "summary", "Time spent in broadcasts.", float64(s.spent.Load())/1e9)
	metric(took, "_count", "summary", "", count)
	metric("sse_snapshot_stale", "", "gauge", "1: one from elsewhere is overdue.",
		map[bool]int{true: 1}[given && !fresh])
	metric("sse_host_cpu_ratio", "", "gauge", "Busy part of the CPUs.", f.cpu/100)
	metric("sse_host_memory_ratio", "", "gauge", "Memory in use.", f.memory/100)
	metric("sse_host_disk_ratio", "", "gauge", "Disk in use.", f.disk/100)
	metric("sse_host_network_bytes_per_second", "", "gauge", "Received and sent.", f.network*1e6/8)
	metric("sse_probe_duration_seconds", "", "gauge", "Response time of the probe.", f.response/1e3)
	metric("process_resident_memory_bytes", "", "gauge", "Resident memory.", resident)
	metric("process_cpu_seconds_total", "", "counter", "User and system time.", cpu)
	metric("process_open_fds", "", "gauge", "File descriptors open.", files)
	metric("go_goroutines", "", "gauge", "Goroutines.", runtime.NumGoroutine())
	metric("sse_build_info", fmt.Sprintf("{version=%q,goversion=%q}", version, runtime.Version()),
		"gauge", "The version; always 1.", 1)
	w.Write(b)
}

// processUse gives this process's CPU time in seconds, resident memory in bytes and open
// descriptors; NaN where there is no /proc.
func processUse() (cpu, resident, files float64) {
	var u syscall.Rusage
	syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	cpu = float64(u.Utime.Nano()+u.Stime.Nano()) / 1e9
	resident, files = math.NaN(), math.NaN()
	if text, err := os.ReadFile("/proc/self/statm"); err == nil {
		fmt.Sscan(string(text), new(int), &resident)
		resident *= float64(os.Getpagesize())
	}
	if list, err := os.ReadDir("/proc/self/fd"); err == nil {
		files = float64(len(list))
	}
	return cpu, resident, files
}

// GET /dashboard/debug
func (s *SSEServer) serveDebug(w http.ResponseWriter, r *http.Request) {
	now := time.Now()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	s.mu.Lock()
	state := map[string]any{
		"version": version, "start": s.started, "uptime": formatUptime(now.Sub(s.started)),
		"settings": s.inForce, "streams_open": len(s.conns), "streams_allowed": s.maxStreams,
		"streams_opened": s.opened, "streams_refused": s.refused, "closed": maps.Clone(s.closed),
		"broadcasts": s.broadcasts, "newest_id": s.lastID, "goroutines": runtime.NumGoroutine(),
		"heap_bytes": m.HeapAlloc, "memory_bytes": m.Sys - m.HeapReleased,
	}
	s.mu.Unlock()
	conns, total := s.sent()
	slices.SortFunc(conns, func(a, b *SSEConnection) int { return int(b.number) - int(a.number) })
	list := []any{}
	encodings := map[bool]string{false: "identity", true: "gzip"}
	for _, c := range conns[:min(len(conns), maxListed)] {
		c.mu.Lock()
		n, behind := c.counters, 0.0
		if !c.blocked.IsZero() {
			behind = now.Sub(c.blocked).Round(time.Millisecond).Seconds()
		}
		c.mu.Unlock()
		list = append(list, map[string]any{"stream": c.number, "remote": c.remote,
			"user_agent": c.userAgent, "since": c.since, "events": n.events, "bytes": n.bytes,
			"skipped": n.skipped, "encoding": encodings[c.gzip], "seconds_behind": behind})
	}
	if s.token == "" && !isLocal(r) {
		list = nil // who reads is not for everybody
	}
	state["events_sent"], state["events_skipped"] = total.events, total.skipped
	state["bytes_sent"], state["streams"] = total.bytes, list
	json.NewEncoder(w).Encode(state)
}

// readProc parses a file of /proc; what is wrong with it is logged.
func readProc[T any](h *sampler, name string, parse func(text string) (T, error)) T {
	text, err := os.ReadFile(h.proc + "/" + name)
	v, parseErr := parse(string(text))
	if err == nil {
		err = parseErr
	}
	h.complain(name, err)
	return v
}

// cpuTimes are user, nice, system, idle, iowait, irq, softirq and steal, in clock ticks. The
// other two of proc(5), guest and guest_nice, are in user and nice already.
type cpuTimes struct {
	at    time.Time
	ticks [8]uint64
}

// since gives the busy percentage, NaN if no time has passed. A counter's step back counts nothing.
func (t cpuTimes) since(before cpuTimes) float64 {
	var busy, total float64
	for i, n := range t.ticks {
		d := float64(max(n, before.ticks[i]) - before.ticks[i])
		total += d
		if i != 3 && i != 4 { // idle, iowait
			busy += d
		}
	}
	return 100 * busy / total
}

// parseStat reads the first line of /proc/stat.
func parseStat(text string) (t cpuTimes, err error) {
	n := &t.ticks
	if _, err = fmt.Sscanf(text, "cpu %d %d %d %d %d %d %d %d", &n[0], &n[1], &n[2], &n[3],
		&n[4], &n[5], &n[6], &n[7]); err != nil {
		return cpuTimes{}, fmt.Errorf("parsing stat: %.80q: %w", text, err)
	}
	return t, nil
}

// parseMeminfo gives the percentage in use. Without MemAvailable (before Linux 3.14) it is NaN.
func parseMeminfo(text string) (float64, error) {
	total, available := uint64(0), uint64(math.MaxUint64)
	for _, line := range strings.Split(text, "\n") {
		fmt.Sscanf(line, "MemTotal: %d kB", &total)
		fmt.Sscanf(line, "MemAvailable: %d kB", &available)
	}
	if total == 0 || available > total {
		return math.NaN(), errors.New("parsing meminfo: it lacks MemTotal or MemAvailable")
	}
	return 100 * float64(total-available) / float64(total), nil
}

// parseNetDev gives the bytes received and sent, by interface; after its colon may be no space.
func parseNetDev(text string) (map[string]uint64, error) {
	bytes := map[string]uint64{}
	for _, line := range strings.Split(text, "\n") {
		if name, counters, ok := strings.Cut(line, ":"); ok { // it is no header
			var n [9]uint64
			if _, err := fmt.Sscan(counters, &n[0], &n[1], &n[2], &n[3], &n[4], &n[5], &n[6],
				&n[7], &n[8]); err != nil {
				return nil, fmt.Errorf("parsing net/dev: %q: %w", line, err)
			}
			bytes[strings.TrimSpace(name)] = n[0] + n[8]
		}
	}
	return bytes, nil
}

// parseUptime reads the first number of /proc/uptime, in seconds; -1 if that fails.
func parseUptime(text string) (time.Duration, error) {
	var seconds float64
	if _, err := fmt.Sscan(text, &seconds); err != nil || !(seconds >= 0 && seconds < 1e9) {
		return -1, fmt.Errorf("parsing uptime: %q is no number of seconds", text)
	}
	return time.Duration(seconds * float64(time.Second)), nil
}

// usedPercent rounds up as df(1) does; NaN if the file system has no blocks.
func usedPercent(blocks, free, available float64) float64 {
	return math.Ceil(100 * (blocks - free) / (blocks - free + available))
}

// localURL is the listener's URL for a client on this machine.
func localURL(l net.Listener) string {
	if a := l.Addr().(*net.TCPAddr); a.IP.IsUnspecified() {
		return fmt.Sprint("http://localhost:", a.Port)
	}
	return "http://" + l.Addr().String()
}

// originOf is the origin of an http or https URL, and "" of anything else.
func originOf(text string) string {
	u, err := url.Parse(text)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return ""
	}
	return strings.ToLower(u.Scheme + "://" + u.Host)
}

// every calls step after first, and then each d, until ctx is done.
func every(ctx context.Context, first, d time.Duration, step func(now time.Time)) {
	for t := time.NewTimer(first); ; {
		select {
		case <-ctx.Done():
			return
		case now := <-t.C:
			t.Reset(d)
			step(now)
		}
	}
}
