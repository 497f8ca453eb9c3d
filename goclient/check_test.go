package main

import (
	"fmt"
	"net/http"
	"testing"
)

// The standard promises no order of ids: many servers count anew for each connection.
func TestCheckAutoAllowsAnyIDsOfOthers(t *testing.T) {
	t.Parallel()
	for data, want := range map[string]string{
		"tick":       "",
		"{\"a\":1}":  "",
		goodSnapshot: "1 " + wrongID,
	} {
		data, want := data, want
		url := serve(t, func(n int, w http.ResponseWriter, r *http.Request) {
			if n == 2 {
				w.WriteHeader(http.StatusNoContent)
				return
			}
			begin(w, fmt.Sprintf("retry: 10\nid: 1\ndata: %s\n\nid: 2\ndata: %s\n\n", data, data))
		})
		code := 0
		if want != "" {
			code = 1
		}
		if got := problems(clientJSON(t, code, "-url", url)); got != want {
			t.Errorf("data %s: got %q, want %q", data, got, want)
		}
	}
}
