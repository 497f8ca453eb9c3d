package interop

import (
	"crypto/tls"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
)

// protocols finds the version of HTTP that each client uses over TLS, where it has the choice.
func (k *kit) protocols(t *testing.T, chosen []client) map[string]string {
	t.Helper()
	var mu sync.Mutex // guards found
	found := map[string]string{}
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		found[r.URL.Query().Get("client")] = r.Proto
		mu.Unlock()
		w.Header().Set("Access-Control-Allow-Origin", "*")
		w.Header().Set("Content-Type", "text/event-stream")
		fmt.Fprint(w, "id: 1\ndata: x\n\n")
	}))
	certificate, err := tls.LoadX509KeyPair(k.dir+"/tls.pem", k.dir+"/tls.pem")
	if err != nil {
		t.Fatal(err)
	}
	s.TLS = &tls.Config{Certificates: []tls.Certificate{certificate}}
	s.EnableHTTP2 = true
	s.StartTLS()
	defer s.Close()
	defer s.CloseClientConnections()

	k.forget()
	base := strings.Replace(s.URL, "127.0.0.1", siteName, 1)
	var all []*reading
	for i, c := range chosen {
		all = append(all, k.startReading(t, c, fmt.Sprintf("%s/?client=%d", base, i)))
	}
	within(patience, func() bool {
		mu.Lock()
		defer mu.Unlock()
		return len(found) == len(chosen)
	})
	for _, r := range all {
		r.program.kill()
	}

	mu.Lock()
	defer mu.Unlock()
	named := map[string]string{}
	for i, c := range chosen {
		proto := strings.TrimPrefix(found[fmt.Sprint(i)], "HTTP/")
		named[c.name] = strings.TrimSuffix(proto, ".0")
	}
	return named
}
