package main

import (
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"
)

func TestReadmeNamesEachSettingWithItsVariableAndDefault(t *testing.T) {
	readme := readReadme(t)
	help, err := binary(t, nil, "-h").Output()
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
		if !regexp.MustCompile("(?m)^\\| `-" + f[1] + "` \\| " + variable + " *\\| ").MatchString(readme) {
			t.Errorf("the README's table lacks -%s with %s", f[1], variable)
		}
	}
}

func TestReadmeNamesEachEndpoint(t *testing.T) {
	readme := readReadme(t)
	for path, rt := range routes {
		method, _, _ := strings.Cut(rt.methods, ", ")
		if !strings.Contains(readme, "| `"+method+" "+path+"` |") {
			t.Errorf("the README's table lacks %s", path)
		}
	}
}

// The README's curl and Ruby lines post and put what they say.
func TestReadmesCurlAndRubyLinesPost(t *testing.T) {
	t.Parallel()
	readme := readReadme(t)
	s := startServer(t, "-interval", "1h")
	c := s.stream(t)
	c.event(t)
	dir := t.TempDir()
	write(t, dir+"/snapshot.json", "{\n \"n\": 42\n}\n")
	run := func(program, text string) {
		t.Helper()
		cmd := exec.Command(program)
		cmd.Dir, cmd.Stdin = dir, strings.NewReader(strings.ReplaceAll(text, "localhost:3001", s.addr))
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s\n%s", program, err, text, out)
		}
	}
	block := func(pattern string) string {
		t.Helper()
		m := regexp.MustCompile(pattern).FindStringSubmatch(readme)
		if m == nil {
			t.Fatalf("the README has no %s", pattern)
		}
		return m[1]
	}
	if ruby, err := exec.LookPath("ruby"); err == nil {
		run(ruby, "require 'json'\n"+block("(?s)```ruby\n(.*?)```")+"\nexit tell_dashboard(%q(Nightly \"backup\" done), 'warning').is_a?(Net::HTTPCreated)\n")
		if a := c.event(t).snapshot(t).Activities[1]; a.Message != `Nightly "backup" done` || a.Level != "warning" {
			t.Errorf("Ruby's activity is %+v", a)
		}
	}
	run("sh", block(`(?m)^(curl .*/dashboard/activities .*)$`))
	if a := c.event(t).snapshot(t).Activities[1]; a.Message != "Deployed v42" || a.Level != "success" {
		t.Errorf("curl's activity is %+v", a)
	}
	run("sh", block(`(?m)^(curl -X PUT .*)$`))
	if e := c.event(t); string(e.data) != `{"n":42}` {
		t.Errorf("curl's snapshot is %s", e.data)
	}
}

func TestReadmeShowsTheSnapshotAsItIs(t *testing.T) {
	block := regexp.MustCompile("(?s)```json\n(.*?)```").FindStringSubmatch(readReadme(t))
	if block == nil || !snapshotPattern.MatchString(strings.ReplaceAll(strings.TrimSpace(block[1]), "\n ", "")) {
		t.Errorf("the README's snapshot is not of the server's form: %q", block)
	}
}

// The README's nginx configuration, in a real nginx, delivers each event and heartbeat at once.
func TestReadmeConfigurationOfNginxHoldsNothingBack(t *testing.T) {
	t.Parallel()
	nginx, err := exec.LookPath("nginx")
	if err != nil {
		t.Skip("nginx is not installed")
	}
	block := regexp.MustCompile("(?s)```nginx\n(.*?)```").FindStringSubmatch(readReadme(t))
	if block == nil {
		t.Fatal("the README has no nginx configuration")
	}
	s := startServer(t, "-interval", "0", "-heartbeat", "300ms")
	s.waitForSnapshot(t)
	dir, addr := proxyDir(t), freeAddr(t)
	conf, args := nginxHTTP(dir, fmt.Sprintf("gzip on; gzip_http_version 1.0; gzip_proxied any; gzip_types text/event-stream; gzip_min_length 0;\n"+
		"server { listen %s;\n%s}\n", addr, strings.ReplaceAll(block[1], "127.0.0.1:3001", s.addr)))
	startProxy(t, nginx, addr, dir, conf, args)
	direct := s.stream(t)
	direct.event(t)
	c := dial(t, addr, "GET /dashboard/stream HTTP/1.0\r\nHost: localhost\r\nAccept-Encoding: gzip\r\n\r\n").inflated(t)
	c.event(t)
	for i := 0; i < 5; i++ {
		id := s.trigger(t).ID
		direct.event(t)
		start := time.Now()
		if e := c.event(t); e.id != id {
			t.Fatalf("event %d came through nginx, want %d", e.id, id)
		}
		if d := time.Since(start); d > time.Second {
			t.Errorf("nginx held an event back for %v", d)
		}
	}
	for c.line(t) != ": heartbeat\n" {
	}
	c.Close()
	eventually(t, "nginx passes the client's disconnect on", func() bool { return s.debug(t).Open == 1 })
}

func readReadme(t testing.TB) string {
	t.Helper()
	b, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
