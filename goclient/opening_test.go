package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"
)

// Each reason why a stream does not open has its own sentence, which is said at once.
func TestDoctorNamesEachObstacle(t *testing.T) {
	t.Parallel()
	dead := strings.Replace(rawServe(t, nil), "127.0.0.1", "127.0.0.2", 1) // nobody listens there
	answer := func(status int, header, value string) string {
		return serve(t, func(_ int, w http.ResponseWriter, r *http.Request) {
			w.Header().Set(header, value)
			w.WriteHeader(status)
		})
	}
	status := func(status int) string { return answer(status, "Content-Type", "text/plain") }
	says := func(kind, text string) string {
		return serve(t, func(_ int, w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", kind)
			w.WriteHeader(403)
			io.WriteString(w, text)
		})
	}
	silent := rawServe(t, func(c *net.TCPConn) { c.Close() })
	plain := source{}.serve(t)

	for name, tt := range map[string]struct{ url, want string }{
		"refused": {dead, "does not open: nothing listens at 127.0.0.2: .. connection refused => " +
			"start what should listen there"},
		"no such name": {"http://nosuch.invalid/", "the name nosuch.invalid does not exist => the host name"},
		"401":          {status(401), "401 Unauthorized: it wants a login; run again with -direct => -token-file"},
		"403":          {status(403), "403 Forbidden: a rule rejects this client; run again => the rules on"},
		"404":          {status(404), "404 Not Found: nothing is at this path; run again => the path"},
		"500":          {status(500), "the answer is 500 Internal Server Error; run again => needs 200"},
		"502":          {status(502), "502 Bad Gateway: a proxy gets no usable answer => nginx: the address in proxy_pass"},
		"503":          {status(503), "503 Service Unavailable: a proxy has no upstream => HAProxy: start the server"},
		"504":          {status(504), "504 Gateway Timeout: the upstream did not begin => nginx: proxy_read_timeout"},
		"204":          {status(204), "204 No Content: the server wants no reconnection => the server: 200"},
		"page": {answer(200, "Content-Type", "text/html; charset=utf-8"),
			"the answer is a page (text/html; charset=utf-8), of a login or for unknown paths => needs 200"},
		"other type": {answer(200, "Content-Type", "application/json"),
			`the answer has Content-Type "application/json", not text/event-stream => needs 200`},
		"redirect to a dead port": {answer(302, "Location", dead), "the URL redirects to " + dead +
			": nothing listens at .. connection refused => the redirect's target: start what"},
		"redirect to a bad gateway": {answer(302, "Location", status(502)), "the URL redirects to .. 502 " +
			"Bad Gateway .. => the redirect's target: nginx: the address in proxy_pass"},
		"redirect in a circle": {answer(302, "Location", "/stream"), "the answer is 302 Found to /stream, " +
			"after 20 redirects: they lead in a circle; run again => what redirects"},
		"redirect to nowhere": {status(307), "the answer is 307 Temporary Redirect without a Location; " +
			"run again => what redirects: it must name a target"},
		"redirect to no URL": {answer(301, "Location", "http://[::1"), "the answer is 301 Moved " +
			"Permanently, and its Location \"http://[::1\" is no URL; run again => what redirects"},
		"a sentence": {says("text/plain", "No host of this name\nis served here.\n"), "403 Forbidden: a rule " +
			"rejects this client; it says \"No host of this name is served here.\"; run again"},
		"a page of 403":   {says("text/html", "<p>No host is here."), "403 .. rejects this client; run again"},
		"only the status": {says("text/plain", "403 Forbidden\n"), "403 .. rejects this client; run again"},
		"no answer":       {silent, "closes the connection without an answer => is it HTTP"},
		"https at http": {strings.Replace(plain, "http:", "https:", 1),
			"the TLS handshake with .. fails: .. does not look like a TLS handshake => http:// instead"},
	} {
		name, tt := name, tt
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			// The client helper ends after 20 s, so this ends only if it is said before.
			expectOnQuietMachine(t, func() (out, problem string) {
				code, out, _ := client(t, "-doctor", "-json", "-duration", "1h", "-url", tt.url)
				return out, findingsProblem([]string{tt.want}, code, out)
			})
		})
	}
}

func TestDoctorFollowsTheDirectObstacle(t *testing.T) {
	t.Parallel()
	status := func(code int) string { return source{status: code}.serve(t) }
	dead := strings.Replace(rawServe(t, nil), "127.0.0.1", "127.0.0.2", 1)
	for _, tt := range []struct{ url, direct, want string }{
		{status(401), status(401), "401 .. the server does it: the direct stream shows it too"},
		{status(401), source{}.serve(t), "401 .. the proxy does it: the direct stream does not"},
		{status(502), dead, "502 .. the direct stream does not open either => first what the finding"},
	} {
		expectOnQuietMachine(t, func() (out, problem string) {
			code, out, _ := client(t, "-doctor", "-json", "-url", tt.url, "-direct", tt.direct)
			return out, findingsProblem([]string{tt.want}, code, out)
		})
	}
}

// doctorOfTarget runs the doctor on a target that has settings of its own.
func doctorOfTarget(t *target, duration time.Duration) (code int, out string) {
	var stdout bytes.Buffer
	o := &options{target: t, duration: duration, json: true, maxEventBytes: defaultMaxEvent}
	code = runDoctor(context.Background(), o, &stdout, io.Discard)
	return code, stdout.String()
}

func TestDoctorNamesSlowHandshake(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		wait     time.Duration
		duration time.Duration
		want     string
	}{
		{slow + 100*time.Millisecond, 4 * time.Second, "the TLS handshake with .. took 1. => what ends TLS"},
		{time.Hour, 1500 * time.Millisecond, "does not open: the TLS handshake with .. has not ended in => what ends TLS"},
	} {
		wait := tt.wait
		server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			begin(w, "data: a\n\n")
			<-r.Context().Done()
		}))
		server.Config.ErrorLog = discardLog
		ended := make(chan struct{})
		server.TLS = &tls.Config{GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			select {
			case <-time.After(wait):
			case <-ended:
			}
			return nil, nil
		}}
		server.StartTLS()
		roots := x509.NewCertPool()
		roots.AddCert(server.Certificate())
		target := &target{url: mustURL(t, server.URL), tls: &tls.Config{RootCAs: roots}}

		expectOnQuietMachine(t, func() (out, problem string) {
			code, out := doctorOfTarget(target, tt.duration)
			return out, findingsProblem([]string{tt.want}, code, out)
		})
		close(ended)
		server.CloseClientConnections()
		server.Close()
	}
}

// What a redirect leads to is named as it would be without one.
func TestDoctorNamesObstacleBehindRedirect(t *testing.T) {
	t.Parallel()
	redirect := func(to string) *target {
		url := serve(t, func(_ int, w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, to, http.StatusFound)
		})
		return &target{url: mustURL(t, url), dialTimeout: 700 * time.Millisecond}
	}
	mute := serve(t, func(_ int, w http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	hanging := rawServe(t, func(c *net.TCPConn) {
		io.Copy(io.Discard, c)
		c.Close()
	})
	hanging = strings.Replace(hanging, "http:", "https:", 1)
	patient := redirect(hanging)
	patient.dialTimeout = 0

	for _, tt := range []struct {
		target *target
		want   string
	}{
		{redirect(mute), "the URL redirects to " + mute + ": no headers came in .. => the redirect's " +
			"target: nginx: proxy_buffering off"},
		{redirect(hanging), "the URL redirects to " + hanging + ": the TLS handshake with " +
			mustURL(t, hanging).Host + " does not end => the redirect's target: what ends TLS"},
		{patient, "the URL redirects to " + hanging + ": the TLS handshake with " +
			mustURL(t, hanging).Host + " has not ended in .. => the redirect's target: what ends TLS"},
	} {
		expectOnQuietMachine(t, func() (out, problem string) {
			code, out := doctorOfTarget(tt.target, 1500*time.Millisecond)
			return out, findingsProblem([]string{tt.want}, code, out)
		})
	}
}

// A server that hangs up after a good handshake has no fault of TLS.
func TestDoctorTellsHandshakeFromAnswer(t *testing.T) {
	t.Parallel()
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		panic(http.ErrAbortHandler)
	}))
	server.Config.ErrorLog = discardLog
	server.StartTLS()
	defer server.Close()
	roots := x509.NewCertPool()
	roots.AddCert(server.Certificate())
	target := &target{url: mustURL(t, server.URL), tls: &tls.Config{RootCAs: roots}}
	want := "does not open: " + target.url.Host + " closes the connection without an answer => " +
		"what listens there: is it HTTP"
	expectOnQuietMachine(t, func() (out, problem string) {
		code, out := doctorOfTarget(target, time.Hour)
		return out, findingsProblem([]string{want}, code, out)
	})
}

// A server that wants a certificate may say so only after the client's part of the handshake.
func TestDoctorNamesMissingClientCertificate(t *testing.T) {
	t.Parallel()
	server := httptest.NewUnstartedServer(http.NotFoundHandler())
	server.Config.ErrorLog = discardLog
	server.TLS = &tls.Config{ClientAuth: tls.RequireAnyClientCert}
	server.StartTLS()
	defer server.Close()
	roots := x509.NewCertPool()
	roots.AddCert(server.Certificate())
	target := &target{url: mustURL(t, server.URL), tls: &tls.Config{RootCAs: roots}}
	want := "the TLS handshake with .. fails: .. certificate required => what ends TLS"
	expectOnQuietMachine(t, func() (out, problem string) {
		code, out := doctorOfTarget(target, time.Hour)
		return out, findingsProblem([]string{want}, code, out)
	})
}

// Nothing can be said of a stream that had no time to open.
func TestDoctorAccusesNothingWhenEndedEarly(t *testing.T) {
	for _, tt := range []struct {
		started int // ms before the end; 0: never
		want    bool
	}{
		{0, false}, {300, false}, {1300, true},
	} {
		for _, isDirect := range []bool{false, true} {
			d := doctorOf(sharedFeed(0), sharedFeed(0))
			p := probeAt(0)
			p.conns, p.started = nil, time.Time{}
			if tt.started > 0 {
				p.started = d.end.Add(-time.Duration(tt.started) * time.Millisecond)
			}
			d.plain = p
			if isDirect {
				d.plain, d.direct = d.direct, p
			}
			d.diagnose()
			isWrong := len(d.wrongTexts()) > 0
			isNoted := matches(d.notes[0].Text, "the watch ended too early")
			if isWrong != tt.want || isNoted == tt.want {
				t.Errorf("started %d ms before, direct %v: got %+v", tt.started, isDirect, d.notes)
			}
		}
	}

	// The stream that asks for gzip is opened last.
	d := doctorOf(sharedFeed(0), sharedFeed(0))
	d.zipped.conns, d.zipped.started = nil, time.Time{}
	d.compressed(false)
	if len(d.notes) > 0 {
		t.Errorf("gzip not tried: got %+v", d.notes)
	}
}

func TestDoctorNamesRejectedCertificate(t *testing.T) {
	t.Parallel()
	server := httptest.NewUnstartedServer(http.NotFoundHandler())
	server.Config.ErrorLog = discardLog
	server.StartTLS()
	defer server.Close()
	want := "the TLS handshake with .. fails: .. x509: => the certificate: its name, its dates"
	expectOnQuietMachine(t, func() (out, problem string) {
		code, out, _ := client(t, "-doctor", "-json", "-url", server.URL)
		return out, findingsProblem([]string{want}, code, out)
	})
}

func TestDoctorNamesSlowLookup(t *testing.T) {
	t.Parallel()
	plain := source{}.serve(t)
	for _, tt := range []struct{ name, duration, want string }{
		{"1100ms.test", "4s", "the look-up of the name 1100ms.test took => the DNS"},
		{"1h.test", "1500ms", "does not open: the look-up of the name 1h.test has not ended in => the DNS"},
	} {
		url := strings.Replace(plain, "127.0.0.1", tt.name, 1)
		expectOnQuietMachine(t, func() (out, problem string) {
			code, out, _ := client(t, "-doctor", "-json", "-url", url, "-duration", tt.duration)
			return out, findingsProblem([]string{tt.want}, code, out)
		})
	}
}

// All tests ask a DNS server of their own, so that they need no other.
func init() {
	var start sync.Once
	var server net.PacketConn
	dial := func(ctx context.Context, _, _ string) (conn net.Conn, err error) {
		start.Do(func() { server, err = startDNS() })
		if err != nil {
			return nil, err
		}
		var d net.Dialer
		return d.DialContext(ctx, "udp", server.LocalAddr().String())
	}
	net.DefaultResolver = &net.Resolver{PreferGo: true, Dial: dial}
}

// startDNS starts a server that knows names such as 100ms.test as 127.0.0.1, after that time, and
// no others.
func startDNS() (net.PacketConn, error) {
	dns, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	go func() {
		for {
			query := make([]byte, 512)
			n, from, err := dns.ReadFrom(query)
			if err != nil {
				return
			}
			wait, isKnown := waitOf(query[:n])
			answer := dnsAnswer(query[:n], isKnown)
			time.AfterFunc(wait, func() { dns.WriteTo(answer, from) })
		}
	}()
	return dns, nil
}

// waitOf reads the first label of the name in a query.
func waitOf(query []byte) (wait time.Duration, isKnown bool) {
	label := query[13 : 13+query[12]]
	wait, err := time.ParseDuration(string(label))
	return wait, err == nil
}

// dnsAnswer answers a query of one name (RFC 1035): an A record with 127.0.0.1, and no AAAA.
func dnsAnswer(query []byte, isKnown bool) []byte {
	const header = 12
	end := header + bytes.IndexByte(query[header:], 0) + 1
	question := query[header : end+4]
	isA := binary.BigEndian.Uint16(query[end:]) == 1

	answer := append([]byte{}, query[0], query[1], 0x81, 0x80, 0, 1, 0, 0, 0, 0, 0, 0)
	answer = append(answer, question...)
	if !isKnown {
		answer[3] |= 3 // there is no such name
		return answer
	}
	if isA {
		answer[7] = 1
		answer = append(answer, 0xc0, header, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 127, 0, 0, 1)
	}
	return answer
}

func TestDoctorNamesWhatNeverAnswers(t *testing.T) {
	t.Parallel()
	handle := mute("")
	url := serve(t, func(_ int, w http.ResponseWriter, r *http.Request) { handle(w, r) })
	_, out, _ := client(t, "-doctor", "-url", url, "-duration", "1500ms")
	for _, want := range []string{"WRONG  the stream does not open: no headers came in ",
		"plain: never opened: no answer came before the end"} {
		if !strings.Contains(out, want) {
			t.Errorf("nothing about %q in\n%s", want, out)
		}
	}
	if strings.Contains(out, "<nil>") {
		t.Errorf("shows Go's nil:\n%s", out)
	}
}

func TestDoctorNamesSlowConnection(t *testing.T) {
	d := doctorOf(sharedFeed(0), sharedFeed(0))
	d.plain.opening.dial = 3 * time.Second
	d.slowStart()
	if wrong := d.wrongTexts(); len(wrong) != 1 || !matches(wrong[0],
		"the TCP connection to proxy took 3.0 s => packets are lost") {
		t.Errorf("got %q", wrong)
	}
}

// A server that fails only for clients that ask for gzip, as all browsers do.
func TestDoctorNamesGzipThatNeverOpens(t *testing.T) {
	t.Parallel()
	silent := serve(t, func(_ int, w http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	for name, tt := range map[string]struct {
		handle http.HandlerFunc
		want   string
	}{
		"an error": {
			func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(500) },
			"does not open when a client asks for gzip .. the answer is 500 Internal Server Error; run",
		},
		"nothing": {
			func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() },
			"does not open when a client asks for gzip .. no headers came in .. => nginx: gzip off",
		},
		"nothing behind a redirect": {
			func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, silent, 302) },
			"asks for gzip .. redirects to " + silent + ": no headers came in .. => the redirect's target: nginx: gzip off",
		},
		"no gzip": {
			func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Content-Encoding", "gzip")
				begin(w, "retry: 50\n\ndata: this is no gzip\n\n")
			},
			"says Content-Encoding: gzip and its body is none => it must compress the body too",
		},
	} {
		name, tt := name, tt
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			handle := pass(source{}.serve(t))
			url := serve(t, func(_ int, w http.ResponseWriter, r *http.Request) {
				if r.Header.Get("Accept-Encoding") == "gzip" {
					tt.handle(w, r)
					return
				}
				handle(w, r)
			})
			expectFindings(t, []string{tt.want}, "-url", url)
		})
	}
}

func TestDoctorHidesPassword(t *testing.T) {
	t.Parallel()
	url := strings.Replace(source{status: 401}.serve(t), "http://", "http://user:secret@", 1)
	for _, args := range [][]string{{"-url", url}, {"-url", url, "-direct", url}, {"-url", url, "-json"}} {
		_, out, errs := client(t, append(args, "-doctor")...)
		if strings.Contains(out+errs, "secret") || !strings.Contains(out, "user:xxxxx@") {
			t.Errorf("%q:\n%s%s", args, out, errs)
		}
	}
}

func TestProxiesAreKnownByTheirAnswers(t *testing.T) {
	for name, tt := range map[string]struct {
		header http.Header
		body   string
	}{
		"nginx":        {header: http.Header{"Server": {"nginx/1.22.1"}}},
		"Caddy":        {header: http.Header{"Server": {"Caddy"}}},
		"HAProxy":      {body: "<html><body><h1>400 Bad request</h1>\nYour browser sent an invalid request.\n"},
		"Apache httpd": {header: http.Header{"Server": {"Apache/2.4.71 (Debian)"}}},
		"Varnish":      {header: http.Header{"X-Varnish": {"32770"}, "Via": {"1.1 varnish (Varnish/7.1)"}}},
		"lighttpd":     {header: http.Header{"Server": {"lighttpd/1.4.69"}}},
		"Squid":        {header: http.Header{"Via": {"1.1 host (squid/5.7)"}}},
		"nghttpx":      {header: http.Header{"Via": {"1.1 nghttpx"}}},
		"":             {header: http.Header{"Server": {"gunicorn"}}, body: "400 Bad Request"},
	} {
		d := &doctor{suspected: true}
		d.suspect(productOfPage(tt.body))
		for _, p := range markedProducts(tt.header) {
			d.suspect(p)
		}
		if got := d.suspectNames(); got != name {
			t.Errorf("got %q, want %q", got, name)
		}
	}
}

// A mark that the direct stream has too is the server's, in whichever answer it is.
func TestProxiesAreNotTheServerItself(t *testing.T) {
	url := rawServe(t, func(c *net.TCPConn) {
		io.WriteString(c, "HTTP/1.1 400 Bad Request\r\nServer: nginx/1.2.3\r\nContent-Length: 0\r\n\r\n")
		c.Close()
	})
	for direct, want := range map[string]string{"nginx/1.2.3": "", "Puma": "nginx"} {
		d := &doctor{plain: probeAt(0), direct: probeAt(0)}
		d.plain.target = &target{url: mustURL(t, url)}
		d.direct.header = http.Header{"Server": {direct}}
		if got := d.suspectNames(); got != want {
			t.Errorf("the direct stream is of %s: got %q, want %q", direct, got, want)
		}
	}
}

// A cure is for the fault: no limit on silence is named for one on the whole response.
func TestProxiesHaveCuresThatFit(t *testing.T) {
	for _, p := range products {
		d := &doctor{suspected: true, found: []*product{p}}
		for _, other := range []fault{buffering, compression, silence, badGateway, noUpstream, gatewayTimeout} {
			if cure := d.cure(age, proxyDoes); cure == d.cure(other, proxyDoes) && p.cures[other] != "" {
				t.Errorf("%s: %q is for two faults", p.name, cure)
			}
		}
		if cure := d.cure(age, proxyDoes); strings.Contains(cure, "read_timeout") {
			t.Errorf("%s: %q is no cure for a limit on the whole response", p.name, cure)
		}
		if cure := d.cure(silence, proxyDoes); !strings.HasPrefix(cure, p.name+": ") {
			t.Errorf("%s: %q is not its cure", p.name, cure)
		}
	}
}
