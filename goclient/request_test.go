package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// https://fetch.spec.whatwg.org/#http-redirect-fetch
func TestRedirectKeepsMethodAsBrowsersDo(t *testing.T) {
	for _, tt := range []struct {
		status       int
		method, want string
	}{
		{301, "GET", "GET  "}, {302, "GET", "GET  "}, {303, "GET", "GET  "},
		{301, "POST", "GET  "}, {302, "POST", "GET  "}, {303, "POST", "GET  "},
		{301, "PUT", "PUT x application/json"}, {302, "PUT", "PUT x application/json"},
		{303, "PUT", "GET  "},
		{307, "POST", "POST x application/json"}, {308, "POST", "POST x application/json"},
		{307, "GET", "GET  "}, {308, "GET", "GET  "},
		{300, "GET", ""}, {304, "GET", ""}, {305, "GET", ""}, {399, "GET", ""},
	} {
		got := ""
		url := serve(t, func(n int, w http.ResponseWriter, r *http.Request) {
			if n == 0 {
				w.Header().Set("Location", "/there")
				w.WriteHeader(tt.status)
				return
			}
			body, _ := io.ReadAll(r.Body)
			got = fmt.Sprintf("%s %s %s", r.Method, body, r.Header.Get("Content-Type"))
			begin(w, "data: a\n\n")
		})
		args := []string{"-X", tt.method, "-once", url}
		if tt.method != "GET" {
			args = append(args, "-d", "x")
		}
		client(t, args...)
		if got != tt.want {
			t.Errorf("%d to %s: the second request is %q, want %q", tt.status, tt.method, got, tt.want)
		}
	}
}

func TestRedirectIsFollowedTwentyTimes(t *testing.T) {
	for redirects, want := range map[int]int{20: 0, 21: 1} {
		url := serve(t, func(n int, w http.ResponseWriter, r *http.Request) {
			if n < redirects {
				http.Redirect(w, r, fmt.Sprint("/", n), http.StatusFound)
				return
			}
			begin(w, "data: a\n\n")
		})
		if code, out, _ := client(t, "-once", url); code != want {
			t.Errorf("%d redirects: exit status %d\n%s", redirects, code, out)
		}
	}
}

func TestRedirectTakesNoCredentialsAlong(t *testing.T) {
	sent := map[string]string{
		"Authorization": "Bearer x", "Cookie": "a=b", "X-Api-Key": "x", "X-Auth-Token": "x",
		"Accept-Language": "de", "X-Version": "2",
	}
	var here, there http.Header
	final := serve(t, func(_ int, w http.ResponseWriter, r *http.Request) {
		there = r.Header
		begin(w, "data: a\n\n")
	})
	url := serve(t, func(n int, w http.ResponseWriter, r *http.Request) {
		if n == 0 {
			http.Redirect(w, r, "/stream", http.StatusFound)
			return
		}
		here = r.Header
		http.Redirect(w, r, final, http.StatusFound)
	})
	args := []string{"-once", url}
	for name, value := range sent {
		args = append(args, "-header", name+": "+value)
	}
	client(t, args...)

	for name, value := range sent {
		if here.Get(name) != value {
			t.Errorf("the same host got %s %q", name, here.Get(name))
		}
		want := ""
		if name == "Accept-Language" || name == "X-Version" {
			want = value
		}
		if got := there.Get(name); got != want {
			t.Errorf("the other host got %s %q, want %q", name, got, want)
		}
	}
}

// What a redirect sends to another port, or to another path of the same host.
func redirects(t *testing.T) (url string, there, other chan http.Header) {
	t.Helper()
	there = make(chan http.Header, 10)
	other = make(chan http.Header, 10)
	otherURL := serve(t, func(_ int, w http.ResponseWriter, r *http.Request) {
		other <- r.Header
		begin(w, "data: a\n\n")
	})
	url = serve(t, func(_ int, w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/stream":
			http.Redirect(w, r, "http://"+r.Host+"/there", http.StatusTemporaryRedirect)
		case "/there":
			there <- r.Header
			http.Redirect(w, r, otherURL, http.StatusTemporaryRedirect)
		}
	})
	return url, there, other
}

func TestRedirectOfPublishKeepsSecrets(t *testing.T) {
	url, there, other := redirects(t)
	args := []string{"-publish", url, "-token-file", writeFile(t, "x"), "-header", "X-Api-Key: x",
		"-header", "X-Version: 2", "-body", writeFile(t, "the body")}
	if err := publishOnce(t, args...); err != nil {
		t.Fatal(err)
	}

	h := <-there
	if h.Get("Authorization") != "Bearer x" || h.Get("X-Api-Key") != "x" {
		t.Errorf("the same host got %v", h)
	}
	h = <-other
	if h.Get("Authorization") != "" || h.Get("X-Api-Key") != "" || h.Get("X-Version") != "2" {
		t.Errorf("another port got %v", h)
	}
}

func TestRedirectOfForwardKeepsSecrets(t *testing.T) {
	url, there, other := redirects(t)
	f := newForwarder("PUT", mustTarget(t, url), "x", discardSlog)
	if err := f.send(context.Background(), []byte("{}")); err != nil {
		t.Fatal(err)
	}
	if got := (<-there).Get("Authorization"); got != "Bearer x" {
		t.Errorf("the same host got Authorization %q", got)
	}
	if got := (<-other).Get("Authorization"); got != "" {
		t.Errorf("another port got Authorization %q", got)
	}
}

// As browsers do, and only on the same host.
func TestRedirectKeepsPasswordOfURL(t *testing.T) {
	const want = "Basic bWU6aHVudGVyMg==" // me:hunter2
	sends := map[string]func(url string){
		"a stream": func(url string) { client(t, "-once", url) },
		"-publish": func(url string) { publishOnce(t, "-publish", url) },
		"-forward": func(url string) {
			f := newForwarder("PUT", mustTarget(t, url), "", discardSlog)
			f.send(context.Background(), []byte("{}"))
		},
	}
	for name, send := range sends {
		url, there, other := redirects(t)
		send(strings.Replace(url, "http://", "http://me:hunter2@", 1))
		if got := (<-there).Get("Authorization"); got != want {
			t.Errorf("%s: the same host got Authorization %q", name, got)
		}
		if got := (<-other).Get("Authorization"); got != "" {
			t.Errorf("%s: another port got Authorization %q", name, got)
		}
	}
}

func TestRedirectHostIsSchemeNameAndPort(t *testing.T) {
	for _, tt := range []struct {
		target, url string
		want        bool
	}{
		{"http://a.com/x", "http://a.com/y", true},
		{"http://a.com/x", "http://A.com:80/y", true},
		{"https://a.com:443/x", "https://a.com/y", true},
		{"http://a.com/x", "http://a.com:81/y", false},
		{"http://a.com/x", "https://a.com/y", false},
		{"https://a.com/x", "http://a.com:443/y", false},
		{"http://a.com/x", "http://b.a.com/y", false},
		{"http://a.com/x", "ftp://a.com/y", false},
	} {
		if got := mustTarget(t, tt.target).isHostOf(mustURL(t, tt.url)); got != tt.want {
			t.Errorf("from %s to %s: got %v", tt.target, tt.url, got)
		}
	}
}

// The connection is kept, so its end does not show that of the body.
func TestStreamEndsAtContentLength(t *testing.T) {
	for body, code := range map[string]int{"": 1, "data: a\n\n": 0} {
		url := rawServe(t, func(c *net.TCPConn) {
			fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"+
				"Content-Length: %d\r\n\r\n%s", len(body), body)
			c.Read(make([]byte, 1)) // until the client closes the connection
			c.Close()
		})
		s := clientJSON(t, code, "-once", url)
		if s.Closes != 1 || s.Cut != 0 {
			t.Errorf("%d bytes: got %+v", len(body), s.totals)
		}
	}
}

func TestStreamWaitsQuarterSecondAtLeast(t *testing.T) {
	s := newStream(nil, nil)
	for _, said := range []time.Duration{0, time.Millisecond} {
		s.retry(said)
		if got := s.wait(0); got != 250*time.Millisecond {
			t.Errorf("after retry %v it waits %v", said, got)
		}
	}
	s.retry(251 * time.Millisecond)
	if got := s.wait(0); got != 251*time.Millisecond {
		t.Errorf("after retry 251 it waits %v", got)
	}
}

func TestStreamReadsEventOf16MiB(t *testing.T) {
	size := 16 << 20
	url := serve(t, func(_ int, w http.ResponseWriter, r *http.Request) {
		begin(w, "data: "+strings.Repeat("x", size)+"\n\n")
	})
	s := clientJSON(t, 0, "-once", "-check", "none", url)
	if s.Events != 1 {
		t.Errorf("%d events", s.Events)
	}
	s = clientJSON(t, 1, "-once", "-check", "none", "-max-event-bytes", fmt.Sprint(size-1), url)
	if got := problems(s); got != "1 "+wrongSize || s.Events != 0 {
		t.Errorf("one byte over: %d events, wrong is %s", s.Events, got)
	}
}

// Wherever a URL with a password is printed, the password is not.
func TestPasswordIsNeverPrinted(t *testing.T) {
	t.Parallel()
	const password = "hunter2"
	secret := func(url string) string {
		return strings.Replace(url, "http://", "http://me:"+password+"@", 1)
	}
	good := serve(t, func(_ int, w http.ResponseWriter, r *http.Request) {
		if _, got, _ := r.BasicAuth(); got != password {
			t.Errorf("the server got the password %q", got)
		}
		begin(w, "data: a\n\n")
	})
	moved := serve(t, func(_ int, w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, secret("http://127.0.0.1:1/x"), http.StatusFound)
	})
	malformed := serve(t, func(_ int, w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Location", "http://me:"+password+"@127.0.0.1:port/")
		w.WriteHeader(http.StatusFound)
	})
	for _, args := range [][]string{
		{"-once", secret(good)},
		{"-once", "-json", secret(good)},
		{"-once", "-debug", secret(good)},
		{"-once", "-debug", moved},
		{"-once", "-debug", malformed},
		{"-once", "-json", moved},
		{"-once", secret("http://127.0.0.1:1/")},
		{secret("http://[::1/")},
		{secret("http://127.0.0.1:port/")},
		{"ftp://me:" + password + "@host/"},
		{"me:" + password + "@host/"},
		{"http://me:hun/" + password + "@host/"},
		{"http://one/", secret("http://two/")},
		{secret(good), secret(good)},
		{"-url", good, "-publish", secret("http://[/")},
		{"-doctor", "-duration", "500ms", "-direct", secret("http://127.0.0.1:1/"), secret(good)},
		{"-doctor", "-duration", "500ms", "-json", secret(moved)},
		{"-duration", "500ms", "-url", secret(good), "-forward", secret("http://127.0.0.1:1/")},
		{"-duration", "500ms", "-json", "-url", secret(good), "-forward", secret(moved)},
	} {
		_, out, errs := client(t, args...)
		if strings.Contains(out+errs, password) {
			t.Errorf("%q prints the password:\n%s%s", args, out, errs)
		}
	}
}

func TestPasswordOfPublishIsNotPrinted(t *testing.T) {
	err := publishOnce(t, "-publish", "http://me:hunter2@127.0.0.1:1/")
	if err == nil || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("got %v", err)
	}
}

func TestTLSTrustsGivenCertificatesOnly(t *testing.T) {
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		begin(w, "data: a\n\n")
	})
	ts := httptest.NewUnstartedServer(handler)
	ts.Config.ErrorLog = discardLog
	ts.StartTLS()
	defer ts.Close()
	block := &pem.Block{Type: "CERTIFICATE", Bytes: ts.Certificate().Raw}
	right := writeFile(t, string(pem.EncodeToMemory(block)))
	wrong := writeFile(t, string(pem.EncodeToMemory(otherCertificate(t))))

	for _, tt := range []struct {
		args []string
		want int
	}{
		{nil, 1},
		{[]string{"-k"}, 0},
		{[]string{"-cacert", right}, 0},
		{[]string{"-cacert", wrong}, 1},
		{[]string{"-cacert", wrong, "-k"}, 0},
		{[]string{"-cacert", "/nowhere"}, 2},
		{[]string{"-cacert", writeFile(t, "no certificate")}, 2},
	} {
		code, out, errs := client(t, append(tt.args, "-once", ts.URL)...)
		if code != tt.want {
			t.Errorf("%q: exit status %d, want %d\n%s%s", tt.args, code, tt.want, out, errs)
		}
	}

	// The other requests trust them, too.
	if err := publishOnce(t, "-cacert", right, "-publish", ts.URL); err != nil {
		t.Errorf("publishing: %v", err)
	}
	o, err := parseFlags([]string{"-cacert", right, "-url", ts.URL, "-forward", ts.URL}, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	f := newForwarder("PUT", o.forwardTarget, "", discardSlog)
	if err = f.send(context.Background(), []byte("1")); err != nil {
		t.Errorf("forwarding: %v", err)
	}
}

// otherCertificate makes one that no server here has.
func otherCertificate(t *testing.T) *pem.Block {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return &pem.Block{Type: "CERTIFICATE", Bytes: der}
}

// The environment is read once in a process, so the second half runs in one of its own.
func TestProxyOfEnvironmentIsReported(t *testing.T) {
	t.Parallel()
	if url := os.Getenv("TEST_STREAM_URL"); url != "" {
		dispatch(context.Background(), []string{"-duration", "1ms", url}, io.Discard, os.Stdout)
		return
	}
	for _, tt := range []struct{ url, env, want string }{
		{"http://192.0.2.1/", "HTTP_PROXY", "HTTP_PROXY is set"},
		{"https://192.0.2.1/", "HTTPS_PROXY", "HTTPS_PROXY is set"},
		{"http://192.0.2.1/", "HTTPS_PROXY", ""},
		{"http://127.0.0.1:1/", "HTTP_PROXY", ""}, // none is used for this machine
	} {
		cmd := exec.Command(os.Args[0], "-test.run=^TestProxyOfEnvironmentIsReported$")
		cmd.Env = []string{"TEST_STREAM_URL=" + tt.url, tt.env + "=http://me:hunter2@192.0.2.9:1"}
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Errorf("%s with %s: %v\n%s", tt.url, tt.env, err, out)
		}
		hasNotice := bytes.Contains(out, []byte("without a proxy"))
		if !bytes.Contains(out, []byte(tt.want)) || hasNotice != (tt.want != "") {
			t.Errorf("%s with %s prints %s", tt.url, tt.env, out)
		}
		if bytes.Contains(out, []byte("hunter2")) {
			t.Errorf("the proxy's password is printed: %s", out)
		}
	}
}

// An event may have any name.
func TestDebugLinesCannotBeForged(t *testing.T) {
	var n atomic.Int32
	url := serve(t, func(_ int, w http.ResponseWriter, r *http.Request) {
		if n.Add(1) == 1 {
			w.Header().Set("X-Answer", "a b")
			http.Redirect(w, r, "/there", http.StatusTemporaryRedirect)
			return
		}
		begin(w, "retry: 1500\n\nevent: error\ndata: connecting: connection refused\n\n"+
			"event: x data=1\ndata: 2\n\nid: 3 name=y\ndata: 4\n\n")
	})
	_, out, _ := client(t, "-debug", "-once", url)
	var lines []string
	for _, line := range strings.Split(out, "\n") {
		if len(line) > 13 && line[2] == ':' {
			lines = append(lines, line[13:])
		}
	}
	got := strings.Join(lines, "\n")
	for _, want := range []string{
		"request   GET " + url,
		"answer    HTTP/1.1 307 Temporary Redirect after ",
		"header    X-Answer: a b",
		"header    Content-Type: text/event-stream",
		"redirect  to " + strings.Replace(url, "/stream", "/there", 1),
		"answer    HTTP/1.1 200 OK after ",
		"retry     1.5s",
		"event     name=error data=connecting: connection refused",
		`event     name="x data=1" data=2`,
		`event     id="3 name=y" data=4`,
		"close     ended by the server",
	} {
		if !strings.Contains("\n"+got, "\n"+want) {
			t.Errorf("no line %q in\n%s", want, got)
		}
	}
	if strings.Contains("\n"+got, "\nerror") {
		t.Errorf("an event is shown as an error:\n%s", got)
	}
}
