package interop

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	launchdarkly "github.com/launchdarkly/eventsource"
	r3labs "github.com/r3labs/sse/v2"
	tmaxmax "github.com/tmaxmax/go-sse"
)

// goClients read a stream in a process of their own: this test's program, started once more.
var goClients = map[string]func(url string) error{
	"net/http":     readNetHTTP,
	"tmaxmax":      readTmaxmax,
	"r3labs":       readR3labs,
	"launchdarkly": readLaunchDarkly,
}

// show prints what a client gets, after the time in milliseconds at which it came.
func show(format string, values ...any) {
	fmt.Println(time.Now().UnixMilli(), fmt.Sprintf(format, values...))
}

// showClosed shows the end of a stream: EOF if it was in order, whatever was wrapped around it.
func showClosed(err error) {
	if errors.Is(err, io.EOF) {
		err = io.EOF
	}
	show("closed %v", err)
}

func readNetHTTP(url string) error {
	answer, err := http.Get(url)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return fmt.Errorf("status %s", answer.Status)
	}

	id := ""
	lines := bufio.NewScanner(answer.Body)
	for lines.Scan() {
		name, value, isField := strings.Cut(lines.Text(), ":")
		value = strings.TrimPrefix(value, " ")
		switch {
		case name == "id":
			id = value
		case name == "data":
			show("event %s %d", id, len(value))
		case name == "" && isField:
			show("heartbeat")
		}
	}
	return lines.Err()
}

func readTmaxmax(url string) error {
	request, err := http.NewRequest(http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	client := tmaxmax.Client{
		OnRetry: func(err error, _ time.Duration) { showClosed(err) },
	}
	connection := client.NewConnection(request)
	connection.SubscribeToAll(func(e tmaxmax.Event) {
		show("event %s %d", e.LastEventID, len(e.Data))
	})
	return connection.Connect()
}

func readR3labs(url string) error {
	return r3labs.NewClient(url).SubscribeRaw(func(e *r3labs.Event) {
		if len(e.Data) > 0 {
			show("event %s %d", e.ID, len(e.Data))
		}
	})
}

func readLaunchDarkly(url string) error {
	stream, err := launchdarkly.Subscribe(url, "")
	if err != nil {
		return err
	}
	for {
		select {
		case e, ok := <-stream.Events:
			if !ok {
				return nil
			}
			show("event %s %d", e.Id(), len(e.Data()))
		case err := <-stream.Errors:
			showClosed(err)
		}
	}
}
