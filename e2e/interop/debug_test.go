package interop

import (
	"encoding/json"
	"net/http"
	"strings"
)

// An openStream is one of those that the server's /dashboard/debug lists.
type openStream struct {
	UserAgent string `json:"user_agent"`
	Encoding  string
}

// A serverState is a part of what /dashboard/debug shows.
type serverState struct {
	Opened  int `json:"streams_opened"`
	Streams []openStream
}

// stateOf asks a server for its state. Another server has none to show.
func stateOf(addr string) (state serverState) {
	answer, err := http.Get("http://" + addr + "/dashboard/debug")
	if err != nil {
		return state
	}
	defer answer.Body.Close()
	err = json.NewDecoder(answer.Body).Decode(&state)
	if err != nil {
		return serverState{}
	}
	return state
}

// encodingOf returns the encoding of the streams of a client's kind: "" if there is none, and
// "mixed" if they differ.
func (s serverState) encodingOf(c client) (encoding string) {
	for _, stream := range s.Streams {
		isKind := strings.Contains(stream.UserAgent, c.agent)
		if c.agent == "none" {
			isKind = stream.UserAgent == ""
		}
		switch {
		case !isKind || stream.Encoding == encoding:
		case encoding == "":
			encoding = stream.Encoding
		default:
			return "mixed"
		}
	}
	return encoding
}
