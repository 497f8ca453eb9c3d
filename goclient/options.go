package main

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"
)

// options are what the flags say, and what prepare makes of it.
type options struct {
	// The stream and its request.
	url           string
	headers       list
	tokenFile     string
	gzip          bool
	insecure      bool
	caFile        string
	maxEventBytes int

	// A request that may have an effect, and the end of its stream.
	method string
	data   string
	until  string
	events int
	repeat bool

	// The streams.
	clients  int
	rate     int
	stalled  int
	slow     int
	duration time.Duration
	once     bool

	// What is looked at, and printed.
	check       string
	heartbeat   time.Duration
	debug       bool
	json        bool
	pid         int
	showVersion bool

	// The modes.
	publish       string
	publishMethod string
	publishFile   string
	gap           time.Duration
	rounds        int
	forward       string
	forwardMethod string
	event         string
	doctor        bool
	direct        string

	given map[string]bool // names of the flags that were given

	// Made by prepare. From then on, the URLs above have no password and are only printed.
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

// define defines the flags. The manual explains them.
func (o *options) define(f *flag.FlagSet) {
	o.given = map[string]bool{}
	o.defineRequest(f)
	o.defineStreams(f)
	o.defineModes(f)
}

func (o *options) defineRequest(f *flag.FlagSet) {
	f.StringVar(&o.url, "url", "http://localhost:3001/dashboard/stream", "")
	f.Var(&o.headers, "header", "")
	f.StringVar(&o.tokenFile, "token-file", "", "")
	f.BoolVar(&o.gzip, "gzip", false, "")
	f.BoolVar(&o.insecure, "k", false, "")
	f.StringVar(&o.caFile, "cacert", "", "")
	f.IntVar(&o.maxEventBytes, "max-event-bytes", defaultMaxEvent, "")
	f.StringVar(&o.method, "X", "", "")
	f.StringVar(&o.data, "d", "", "")
	f.StringVar(&o.until, "until", "", "")
	f.IntVar(&o.events, "events", 0, "")
	f.BoolVar(&o.repeat, "repeat", false, "")
}

func (o *options) defineStreams(f *flag.FlagSet) {
	f.IntVar(&o.clients, "clients", 1, "")
	f.IntVar(&o.rate, "rate", 2000, "")
	f.IntVar(&o.stalled, "stalled", 0, "")
	f.IntVar(&o.slow, "slow", 0, "")
	f.DurationVar(&o.duration, "duration", 0, "")
	f.BoolVar(&o.once, "once", false, "")
	f.StringVar(&o.check, "check", "auto", "")
	f.DurationVar(&o.heartbeat, "heartbeat", 30*time.Second, "")
	f.BoolVar(&o.debug, "debug", false, "")
	f.BoolVar(&o.json, "json", false, "")
	f.IntVar(&o.pid, "pid", 0, "")
	f.BoolVar(&o.showVersion, "version", false, "")
}

func (o *options) defineModes(f *flag.FlagSet) {
	f.StringVar(&o.publish, "publish", "", "")
	f.StringVar(&o.publishMethod, "method", "", "")
	f.StringVar(&o.publishFile, "body", "", "")
	f.DurationVar(&o.gap, "gap", 500*time.Millisecond, "")
	f.IntVar(&o.rounds, "rounds", 0, "")
	f.StringVar(&o.forward, "forward", "", "")
	f.StringVar(&o.forwardMethod, "forward-method", "PUT", "")
	f.StringVar(&o.event, "event", "message", "")
	f.BoolVar(&o.doctor, "doctor", false, "")
	f.StringVar(&o.direct, "direct", "", "")
}

// ending returns when a stream is over.
func (o *options) ending() ending {
	return ending{
		once:   o.once,
		asked:  o.target.asks(),
		until:  o.until,
		events: o.events,
		repeat: o.repeat,
	}
}

// validate returns an error for the first option that makes no sense.
func (o *options) validate() error {
	checks := []func() error{
		o.validateStreams,
		o.validateNumbers,
		o.validateRequest,
		o.validateModes,
		o.validateForward,
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
	if o.duration < 0 || o.gap < 0 || o.heartbeat < 0 || o.rounds < 0 || o.events < 0 {
		return errors.New("-duration, -gap, -heartbeat, -rounds and -events are not negative")
	}
	if o.maxEventBytes < 1 {
		return errors.New("-max-event-bytes is at least 1")
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

// validateRequest checks what belongs to a stream that is asked for, or that ends.
func (o *options) validateRequest() error {
	isAsked := o.given["X"] && o.method != http.MethodGet || o.given["d"]
	hasEnd := o.given["until"] || o.given["events"]
	switch {
	case o.given["X"] && !isToken(o.method):
		return fmt.Errorf("-X is a method such as POST, not %q", o.method)
	case o.method == http.MethodHead || o.method == http.MethodConnect:
		return fmt.Errorf("-X %s: the answer has no stream", o.method)
	case o.given["until"] && o.until == "":
		return errors.New("-until is empty")
	case o.repeat && !isAsked && !hasEnd:
		return errors.New("-repeat needs -d, -X with another method than GET, -until or -events")
	case o.repeat && o.once:
		return errors.New("-repeat and -once exclude each other")
	}
	return nil
}

// isToken says whether s can be a method or the name of a header (RFC 9110, section 5.6.2).
func isToken(s string) bool {
	isOther := func(r rune) bool {
		return r <= ' ' || r >= 0x7f || strings.ContainsRune(`"(),/:;<=>?@[\]{}`, r)
	}
	return s != "" && strings.IndexFunc(s, isOther) < 0
}

// What sse-client does: without -publish, -forward and -doctor, it watches.
const (
	watchMode   = "watch"
	publishMode = "-publish"
	forwardMode = "-forward"
	doctorMode  = "-doctor"
)

// flagModes says in which modes flags have an effect. All others have one in each mode.
var flagModes = []struct{ flags, modes []string }{
	{
		flags: []string{"X", "d", "until", "events", "repeat", "check", "debug", "clients", "rate",
			"stalled", "slow", "pid"},
		modes: []string{watchMode, publishMode},
	},
	{
		flags: []string{"once", "gzip"},
		modes: []string{watchMode, publishMode, forwardMode},
	},
	{flags: []string{"method", "body", "gap", "rounds"}, modes: []string{publishMode}},
	{flags: []string{"forward-method", "event"}, modes: []string{forwardMode}},
	{flags: []string{"direct"}, modes: []string{doctorMode}},
}

func (o *options) validateModes() error {
	for name, value := range map[string]string{
		"publish": o.publish,
		"forward": o.forward,
		"direct":  o.direct,
	} {
		if o.given[name] && value == "" {
			return fmt.Errorf("-%s is empty", name)
		}
	}

	mode, modes := watchMode, 0
	for name, isOn := range map[string]bool{
		publishMode: o.publish != "",
		forwardMode: o.forward != "",
		doctorMode:  o.doctor,
	} {
		if isOn {
			mode = name
			modes++
		}
	}
	if modes > 1 {
		return errors.New("-doctor, -forward and -publish exclude each other")
	}

	for _, f := range flagModes {
		if slices.Contains(f.modes, mode) {
			continue
		}
		for _, name := range f.flags {
			switch {
			case !o.given[name]:
			case mode == watchMode:
				return fmt.Errorf("-%s belongs to %s", name, strings.Join(f.modes, " or "))
			default:
				return fmt.Errorf("-%s has no effect with %s", name, mode)
			}
		}
	}
	return nil
}

func (o *options) validateForward() error {
	isPut := o.forwardMethod == http.MethodPut
	switch {
	case o.event == "":
		return errors.New("-event is empty")
	case o.forward != "" && !o.given["url"]:
		return errors.New("-forward needs -url: whose stream is to be forwarded")
	case !isPut && o.forwardMethod != http.MethodPost:
		return fmt.Errorf("-forward-method is PUT or POST, not %q", o.forwardMethod)
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
		if !ok || strings.ContainsAny(h, "\r\n") {
			return fmt.Errorf("a header is \"Name: value\" on one line, not %q", h)
		}
		if !isToken(name) {
			return fmt.Errorf("%q cannot be the name of a header", name)
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
	trust, err := o.trust()
	if err != nil {
		return err
	}

	o.target, err = o.newTarget(o.url, header, trust)
	if err != nil {
		return err
	}
	o.target.gzip = o.gzip
	o.target.method = o.method
	o.target.body, err = o.requestBody()
	if err != nil {
		return err
	}
	if o.target.body != nil && o.method == "" {
		o.target.method = http.MethodPost
	}
	if o.target.asks() && !o.given["heartbeat"] {
		o.heartbeat = 0
	}

	o.directTarget, err = o.newTarget(o.direct, header, trust)
	if err != nil {
		return err
	}
	o.forwardTarget, err = o.newTarget(o.forward, nil, trust)
	if err != nil {
		return err
	}
	err = o.preparePublish(header.Clone(), trust)
	if err != nil {
		return err
	}

	for _, s := range []*string{&o.url, &o.direct, &o.forward, &o.publish} {
		*s = redact(*s)
	}
	return nil
}

// newTarget makes a target of a URL; nil where there is none.
func (o *options) newTarget(s string, header http.Header, trust *tls.Config) (*target, error) {
	if s == "" {
		return nil, nil
	}
	t, err := newTarget(s, header, false)
	if err != nil {
		return nil, err
	}
	t.tls = trust
	return t, nil
}

// trust says which certificates are accepted; nil: those that the system trusts.
func (o *options) trust() (*tls.Config, error) {
	if !o.insecure && o.caFile == "" {
		return nil, nil
	}
	config := &tls.Config{InsecureSkipVerify: o.insecure}
	if o.caFile == "" {
		return config, nil
	}

	pem, err := os.ReadFile(o.caFile)
	if err != nil {
		return nil, fmt.Errorf("reading the certificates: %w", err)
	}
	config.RootCAs = x509.NewCertPool()
	if !config.RootCAs.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("reading the certificates: %s has none in PEM format", o.caFile)
	}
	return config, nil
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

// requestBody gives the body of the stream's request; nil without -d.
func (o *options) requestBody() (body []byte, err error) {
	if !o.given["d"] {
		return nil, nil
	}
	file, isFile := strings.CutPrefix(o.data, "@")
	if !isFile {
		return []byte(o.data), nil
	}
	if file == "-" {
		body, err = io.ReadAll(os.Stdin)
	} else {
		body, err = os.ReadFile(file)
	}
	if err != nil {
		return nil, fmt.Errorf("reading the body of -d: %w", err)
	}
	return body, nil
}

// preparePublish reads what -publish sends. It is JSON unless a header says otherwise.
func (o *options) preparePublish(header http.Header, trust *tls.Config) (err error) {
	if header.Get("User-Agent") == "" {
		header.Set("User-Agent", userAgent())
	}
	if o.publishFile != "" {
		o.publishBody, err = os.ReadFile(o.publishFile)
		if err != nil {
			return fmt.Errorf("reading the body: %w", err)
		}
		if header.Get("Content-Type") == "" {
			header.Set("Content-Type", "application/json")
		}
		if o.publishMethod == "" {
			o.publishMethod = http.MethodPost
		}
	}
	o.publishTarget, err = o.newTarget(o.publish, header, trust)
	return err
}
