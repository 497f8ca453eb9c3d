package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"sse-server/e2e/tools"
)

// A command stands in a document, as a line of a block or in a sentence.
type command struct {
	path   string
	text   string
	output []string // that is shown for it
}

// script is the commands of one block, which belong together.
type script []command

var (
	codeSpan      = regexp.MustCompile("`([^`]+)`")
	inlineCommand = regexp.MustCompile(`^(curl |goclient/sse-client |\./[a-z]|[A-Z_]+=\S+ |cd |` +
		`go build |go test |(bench|deploy)/\w+\.sh)`)
)

// scripts returns all commands of a document.
func scripts(path, text string) []script {
	var all []script
	fence := regexp.MustCompile("(?s)\n```(sh|console)\n(.*?)\n```")
	for _, m := range fence.FindAllStringSubmatch(text, -1) {
		var commands script
		for _, line := range strings.Split(m[2], "\n") {
			isOutput := m[1] == "console" && !strings.HasPrefix(line, "$ ")
			switch {
			case isOutput:
				last := &commands[len(commands)-1]
				last.output = append(last.output, line)
			case line != "" && !strings.HasPrefix(line, "#"):
				line = strings.TrimPrefix(line, "$ ")
				commands = append(commands, command{path: path, text: line})
			}
		}
		all = append(all, commands)
	}
	prose := fencePattern.ReplaceAllString(text, "")
	for _, m := range codeSpan.FindAllStringSubmatch(prose, -1) {
		span := strings.ReplaceAll(m[1], "\n", " ")
		if inlineCommand.MatchString(span) {
			all = append(all, script{{path: path, text: span}})
		}
	}
	return all
}

// runElsewhere lists the commands that TestDocsCommandsRun does not run, and who runs them.
var runElsewhere = []struct{ pattern, by string }{
	{`^\./build\.sh( && \./sse-server)?$`, "test.sh, and its smoke test"},
	{`^\./test\.sh( full)?$`, "CI"},
	{`^go build -o sse-server main\.go$`, "TestMain, with flags"},
	{`^(install sse-server|cp deploy/sse-server\.service|systemctl enable) `,
		"TestDeployUnitRestartsTheServer"},
	{`^docker `, "TestDeployImage…, without Docker"},
	{`^cp deploy/nginx\.conf /etc/nginx/conf\.d/`, "TestDeployProxyDeliversEachEventAtOnce"},
	{`(^| )deploy/edges\.sh$`, "TestScaleEdgesScriptLeavesNothing"},
	{`^deploy/nchan\.sh$`, "TestNchanScriptStartsAllAndLeavesNothing"},
	{`^e2e/interop/table\.sh$`, "e2e/interop runs its cells; the table takes ten minutes"},
	{`^bench/`, "CI: bench/compare.sh --quick; the others take minutes of all cores"},
	{`(^| )go test `, "CI; mustSelectTests checks the names"},
	{` -doctor `, "goclient: TestDoctor…; it takes 35 s and more"},
}

// Each command of each document runs as it stands, but for the server's address, how long it takes
// and how many streams it opens.
func TestDocsCommandsRun(t *testing.T) {
	need(t, "curl")
	var mu sync.Mutex // guards used and ran
	used := map[string]bool{}
	ran := 0
	runAll := func(t *testing.T, all []script) {
		for _, commands := range all {
			r := &runner{}
			for _, c := range commands {
				pattern := elsewhere(t, c)
				mu.Lock()
				used[pattern] = true
				if pattern == "" {
					ran++
				}
				mu.Unlock()
				if pattern == "" {
					r.run(t, c)
				}
			}
		}
	}

	t.Run("of", func(t *testing.T) {
		for path, text := range documents(t) {
			all := scripts(path, text)
			t.Run(path, func(t *testing.T) {
				t.Parallel()
				runAll(t, all)
			})
		}
	})
	for _, e := range runElsewhere {
		if !used[e.pattern] {
			t.Errorf("no document has a command like %s", e.pattern)
		}
	}
	t.Logf("%d commands ran", ran)
	if ran < 25 {
		t.Error("that is too few")
	}
}

// elsewhere returns the pattern of a command that this test does not run. It checks its names.
func elsewhere(t testing.TB, c command) string {
	t.Helper()
	for _, e := range runElsewhere {
		if !regexp.MustCompile(e.pattern).MatchString(c.text) {
			continue
		}
		for _, word := range strings.Fields(c.text) {
			word = strings.TrimPrefix(word, "./")
			if regexp.MustCompile(`^(bench|deploy|e2e)/\S+$|\.sh$`).MatchString(word) {
				if _, err := os.Stat(word); err != nil {
					t.Errorf("%s: %s: %v", c.path, c.text, err)
				}
			}
		}
		if strings.Contains(c.text, "go test") {
			mustSelectTests(t, c)
		}
		return e.pattern
	}
	return ""
}

// mustSelectTests checks that a go test command has tests to run, and variables that they read.
func mustSelectTests(t testing.TB, c command) {
	t.Helper()
	folder := "e2e"
	switch {
	case strings.Contains(c.text, "cd e2e/page "):
		folder = "e2e/page"
	case strings.HasSuffix(c.text, " ."):
		folder = "."
	}
	files, _ := filepath.Glob(folder + "/*_test.go")
	source := ""
	for _, file := range files {
		source += read(t, file)
	}
	name := regexp.MustCompile(`-run (\S+)`).FindStringSubmatch(c.text)
	if name == nil {
		t.Errorf("%s: %s: it has no -run", c.path, c.text)
		return
	}
	pattern := regexp.MustCompile(strings.Trim(name[1], "'"))
	tests := regexp.MustCompile(`(?m)^func (Test\w*)\(t \*testing\.T`)
	runsOne := false
	for _, test := range tests.FindAllStringSubmatch(source, -1) {
		runsOne = runsOne || pattern.MatchString(test[1])
	}
	if !runsOne {
		t.Errorf("%s: %s: it runs no test", c.path, c.text)
	}
	for _, variable := range regexp.MustCompile(`SSE_\w+`).FindAllString(c.text, -1) {
		if !strings.Contains(source, `"`+variable+`"`) {
			t.Errorf("%s: %s: the tests do not read %s", c.path, c.text, variable)
		}
	}
}

// A runner runs the commands of a block in one folder, with one server at localhost:3001.
type runner struct {
	dir      string
	folder   string // where the next command runs
	server   *process
	upstream *process
}

func (r *runner) prepare(t testing.TB) {
	t.Helper()
	r.dir = t.TempDir()
	r.folder = r.dir
	r.server = startServer(t)
	r.upstream = startServer(t)
	for _, s := range []*process{r.server, r.upstream} {
		s.waitForSnapshot(t)
		s.stream(t) // so that somebody is connected
	}
	write(t, r.dir+"/.curlrc", "fail-with-body\nno-progress-meter\n")
	os.Mkdir(r.dir+"/goclient", 0o755)
	os.Symlink(serverProgram, r.dir+"/sse-server")
	os.Symlink(clientProgram, r.dir+"/goclient/sse-client")
}

var (
	startsServer = regexp.MustCompile(`^([A-Z_]+=\S+ )*\./sse-server( -[a-z-]+( \S+)?)*$`)
	portOfAddr   = regexp.MustCompile(`-addr (\S*):\d+`)
	someTime     = regexp.MustCompile(`(-m|-duration) \d+(m?s|m|h)?`)
	manyClients  = regexp.MustCompile(`-clients \d{4,}`)
	otherHost    = regexp.MustCompile(`https?://[\w.-]+\.(com|org|net|example)\b`)
	inputFile    = regexp.MustCompile(`@(\w+\.json)`)
	curlForever  = regexp.MustCompile(`curl (.* )?-[a-z]*N `)
	clientEnds   = regexp.MustCompile(` -(duration|rounds|once|events|until|h|version)\b`)
)

// endless tells when a command that does not end by itself has done what it is for. It returns nil
// for a command that ends.
func (r *runner) endless(t testing.TB, text string, out *tools.Output) func() bool {
	isClient := strings.Contains(text, "sse-client ")
	switch {
	case curlForever.MatchString(text) && !strings.Contains(text, " -m "):
		return func() bool { return strings.Contains(out.String(), "\ndata: ") }
	case isClient && otherHost.MatchString(text):
		started := time.Now()
		return func() bool { return time.Since(started) > 2*time.Second } // its usage is right
	case isClient && strings.Contains(text, "-forward "):
		return func() bool { return r.server.debug(t).Source == "external" }
	case isClient && !clientEnds.MatchString(text):
		return func() bool { return r.server.debug(t).Opened > 1 } // one is the runner's
	}
	return nil
}

func (r *runner) run(t testing.TB, c command) {
	t.Helper()
	if r.dir == "" {
		r.prepare(t)
	}
	folder := regexp.MustCompile(`^cd (\S+)$`).FindStringSubmatch(c.text)
	if folder != nil {
		r.folder = filepath.Join(r.folder, folder[1])
		return
	}
	text := strings.NewReplacer(
		"localhost:3001", r.server.addr,
		"edge:3001", r.server.addr,
		"upstream:3001", r.upstream.addr,
		"localhost:3000", r.upstream.addr, // the application
	).Replace(c.text)
	text = someTime.ReplaceAllStringFunc(text, func(option string) string {
		if strings.HasPrefix(option, "-m ") {
			return "-m 2"
		}
		return "-duration 2s"
	})
	text = manyClients.ReplaceAllString(text, "-clients 200")
	for _, m := range inputFile.FindAllStringSubmatch(c.text, -1) {
		write(t, r.folder+"/"+m[1], "{}")
	}
	if startsServer.MatchString(c.text) && !strings.HasSuffix(c.text, " -h") {
		text = portOfAddr.ReplaceAllString(text, "-addr ${1}:0")
		cmd := withoutSettings(exec.Command("sh", "-c", "exec env "+text))
		cmd.Env = append(cmd.Env, "SSE_ADDR=127.0.0.1:0")
		cmd.Dir = r.folder
		startCommand(t, cmd) // fails unless it listens
		return
	}

	out := &tools.Output{}
	r.runShell(t, c, text, out)
	mustShow(t, c, out.String())
}

// runShell runs the text of a command until it has ended or done its work.
func (r *runner) runShell(t testing.TB, c command, text string, out *tools.Output) {
	t.Helper()
	cmd := withoutSettings(exec.Command("sh", "-c", text))
	cmd.Env = append(cmd.Env, "CURL_HOME="+r.dir, "PATH="+r.dir+"/goclient:"+os.Getenv("PATH"))
	cmd.Dir = r.folder
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	kill := func() { syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	defer kill() // also what it has left

	isDone := r.endless(t, c.text, out)
	deadline := time.Now().Add(20 * time.Second)
	for time.Now().Before(deadline) {
		select {
		case err := <-ended:
			isOther := otherHost.MatchString(c.text) && exitStatus(err) == 1 // it is not there
			if err != nil && !isOther {
				t.Errorf("%s: %s: %v\n%s", c.path, c.text, err, out)
			}
			return
		case <-time.After(10 * time.Millisecond):
		}
		if isDone != nil && isDone() {
			kill()
			<-ended
			return
		}
	}
	t.Errorf("%s: %s: it does not end, or does not do its work\n%s", c.path, c.text, out)
	kill()
	<-ended
}

// mustShow checks that the output has the form that the document shows.
func mustShow(t testing.TB, c command, out string) {
	t.Helper()
	got := strings.Split(strings.ReplaceAll(out, "\r", ""), "\n")
	for i, want := range c.output {
		if i >= len(got) {
			t.Errorf("%s: %s: it does not print %q", c.path, c.text, want)
			return
		}
		if form(want) != form(got[i]) {
			t.Errorf("%s: %s: it prints %q, not %q", c.path, c.text, got[i], want)
		}
	}
}

// form is a line without what differs from run to run.
func form(line string) string {
	data := strings.TrimPrefix(line, "data: ")
	if data != line && snapshotPattern.MatchString(data) {
		return "data: a snapshot"
	}
	if strings.HasPrefix(line, "Date: ") {
		return "Date"
	}
	return regexp.MustCompile(`\d+`).ReplaceAllString(line, "0")
}
