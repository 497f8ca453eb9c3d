// Sse-client opens, checks and measures the streams of any server-sent event server, forwards
// the events of one, and says why events come late. `sse-client -h` is its manual.
//
// The parser is in parse.go, one connection in conn.go, one stream over its reconnections in
// stream.go; what is done with streams in measure.go, publish.go, forward.go and doctor.go.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"
	"sync"
	"syscall"
	"time"
)

var version = "dev"

const manual = `sse-client opens, checks and measures server-sent event streams of any server.

usage: sse-client [-url URL] [flags]

It reconnects as a browser does: after the last "retry" that the server sent (3s before that),
with Last-Event-ID; 204 ends a stream for good. A browser gives up at any other answer that is
not 200 with text/event-stream; sse-client counts an error and tries again. Redirects are
followed, user:password@ in the URL is basic authentication, SSL_CERT_FILE names other trusted
certificates. A link-local address has its zone as in http://[fe80::1%25eth0]:3001/.

Exit status: 0 all is well, 1 something was wrong (see "wrong" in the summary), 2 bad usage.
Wrong are what -check finds; a stream silent for more than two heartbeats; an event over 1 MiB;
an answer at which a browser would give up; a stream whose last attempt failed; a publish that
failed or did not reach a stream in 10 s.

-check says what is looked at:
  none      nothing
  ids       ids that are decimal numbers increase (a new connection may repeat the last)
  json      the same, and the data of each event is JSON
  snapshot  the same, and each event without a name is an object with the keys
            system_status, metrics, activities and timestamp
  auto      ids; and snapshots, if the first event of a stream has two of these keys

-publish measures from just before the request to the first event at each stream that no stream
had before it. A publish with which a second new id arrives (the server sent one of its own) is
left out of the results and counted as mixed; events without ids cannot be told apart.

-json keys: url, streams, stalled, slow, elapsed_s, streams_open, streams_opened,
  streams_ended_by_204, unread_open, unread_closed_by_server, reconnects, closed_by_server,
  closed_uncleanly, errors, error_kinds {text: count}, events, events_per_s, heartbeats, bytes;
  wrong [{problem, count, example}]; each with p50, p99 and max: connect_ms (TCP and TLS),
  headers_ms and first_event_ms (from the first dial), spread_ms (one id, from the first to the
  last stream open when it appeared), event_gap_ms, away_ms (from the last event of a
  connection to the first of the next), heartbeat_gap_ms.
  -publish adds publish_rounds, publish_rounds_mixed, missed, delivery_ms, last_delivery_ms (of
  the last stream of each round), bytes_per_delivery. Linux: client_rss_per_stream_kib,
  client_cpu_us_per_delivery. -pid adds rss_before_mib, rss_after_mib, rss_per_stream_kib,
  connect_cpu_us_per_stream, cpu_us_per_delivery (an event received while publishing).
  -forward: forward {sent, failed, replaced, dropped}. -doctor: findings [{wrong, text, change}].

flags:
`

// A config is what the flags say.
type config struct {
	url, publish, method, body, forward, forwardMethod, direct, check, tokenFile string
	clients, rate, stalled, slow, rounds, pid                                    int
	duration, gap, heartbeat                                                     time.Duration
	once, gzip, debug, json, doctor, hasURL                                      bool
	headers                                                                      list

	target, directTarget, forwardTarget *target
	publisher                           *publisher
}

type list []string

func (l *list) String() string     { return strings.Join(*l, ", ") }
func (l *list) Set(s string) error { *l = append(*l, s); return nil }

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// run is the whole program; it returns the exit status.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	cfg, err := parseFlags(args, stdout)
	if errors.Is(err, flag.ErrHelp) {
		return 0
	}
	if err != nil {
		fmt.Fprintf(stderr, "sse-client: %v (-h explains)\n", err)
		return 2
	}
	if cfg.duration > 0 {
		var end func()
		ctx, end = context.WithCancel(ctx) // without a deadline that a dial would take for its own
		defer end()
		defer time.AfterFunc(cfg.duration, end).Stop()
	}
	switch {
	case cfg.doctor:
		return runDoctor(ctx, cfg, stdout, stderr)
	case cfg.forward != "":
		return runForward(ctx, cfg, stdout, stderr)
	}
	return runStreams(ctx, cfg, stdout, stderr)
}

// parseFlags gives flag.ErrHelp where the answer to the flags was printed already.
func parseFlags(args []string, stdout io.Writer) (*config, error) {
	c := new(config)
	f := flag.NewFlagSet("sse-client", flag.ContinueOnError)
	f.SetOutput(io.Discard)
	f.Usage = func() {}
	f.StringVar(&c.url, "url", "http://localhost:3001/dashboard/stream", "stream `URL`")
	f.IntVar(&c.clients, "clients", 1, "streams to open, those of -stalled and -slow included")
	f.IntVar(&c.rate, "rate", 2000, "streams to open in a second")
	f.IntVar(&c.stalled, "stalled", 0, "of these, streams that are opened and never read")
	f.IntVar(&c.slow, "slow", 0, "of these, streams of which 4 bytes a second are read")
	f.DurationVar(&c.duration, "duration", 0, "end after this time; 0: at a signal, or when "+
		"all streams ended (-doctor: 35s)")
	f.BoolVar(&c.once, "once", false, "end each stream at its first close")
	f.BoolVar(&c.gzip, "gzip", false, "ask for gzip (more memory for each stream)")
	f.Var(&c.headers, "header", "`\"Name: value\"` to send with -url and -publish; repeatable")
	f.StringVar(&c.tokenFile, "token-file", "", "`file` with a bearer token to send likewise")
	f.BoolVar(&c.debug, "debug", false, "print the events and heartbeats of the first stream")
	f.BoolVar(&c.json, "json", false, "print the summary as JSON")
	f.StringVar(&c.check, "check", "auto", "`what` to check: none, ids, json, snapshot, auto")
	f.DurationVar(&c.heartbeat, "heartbeat", 30*time.Second, "heartbeat to expect; 0: none.\n"+
		"-forward opens a stream anew that was silent for two")
	f.StringVar(&c.publish, "publish", "", "request this `URL` every -gap and measure deliveries")
	f.StringVar(&c.method, "method", "", "of -publish (default GET, with -body POST)")
	f.StringVar(&c.body, "body", "", "`file` to send with -publish")
	f.DurationVar(&c.gap, "gap", 500*time.Millisecond, "from one publish to the next")
	f.IntVar(&c.rounds, "rounds", 0, "end after so many publishes; 0: go on")
	f.IntVar(&c.pid, "pid", 0, "the server's process, to measure its memory and CPU (Linux)")
	f.StringVar(&c.forward, "forward", "", "send each event's data on to this `URL`; a token for "+
		"it\nis taken from the environment variable SSE_FORWARD_TOKEN.\n"+
		"When the stream is silent or gone, the last snapshot is sent once\n"+
		"more with the status \"stale\"")
	f.StringVar(&c.forwardMethod, "forward-method", "PUT", "`method` of -forward")
	f.BoolVar(&c.doctor, "doctor", false, "watch -url and say why events come late")
	f.StringVar(&c.direct, "direct", "", "with -doctor: `URL` of the stream without the proxy")
	show := f.Bool("version", false, "print the version")
	err := f.Parse(args)
	if errors.Is(err, flag.ErrHelp) {
		io.WriteString(stdout, manual)
		f.SetOutput(stdout)
		f.PrintDefaults()
	}
	if err != nil {
		return nil, err
	}
	if *show {
		fmt.Fprintln(stdout, "sse-client", version)
		return nil, flag.ErrHelp
	}
	if f.NArg() > 0 {
		return nil, fmt.Errorf("unexpected argument %q", f.Arg(0))
	}
	f.Visit(func(set *flag.Flag) {
		switch {
		case set.Name == "forward" && c.forward == "":
			err = errors.New("-forward is empty")
		case set.Name == "forward-method" && c.forward == "":
			err = errors.New("-forward-method belongs to -forward")
		case set.Name == "url":
			c.hasURL = true
		}
	})
	if err != nil {
		return nil, err
	}
	return c, c.prepare()
}

// prepare checks what the flags say and makes of it what the run needs.
func (c *config) prepare() error {
	if err := c.validate(); err != nil {
		return err
	}
	if c.doctor && c.duration == 0 {
		c.duration = 35 * time.Second // longer than the usual heartbeat
	}
	header := http.Header{}
	if c.tokenFile != "" {
		token, err := os.ReadFile(c.tokenFile)
		if err != nil {
			return fmt.Errorf("reading the token: %w", err)
		}
		c.headers = append(c.headers, "Authorization: Bearer "+strings.TrimSpace(string(token)))
	}
	for _, h := range c.headers {
		name, value, ok := strings.Cut(h, ":")
		if !ok || name == "" || strings.ContainsAny(h, "\r\n") {
			return fmt.Errorf("a header is \"Name: value\" on one line, not %q", h)
		}
		header.Add(name, strings.TrimSpace(value))
	}
	var err error
	if c.target, err = newTarget(c.url, header, c.gzip); err != nil {
		return err
	}
	if c.direct != "" {
		c.directTarget, err = newTarget(c.direct, header, false)
	}
	if c.publish != "" && err == nil {
		err = c.preparePublish(header.Clone())
	}
	if c.forward != "" && err == nil {
		c.forwardTarget, err = newTarget(c.forward, nil, false)
	}
	return err
}

// validate says what of the flags makes no sense.
func (c *config) validate() error {
	var lim syscall.Rlimit
	syscall.Getrlimit(syscall.RLIMIT_NOFILE, &lim) // Go has raised it as far as it goes
	_, known := processUsage(c.pid)
	modes := 0
	for _, on := range []bool{c.doctor, c.forward != "", c.publish != ""} {
		if on {
			modes++
		}
	}
	switch {
	case c.clients < 1 || c.rate < 1:
		return errors.New("-clients and -rate are at least 1")
	case uint64(c.clients)+32 > uint64(lim.Cur):
		return fmt.Errorf("-clients %d: the limit of %d open files allows %d (ulimit -n)",
			c.clients, lim.Cur, int(lim.Cur)-32)
	case c.stalled < 0 || c.slow < 0 || c.stalled+c.slow > c.clients:
		return errors.New("-stalled and -slow are parts of -clients")
	case c.duration < 0 || c.gap < 0 || c.heartbeat < 0 || c.rounds < 0:
		return errors.New("-duration, -gap, -heartbeat and -rounds are not negative")
	case !strings.Contains(" none ids json snapshot auto ", " "+c.check+" "):
		return fmt.Errorf("-check is none, ids, json, snapshot or auto, not %q", c.check)
	case c.forward != "" && !c.hasURL:
		return errors.New("-forward needs -url: whose stream is to be forwarded")
	case c.forwardMethod != http.MethodPut && c.forwardMethod != http.MethodPost:
		return fmt.Errorf("-forward-method is PUT or POST, not %q", c.forwardMethod)
	case modes > 1:
		return errors.New("-doctor, -forward and -publish exclude each other")
	case c.clients > 1 && (c.doctor || c.forward != ""):
		return errors.New("-doctor and -forward have no -clients")
	case c.direct != "" && !c.doctor:
		return errors.New("-direct belongs to -doctor")
	case c.publish == "" && (c.method != "" || c.body != "" || c.rounds > 0):
		return errors.New("-method, -body and -rounds belong to -publish")
	case c.pid != 0 && !known:
		return fmt.Errorf("-pid %d: there is no such process in /proc", c.pid)
	}
	return nil
}

// preparePublish makes the publisher; what it sends is JSON unless a header says otherwise.
func (c *config) preparePublish(header http.Header) (err error) {
	to, err := newTarget(c.publish, header, false)
	if err != nil {
		return err
	}
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.DialContext = to.dialContext
	p := &publisher{method: c.method, to: to}
	p.client = http.Client{Timeout: roundLimit, Transport: transport}
	if header.Get("User-Agent") == "" {
		header.Set("User-Agent", userAgent())
	}
	if c.body != "" {
		if p.body, err = os.ReadFile(c.body); err != nil {
			return fmt.Errorf("reading the body: %w", err)
		}
		if header.Get("Content-Type") == "" {
			header.Set("Content-Type", "application/json")
		}
		if p.method == "" {
			p.method = http.MethodPost
		}
	}
	c.publisher = p
	return nil
}

// newTarget checks a URL.
func newTarget(s string, header http.Header, gzip bool) (*target, error) {
	u, err := url.Parse(s)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return nil, fmt.Errorf("%q is no URL with http:// or https://", s)
	}
	t := &target{url: u, header: header, gzip: gzip}
	u.Host, t.zone = cutZone(u.Host)
	return t, nil
}

// runStreams opens the streams, measures until the end, and prints the summary.
func runStreams(ctx context.Context, c *config, stdout, stderr io.Writer) int {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	m := newMeter(newChecker(c.check), c.heartbeat, c.clients)
	viewers := newViewers(m, c, stdout, stderr)
	begin, start := time.Now(), m.moment(c.pid)
	var settled, end moment
	var wg sync.WaitGroup
	wg.Add(2)
	go func() {
		defer wg.Done()
		defer stop()
		settled, end = m.run(ctx, c)
	}()
	go func() {
		defer wg.Done()
		defer stop() // when all have ended
		openAll(ctx, c, viewers)
	}()
	if c.debug {
		stderr = io.Discard
	}
	m.progress(stderr, 5*time.Second, ctx.Done())
	now := time.Now()
	wg.Wait()
	m.finish(viewers, now)
	s := m.summary(now.Sub(begin))
	s.URL, s.Streams, s.Stalled, s.Slow = c.url, c.clients, c.stalled, c.slow
	s.use(c.pid, start, settled, end)
	if c.json {
		printJSON(stdout, s)
	} else {
		s.write(stdout)
	}
	return exitStatus(len(s.Wrong) > 0)
}

// newViewers gives the streams' observers; the debug output leaves stdout to -json.
func newViewers(m *meter, c *config, stdout, stderr io.Writer) []*viewer {
	viewers := make([]*viewer, c.clients)
	for i := range viewers {
		viewers[i] = &viewer{m: m, n: i, unread: i >= c.clients-c.stalled-c.slow}
	}
	if c.debug {
		viewers[0].debug = stdout
		if c.json {
			viewers[0].debug = stderr
		}
	}
	return viewers
}

// openAll opens the streams, -rate a second, and waits until all have ended.
func openAll(ctx context.Context, c *config, viewers []*viewer) {
	start := time.Now()
	var wg sync.WaitGroup
	defer wg.Wait()
	for i, v := range viewers {
		if !sleep(ctx, time.Until(start.Add(time.Duration(i)*time.Second/time.Duration(c.rate)))) {
			return
		}
		s := newStream(c.target, v)
		s.once = c.once
		wg.Add(1)
		go func() {
			defer wg.Done()
			switch n := s.o.(*viewer).n; {
			case n >= c.clients-c.stalled:
				s.hold(ctx, 0)
			case n >= c.clients-c.stalled-c.slow:
				s.hold(ctx, slowBytes)
			default:
				s.run(ctx)
			}
		}()
	}
}

// run waits until all streams are open, publishes if that is asked for, and gives the moments at
// which the streams had settled and at which it ended.
func (m *meter) run(ctx context.Context, c *config) (settled, end moment) {
	select {
	case <-ctx.Done():
		return
	case <-m.settled:
	}
	debug.FreeOSMemory() // opening leaves garbage behind
	if !sleep(ctx, settleTime) {
		return
	}
	settled = m.moment(c.pid)
	if c.publisher != nil {
		m.rounds(ctx, c.publisher, c.gap, c.rounds)
	} else {
		<-ctx.Done()
	}
	return settled, m.moment(c.pid)
}

// runForward forwards until ctx ends.
func runForward(ctx context.Context, c *config, stdout, stderr io.Writer) int {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	log := slog.New(slog.NewTextHandler(stderr, nil))
	token := strings.TrimSpace(os.Getenv("SSE_FORWARD_TOKEN"))
	f := newForwarder(c.forwardMethod, c.forwardTarget, token, log)
	f.fresh.unknown = 2 * c.heartbeat
	s := newStream(c.target, f)
	s.once, s.backoff, s.silence = c.once, true, 2*c.heartbeat
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer stop() // with -once
		s.run(ctx)
	}()
	f.run(ctx)
	<-done
	f.stop()
	if c.json {
		printJSON(stdout, map[string]any{"url": c.url, "forward": f.stats})
	} else {
		n := &f.stats
		fmt.Fprintf(stdout, "%d events forwarded, %d failed, %d replaced by a newer one, "+
			"%d too large\n", n.Sent, n.Failed, n.Replaced, n.Dropped)
	}
	return exitStatus(f.stats.failing || f.upstream == "failing")
}

func printJSON(w io.Writer, v any) {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	e.Encode(v)
}

func exitStatus(wrong bool) int {
	if wrong {
		return 1
	}
	return 0
}
