package main

import (
	"net"
	"path/filepath"
	"strings"
	"testing"
)

// tokenFile is a file with the token s3cret.
func tokenFile(t *testing.T) string {
	file := filepath.Join(t.TempDir(), "token")
	write(t, file, "s3cret\n")
	return file
}

// on is the address of a server on all addresses for a client that comes by this one.
func (s *server) on(host string) string {
	_, port, _ := net.SplitHostPort(s.addr)
	return net.JoinHostPort(host, port)
}

func TestWithATokenEverythingButHealthAsksForIt(t *testing.T) {
	t.Parallel()
	s := startServer(t, "-token-file", tokenFile(t))
	s.waitForSnapshot(t)
	for path := range routes {
		method := strings.Split(routes[path].methods, ", ")[0]
		code, head, body := s.send(t, method, path, "")
		if path == "/health" {
			if code != 200 || body != "OK" {
				t.Errorf("/health answers %d %q", code, body)
			}
			continue
		}
		if code != 401 || !strings.HasPrefix(head.Get("WWW-Authenticate"), "Basic ") || !oneSentence.MatchString(body) {
			t.Errorf("%s answers %d, %v, %q", path, code, head, body)
		}
		for _, bad := range []string{"Bearer wrong", "s3cret", "Digest s3cret", "Bearer ", "Basic !", "Basic OnM=", "s3cret2"} {
			if code, _, _ := s.send(t, method, path, "", "Authorization", bad); code != 401 {
				t.Errorf("%s with %q answers %d", path, bad, code)
			}
		}
		for _, good := range []string{"Bearer s3cret", "bearer s3cret", "Basic OnMzY3JldA==", "Basic d2hvOnMzY3JldA=="} { // :s3cret, who:s3cret
			if code, _, _ := s.send(t, method, path, "{}", "Authorization", good, "Content-Type", "text/plain"); code == 401 || code == 403 {
				t.Errorf("%s with %q answers %d", path, good, code)
			}
		}
	}
}

func TestTokenThatCannotBeReadEndsTheStart(t *testing.T) {
	empty := filepath.Join(t.TempDir(), "empty")
	write(t, empty, " \n")
	for _, file := range []string{empty, "/nowhere/token"} {
		_, err := parseSettings([]string{"-token-file", file}, env())
		if err == nil || !strings.Contains(err.Error(), "-token-file") || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v", file, err)
		}
	}
}

// Only this machine's own requests may post, put, and see who reads, unless there is a token.
func TestWithoutATokenOnlyLocalRequestsPostAndSeeWhoReads(t *testing.T) {
	t.Parallel()
	s := startServer(t, "-addr", "0.0.0.0:0")
	s.addr = s.on("127.0.0.1")
	s.stream(t).event(t)
	outside := [][]string{{"Host", "dashboard.example.com"}, {"X-Forwarded-For", "10.0.0.1"}, {"Forwarded", "for=10.0.0.1"},
		{"X-Forwarded-For", "empty"}, {"Via", "1.1 proxy"}, {"X-Real-IP", "10.0.0.1"}, {"X-Forwarded-Proto", "https"}, {"X-Forwarded-Port", "443"}, {"X-Forwarded-Prefix", "/machines/a"}}
	for _, header := range outside {
		for _, r := range [][2]string{{"POST", "/dashboard/activities"}, {"PUT", "/dashboard/snapshot"}} {
			code, _, body := s.send(t, r[0], r[1], `{"message":"x"}`, append(header, "Content-Type", "application/json")...)
			if code != 403 || !oneSentence.MatchString(body) || !strings.Contains(body, "SSE_TOKEN") {
				t.Errorf("%s with %q answers %d %q", r[0], header, code, body)
			}
		}
		code, _, body := s.send(t, "GET", "/dashboard/debug", "", header...)
		if code != 200 || strings.Contains(body, `"remote"`) || !strings.Contains(body, `"streams_open":1`) {
			t.Errorf("with %q the state is %d %s", header, code, body)
		}
		if code, _, _ := s.send(t, "GET", "/dashboard/trigger-test", "", header...); code != 200 {
			t.Errorf("with %q the trigger answers %d", header, code)
		}
	}
	for _, host := range []string{"localhost", "LOCALHOST:3001", "a.localhost", "127.0.0.1", "127.8.9.1:1", "[::1]", "[::1]:3001"} {
		code, _, body := s.send(t, "POST", "/dashboard/activities", `{"message":"x"}`, "Host", host, "Content-Type", "application/json")
		if code != 201 {
			t.Errorf("with the host %q posting answers %d %q", host, code, body)
		}
	}
	own, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range own {
		ip := a.(*net.IPNet).IP
		if ip.IsLoopback() || ip.To4() == nil {
			continue
		}
		s.addr = s.on(ip.String())
		if code, _, _ := s.send(t, "POST", "/dashboard/activities", `{"message":"x"}`, "Host", "localhost", "Content-Type", "application/json"); code != 403 {
			t.Errorf("from %s posting answers %d", ip, code)
		}
	}
}

func TestWithATokenRequestsFromElsewherePost(t *testing.T) {
	t.Parallel()
	s := startServer(t, "-token-file", tokenFile(t), "-addr", "0.0.0.0:0")
	s.addr = s.on("127.0.0.1")
	code, _, body := s.send(t, "POST", "/dashboard/activities", `{"message":"x"}`, "Host", "dashboard.example.com",
		"X-Forwarded-For", "10.0.0.1", "Authorization", "Bearer s3cret", "Content-Type", "application/json")
	if code != 201 {
		t.Errorf("posting answers %d %q", code, body)
	}
}

func TestPagesOfOtherOriginsNeedTheirsInOrigins(t *testing.T) {
	t.Parallel()
	s := startServer(t, "-origins", "https://app.example,http://localhost:3000")
	for _, c := range []struct {
		code   int
		header []string
	}{
		{200, nil}, // curl
		{200, []string{"Sec-Fetch-Site", "same-origin"}},
		{200, []string{"Sec-Fetch-Site", "none"}},
		{200, []string{"Origin", "http://" + s.addr}},
		{200, []string{"Sec-Fetch-Site", "same-origin", "Origin", "http://" + s.addr}},
		{200, []string{"Sec-Fetch-Site", "same-origin", "Referer", "https://name.at.a.proxy/"}},
		{200, []string{"Referer", "http://" + s.addr + "/"}},
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
		{403, []string{"Origin", "https://app.example.evil.example"}},
		{403, []string{"Referer", "https://evil.example/"}},
		{403, []string{"Sec-Fetch-Site", "none", "Origin", "https://evil.example"}},
	} {
		for _, path := range []string{"/dashboard/trigger-test", "/dashboard/stream", "/dashboard/history"} {
			code, _, body := s.send(t, "GET", path, "", c.header...)
			if code != c.code || code == 403 && !oneSentence.MatchString(body) {
				t.Errorf("GET %s with %q answers %d %q", path, c.header, code, body)
			}
		}
		code, _, _ := s.send(t, "POST", "/dashboard/activities", `{"message":"x"}`, append(c.header, "Content-Type", "application/json")...)
		if (code == 201) != (c.code == 200) {
			t.Errorf("posting with %q answers %d", c.header, code)
		}
	}
	// No host is no host of this server's.
	c := dial(t, s.addr, "GET /dashboard/trigger-test HTTP/1.0\r\nOrigin: null\r\n\r\n")
	if line := c.line(t); line != "HTTP/1.0 403 Forbidden\r\n" {
		t.Errorf("an origin that is null is answered %q", line)
	}
	// A link from elsewhere to the page is no page that reads.
	if code, _, _ := s.send(t, "GET", "/", "", "Sec-Fetch-Site", "cross-site", "Sec-Fetch-Mode", "navigate"); code != 200 {
		t.Errorf("a link to the page answers %d", code)
	}
}

// A strange page whose name is made to resolve to 127.0.0.1 sends that name as the host.
func TestServerOnLoopbackIsNotKnownByStrangeNames(t *testing.T) {
	t.Parallel()
	s := startServer(t, "-origins", "https://dashboard.example.com")
	for host, want := range map[string]int{"localhost": 200, "localhost:3001": 200, "127.0.0.1:1": 200, "[::1]:80": 200,
		"dashboard.example.com": 200, "Dashboard.example.com:443": 200, "evil.example": 403, "localhost.evil.example:3001": 403, "10.0.0.1": 403} {
		for _, path := range []string{"/", "/dashboard/stream", "/dashboard/trigger-test"} {
			code, _, body := s.send(t, "GET", path, "", "Host", host)
			if code != want || code == 403 && !oneSentence.MatchString(body) {
				t.Errorf("GET %s for the host %q answers %d %q", path, host, code, body)
			}
		}
	}
}

func TestPreflightNeedsNoTokenButAnAllowedOrigin(t *testing.T) {
	t.Parallel()
	s := startServer(t, "-token-file", tokenFile(t), "-origins", "https://app.example")
	code, head, _ := s.send(t, "OPTIONS", "/dashboard/activities", "", "Origin", "https://app.example", "Sec-Fetch-Site", "cross-site")
	if code != 204 || head.Get("Access-Control-Allow-Methods") != "POST" || !strings.Contains(head.Get("Access-Control-Allow-Headers"), "Authorization") {
		t.Errorf("the preflight is answered %d, %v", code, head)
	}
	if code, _, _ := s.send(t, "OPTIONS", "/dashboard/activities", "", "Origin", "https://evil.example"); code != 403 {
		t.Errorf("a strange preflight is answered %d", code)
	}
}

// By /?stream=/dashboard/trigger-test, with an EventSource.
func TestLinkToThePageCannotTrigger(t *testing.T) {
	t.Parallel()
	s := startServer(t)
	code, _, body := s.send(t, "GET", "/dashboard/trigger-test", "", "Accept", "text/event-stream", "Sec-Fetch-Site", "same-origin")
	if code != 406 || !oneSentence.MatchString(body) {
		t.Errorf("the trigger answers an EventSource %d %q", code, body)
	}
	if code, _, body := s.send(t, "GET", "/dashboard/trigger-test", "", "Accept", "*/*"); code != 200 {
		t.Errorf("the trigger answers the page's button %d %q", code, body)
	}
}
