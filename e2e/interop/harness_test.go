// Package interop measures when each client gets the events of the server, directly and through
// each proxy. table.sh writes docs/interop.md with it.
//
//	SSE_INTEROP_REQUIRED=1   fail, and do not skip, where a client or a proxy is missing
package interop

import (
	"bufio"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"sse-server/e2e/proxies"
	"sse-server/e2e/tools"
)

// project is the top folder.
const project = "../.."

// The programs under test, which TestMain builds.
var serverProgram, sseClientProgram string

var tableFile = flag.String("table", "", "measure everything and write the table to this `file`")

func TestMain(m *testing.M) {
	if name := os.Getenv("TEST_GO_CLIENT"); name != "" {
		readAsGoClient(name, os.Getenv("TEST_URL"))
		return
	}
	flag.Parse()
	os.Exit(buildAndRun(m))
}

// readAsGoClient is all that a process of a Go client does.
func readAsGoClient(name, url string) {
	err := goClients[name](url)
	if err != nil {
		show("error %v", err)
		os.Exit(1)
	}
	show("end")
}

func buildAndRun(m *testing.M) (status int) {
	dir, err := os.MkdirTemp("", "interop")
	if err != nil {
		fmt.Println("making a folder for the programs:", err)
		return 1
	}
	defer os.RemoveAll(dir)

	serverProgram, sseClientProgram = dir+"/sse-server", dir+"/sse-client"
	sources := map[string]string{serverProgram: "main.go", sseClientProgram: "./goclient"}
	for program, source := range sources {
		build := exec.Command("go", "build", "-o", program, source)
		build.Dir = project
		out, err := build.CombinedOutput()
		if err != nil {
			fmt.Printf("building %s: %v\n%s", source, err, out)
			return 1
		}
	}
	return m.Run()
}

// missing skips a test, or fails it where everything must be there.
func missing(t *testing.T, what string) {
	t.Helper()
	if os.Getenv("SSE_INTEROP_REQUIRED") != "" {
		t.Fatal(what)
	}
	t.Skip(what)
}

// openDir is a temporary folder that a proxy's own user may enter.
func openDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	err := os.Chmod(filepath.Dir(dir), 0o755)
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// A program is one that runs until the test ends, with all that it has started.
type program struct {
	cmd   *exec.Cmd
	said  tools.Output
	ended chan struct{} // closed when it has ended
	err   error         // of its end; read it after ended
}

// start runs a program. Its output goes to shown, or, without that, to said as its errors do.
func start(t *testing.T, cmd *exec.Cmd, shown func(io.Reader)) *program {
	t.Helper()
	p := &program{cmd: cmd, ended: make(chan struct{})}
	cmd.Stderr = &p.said
	var pipe io.Reader
	if shown == nil {
		cmd.Stdout = &p.said
	} else {
		var err error
		pipe, err = cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
	}

	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.WaitDelay = time.Second // a browser's children may keep the pipes open
	err := cmd.Start()
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(p.ended)
		if shown != nil {
			shown(pipe)
		}
		p.err = cmd.Wait()
	}()
	t.Cleanup(p.kill)
	return p
}

// stop lets a program tidy up.
func (p *program) stop() {
	p.cmd.Process.Signal(syscall.SIGTERM)
	within(2*time.Second, p.hasEnded)
	p.kill()
}

func (p *program) kill() {
	syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL)
	<-p.ended
}

func (p *program) hasEnded() bool {
	select {
	case <-p.ended:
		return true
	default:
		return false
	}
}

// serve runs a server that is started and ended by commands of its own.
func serve(t *testing.T, addr string, cmd *exec.Cmd) *program {
	t.Helper()
	p := start(t, cmd, nil)
	waitFor(t, "the server listens", func() bool {
		if p.hasEnded() {
			t.Fatalf("the server ended: %s", p.said.String())
		}
		return tools.Listens(addr)
	})
	return p
}

// sseServer is the command that runs the server under test.
func sseServer(addr string, origin string) *exec.Cmd {
	cmd := exec.Command(serverProgram, "-addr", addr, "-origins", origin,
		"-interval", interval.String(), "-heartbeat", heartbeat.String())
	for _, variable := range os.Environ() {
		if !strings.HasPrefix(variable, "SSE_") {
			cmd.Env = append(cmd.Env, variable)
		}
	}
	return cmd
}

// end ends a server as an operator does.
func (p *program) end(t *testing.T) {
	t.Helper()
	p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.ended:
	case <-time.After(patience):
		t.Fatal("the server does not end")
	}
}

// startProxy runs a proxy until the test ends. What it says is shown if the test fails.
func startProxy(t *testing.T, x proxies.Proxy, place proxies.Place) {
	t.Helper()
	commands, err := x.Commands(place)
	if err != nil {
		t.Fatal(err)
	}
	for _, cmd := range commands {
		p := start(t, cmd, nil)
		t.Cleanup(func() {
			p.stop()
			if t.Failed() {
				t.Logf("%s says\n%s", cmd.Args[0], p.said.String())
			}
		})
	}
	waitFor(t, x.Name+" listens", func() bool {
		return tools.Listens(place.Addr) && (len(commands) == 1 || tools.Listens(place.Inner))
	})
}

// patience is how long what must happen may take on a busy machine.
const patience = 30 * time.Second

func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	if !within(patience, ok) {
		t.Fatalf("within %v it never became true that %s", patience, what)
	}
}

// within tells whether ok becomes true in time.
func within(limit time.Duration, ok func() bool) bool {
	for end := time.Now().Add(limit); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if ok() {
			return true
		}
	}
	return ok()
}

// reference reads the server's own stream, to know what was sent and when a heartbeat was.
func reference(t *testing.T, url string) *record {
	t.Helper()
	answer, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { answer.Body.Close() })

	r := newRecord()
	go r.noteStream(bufio.NewScanner(answer.Body))
	return r
}
