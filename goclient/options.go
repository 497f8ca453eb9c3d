package main

import (
	"errors"
	"flag"
	"fmt"
	"net/http"
	"os"
	"strings"
	"syscall"
	"time"
)

// options are what the flags say, and what prepare makes of it.
type options struct {
	// The streams and their requests.
	url       string
	headers   list
	tokenFile string
	gzip      bool
	clients   int
	rate      int
	stalled   int
	slow      int
	duration  time.Duration
	once      bool

	// What is looked at, and printed.
	check       string
	heartbeat   time.Duration
	debug       bool
	json        bool
	pid         int
	showVersion bool

	// The modes.
	publish       string
	method        string
	body          string
	gap           time.Duration
	rounds        int
	forward       string
	forwardMethod string
	doctor        bool
	direct        string

	given map[string]bool // names of the flags that were given

	// Made by prepare.
	target        *target
	directTarget  *target // nil without -direct
	publishTarget *target // nil without -publish
	publishBody   []byte
	forwardTarget *target // nil without -forward
}

// A list is a flag that can be repeated.
type list []string

func (l *list) String() string     { return strings.Join(*l, ", ") }
func (l *list) Set(s string) error { *l = append(*l, s); return nil }

// define defines the flags.
func (o *options) define(f *flag.FlagSet) {
	o.given = map[string]bool{}
	o.defineStreams(f)
	o.defineModes(f)
}

func (o *options) defineStreams(f *flag.FlagSet) {
	f.StringVar(&o.url, "url", "http://localhost:3001/dashboard/stream", "stream `URL`")
	f.IntVar(&o.clients, "clients", 1, "streams to open, those of -stalled and -slow included")
	f.IntVar(&o.rate, "rate", 2000, "streams to open in a second")
	f.IntVar(&o.stalled, "stalled", 0, "of these, streams that are opened and never read")
	f.IntVar(&o.slow, "slow", 0, "of these, streams of which 4 bytes a second are read")
	f.DurationVar(&o.duration, "duration", 0, "end after this time; 0: at a signal, or when "+
		"all streams ended (-doctor: 35s)")
	f.BoolVar(&o.once, "once", false, "end each stream at its first close")
	f.BoolVar(&o.gzip, "gzip", false, "ask for gzip (more memory for each stream)")
	f.Var(&o.headers, "header", "`\"Name: value\"` to send with -url and -publish; repeatable")
	f.StringVar(&o.tokenFile, "token-file", "", "`file` with a bearer token to send likewise")
	f.BoolVar(&o.debug, "debug", false, "print the events and heartbeats of the first stream")
	f.BoolVar(&o.json, "json", false, "print the summary as JSON")
	f.StringVar(&o.check, "check", "auto", "`what` to check: none, ids, json, snapshot, auto")
	f.DurationVar(&o.heartbeat, "heartbeat", 30*time.Second, "heartbeat to expect; 0: none.\n"+
		"-forward opens a stream anew that was silent for two")
	f.BoolVar(&o.showVersion, "version", false, "print the version")
}

func (o *options) defineModes(f *flag.FlagSet) {
	f.StringVar(&o.publish, "publish", "", "request this `URL` every -gap and measure deliveries")
	f.StringVar(&o.method, "method", "", "of -publish (default GET, with -body POST)")
	f.StringVar(&o.body, "body", "", "`file` to send with -publish")
	f.DurationVar(&o.gap, "gap", 500*time.Millisecond, "from one publish to the next")
	f.IntVar(&o.rounds, "rounds", 0, "end after so many publishes; 0: go on")
	f.IntVar(&o.pid, "pid", 0, "the server's process, to measure its memory and CPU (Linux)")
	f.StringVar(&o.forward, "forward", "", "send each event's data on to this `URL`; a token for "+
		"it\nis taken from the environment variable SSE_FORWARD_TOKEN.\n"+
		"When the stream is silent or gone, the last snapshot is sent once\n"+
		"more with the status \"stale\"")
	f.StringVar(&o.forwardMethod, "forward-method", "PUT", "`method` of -forward")
	f.BoolVar(&o.doctor, "doctor", false, "watch -url and say why events come late")
	f.StringVar(&o.direct, "direct", "", "with -doctor: `URL` of the stream without the proxy")
}

// validate returns an error for the first option that makes no sense.
func (o *options) validate() error {
	checks := []func() error{
		o.validateStreams,
		o.validateNumbers,
		o.validateModes,
		o.validateURLs,
		o.validateHeaders,
	}
	for _, check := range checks {
		if err := check(); err != nil {
			return err
		}
	}
	return nil
}

func (o *options) validateStreams() error {
	var limit syscall.Rlimit
	syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit) // Go has raised it as far as it goes

	switch {
	case o.clients < 1 || o.rate < 1:
		return errors.New("-clients and -rate are at least 1")
	case uint64(o.clients)+32 > uint64(limit.Cur):
		return fmt.Errorf("-clients %d: the limit of %d open files allows %d (ulimit -n)",
			o.clients, limit.Cur, int(limit.Cur)-32)
	case o.stalled < 0 || o.slow < 0 || o.stalled+o.slow > o.clients:
		return errors.New("-stalled and -slow are parts of -clients")
	}
	return nil
}

func (o *options) validateNumbers() error {
	if o.duration < 0 || o.gap < 0 || o.heartbeat < 0 || o.rounds < 0 {
		return errors.New("-duration, -gap, -heartbeat and -rounds are not negative")
	}
	if !strings.Contains(" none ids json snapshot auto ", " "+o.check+" ") {
		return fmt.Errorf("-check is none, ids, json, snapshot or auto, not %q", o.check)
	}
	if o.pid != 0 {
		_, known := processUsage(o.pid)
		if !known {
			return fmt.Errorf("-pid %d: there is no such process in /proc", o.pid)
		}
	}
	return nil
}

func (o *options) validateModes() error {
	modes := 0
	for _, on := range []bool{o.doctor, o.forward != "", o.publish != ""} {
		if on {
			modes++
		}
	}

	isPut := o.forwardMethod == http.MethodPut
	switch {
	case o.given["forward"] && o.forward == "":
		return errors.New("-forward is empty")
	case o.given["forward-method"] && o.forward == "":
		return errors.New("-forward-method belongs to -forward")
	case o.forward != "" && !o.given["url"]:
		return errors.New("-forward needs -url: whose stream is to be forwarded")
	case !isPut && o.forwardMethod != http.MethodPost:
		return fmt.Errorf("-forward-method is PUT or POST, not %q", o.forwardMethod)
	case modes > 1:
		return errors.New("-doctor, -forward and -publish exclude each other")
	case o.clients > 1 && (o.doctor || o.forward != ""):
		return errors.New("-doctor and -forward have no -clients")
	case o.direct != "" && !o.doctor:
		return errors.New("-direct belongs to -doctor")
	case o.publish == "" && (o.method != "" || o.body != "" || o.rounds > 0):
		return errors.New("-method, -body and -rounds belong to -publish")
	}
	return nil
}

func (o *options) validateURLs() error {
	urls := []string{o.url}
	for _, optional := range []string{o.direct, o.publish, o.forward} {
		if optional != "" {
			urls = append(urls, optional)
		}
	}
	for _, s := range urls {
		if _, err := parseURL(s); err != nil {
			return err
		}
	}
	return nil
}

func (o *options) validateHeaders() error {
	for _, h := range o.headers {
		name, _, ok := strings.Cut(h, ":")
		if !ok || name == "" || strings.ContainsAny(h, "\r\n") {
			return fmt.Errorf("a header is \"Name: value\" on one line, not %q", h)
		}
	}
	return nil
}

// prepare reads the files that the options name, and makes the targets.
func (o *options) prepare() error {
	header, err := o.requestHeader()
	if err != nil {
		return err
	}
	if o.target, err = newTarget(o.url, header, o.gzip); err != nil {
		return err
	}

	if o.direct != "" {
		o.directTarget, err = newTarget(o.direct, header, false)
		if err != nil {
			return err
		}
	}
	if o.forward != "" {
		o.forwardTarget, err = newTarget(o.forward, nil, false)
		if err != nil {
			return err
		}
	}
	if o.publish != "" {
		return o.preparePublish(header.Clone())
	}
	return nil
}

// requestHeader gives what -header and -token-file add to the requests.
func (o *options) requestHeader() (http.Header, error) {
	header := http.Header{}
	for _, h := range o.headers {
		name, value, _ := strings.Cut(h, ":")
		header.Add(name, strings.TrimSpace(value))
	}
	if o.tokenFile == "" {
		return header, nil
	}

	token, err := os.ReadFile(o.tokenFile)
	if err != nil {
		return nil, fmt.Errorf("reading the token: %w", err)
	}
	header.Add("Authorization", "Bearer "+strings.TrimSpace(string(token)))
	return header, nil
}

// preparePublish reads what -publish sends. It is JSON unless a header says otherwise.
func (o *options) preparePublish(header http.Header) (err error) {
	if header.Get("User-Agent") == "" {
		header.Set("User-Agent", userAgent())
	}
	if o.body != "" {
		o.publishBody, err = os.ReadFile(o.body)
		if err != nil {
			return fmt.Errorf("reading the body: %w", err)
		}
		if header.Get("Content-Type") == "" {
			header.Set("Content-Type", "application/json")
		}
		if o.method == "" {
			o.method = http.MethodPost
		}
	}
	o.publishTarget, err = newTarget(o.publish, header, false)
	return err
}
