package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"syscall"
	"time"
)

// slow is a step of opening a stream that is worth a finding.
const slow = time.Second

// An obstacle says in one sentence why a stream does not open.
type obstacle struct {
	text    string
	prefix  string // of what to change: where it is
	change  string // what to change; empty where that depends on the fault
	fault   fault  // where change is empty
	isLocal bool   // there was no answer of which a hop could be asked
}

// statuses are the answers that have a sentence of their own.
var statuses = map[int]obstacle{
	http.StatusUnauthorized: {
		text: "401 Unauthorized: it wants a login",
		change: "send the credentials with -header or -token-file; a page's EventSource can send " +
			"cookies only",
	},
	http.StatusForbidden: {
		text: "403 Forbidden: a rule rejects this client",
		change: "the rules on addresses, paths, host names and origins of what answers, or the " +
			"credentials",
	},
	http.StatusNotFound: {
		text:   "404 Not Found: nothing is at this path",
		change: "the path of the URL, or how the proxy maps paths to the server's",
	},
	http.StatusNoContent: {
		text:   "204 No Content: the server wants no reconnection, and a browser obeys for good",
		change: "the server: 200 and an event stream",
	},
	http.StatusBadGateway: {
		text:  "502 Bad Gateway: a proxy gets no usable answer from its upstream",
		fault: badGateway,
	},
	http.StatusServiceUnavailable: {
		text:  "503 Service Unavailable: a proxy has no upstream that works, or the server is full",
		fault: noUpstream,
	},
	http.StatusGatewayTimeout: {
		text:  "504 Gateway Timeout: the upstream did not begin its answer in time",
		fault: gatewayTimeout,
	},
}

// obstacle says why the stream never opened.
func (p *probe) obstacle(watched time.Duration) obstacle {
	if p.err == nil {
		return p.unfinished(watched).behind(p.attempt.hops, p.attempt.url)
	}
	failed := new(openError)
	if !errors.As(p.err, &failed) {
		failed = &openError{err: p.err, url: p.target.url}
	}
	return p.obstacleAt(failed).behind(failed.hops, failed.url)
}

// behind says that the obstacle is behind redirects, of which u is the last target.
func (o obstacle) behind(hops int, u *url.URL) obstacle {
	if hops > 0 {
		o.text = fmt.Sprintf("the URL redirects to %s: %s", u.Redacted(), o.text)
		o.prefix = "the redirect's target: "
	}
	return o
}

func (p *probe) obstacleAt(failed *openError) obstacle {
	if failed.status != 0 {
		return answered(failed)
	}
	if isTimeout(failed.err) {
		return p.tookTooLong(failed)
	}
	o := notConnected(failed)
	if failed.isInHandshake() && !p.failing.dialEnd.IsZero() {
		o = handshakeFailed(failed)
	}
	o.isLocal = true
	return o
}

// answered explains an answer that is no event stream, and quotes what it says itself.
func answered(failed *openError) obstacle {
	o := explained(failed)
	sentence := failed.sentence()
	if sentence != "" {
		o.text += fmt.Sprintf("; it says %q", sentence)
	}
	return o
}

func explained(failed *openError) obstacle {
	o, known := statuses[failed.status]
	if known {
		o.text = "the answer is " + o.text
		return o
	}
	if isRedirect(failed.status) {
		return notFollowed(failed)
	}

	const needed = "what answers at this URL: a browser needs 200 with Content-Type " +
		"text/event-stream"
	if failed.status != http.StatusOK {
		text := fmt.Sprintf("the answer is %d %s", failed.status, http.StatusText(failed.status))
		return obstacle{text: text, change: needed}
	}
	kind := failed.header.Get("Content-Type")
	if strings.HasPrefix(kind, "text/event-stream") {
		return obstacle{text: failed.Error(), change: "what compresses the stream: it was not " +
			"asked to"}
	}
	if strings.HasPrefix(kind, "text/html") {
		text := "the answer is a page (" + kind + "), of a login or for unknown paths"
		return obstacle{text: text, change: needed}
	}
	text := fmt.Sprintf("the answer has Content-Type %q, not text/event-stream", kind)
	return obstacle{text: text, change: needed}
}

// notFollowed explains a redirect that leads nowhere.
func notFollowed(failed *openError) obstacle {
	text := fmt.Sprintf("the answer is %d %s", failed.status, http.StatusText(failed.status))
	location := failed.header.Get("Location")
	if location == "" {
		return obstacle{text: text + " without a Location", change: "what redirects: it must name " +
			"a target, or send the stream itself"}
	}
	if errors.Is(failed.err, errManyRedirects) {
		return obstacle{
			text: fmt.Sprintf("%s to %s, after %d redirects: they lead in a circle", text,
				printable([]byte(redact(location))), maxRedirects),
			change: "what redirects: it may not know that the request came by https " +
				"(X-Forwarded-Proto), or want a cookie (-header)",
		}
	}
	return obstacle{
		text:   fmt.Sprintf("%s, and its Location %q is no URL", text, redact(location)),
		change: "what redirects",
	}
}

// notConnected explains an error before any answer.
func notConnected(failed *openError) obstacle {
	host := failed.url.Host
	unknownName := new(net.DNSError)
	switch {
	case errors.As(failed.err, &unknownName) && !unknownName.IsNotFound:
		return obstacle{
			text: fmt.Sprintf("the look-up of the name %s fails: %s", failed.url.Hostname(),
				unknownName.Err),
			change: "the DNS: the servers in /etc/resolv.conf",
		}
	case errors.As(failed.err, &unknownName):
		return obstacle{
			text:   fmt.Sprintf("the name %s does not exist", failed.url.Hostname()),
			change: "the host name of the URL, or the DNS",
		}
	case errors.Is(failed.err, syscall.ECONNREFUSED):
		return obstacle{
			text:   "nothing listens at " + host + ": connection refused",
			change: "start what should listen there, or correct the address and port",
		}
	case errors.Is(failed.err, io.EOF), errors.Is(failed.err, io.ErrUnexpectedEOF),
		errors.Is(failed.err, syscall.ECONNRESET):
		change := "what listens there: is it HTTP"
		if failed.url.Scheme == "http" {
			change += ", and is it not https:// that it wants"
		}
		return obstacle{text: host + " closes the connection without an answer", change: change}
	}
	return obstacle{
		text:   fmt.Sprintf("%s does not answer: %v", host, failed.err),
		change: "what listens at this address",
	}
}

// handshakeFailed explains an error between the TCP connection and the request.
func handshakeFailed(failed *openError) obstacle {
	text := fmt.Sprintf("the TLS handshake with %s fails: %v", failed.url.Host, failed.err)
	certificate := new(tls.CertificateVerificationError)
	noTLS := tls.RecordHeaderError{}
	switch {
	case errors.As(failed.err, &certificate), errors.As(failed.err, new(x509.HostnameError)):
		return obstacle{text: text, change: "the certificate: its name, its dates, its chain; " +
			"-cacert FILE trusts others, -k any"}
	case errors.As(failed.err, &noTLS):
		return obstacle{text: text, change: "http:// instead of https://, or the port"}
	}
	return obstacle{text: text, change: "what ends TLS there"}
}

// tookTooLong names the step that did not end.
func (p *probe) tookTooLong(failed *openError) obstacle {
	at := p.failing
	host := failed.url.Host
	switch {
	case !at.lookupBegin.IsZero() && at.lookupEnd.IsZero():
		return slowLookup(failed.url.Hostname(), "does not end")
	case at.dialEnd.IsZero():
		return unreachable(host + " does not answer a TCP connection")
	case failed.isInHandshake():
		return slowHandshake(host, "does not end")
	}
	return obstacle{text: "no headers come from " + host, fault: buffering}
}

// unfinished is for a watch that ended before the first attempt did.
func (p *probe) unfinished(watched time.Duration) obstacle {
	at := p.attempt
	u := p.lastURL()
	took := "has not ended in " + secs(watched)
	switch {
	case !at.lookupBegin.IsZero() && at.lookupEnd.IsZero():
		return slowLookup(u.Hostname(), took)
	case !at.dialBegin.IsZero() && at.dialEnd.IsZero():
		return unreachable(u.Host + " has not answered a TCP connection in " + secs(watched))
	case u.Scheme == "https" && !at.encrypted:
		return slowHandshake(u.Host, took)
	}
	return obstacle{text: "no headers came in " + secs(watched), fault: buffering}
}

func slowLookup(name, took string) obstacle {
	return obstacle{
		text:    fmt.Sprintf("the look-up of the name %s %s", name, took),
		change:  "the DNS: the servers in /etc/resolv.conf, of which the first may be down",
		isLocal: true,
	}
}

func unreachable(text string) obstacle {
	return obstacle{
		text:    text,
		change:  "the address, or the firewall that drops its packets",
		isLocal: true,
	}
}

func slowHandshake(host, took string) obstacle {
	return obstacle{
		text: fmt.Sprintf("the TLS handshake with %s %s", host, took),
		change: "what ends TLS there: its load, its random numbers, a look-up that it makes for " +
			"each client",
		isLocal: true,
	}
}

func isTimeout(err error) bool {
	return errors.Is(err, errTookTooLong) || errors.Is(err, context.DeadlineExceeded)
}

// isTooEarly tells whether the watch ended before anything could be said about a stream.
func (d *doctor) isTooEarly(p *probe) bool {
	if p.err != nil {
		return false
	}
	return p.started.IsZero() || d.end.Sub(p.started) < slow
}

func (d *doctor) endedTooEarly() {
	d.advise("nothing, or watch longer", "the watch ended too early to say why the stream had not "+
		"opened yet")
}

// notOpened is all that can be said of a stream that was never there.
func (d *doctor) notOpened() {
	if d.isTooEarly(d.plain) {
		d.endedTooEarly()
		return
	}
	o := d.plain.obstacle(d.end.Sub(d.plain.started))
	if o.isLocal {
		d.wrongly(o.prefix+o.change, "the stream does not open: %s", o.text)
		return
	}
	if d.direct != nil && !d.direct.isOpened() && d.direct.status() != d.plain.status() {
		d.wrongly("first what the finding on the direct stream says", "the stream does not open: "+
			"%s; the direct stream does not open either", o.text)
		return
	}
	by := d.culprit(d.direct != nil && !d.direct.isOpened())
	d.wrongly(d.changeFor(o, by), "the stream does not open: %s; %s", o.text, d.blame(by))
}

func (d *doctor) changeFor(o obstacle, by culprit) string {
	if o.change != "" {
		return o.prefix + o.change
	}
	return o.prefix + d.cure(o.fault, by)
}

// slowStart looks at each step up to the headers, and at the first event.
func (d *doctor) slowStart() {
	p := d.plain
	host := p.lastURL().Host
	if p.opening.lookup > slow {
		o := slowLookup(p.lastURL().Hostname(), "took "+secs(p.opening.lookup))
		d.wrongly(o.change, "%s", o.text)
	}
	if p.opening.dial > slow {
		d.wrongly("the network: packets are lost, or the accept queue is full", "the TCP "+
			"connection to %s took %s", host, secs(p.opening.dial))
	}
	if p.opening.handshake > slow {
		o := slowHandshake(host, "took "+secs(p.opening.handshake))
		d.wrongly(o.change, "%s", o.text)
	}
	if p.opening.answer > slow {
		d.slowHeaders()
		return
	}
	d.delayedHeaders()
	d.slowFirstEvent()
}

// delayedHeaders is a hint at a constant delay, which each connection's own events do not show.
func (d *doctor) delayedHeaders() {
	if d.direct == nil || d.source() != own || !d.zipped.isOpened() || !d.directZ.isOpened() {
		return
	}
	took := min(d.plain.opening.answer, d.zipped.opening.answer)
	usual := max(d.direct.opening.answer, d.directZ.opening.answer)
	if took-usual > lateAfter {
		d.advise(d.cure(delay, proxyDoes), "the headers took %s at least, on the direct stream %s "+
			"at most: events may be as late", secs(took), secs(usual))
	}
}

// slowHeaders accuses only where the direct stream is quicker: a server may wait for its first
// event.
func (d *doctor) slowHeaders() {
	took := d.plain.opening.answer
	if d.direct == nil || d.direct.opening.answer > slow {
		d.advise("the server: "+serverCures[buffering], "the headers took %s, perhaps as the "+
			"server sends them with its first event; %s", secs(took), d.blame(d.culprit(true)))
		return
	}
	d.wrongly(d.cure(buffering, proxyDoes), "the headers took %s, on the direct stream %s; %s",
		secs(took), secs(d.direct.opening.answer), d.blame(proxyDoes))
}

// slowFirstEvent compares with the direct streams, where both began at once.
func (d *doctor) slowFirstEvent() {
	if d.direct == nil || d.directZ == nil {
		return
	}
	usual, began := d.direct.firstAfterAsking()
	usualZ, beganZ := d.directZ.firstAfterAsking()
	if !began || !beganZ || max(usual, usualZ) > slow {
		return
	}

	took, began := d.plain.firstAfterAsking()
	watched := d.end.Sub(d.plain.conns[0].asked)
	switch {
	case !began && watched > usual+slow:
		d.wrongly(d.cure(buffering, proxyDoes), "no event came in %s, the direct stream began "+
			"after %s; %s", secs(watched), secs(usual), d.blame(proxyDoes))
	case began && took > usual+slow:
		d.wrongly(d.cure(buffering, proxyDoes), "the first event took %s, on the direct stream "+
			"%s; %s", secs(took), secs(usual), d.blame(proxyDoes))
	}
}

// firstAfterAsking gives the time from the first request to the first event.
func (p *probe) firstAfterAsking() (took time.Duration, began bool) {
	if len(p.arrivals) == 0 {
		return 0, false
	}
	return p.arrivals[0].at.Sub(p.conns[0].asked), true
}
