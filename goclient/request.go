package main

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
)

// A request is what one attempt sends. Redirects change it.
type request struct {
	method string
	url    *url.URL
	body   []byte
	lastID []byte
}

// firstRequest returns the request for the target's own URL.
func (t *target) firstRequest(lastID []byte) *request {
	r := &request{method: t.method, url: t.url, body: t.body, lastID: lastID}
	if r.method == "" {
		r.method = http.MethodGet
	}
	return r
}

// redirected returns the request that follows a redirect, as https://fetch.spec.whatwg.org/ has it:
// 303 makes GET of all methods but HEAD, 301 and 302 of POST. What is sent as GET has no body.
func (r *request) redirected(status int, location string) (*request, error) {
	u, err := r.url.Parse(location)
	if err != nil {
		return nil, errors.New("following a redirect: its Location is no URL")
	}
	u.Host, _ = cutZone(u.Host)

	next := &request{method: r.method, url: u, body: r.body, lastID: r.lastID}
	isPost := r.method == http.MethodPost
	isMoved := status == http.StatusMovedPermanently || status == http.StatusFound
	isSeeOther := status == http.StatusSeeOther && r.method != http.MethodHead
	if isSeeOther || isMoved && isPost {
		next.method = http.MethodGet
		next.body = nil
	}
	return next, nil
}

// location gives where a redirect leads to; empty where the answer is none.
func (c *conn) location() string {
	if !isRedirect(c.resp.StatusCode) {
		return ""
	}
	return c.resp.Header.Get("Location")
}

func isRedirect(status int) bool {
	switch status {
	case http.StatusMovedPermanently, http.StatusFound, http.StatusSeeOther,
		http.StatusTemporaryRedirect, http.StatusPermanentRedirect:
		return true
	}
	return false
}

// encode gives the request's bytes.
func (t *target) encode(r *request) []byte {
	h := t.headerFor(r)
	host := h.Get("Host")
	h.Del("Host")

	var b bytes.Buffer
	fmt.Fprintf(&b, "%s %s HTTP/1.1\r\nHost: %s\r\n", r.method, r.url.RequestURI(), host)
	h.Write(&b)
	b.WriteString("\r\n")
	b.Write(r.body)
	return b.Bytes()
}

// headerFor gives the request's header. What the target's header says comes first. Another host
// than the target's gets no credentials and no Host of it.
func (t *target) headerFor(r *request) http.Header {
	h := t.header.Clone()
	if h == nil {
		h = http.Header{}
	}
	if !t.isHostOf(r.url) {
		removeCredentials(h)
		h.Del("Host")
	}
	set := func(name, value string) {
		if h.Get(name) == "" && value != "" {
			h.Set(name, value)
		}
	}

	set("Host", r.url.Host)
	set("Accept", "text/event-stream")
	set("Cache-Control", "no-cache")
	set("User-Agent", userAgent())
	set("Last-Event-ID", string(r.lastID))
	if t.gzip {
		set("Accept-Encoding", "gzip")
	}
	if r.url.User != nil {
		password, _ := r.url.User.Password()
		basic := base64.StdEncoding.EncodeToString([]byte(r.url.User.Username() + ":" + password))
		set("Authorization", "Basic "+basic)
	}
	t.setBodyHeader(r, h)
	return h
}

// setBodyHeader describes the body, which is JSON unless the target's header says otherwise.
func (t *target) setBodyHeader(r *request, h http.Header) {
	h.Del("Content-Length")
	if r.body == nil {
		if t.body != nil { // a redirect dropped it
			h.Del("Content-Type")
		}
		if r.method == http.MethodPost || r.method == http.MethodPut || r.method == http.MethodPatch {
			h.Set("Content-Length", "0")
		}
		return
	}
	if h.Get("Content-Type") == "" {
		h.Set("Content-Type", "application/json")
	}
	h.Set("Content-Length", strconv.Itoa(len(r.body)))
}

// isHostOf says whether a URL has the target's scheme, host and port.
func (t *target) isHostOf(u *url.URL) bool {
	port, err := portOf(u)
	if err != nil || u.Scheme != t.url.Scheme {
		return false
	}
	own, _ := portOf(t.url)
	return port == own && strings.EqualFold(u.Hostname(), t.url.Hostname())
}

// keepUser gives the target's user and password to a redirect on the same host, as browsers do.
func (t *target) keepUser(u *url.URL) {
	if u.User == nil && t.isHostOf(u) {
		u.User = t.url.User
	}
}

// guard makes a redirected request of net/http's client ready: another host gets no credentials.
func (t *target) guard(req *http.Request) {
	t.keepUser(req.URL)
	if !t.isHostOf(req.URL) {
		removeCredentials(req.Header)
	}
}

// removeCredentials takes out what would let another host act as the user.
func removeCredentials(h http.Header) {
	secrets := []string{"auth", "cookie", "token", "key", "secret", "password"}
	for name := range h {
		for _, secret := range secrets {
			if strings.Contains(strings.ToLower(name), secret) {
				h.Del(name)
			}
		}
	}
}

// parseURL checks a URL, whose address may have a zone.
func parseURL(s string) (*url.URL, error) {
	u, err := url.Parse(s)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return nil, fmt.Errorf("%q is no URL with http:// or https://", redact(s))
	}
	return u, nil
}

// redact takes the password out of what may be a URL.
func redact(s string) string {
	at := strings.LastIndexByte(s, '@')
	if at < 0 {
		return s
	}
	if u, err := url.Parse(s); err == nil && u.Host != "" {
		return u.Redacted()
	}

	// It cannot be parsed, so the password may be anything between the scheme and the last @.
	scheme, _, ok := strings.Cut(s[:at], "://")
	if !ok {
		return "xxxxx" + s[at:]
	}
	return scheme + "://xxxxx" + s[at:]
}
