package e2e

import (
	"net"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"
)

func TestSettingsHelpListsEachWithItsVariable(t *testing.T) {
	t.Parallel()
	out, err := serverCommand("-h").Output()
	if err != nil {
		t.Error(err)
	}
	for _, name := range []string{
		"addr", "interval", "heartbeat", "probe", "disk", "origins", "token-file", "edge",
		"max-streams", "log-format", "log-level", "version",
	} {
		variable := "[SSE_" + strings.ToUpper(strings.ReplaceAll(name, "-", "_")) + "]"
		if name == "version" {
			variable = "" // a deployment may well have SSE_VERSION for itself
		}
		if !strings.Contains(string(out), "-"+name) || !strings.Contains(string(out), variable) {
			t.Errorf("-h lacks -%s or %s:\n%s", name, variable, out)
		}
	}
}

func TestSettingsVersionIsPrinted(t *testing.T) {
	t.Parallel()
	cmd := serverCommand("-version")
	cmd.Env = append(cmd.Env, "SSE_VERSION=1.2.3")
	out, err := cmd.Output()
	version := string(out)
	if err != nil || !strings.HasPrefix(version, "sse-server ") || strings.Contains(version, "1.2.3") {
		t.Errorf("-version prints %q, %v", version, err)
	}
}

// mustFail checks that a start ends with that status and one line, and returns the line. A server
// that runs is ended after a while.
func mustFail(t testing.TB, cmd *exec.Cmd, status int) string {
	t.Helper()
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	timer := time.AfterFunc(20*time.Second, func() { cmd.Process.Kill() })
	err := cmd.Wait()
	timer.Stop()
	line := out.String()
	if got := exitStatus(err); got != status {
		t.Errorf("%q ended with status %d, want %d", cmd.Args[1:], got, status)
	}
	if !strings.HasPrefix(line, "sse-server: ") || strings.Count(line, "\n") != 1 {
		t.Errorf("%q prints %q, want one line", cmd.Args[1:], line)
	}
	return line
}

func TestSettingsInvalidOnesEndTheStart(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		args, env, want, never string // want is a pattern
	}{
		{"-interval 1ms", "", "-interval", ""},
		{"-interval -1s", "", `\b0\b`, ""},
		{"-log-level verbose", "", "-log-level", "slog"},
		{"-nonsense", "", "[ (`]-h\\b", ""},
		{"-disk /nope", "", "/nope", ""},
		{"-heartbeat 0", "", "-heartbeat", ""},
		{"", "SSE_INTERVAL=soon", "SSE_INTERVAL", ""},
		{"", "SSE_TOKEN=  ", "SSE_TOKEN", ""},
		{"", "SSE_LOG_LEVEL=verbose", "(-log-level|SSE_LOG_LEVEL)", "slog"},
	} {
		cmd := serverCommand(append([]string{"-addr", "127.0.0.1:0"}, strings.Fields(c.args)...)...)
		if c.env != "" {
			cmd.Env = append(cmd.Env, c.env)
		}
		line := mustFail(t, cmd, 2)
		if !regexp.MustCompile(c.want).MatchString(line) {
			t.Errorf("%q %q prints %q, want %q in it", c.args, c.env, line, c.want)
		}
		if c.never != "" && strings.Contains(line, c.never) {
			t.Errorf("%q %q prints %q, which has %q", c.args, c.env, line, c.never)
		}
	}
}

func TestSettingsTwoTokensEndTheStart(t *testing.T) {
	t.Parallel()
	file := t.TempDir() + "/token"
	write(t, file, "s3cret\n")
	cmd := serverCommand("-addr", "127.0.0.1:0", "-token-file", file)
	cmd.Env = append(cmd.Env, "SSE_TOKEN=other")
	line := mustFail(t, cmd, 2)
	if !strings.Contains(line, "SSE_TOKEN") || !strings.Contains(line, "-token-file") ||
		strings.Contains(line, "s3cret") || strings.Contains(line, "other") {
		t.Errorf("it prints %q", line)
	}
}

func TestSettingsTooManyStreamsNameTheLimit(t *testing.T) {
	t.Parallel()
	cmd := serverAfter("ulimit -n 64", "-addr", "127.0.0.1:0", "-max-streams", "99999999")
	line := mustFail(t, cmd, 2)
	if !strings.Contains(line, "64") || !strings.Contains(line, "ulimit -n") {
		t.Errorf("it prints %q", line)
	}
}

func TestSettingsTakenPortEndsTheStart(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	line := mustFail(t, serverCommand("-addr", l.Addr().String()), 1)
	if !strings.Contains(line, "already in use") || !strings.Contains(line, "-addr") {
		t.Errorf("it prints %q", line)
	}
}

// There are fewer descriptors than streams are allowed: the server has some of its own.
func TestSettingsFewDescriptorsRejectStreams(t *testing.T) {
	t.Parallel()
	p := startCommand(t, serverAfter("ulimit -n 64", "-addr", "127.0.0.1:0", "-max-streams", "64",
		"-probe", "http://127.0.0.1:1/"))
	p.waitForSnapshot(t)
	rejected := false
	var clients []*client
	for i := 0; i < 100 && !rejected; i++ {
		c := dial(t, p.addr, eventSourceRequest)
		clients = append(clients, c)
		c.SetReadDeadline(time.Now().Add(5 * time.Second))
		_, err := readHead(c.r)
		if err != nil {
			break // not even accepted
		}
		for line := ""; err == nil && !strings.HasPrefix(line, "id: ") && !rejected; {
			line, err = c.r.ReadString('\n')
			rejected = strings.HasPrefix(line, ": unable to open a stream")
		}
	}
	if !rejected {
		t.Error("no stream was rejected although there were no descriptors left")
	}
	p.mustLog(t, "too many open files")
	for _, c := range clients {
		c.Close()
	}
	eventually(t, "a new stream is accepted again", func() bool {
		c := dial(t, p.addr, streamRequest)
		defer c.Close()
		return c.beginStream() == nil
	})
	p.stop(t)
}
