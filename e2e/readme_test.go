package e2e

import (
	"fmt"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"
)

func TestReadmeNamesEachSettingAndItsVariable(t *testing.T) {
	readme := read(t, "README.md")
	help, err := serverCommand("-h").Output()
	if err != nil {
		t.Fatal(err)
	}
	flags := regexp.MustCompile(`(?m)^  -([a-z-]+)`).FindAllStringSubmatch(string(help), -1)
	if len(flags) < 10 {
		t.Fatalf("-h lists %d settings:\n%s", len(flags), help)
	}
	for _, f := range flags {
		variable := "`SSE_" + strings.ToUpper(strings.ReplaceAll(f[1], "-", "_")) + "`"
		if f[1] == "version" {
			variable = ""
		}
		row := regexp.MustCompile("(?m)^\\| `-" + f[1] + "` \\| " + variable + " *\\| ")
		if !row.MatchString(readme) {
			t.Errorf("the README's table lacks -%s with %s", f[1], variable)
		}
	}
}

// Each endpoint stands in the README's table, and each that stands there is served.
func TestReadmeNamesEachEndpoint(t *testing.T) {
	t.Parallel()
	s := startServer(t)
	s.waitForSnapshot(t)
	named := map[string]bool{}
	rows := regexp.MustCompile("(?m)^\\| (`[A-Z].*? (/\\S*)`) \\|(.*)$")
	for _, row := range rows.FindAllStringSubmatch(read(t, "README.md"), -1) {
		path := row[2]
		for _, method := range regexp.MustCompile("[A-Z]{3,}").FindAllString(row[1], -1) {
			if code, _, body := s.request(t, method, path); code == 404 || code == 405 || code >= 500 {
				t.Errorf("%s %s returns %d %q", method, path, code, body)
			}
			named[method+" "+path] = true
		}
		for _, m := range regexp.MustCompile("`([A-Z]{3,})`").FindAllStringSubmatch(row[3], -1) {
			named[m[1]+" "+path] = true // in its text: "`DELETE` ends that"
		}
	}
	for _, endpoint := range []string{
		"GET /", "GET /dashboard/stream", "GET /dashboard/trigger-test", "GET /dashboard/history",
		"GET /dashboard/snapshot", "PUT /dashboard/snapshot", "DELETE /dashboard/snapshot",
		"POST /dashboard/activities", "GET /dashboard/debug", "GET /metrics", "GET /health",
	} {
		method, path, _ := strings.Cut(endpoint, " ")
		code, _, _ := s.request(t, method, path)
		if isServed := code != 404 && code != 405; isServed && !named[endpoint] {
			t.Errorf("the README's table lacks %s", endpoint)
		}
	}
}

// readmeBlock is what a pattern's group matches in the README.
func readmeBlock(t testing.TB, pattern string) string {
	t.Helper()
	m := regexp.MustCompile(pattern).FindStringSubmatch(read(t, "README.md"))
	if m == nil {
		t.Fatalf("the README has no %s", pattern)
	}
	return m[1]
}

// runReadme runs text of the README with a program, against a server of the test's.
func runReadme(t testing.TB, s *process, dir, program, text string) {
	t.Helper()
	cmd := exec.Command(program)
	cmd.Dir, cmd.Stdin = dir, strings.NewReader(strings.ReplaceAll(text, "localhost:3001", s.addr))
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s\n%s", program, err, text, out)
	}
}

func TestReadmeCurlLinesPostAndPut(t *testing.T) {
	t.Parallel()
	need(t, "curl")
	s := startServer(t, "-interval", "1h")
	c := s.stream(t)
	c.event(t)
	dir := t.TempDir()
	write(t, dir+"/snapshot.json", "{\n \"n\": 42\n}\n")

	runReadme(t, s, dir, "sh", readmeBlock(t, `(?m)^(?:\$ )?(curl .*/dashboard/activities .*)$`))
	if a := c.event(t).activities(t)[1]; a.Message != "Deployed v42" || a.Level != "success" {
		t.Errorf("curl's activity is %+v", a)
	}
	runReadme(t, s, dir, "sh", readmeBlock(t, `(?m)^(?:\$ )?(curl -X PUT .*)$`))
	if e := c.event(t); e.data != `{"n":42}` {
		t.Errorf("curl's snapshot is %s", e.data)
	}
}

func TestReadmeRubyLinesPost(t *testing.T) {
	t.Parallel()
	need(t, "ruby")
	s := startServer(t, "-interval", "1h")
	c := s.stream(t)
	c.event(t)
	runReadme(t, s, t.TempDir(), "ruby", "require 'json'\n"+readmeBlock(t, "(?s)```ruby\n(.*?)```")+
		"\nexit tell_dashboard(%q(Nightly \"backup\" done), 'warning').is_a?(Net::HTTPCreated)\n")
	if a := c.event(t).activities(t)[1]; a.Message != `Nightly "backup" done` || a.Level != "warning" {
		t.Errorf("Ruby's activity is %+v", a)
	}
}

func TestReadmeShowsTheSnapshotAsItIs(t *testing.T) {
	block := readmeBlock(t, "(?s)```json\n(.*?)```")
	if !snapshotPattern.MatchString(strings.ReplaceAll(strings.TrimSpace(block), "\n ", "")) {
		t.Errorf("the README's snapshot is not of the server's form: %q", block)
	}
}

// The README's nginx configuration, in a real nginx, delivers each event and heartbeat at once.
func TestReadmeNginxDelaysNothing(t *testing.T) {
	t.Parallel()
	need(t, "nginx")
	block := readmeBlock(t, "(?s)```nginx\n(.*?)```")
	s := startServer(t, "-interval", "0", "-heartbeat", "300ms")
	s.waitForSnapshot(t)
	dir, addr := proxyDir(t), freeAddr(t)
	conf, args := nginxHTTP(dir, fmt.Sprintf("gzip on; gzip_http_version 1.0; gzip_proxied any;\n"+
		"gzip_types text/event-stream; gzip_min_length 0;\n"+
		"server { listen %s;\n%s}\n", addr, strings.ReplaceAll(block, "127.0.0.1:3001", s.addr)))
	startProxy(t, "nginx", addr, dir, conf, args)
	direct := s.stream(t)
	direct.event(t)
	request := "GET /dashboard/stream HTTP/1.0\r\nHost: localhost\r\nAccept-Encoding: gzip\r\n\r\n"
	c := dial(t, addr, request).begin(t)
	c.event(t)
	for i := 0; i < 5; i++ {
		id := s.trigger(t).ID
		direct.event(t)
		start := time.Now()
		if e := c.event(t); e.id != id {
			t.Fatalf("event %d came through nginx, want %d", e.id, id)
		}
		if d := time.Since(start); d > time.Second {
			t.Errorf("nginx delayed an event by %v", d)
		}
	}
	for c.line(t) != ": heartbeat\n" {
	}
	c.Close()
	eventually(t, "nginx passes the client's disconnect on", func() bool {
		return s.debug(t).Open == 1
	})
}
