package main

import (
	"bufio"
	"compress/gzip"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	dialTimeout      = 10 * time.Second // for the name, TCP and TLS
	headTimeout      = 30 * time.Second // for the response head
	askedHeadTimeout = 10 * time.Minute // the same, where the server may work on a request first
	maxRedirects     = 20               // as browsers
	maxText          = 200              // bytes that are quoted of an answer or a comment
	connBuffer       = 4096             // bytes: all that an idle stream holds besides its structs
	holdBuffer       = 2048             // bytes: SO_RCVBUF of a stream that is not read
)

var (
	errTookTooLong   = errors.New("took too long")
	errNoContent     = errors.New("answered 204: the server wants no reconnection")
	errManyRedirects = fmt.Errorf("following redirects: more than %d", maxRedirects)
)

// A target is what the streams request, or where events are sent.
type target struct {
	url    *url.URL    // its address has no zone
	zone   string      // of that address, only to dial: no header and no certificate has it
	header http.Header // may set what the request has anyway, Host too
	gzip   bool        // ask for it
	tls    *tls.Config // nil for the system's defaults
	method string      // empty for GET
	body   []byte      // of the stream's request; nil for none
	quotes bool        // read what an answer says that is no stream

	dialTimeout time.Duration // 0 for the default
	probes      bool          // TCP keep-alive finds a vanished server within seconds
}

// newTarget makes a target of a URL.
func newTarget(s string, header http.Header, gzip bool) (*target, error) {
	u, err := parseURL(s)
	if err != nil {
		return nil, err
	}
	t := &target{url: u, header: header, gzip: gzip}
	u.Host, t.zone = cutZone(u.Host)
	return t, nil
}

// asks says whether the stream's request has an effect, or a price, so that it is sent only once.
func (t *target) asks() bool {
	return t.body != nil || t.method != "" && t.method != http.MethodGet
}

// A conn is one connection whose response head was read and found to be an event stream.
// net/http's client would take two goroutines and 8 KiB of buffers for it.
type conn struct {
	net.Conn
	resp    *http.Response
	br      *bufio.Reader
	body    io.Reader     // without chunking and compression
	zipped  bool          // body decompresses
	text    string        // of an answer that is no stream, on one line
	stop    func() bool   // of the context's hold on the connection
	start   time.Time     // of the first dial
	connect time.Duration // from start to the end of TCP and TLS connecting
	head    time.Duration // from start to the end of the response head
}

// Close also ends the hold that the context has on the connection.
func (c *conn) Close() error {
	c.stop()
	return c.Conn.Close()
}

// An attempt is one try to open a stream.
type attempt struct {
	lastID []byte
	unread bool // only the response head is read
	trace  func(kind, format string, args ...any)
	hop    func(u *url.URL) // is told each URL before it is requested; may be nil
}

func (a attempt) tell(kind, format string, args ...any) {
	if a.trace != nil {
		a.trace(kind, format, args...)
	}
}

// open connects, follows redirects, and checks that the answer is one that EventSource accepts.
func (t *target) open(ctx context.Context, a attempt) (*conn, error) {
	start := time.Now()
	r := t.firstRequest(a.lastID)
	for hop := 0; ; hop++ {
		a.tell("request", "%s %s", r.method, r.url.Redacted())
		if a.hop != nil {
			a.hop(r.url)
		}
		c, err := t.exchange(ctx, r, a)
		if err != nil {
			return nil, failedAt(err, r.url, hop, nil)
		}
		c.connect += c.start.Sub(start)
		c.start, c.head = start, time.Since(start)
		c.tell(a)

		location := c.location()
		if location == "" {
			err = c.check()
			if err == nil {
				return c, nil
			}
			if t.asks() || t.quotes {
				c.readText()
			}
			if t.asks() {
				err = c.withText(err)
			}
			c.Close()
			return nil, failedAt(err, r.url, hop, c)
		}
		c.Close()

		if hop == maxRedirects {
			return nil, failedAt(errManyRedirects, r.url, 0, c)
		}
		next, err := r.redirected(c.resp.StatusCode, location)
		if err != nil {
			return nil, failedAt(err, r.url, hop, c)
		}
		t.keepUser(next.url)
		a.tell("redirect", "to %s", next.url.Redacted())
		r = next
	}
}

// exchange sends the request and reads the response head.
func (t *target) exchange(ctx context.Context, r *request, a attempt) (*conn, error) {
	c := &conn{start: time.Now()}
	receiveBuffer := 0
	if a.unread {
		receiveBuffer = holdBuffer
	}
	if err := c.dial(ctx, t, r.url, receiveBuffer); err != nil {
		return nil, err
	}
	if _, err := c.Write(t.encode(r)); err != nil {
		c.Close()
		return nil, atStep(sending, err)
	}

	limit := headTimeout
	if t.asks() {
		limit = askedHeadTimeout
	}
	if err := c.readHead(a.unread, limit); err != nil {
		c.Close()
		return nil, atStep(reading, err)
	}
	return c, nil
}

// readHead reads the response head within a time limit, and nothing of the body if that is not to
// be read.
func (c *conn) readHead(isUnread bool, limit time.Duration) (err error) {
	c.br = bufio.NewReaderSize(c.Conn, connBuffer)
	if isUnread {
		c.br = bufio.NewReaderSize(byteReader{c.Conn}, 16)
	}
	c.SetReadDeadline(c.start.Add(limit))
	for c.resp == nil || c.resp.StatusCode/100 == 1 {
		c.resp, err = http.ReadResponse(c.br, nil)
		if err != nil {
			return err
		}
	}
	c.SetReadDeadline(time.Time{})
	c.body = c.resp.Body
	return nil
}

// A byteReader reads single bytes, so that a buffer on it takes nothing of what follows the head.
type byteReader struct{ r io.Reader }

func (b byteReader) Read(p []byte) (int, error) { return b.r.Read(p[:min(1, len(p))]) }

// tell shows the response head.
func (c *conn) tell(a attempt) {
	if a.trace == nil {
		return
	}
	status := printable([]byte(c.resp.Proto + " " + c.resp.Status))
	a.trace("answer", "%s after %v", status, c.head.Round(time.Microsecond))
	for _, coding := range c.resp.TransferEncoding { // net/http takes it out of the header
		a.trace("header", "Transfer-Encoding: %s", coding)
	}
	for _, name := range sortedKeys(c.resp.Header) {
		for _, value := range c.resp.Header[name] {
			if name == "Location" {
				value = redact(value)
			}
			a.trace("header", "%s: %s", name, printable([]byte(value)))
		}
	}
}

// cutZone takes the zone out of the host of a URL: the client's own name for one of its links,
// which RFC 6874 (section 4) keeps out of a Host header.
func cutZone(host string) (without, zone string) {
	i, end := strings.IndexByte(host, '%'), strings.LastIndexByte(host, ']')
	if i < 0 || end < i {
		return host, ""
	}
	return host[:i] + host[end:], host[i+1 : end]
}

// address gives what to dial. A redirect to a link-local address stays on the target's link: the
// server does not know what the client calls it.
func (t *target) address(host, port string) string {
	ip, err := netip.ParseAddr(host)
	if err == nil && ip.IsLinkLocalUnicast() && ip.Zone() == "" {
		host = ip.WithZone(t.zone).String()
	}
	return net.JoinHostPort(host, port)
}

// dialContext is for net/http's transport.
func (t *target) dialContext(ctx context.Context, network, addr string) (net.Conn, error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	var d net.Dialer
	return d.DialContext(ctx, network, t.address(host, port))
}

// userAgent is how the client names itself. A server may compress the stream for it.
func userAgent() string { return "sse-client/" + version }

// dial connects to u's host. The end of ctx closes the connection. receiveBuffer, if not 0, is its
// SO_RCVBUF.
func (c *conn) dial(ctx context.Context, t *target, u *url.URL, receiveBuffer int) error {
	port, err := portOf(u)
	if err != nil {
		return atStep(connecting, err)
	}
	timeout := t.dialTimeout
	if timeout == 0 {
		timeout = dialTimeout
	}
	limit, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()

	d := net.Dialer{Control: setReceiveBuffer(receiveBuffer)}
	if t.probes && runtime.GOOS == "linux" {
		d.KeepAlive = -1 // not that of package net, whose interval is 15 s
		d.Control = setProbes
	}
	nc, err := d.DialContext(limit, "tcp", t.address(u.Hostname(), port))
	if err != nil {
		return atStep(connecting, err)
	}
	if u.Scheme == "https" {
		nc, err = startTLS(limit, nc, t.tls, u.Hostname())
		if err != nil {
			return atStep(connecting, err)
		}
	}

	c.Conn, c.connect = nc, time.Since(c.start)
	c.stop = context.AfterFunc(ctx, func() { nc.Close() })
	return nil
}

// portOf gives the port of a URL, which may be that of its scheme.
func portOf(u *url.URL) (string, error) {
	if u.Scheme != "http" && u.Scheme != "https" {
		return "", fmt.Errorf("%q is neither http nor https", u.Scheme)
	}
	if port := u.Port(); port != "" {
		return port, nil
	}
	if u.Scheme == "https" {
		return "443", nil
	}
	return "80", nil
}

// Socket options of Linux, tcp(7).
const (
	tcpKeepIdle     = 4
	tcpKeepInterval = 5
	tcpKeepCount    = 6
)

// setProbes is a dialer's Control. A server that vanished is found after seven seconds. One that
// has come back without the connection is found after one.
func setProbes(_, _ string, rc syscall.RawConn) (err error) {
	options := []struct{ level, name, value int }{
		{syscall.SOL_SOCKET, syscall.SO_KEEPALIVE, 1},
		{syscall.IPPROTO_TCP, tcpKeepIdle, 1},
		{syscall.IPPROTO_TCP, tcpKeepInterval, 1},
		{syscall.IPPROTO_TCP, tcpKeepCount, 6},
	}
	rc.Control(func(fd uintptr) {
		for _, o := range options {
			if err == nil {
				err = syscall.SetsockoptInt(int(fd), o.level, o.name, o.value)
			}
		}
	})
	return err
}

// setReceiveBuffer gives a dialer's Control that sets SO_RCVBUF; nil for 0.
func setReceiveBuffer(size int) func(_, _ string, rc syscall.RawConn) error {
	if size == 0 {
		return nil
	}
	return func(_, _ string, rc syscall.RawConn) (err error) {
		rc.Control(func(fd uintptr) {
			err = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUF, size)
		})
		return err
	}
}

// startTLS returns the connection with TLS, or closes it.
func startTLS(ctx context.Context, nc net.Conn, config *tls.Config,
	name string) (net.Conn, error) {
	config = config.Clone()
	if config == nil {
		config = new(tls.Config)
	}
	config.ServerName = name
	tc := tls.Client(nc, config)
	err := tc.HandshakeContext(ctx)
	if err != nil {
		nc.Close()
	}
	return tc, err
}

// An answerError is an answer at which a browser gives up permanently.
type answerError string

func (e answerError) Error() string { return string(e) }

// check says why the answer is not an event stream, and undoes its compression if it is one.
func (c *conn) check() (err error) {
	switch code := c.resp.StatusCode; {
	case code == http.StatusNoContent:
		return errNoContent
	case code != http.StatusOK:
		return answerError("answered " + printable([]byte(strings.TrimSpace(c.resp.Status))))
	}
	ct := c.resp.Header.Get("Content-Type")
	if t, _, _ := mime.ParseMediaType(ct); t != "text/event-stream" {
		return answerError(fmt.Sprintf("answered with Content-Type %q, not text/event-stream", ct))
	}
	switch enc := strings.ToLower(c.resp.Header.Get("Content-Encoding")); enc {
	case "", "identity":
	case "gzip":
		c.zipped = true
		c.body = &lateGzip{r: c.body}
	default:
		return answerError(fmt.Sprintf("answered with Content-Encoding %q, not asked for", enc))
	}
	return nil
}

// readText reads the begin of an answer that is no stream.
func (c *conn) readText() {
	c.SetReadDeadline(time.Now().Add(time.Second))
	text, _ := io.ReadAll(io.LimitReader(c.body, maxText))
	c.text = strings.Join(strings.Fields(string(text)), " ")
}

// withText adds to the error what the answer says. An API explains there what is wrong.
func (c *conn) withText(err error) error {
	if c.text == "" || err == errNoContent {
		return err
	}
	return answerError(err.Error() + ": " + printable([]byte(c.text)))
}

// A lateGzip reads the gzip header at the first read: it may come long after the response head.
type lateGzip struct {
	r io.Reader
	z *gzip.Reader
}

func (g *lateGzip) Read(p []byte) (n int, err error) {
	if g.z == nil {
		g.z, err = gzip.NewReader(g.r)
		if err == io.ErrUnexpectedEOF { // a server sends these ten bytes at once, or others
			err = gzip.ErrHeader
		}
		if err != nil {
			return 0, err
		}
	}
	return g.z.Read(p)
}

// readBuffers are for streams that have something to read; one that waits holds none.
var readBuffers = sync.Pool{New: func() any { return new([32 << 10]byte) }}

// read gives the next piece of the body to f, with the time at which it came.
func (c *conn) read(f func(b []byte, at time.Time)) error {
	// Only an unread byte needs a buffer. But a decompressor may hold more than it gave, and a body
	// with a length may be over although the connection is kept.
	if !c.zipped && c.resp.ContentLength < 0 {
		if _, err := c.br.Peek(1); err != nil && err != io.EOF {
			return err
		}
	}
	buf := readBuffers.Get().(*[32 << 10]byte)
	defer readBuffers.Put(buf)
	n, err := c.body.Read(buf[:])
	f(buf[:n], time.Now())
	return err
}

// plain takes out of err what differs from stream to stream, so that errors can be counted.
func plain(err error) error {
	var no syscall.Errno
	var op *net.OpError
	switch {
	case errors.As(err, &no):
		return no
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded):
		return errTookTooLong
	case errors.As(err, &op):
		return op.Err
	}
	return err
}
