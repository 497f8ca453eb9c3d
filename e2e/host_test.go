package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// These tests change what the server sees of its host, in a mount namespace of its own.

// needMountNamespace skips a test where mounts cannot be hidden from the rest of the host.
func needMountNamespace(t testing.TB) {
	t.Helper()
	needRoot(t)
	need(t, "unshare", "nsenter", "mount", "umount")
	try := exec.Command("unshare", "--mount", "mount", "--bind", "/dev/null", "/proc/meminfo")
	if out, err := try.CombinedOutput(); err != nil {
		t.Skipf("no mount namespaces here: %v %s", err, out)
	}
}

// startMounted starts a server after a script in its mount namespace, whose $1 is path.
func startMounted(t testing.TB, script, path string, args ...string) *process {
	t.Helper()
	return startCommand(t, withoutSettings(exec.Command("unshare", mounted(script, path, args)...)))
}

// mounted is unshare's arguments. The shell becomes the server, so its process is the server's.
func mounted(script, path string, args []string) []string {
	return append([]string{"--mount", "sh", "-ec", script + `; shift; exec "$0" "$@"`,
		serverProgram, path, "-addr", "127.0.0.1:0"}, args...)
}

// inside runs a command in the server's mount namespace.
func (p *process) inside(t testing.TB, command ...string) {
	t.Helper()
	args := append([]string{"--target", fmt.Sprint(p.pid()), "--mount"}, command...)
	if out, err := exec.Command("nsenter", args...).CombinedOutput(); err != nil {
		t.Fatalf("%q: %v %s", command, err, out)
	}
}

// A hostState is what a snapshot says about the host.
type hostState struct {
	System     struct{ Status, Message, Uptime string } `json:"system_status"`
	Metrics    map[string]string
	Activities []activity
}

func (c *client) hostState(t testing.TB) (s hostState) {
	t.Helper()
	e := c.event(t)
	if err := json.Unmarshal([]byte(e.data), &s); err != nil {
		t.Fatalf("%v in %s", err, e.data)
	}
	s.Metrics["uptime"] = s.System.Uptime
	return s
}

// untilState reads snapshots until one is as wanted.
func (c *client) untilState(t testing.TB, what string, ok func(hostState) bool) (s hostState) {
	t.Helper()
	const patience = 60 * time.Second

	for end := time.Now().Add(patience); time.Now().Before(end); {
		if s = c.hostState(t); ok(s) {
			return s
		}
	}
	t.Fatalf("within %v it never became true that %s; the last state was %+v", patience, what, s)
	return s
}

// mustMeasure fails unless the metrics are missing or real, as wanted. The network may be missing
// in any case, because a host may have none.
func (s hostState) mustMeasure(t testing.TB, missing ...string) {
	t.Helper()
	for _, name := range []string{"cpu", "memory", "disk", "response_time", "uptime"} {
		want := regexp.MustCompile(`^(\d|less than a minute)`)
		for _, m := range missing {
			if m == name {
				want = regexp.MustCompile(`^N/A$`)
			}
		}
		if !want.MatchString(s.Metrics[name]) {
			t.Errorf("%s is %q, want %s, in %+v", name, s.Metrics[name], want, s)
		}
	}
}

// alarms returns the levels of the alarms that are on, by metric.
func (s *server) alarms(t testing.TB) map[string]string {
	t.Helper()
	_, _, body := s.request(t, "GET", "/dashboard/history")
	var history struct {
		Alarms []struct{ Metric, Level string }
	}
	if err := json.Unmarshal([]byte(body), &history); err != nil {
		t.Fatalf("%v in %s", err, body)
	}
	levels := map[string]string{}
	for _, a := range history.Alarms {
		levels[a.Metric] = a.Level
	}
	return levels
}

// mustLogOnce fails unless the log has one such line for each source, and no other.
func (p *process) mustLogOnce(t testing.TB, message string, sources ...string) {
	t.Helper()
	for _, source := range sources {
		p.mustLog(t, `msg="`+message+`" source=`+source+`\b`)
	}
	if n := strings.Count(p.log(), message); n != len(sources) {
		t.Errorf("the log has %d lines with %q, want one for each of %q:\n%s",
			n, message, sources, p.log())
	}
}

// mustBeHealthy fails unless /health answers.
func (p *process) mustBeHealthy(t testing.TB) {
	t.Helper()
	start := time.Now()
	if code, _, body := p.request(t, "GET", "/health"); code != 200 {
		t.Errorf("/health returns %d %q", code, body)
	}
	t.Logf("/health answered after %v", time.Since(start))
}

// stopInTime is stop, within a time that a server that waits for a hanging read does not meet.
func (p *process) stopInTime(t testing.TB) {
	t.Helper()
	start := time.Now()
	p.stop(t)
	took := time.Since(start)
	t.Logf("SIGTERM ended it after %v", took)
	if took > 5*time.Second { // two, and some for a busy host
		t.Errorf("SIGTERM ended it after %v", took)
	}
}

func makeFIFO(t testing.TB) (path string) {
	t.Helper()
	path = t.TempDir() + "/fifo"
	if err := syscall.Mkfifo(path, 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestHostBadMeminfoAtStartCostsMemory(t *testing.T) {
	t.Parallel()
	needMountNamespace(t)
	garbled := t.TempDir() + "/garbled"
	write(t, garbled, "MemTotal: \xff\x00 kB\nMemAvailable: -1 kB\nMemFree\n")
	sources := map[string]string{
		"hangs":   makeFIFO(t),
		"drips":   drip(t, makeFIFO(t)),
		"empty":   "/dev/null",
		"endless": "/dev/zero",
		"garbled": garbled,
	}
	for name, path := range sources {
		path := path
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			start := time.Now()
			p := startMounted(t, `mount --bind "$1" /proc/meminfo`, path)
			p.mustBeHealthy(t)
			c := p.stream(t)
			s := c.hostState(t)
			t.Logf("the first snapshot came after %v", time.Since(start))
			s.mustMeasure(t, "memory")
			c.hostState(t).mustMeasure(t, "memory")
			p.mustLogOnce(t, "metric missing", "meminfo")
			p.stopInTime(t)
		})
	}
}

// drip writes a byte now and then into a FIFO, until the test ends.
func drip(t testing.TB, path string) string {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	t.Cleanup(func() { close(ended); f.Close() })
	go func() {
		for {
			select {
			case <-ended:
				return
			case <-time.After(100 * time.Millisecond):
				f.WriteString("M")
			}
		}
	}()
	return path
}

func TestHostAllOfProcHangsAtStart(t *testing.T) {
	t.Parallel()
	needMountNamespace(t)
	p := startMounted(t, `for f in meminfo stat uptime; do mount --bind "$1" /proc/$f; done`,
		makeFIFO(t))
	p.mustBeHealthy(t)
	p.stream(t).hostState(t).mustMeasure(t, "memory", "cpu", "uptime")
	p.mustLogOnce(t, "metric missing", "meminfo", "stat", "uptime")
	p.stopInTime(t)
}

func TestHostHangIsOverWhenTheReadEnds(t *testing.T) {
	t.Parallel()
	needMountNamespace(t)
	fifo := makeFIFO(t)
	p := startMounted(t, ":", "", "-interval", "500ms")
	c := p.stream(t)
	c.hostState(t).mustMeasure(t)

	p.inside(t, "mount", "--bind", fifo, "/proc/meminfo")
	start := time.Now()
	c.untilState(t, "memory is N/A", func(s hostState) bool { return s.Metrics["memory"] == "N/A" })
	took := time.Since(start)
	t.Logf("memory became N/A after %v", took)
	if took < 5*time.Second {
		t.Errorf("memory became N/A after %v; its last value is good for 10 s", took)
	}
	p.mustBeHealthy(t)
	for i := 0; i < 4; i++ { // what stopped with memory would be N/A by now
		c.hostState(t).mustMeasure(t, "memory")
	}
	p.mustLogOnce(t, "metric missing", "meminfo")

	// Without --lazy it would be busy: the server's open(2) waits for a writer.
	p.inside(t, "umount", "--lazy", "/proc/meminfo")
	writer, err := os.OpenFile(fifo, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	writer.Close()
	c.untilState(t, "memory is back", func(s hostState) bool { return s.Metrics["memory"] != "N/A" }).
		mustMeasure(t)
	p.mustLogOnce(t, "metric back", "meminfo")
	p.mustLogOnce(t, "metric missing", "meminfo")
	p.stopInTime(t)
}

// lxcfs shows a container its share of the host. A stopped one lets each read of /proc hang.
func TestHostStoppedLXCFSHoldsNothingUp(t *testing.T) {
	t.Parallel()
	needMountNamespace(t)
	need(t, "lxcfs")
	pid, dir := startLXCFS(t)
	script := `for f in meminfo stat uptime; do mount --bind "$1/proc/$f" /proc/$f; done`
	args := append([]string{"--target", fmt.Sprint(pid), "--mount", "unshare"},
		mounted(script, dir, []string{"-interval", "500ms"})...)
	p := startCommand(t, withoutSettings(exec.Command("nsenter", args...)))
	t.Cleanup(func() { syscall.Kill(pid, syscall.SIGCONT) }) // before the server is awaited
	c := p.stream(t)
	c.hostState(t).mustMeasure(t)

	all := []string{"cpu", "memory", "uptime"}
	count := func(s hostState) (missing int) {
		for _, name := range all {
			if s.Metrics[name] == "N/A" {
				missing++
			}
		}
		return missing
	}
	syscall.Kill(pid, syscall.SIGSTOP)
	c.untilState(t, "all of lxcfs is N/A", func(s hostState) bool { return count(s) == len(all) }).
		mustMeasure(t, all...)
	p.mustBeHealthy(t)
	p.mustLogOnce(t, "metric missing", "meminfo", "stat", "uptime")

	syscall.Kill(pid, syscall.SIGCONT)
	c.untilState(t, "all is back", func(s hostState) bool { return count(s) == 0 }).mustMeasure(t)
	p.mustLogOnce(t, "metric back", "meminfo", "stat", "uptime")

	syscall.Kill(pid, syscall.SIGSTOP)
	c.hostState(t)
	c.hostState(t) // so that reads hang
	p.stopInTime(t)
}

// startLXCFS mounts lxcfs in a mount namespace of its own, which ends with it.
func startLXCFS(t testing.TB) (pid int, dir string) {
	t.Helper()
	if f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0); err != nil {
		t.Skip("no FUSE here: ", err)
	} else {
		f.Close()
	}
	dir = t.TempDir()
	cmd := exec.Command("unshare", "--mount", "lxcfs", "--foreground", "--pidfile="+dir+".pid", dir)
	startLogged(t, cmd, "lxcfs")
	pid = cmd.Process.Pid
	root := fmt.Sprintf("/proc/%d/root%s", pid, dir)
	eventually(t, "lxcfs is mounted", func() bool {
		text, err := os.ReadFile(root + "/proc/meminfo")
		return err == nil && strings.Contains(string(text), "MemTotal")
	})
	return pid, dir
}

// The name localhost is not everywhere.
func TestHostEmptyEtcHostsIsNoAlarm(t *testing.T) {
	t.Parallel()
	needMountNamespace(t)
	p := startMounted(t, `mount --bind "$1" /etc/hosts`, "/dev/null")
	c := p.stream(t)
	c.hostState(t)
	s := c.hostState(t)
	s.mustMeasure(t)
	if strings.Contains(s.System.Message, "probe") || p.alarms(t)["response_time"] != "" {
		t.Errorf("the state is %+v, the alarms are %v", s, p.alarms(t))
	}
}

// fullDisk fills a file system of the server's own.
const fullDisk = `mount -t tmpfs -o size=256k none "$1"; head -c 1m /dev/zero >"$1/file" || :`

// Image-based systems mount a full / read-only.
func TestHostFullReadOnlyDiskIsNoAlarm(t *testing.T) {
	t.Parallel()
	needMountNamespace(t)
	dir := t.TempDir()
	p := startMounted(t, fullDisk+`; mount -o remount,ro "$1"`, dir, "-disk", dir)
	s := p.stream(t).hostState(t)
	alarms := p.alarms(t)
	isAlarmed := strings.Contains(s.System.Message, "Disk") || alarms["disk"] != ""
	if s.Metrics["disk"] != "100%" || isAlarmed {
		t.Errorf("the state is %+v, the alarms are %v", s, alarms)
	}
	if len(alarms) == 0 && s.System.Status != "online" {
		t.Errorf("without an alarm the status is %q", s.System.Status)
	}
}

func TestHostFullDiskIsCriticalUntilFreed(t *testing.T) {
	t.Parallel()
	needMountNamespace(t)
	dir := t.TempDir()
	p := startMounted(t, fullDisk, dir, "-disk", dir, "-interval", "500ms")
	c := p.stream(t)
	s := c.hostState(t)
	message := regexp.MustCompile(`Disk at 100%, since (\d{4}-\d\d-\d\d )?\d\d:\d\d:\d\d`)
	since := message.FindString(s.System.Message)
	if s.Metrics["disk"] != "100%" || s.System.Status != "critical" || since == "" {
		t.Errorf("the state is %+v", s)
	}
	if s = c.hostState(t); !strings.Contains(s.System.Message, since) {
		t.Errorf("%q is followed by %q", since, s.System.Message)
	}
	if got := p.alarms(t)["disk"]; got != "critical" {
		t.Errorf("the history's alarm is %q", got)
	}

	p.inside(t, "rm", dir+"/file")
	s = c.untilState(t, "disk is back to normal", func(s hostState) bool {
		return !strings.Contains(s.System.Message, "Disk")
	})
	var levels []string
	for _, a := range s.Activities {
		if strings.HasPrefix(a.Message, "Disk ") {
			levels = append(levels, a.Level)
		}
	}
	if got := strings.Join(levels, " "); got != "success error" { // newest first
		t.Errorf("the activities about the disk are %q in %+v", got, s)
	}
}

// A probed request is one that a server under test made.
type probedRequest struct {
	start, end time.Time
	bytes      int
}

func TestHostEndlessProbeBodyIsCutOff(t *testing.T) {
	t.Parallel()
	const requests = 4

	tests := []struct {
		name  string
		piece int
		pause time.Duration
		want  string // response_time
	}{
		{name: "floods", piece: 64 << 10, want: `^\d+ms$`},
		{name: "drips", piece: 1, pause: 50 * time.Millisecond, want: `^N/A$`},
	}
	for _, tt := range tests {
		tt := tt
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			var mu sync.Mutex // guards following
			var ended []probedRequest
			target := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				served := probedRequest{start: time.Now()}
				for r.Context().Err() == nil {
					n, err := w.Write(make([]byte, tt.piece))
					served.bytes += n
					if err != nil {
						break
					}
					w.(http.Flusher).Flush()
					time.Sleep(tt.pause)
				}
				served.end = time.Now()
				mu.Lock()
				defer mu.Unlock()
				ended = append(ended, served)
			}))
			t.Cleanup(target.Close)

			p := startServer(t, "-interval", "50ms", "-probe", target.URL)
			eventually(t, "some requests have ended", func() bool {
				mu.Lock()
				defer mu.Unlock()
				return len(ended) >= requests
			})
			s := p.stream(t).hostState(t)
			if got := s.Metrics["response_time"]; !regexp.MustCompile(tt.want).MatchString(got) {
				t.Errorf("response_time is %q, want %s", got, tt.want)
			}
			p.stop(t)

			mu.Lock()
			defer mu.Unlock()
			// One comes every two seconds. The first may have been late on a busy host.
			span := ended[requests-1].start.Sub(ended[0].start)
			if span < (requests-1)*2*time.Second-time.Second {
				t.Errorf("%d requests came within %v", requests, span)
			}
			for _, r := range ended {
				took := r.end.Sub(r.start)
				t.Logf("%d bytes in %v", r.bytes, took)
				if r.bytes > 32<<20 || took > 10*time.Second { // the kernel's buffers take some MiB
					t.Errorf("a request took %d bytes in %v", r.bytes, took)
				}
			}
		})
	}
}
