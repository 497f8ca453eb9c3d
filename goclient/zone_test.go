package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

func TestZoneIsCutFromHost(t *testing.T) {
	for _, c := range []struct{ host, without, zone string }{
		{"[fe80::1%eth0]:3001", "[fe80::1]:3001", "eth0"},
		{"[fe80::1%eth0]", "[fe80::1]", "eth0"},
		{"[fe80::1%a%b]:1", "[fe80::1]:1", "a%b"},
		{"[::1]:3001", "[::1]:3001", ""},
		{"127.0.0.1:3001", "127.0.0.1:3001", ""},
		{"localhost", "localhost", ""},
	} {
		without, zone := cutZone(c.host)
		if without != c.without || zone != c.zone {
			t.Errorf("%s: got %q and %q, want %q and %q", c.host, without, zone, c.without, c.zone)
		}
	}
}

func TestZoneIsDialedForLinkLocalOnly(t *testing.T) {
	to := mustTarget(t, "http://[fe80::1%25eth0]:3001/")
	for host, want := range map[string]string{
		"fe80::1":      "[fe80::1%eth0]:3001",
		"fe80::2":      "[fe80::2%eth0]:3001",
		"fe80::2%eth1": "[fe80::2%eth1]:3001", // a proxy's, from HTTP_PROXY
		"2001:db8::1":  "[2001:db8::1]:3001",
		"::1":          "[::1]:3001",
		"169.254.0.1":  "169.254.0.1:3001",
		"localhost":    "localhost:3001",
	} {
		if got := to.address(host, "3001"); got != want {
			t.Errorf("%s: got %s, want %s", host, got, want)
		}
	}
}

// A certificate names an address without a zone.
func TestZoneIsNotPartOfCertificate(t *testing.T) {
	l, err := net.Listen("tcp", "[::1]:0")
	if err != nil {
		t.Skip("there is no IPv6 here: ", err)
	}
	ts := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter,
		r *http.Request) {
		begin(w, "data: a\n\n")
	}))
	ts.Listener.Close()
	ts.Listener = l
	ts.StartTLS()
	defer ts.Close()
	pool := x509.NewCertPool()
	pool.AddCert(ts.Certificate())
	roots := &tls.Config{RootCAs: pool}

	to := mustTarget(t, strings.Replace(ts.URL, "::1", "::1%25lo", 1))
	to.tls = roots
	got, err := watchOnce(to)
	if got != `event("","","a")` || err != io.EOF {
		t.Errorf("the stream gives %s, %v", got, err)
	}

	f := newForwarder("PUT", to, "", discardSlog)
	transport := f.client.Transport.(*http.Transport)
	transport.TLSClientConfig = roots
	defer transport.CloseIdleConnections()
	err = f.send(context.Background(), []byte("{}"))
	if err != nil {
		t.Errorf("forwarding: %v", err)
	}
}

// The second half of this test runs in a network of its own, whose lo has a link-local address.
func TestZoneIsDialedButNotSent(t *testing.T) {
	t.Parallel()
	if os.Getenv("TEST_LINK_LOCAL") != "" {
		testLinkLocal(t)
		return
	}
	unshare := "-n"
	if os.Getuid() != 0 {
		unshare = "-rn" // as root of a user namespace
	}
	const noNetwork = 77
	cmd := exec.Command("unshare", unshare, "sh", "-c", `{ ip link set lo up &&
		ip -6 addr add fe80::1/64 dev lo nodad; } || exit 77; exec "$@"`,
		"sh", os.Args[0], "-test.run=^TestZoneIsDialedButNotSent$", "-test.timeout=1m")
	cmd.Env = append(os.Environ(), "TEST_LINK_LOCAL=1")
	out, err := cmd.CombinedOutput()
	switch code := cmd.ProcessState.ExitCode(); {
	case code == noNetwork, strings.HasPrefix(string(out), "unshare: "):
		t.Skipf("a network of its own cannot be made here: %.200q", out)
	case cmd.ProcessState == nil:
		t.Skip("a network of its own cannot be made here: ", err)
	case err != nil:
		t.Errorf("%v\n%s", err, out)
	}
}

func testLinkLocal(t *testing.T) {
	l, err := net.Listen("tcp", "[fe80::1%lo]:0")
	if err != nil {
		t.Fatal(err)
	}
	hosts := make(chan string, 100) // of the requests
	ts := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter,
		r *http.Request) {
		hosts <- r.Host
		if !strings.HasPrefix(r.UserAgent(), "sse-client/"+version) {
			t.Errorf("%s %s comes from %q", r.Method, r.URL, r.UserAgent())
		}
		switch r.URL.Path {
		case "/away":
			http.Redirect(w, r, "http://"+r.Host+"/stream", http.StatusTemporaryRedirect)
		case "/stream":
			begin(w, "id: 1\ndata: 1\n\n")
			<-r.Context().Done()
		}
	}))
	ts.Listener.Close()
	ts.Listener = l
	ts.Start()
	defer ts.Close()

	host := strings.Replace(l.Addr().String(), "%lo", "", 1)
	base := "http://" + strings.Replace(host, "]", "%25lo]", 1)
	for _, c := range []struct {
		what     string
		requests int
		args     []string
	}{
		{"stream", 1, []string{"-url", base + "/stream"}},
		{"redirect", 2, []string{"-url", base + "/away"}},
		{"stalled stream", 1, []string{"-url", base + "/stream", "-stalled", "1"}},
		{"-doctor", 4, []string{"-url", base + "/stream", "-doctor", "-direct", base + "/stream"}},
		{"-forward", 2, []string{"-url", base + "/stream", "-forward", base + "/put"}},
	} {
		c := c
		ctx, stop := context.WithTimeout(context.Background(), 20*time.Second)
		ended := make(chan struct{})
		var out bytes.Buffer
		go func() {
			defer close(ended)
			dispatch(ctx, c.args, &out, &out)
		}()
		for n := 0; n < c.requests; n++ {
			select {
			case got := <-hosts:
				if got != host {
					t.Errorf("%s: got Host %s, want %s", c.what, got, host)
				}
			case <-ctx.Done():
				t.Errorf("%s: got %d requests, want %d", c.what, n, c.requests)
				n = c.requests
			}
		}
		stop()
		<-ended
		if t.Failed() {
			t.Fatalf("%s says %s", c.what, out.String())
		}
	}

	// The program would wait for 2 s before it publishes.
	if err := publishOnce(t, "-publish", base+"/publish"); err != nil {
		t.Fatal(err)
	}
	if got := <-hosts; got != host {
		t.Errorf("-publish: got Host %s, want %s", got, host)
	}
}
