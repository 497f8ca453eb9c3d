package main

import (
	"encoding/json"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// accessRequest is a request from this machine for localhost. Names and values of its header
// stand in turn; Host is one of them.
func accessRequest(method, path string, header ...string) *http.Request {
	r := httptest.NewRequest(method, path, nil)
	r.RemoteAddr = "127.0.0.1:50000"
	r.Host = "localhost:3001"
	for i := 0; i < len(header); i += 2 {
		if header[i] == "Host" {
			r.Host = header[i+1]
			continue
		}
		r.Header.Set(header[i], header[i+1])
	}
	return r
}

// statusOfAccess is 200 for a request that may be served.
func statusOfAccess(a access, r *http.Request) int {
	rejected := a.check(r)
	if rejected == nil {
		return 200
	}
	return rejected.status
}

func TestAccessServesHealthToAll(t *testing.T) {
	t.Parallel()
	a := access{token: "s3cret", onLoopback: true}
	for _, header := range [][]string{
		nil,
		{"Host", "evil.example"},
		{"Origin", "https://evil.example"},
		{"Sec-Fetch-Site", "cross-site"},
		{"Authorization", "Bearer wrong"},
		{"X-Forwarded-For", "10.0.0.1"},
	} {
		got := statusOfAccess(a, accessRequest("GET", "/health", header...))
		if got != 200 {
			t.Errorf("/health with %q gets %d", header, got)
		}
	}
}

// A page whose name someone made resolve to 127.0.0.1 sends that name as the host.
func TestAccessOnLoopbackKnowsItsHosts(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		host string
		want int
	}{
		{"", 200}, // HTTP/1.0
		{"localhost", 200},
		{"localhost:3001", 200},
		{"localhost.", 200},
		{"LOCALHOST.:3001", 200},
		{"a.localhost", 200},
		{"127.0.0.1:1", 200},
		{"127.0.0.1.", 200},
		{"127.8.9.1:1", 200},
		{"[::1]", 200},
		{"[::1]:80", 200},
		{"dashboard.example.com", 200},
		{"Dashboard.example.com.:443", 200},
		{"evil.example", 403},
		{"localhost.evil.example:3001", 403},
		{"evillocalhost", 403},
		{"127.0.0.1.evil.example", 403},
		{"10.0.0.1", 403},
		{":3001", 403},
	} {
		a := access{origins: []string{"https://dashboard.example.com"}, onLoopback: true}
		for _, path := range []string{"/", "/dashboard/stream", "/dashboard/trigger-test"} {
			got := statusOfAccess(a, accessRequest("GET", path, "Host", c.host))
			if got != c.want {
				t.Errorf("%s for the host %q gets %d, want %d", path, c.host, got, c.want)
			}
		}
		a.onLoopback = false
		got := statusOfAccess(a, accessRequest("GET", "/", "Host", c.host))
		if got != 200 {
			t.Errorf("not on loopback, the host %q gets %d", c.host, got)
		}
	}
}

func TestAccessOfPagesNeedsTheirOrigin(t *testing.T) {
	t.Parallel()
	a := access{
		origins:    []string{"https://app.example", "http://localhost:3000"},
		mayWrite:   true,
		onLoopback: true,
	}
	own := "http://localhost:3001"
	for _, c := range []struct {
		want   int
		header []string
	}{
		{200, nil}, // curl
		{200, []string{"Sec-Fetch-Site", "same-origin"}},
		{200, []string{"Sec-Fetch-Site", "none"}},
		{200, []string{"Origin", own}},
		{200, []string{"Origin", "http://LOCALHOST:3001"}},
		{200, []string{"Sec-Fetch-Site", "same-origin", "Origin", own}},
		{200, []string{"Sec-Fetch-Site", "same-origin", "Referer", "https://name.at.a.proxy/"}},
		{200, []string{"Referer", own + "/"}},
		{200, []string{"Sec-Fetch-Site", "same-site", "Origin", "http://localhost:3000"}},
		{200, []string{"Sec-Fetch-Site", "cross-site", "Origin", "https://app.example"}},
		{200, []string{"Sec-Fetch-Site", "cross-site", "Referer", "https://app.example/page"}},
		{200, []string{"Referer", "https://app.example/page"}},
		{403, []string{"Sec-Fetch-Site", "cross-site"}},
		{403, []string{"Sec-Fetch-Site", "same-site"}},
		{403, []string{"Sec-Fetch-Site", "same-site", "Origin", "http://localhost:3002"}},
		{403, []string{"Sec-Fetch-Site", "cross-site", "Referer", "https://evil.example/"}},
		{403, []string{"Origin", "https://evil.example"}},
		{403, []string{"Origin", "null"}},
		{403, []string{"Origin", "null", "Host", ""}}, // an origin without a host is not the server's
		{403, []string{"Origin", "https://app.example.evil.example"}},
		{403, []string{"Referer", "https://evil.example/"}},
		{403, []string{"Sec-Fetch-Site", "none", "Origin", "https://evil.example"}},
	} {
		for _, r := range []*http.Request{
			accessRequest("GET", "/dashboard/trigger-test", c.header...),
			accessRequest("GET", "/dashboard/stream", c.header...),
			accessRequest("GET", "/dashboard/history", c.header...),
			accessRequest("POST", "/dashboard/activities", c.header...),
		} {
			got := statusOfAccess(a, r)
			if got != c.want {
				t.Errorf("%s %s with %q gets %d, want %d", r.Method, r.URL, c.header, got, c.want)
			}
		}
		got := statusOfAccess(a, accessRequest("GET", "/", c.header...))
		if got != 200 {
			t.Errorf("a link to the page with %q gets %d", c.header, got)
		}
	}
}

func TestAccessOfDefaultOriginsIsToRead(t *testing.T) {
	t.Parallel()
	const app, own = "http://localhost:3000", "http://localhost:3001"
	for _, c := range []struct {
		header         []string
		write, ifNamed int // status
	}{
		{nil, 200, 200}, // curl
		{[]string{"Origin", own}, 200, 200},
		{[]string{"Origin", own, "Sec-Fetch-Site", "same-origin"}, 200, 200},
		{[]string{"Sec-Fetch-Site", "none"}, 200, 200},
		{[]string{"Origin", app}, 403, 200},
		{[]string{"Origin", app, "Sec-Fetch-Site", "same-site"}, 403, 200},
		{[]string{"Referer", app + "/page"}, 403, 200},
		{[]string{"Origin", "https://evil.example"}, 403, 403},
	} {
		for _, isNamed := range []bool{false, true} {
			a := access{origins: []string{app}, mayWrite: isNamed, onLoopback: true}
			want := c.write
			if isNamed {
				want = c.ifNamed
			}
			for _, method := range []string{"POST", "PUT", "DELETE"} {
				got := statusOfAccess(a, accessRequest(method, "/dashboard/snapshot", c.header...))
				if got != want {
					t.Errorf("%s with %q, named %v, gets %d, want %d",
						method, c.header, isNamed, got, want)
				}
			}
			for _, method := range []string{"GET", "HEAD", "OPTIONS"} {
				got := statusOfAccess(a, accessRequest(method, "/dashboard/snapshot", c.header...))
				if got != c.ifNamed {
					t.Errorf("%s with %q, named %v, gets %d, want %d",
						method, c.header, isNamed, got, c.ifNamed)
				}
			}
		}
	}
}

func TestAccessOfNamedOriginsIsToWrite(t *testing.T) {
	t.Parallel()
	const app = "http://localhost:3000"
	for _, c := range []struct {
		args []string
		want int
	}{
		{nil, 403},
		{[]string{"-origins", app}, 204},
		{[]string{"-origins", "https://a.example," + app}, 204},
		{[]string{"-origins", "https://a.example"}, 403},
	} {
		s := testReadyServer(t, c.args...)
		r := accessRequest("DELETE", "/dashboard/snapshot", "Origin", app)
		w := httptest.NewRecorder()
		s.ServeHTTP(w, r)
		if w.Code != c.want {
			t.Errorf("with %q a page of %s gets %d %q, want %d", c.args, app, w.Code, w.Body, c.want)
		}
	}
}

func TestAccessWithoutTokenIsLocalToChange(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		isLocal bool
		remote  string
		header  []string
	}{
		{true, "127.0.0.1:50000", nil},
		{true, "127.8.9.1:50000", nil},
		{true, "[::1]:50000", nil},
		{true, "127.0.0.1:50000", []string{"Host", "localhost"}},
		{true, "127.0.0.1:50000", []string{"Host", "localhost."}},
		{true, "127.0.0.1:50000", []string{"Host", "LOCALHOST:3001"}},
		{true, "127.0.0.1:50000", []string{"Host", "LOCALHOST.:3001"}},
		{true, "127.0.0.1:50000", []string{"Host", "a.localhost"}},
		{true, "127.0.0.1:50000", []string{"Host", "127.0.0.1"}},
		{true, "127.0.0.1:50000", []string{"Host", "127.0.0.1."}},
		{true, "127.0.0.1:50000", []string{"Host", "127.8.9.1:1"}},
		{true, "127.0.0.1:50000", []string{"Host", "[::1]"}},
		{true, "127.0.0.1:50000", []string{"Host", "[::1]:3001"}},
		{false, "10.0.0.1:50000", nil},
		{false, "[fe80::1%eth0]:50000", nil},
		{false, "127.0.0.1:50000", []string{"Host", ""}},
		{false, "127.0.0.1:50000", []string{"Host", "dashboard.example.com"}},
		{false, "127.0.0.1:50000", []string{"X-Forwarded-For", "10.0.0.1"}},
		{false, "127.0.0.1:50000", []string{"X-Forwarded-For", ""}},
		{false, "127.0.0.1:50000", []string{"X-Forwarded-Proto", "https"}},
		{false, "127.0.0.1:50000", []string{"X-Forwarded-Port", "443"}},
		{false, "127.0.0.1:50000", []string{"X-Forwarded-Prefix", "/machines/a"}},
		{false, "127.0.0.1:50000", []string{"X-Real-IP", "10.0.0.1"}},
		{false, "127.0.0.1:50000", []string{"Forwarded", "for=10.0.0.1"}},
		{false, "127.0.0.1:50000", []string{"Via", "1.1 proxy"}},
	} {
		var a access
		for _, method := range []string{"GET", "HEAD", "OPTIONS", "POST", "PUT", "DELETE", "PATCH"} {
			r := accessRequest(method, "/dashboard/snapshot", c.header...)
			r.RemoteAddr = c.remote
			want := 200
			if !c.isLocal && !isSafe(method) {
				want = 403
			}
			got := statusOfAccess(a, r)
			if got != want {
				t.Errorf("%s from %s with %q gets %d, want %d", method, c.remote, c.header, got, want)
			}
			if a.maySeeDetails(r) != c.isLocal {
				t.Errorf("%s with %q may see viewers: %v", c.remote, c.header, !c.isLocal)
			}
		}
	}
}

func TestAccessWithTokenNeedsIt(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		authorization string
		want          int
	}{
		{"", 401},
		{"Bearer wrong", 401},
		{"s3cret", 401},
		{"Digest s3cret", 401},
		{"Bearer ", 401},
		{"Bearer", 401},
		{"Bearer s3cre", 401},
		{"Bearer s3cret2", 401},
		{"Bearers3cret", 401},
		{"Basic !", 401},
		{"Basic OnM=", 401}, // :s
		{"s3cret2", 401},
		{"Bearer s3cret", 200},
		{"bearer s3cret", 200},
		{"Bearer  s3cret", 200},
		{"Basic OnMzY3JldA==", 200},     // :s3cret
		{"Basic d2hvOnMzY3JldA==", 200}, // who:s3cret
	} {
		a := access{token: "s3cret"}
		for path := range routes {
			if path == "/health" {
				continue
			}
			for _, method := range []string{"GET", "POST"} {
				r := accessRequest(method, path)
				r.RemoteAddr = "10.0.0.1:50000" // with the token, anyone may post
				if c.authorization != "" {
					r.Header.Set("Authorization", c.authorization)
				}
				got := statusOfAccess(a, r)
				if got != c.want {
					t.Errorf("%s %s with %q gets %d, want %d", method, path, c.authorization, got, c.want)
				}
				if !a.maySeeDetails(r) {
					t.Error("who has the token may not see viewers")
				}
			}
		}
	}
}

func TestAccessOfPreflightNeedsAnOriginOnly(t *testing.T) {
	t.Parallel()
	a := access{token: "s3cret", origins: []string{"https://app.example"}, mayWrite: true}
	for _, c := range []struct {
		method, origin string
		want           int
	}{
		{"OPTIONS", "https://app.example", 200},
		{"OPTIONS", "https://evil.example", 403},
		{"POST", "https://app.example", 401},
	} {
		r := accessRequest(c.method, "/dashboard/activities",
			"Origin", c.origin, "Sec-Fetch-Site", "cross-site")
		got := statusOfAccess(a, r)
		if got != c.want {
			t.Errorf("%s from %s gets %d, want %d", c.method, c.origin, got, c.want)
		}
	}
}

func TestAccessIsCheckedOnEachRoute(t *testing.T) {
	t.Parallel()
	s := startServer(t, "-token-file", tokenFile(t), "-origins", "https://app.example")
	for path, route := range routes {
		method, _, _ := strings.Cut(route.methods, ",")
		code, head, body := s.request(t, method, path)
		if path == "/health" {
			if code != 200 || body != "OK" {
				t.Errorf("/health answers %d %q", code, body)
			}
			continue
		}
		isBasic := strings.HasPrefix(head.Get("WWW-Authenticate"), "Basic ")
		if code != 401 || !isBasic || !oneSentence.MatchString(body) {
			t.Errorf("%s answers %d, %v, %q", path, code, head, body)
		}
		code, _, _ = s.send(t, method, path, "{}",
			"Authorization", "Bearer s3cret", "Content-Type", "text/plain")
		if code == 401 || code == 403 {
			t.Errorf("%s with the token answers %d", path, code)
		}
	}

	code, head, _ := s.request(t, "OPTIONS", "/dashboard/activities",
		"Origin", "https://app.example", "Sec-Fetch-Site", "cross-site")
	methods := head.Get("Access-Control-Allow-Methods")
	headers := head.Get("Access-Control-Allow-Headers")
	if code != 204 || methods != "POST" || !strings.Contains(headers, "Authorization") {
		t.Errorf("a preflight gets %d, %v", code, head)
	}
}

func TestAccessRejectsInOneSentence(t *testing.T) {
	t.Parallel()
	s := startServer(t)
	for _, c := range []struct {
		header []string
		word   string
	}{
		{[]string{"Host", "evil.example"}, "-origins"},
		{[]string{"Origin", "https://evil.example"}, "-origins"},
		{[]string{"Origin", "http://localhost:3000"}, "only if -origins is set"},
		{[]string{"X-Forwarded-For", "empty"}, "SSE_TOKEN"},
	} {
		header := append(c.header, "Content-Type", typeJSON)
		code, _, body := s.send(t, "POST", "/dashboard/activities", `{"message":"x"}`, header...)
		if code != 403 || !oneSentence.MatchString(body) || !strings.Contains(body, c.word) {
			t.Errorf("posting with %q answers %d %q, want %s", c.header, code, body, c.word)
		}
	}

	c := s.connect(t, "GET /dashboard/trigger-test HTTP/1.0\r\nOrigin: null\r\n\r\n")
	line := c.line(t)
	if line != "HTTP/1.0 403 Forbidden\r\n" {
		t.Errorf("the origin null gets %q", line)
	}
}

// The server listens on all addresses, and requests come by another one of this machine.
func TestAccessByNetworkSeesNoViewers(t *testing.T) {
	t.Parallel()
	s := startServer(t, "-addr", "0.0.0.0:0")
	_, port, _ := net.SplitHostPort(s.addr)
	s.addr = net.JoinHostPort("127.0.0.1", port)
	s.stream(t)
	if s.access.onLoopback {
		t.Error("the server takes all addresses for loopback")
	}
	checkViewers(t, s, true, 201)
	checkViewers(t, s, false, 403, "X-Forwarded-For", "10.0.0.1")

	addrs, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, addr := range addrs {
		ip := addr.(*net.IPNet).IP
		if ip.IsLoopback() || ip.To4() == nil {
			continue
		}
		s.addr = net.JoinHostPort(ip.String(), port)
		checkViewers(t, s, false, 403, "Host", "localhost")
	}
}

// checkViewers checks whether requests may see viewers and what posting answers. All may trigger.
func checkViewers(t *testing.T, s *server, want bool, posting int, header ...string) {
	t.Helper()
	var state debugState
	code, _, body := s.request(t, "GET", "/dashboard/debug", header...)
	err := json.Unmarshal([]byte(body), &state)
	if code != 200 || err != nil || state.Open != 1 {
		t.Errorf("by %s with %q /dashboard/debug answers %d %s", s.addr, header, code, body)
	}
	got := strings.Contains(body, `"remote"`)
	if got != want {
		t.Errorf("by %s with %q viewers are seen: %v", s.addr, header, got)
	}
	code, _, _ = s.request(t, "GET", "/dashboard/trigger-test", header...)
	if code != 200 {
		t.Errorf("by %s with %q the trigger answers %d", s.addr, header, code)
	}
	header = append(header, "Content-Type", typeJSON)
	code, _, body = s.send(t, "POST", "/dashboard/activities", `{"message":"x"}`, header...)
	if code != posting {
		t.Errorf("by %s with %q posting answers %d %q, want %d", s.addr, header, code, body, posting)
	}
}

// By /?stream=/dashboard/trigger-test, with an EventSource.
func TestAccessOfLinkedPageCannotTrigger(t *testing.T) {
	t.Parallel()
	s := startServer(t)
	path := "/dashboard/trigger-test"
	code, _, body := s.request(t, "GET", path,
		"Accept", typeEvents, "Sec-Fetch-Site", "same-origin")
	if code != 406 || !oneSentence.MatchString(body) {
		t.Errorf("the trigger answers an EventSource %d %q", code, body)
	}
	code, _, body = s.request(t, "GET", path, "Accept", "*/*")
	if code != 200 {
		t.Errorf("the trigger answers the page's button %d %q", code, body)
	}
}

func TestAccessTokenIsReadOrEndsTheStart(t *testing.T) {
	t.Parallel()
	empty := filepath.Join(t.TempDir(), "empty")
	write(t, empty, " \n")
	file := tokenFile(t)
	for _, c := range []struct {
		variable, file string
		token, err     string
	}{
		{"", "", "", ""},
		{"s3cret", "", "s3cret", ""},
		{" s3cret\n", "", "s3cret", ""},
		{"", file, "s3cret", ""},
		{"  ", "", "", "SSE_TOKEN is blank: it must contain the token"},
		{"s3cret", file, "", "SSE_TOKEN and -token-file are both set: set one of them"},
		{"", empty, "", "-token-file " + empty + " is blank: it must contain the token"},
		{"", "/nowhere/token", "",
			"reading -token-file: open /nowhere/token: no such file or directory"},
	} {
		args := []string{"-token-file", c.file}
		cfg, err := parseConfig(args, env("SSE_TOKEN="+c.variable), os.Stdout)
		message := ""
		if err != nil {
			message = err.Error()
		}
		if cfg.token != c.token || message != c.err {
			t.Errorf("SSE_TOKEN=%q -token-file %q: token %q, error %q, want %q, %q",
				c.variable, c.file, cfg.token, message, c.token, c.err)
		}
	}
}

// tokenFile is a file with the token s3cret.
func tokenFile(t *testing.T) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "token")
	write(t, file, "s3cret\n")
	return file
}
