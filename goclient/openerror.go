package main

import (
	"errors"
	"fmt"
	"mime"
	"net"
	"net/http"
	"net/url"
	"strings"
)

// A step is a part of an attempt to open a stream.
type step string

const (
	connecting step = "connecting" // the name, TCP and TLS
	sending    step = "sending the request"
	reading    step = "reading the response head"
)

// A stepError is the error of one step.
type stepError struct {
	step    step
	err     error
	isAlert bool // TLS was ended by the other side; a client may find out after its handshake
}

func (e *stepError) Error() string { return fmt.Sprintf("%s: %v", e.step, e.err) }
func (e *stepError) Unwrap() error { return e.err }

// atStep wraps what is plain in err.
func atStep(at step, err error) error {
	op := new(net.OpError)
	isAlert := errors.As(err, &op) && op.Op == "remote error"
	return &stepError{step: at, err: plain(err), isAlert: isAlert}
}

// An openError is the error of an attempt to open a stream, and how far it came.
type openError struct {
	err    error
	url    *url.URL    // the last that was requested, after redirects
	hops   int         // redirects that were followed
	status int         // of the answer, or 0 where none came
	header http.Header // of the answer
	text   string      // of the answer, where the target quotes it
}

func (e *openError) Error() string {
	if e.hops == 0 {
		return e.err.Error()
	}
	return fmt.Sprintf("redirected to %s: %v", e.url.Redacted(), e.err)
}

func (e *openError) Unwrap() error { return e.err }

// isInHandshake tells whether the error is one of the TLS handshake, if TCP was connected.
func (e *openError) isInHandshake() bool {
	at := new(stepError)
	isStep := errors.As(e.err, &at)
	return isStep && e.url.Scheme == "https" && (at.step == connecting || at.isAlert)
}

// sentence gives what the answer says, if it is a sentence in plain text that says more than its
// status.
func (e *openError) sentence() string {
	kind, _, _ := mime.ParseMediaType(e.header.Get("Content-Type"))
	isPlain := kind == "text/plain" && e.header.Get("Content-Encoding") == ""
	isWhole := len(e.text) < maxText && strings.Contains(e.text, " ")
	if e.status == http.StatusOK || !isPlain || !isWhole {
		return ""
	}
	status := strings.ToLower(http.StatusText(e.status))
	if strings.Contains(strings.ToLower(e.text), status) && len(e.text) < len(status)+20 {
		return ""
	}
	return e.text
}

// failedAt wraps err; c is nil where no answer came.
func failedAt(err error, u *url.URL, hops int, c *conn) error {
	e := &openError{err: err, url: u, hops: hops}
	if c != nil {
		e.status, e.header, e.text = c.resp.StatusCode, c.resp.Header, c.text
	}
	return e
}
