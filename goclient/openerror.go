package main

import (
	"fmt"
	"net/http"
	"net/url"
)

// An openError is the error of an attempt to open a stream, and how far it came.
type openError struct {
	err    error
	url    *url.URL    // the last that was requested, after redirects
	hops   int         // redirects that were followed
	status int         // of the answer, or 0 where none came
	header http.Header // of the answer
}

func (e *openError) Error() string {
	if e.hops == 0 {
		return e.err.Error()
	}
	return fmt.Sprintf("redirected to %s: %v", e.url.Redacted(), e.err)
}

func (e *openError) Unwrap() error { return e.err }

// failedAt wraps err; c is nil where no answer came.
func failedAt(err error, u *url.URL, hops int, c *conn) error {
	e := &openError{err: err, url: u, hops: hops}
	if c != nil {
		e.status, e.header = c.resp.StatusCode, c.resp.Header
	}
	return e
}
