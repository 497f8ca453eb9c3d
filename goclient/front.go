package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/http"
	"slices"
	"time"
)

// frontLimit is for each of the two requests that find out which product answers.
const frontLimit = 3 * time.Second

// suspects gives the products between here and the server, the one that answers first. Marks
// that the direct stream has too are the server's own.
func (d *doctor) suspects() []*product {
	if d.suspected {
		return d.found
	}
	d.suspected = true

	front := *d.plain.target
	front.url = d.plain.lastURL()
	header, body := askInvalid(&front)
	d.suspect(productOfPage(body))
	d.suspectMarked(header)

	header = d.plain.answerHeader()
	if header == nil {
		header = askHead(&front)
	}
	d.suspectMarked(header)
	return d.found
}

// suspectMarked suspects the products that left a mark in the header, unless it is the server's.
func (d *doctor) suspectMarked(header http.Header) {
	for _, p := range markedProducts(header) {
		isServer := d.direct != nil && p.markedIn(d.direct.answerHeader())
		if !isServer {
			d.suspect(p)
		}
	}
}

func (d *doctor) suspect(p *product) {
	if p != nil && !slices.Contains(d.found, p) {
		d.found = append(d.found, p)
	}
}

// askInvalid gives the answer to a request that is no HTTP, which no proxy passes on.
func askInvalid(t *target) (header http.Header, body string) {
	const request = "GET / HTTP/1.1\r\nHost: invalid\r\nthis is no header\r\n\r\n"
	return ask(t, http.MethodGet, request)
}

// askHead gives the header of the answer to HEAD. It comes where a stream's own is held back. A
// proxy that knows its hosts answers itself, as it does not know this one.
func askHead(t *target) http.Header {
	request := fmt.Sprintf("HEAD %s HTTP/1.1\r\nHost: invalid\r\n\r\n", t.url.RequestURI())
	header, _ := ask(t, http.MethodHead, request)
	return header
}

// ask sends a request. The header is nil where no answer came.
func ask(t *target, method, request string) (header http.Header, body string) {
	ctx, cancel := context.WithTimeout(context.Background(), frontLimit)
	defer cancel()

	c := &conn{start: time.Now()}
	err := c.dial(ctx, t, t.url, 0)
	if err != nil {
		return nil, ""
	}
	defer c.Close()

	_, err = io.WriteString(c, request)
	if err != nil {
		return nil, ""
	}
	answer, err := http.ReadResponse(bufio.NewReader(c), &http.Request{Method: method})
	if err != nil {
		return nil, ""
	}
	page, _ := io.ReadAll(io.LimitReader(answer.Body, connBuffer))
	return answer.Header, string(page)
}
