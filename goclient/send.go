package main

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
)

// A rejectedError is an answer that the same request would get again.
type rejectedError struct{ error }

// send sends a request whose answer is of no interest unless it is an error.
func send(c *http.Client, req *http.Request) error {
	resp, err := c.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	text, _ := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	if resp.StatusCode < 300 {
		return nil
	}
	err = fmt.Errorf("%s: %.200s", resp.Status, bytes.TrimSpace(text))
	switch resp.StatusCode {
	case http.StatusRequestTimeout, http.StatusTooManyRequests:
		return err
	}
	if resp.StatusCode < 500 {
		err = rejectedError{err}
	}
	return err
}
