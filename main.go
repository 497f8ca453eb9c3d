// Command sse-server streams a live dashboard of this host over Server-Sent Events.
//
//	GET /                        the dashboard page
//	GET /dashboard/stream        the stream: one JSON snapshot per interval
//	GET /dashboard/snapshot      the newest snapshot as JSON
//	PUT /dashboard/snapshot      shows an external snapshot until DELETE
//	POST /dashboard/activities   adds an activity and broadcasts
//	GET /dashboard/trigger-test  adds a test activity and broadcasts
//	GET /dashboard/history       the metrics of the last ten minutes as JSON
//	GET /dashboard/debug         the server's state as JSON
//	GET /metrics                 metrics of the server and the host for Prometheus
//	GET /health                  OK
//
// Each setting is a flag and an environment variable (-interval, SSE_INTERVAL); -h lists them.
//
// # How it works
//
// The sampler reads the host, and SSEServer.readHost puts its metrics on the board. The board holds
// everything that viewers see: metrics, activities, an external snapshot. SSEServer.broadcast takes
// a snapshot from the board, encodes it once as an event, and offers it to each open stream.
//
// A stream is an SSEConnection: a file descriptor without a goroutine, unknown to net/http and to
// Go's poller. No send waits for a viewer. A stream whose client does not read is lagging. It is
// tried again every 100 ms and then gets the newest event. After 30 s without progress it is
// closed.
//
// Locks are taken in this order: publishing or sweeper.mu, fanOut.mu, then SSEServer.mu or an
// SSEConnection's mu. The last two are never held together.
//
// The file is in this order: main, SSEServer, events, SSEConnection, sockets, handlers, access,
// board, host sampler, config, log. You can skip the host sampler and the config.
package main

import (
	"bytes"
	"cmp"
	"compress/flate"
	"context"
	"crypto/sha256"
	"crypto/subtle"
	_ "embed"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"hash/crc32"
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
	"path/filepath"
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

// version is set by build.sh (-ldflags "-X main.version=…").
var version = "dev"

func main() {
	// A closed connection or a log pipe without a reader must not end the server.
	signal.Ignore(syscall.SIGPIPE)

	// Open streams leave no garbage, so a small heap costs little CPU.
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(50)
	}

	cfg, err := parseConfig(os.Args[1:], os.Getenv, os.Stdout)
	if errors.Is(err, flag.ErrHelp) {
		return
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "sse-server:", err)
		os.Exit(2)
	}

	ctx, stop := signal.NotifyContext(context.Background(), shutdownSignals()...)
	context.AfterFunc(ctx, stop) // a second signal ends the process at once

	err = run(ctx, cfg)
	if err != nil {
		fmt.Fprintln(os.Stderr, "sse-server:", err)
		os.Exit(1)
	}
}

// shutdownSignals includes SIGHUP (a closed terminal), unless nohup made the process ignore it.
func shutdownSignals() []os.Signal {
	signals := []os.Signal{os.Interrupt, syscall.SIGTERM}
	if !signal.Ignored(syscall.SIGHUP) {
		signals = append(signals, syscall.SIGHUP)
	}
	return signals
}

// run serves until ctx is done or the listener fails.
func run(ctx context.Context, cfg config) error {
	listener, err := net.Listen("tcp", cfg.addr)
	if err != nil {
		return fmt.Errorf("%w: choose another -addr", err)
	}

	log, flush := newLog(os.Stderr, cfg)
	defer flush()

	return newSSEServer(cfg, listener, log).serve(ctx)
}

// An SSEServer owns the listener, the open streams and the newest event.
type SSEServer struct {
	config   config
	log      *slog.Logger
	listener *limitedListener
	started  time.Time

	access     access
	pagePolicy string
	board      *board
	sampler    *sampler
	encoder    gzipEncoder
	fanOut     fanOut
	sweeper    sweeper
	streamLog  streamLog

	newest     atomic.Pointer[event] // nil while the board has nothing to show
	lastID     atomic.Int64
	heartbeats atomic.Uint64 // due since the start

	causeMu   sync.Mutex // guards following, and joins it to lastID
	nextCause string     // of the event after lastID; "": the interval

	publishing sync.Mutex    // one event at a time
	firstReady chan struct{} // closed after the first reading of the host, or at a shutdown before
	lagging    chan struct{} // capacity 1: tells catchUpLoop that some streams are lagging

	mu           sync.Mutex // guards following
	conns        map[*SSEConnection]struct{}
	connsChanges uint64 // how often conns has changed
	lastNumber   uint64 // of a stream
	stopping     bool   // no stream may join any more
	totals       totals
}

// totals count events and streams since the start.
type totals struct {
	opened        uint64            // streams
	rejected      uint64            // streams
	closed        map[string]uint64 // streams, by reason
	traffic       traffic           // of closed streams
	broadcasts    uint64
	broadcastTime time.Duration
}

// newSSEServer takes over the listener; serve closes it.
func newSSEServer(cfg config, listener net.Listener, log *slog.Logger) *SSEServer {
	if cfg.probe == "" {
		cfg.probe = probeURL(listener)
	}
	cfg.settings = maps.Clone(cfg.settings)
	cfg.settings["addr"] = listener.Addr().String()
	cfg.settings["probe"] = withoutPassword(cfg.probe)

	return &SSEServer{
		config:     cfg,
		log:        log,
		listener:   newLimitedListener(listener, connectionShare(cfg.openFiles)),
		started:    time.Now(),
		access:     newAccess(cfg, listener),
		pagePolicy: pagePolicy(cfg.origins),
		board:      newBoard(cfg.edge, time.Now()),
		sampler:    newSampler(cfg, log),
		streamLog:  streamLog{log: log},
		firstReady: make(chan struct{}),
		lagging:    make(chan struct{}, 1),
		conns:      map[*SSEConnection]struct{}{},
		totals:     totals{closed: map[string]uint64{}},
	}
}

// serve runs the server until ctx is done, then returns nil, or until the listener fails. When it
// returns, each stream is closed and each goroutine has ended, except for a read of the host that
// hangs.
func (s *SSEServer) serve(ctx context.Context) error {
	s.logStart()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()

	// During the shutdown the loops go on, because requests that are not finished need them.
	loopsCtx, stopLoops := context.WithCancel(context.Background())
	defer stopLoops()
	loops := s.startLoops(ctx, loopsCtx)

	httpServer := s.newHTTPServer()
	var serveErr error
	served := make(chan struct{})
	go func() {
		defer close(served)
		serveErr = httpServer.Serve(s.listener)
	}()

	select {
	case <-ctx.Done():
	case <-served: // the listener failed
		cancel()
	}

	start := time.Now()
	s.finishRequests(httpServer)
	stopLoops()
	closed := s.closeStreams()
	loops.Wait()
	<-served

	s.streamLog.summarize(0)
	s.log.Info("stopped", "streams_closed", closed, "duration", time.Since(start))
	if serveErr != http.ErrServerClosed {
		return fmt.Errorf("accepting connections: %w", serveErr)
	}
	return nil
}

// startLoops starts all that runs beside the requests. The heartbeat and the probe end with ctx.
// The other loops end with loopsCtx.
func (s *SSEServer) startLoops(ctx, loopsCtx context.Context) *sync.WaitGroup {
	var loops sync.WaitGroup
	start := func(loop func()) {
		loops.Add(1)
		go func() {
			defer loops.Done()
			loop()
		}()
	}

	interval := s.config.heartbeat
	start(func() { every(ctx, interval, interval, s.heartbeat) })
	start(func() { every(loopsCtx, sweepInterval, sweepInterval, s.sweep) })
	start(func() { every(loopsCtx, time.Second, time.Second, s.summarizeStreams) })
	start(func() { s.catchUpLoop(loopsCtx) })

	if s.config.edge { // it never shows the host, so it does not read it
		close(s.firstReady)
		return &loops
	}
	start(func() { s.sampleLoop(loopsCtx) })
	start(func() { s.sampler.probe.loop(ctx) })
	if s.config.interval > 0 && !s.broadcastsEachSample() {
		start(func() { every(loopsCtx, s.config.interval, s.config.interval, s.tick) })
	}
	return &loops
}

func (s *SSEServer) newHTTPServer() *http.Server {
	const (
		headTimeout    = 5 * time.Second
		requestTimeout = 10 * time.Second // not for streams, which net/http does not know
		idleTimeout    = 2 * time.Minute  // longer than in load balancers and clients
		maxHead        = 16 << 10         // bytes of request line and headers
		extra          = 4 << 10          // bytes that net/http allows beyond MaxHeaderBytes
	)
	return &http.Server{
		Handler:           s,
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelWarn),
		ReadHeaderTimeout: headTimeout,
		ReadTimeout:       requestTimeout,
		WriteTimeout:      requestTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHead - extra,
		ConnState:         s.listener.noteState,
		ConnContext: func(ctx context.Context, conn net.Conn) context.Context {
			return context.WithValue(ctx, connKey{}, conn)
		},
	}
}

// connKey is the context key of a request's net.Conn.
type connKey struct{}

// finishRequests gives short requests a moment to finish. Streams are not among them.
func (s *SSEServer) finishRequests(httpServer *http.Server) {
	const patience = 800 * time.Millisecond

	s.listener.closeSilent() // net/http would wait for them
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	httpServer.Shutdown(ctx)
	httpServer.Close()
}

// closeStreams closes each stream and returns their number.
func (s *SSEServer) closeStreams() int {
	s.mu.Lock()
	s.stopping = true
	s.mu.Unlock()

	return s.forEachStream(time.Now(), func(c *SSEConnection, _ time.Time) error {
		s.remove(c, errShutdown)
		return nil
	})
}

// sampleLoop puts the host's metrics on the board, until ctx is done. It also broadcasts them if
// that is due as often.
func (s *SSEServer) sampleLoop(ctx context.Context) {
	const firstDelay = 500 * time.Millisecond

	// Rates need two readings.
	s.sampler.readCounters()
	isReady := sleep(ctx, firstDelay)
	if isReady {
		s.readHost()
	}
	close(s.firstReady) // also at the end, so that no request waits longer
	if !isReady {
		return
	}
	s.broadcast("start")

	every(ctx, s.sampler.interval, s.sampler.interval, func(now time.Time) {
		s.readHost()
		if s.broadcastsEachSample() {
			s.tick(now)
		}
	})
}

// broadcastsEachSample tells whether the host is read for each broadcast, and not at other times.
func (s *SSEServer) broadcastsEachSample() bool {
	return s.config.interval == s.sampler.interval
}

func (s *SSEServer) readHost() {
	s.sampler.read()
	metrics, changes := s.sampler.sample()
	s.board.update(metrics, changes)
}

// tick broadcasts the host's metrics, unless an external snapshot is shown.
func (s *SSEServer) tick(time.Time) {
	if s.board.source() == sourceHost {
		s.broadcast(causeInterval)
	}
}

// minInterval is the least time between two broadcasts: at most twenty a second.
const minInterval = 50 * time.Millisecond

// broadcast makes an event of the board's snapshot and offers it to each stream. It waits for the
// first reading of the host, for another broadcast or fan-out, and until minInterval has passed.
// It never waits for a viewer. Callers that wait at the same time share one event, so a flood of
// them makes at most one per minInterval. It returns nil if there was nothing to show. The cause
// is for the log.
func (s *SSEServer) broadcast(cause string) *event {
	before := s.announce(cause)
	<-s.firstReady
	s.publishing.Lock()
	defer s.publishing.Unlock()

	// If the id has changed, an event was begun after this call. It shows the caller's change of
	// the board.
	newest := s.newest.Load()
	isBegun := s.lastID.Load() != before
	if isBegun {
		return newest
	}
	if newest != nil {
		time.Sleep(minInterval - time.Since(newest.time))
	}
	return s.publishLocked(time.Now())
}

// publishLocked makes the next event and offers it to each stream. It returns nil if there is
// nothing to show. The caller holds publishing.
func (s *SSEServer) publishLocked(now time.Time) *event {
	// The id is stored before the snapshot is taken: see broadcast.
	id, cause := s.takeID(now)
	snapshot, source := s.board.snapshot(now)
	if snapshot == nil {
		s.newest.Store(nil)
		return nil
	}
	e := newEvent(id, now, snapshot)
	e.source = source
	// The first compressed stream pays for the compression. Without one there is none.
	e.compress = sync.OnceFunc(func() { s.encoder.encode(e, s.heartbeats.Load()) })
	s.newest.Store(e)
	e.streams = s.forEachStream(now, s.offer)
	duration := time.Since(now)

	s.mu.Lock()
	s.totals.broadcasts++
	s.totals.broadcastTime += duration
	s.mu.Unlock()

	s.logBroadcast(e, cause, duration)
	return e
}

// announce notes the cause of the next event and returns the id of the last one.
func (s *SSEServer) announce(cause string) (lastID int64) {
	s.causeMu.Lock()
	defer s.causeMu.Unlock()
	if cause != causeInterval {
		s.nextCause = cause
	}
	return s.lastID.Load()
}

// takeID returns the id of the next event and its cause.
func (s *SSEServer) takeID(now time.Time) (id int64, cause string) {
	s.causeMu.Lock()
	defer s.causeMu.Unlock()
	id = max(s.lastID.Load()+1, now.UnixMilli())
	s.lastID.Store(id)

	cause = causeInterval
	if s.nextCause != "" {
		cause = s.nextCause
	}
	s.nextCause = ""
	return id, cause
}

// heartbeat makes a heartbeat due and offers it to each stream, whatever else was sent. A lagging
// stream gets it after its event, and only one if several were due.
func (s *SSEServer) heartbeat(now time.Time) {
	s.heartbeats.Add(1)
	streams := s.forEachStream(now, s.offer)

	logLevel := slog.LevelInfo
	if streams == 0 {
		logLevel = slog.LevelDebug
	}
	s.log.Log(context.Background(), logLevel, "heartbeat", "streams", streams)
}

// A fanOut keeps the sorted streams between two calls of forEachStream.
type fanOut struct {
	mu      sync.Mutex // guards following; one fan-out at a time
	sorted  []*SSEConnection
	changes uint64 // connsChanges when sorted was made
}

// forEachStream calls f for each open stream and returns how often f returned nil. A stream for
// which f returns an error is removed after f was called for all, except after errLagging and
// errNotOpen.
func (s *SSEServer) forEachStream(now time.Time, f func(*SSEConnection, time.Time) error) int {
	s.fanOut.mu.Lock()
	s.sortConnsLocked()
	count, failures := callForEach(s.fanOut.sorted, now, f)
	s.fanOut.mu.Unlock()

	for c, err := range failures {
		s.remove(c, err)
	}
	return count
}

// sortConnsLocked brings the sorted connections up to date. In the order in which they were
// opened, sending costs 7 % less CPU than in the map's random order. The caller holds fanOut.mu.
func (s *SSEServer) sortConnsLocked() {
	f := &s.fanOut

	s.mu.Lock()
	isCurrent := f.changes == s.connsChanges
	if !isCurrent {
		clear(f.sorted) // so that closed streams can be freed
		f.sorted = f.sorted[:0]
		for c := range s.conns {
			f.sorted = append(f.sorted, c)
		}
		f.changes = s.connsChanges
	}
	s.mu.Unlock()

	if !isCurrent {
		slices.SortFunc(f.sorted, byNumber)
	}
}

func byNumber(a, b *SSEConnection) int {
	return cmp.Compare(a.number, b.number)
}

// callForEach calls f for each connection, on all cores where that pays. It returns how often f
// returned nil, and the errors for which a stream is to be removed.
func callForEach(conns []*SSEConnection, now time.Time,
	f func(*SSEConnection, time.Time) error) (int, map[*SSEConnection]error) {
	const connsPerWorker = 256 // for fewer, a further goroutine costs more than it saves

	var next, count atomic.Int64
	var mu sync.Mutex // guards failures
	failures := map[*SSEConnection]error{}
	work := func() {
		for {
			i := int(next.Add(1)) - 1
			if i >= len(conns) {
				return
			}
			err := f(conns[i], now)
			switch err {
			case nil:
				count.Add(1)
			case errLagging, errNotOpen: // catchUpLoop and serveStream take care of it
			default:
				mu.Lock()
				failures[conns[i]] = err
				mu.Unlock()
			}
		}
	}

	workers := min(runtime.GOMAXPROCS(0), len(conns)/connsPerWorker)
	var others sync.WaitGroup
	for i := 1; i < workers; i++ { // this goroutine is the first worker
		others.Add(1)
		go func() {
			defer others.Done()
			work()
		}()
	}
	work()
	others.Wait()
	return int(count.Load()), failures
}

// offer sends due events and heartbeats to c, unless it is lagging. A failed stream counts as
// lagging. catchUpLoop meets its error again and removes it, so that the other streams do not wait.
func (s *SSEServer) offer(c *SSEConnection, now time.Time) error {
	err := c.sendDue(s.newest.Load(), s.heartbeats.Load(), now, false)
	if err == nil || err == errNotOpen {
		return err
	}
	s.wakeCatchUpLoop()
	return errLagging
}

// catchUp sends due events and heartbeats to c, even if it is lagging. It also starts a new stream.
// After an error other than errLagging and errNotOpen, the caller removes the stream.
func (s *SSEServer) catchUp(c *SSEConnection, now time.Time) error {
	err := c.sendDue(s.newest.Load(), s.heartbeats.Load(), now, true)
	if err == errLagging {
		s.wakeCatchUpLoop()
	}
	return err
}

func (s *SSEServer) wakeCatchUpLoop() {
	select {
	case s.lagging <- struct{}{}:
	default: // it wakes up anyway
	}
}

// catchUpInterval is the time between two tries of a lagging stream.
const catchUpInterval = 100 * time.Millisecond

// catchUpLoop lets lagging streams catch up, until ctx is done. While none is lagging it sleeps.
func (s *SSEServer) catchUpLoop(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.lagging:
		}
		if !sleep(ctx, catchUpInterval) {
			return
		}
		s.forEachStream(time.Now(), s.catchUp)
	}
}

// sweepInterval is the time between two checks for clients that are gone.
const sweepInterval = 1500 * time.Millisecond

// A sweeper keeps the time of the last sweep.
type sweeper struct {
	mu   sync.Mutex // guards following; one sweep at a time
	last time.Time
}

// sweep removes the streams whose client is gone, unless that was done a moment ago.
func (s *SSEServer) sweep(now time.Time) {
	s.sweeper.mu.Lock()
	defer s.sweeper.mu.Unlock()
	if now.Sub(s.sweeper.last) < catchUpInterval {
		return
	}
	s.sweeper.last = now

	s.forEachStream(now, func(c *SSEConnection, _ time.Time) error { return c.checkClient() })
}

// reserve puts c into the map and gives it its number. It returns false if there is no room.
func (s *SSEServer) reserve(c *SSEConnection) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopping || len(s.conns) >= s.config.maxStreams {
		return false
	}

	s.lastNumber++
	c.number = s.lastNumber
	s.conns[c] = struct{}{}
	s.connsChanges++
	return true
}

// remove closes c, takes it out of the map, and counts why. It does nothing the second time.
func (s *SSEServer) remove(c *SSEConnection, err error) {
	if !c.close(err) {
		return
	}
	reason := reasonOf(err)

	s.mu.Lock()
	delete(s.conns, c)
	s.connsChanges++
	s.totals.closed[reason]++
	s.totals.traffic = s.totals.traffic.plus(c.traffic)
	open := len(s.conns)
	s.mu.Unlock()

	s.streamLog.closed(c, reason, err, open)
}

// release takes c, which was reserved and could not be opened, out of the map. It counts nothing.
func (s *SSEServer) release(c *SSEConnection) {
	c.close(nil)

	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, c)
	s.connsChanges++
}

var (
	errLagging  = errors.New("the stream is lagging")
	errNotOpen  = errors.New("the stream has no descriptor")
	errStalled  = errors.New("no progress for " + stallLimit.String())
	errShutdown = errors.New("the server is shutting down")
)

// reasonOf is the reason under which a stream that ended with err is counted.
func reasonOf(err error) string {
	switch err {
	case errShutdown:
		return "shutdown"
	case errStalled, syscall.ETIMEDOUT: // the latter is the kernel's limit: configureSocket
		return "stalled"
	case io.EOF, syscall.EPIPE, syscall.ECONNRESET:
		return "client"
	}
	return "error"
}

func (s *SSEServer) logStart() {
	attrs := []any{"url", localURL(s.listener) + "/", "version", version}
	s.log.Info("listening", append(attrs, s.config.changed...)...)
	if s.config.token == "" && !s.access.onLoopback {
		s.log.Warn("no token: anyone who can reach the port can read the stream and trigger " +
			"broadcasts; set SSE_TOKEN")
	}
}

// causeInterval is the cause of broadcasts that were due by time.
const causeInterval = "interval"

// logBroadcast logs a broadcast and its cause. If only the interval caused it, it logs at debug.
func (s *SSEServer) logBroadcast(e *event, cause string, duration time.Duration) {
	logLevel := slog.LevelInfo
	if cause == causeInterval {
		logLevel = slog.LevelDebug
	}
	s.log.Log(context.Background(), logLevel, "broadcast",
		"cause", cause, "id", e.id, "streams", e.streams, "duration", duration)
}

func (s *SSEServer) summarizeStreams(time.Time) {
	s.mu.Lock()
	open := len(s.conns)
	s.mu.Unlock()
	s.streamLog.summarize(open)
}

// every calls step after first, and then after each interval, until ctx is done.
func every(ctx context.Context, first, interval time.Duration, step func(now time.Time)) {
	if !sleep(ctx, first) {
		return
	}
	ticker := time.NewTicker(interval)
	defer ticker.Stop()

	step(time.Now())
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C: // its own time may be long past, if the last step took long
			step(time.Now())
		}
	}
}

// sleep returns false if ctx is done before d has passed.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

// An event is a snapshot as streams get it, encoded once for all of them. Its bytes never change.
type event struct {
	id       int64
	time     time.Time
	snapshot []byte // one line of JSON
	source   string // of the snapshot
	plain    chunk
	streams  int // that got it; guarded by SSEServer.publishing

	// For compressed streams. The first one to need them calls compress, which makes the rest.
	compress        func()
	key             chunk  // decodes with an empty window
	delta           chunk  // for streams that got the base event and as many heartbeats since
	deltaBase       int64  // id of the event before, as far as the encoder knows
	deltaHeartbeats uint64 // since then
}

func newEvent(id int64, now time.Time, snapshot []byte) *event {
	data := fmt.Appendf(nil, "id: %d\ndata: %s\n\n", id, snapshot)
	return &event{id: id, time: now, snapshot: snapshot, plain: newChunk(data)}
}

// A chunk is a part of a response body with its size line and its end (RFC 9112, section 7.1). An
// HTTP/1.0 client gets the data alone, which is a slice of the whole.
type chunk struct {
	whole []byte
	data  []byte
}

func newChunk(data []byte) chunk {
	const end = "\r\n"

	whole := fmt.Appendf(nil, "%x\r\n", len(data))
	start := len(whole)
	whole = append(whole, data...)
	whole = append(whole, end...)
	return chunk{whole: whole, data: whole[start : len(whole)-len(end)]}
}

// lastChunk ends the body for HTTP/1.1 clients.
const lastChunk = "0\r\n\r\n"

const heartbeatText = ": heartbeat\n\n"

var plainHeartbeat = newChunk([]byte(heartbeatText))

// gzipHeartbeat ends with an empty block, because some readers hold a stored block back until they
// see the next one.
var gzipHeartbeat = newChunk(append(storedBlock(heartbeatText), storedBlock("")...))

// newRetry is a line with a random reconnection time, so that clients do not all return at once.
func newRetry(leastSeconds, mostSeconds int) string {
	ms := 1000*leastSeconds + rand.Intn(1000*(mostSeconds-leastSeconds))
	return fmt.Sprintf("retry: %d\n", ms)
}

// gzipHead begins a compressed stream: no time, no name (RFC 1952, section 2.3).
const gzipHead = "\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"

// A gzipEncoder compresses each event once for all streams (RFC 1951). Its window holds the last
// event that it compressed. Before the next one, the heartbeats since then are added.
type gzipEncoder struct {
	mu         sync.Mutex    // guards following
	writer     *flate.Writer // nil until the first compressed stream
	out        bytes.Buffer
	lastID     int64  // of the event in the window
	heartbeats uint64 // that were due when it was encoded
}

// maxDeltaHeartbeats limits the work for a delta frame if no event comes for long. It also catches
// a negative difference: an older event may be encoded after a newer one.
const maxDeltaHeartbeats = 100

// encode makes the key frame and the delta frame of e. heartbeats is the number due so far.
func (g *gzipEncoder) encode(e *event, heartbeats uint64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.writer == nil {
		g.writer, _ = flate.NewWriter(&g.out, flate.DefaultCompression) // a valid level
	}

	e.deltaBase = g.lastID
	e.deltaHeartbeats = heartbeats - g.heartbeats
	if e.deltaHeartbeats > maxDeltaHeartbeats {
		e.deltaBase = -1 // no stream's last id: all get the key frame
		e.deltaHeartbeats = 0
	}
	g.lastID = e.id
	g.heartbeats = heartbeats

	// Adds the heartbeats to the window.
	g.compressLocked([]byte(strings.Repeat(heartbeatText, int(e.deltaHeartbeats))))
	e.delta = newChunk(g.compressLocked(e.plain.data))

	g.writer.Reset(&g.out)
	e.key = newChunk(g.compressLocked(e.plain.data))
}

// compressLocked compresses b up to a byte boundary, so that anything may follow. The result is
// valid until the next call.
func (g *gzipEncoder) compressLocked(b []byte) []byte {
	g.out.Reset()
	g.writer.Write(b)
	g.writer.Flush()
	return g.out.Bytes()
}

// storedBlock wraps a short text uncompressed (RFC 1951, section 3.2.4).
func storedBlock(text string) []byte {
	n := len(text)
	header := []byte{0, byte(n), byte(n >> 8), ^byte(n), ^byte(n >> 8)}
	return append(header, text...)
}

// gzipEnd completes a compressed stream: an empty final block, then the checksum and the length of
// the uncompressed data (RFC 1952, section 2.3.1).
func gzipEnd(checksum, length uint32) []byte {
	end := []byte{0x03, 0x00}
	end = binary.LittleEndian.AppendUint32(end, checksum)
	return binary.LittleEndian.AppendUint32(end, length)
}

// An SSEConnection is one stream. Its descriptor is used and closed only under mu, because the
// number of a closed descriptor may belong to another connection a moment later.
type SSEConnection struct {
	mu                   sync.Mutex // guards following
	fd                   int        // notOpen or isClosed, if negative
	unsent               []byte     // the rest of a partly sent event
	last                 int64      // id of the newest event that was begun
	pending              int64      // id of the event that the stream has yet to get; 0: none
	heartbeats           uint64     // the number of the last heartbeat that it has got
	heartbeatsSinceEvent uint64     // heartbeats sent since the newest event
	traffic              traffic
	lastProgress         time.Time // while it is lagging; else zero
	err                  error     // why the stream can send no more
	checksum             uint32    // of the uncompressed data of a compressed stream
	length               uint32    // of the same

	// These do not change once the stream is in the map.
	number    uint64
	gzip      bool
	chunked   bool // the client speaks HTTP/1.1
	remote    string
	userAgent string
	since     time.Time
}

// Values of SSEConnection.fd that are no descriptors.
const (
	notOpen  = -1
	isClosed = -2
)

// stallLimit is the time without progress after which a lagging stream is closed. Progress means
// that the kernel took something. A client that needs longer for one event looks stalled. If all
// was sent and nothing is acknowledged, the kernel's limit ends the stream: configureSocket.
const stallLimit = 30 * time.Second

// traffic counts sent events and bytes, and skipped events.
type traffic struct {
	events, skipped, bytes uint64
}

func (t traffic) plus(o traffic) traffic {
	return traffic{
		events:  t.events + o.events,
		skipped: t.skipped + o.skipped,
		bytes:   t.bytes + o.bytes,
	}
}

// begin starts the stream on fd with its head, its retry and the newest event. It sends nothing
// yet. If the stream was closed in the meantime, begin closes fd.
func (c *SSEConnection) begin(fd int, head string, newest *event, heartbeats uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.fd == isClosed {
		closeSocket(fd)
		return
	}

	c.fd = fd
	c.heartbeats = heartbeats
	c.unsent = append([]byte(head), c.encodeStart()...)
	if newest != nil {
		c.unsent = append(c.unsent, c.encode(newest)...)
		c.noteBegun(newest)
	}
}

// sendDue sends the rest of a partly sent event, the newest event and a heartbeat, as far as the
// kernel takes them without waiting. A lagging stream only notes the event, unless tryLagging is
// set. sendDue returns errLagging if it could not send everything.
func (c *SSEConnection) sendDue(newest *event, heartbeats uint64, now time.Time,
	tryLagging bool) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.fd < 0 {
		return errNotOpen
	}
	if c.err != nil {
		return c.err
	}

	c.notePending(newest)
	if c.isLagging() && !tryLagging {
		return errLagging
	}

	before := c.traffic.bytes
	c.sendUnsent()
	c.sendEvent(newest)
	c.sendHeartbeat(heartbeats)
	if c.err != nil {
		return c.err
	}

	if c.isUpToDate(heartbeats) {
		c.lastProgress = time.Time{}
		return nil
	}
	hasProgress := c.traffic.bytes > before
	return c.checkProgress(now, hasProgress)
}

// The methods from here to send are called with c.mu held.

// notePending makes newest the event that the stream has to get. An older pending event is skipped.
func (c *SSEConnection) notePending(newest *event) {
	if newest == nil { // an edge's snapshot was deleted
		c.skipPending()
		return
	}
	if newest.id <= c.last || newest.id <= c.pending {
		return
	}
	c.skipPending()
	c.pending = newest.id
}

func (c *SSEConnection) skipPending() {
	if c.pending != 0 {
		c.traffic.skipped++
		c.pending = 0
	}
}

// sendUnsent sends the rest of the event that was begun.
func (c *SSEConnection) sendUnsent() {
	if len(c.unsent) > 0 {
		c.send(c.unsent)
	}
}

// sendEvent begins newest, if it is the pending one and nothing else is unfinished.
func (c *SSEConnection) sendEvent(newest *event) {
	if c.pending == 0 || newest == nil || newest.id != c.pending {
		return
	}
	if len(c.unsent) > 0 || c.err != nil {
		return
	}

	if c.send(c.encode(newest)) {
		c.noteBegun(newest)
	}
}

// noteBegun notes that e is sent, at least in part. The rest of it follows before anything else.
func (c *SSEConnection) noteBegun(e *event) {
	c.last = e.id
	c.pending = 0
	c.heartbeatsSinceEvent = 0
	c.traffic.events++
	c.addToChecksum(e.plain.data)
}

// sendHeartbeat sends one heartbeat, even if several are due.
func (c *SSEConnection) sendHeartbeat(heartbeats uint64) {
	if c.pending != 0 || len(c.unsent) > 0 || c.err != nil {
		return
	}
	if heartbeats <= c.heartbeats {
		return
	}

	heartbeat := plainHeartbeat
	if c.gzip {
		heartbeat = gzipHeartbeat
	}
	if !c.send(c.wire(heartbeat)) {
		return
	}
	c.heartbeats = heartbeats
	c.heartbeatsSinceEvent++
	c.addToChecksum(plainHeartbeat.data)
}

// isUpToDate tells whether the stream has got everything.
func (c *SSEConnection) isUpToDate(heartbeats uint64) bool {
	return c.pending == 0 && len(c.unsent) == 0 && c.heartbeats >= heartbeats
}

func (c *SSEConnection) isLagging() bool {
	return !c.lastProgress.IsZero()
}

// checkProgress returns errLagging, or errStalled if there was no progress for too long.
func (c *SSEConnection) checkProgress(now time.Time, hasProgress bool) error {
	if hasProgress || !c.isLagging() {
		c.lastProgress = now
		return errLagging
	}
	if now.Sub(c.lastProgress) >= stallLimit {
		c.err = errStalled
		return c.err
	}
	return errLagging
}

// encode returns the bytes of e for this stream.
func (c *SSEConnection) encode(e *event) []byte {
	if !c.gzip {
		return c.wire(e.plain)
	}
	e.compress()
	isInWindow := c.last == e.deltaBase && c.heartbeatsSinceEvent == e.deltaHeartbeats
	if isInWindow {
		return c.wire(e.delta)
	}
	return c.wire(e.key)
}

// wire returns the bytes of a chunk for this stream's client.
func (c *SSEConnection) wire(part chunk) []byte {
	if c.chunked {
		return part.whole
	}
	return part.data
}

// encodeStart returns the start of the body: a retry that only this stream gets.
func (c *SSEConnection) encodeStart() []byte {
	retry := newRetry(1, 5)
	start := []byte(retry)
	if c.gzip {
		c.addToChecksum(start)
		start = append([]byte(gzipHead), storedBlock(retry)...)
	}
	return c.wire(newChunk(start))
}

// encodeEnd returns the end of the body. It starts with a retry, which tells the client when to
// come back, and then completes the body.
func (c *SSEConnection) encodeEnd() []byte {
	retry := newRetry(1, 5) + "\n"
	end := []byte(retry)
	if c.gzip {
		c.addToChecksum(end)
		end = append(storedBlock(retry), gzipEnd(c.checksum, c.length)...)
	}
	end = c.wire(newChunk(end))
	if c.chunked {
		end = append(end, lastChunk...)
	}
	return end
}

// addToChecksum counts data of a compressed stream for the end of the stream: see gzipEnd.
func (c *SSEConnection) addToChecksum(data []byte) {
	if c.gzip {
		c.checksum = crc32.Update(c.checksum, crc32.IEEETable, data)
		c.length += uint32(len(data))
	}
}

// send gives b to the kernel and tells whether the kernel took any of it. The part that it did
// not take becomes c.unsent.
func (c *SSEConnection) send(b []byte) bool {
	n, err := sendNow(c.fd, b)
	if err == syscall.EAGAIN || err == syscall.EINTR || err == syscall.ENOBUFS {
		return false // it is tried again
	}
	if err != nil {
		c.err = err
		return false
	}

	c.traffic.bytes += uint64(n)
	c.unsent = b[n:]
	if len(c.unsent) == 0 {
		c.unsent = nil // lets the event go
	}
	return true
}

// checkClient drops bytes from the client. An error, such as io.EOF, means that the client is gone.
func (c *SSEConnection) checkClient() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.fd < 0 {
		return errNotOpen
	}
	return discardInput(c.fd)
}

// close closes the stream because of err and tells whether it was still open. From then on its
// traffic is final.
func (c *SSEConnection) close(err error) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.fd == isClosed {
		return false
	}
	if c.fd == notOpen {
		c.fd = isClosed
		return true
	}

	// In all other cases, the kernel still delivers the bytes that it has.
	switch err {
	case errStalled:
		dropUnsent(c.fd)
	case errShutdown:
		c.send(append(slices.Clone(c.unsent), c.encodeEnd()...))
	}
	// close(2) with unread bytes would reset the connection and drop the unsent bytes.
	discardInput(c.fd)
	closeSocket(c.fd)
	c.fd = isClosed
	c.unsent = nil
	return true
}

// Sockets. Only this part has system calls. Descriptors do not block.

// Values of Linux that package syscall does not name for each system: tcp(7), send(2), recv(2).
const (
	tcpUserTimeout  = 18
	tcpNotsentLowat = 25
	msgTrunc        = 0x20
	msgEOR          = 0x80
	msgNoSignal     = 0x4000
)

// sendtoCall and recvfromCall are Linux's numbers of these system calls on this processor. They
// are 0 on other systems and processors.
var sendtoCall, recvfromCall = socketCalls()

func socketCalls() (sendto, recvfrom uintptr) {
	if runtime.GOOS != "linux" {
		return 0, 0
	}
	switch runtime.GOARCH {
	case "amd64":
		return 44, 45
	case "arm64", "riscv64", "loong64":
		return 206, 207
	case "arm":
		return 290, 292
	case "ppc64", "ppc64le":
		return 335, 337
	}
	return 0, 0
}

// takeOver duplicates the descriptor of a request's connection and closes the original, so that
// net/http and Go's poller forget it. If there is no free descriptor, the request can still get an
// answer.
func takeOver(w http.ResponseWriter, r *http.Request) (int, error) {
	raw, err := r.Context().Value(connKey{}).(syscall.Conn).SyscallConn()
	if err != nil {
		return -1, err
	}
	fd, err := duplicate(raw)
	if err != nil {
		return -1, err
	}

	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		syscall.Close(fd)
		return -1, err
	}
	conn.Close()
	configureSocket(fd)
	return fd, nil
}

func duplicate(raw syscall.RawConn) (int, error) {
	fd := -1
	var dupErr error
	err := raw.Control(func(old uintptr) {
		// No child process may start between dup and close-on-exec.
		syscall.ForkLock.RLock()
		defer syscall.ForkLock.RUnlock()
		fd, dupErr = syscall.Dup(int(old))
		if dupErr == nil {
			syscall.CloseOnExec(fd)
		}
	})
	if err == nil {
		err = dupErr
	}
	if err != nil {
		return -1, fmt.Errorf("duplicating a descriptor: %w", err)
	}
	return fd, nil
}

// configureSocket limits the kernel's buffers of a stream.
func configureSocket(fd int) {
	const (
		sendBuffer    = 64 << 10
		receiveBuffer = 4 << 10
		vanishLimit   = 45000 // ms without an acknowledgement
	)
	syscall.SetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_SNDBUF, sendBuffer)
	syscall.SetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_RCVBUF, receiveBuffer)
	if runtime.GOOS == "linux" {
		// Linux takes an event only once the earlier ones have left the machine. So a viewer that
		// stops reading soon holds one event, and gets the newest one later.
		syscall.SetsockoptInt(fd, syscall.IPPROTO_TCP, tcpNotsentLowat, 1)
		syscall.SetsockoptInt(fd, syscall.IPPROTO_TCP, tcpUserTimeout, vanishLimit)
	}
}

// sendNow gives b to the kernel, which takes as much as it can at once. Without MSG_EOR, Linux
// would append b to the last packet that waits, whatever tcpNotsentLowat says.
func sendNow(fd int, b []byte) (int, error) {
	if sendtoCall != 0 {
		return rawCall(sendtoCall, fd, unsafe.SliceData(b), len(b), msgNoSignal|msgEOR)
	}
	flags := 0
	if runtime.GOOS == "linux" {
		flags = msgNoSignal | msgEOR
	}
	return syscall.SendmsgN(fd, b, nil, nil, flags)
}

// discardInput drops bytes from the client, at most 64 KiB. It returns io.EOF if the client has
// closed its side.
func discardInput(fd int) error {
	const reads = 4

	for i := 0; i < reads; i++ {
		n, err := receiveNow(fd)
		switch {
		case err == syscall.EAGAIN || err == syscall.EINTR:
			return nil
		case err != nil:
			return err
		case n == 0:
			return io.EOF
		}
	}
	return nil
}

// receiveNow reads away some bytes and returns their number. On Linux, MSG_TRUNC needs no buffer.
func receiveNow(fd int) (int, error) {
	if recvfromCall != 0 {
		return rawCall(recvfromCall, fd, nil, 16<<10, msgTrunc)
	}
	return syscall.Read(fd, make([]byte, 4<<10))
}

// rawCall is sendto(2) or recvfrom(2) without an address. The descriptor does not block, so the
// call needs none of the Go scheduler's work for blocking calls. That saves 10 % of the CPU. The
// scheduler cannot run other goroutines in place of this one during the call.
func rawCall(call uintptr, fd int, b *byte, n int, flags uintptr) (int, error) {
	r, _, errno := syscall.RawSyscall6(call,
		uintptr(fd), uintptr(unsafe.Pointer(b)), uintptr(n), flags, 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(r), nil
}

// hasInput tells whether there are unread bytes from the client.
func hasInput(conn net.Conn) bool {
	socket, ok := conn.(syscall.Conn)
	if !ok {
		return false
	}
	raw, err := socket.SyscallConn()
	if err != nil {
		return false
	}

	n := 0
	raw.Control(func(fd uintptr) {
		first := make([]byte, 1)
		n, _, _ = syscall.Recvfrom(int(fd), first, syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
	})
	return n > 0
}

// dropUnsent makes close drop the bytes that the kernel still has.
func dropUnsent(fd int) {
	syscall.SetsockoptLinger(fd, syscall.SOL_SOCKET, syscall.SO_LINGER, &syscall.Linger{Onoff: 1})
}

func closeSocket(fd int) {
	syscall.Shutdown(fd, syscall.SHUT_WR)
	syscall.Close(fd)
}

// A limitedListener keeps the connections that are not streams to a share of the descriptors: short
// requests, idle connections, and incomplete request heads. So they never use the descriptors that
// streams, /proc and the log need. While the share is used up, newcomers wait in the backlog, and
// connections that keep the server waiting are closed.
type limitedListener struct {
	net.Listener
	share int
	freed chan struct{} // capacity 1: a connection was closed or became a stream

	closeOnce sync.Once
	done      chan struct{} // closed by Close

	mu          sync.Mutex // guards following
	conns       map[net.Conn]*connState
	closedCount uint64 // to make room
}

// A connState is the state of a connection that is not a stream.
type connState struct {
	isActive bool // its request head is complete
	waits    int  // looks in a row at which the server was waiting for the client
}

// lookInterval is the time between two looks at the connections. Counting looks instead of time is
// fair on a busy machine: there the looks are late, too.
const lookInterval = 10 * time.Millisecond

func newLimitedListener(listener net.Listener, share int) *limitedListener {
	return &limitedListener{
		Listener: listener,
		share:    share,
		freed:    make(chan struct{}, 1),
		done:     make(chan struct{}),
		conns:    map[net.Conn]*connState{},
	}
}

// Accept is for one goroutine, that of http.Server.
func (l *limitedListener) Accept() (net.Conn, error) {
	for !l.makeRoom() {
		select {
		case <-l.freed:
		case <-time.After(lookInterval):
			l.look()
		case <-l.done:
			return nil, net.ErrClosed
		}
	}

	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	l.noteState(conn, http.StateNew)
	return conn, nil
}

func (l *limitedListener) Close() error {
	l.closeOnce.Do(func() { close(l.done) })
	return l.Listener.Close()
}

// noteState is the ConnState hook of http.Server.
func (l *limitedListener) noteState(conn net.Conn, state http.ConnState) {
	l.mu.Lock()
	defer l.mu.Unlock()

	switch state {
	case http.StateNew, http.StateIdle:
		l.conns[conn] = &connState{}
	case http.StateActive:
		l.conns[conn] = &connState{isActive: true}
	case http.StateHijacked, http.StateClosed:
		delete(l.conns, conn)
		select {
		case l.freed <- struct{}{}:
		default: // Accept wakes up anyway
		}
	}
}

// look notes which connections keep the server waiting. One with a request that the server has yet
// to read does not.
func (l *limitedListener) look() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for conn, state := range l.conns {
		state.waits++
		if !state.isActive && hasInput(conn) {
			state.waits = 0
		}
	}
}

// isFull tells whether the share is used up.
func (l *limitedListener) isFull() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.conns) >= l.share
}

// closeSilent closes the connections on which no request has begun.
func (l *limitedListener) closeSilent() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for conn, state := range l.conns {
		if !state.isActive && !hasInput(conn) {
			conn.Close()
		}
	}
}

// makeRoom tells whether there is room for one more connection. If there is none, it closes the
// one that keeps the server waiting longest, if that is too long.
func (l *limitedListener) makeRoom() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.conns) < l.share {
		return true
	}

	var longest net.Conn
	most := 0
	for conn, state := range l.conns {
		overdue := state.overdue()
		if overdue > most {
			longest, most = conn, overdue
		}
	}
	if longest == nil {
		return false
	}
	longest.Close()
	delete(l.conns, longest)
	l.closedCount++
	return true
}

// overdue is the number of looks by which a connection exceeds its patience.
func (c *connState) overdue() int {
	const (
		headPatience = 9   // looks, for a complete request head: about 100 ms
		bodyPatience = 200 // looks, for a body, and for an answer that is not read: about 2 s
	)
	if c.isActive {
		return c.waits - bodyPatience
	}
	return c.waits - headPatience
}

// closed returns how many connections were closed to make room.
func (l *limitedListener) closed() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.closedCount
}

// A route has the methods of a path, as in an Allow header, and the handler.
type route struct {
	methods     string
	contentType string
	serve       handler
}

type handler func(*SSEServer, http.ResponseWriter, *http.Request)

const (
	typeHTML    = "text/html; charset=utf-8"
	typeJSON    = "application/json"
	typeText    = "text/plain; charset=utf-8"
	typeEvents  = "text/event-stream"
	typeMetrics = "text/plain; version=0.0.4" // Prometheus' text format
)

const snapshotMethods = "GET, HEAD, PUT, DELETE"

var routes = map[string]route{
	"/":                       newRoute("GET, HEAD", typeHTML, (*SSEServer).servePage),
	"/dashboard/stream":       newRoute("GET, HEAD", typeEvents, (*SSEServer).serveStream),
	"/dashboard/snapshot":     newRoute(snapshotMethods, typeJSON, (*SSEServer).serveSnapshot),
	"/dashboard/activities":   newRoute("POST", typeJSON, (*SSEServer).serveActivities),
	"/dashboard/trigger-test": newRoute("GET", typeJSON, (*SSEServer).serveTrigger),
	"/dashboard/history":      newRoute("GET, HEAD", typeJSON, (*SSEServer).serveHistory),
	"/dashboard/debug":        newRoute("GET, HEAD", typeJSON, (*SSEServer).serveDebug),
	"/metrics":                newRoute("GET, HEAD", typeMetrics, (*SSEServer).serveMetrics),
	"/health":                 newRoute("GET, HEAD", typeText, (*SSEServer).serveHealth),
}

func newRoute(methods, contentType string, serve handler) route {
	return route{methods: methods, contentType: contentType, serve: serve}
}

// ServeHTTP checks access, finds the route, and lets the pages of allowed origins use it.
func (s *SSEServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	header := w.Header()
	header.Set("Vary", "Origin")
	header.Set("Cache-Control", "no-store")
	header.Set("X-Content-Type-Options", "nosniff")
	if s.listener.isFull() { // newcomers need the place
		header.Set("Connection", "close")
	}
	origin := r.Header.Get("Origin")
	isAllowedOrigin := slices.Contains(s.config.origins, origin)
	if isAllowedOrigin {
		header.Set("Access-Control-Allow-Origin", origin)
	}

	rejected := s.access.check(r)
	if rejected != nil {
		s.reject(w, r, rejected)
		return
	}

	found, ok := routes[r.URL.Path]
	if !ok {
		s.reject(w, r, notFound)
		return
	}

	methods := strings.Split(found.methods, ", ")
	switch {
	case slices.Contains(methods, r.Method):
		header.Set("Content-Type", found.contentType)
		found.serve(s, w, r)
	case r.Method == "OPTIONS" && isAllowedOrigin:
		header.Set("Access-Control-Allow-Methods", found.methods)
		header.Set("Access-Control-Allow-Headers",
			"Authorization, Content-Type, Cache-Control, Last-Event-ID")
		w.WriteHeader(http.StatusNoContent)
	default:
		header.Set("Allow", found.methods)
		s.reject(w, r, newRejection(405, "Use "+found.methods+" here."))
	}
}

// A rejection is the answer to a request that is not served. Its sentence is for people.
type rejection struct {
	status   int
	sentence string
}

func newRejection(status int, sentence string) *rejection {
	return &rejection{status: status, sentence: sentence}
}

var notFound = newRejection(404,
	"There is nothing here: the page is /, the stream /dashboard/stream.")

// reject answers a request that is not served.
func (s *SSEServer) reject(w http.ResponseWriter, r *http.Request, rejected *rejection) {
	if rejected.status == http.StatusUnauthorized {
		w.Header().Set("WWW-Authenticate", `Basic realm="sse-server", charset="UTF-8"`)
	}
	s.log.Debug("request rejected", "remote", r.RemoteAddr, "method", r.Method,
		"path", r.URL.Path, "status", rejected.status, "reason", rejected.sentence)
	http.Error(w, rejected.sentence, rejected.status)
}

//go:embed dashboard.html
var pageTemplate string

// pageHash names this version of the page. An open page compares it with the one in the history,
// and so notices a newer version.
var pageHash = fmt.Sprintf("%x", sha256.Sum256([]byte(pageTemplate)))

// page is what a browser gets.
var page = strings.Replace(withoutComments(pageTemplate), "{{page-hash}}", pageHash, 1)

// withoutComments leaves out what a browser does not need: indentation, and the comments of the
// script, which stand on their own lines or after " // ".
func withoutComments(text string) string {
	var kept strings.Builder
	for _, line := range strings.SplitAfter(text, "\n") {
		line = strings.TrimLeft(line, " ")
		if strings.HasPrefix(line, "// ") {
			continue
		}
		code, _, hasComment := strings.Cut(line, " // ")
		kept.WriteString(code)
		if hasComment {
			kept.WriteString("\n")
		}
	}
	return kept.String()
}

// pagePolicy allows the page its own script and style, and requests to this server. Pages of the
// allowed origins may show it in a frame.
func pagePolicy(origins []string) string {
	return strings.Join([]string{
		"default-src 'none'",
		"connect-src 'self'",
		"img-src data:",
		"base-uri 'none'",
		"form-action 'none'",
		strings.Join(append([]string{"frame-ancestors 'self'"}, origins...), " "),
		"script-src " + hashOf("script"),
		"style-src " + hashOf("style"),
	}, "; ")
}

// hashOf is the source expression of the page's one element of that name (CSP Level 3).
func hashOf(element string) string {
	_, text, _ := strings.Cut(page, "<"+element+">")
	text, _, _ = strings.Cut(text, "</"+element+">")
	sum := sha256.Sum256([]byte(text))
	return "'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "'"
}

// GET /
func (s *SSEServer) servePage(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Security-Policy", s.pagePolicy)
	w.Header().Set("Referrer-Policy", "no-referrer")
	io.WriteString(w, page)
}

// GET /dashboard/stream
func (s *SSEServer) serveStream(w http.ResponseWriter, r *http.Request) {
	const maxUserAgent = 128 // characters

	c := &SSEConnection{
		fd:        notOpen,
		remote:    r.RemoteAddr,
		userAgent: truncate(r.UserAgent(), maxUserAgent),
		since:     time.Now(),
		gzip:      wantsGzip(r, s.config.gzip),
		chunked:   r.ProtoAtLeast(1, 1),
	}
	if r.Method == "HEAD" {
		setStreamHeader(w.Header(), c)
		return
	}

	// If there is no room, clients that are gone make some.
	ok := s.reserve(c)
	if !ok {
		s.sweep(c.since)
		ok = s.reserve(c)
	}
	if !ok {
		s.rejectStream(w, r, nil)
		return
	}

	fd, err := takeOver(w, r)
	if err != nil {
		s.release(c)
		s.rejectStream(w, r, err)
		return
	}
	s.noteOpened(c)
	setStreamHeader(w.Header(), c)
	c.begin(fd, streamHead(w.Header()), s.newest.Load(), s.heartbeats.Load())

	// This sends the bytes that begin has prepared, and an event that came in the meantime.
	err = s.catchUp(c, c.since)
	if err != nil && err != errLagging && err != errNotOpen {
		s.remove(c, err)
	}
}

func (s *SSEServer) noteOpened(c *SSEConnection) {
	s.mu.Lock()
	s.totals.opened++
	s.mu.Unlock()
	s.streamLog.opened(c)
}

// setStreamHeader completes the header of a stream.
func setStreamHeader(header http.Header, c *SSEConnection) {
	header.Set("Cache-Control", "no-cache, no-transform")
	header.Set("Connection", "close")
	header.Set("Date", c.since.UTC().Format(http.TimeFormat))
	header.Set("Vary", "Origin, Accept-Encoding, User-Agent")
	header.Set("X-Accel-Buffering", "no")
	if c.chunked {
		header.Set("Transfer-Encoding", "chunked")
	}
	if c.gzip {
		header.Set("Content-Encoding", "gzip")
	}
}

// streamHead returns the head of a response.
func streamHead(header http.Header) string {
	var head strings.Builder
	head.WriteString("HTTP/1.1 200 OK\r\n")
	header.Write(&head)
	head.WriteString("\r\n")
	return head.String()
}

// Values of -gzip.
const (
	gzipBrowsers = "browsers"
	gzipAll      = "all"
	gzipOff      = "off"
)

// wantsGzip tells whether the stream is to be compressed. By default only clients get gzip that
// show each block at once. Others, such as Ruby's Net::HTTP and Varnish, ask for gzip and then
// wait for 16 KiB of text and more.
func wantsGzip(r *http.Request, setting string) bool {
	isVarnish := r.Header.Get("X-Varnish") != ""
	if setting == gzipOff || isVarnish || !acceptsGzip(r) {
		return false
	}
	if setting == gzipAll {
		return true
	}
	isBrowser := strings.HasPrefix(r.UserAgent(), "Mozilla/") ||
		r.Header.Get("Sec-Fetch-Mode") != "" // Node's fetch sends it, too
	isOurs := strings.HasPrefix(r.UserAgent(), "sse-client/")
	return isBrowser || isOurs
}

// acceptsGzip reads Accept-Encoding (RFC 9110, section 12.5.3).
func acceptsGzip(r *http.Request) bool {
	return accepts(r.Header.Values("Accept-Encoding"), "gzip")
}

// acceptsEvents reads Accept (RFC 9110, section 12.5.1). A wildcard does not count.
func acceptsEvents(r *http.Request) bool {
	return accepts(r.Header.Values("Accept"), typeEvents)
}

// accepts tells whether a header has an element of that name. The first one counts, in all lines of
// the header. It must not have the quality 0.
func accepts(lines []string, name string) bool {
	for _, element := range strings.Split(strings.Join(lines, ","), ",") {
		found, params, err := mime.ParseMediaType(element)
		if err != nil || found != name {
			continue
		}
		q, hasQuality := params["q"]
		if !hasQuality {
			return true
		}
		quality, err := strconv.ParseFloat(q, 64)
		return err == nil && quality > 0
	}
	return false
}

// rejectStream answers a request for a stream that cannot be opened. The cause is err or, if that
// is nil, that the server is full. EventSource gives up permanently on any status but 200. So it
// gets a stream that ends and says when to come back.
func (s *SSEServer) rejectStream(w http.ResponseWriter, r *http.Request, err error) {
	const leastWait, mostWait = 5, 30 // seconds

	s.mu.Lock()
	s.totals.rejected++
	open, isStopping := len(s.conns), s.stopping
	s.mu.Unlock()

	state := fmt.Sprintf("full, %d streams are open", open)
	switch {
	case isStopping:
		state = "stopping"
	case err != nil:
		state = "unable to open a stream"
	}
	s.streamLog.rejected(r.RemoteAddr, state, err)

	w.Header().Set("Connection", "close")
	if acceptsEvents(r) {
		fmt.Fprintf(w, "%s: %s\n\n", newRetry(leastWait, mostWait), state)
		return
	}
	w.Header().Set("Retry-After", strconv.Itoa(leastWait+rand.Intn(mostWait-leastWait)))
	http.Error(w, "The server is "+state+": try again later.", http.StatusServiceUnavailable)
}

// GET, PUT, DELETE /dashboard/snapshot
func (s *SSEServer) serveSnapshot(w http.ResponseWriter, r *http.Request) {
	switch r.Method {
	case "PUT":
		s.putSnapshot(w, r)
	case "DELETE":
		s.board.deleteExternal(time.Now())
		s.broadcast("delete")
		w.WriteHeader(http.StatusNoContent)
	default:
		s.getSnapshot(w, r)
	}
}

func (s *SSEServer) getSnapshot(w http.ResponseWriter, r *http.Request) {
	newest := s.newest.Load()
	if newest == nil {
		w.Header().Set("Retry-After", "1")
		s.reject(w, r, newRejection(503, "There is no snapshot yet: try again later."))
		return
	}
	w.Write(newest.snapshot)
	io.WriteString(w, "\n")
}

func (s *SSEServer) putSnapshot(w http.ResponseWriter, r *http.Request) {
	const maxSnapshot = 64 << 10 // bytes

	body, rejected := readObject(w, r, maxSnapshot)
	if rejected != nil {
		s.reject(w, r, rejected)
		return
	}
	s.board.putExternal(oneLine(body), time.Now())
	s.broadcast("snapshot")
	w.WriteHeader(http.StatusNoContent)
}

// lineEnds end a line in some languages. In JSON they stand in strings only.
var lineEnds = strings.NewReplacer("\u2028", `\u2028`, "\u2029", `\u2029`, "\u0085", `\u0085`)

// oneLine puts valid JSON on one line. Its strings stay as they are, except for line ends.
func oneLine(valid []byte) []byte {
	var line bytes.Buffer
	json.Compact(&line, valid)
	return []byte(lineEnds.Replace(line.String()))
}

// readObject reads the request's body, which must be a JSON object of at most limit bytes.
func readObject(w http.ResponseWriter, r *http.Request, limit int64) ([]byte, *rejection) {
	mediaType, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if mediaType != typeJSON {
		return nil, newRejection(415, "Content-Type must be application/json.")
	}

	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, limit))
	var tooLarge *http.MaxBytesError
	if errors.As(err, &tooLarge) {
		return nil, newRejection(413, fmt.Sprintf("The body may have at most %d bytes.", limit))
	}
	if err != nil {
		return nil, newRejection(400, "The body is incomplete.")
	}
	if !utf8.Valid(body) {
		return nil, newRejection(400, "The body must be valid UTF-8.")
	}
	if !json.Valid(body) || bytes.TrimSpace(body)[0] != '{' {
		return nil, newRejection(400, "The body must be one JSON object.")
	}
	return body, nil
}

// POST /dashboard/activities
func (s *SSEServer) serveActivities(w http.ResponseWriter, r *http.Request) {
	const maxBody = 4 << 10 // bytes

	body, rejected := readObject(w, r, maxBody)
	if rejected != nil {
		s.reject(w, r, rejected)
		return
	}
	a, rejected := parseActivity(body, time.Now())
	if rejected != nil {
		s.reject(w, r, rejected)
		return
	}
	if s.board.source() != sourceHost {
		s.reject(w, r, noPlaceForActivity)
		return
	}

	s.board.add(a)
	e := s.broadcast("activity")
	if e == nil || e.source != sourceHost { // in the meantime an external snapshot was put
		s.board.takeOff(a)
		s.reject(w, r, noPlaceForActivity)
		return
	}
	w.WriteHeader(http.StatusCreated)
	writeJSON(w, map[string]any{"activity": a, "id": e.id, "streams": e.streams})
}

var noPlaceForActivity = newRejection(409,
	"No snapshot of this host is shown: add the activity to the external snapshots.")

// parseActivity checks the body of a POST: {"message":"…","level":"info"}.
func parseActivity(body []byte, now time.Time) (activity, *rejection) {
	const maxMessage = 500 // characters

	// A map, because encoding/json would take "Message" for "message" in a struct.
	posted := map[string]any{"level": "info"}
	json.Unmarshal(body, &posted) // it is valid; a number that is too large stays out
	message, _ := posted["message"].(string)
	level, _ := posted["level"].(string)

	if len(posted) > 2 {
		return activity{}, newRejection(400, "The body may only have the keys message and level.")
	}
	length := utf8.RuneCountInString(message)
	if length < 1 || length > maxMessage || strings.ContainsFunc(message, unicode.IsControl) {
		return activity{}, newRejection(400,
			"The message must have 1 to 500 characters and no control characters.")
	}
	if !slices.Contains([]string{"info", "success", "warning", "error"}, level) {
		return activity{}, newRejection(400, "The level must be info, success, warning or error.")
	}
	return newActivity(now, level, message), nil
}

// GET /dashboard/trigger-test
func (s *SSEServer) serveTrigger(w http.ResponseWriter, r *http.Request) {
	if acceptsEvents(r) { // from the page, if a link names this as its stream
		s.reject(w, r, newRejection(406, "The trigger is not a stream."))
		return
	}

	test := newTestActivity(time.Now())
	isAdded := s.board.source() == sourceHost
	if isAdded {
		s.board.add(test)
	}
	e := s.broadcast("trigger")
	if e == nil {
		s.reject(w, r, newRejection(409, "There is no snapshot to send yet."))
		return
	}

	message := "Test broadcast sent"
	if e.source != sourceHost {
		message = "External snapshot sent again"
	}
	if e.source != sourceHost && isAdded { // in the meantime an external snapshot was put
		s.board.takeOff(test)
	}
	writeJSON(w, map[string]any{"id": e.id, "message": message, "streams": e.streams})
}

// GET /dashboard/history
func (s *SSEServer) serveHistory(w http.ResponseWriter, r *http.Request) {
	var after int64 // Unix ms
	query := r.URL.Query().Get("after")
	if query != "" {
		var err error
		after, err = strconv.ParseInt(query, 10, 64)
		if err != nil {
			s.reject(w, r, newRejection(400,
				"The parameter after must be a time in Unix milliseconds."))
			return
		}
	}

	s.mu.Lock()
	streams := len(s.conns)
	s.mu.Unlock()

	now := time.Now()
	view := s.board.view(now)
	// The interval of external snapshots is unknown.
	interval := 0.0
	samples := []historySample{}
	alarms := []alarmReply{}
	if view.source == sourceHost {
		interval = s.config.interval.Seconds()
		samples = s.board.samples(after)
		alarms = append(alarms, view.metrics.alarms...)
	}
	_, zone := now.Zone() // seconds
	writeJSON(w, map[string]any{
		"now":      now.UnixMilli(),
		"zone":     1000 * zone,
		"interval": interval,
		"streams":  streams,
		"page":     pageHash,
		"source":   map[string]any{"kind": view.source, "since": view.since.UnixMilli()},
		"alarms":   alarms,
		"samples":  samples,
	})
}

// GET /health
func (s *SSEServer) serveHealth(w http.ResponseWriter, _ *http.Request) {
	io.WriteString(w, "OK")
}

// A serverState has the values that /dashboard/debug and /metrics share. Reading them needs locks.
type serverState struct {
	conns   []*SSEConnection // open streams, newest first
	totals  totals
	traffic traffic // of all streams, open or closed
	board   boardView
}

func (s *SSEServer) state(now time.Time) serverState {
	state := serverState{board: s.board.view(now)}

	s.mu.Lock()
	state.totals = s.totals
	state.totals.closed = maps.Clone(s.totals.closed)
	for c := range s.conns {
		state.conns = append(state.conns, c)
	}
	s.mu.Unlock()

	slices.SortFunc(state.conns, func(a, b *SSEConnection) int { return byNumber(b, a) })
	state.traffic = state.totals.traffic
	for _, c := range state.conns {
		state.traffic = state.traffic.plus(c.currentTraffic())
	}
	return state
}

func (c *SSEConnection) currentTraffic() traffic {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.traffic
}

// GET /dashboard/debug
func (s *SSEServer) serveDebug(w http.ResponseWriter, r *http.Request) {
	now := time.Now()
	state := s.state(now)
	var memory runtime.MemStats
	runtime.ReadMemStats(&memory)

	// Settings may have secrets in a URL, and streams have the addresses of viewers.
	var settings map[string]string
	var streams []any
	if s.access.maySeeDetails(r) {
		settings = s.config.settings
		streams = describeStreams(state.conns, now)
	}

	writeJSON(w, map[string]any{
		"version":              version,
		"started":              s.started,
		"uptime":               formatUptime(now.Sub(s.started)),
		"settings":             settings,
		"source":               state.board.source,
		"status":               state.board.status,
		"snapshot_age_seconds": rounded(state.board.age, 3),
		"streams_open":         len(state.conns),
		"streams_allowed":      s.config.maxStreams,
		"streams_opened":       state.totals.opened,
		"streams_rejected":     state.totals.rejected,
		"streams_closed":       state.totals.closed, // by reason
		"connections_closed":   s.listener.closed(), // to make room
		"events_sent":          state.traffic.events,
		"events_skipped":       state.traffic.skipped,
		"bytes_sent":           state.traffic.bytes,
		"broadcasts":           state.totals.broadcasts,
		"last_id":              s.lastID.Load(),
		"goroutines":           runtime.NumGoroutine(),
		"heap_bytes":           memory.HeapAlloc,
		"memory_bytes":         memory.Sys - memory.HeapReleased,
		"streams":              streams, // newest first
	})
}

// describeStreams describes the newest hundred of the streams.
func describeStreams(conns []*SSEConnection, now time.Time) []any {
	const maxListed = 100

	list := []any{}
	for _, c := range conns[:min(len(conns), maxListed)] {
		list = append(list, c.describe(now))
	}
	return list
}

func (c *SSEConnection) describe(now time.Time) map[string]any {
	c.mu.Lock()
	defer c.mu.Unlock()

	encoding := "identity"
	if c.gzip {
		encoding = "gzip"
	}
	var lagging time.Duration // since the last progress
	if c.isLagging() {
		lagging = max(0, now.Sub(c.lastProgress).Round(time.Millisecond))
	}
	return map[string]any{
		"stream":          c.number,
		"remote":          c.remote,
		"user_agent":      c.userAgent,
		"since":           c.since,
		"encoding":        encoding,
		"events":          c.traffic.events,
		"skipped":         c.traffic.skipped,
		"bytes":           c.traffic.bytes,
		"lagging_seconds": lagging.Seconds(),
	}
}

// GET /metrics
func (s *SSEServer) serveMetrics(w http.ResponseWriter, _ *http.Request) {
	state := s.state(time.Now())
	totals, host := state.totals, state.board.metrics
	lines := []metricLine{
		gauge("sse_streams_open", "Open streams.", float64(len(state.conns))),
		gauge("sse_streams_allowed", "Most open streams.", float64(s.config.maxStreams)),
		counter("sse_streams_opened_total", "Streams opened.", float64(totals.opened)),
		counter("sse_streams_rejected_total", "Streams rejected.", float64(totals.rejected)),
		counter("sse_connections_closed_total", "Connections closed to make room.",
			float64(s.listener.closed())),
		counter("sse_events_sent_total", "Events sent.", float64(state.traffic.events)),
		counter("sse_events_skipped_total", "Events that lagging streams did not get.",
			float64(state.traffic.skipped)),
		counter("sse_bytes_sent_total", "Bytes sent.", float64(state.traffic.bytes)),
		counter("sse_broadcasts_total", "Broadcasts.", float64(totals.broadcasts)),
		counter("sse_broadcast_seconds_total", "Time spent in broadcasts.",
			totals.broadcastTime.Seconds()),
		gauge("sse_snapshot_age_seconds", "Time since the shown snapshot last changed.",
			state.board.age),
		gauge("sse_host_cpu_ratio", "Busy part of the CPUs.", host.cpu/100),
		gauge("sse_host_memory_ratio", "Memory in use.", host.memory/100),
		gauge("sse_host_disk_ratio", "Disk in use.", host.disk/100),
		gauge("sse_host_network_bytes_per_second", "Bytes received and sent.", host.network*1e6/8),
		gauge("sse_probe_duration_seconds", "Response time of the probe.", host.responseTime/1000),
		gauge("sse_build_info", "The version; always 1.", 1).
			with("version", version).with("goversion", runtime.Version()),
	}
	for _, reason := range []string{"client", "error", "shutdown", "stalled"} {
		count := float64(totals.closed[reason])
		m := counter("sse_streams_closed_total", "Streams closed.", count)
		lines = append(lines, m.with("reason", reason))
	}
	if state.board.status != "" {
		m := gauge("sse_status", "The shown status; always 1.", 1)
		lines = append(lines, m.with("status", state.board.status))
	}
	writeMetrics(w, lines)
}

// A metricLine is one line of Prometheus' text format. NaN is left out.
type metricLine struct {
	name, kind, help string
	labels           []string // name="value"
	value            float64
}

func gauge(name, help string, value float64) metricLine {
	return metricLine{name: name, kind: "gauge", help: help, value: value}
}

func counter(name, help string, value float64) metricLine {
	return metricLine{name: name, kind: "counter", help: help, value: value}
}

var labelEscapes = strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`)

func (m metricLine) with(label, value string) metricLine {
	const maxValue = 100 // characters

	value = labelEscapes.Replace(truncate(value, maxValue))
	m.labels = append(m.labels, label+`="`+value+`"`)
	return m
}

// writeMetrics needs the lines of one name one after the other.
func writeMetrics(w io.Writer, lines []metricLine) {
	var b []byte
	described := ""
	for _, m := range lines {
		if math.IsNaN(m.value) {
			continue
		}
		if m.name != described {
			b = fmt.Appendf(b, "# HELP %s %s\n# TYPE %s %s\n", m.name, m.help, m.name, m.kind)
			described = m.name
		}
		b = append(b, m.name...)
		if len(m.labels) > 0 {
			b = fmt.Appendf(b, "{%s}", strings.Join(m.labels, ","))
		}
		b = fmt.Appendf(b, " %v\n", m.value)
	}
	w.Write(b)
}

func writeJSON(w io.Writer, value any) {
	json.NewEncoder(w).Encode(value)
}

// An access decides which requests are served. It does no I/O.
type access struct {
	origins    []string // whose pages may read
	mayWrite   bool     // the pages of origins may write, too
	token      string   // "": none is needed
	onLoopback bool     // only this machine can reach the server
}

func newAccess(cfg config, listener net.Listener) access {
	return access{
		origins:    cfg.origins,
		mayWrite:   cfg.hasOrigins,
		token:      cfg.token,
		onLoopback: listener.Addr().(*net.TCPAddr).IP.IsLoopback(),
	}
}

// check returns nil if the request may be served.
func (a access) check(r *http.Request) *rejection {
	if r.URL.Path == "/health" {
		return nil
	}

	// A page may have a name that someone else made resolve to 127.0.0.1.
	if a.onLoopback && !a.knowsHost(r.Host) {
		return newRejection(403,
			"The server does not serve this host name: add its origin to -origins.")
	}
	// A link to the page is harmless.
	if r.URL.Path != "/" && !a.isFromAllowedPage(r) {
		return newRejection(403,
			"Pages of other origins may use the server only if -origins names theirs.")
	}
	if !isSafe(r.Method) && !a.mayWrite && !isFromOwnPage(r) {
		return newRejection(403,
			"Pages of other origins may write only if -origins is set and names theirs.")
	}

	if a.token == "" {
		if !isSafe(r.Method) && !isLocal(r) {
			return newRejection(403,
				"Without SSE_TOKEN, only requests from this machine may do that.")
		}
		return nil
	}
	if r.Method == "OPTIONS" { // browsers send no token with it
		return nil
	}
	if !a.hasToken(r) {
		return newRejection(401,
			"Send the server's token, as Authorization: Bearer or as the password.")
	}
	return nil
}

// maySeeDetails tells whether a request that was not rejected may see settings and viewers.
func (a access) maySeeDetails(r *http.Request) bool {
	return a.token != "" || isLocal(r)
}

// hasToken compares in constant time.
func (a access) hasToken(r *http.Request) bool {
	_, sent, _ := r.BasicAuth()
	scheme, rest, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	if strings.EqualFold(scheme, "Bearer") {
		sent = strings.TrimLeft(rest, " ") // RFC 9110, section 11.4: one or more spaces
	}
	return subtle.ConstantTimeCompare([]byte(sent), []byte(a.token)) == 1
}

// isFromAllowedPage tells whether a request comes from no page, from a page of this server, or
// from a page of an allowed origin.
func (a access) isFromAllowedPage(r *http.Request) bool {
	return slices.Contains(a.origins, pageOrigin(r)) || isFromOwnPage(r)
}

// isFromOwnPage tells whether a request comes from no page, or from a page of this server.
func isFromOwnPage(r *http.Request) bool {
	site := r.Header.Get("Sec-Fetch-Site")
	if site != "" && !isOwnSite(site) {
		return false
	}
	origin := pageOrigin(r)
	if origin == "" {
		return true
	}
	host := hostOf(origin)
	return host != "" && strings.EqualFold(host, r.Host)
}

// pageOrigin is the origin of the page that makes the request, or "" if none is known. Over plain
// http some browsers send nothing but a Referer.
func pageOrigin(r *http.Request) string {
	origin := r.Header.Get("Origin")
	if origin == "" && !isOwnSite(r.Header.Get("Sec-Fetch-Site")) {
		origin = originOf(r.Referer())
	}
	return origin
}

func isOwnSite(site string) bool {
	return site == "same-origin" || site == "none"
}

// knowsHost tells whether a Host header names this machine or an allowed origin.
func (a access) knowsHost(host string) bool {
	if host == "" || isLoopback(host) {
		return true
	}
	return slices.ContainsFunc(a.origins, func(origin string) bool {
		return hostname(hostOf(origin)) == hostname(host)
	})
}

// isSafe tells whether a method changes nothing (RFC 9110, section 9.2.1).
func isSafe(method string) bool {
	return method == "GET" || method == "HEAD" || method == "OPTIONS"
}

var proxyHeader = regexp.MustCompile("^(Forwarded|Via|X-Forwarded-.*|X-Real-Ip)$")

// isLocal tells whether a request comes from this machine and through no proxy. A proxy on this
// machine that sends none of these headers is not recognised.
func isLocal(r *http.Request) bool {
	// The header counts even if it is empty, because a client may have sent it so.
	for name := range r.Header {
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

// hostname is the host of host:port or host, in lower case and without the final dot.
func hostname(hostport string) string {
	u := url.URL{Host: hostport}
	return strings.TrimSuffix(strings.ToLower(u.Hostname()), ".")
}

// originOf is the origin of an http or https URL, and "" for anything else.
func originOf(text string) string {
	u, err := url.Parse(text)
	if err != nil || u.Host == "" {
		return ""
	}
	if u.Scheme != "http" && u.Scheme != "https" {
		return ""
	}
	return strings.ToLower(u.Scheme + "://" + u.Host)
}

// hostOf is the host, with its port, of an origin.
func hostOf(origin string) string {
	_, host, _ := strings.Cut(origin, "//")
	return host
}

// A board holds everything that viewers see: the host's metrics and recent activities, or an
// external snapshot. It does no I/O.
type board struct {
	edge bool // there are no metrics of the host

	mu             sync.Mutex // guards following
	metrics        metrics
	activities     []activity // newest first
	history        []slot     // oldest first
	external       []byte     // nil: none is shown
	externalStatus string     // its status
	lastChanged    time.Time  // when the shown snapshot last changed
	sourceSince    time.Time  // since when the source is what it is
}

func newBoard(edge bool, now time.Time) *board {
	return &board{edge: edge, metrics: noMetrics, sourceSince: now}
}

// What can be shown.
const (
	sourceHost     = "host"
	sourceExternal = "external"
	sourceNone     = "none" // an edge without a snapshot
)

// A boardView is the board at one moment.
type boardView struct {
	source  string
	since   time.Time // of the source
	status  string    // system_status.status of the shown snapshot; "" if it has none
	age     float64   // seconds since the shown snapshot last changed; NaN if there is none
	metrics metrics   // of the host
}

func (b *board) view(now time.Time) boardView {
	b.mu.Lock()
	defer b.mu.Unlock()

	v := boardView{
		source:  b.sourceLocked(),
		since:   b.sourceSince,
		age:     math.NaN(),
		metrics: b.metrics,
	}
	switch v.source {
	case sourceHost:
		v.status = b.metrics.status
	case sourceExternal:
		v.status = b.externalStatus
	}
	if v.source != sourceNone && !b.lastChanged.IsZero() {
		v.age = max(0, now.Sub(b.lastChanged).Seconds())
	}
	return v
}

// source returns the kind of the shown snapshot.
func (b *board) source() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.sourceLocked()
}

func (b *board) sourceLocked() string {
	switch {
	case b.external != nil:
		return sourceExternal
	case b.edge:
		return sourceNone
	}
	return sourceHost
}

// update puts the newest metrics of the host and the changes of its alarms on the board.
func (b *board) update(m metrics, changes []activity) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, a := range changes {
		b.addLocked(a)
	}
	b.metrics = m
	b.history = addToHistory(b.history, m)
}

// add puts an activity before the recent ones. Consecutive test broadcasts become one.
func (b *board) add(a activity) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.addLocked(a)
}

func (b *board) addLocked(a activity) {
	const maxActivities = 10

	if a.isTest && len(b.activities) > 0 && b.activities[0].isTest {
		b.activities = b.activities[1:]
	}
	kept := b.activities[:min(len(b.activities), maxActivities-1)]
	b.activities = append([]activity{a}, kept...)
}

// takeOff removes an activity that no event shows.
func (b *board) takeOff(a activity) {
	b.mu.Lock()
	defer b.mu.Unlock()
	i := slices.Index(b.activities, a)
	if i >= 0 {
		b.activities = slices.Delete(b.activities, i, i+1)
	}
}

// putExternal shows an external snapshot, one line of JSON, in place of the host's own.
func (b *board) putExternal(snapshot []byte, now time.Time) {
	status := statusOf(snapshot)

	b.mu.Lock()
	defer b.mu.Unlock()
	if b.external == nil {
		b.sourceSince = now
	}
	if !bytes.Equal(snapshot, b.external) {
		b.lastChanged = now
	}
	b.external = snapshot
	b.externalStatus = status
}

func (b *board) deleteExternal(now time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.external != nil {
		b.sourceSince = now
	}
	b.external = nil
}

// snapshot returns the shown snapshot as one line of JSON, or nil if there is none, and its source.
// It notes the time, because a snapshot of the host is new each time.
func (b *board) snapshot(now time.Time) (line []byte, source string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.external != nil {
		return b.external, sourceExternal
	}
	if b.metrics.time.IsZero() { // an edge, or before the first reading
		return nil, sourceNone
	}
	b.lastChanged = now
	return formatSnapshot(b.metrics, b.activities, now), sourceHost
}

// statusOf finds the status in a snapshot of any form.
func statusOf(snapshot []byte) string {
	var fields, status map[string]json.RawMessage
	var text string
	json.Unmarshal(snapshot, &fields)
	json.Unmarshal(fields["system_status"], &status)
	json.Unmarshal(status["status"], &text) // leaves "" if it is no string
	return text
}

// samples returns the host's metrics of the last ten minutes, in slots that begin after a time in
// Unix ms.
func (b *board) samples(after int64) []historySample {
	b.mu.Lock()
	defer b.mu.Unlock()

	samples := []historySample{}
	for _, s := range b.history {
		if s.start > after {
			samples = append(samples, s.sample())
		}
	}
	return samples
}

// A slot holds the metrics of two seconds of the server's clock.
type slot struct {
	start int64 // Unix ms

	cpu, memory, disk, network, responseTime slotValue
}

// addToHistory adds m to its slot and drops the slots that are too old.
func addToHistory(history []slot, m metrics) []slot {
	const (
		span   = int64(10 * time.Minute / time.Millisecond)
		length = int64(2 * time.Second / time.Millisecond)
	)
	start := m.time.UnixMilli() / length * length

	for len(history) > 0 && history[0].start <= start-span {
		history = history[1:]
	}
	// If the clock stepped back, drop the slots that are now in the future.
	for len(history) > 0 && history[len(history)-1].start > start {
		history = history[:len(history)-1]
	}
	if len(history) == 0 || history[len(history)-1].start < start {
		history = append(history, slot{start: start})
	}

	s := &history[len(history)-1]
	s.cpu.add(m.cpu)
	s.memory.add(m.memory)
	s.disk.add(m.disk)
	s.network.add(m.network)
	s.responseTime.add(m.responseTime)
	return history
}

// A slotValue is the mean and the maximum of a metric in a slot.
type slotValue struct {
	sum, max float64
	count    int
}

func (v *slotValue) add(value float64) {
	if math.IsNaN(value) {
		return
	}
	v.sum += value
	v.max = max(v.max, value)
	v.count++
}

// A historySample is a slot as /dashboard/history shows it.
type historySample struct {
	Time         int64              `json:"time"` // Unix ms
	CPU          *float64           `json:"cpu"`  // null: not measured
	Memory       *float64           `json:"memory"`
	Disk         *float64           `json:"disk"`
	Network      *float64           `json:"network"`       // Mbps
	ResponseTime *float64           `json:"response_time"` // ms
	Max          map[string]float64 `json:"max,omitempty"` // where it is not the mean
}

func (s slot) sample() historySample {
	maxima := map[string]float64{}
	mean := func(metric string, v slotValue) *float64 {
		if v.count == 0 {
			return nil
		}
		mean, most := rounded(v.sum/float64(v.count), 2), rounded(v.max, 2)
		if *most != *mean {
			maxima[metric] = *most
		}
		return mean
	}
	return historySample{
		Time:         s.start,
		CPU:          mean("cpu", s.cpu),
		Memory:       mean("memory", s.memory),
		Disk:         mean("disk", s.disk),
		Network:      mean("network", s.network),
		ResponseTime: mean("response_time", s.responseTime),
		Max:          maxima,
	}
}

// rounded returns nil for NaN, which JSON does not have.
func rounded(value float64, decimals int) *float64 {
	if math.IsNaN(value) {
		return nil
	}
	factor := math.Pow10(decimals)
	value = math.Round(value*factor) / factor
	return &value
}

// An activity is something that happened, as in a snapshot.
type activity struct {
	Time     string `json:"time"`
	Message  string `json:"message"`
	Level    string `json:"level"`
	CSSClass string `json:"css_class"`

	isTest bool // from the trigger
}

func newActivity(now time.Time, level, message string) activity {
	return activity{
		Time:     now.Format(time.TimeOnly),
		Message:  message,
		Level:    level,
		CSSClass: "activity-" + level,
	}
}

func newTestActivity(now time.Time) activity {
	a := newActivity(now, "info", "Test broadcast")
	a.isTest = true
	return a
}

// A hostSnapshot has the keys, their order and the formats of the Rails server.
type hostSnapshot struct {
	SystemStatus systemStatus    `json:"system_status"`
	Metrics      snapshotMetrics `json:"metrics"`
	Activities   []activity      `json:"activities"`
	Timestamp    string          `json:"timestamp"`
}

type systemStatus struct {
	Status    string `json:"status"`
	Uptime    string `json:"uptime"`
	LastCheck string `json:"last_check"`
	Message   string `json:"message"`
}

type snapshotMetrics struct {
	CPU          string `json:"cpu"`
	Memory       string `json:"memory"`
	Disk         string `json:"disk"`
	Network      string `json:"network"`
	ResponseTime string `json:"response_time"`
}

func formatSnapshot(m metrics, recent []activity, now time.Time) []byte {
	updated := newActivity(now, "info", "Dashboard updated")
	line, _ := json.Marshal(hostSnapshot{ // strings only: it cannot fail
		SystemStatus: systemStatus{
			Status:    m.status,
			Uptime:    formatUptime(m.uptime),
			LastCheck: m.time.Format(time.TimeOnly),
			Message:   m.message,
		},
		Metrics: snapshotMetrics{
			CPU:          formatRounded(m.cpu, "%"),
			Memory:       formatRounded(m.memory, "%"),
			Disk:         formatRounded(m.disk, "%"),
			Network:      formatNetwork(m.network),
			ResponseTime: formatRounded(m.responseTime, "ms"),
		},
		Activities: append([]activity{updated}, recent...),
		Timestamp:  now.Format(time.TimeOnly),
	})
	return line
}

const notMeasured = "N/A"

// formatRounded shows a value as an integer with its unit.
func formatRounded(value float64, unit string) string {
	if math.IsNaN(value) {
		return notMeasured
	}
	return fmt.Sprintf("%.0f%s", math.Round(value), unit)
}

// formatNetwork shows one decimal under 10 Mbps.
func formatNetwork(mbps float64) string {
	if math.IsNaN(mbps) {
		return notMeasured
	}
	tenths := math.Round(mbps*10) / 10
	if tenths < 10 {
		return fmt.Sprintf("%.1f Mbps", tenths)
	}
	return formatRounded(mbps, " Mbps")
}

// formatUptime shows the largest unit and, unless it is zero, the next one. A negative uptime is
// not measured.
func formatUptime(uptime time.Duration) string {
	if uptime < 0 {
		return notMeasured
	}
	total := int(uptime / time.Minute)
	days, hours, minutes := total/60/24, total/60%24, total%60

	switch {
	case days > 0:
		return formatUnits(days, "day", hours, "hour")
	case hours > 0:
		return formatUnits(hours, "hour", minutes, "minute")
	case minutes > 0:
		return plural(minutes, "minute")
	}
	return "less than a minute"
}

func formatUnits(n int, unit string, next int, nextUnit string) string {
	text := plural(n, unit)
	if next > 0 {
		text += ", " + plural(next, nextUnit)
	}
	return text
}

func plural(n int, unit string) string {
	if n == 1 {
		return "1 " + unit
	}
	return fmt.Sprintf("%d %ss", n, unit)
}

// metrics are one reading of the host. NaN and a negative uptime mean: not measured.
type metrics struct {
	time         time.Time
	cpu          float64 // percent
	memory       float64 // percent
	disk         float64 // percent
	network      float64 // Mbps
	responseTime float64 // ms
	uptime       time.Duration
	status       string // online, degraded or critical
	message      string
	alarms       []alarmReply // that are on
}

// noMetrics are the metrics before the first reading.
var noMetrics = metrics{
	cpu:          math.NaN(),
	memory:       math.NaN(),
	disk:         math.NaN(),
	network:      math.NaN(),
	responseTime: math.NaN(),
	uptime:       -1,
}

// A sampler reads the host for all viewers. A read that hangs does not delay it: see source.
type sampler struct {
	interval time.Duration    // between two readings
	now      func() time.Time // time.Now, except in tests

	stat       *source[cpuTimes]
	meminfo    *source[float64] // percent in use
	uptime     *source[time.Duration]
	interfaces *source[map[string]interfaceBytes] // by name, of the interfaces that count
	disk       *source[diskUse]
	probe      *probe

	cpu     cpuMeter
	network networkMeter

	cpuAlarm    alarm
	memoryAlarm alarm
	diskAlarm   alarm
	probeAlarm  alarm
}

func newSampler(cfg config, log *slog.Logger) *sampler {
	return newSamplerOf(cfg, log, "/proc", "/sys", time.Now)
}

// newSamplerOf reads another /proc and /sys, by another clock.
func newSamplerOf(cfg config, log *slog.Logger, proc, sys string, now func() time.Time) *sampler {
	selector := interfaceSelector{proc: proc, sys: sys, log: log}
	h := &sampler{
		interval:   sampleInterval(cfg.interval),
		now:        now,
		stat:       newSource("stat", log, now, fileReader(proc+"/stat", parseStat)),
		meminfo:    newSource("meminfo", log, now, fileReader(proc+"/meminfo", parseMeminfo)),
		uptime:     newSource("uptime", log, now, fileReader(proc+"/uptime", parseUptime)),
		interfaces: newSource("net/dev", log, now, selector.read),
		disk:       newSource("disk "+cfg.disk, log, now, diskReader(cfg.disk)),
		probe:      newProbe(cfg.probe, log),
		cpu:        cpuMeter{percent: math.NaN()},
		network:    networkMeter{mbps: math.NaN()},
	}

	h.cpuAlarm = newAlarm("cpu", "CPU",
		threshold{on: 85, off: 75}, threshold{on: 95, off: 85})
	h.memoryAlarm = newAlarm("memory", "Memory",
		threshold{on: 90, off: 80}, threshold{on: 98, off: 90})
	h.diskAlarm = newAlarm("disk", "Disk",
		threshold{on: 90, off: 80}, threshold{on: 98, off: 90})
	h.probeAlarm = newAlarm("response_time", "Health probe",
		threshold{on: 1, off: 1}, threshold{on: 3, off: 1}) // failures in a row
	return h
}

// The host is read as often as it is broadcast, within these limits.
const (
	minSampleInterval = 500 * time.Millisecond
	maxSampleInterval = 2 * time.Second
)

func sampleInterval(broadcastInterval time.Duration) time.Duration {
	if broadcastInterval == 0 {
		return maxSampleInterval
	}
	return max(minSampleInterval, min(broadcastInterval, maxSampleInterval))
}

// read starts a read of each source and waits for all of them together, but at most 100 ms. Then
// sample uses the last value of each source.
func (h *sampler) read() {
	const patience = 100 * time.Millisecond

	timeout := time.NewTimer(patience)
	defer timeout.Stop()
	for _, done := range []<-chan struct{}{
		h.stat.begin(),
		h.meminfo.begin(),
		h.uptime.begin(),
		h.interfaces.begin(),
		h.disk.begin(),
	} {
		select {
		case <-done:
		case <-timeout.C:
			return
		}
	}
}

// readCounters takes the first reading of the rates.
func (h *sampler) readCounters() {
	h.read()
	h.sampleCPU(h.now())
	h.sampleNetwork(h.now())
}

// sample returns the metrics of the last reading. Each change of an alarm's level comes as an
// activity.
func (h *sampler) sample() (metrics, []activity) {
	now := h.now()
	m := noMetrics
	m.time = now

	// Metrics that could not be read stay as in noMetrics.
	m.cpu = h.sampleCPU(now)
	m.network = h.sampleNetwork(now)
	memory, _, ok := h.meminfo.latest(now)
	if ok {
		m.memory = memory
	}
	uptime, _, ok := h.uptime.latest(now)
	if ok {
		m.uptime = uptime
	}
	disk, _, ok := h.disk.latest(now)
	if ok {
		m.disk = disk.percent
	}
	probed := h.probe.latest()
	m.responseTime = probed.responseTime

	// A full read-only file system is in its normal state.
	judgedDisk := m.disk
	if disk.readOnly {
		judgedDisk = 0
	}

	h.judgeCPU(m.cpu, now)
	h.memoryAlarm.judge(m.memory, percentText("Memory", m.memory), now)
	h.diskAlarm.judge(judgedDisk, percentText("Disk", m.disk), now)
	h.probeAlarm.judge(probed.failures, "Health probe "+probed.problem, now)

	alarms := []*alarm{&h.cpuAlarm, &h.memoryAlarm, &h.diskAlarm, &h.probeAlarm}
	m.status, m.message = summarize(alarms, now)
	m.alarms = describeAlarms(alarms)
	return m, changesOf(alarms, now)
}

// judgeCPU judges the mean of the last minute.
func (h *sampler) judgeCPU(percent float64, now time.Time) {
	if math.IsNaN(percent) {
		h.cpuAlarm.judge(math.NaN(), "", now)
		return
	}

	minute := h.cpu.lastMinute()
	if math.IsNaN(minute) { // it begins anew, and the alarm stays
		h.cpuAlarm.isChanged = false
		h.cpuAlarm.text = "CPU is measured anew for a minute"
		return
	}
	h.cpuAlarm.judge(minute, percentText("CPU", minute)+" over the last minute", now)
}

func percentText(name string, percent float64) string {
	return fmt.Sprintf("%s at %.0f%%", name, math.Round(percent))
}

func (h *sampler) sampleCPU(now time.Time) float64 {
	times, readAt, ok := h.stat.latest(now)
	if !ok {
		return math.NaN()
	}
	h.cpu.add(cpuReading{times: times, at: readAt})
	return h.cpu.percent
}

func (h *sampler) sampleNetwork(now time.Time) float64 {
	counts, readAt, ok := h.interfaces.latest(now)
	if !ok {
		return math.NaN()
	}
	h.network.add(counts, readAt)
	return h.network.mbps
}

// A source is a part of the host. It is read in a goroutine of its own, because a read can hang,
// for example of a stopped lxcfs or of a dead network mount.
type source[T any] struct {
	name   string
	log    *slog.Logger
	now    func() time.Time
	reader func() (T, error)

	mu        sync.Mutex // guards following
	isReading bool
	value     T         // the last one that could be read
	readAt    time.Time // when that was; zero: never
	err       error     // of the last read

	missingLogged bool // "metric missing" was logged, "metric back" not yet
}

func newSource[T any](name string, log *slog.Logger, now func() time.Time,
	reader func() (T, error)) *source[T] {
	return &source[T]{name: name, log: log, now: now, reader: reader}
}

// begin begins to read, unless a read still hangs. The channel is closed when the read is done, or
// at once if there is none to wait for.
func (src *source[T]) begin() <-chan struct{} {
	done := make(chan struct{})
	src.mu.Lock()
	defer src.mu.Unlock()
	if src.isReading {
		close(done)
		return done
	}

	src.isReading = true
	go func() { // not joined, because it may hang
		defer close(done)
		value, err := src.reader()
		src.finish(value, err)
	}()
	return done
}

func (src *source[T]) finish(value T, err error) {
	src.mu.Lock()
	defer src.mu.Unlock()
	src.isReading = false
	src.err = err
	if err == nil {
		src.value = value
		src.readAt = src.now()
	}
}

// latest returns the last value and the time of its reading, or false if that is too old. It logs
// when a value begins to be missing, and when that is over.
func (src *source[T]) latest(now time.Time) (value T, readAt time.Time, ok bool) {
	const patience = 10 * time.Second

	src.mu.Lock()
	defer src.mu.Unlock()
	isMissing := src.readAt.IsZero() || now.Sub(src.readAt) >= patience
	if isMissing && !src.missingLogged {
		err := src.err
		if src.isReading {
			err = errors.New("the read hangs")
		}
		src.log.Warn("metric missing", "source", src.name, "err", err)
	}
	if !isMissing && src.missingLogged {
		src.log.Info("metric back", "source", src.name)
	}
	src.missingLogged = isMissing
	return src.value, src.readAt, !isMissing
}

// fileReader reads and parses a file of /proc.
func fileReader[T any](name string, parse func(text string) (T, error)) func() (T, error) {
	return func() (T, error) {
		var none T
		text, err := readFile(name)
		if err != nil {
			return none, err
		}
		return parse(text)
	}
}

// readFile reads a file of at most 4 MiB. The limit protects against a file that never ends.
func readFile(name string) (string, error) {
	const maxSize = 4 << 20 // bytes; 10,000 interfaces have 1.2 MB

	file, err := os.Open(name)
	if err != nil {
		return "", err
	}
	defer file.Close()
	text, err := io.ReadAll(io.LimitReader(file, maxSize+1))
	if err != nil {
		return "", err
	}
	if len(text) > maxSize {
		return "", fmt.Errorf("reading %s: it has more than %d bytes", name, maxSize)
	}
	return string(text), nil
}

// cpuTimes are the first eight counters of /proc/stat, in clock ticks. The other two, guest and
// guest_nice, are in user and nice already (proc(5)).
type cpuTimes struct {
	user, nice, system, idle, iowait, irq, softirq, steal uint64

	cpus int // lines of single CPUs
}

// parseStat reads the first line of /proc/stat, and counts the lines of single CPUs.
func parseStat(text string) (cpuTimes, error) {
	const least = 4 // counters: old kernels have no more

	var t cpuTimes
	counters := []*uint64{
		&t.user, &t.nice, &t.system, &t.idle, &t.iowait, &t.irq, &t.softirq, &t.steal}
	first, rest, _ := strings.Cut(text, "\n")
	fields := strings.Fields(first)
	if len(fields) < 1+least || fields[0] != "cpu" {
		return cpuTimes{}, fmt.Errorf("parsing stat: %.80q has no CPU times", first)
	}
	for i, field := range fields[1:min(len(fields), 1+len(counters))] {
		n, err := strconv.ParseUint(field, 10, 64)
		if err != nil {
			return cpuTimes{}, fmt.Errorf("parsing stat: %.80q: %w", first, err)
		}
		*counters[i] = n
	}

	for _, line := range strings.Split(rest, "\n") {
		if strings.HasPrefix(line, "cpu") {
			t.cpus++
		}
	}
	t.cpus = max(t.cpus, 1)
	return t, nil
}

// A cpuReading is /proc/stat at a time of the monotonic clock.
type cpuReading struct {
	times cpuTimes
	at    time.Time
}

// since returns the ticks that have passed since before, and how many of them the CPUs were busy.
// Steal counts as busy. It returns false if the counters cannot be true: after a suspend, or when
// a CPU went offline.
func (r cpuReading) since(before cpuReading) (busy, total float64, ok bool) {
	const (
		ticksPerSecond = 100 // on all processors that Go knows
		maxIdleStep    = 3 * ticksPerSecond
	)
	now, old := r.times, before.times

	idle := increase(now.idle, old.idle) + increase(now.iowait, old.iowait)
	busy = increase(now.user, old.user) + increase(now.nice, old.nice) +
		increase(now.system, old.system) + increase(now.irq, old.irq) +
		increase(now.softirq, old.softirq) + increase(now.steal, old.steal)
	total = busy + idle

	seconds := r.at.Sub(before.at).Seconds()
	possible := (2*seconds + 1) * ticksPerSecond * float64(now.cpus)
	hasIdleFallen := old.idle > now.idle && old.idle-now.idle > maxIdleStep
	return busy, total, !hasIdleFallen && total <= possible
}

// increase is 0 if a counter has stepped back, as iowait does.
func increase(now, before uint64) float64 {
	if now < before {
		return 0
	}
	return float64(now - before)
}

// A cpuMeter computes the load of the CPUs from one reading after another.
type cpuMeter struct {
	percent  float64      // since the reading before; NaN until there are two
	readings []cpuReading // of the last minute, oldest first
}

func (m *cpuMeter) add(r cpuReading) {
	if len(m.readings) == 0 {
		m.readings = append(m.readings, r)
		return
	}
	last := m.readings[len(m.readings)-1]
	if r.at.Equal(last.at) { // it is no new reading
		return
	}

	busy, total, ok := r.since(last)
	if !ok {
		m.readings = []cpuReading{r} // the minute begins anew
		return
	}
	if total > 0 {
		m.percent = 100 * busy / total
	}
	hasPaused := r.at.Sub(last.at) >= time.Minute
	if hasPaused { // the minute begins anew
		m.readings = []cpuReading{r}
		return
	}

	// Keeps one reading that is a minute old.
	m.readings = append(m.readings, r)
	for len(m.readings) > 1 && r.at.Sub(m.readings[1].at) >= time.Minute {
		m.readings = m.readings[1:]
	}
}

// lastMinute returns the busy percentage of the last minute, or NaN until that has passed.
func (m *cpuMeter) lastMinute() float64 {
	if len(m.readings) == 0 {
		return math.NaN()
	}
	oldest, newest := m.readings[0], m.readings[len(m.readings)-1]
	if newest.at.Sub(oldest.at) < time.Minute {
		return math.NaN()
	}
	busy, total, ok := newest.since(oldest)
	if !ok || total == 0 {
		return math.NaN()
	}
	return 100 * busy / total
}

// parseMeminfo returns the percentage of memory in use.
func parseMeminfo(text string) (float64, error) {
	kib := map[string]uint64{}
	for _, line := range strings.Split(text, "\n") {
		name, value, _ := strings.Cut(line, ":")
		number, _, _ := strings.Cut(strings.TrimSpace(value), " ")
		n, err := strconv.ParseUint(number, 10, 64)
		if err == nil {
			kib[name] = n
		}
	}
	total := kib["MemTotal"]
	if total == 0 {
		return 0, errors.New("parsing meminfo: it has no MemTotal")
	}
	available, ok := availableMemory(kib)
	if !ok {
		return 0, errors.New("parsing meminfo: no MemAvailable or MemFree under MemTotal")
	}
	return 100 * float64(total-available) / float64(total), nil
}

// availableMemory returns MemAvailable. If that is missing (WSL1, kernels before 3.14) or exceeds
// MemTotal, it estimates: free memory, buffers and reclaimable cache. If the estimate exceeds
// MemTotal, it returns MemFree.
func availableMemory(kib map[string]uint64) (available uint64, ok bool) {
	total := kib["MemTotal"]
	available, ok = kib["MemAvailable"]
	if ok && available <= total {
		return available, true
	}

	free, ok := kib["MemFree"]
	if !ok || free > total {
		return 0, false
	}
	cache := kib["Cached"] + kib["SReclaimable"]
	cache -= min(cache, kib["Shmem"])
	available = free + kib["Buffers"] + cache
	if available <= total {
		return available, true
	}
	return free, true
}

// parseUptime reads the first number of /proc/uptime, in seconds.
func parseUptime(text string) (time.Duration, error) {
	const most = 1e9 // seconds

	first, _, _ := strings.Cut(text, " ")
	seconds, err := strconv.ParseFloat(strings.TrimSpace(first), 64)
	if err != nil || !(seconds >= 0 && seconds < most) {
		return 0, fmt.Errorf("parsing uptime: %.80q is not a number of seconds", text)
	}
	return time.Duration(seconds * float64(time.Second)), nil
}

// interfaceBytes are the counters of a network interface.
type interfaceBytes struct {
	received, sent uint64
}

// An interfaceSelector reads the interfaces that count.
type interfaceSelector struct {
	proc, sys string
	log       *slog.Logger
	hasLogged bool // a line that could not be read

	names    []string // of all interfaces, sorted, when they were last selected
	selected map[string]bool
}

// read returns the bytes received and sent by the interfaces that count. They are selected anew
// only when the names change.
func (sel *interfaceSelector) read() (map[string]interfaceBytes, error) {
	text, err := readFile(sel.proc + "/net/dev")
	if err != nil {
		return nil, err
	}
	all, badLine := parseNetDev(text)
	if badLine != "" && !sel.hasLogged {
		sel.hasLogged = true
		sel.log.Warn("interface left out", "source", "net/dev", "line", truncate(badLine, 80))
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("parsing net/dev: %.80q has no interface", text)
	}

	names := make([]string, 0, len(all))
	for name := range all {
		names = append(names, name)
	}
	slices.Sort(names)
	if !slices.Equal(names, sel.names) {
		sel.names = names
		sel.selected = sel.selectFrom(names)
	}
	maps.DeleteFunc(all, func(name string, _ interfaceBytes) bool { return !sel.selected[name] })
	return all, nil
}

// parseNetDev returns the bytes received and sent, by interface. It leaves out what it cannot
// read, and returns the first such line.
func parseNetDev(text string) (counts map[string]interfaceBytes, badLine string) {
	counts = map[string]interfaceBytes{}
	for _, line := range strings.Split(text, "\n") {
		colon := strings.LastIndexByte(line, ':') // a name may have colons, too
		if colon < 0 {                            // a heading
			continue
		}

		name := strings.TrimSpace(line[:colon])
		count, ok := parseCounters(line[colon+1:])
		if ok && name != "" {
			counts[name] = count
		} else if badLine == "" {
			badLine = line
		}
	}
	return counts, badLine
}

// parseCounters parses the text after the colon in a line of /proc/net/dev.
func parseCounters(text string) (count interfaceBytes, ok bool) {
	const rxColumn, txColumn = 0, 8

	fields := strings.Fields(text)
	isWhole := len(fields) > txColumn+1 // the last one may be cut off
	if !isWhole {
		return interfaceBytes{}, false
	}
	received, rxErr := strconv.ParseUint(fields[rxColumn], 10, 64)
	sent, txErr := strconv.ParseUint(fields[txColumn], 10, 64)
	return interfaceBytes{received: received, sent: sent}, rxErr == nil && txErr == nil
}

// selectFrom selects the interfaces with hardware. Without any, as in a container, it selects the
// interfaces with a default route. Without any of them, it selects all but lo.
func (sel *interfaceSelector) selectFrom(names []string) map[string]bool {
	selected := map[string]bool{}
	for _, name := range names {
		_, err := os.Lstat(sel.sysPath(name, "device"))
		if err == nil && !isLoopbackInterface(name) {
			selected[name] = true
		}
	}
	if len(selected) > 0 {
		sel.dropDoubles(selected)
		return selected
	}

	routes, _ := readFile(sel.proc + "/net/route") // without it there is no default route
	for _, name := range defaultRoutes(routes) {
		if slices.Contains(names, name) && !isLoopbackInterface(name) {
			selected[name] = true
		}
	}
	if len(selected) > 0 {
		return selected
	}

	for _, name := range names {
		selected[name] = !isLoopbackInterface(name)
	}
	return selected
}

func (sel *interfaceSelector) sysPath(name, file string) string {
	return sel.sys + "/class/net/" + name + "/" + file
}

// isLoopbackInterface also knows the interface by which WSL2 reaches Windows.
func isLoopbackInterface(name string) bool {
	return name == "lo" || name == "loopback0"
}

// dropDoubles drops interfaces whose bytes another selected interface counts, too. These have a
// selected master, as a cloud's virtual function has, or a selected lower interface.
func (sel *interfaceSelector) dropDoubles(selected map[string]bool) {
	byIndex := map[string]string{}
	for name := range selected {
		byIndex[sel.sysValue(name, "ifindex")] = name
	}

	var doubles []string
	for name := range selected {
		master, _ := os.Readlink(sel.sysPath(name, "master"))
		if selected[filepath.Base(master)] {
			doubles = append(doubles, name)
		}
		lower := byIndex[sel.sysValue(name, "iflink")]
		if lower != "" && lower != name {
			doubles = append(doubles, name)
		}
	}
	for _, name := range doubles {
		delete(selected, name)
	}
}

// sysValue returns the content of a file of an interface.
func (sel *interfaceSelector) sysValue(name, file string) string {
	text, err := readFile(sel.sysPath(name, file))
	if err != nil {
		return "none of " + name
	}
	return strings.TrimSpace(text)
}

// defaultRoutes returns the interfaces that hold a default route in /proc/net/route.
func defaultRoutes(text string) []string {
	const name, destination, mask, columns = 0, 1, 7, 8

	var names []string
	for _, line := range strings.Split(text, "\n") {
		fields := strings.Fields(line)
		if len(fields) < columns {
			continue
		}
		if fields[destination] == "00000000" && fields[mask] == "00000000" {
			names = append(names, fields[name])
		}
	}
	return names
}

// A networkMeter computes the rate of the network from one reading after another.
type networkMeter struct {
	mbps   float64 // since the reading before; NaN until there are two
	counts map[string]interfaceBytes
	at     time.Time // of the last reading
}

func (m *networkMeter) add(counts map[string]interfaceBytes, at time.Time) {
	seconds := at.Sub(m.at).Seconds()
	if seconds == 0 { // it is no new reading
		return
	}
	before := m.counts
	m.counts = counts
	m.at = at
	m.mbps = math.NaN()
	if seconds < 0 {
		return
	}

	var total uint64
	for name, now := range counts {
		old, ok := before[name]
		if !ok || now.received < old.received || now.sent < old.sent {
			continue // it is new, or its counters were reset
		}
		total += now.received - old.received + now.sent - old.sent
		m.mbps = float64(total) * 8 / seconds / 1e6
	}
}

// diskUse is how full a file system is.
type diskUse struct {
	percent  float64
	readOnly bool
}

func diskReader(path string) func() (diskUse, error) {
	return func() (diskUse, error) {
		const readOnly = 1 // ST_RDONLY, MNT_RDONLY

		var fs syscall.Statfs_t
		err := syscall.Statfs(path, &fs)
		if err != nil {
			return diskUse{}, err
		}
		percent := usedPercent(float64(fs.Blocks), float64(fs.Bfree), float64(int64(fs.Bavail)))
		if math.IsNaN(percent) {
			return diskUse{}, errors.New("the file system has no space to measure")
		}
		return diskUse{percent: percent, readOnly: uint64(fs.Flags)&readOnly != 0}, nil
	}
}

// usedPercent rounds up as df(1) does. The available space may be negative, for example over quota
// or on a BSD server. The result is NaN for a file system without space.
func usedPercent(blocks, free, available float64) float64 {
	used := blocks - min(free, blocks)
	return math.Ceil(100 * used / (used + max(available, 0)))
}

// A probe measures the response time of a URL.
type probe struct {
	url string
	log *slog.Logger

	mu            sync.Mutex // guards following
	last          probeResult
	unseen        *probeResult // a failure that latest has yet to return
	missingLogged bool         // "metric missing" was logged, "metric back" not yet
}

type probeResult struct {
	responseTime float64 // ms; NaN after a failure
	failures     float64 // in a row
	problem      string  // of the last failure, after "Health probe"
}

func newProbe(rawURL string, log *slog.Logger) *probe {
	return &probe{url: rawURL, log: log, last: probeResult{responseTime: math.NaN()}}
}

// latest returns the last result. It returns each failure once, even if a success has followed.
// This matters after a time-out, which takes as long as the interval, so the next request comes at
// once.
func (p *probe) latest() probeResult {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.unseen != nil {
		result := *p.unseen
		p.unseen = nil
		return result
	}
	return p.last
}

// loop measures the response time regularly, until ctx is done.
func (p *probe) loop(ctx context.Context) {
	const interval = 2 * time.Second

	every(ctx, 0, interval, func(time.Time) { p.measure(ctx) })
}

func (p *probe) measure(ctx context.Context) {
	start := time.Now()
	status, err := get(ctx, p.url)
	duration := time.Since(start)
	if ctx.Err() != nil { // a shutdown is no failure of the URL
		return
	}

	p.mu.Lock()
	defer p.mu.Unlock()
	result := probeResult{responseTime: math.NaN(), failures: p.last.failures + 1}
	switch {
	case err != nil && isOutOfFiles(err):
		result.failures = p.last.failures // this is no failure of the URL
		result.problem = p.last.problem
	case err != nil:
		result.problem = "does not answer"
	case status >= 400:
		result.problem = fmt.Sprintf("answers %d", status)
		err = errors.New(result.problem)
	default:
		result = probeResult{responseTime: math.Ceil(duration.Seconds() * 1000)}
	}
	p.last = result
	if result.failures > 0 {
		p.unseen = &result
	}

	isMissing := math.IsNaN(result.responseTime)
	if isMissing && !p.missingLogged {
		p.log.Warn("metric missing", "source", "probe", "err", err)
	}
	if !isMissing && p.missingLogged {
		p.log.Info("metric back", "source", "probe")
	}
	p.missingLogged = isMissing
}

// isOutOfFiles tells whether err was caused by a lack of descriptors. A name look-up hides the
// cause, so this also tries to open a file.
func isOutOfFiles(err error) bool {
	file, openErr := os.Open(os.DevNull)
	if openErr == nil {
		file.Close()
	}
	for _, e := range []error{err, openErr} {
		if errors.Is(e, syscall.EMFILE) || errors.Is(e, syscall.ENFILE) {
			return true
		}
	}
	return false
}

// probeClient does not follow redirects.
var probeClient = http.Client{
	Timeout:   2 * time.Second,
	Transport: &http.Transport{DisableKeepAlives: true},
	CheckRedirect: func(*http.Request, []*http.Request) error {
		return http.ErrUseLastResponse
	},
}

// get requests a URL and reads its answer, but not more than 1 MiB of it.
func get(ctx context.Context, rawURL string) (status int, err error) {
	const maxAnswer = 1 << 20 // bytes

	req, err := http.NewRequestWithContext(ctx, "GET", rawURL, nil)
	if err != nil {
		return 0, err
	}
	resp, err := probeClient.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()

	_, err = io.Copy(io.Discard, io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return 0, fmt.Errorf("reading the answer: %w", err)
	}
	return resp.StatusCode, nil
}

// An alarm turns a metric into a level. It goes on at one threshold and off below a lower one, so
// that values near a threshold do not flap.
type alarm struct {
	metric   string // its key in a snapshot
	name     string
	warning  threshold
	critical threshold

	level     alarmLevel
	since     time.Time // of the last change of the level
	isChanged bool      // by the last value
	text      string    // what is wrong
}

type threshold struct {
	on, off float64
}

type alarmLevel int

const (
	levelOK alarmLevel = iota
	levelWarning
	levelCritical
)

func newAlarm(metric, name string, warning, critical threshold) alarm {
	return alarm{metric: metric, name: name, warning: warning, critical: critical}
}

// judge sets the level for a value, which the text shows. NaN does not change the level, because
// nothing was measured.
func (a *alarm) judge(value float64, text string, now time.Time) {
	a.isChanged = false
	if math.IsNaN(value) {
		a.text = a.name + " cannot be measured any more"
		return
	}

	before := a.level
	switch {
	case a.critical.isOn(value, before == levelCritical):
		a.level = levelCritical
	case a.warning.isOn(value, before != levelOK):
		a.level = levelWarning
	default:
		a.level = levelOK
	}
	a.text = text
	if a.level != before {
		a.isChanged = true
		a.since = now
	}
}

func (t threshold) isOn(value float64, wasOn bool) bool {
	if wasOn {
		return value >= t.off
	}
	return value >= t.on
}

// summarize returns the status of the worst alarm. The message names all that are on, worst first.
func summarize(alarms []*alarm, now time.Time) (status, message string) {
	critical := textsOf(alarms, levelCritical, now)
	warning := textsOf(alarms, levelWarning, now)
	if len(critical)+len(warning) > 1 {
		for i, text := range critical {
			critical[i] = "Critical: " + text
		}
		for i, text := range warning {
			warning[i] = "Warning: " + text
		}
	}

	switch {
	case len(critical) > 0:
		status = "critical"
	case len(warning) > 0:
		status = "degraded"
	default:
		return "online", "System running normally"
	}
	return status, strings.Join(append(critical, warning...), "; ")
}

// textsOf returns the texts of the alarms with that level.
func textsOf(alarms []*alarm, level alarmLevel, now time.Time) []string {
	var texts []string
	for _, a := range alarms {
		if a.level == level {
			texts = append(texts, a.text+", since "+formatSince(a.since, now))
		}
	}
	return texts
}

// formatSince leaves out the date where it is that of now.
func formatSince(since, now time.Time) string {
	if since.Format(time.DateOnly) == now.Format(time.DateOnly) {
		return since.Format(time.TimeOnly)
	}
	return since.Format(time.DateTime)
}

// changesOf returns an activity for each alarm whose level the last value has changed.
func changesOf(alarms []*alarm, now time.Time) []activity {
	var changes []activity
	for _, a := range alarms {
		if !a.isChanged {
			continue
		}
		switch a.level {
		case levelOK:
			changes = append(changes, newActivity(now, "success", a.name+" back to normal"))
		case levelWarning:
			changes = append(changes, newActivity(now, "warning", a.text))
		case levelCritical:
			changes = append(changes, newActivity(now, "error", a.text))
		}
	}
	return changes
}

// An alarmReply is an alarm as /dashboard/history shows it.
type alarmReply struct {
	Metric string `json:"metric"`
	Level  string `json:"level"` // warning or critical
	Since  int64  `json:"since"` // Unix ms
}

// describeAlarms describes the alarms that are on.
func describeAlarms(alarms []*alarm) []alarmReply {
	replies := []alarmReply{}
	for _, a := range alarms {
		if a.level == levelOK {
			continue
		}
		reply := alarmReply{Metric: a.metric, Level: "warning", Since: a.since.UnixMilli()}
		if a.level == levelCritical {
			reply.Level = "critical"
		}
		replies = append(replies, reply)
	}
	return replies
}

// A config holds the settings. -h explains each of them.
type config struct {
	addr       string
	interval   time.Duration // 0: only when triggered
	heartbeat  time.Duration
	probe      string // URL; "": the server's own /health
	disk       string // path
	origins    []string
	hasOrigins bool // -origins was set
	edge       bool
	gzip       string // browsers, all or off
	maxStreams int
	tokenFile  string
	token      string // "": none is needed
	logFormat  string // text or json
	logLevel   slog.Level

	openFiles int               // the limit, ulimit -n
	settings  map[string]string // in force, by flag name
	changed   []any             // settings that are not at their defaults, for the log
}

const defaultOrigins = "http://localhost:3000,http://127.0.0.1:3000"

// parseConfig reads the SSE_… variables that are not empty, then the flags. After -h and -version
// it returns flag.ErrHelp, and stdout has the text. Any other error is one line.
func parseConfig(args []string, getenv func(string) string, stdout io.Writer) (config, error) {
	cfg := config{openFiles: openFilesLimit(), settings: map[string]string{}}
	flags := flag.NewFlagSet("sse-server", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	flags.StringVar(&cfg.addr, "addr", ":3001", "`address` to listen on; port 0 takes a free one")
	flags.DurationVar(&cfg.interval, "interval", 2*time.Second,
		"time between snapshots, at least 50ms; 0: only when triggered")
	flags.DurationVar(&cfg.heartbeat, "heartbeat", 30*time.Second,
		"time between heartbeats, at least 200ms")
	flags.StringVar(&cfg.probe, "probe", "",
		"`URL` whose response time is measured (default own /health)")
	flags.StringVar(&cfg.disk, "disk", "/", "`path` in the file system whose use is shown")
	origins := flags.String("origins", defaultOrigins,
		"other `origins` whose pages may use the server, separated by commas; "+
			"those of the default may only read")
	flags.BoolVar(&cfg.edge, "edge", false,
		"never show this host's own metrics, only external snapshots")
	flags.StringVar(&cfg.gzip, "gzip", gzipBrowsers,
		"which `clients` get a compressed stream, if they accept gzip: browsers, all or off")
	flags.IntVar(&cfg.maxStreams, "max-streams", cfg.openFiles-reservedFiles(cfg.openFiles),
		"most open streams")
	flags.StringVar(&cfg.tokenFile, "token-file", "",
		"`path` of a file with the token that requests need; or set SSE_TOKEN to the token")
	flags.StringVar(&cfg.logFormat, "log-format", "text", "text or json")
	logLevel := flags.String("log-level", "info", "debug, info, warn or error")

	variablesErr := readVariables(flags, getenv)
	// A deployment may have an SSE_VERSION of its own, so this flag has no variable.
	showVersion := flags.Bool("version", false, "print the version")
	err := parseFlags(flags, args, showVersion, stdout)
	if err != nil { // -h and -version answer even if a variable is invalid
		return cfg, err
	}
	if variablesErr != nil {
		return cfg, variablesErr
	}

	cfg.noteSettings(flags)
	cfg.origins = strings.FieldsFunc(*origins, func(r rune) bool { return r == ',' || r == ' ' })
	flags.Visit(func(f *flag.Flag) { // those that were set
		cfg.hasOrigins = cfg.hasOrigins || f.Name == "origins"
	})
	err = cfg.logLevel.UnmarshalText([]byte(*logLevel))
	if err != nil {
		return cfg, fmt.Errorf("-log-level %q must be debug, info, warn or error", *logLevel)
	}
	cfg.token, err = readToken(getenv("SSE_TOKEN"), cfg.tokenFile)
	if err != nil {
		return cfg, err
	}
	return cfg, cfg.validate()
}

// readVariables sets the flags whose SSE_… variable is not empty, and names it in their help.
func readVariables(flags *flag.FlagSet, getenv func(string) string) error {
	var firstErr error
	flags.VisitAll(func(f *flag.Flag) {
		name := "SSE_" + strings.ToUpper(strings.ReplaceAll(f.Name, "-", "_"))
		f.Usage += " [" + name + "]"
		value := getenv(name)
		if value == "" {
			return
		}
		err := flags.Set(f.Name, value)
		if err != nil && firstErr == nil {
			firstErr = fmt.Errorf("invalid value %q for %s: %w", value, name, err)
		}
	})
	return firstErr
}

func parseFlags(flags *flag.FlagSet, args []string, showVersion *bool, stdout io.Writer) error {
	err := flags.Parse(args)
	if errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(stdout,
			"sse-server: a live dashboard of this host over Server-Sent Events. Settings:")
		flags.SetOutput(stdout)
		flags.PrintDefaults()
		return flag.ErrHelp
	}
	if err != nil {
		return fmt.Errorf("%w (-h lists the settings)", err)
	}
	if *showVersion {
		fmt.Fprintln(stdout, "sse-server", version)
		return flag.ErrHelp
	}
	if flags.NArg() > 0 {
		argument := withoutPassword(flags.Arg(0)) // it may be a URL whose flag was forgotten
		return fmt.Errorf("unexpected argument %q (-h lists the settings)", argument)
	}
	return nil
}

// noteSettings keeps the settings in force for /dashboard/debug and the log.
func (c *config) noteSettings(flags *flag.FlagSet) {
	flags.VisitAll(func(f *flag.Flag) {
		value := f.Value.String()
		switch f.Name {
		case "version":
			return
		case "probe":
			value = withoutPassword(value)
		}
		c.settings[f.Name] = value
		if value != f.DefValue {
			c.changed = append(c.changed, f.Name, value)
		}
	})
}

// readToken returns the token that requests need, or "" if they need none.
func readToken(variable, file string) (string, error) {
	if variable == "" && file == "" {
		return "", nil
	}
	if variable != "" && file != "" {
		return "", errors.New("SSE_TOKEN and -token-file are both set: set one of them")
	}

	source, text := "SSE_TOKEN", variable
	if file != "" {
		b, err := os.ReadFile(file)
		if err != nil {
			return "", fmt.Errorf("reading -token-file: %w", err)
		}
		source, text = "-token-file "+file, string(b)
	}
	token := strings.TrimSpace(text)
	if token == "" {
		return "", fmt.Errorf("%s is blank: it must contain the token", source)
	}
	return token, nil
}

// validate checks one setting after another.
func (c *config) validate() error {
	const minHeartbeat = 2 * catchUpInterval

	_, port, err := net.SplitHostPort(c.addr)
	if err == nil {
		_, err = net.LookupPort("tcp", port)
	}
	if err != nil {
		return fmt.Errorf("-addr %q must be host:port or :port", c.addr)
	}
	if c.interval != 0 && c.interval < minInterval {
		return fmt.Errorf("-interval %v must be at least %v (0 is allowed: only when triggered)",
			c.interval, minInterval)
	}
	if c.heartbeat < minHeartbeat {
		return fmt.Errorf("-heartbeat %v must be at least %v", c.heartbeat, minHeartbeat)
	}
	if c.probe != "" && originOf(c.probe) == "" {
		return fmt.Errorf("-probe %q must be an http or https URL", withoutPassword(c.probe))
	}
	for _, origin := range c.origins {
		err := validateOrigin(origin)
		if err != nil {
			return fmt.Errorf("-origins: %q %w", origin, err)
		}
	}
	if c.gzip != gzipBrowsers && c.gzip != gzipAll && c.gzip != gzipOff {
		return fmt.Errorf("-gzip %q must be browsers, all or off", c.gzip)
	}
	if c.logFormat != "text" && c.logFormat != "json" {
		return fmt.Errorf("-log-format %q must be text or json", c.logFormat)
	}
	err = c.validateMaxStreams()
	if err != nil {
		return err
	}
	return validateDisk(c.disk)
}

func (c *config) validateMaxStreams() error {
	reserved := reservedFiles(c.openFiles)
	if c.maxStreams == c.openFiles-reserved && c.maxStreams < 1 {
		return fmt.Errorf("the limit of open files is %d (ulimit -n): at least %d are needed",
			c.openFiles, reserved+1)
	}
	if c.maxStreams < 1 {
		return fmt.Errorf("-max-streams %d must be at least 1", c.maxStreams)
	}
	if c.maxStreams > c.openFiles {
		return fmt.Errorf("-max-streams %d is over %d, the limit of open files (ulimit -n)",
			c.maxStreams, c.openFiles)
	}
	return nil
}

// A scheme may also be capacitor or chrome-extension. A host is a name or an address.
var (
	schemePattern = regexp.MustCompile(`^[a-z][a-z0-9+.-]*$`)
	hostPattern   = regexp.MustCompile(`^([a-z0-9._-]+|\[[0-9a-f:.]+\])(:[1-9][0-9]*)?$`)
)

// validateOrigin checks that an origin has the form in which browsers send it. Its error continues
// a sentence.
func validateOrigin(origin string) error {
	scheme, host, _ := strings.Cut(origin, "://")
	isASCII := strings.IndexFunc(host, func(r rune) bool { return r > unicode.MaxASCII }) < 0
	switch {
	case strings.Contains(origin, "*"):
		return errors.New("has a wildcard: name each origin instead")
	case !isASCII:
		return errors.New("is not ASCII: write the host in its xn--… form")
	case !schemePattern.MatchString(scheme) || !hostPattern.MatchString(host):
		return errors.New("must be like https://example.com:8080, in lower case and without a path")
	}

	u, err := url.Parse(origin)
	if err != nil {
		return errors.New("must be like https://example.com:8080")
	}
	if scheme == "https" && u.Port() == "443" || scheme == "http" && u.Port() == "80" {
		return errors.New("has the default port of its scheme: leave the port out")
	}
	_, err = net.LookupPort("tcp", "0"+u.Port())
	ip := net.ParseIP(u.Hostname())
	if err != nil || ip != nil && ip.String() != u.Hostname() {
		return errors.New("has a port or an address in a form that browsers do not use")
	}
	return nil
}

// validateDisk waits a second at most, because statfs(2) of a dead network mount never returns.
func validateDisk(path string) error {
	const patience = time.Second

	result := make(chan error, 1) // has room, so that the goroutine ends
	go func() {
		var fs syscall.Statfs_t
		result <- syscall.Statfs(path, &fs)
	}()
	select {
	case err := <-result:
		if err != nil {
			return fmt.Errorf("-disk %q: %w", path, err)
		}
	case <-time.After(patience): // the path is there, but its server is not
	}
	return nil
}

// openFilesLimit is the limit of descriptors. Go has raised the soft limit to the hard one.
func openFilesLimit() int {
	const most = 1 << 20 // where there is no limit

	var limit syscall.Rlimit
	syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit)
	return int(min(uint64(limit.Cur), most))
}

// connectionShare is the part of the limit for connections that are not streams.
func connectionShare(limit int) int {
	const least, most = 32, 1024

	return max(least, min(limit/20, most))
}

// reservedFiles is the part of the limit that streams leave by default to everything else.
func reservedFiles(limit int) int {
	const others = 32 // the listener, the log, /proc, and streams that are being opened

	return connectionShare(limit) + others
}

// withoutPassword returns a URL that may be shown.
func withoutPassword(text string) string {
	u, err := url.Parse(text)
	if err != nil || u.Host == "" && strings.Contains(text, "@") {
		return "an invalid URL"
	}
	return u.Redacted()
}

// localURL is the URL of the server for a client on this machine.
func localURL(listener net.Listener) string {
	addr := listener.Addr().(*net.TCPAddr)
	host := addr.String()
	if addr.IP.IsUnspecified() {
		host = fmt.Sprintf("localhost:%d", addr.Port)
	}
	u := url.URL{Scheme: "http", Host: host} // escapes the zone of an IPv6 address
	return u.String()
}

// probeURL is /health by address, because the name localhost may be unknown.
func probeURL(listener net.Listener) string {
	addr := *listener.Addr().(*net.TCPAddr)
	if addr.IP.IsUnspecified() {
		addr.IP = net.IPv4(127, 0, 0, 1)
	}
	u := url.URL{Scheme: "http", Host: addr.String(), Path: "/health"}
	return u.String()
}

// newLog returns a log that never blocks its caller. flush waits a moment until it is written.
func newLog(out io.Writer, cfg config) (log *slog.Logger, flush func()) {
	w := &logWriter{lines: make(chan []byte, maxLogLines)}
	go w.run(out, slog.New(newLogHandler(out, cfg)))
	return slog.New(newLogHandler(w, cfg)), w.flush
}

func newLogHandler(out io.Writer, cfg config) slog.Handler {
	options := &slog.HandlerOptions{Level: cfg.logLevel, ReplaceAttr: withUnit}
	if cfg.logFormat == "json" {
		return slog.NewJSONHandler(out, options)
	}
	return slog.NewTextHandler(out, options)
}

// withUnit gives a duration its unit in JSON, too, and no more digits than people read.
func withUnit(_ []string, attr slog.Attr) slog.Attr {
	if attr.Value.Kind() != slog.KindDuration {
		return attr
	}
	d := attr.Value.Duration().Round(time.Microsecond)
	if d > time.Second {
		d = d.Round(time.Millisecond)
	}
	return slog.String(attr.Key, d.String())
}

// maxLogLines is how many lines may wait for the reader of the log. Further ones are dropped.
const maxLogLines = 16 << 10

// A logWriter writes in the background, because a log without a reader must not block the server.
type logWriter struct {
	lines   chan []byte // capacity maxLogLines
	waiting atomic.Int64
	dropped atomic.Int64
}

// run writes the lines to out. It is not joined, because out may block permanently. direct is a
// log that writes to out without waiting in line.
func (w *logWriter) run(out io.Writer, direct *slog.Logger) {
	for line := range w.lines {
		out.Write(line)
		dropped := w.dropped.Swap(0)
		if dropped > 0 {
			direct.Warn("log lines dropped, because the log was not read", "lines", dropped)
		}
		w.waiting.Add(-1)
	}
}

// Write is for slog, which passes one whole line.
func (w *logWriter) Write(line []byte) (int, error) {
	w.waiting.Add(1)
	select {
	case w.lines <- slices.Clone(line):
	default:
		w.waiting.Add(-1)
		w.dropped.Add(1)
	}
	return len(line), nil
}

func (w *logWriter) flush() {
	const patience = 300 * time.Millisecond

	end := time.Now().Add(patience)
	for w.waiting.Load() > 0 && time.Now().Before(end) {
		time.Sleep(time.Millisecond)
	}
}

// A streamLog logs streams that open, close and are rejected. Past twenty lines a second it only
// counts them, and logs the counts once a second.
type streamLog struct {
	log *slog.Logger

	mu            sync.Mutex // guards following
	lines         int        // in this second
	openedCount   int        // without a line of their own
	closedCount   int
	rejectedCount int
}

// mayLog tells whether a line may be logged. If not, it counts in count, a field of l.
func (l *streamLog) mayLog(count *int) bool {
	const maxLines = 20 // a second

	l.mu.Lock()
	defer l.mu.Unlock()
	if l.lines >= maxLines {
		*count++
		return false
	}
	l.lines++
	return true
}

func (l *streamLog) opened(c *SSEConnection) {
	if !l.mayLog(&l.openedCount) {
		return
	}
	l.log.Info("stream opened",
		"stream", c.number,
		"remote", c.remote,
		"user_agent", c.userAgent)
}

func (l *streamLog) closed(c *SSEConnection, reason string, err error, open int) {
	if !l.mayLog(&l.closedCount) {
		return
	}
	l.log.Info("stream closed",
		"stream", c.number,
		"remote", c.remote,
		"reason", reason,
		"err", err,
		"duration", time.Since(c.since),
		"events", c.traffic.events,
		"streams", open)
}

func (l *streamLog) rejected(remote, state string, err error) {
	if !l.mayLog(&l.rejectedCount) {
		return
	}
	attrs := []any{"remote", remote, "state", state}
	if err != nil {
		attrs = append(attrs, "err", err)
	}
	l.log.Warn("stream rejected", attrs...)
}

// summarize logs the numbers of streams without a line of their own. It begins a new second.
func (l *streamLog) summarize(open int) {
	l.mu.Lock()
	opened, closed, rejected := l.openedCount, l.closedCount, l.rejectedCount
	l.lines, l.openedCount, l.closedCount, l.rejectedCount = 0, 0, 0, 0
	l.mu.Unlock()

	if opened+closed+rejected > 0 {
		l.log.Info("streams opened and closed",
			"opened", opened, "closed", closed, "rejected", rejected, "streams", open)
	}
}

// truncate keeps the first n characters.
func truncate(text string, n int) string {
	return fmt.Sprintf("%.*s", n, text)
}
