package e2e

import (
	"bytes"
	"encoding/pem"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"strings"
	"testing"
	"time"

	"sse-server/e2e/tools"
)

// liveDashboard runs deploy/live_dashboard.rb for the server at a URL, then lines that use it. It
// ends a program that takes 20 s.
func liveDashboard(t testing.TB, url, lines string, variables ...string) (stdout, stderr string) {
	t.Helper()
	need(t, "ruby")
	module := read(t, "deploy/live_dashboard.rb")
	cmd := withoutSettings(exec.Command("ruby"))
	cmd.Env = append(cmd.Env, variables...)
	cmd.Stdin = strings.NewReader(
		strings.ReplaceAll(module, "http://localhost:3001", url) + "\n" + lines)
	var out, said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer time.AfterFunc(20*time.Second, func() { cmd.Process.Kill() }).Stop()
	if err := cmd.Wait(); err != nil {
		t.Errorf("Ruby ends with %v: %s", err, said.String())
	}
	return out.String(), said.String()
}

func TestRubyPostsPutsAndDeletes(t *testing.T) {
	t.Parallel()
	cmd := serverCommand("-addr", "127.0.0.1:0", "-interval", "1h")
	cmd.Env = append(cmd.Env, "SSE_TOKEN=s3cret")
	s := startCommand(t, cmd)
	c := dial(t, s.addr, strings.TrimSuffix(streamRequest, "\r\n")+
		"Authorization: Bearer s3cret\r\n\r\n").begin(t)
	c.event(t)

	url := "http://" + s.addr
	out, said := liveDashboard(t, url, `
		p LiveDashboard.post(%(Nightly "backup"\n done), "warning")
		p LiveDashboard.put({ n: 42 })
		p LiveDashboard.post("while a snapshot is shown")
		p LiveDashboard.delete`, "SSE_TOKEN=s3cret")
	if out != "true\ntrue\nfalse\ntrue\n" || !strings.HasPrefix(said, "dashboard: 409 ") {
		t.Errorf("Ruby prints %q, %q", out, said)
	}
	a := c.event(t).activities(t)[1]
	if a.Message != `Nightly "backup"  done` || a.Level != "warning" {
		t.Errorf("Ruby's activity is %+v", a)
	}
	if e := c.event(t); e.data != `{"n":42}` {
		t.Errorf("Ruby's snapshot is %s", e.data)
	}
	if e := c.event(t); !snapshotPattern.MatchString(e.data) {
		t.Errorf("after Ruby's delete the snapshot is %s", e.data)
	}

	out, said = liveDashboard(t, url, `p LiveDashboard.post("x")`, "SSE_TOKEN=wrong")
	if out != "false\n" || !strings.Contains(said, "dashboard: 401 Send the server's token, as") {
		t.Errorf("with a wrong token, Ruby prints %q, %q", out, said)
	}
}

// The README's lines work.
func TestReadmeRubyLinesRun(t *testing.T) {
	t.Parallel()
	s := startServer(t)
	s.waitForSnapshot(t)
	lines := block(t, "README.md", "(?s)```ruby\n(.*?)```")
	printed := "p " + strings.ReplaceAll(strings.TrimSpace(lines), "\n", "\np ")
	out, said := liveDashboard(t, "http://"+s.addr, "snapshot = { n: 42 }\n"+printed)
	if out != "true\ntrue\ntrue\n" {
		t.Errorf("Ruby prints %q, %q", out, said)
	}
}

// With https, the token is encrypted. A path prefix is kept.
func TestRubySpeaksTLS(t *testing.T) {
	t.Parallel()
	got := make(chan string, 1)
	accept := func(w http.ResponseWriter, r *http.Request) {
		got <- r.Method + " " + r.URL.Path + " " + r.Header.Get("Authorization")
	}
	s := httptest.NewTLSServer(http.HandlerFunc(accept))
	defer s.Close()
	file := t.TempDir() + "/certificate.pem"
	certificate := pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}
	write(t, file, string(pem.EncodeToMemory(&certificate)))

	out, said := liveDashboard(t, s.URL+"/machines/a/", `p LiveDashboard.post("x")`,
		"SSE_TOKEN=s3cret", "SSL_CERT_FILE="+file)
	if out != "true\n" {
		t.Fatalf("Ruby prints %q, %q", out, said)
	}
	want := "POST /machines/a/dashboard/activities Bearer s3cret"
	if request := <-got; request != want {
		t.Errorf("Ruby requests %q, want %q", request, want)
	}
}

// Whatever the server does and the message is, the application goes on.
func TestRubyHarmsNoApplication(t *testing.T) {
	t.Parallel()
	ended := make(chan struct{})
	hang := func(http.ResponseWriter, *http.Request) { <-ended }
	silent := httptest.NewServer(http.HandlerFunc(hang))
	defer silent.Close()
	defer close(ended)
	for _, url := range []string{
		silent.URL,                    // it never answers
		"http://" + tools.FreeAddr(t), // nobody listens
		"http://nowhere.invalid:3001",
	} {
		out, said := liveDashboard(t, url, `
			broken = Object.new
			def broken.to_s = raise("broken")
			messages = ["x", nil, "\xff", "\xff".b, broken]
			messages += ["UTF-16", "UTF-7"].map { |name| "x".dup.force_encoding(name) }
			p messages.map { |message| LiveDashboard.post(message) }.uniq
			p LiveDashboard.put({ text: "\xff" }), LiveDashboard.delete`)
		if out != "[false]\nfalse\nfalse\n" || strings.Count(said, "dashboard: ") != 9 {
			t.Errorf("with %s, Ruby prints %q, %q", url, out, said)
		}
	}
}
