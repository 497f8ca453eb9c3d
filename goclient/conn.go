package main

import (
	"bufio"
	"compress/gzip"
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	dialTimeout = 10 * time.Second // for TCP and TLS
	headTimeout = 30 * time.Second // for the response head
	maxRedirect = 5
	connBuffer  = 4096 // bytes: all that an idle stream holds besides its stack and structs
	holdBuffer  = 2048 // bytes: SO_RCVBUF of a stream that is not read, so the server notices
)

var errNoContent = errors.New("answered 204: the server wants no reconnection")

// A target is what the streams request, or where events are sent.
type target struct {
	url    *url.URL    // its address has no zone
	zone   string      // of that address, only to dial: no header and no certificate has it
	header http.Header // may set what the request has anyway, Host too
	gzip   bool        // ask for it
	tls    *tls.Config // nil for the system's defaults
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

// parseURL checks a URL, whose address may have a zone.
func parseURL(s string) (*url.URL, error) {
	u, err := url.Parse(s)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return nil, fmt.Errorf("%q is no URL with http:// or https://", s)
	}
	return u, nil
}

// A conn is one connection whose response head was read and found to be an event stream.
// net/http's client would take two goroutines and 8 KiB of buffers for it.
type conn struct {
	net.Conn
	resp    *http.Response
	br      *bufio.Reader
	body    io.Reader     // without chunking and compression
	zipped  bool          // body decompresses
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

// open connects, follows redirects, and checks that the answer is one that EventSource accepts.
func (t *target) open(ctx context.Context, lastID []byte) (*conn, error) {
	start, u := time.Now(), t.url
	for hop := 0; ; hop++ {
		c, err := t.request(ctx, u, lastID)
		if err != nil {
			return nil, err
		}
		c.connect += c.start.Sub(start)
		c.start, c.head = start, time.Since(start)
		loc := c.resp.Header.Get("Location")
		if c.resp.StatusCode/100 != 3 || loc == "" {
			if err = c.check(); err == nil {
				return c, nil
			}
		} else if u, err = u.Parse(loc); err == nil {
			u.Host, _ = cutZone(u.Host)
			if hop == maxRedirect {
				err = fmt.Errorf("following redirects: more than %d", maxRedirect)
			}
		}
		if err != nil {
			c.Close()
			return nil, err
		}
		c.Close()
	}
}

// request sends the request for u and reads the response head.
func (t *target) request(ctx context.Context, u *url.URL, lastID []byte) (*conn, error) {
	c := &conn{start: time.Now()}
	if err := c.dial(ctx, t, u, 0); err != nil {
		return nil, err
	}
	if _, err := io.WriteString(c, t.head(u, lastID)); err != nil {
		c.Close()
		return nil, fmt.Errorf("sending the request: %w", plain(err))
	}
	c.br = bufio.NewReaderSize(c.Conn, connBuffer)
	c.SetReadDeadline(c.start.Add(headTimeout))
	for c.resp == nil || c.resp.StatusCode/100 == 1 {
		var err error
		if c.resp, err = http.ReadResponse(c.br, nil); err != nil {
			c.Close()
			return nil, fmt.Errorf("reading the response head: %w", plain(err))
		}
	}
	c.SetReadDeadline(time.Time{})
	c.body = c.resp.Body
	return c, nil
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

// dial connects to u's host. The end of ctx closes the connection. rcvBuf, if not 0, is its
// SO_RCVBUF.
func (c *conn) dial(ctx context.Context, t *target, u *url.URL, rcvBuf int) error {
	port, ok := map[string]string{"http": "80", "https": "443"}[u.Scheme]
	if !ok {
		return fmt.Errorf("connecting: %q is neither http nor https", u.Scheme)
	}
	if p := u.Port(); p != "" {
		port = p
	}
	var d net.Dialer
	if rcvBuf > 0 {
		d.Control = func(_, _ string, rc syscall.RawConn) (err error) {
			rc.Control(func(fd uintptr) {
				err = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUF, rcvBuf)
			})
			return err
		}
	}
	limit, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	nc, err := d.DialContext(limit, "tcp", t.address(u.Hostname(), port))
	if err == nil && u.Scheme == "https" {
		cfg := t.tls.Clone()
		if cfg == nil {
			cfg = new(tls.Config)
		}
		cfg.ServerName = u.Hostname()
		tc := tls.Client(nc, cfg)
		if err = tc.HandshakeContext(limit); err != nil {
			nc.Close()
		}
		nc = tc
	}
	if err != nil {
		return fmt.Errorf("connecting: %w", plain(err))
	}
	c.Conn, c.connect = nc, time.Since(c.start)
	c.stop = context.AfterFunc(ctx, func() { nc.Close() })
	return nil
}

// head gives the request head. What the target's header holds goes to its own host only.
func (t *target) head(u *url.URL, lastID []byte) string {
	host, h := u.Host, http.Header{}
	if u.Scheme == t.url.Scheme && host == t.url.Host && t.header != nil {
		h = t.header.Clone()
	}
	set := func(name, value string) {
		if h.Get(name) == "" && value != "" {
			h.Set(name, value)
		}
	}
	set("Accept", "text/event-stream")
	set("Cache-Control", "no-cache")
	set("User-Agent", userAgent())
	set("Last-Event-ID", string(lastID))
	if t.gzip {
		set("Accept-Encoding", "gzip")
	}
	if u.User != nil {
		password, _ := u.User.Password()
		basic := base64.StdEncoding.EncodeToString([]byte(u.User.Username() + ":" + password))
		set("Authorization", "Basic "+basic)
	}
	set("Host", host)
	var b strings.Builder
	fmt.Fprintf(&b, "GET %s HTTP/1.1\r\nHost: %s\r\n", u.RequestURI(), h.Get("Host"))
	h.Del("Host")
	h.Write(&b)
	return b.String() + "\r\n"
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
		return answerError("answered " + c.resp.Status)
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

// A lateGzip reads the gzip header at the first read: it may come long after the response head.
type lateGzip struct {
	r io.Reader
	z *gzip.Reader
}

func (g *lateGzip) Read(p []byte) (n int, err error) {
	if g.z == nil {
		if g.z, err = gzip.NewReader(g.r); err != nil {
			return 0, err
		}
	}
	return g.z.Read(p)
}

// readBuffers are for streams that have something to read; one that waits holds none.
var readBuffers = sync.Pool{New: func() any { return new([32 << 10]byte) }}

// read gives the next piece of the body to f, with the time at which it came.
func (c *conn) read(f func(b []byte, at time.Time)) error {
	if !c.zipped { // a decompressor may hold more than it gave
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
		return errors.New("took too long")
	case errors.As(err, &op):
		return op.Err
	}
	return err
}
