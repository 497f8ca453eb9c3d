package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"sse-server/e2e/tools"
)

// documents returns the texts for users by path.
func documents(t testing.TB) map[string]string {
	t.Helper()
	texts := map[string]string{}
	for _, pattern := range []string{"README.md", "docs/*.md", "deploy/*.md"} {
		paths, err := filepath.Glob(pattern)
		if err != nil || len(paths) == 0 {
			t.Fatalf("there is no %s: %v", pattern, err)
		}
		for _, path := range paths {
			texts[path] = read(t, path)
		}
	}
	return texts
}

// block returns what the group of a pattern matches in a document.
func block(t testing.TB, path, pattern string) string {
	t.Helper()
	m := regexp.MustCompile(pattern).FindStringSubmatch(read(t, path))
	if m == nil {
		t.Fatalf("%s has no %s", path, pattern)
	}
	return m[1]
}

func TestReadmeHasAtMost220Lines(t *testing.T) {
	if n := strings.Count(read(t, "README.md"), "\n"); n > 220 {
		t.Errorf("the README has %d lines", n)
	}
}

// The home of each value is docs/benchmarks.md.
func TestReadmeFiguresAreThoseOfBenchmarks(t *testing.T) {
	section := block(t, "README.md", `(?s)\n## Four figures\n(.*?)\n## `)
	home := read(t, "docs/benchmarks.md")
	row := regexp.MustCompile(`(?m)^\| [^|]*[a-z] \| ([\d.]+[^|]*) \|$`)
	values := row.FindAllStringSubmatch(section, -1)
	if len(values) != 4 {
		t.Errorf("the README has %d figures: %q", len(values), values)
	}
	for _, v := range values {
		if !regexp.MustCompile(`\| ` + regexp.QuoteMeta(v[1]) + `[ |]`).MatchString(home) {
			t.Errorf("docs/benchmarks.md has no %s", v[1])
		}
	}
	commit := regexp.MustCompile(`Measured at ([0-9a-f]{7})`).FindStringSubmatch(section)
	if commit == nil || !strings.Contains(home, commit[1]) {
		t.Errorf("docs/benchmarks.md has no commit %q", commit)
	}
}

// The delay that the README names is the largest median in the table of docs/interop.md.
func TestReadmeDelayIsThatOfInterop(t *testing.T) {
	section := block(t, "docs/interop.md", `(?s)\n## Delays\n(.*?)\n## `)
	row := regexp.MustCompile(`(?m)^\| [^|]+ \|( \d+ / \d+ \|)+$`)
	median := regexp.MustCompile(`(\d+) / \d+`)
	clients := row.FindAllString(section, -1)
	cells, largest := 0, 0
	for _, client := range clients {
		for _, m := range median.FindAllStringSubmatch(client, -1) {
			cells++
			largest = max(largest, mustNumber(t, m[1]))
		}
	}

	if len(clients) == 0 {
		t.Fatal("docs/interop.md has no delays")
	}
	ways := map[int]string{8: "eight", 9: "nine", 10: "ten"}[cells/len(clients)]
	want := fmt.Sprintf("[%d clients through %s ways](docs/interop.md): "+
		"in each of %d cells the median delay is at most %d ms.", len(clients), ways, cells, largest)
	got := strings.Join(strings.Fields(read(t, "README.md")), " ")
	if !strings.Contains(got, want) {
		t.Errorf("the README does not say %q", want)
	}
}

// What Rails needs more, at 10,000 streams, is in the table of docs/benchmarks.md.
func TestReadmeCostOfRailsIsThatOfBenchmarks(t *testing.T) {
	text := strings.Join(strings.Fields(read(t, "README.md")), " ")
	pattern := `over (\d+) times the CPU per delivery and over (\d+) times the memory per stream`
	claim := regexp.MustCompile(pattern).FindStringSubmatch(text)
	if claim == nil {
		t.Fatalf("the README does not say %q", pattern)
	}

	cost := func(server string) (memory, cpu float64) {
		row := `(?m)^\| ` + server + ` \| 10,000 \| ([\d.]+ KiB \| [\d.]+) µs \|`
		_, err := fmt.Sscanf(block(t, "docs/benchmarks.md", row), "%f KiB | %f", &memory, &cpu)
		if err != nil {
			t.Fatalf("the row of %s: %v", server, err)
		}
		return memory, cpu
	}
	railsMemory, railsCPU := cost("Rails")
	memory, cpu := cost("sse-server")
	if float64(mustNumber(t, claim[1])) > railsCPU/cpu {
		t.Errorf("Rails needs %.1f times the CPU, the README says %q", railsCPU/cpu, claim[0])
	}
	if float64(mustNumber(t, claim[2])) > railsMemory/memory {
		t.Errorf("Rails needs %.1f times the memory, the README says %q", railsMemory/memory, claim[0])
	}
}

func mustNumber(t testing.TB, text string) int {
	t.Helper()
	n, err := strconv.Atoi(text)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

var (
	fencePattern  = regexp.MustCompile("(?s)\n```.*?\n```")
	linkPattern   = regexp.MustCompile(`\]\(([^)\s]+)\)|(?:src|href)="([^"]+)"`)
	headPattern   = regexp.MustCompile(`(?m)^#+ (.*)$`)
	noSlugPattern = regexp.MustCompile(`[^\p{L}\p{N}_ -]`)
)

// anchors returns the anchors of a document's headings, as GitHub makes them.
func anchors(text string) map[string]bool {
	all := map[string]bool{}
	prose := fencePattern.ReplaceAllString(text, "")
	for _, m := range headPattern.FindAllStringSubmatch(prose, -1) {
		slug := noSlugPattern.ReplaceAllString(strings.ToLower(m[1]), "")
		all[strings.ReplaceAll(slug, " ", "-")] = true
	}
	return all
}

func TestDocsLinksLeadSomewhere(t *testing.T) {
	links := 0
	for path, text := range documents(t) {
		prose := fencePattern.ReplaceAllString(text, "")
		for _, m := range linkPattern.FindAllStringSubmatch(prose, -1) {
			link := m[1] + m[2]
			if strings.Contains(link, "://") {
				continue
			}
			links++
			file, anchor, hasAnchor := strings.Cut(link, "#")
			target := path
			if file != "" {
				target = filepath.Join(filepath.Dir(path), file)
			}
			if _, err := os.Stat(target); err != nil {
				t.Errorf("%s: %s: %v", path, link, err)
			} else if hasAnchor && !anchors(read(t, target))[anchor] {
				t.Errorf("%s: %s: there is no such heading", path, link)
			}
		}
	}
	if links < 50 {
		t.Errorf("there are %d links", links)
	}
}

// Each document is reached from the README, maybe through others.
func TestDocsAreReachedFromTheReadme(t *testing.T) {
	texts := documents(t)
	reached := map[string]bool{}
	var visit func(path string)
	visit = func(path string) {
		if reached[path] {
			return
		}
		reached[path] = true
		for _, m := range linkPattern.FindAllStringSubmatch(texts[path], -1) {
			file, _, _ := strings.Cut(m[1], "#")
			target := filepath.Join(filepath.Dir(path), file)
			if _, ok := texts[target]; ok {
				visit(target)
			}
		}
	}
	visit("README.md")
	for path := range texts {
		if !reached[path] {
			t.Errorf("no link leads to %s", path)
		}
	}
}

func TestDocsNameEachFileOfDeploy(t *testing.T) {
	table := read(t, "deploy/README.md")
	err := filepath.WalkDir("deploy", func(path string, entry os.DirEntry, err error) error {
		name := strings.TrimPrefix(path, "deploy/")
		if err != nil || entry.IsDir() || name == "README.md" {
			return err
		}
		if !strings.Contains(table, "| ["+name+"]("+name+") |") {
			t.Errorf("the table of deploy/README.md lacks %s", name)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

// A setting is one of -h.
type setting struct{ name, variable, value string }

func settings(t testing.TB) []setting {
	t.Helper()
	help, err := serverCommand("-h").Output()
	if err != nil {
		t.Fatal(err)
	}
	parts := regexp.MustCompile(`(?m)^  -`).Split(string(help), -1)[1:]
	if len(parts) < 10 {
		t.Fatalf("-h lists %d settings:\n%s", len(parts), help)
	}
	group := func(pattern, text string) string {
		m := regexp.MustCompile(pattern).FindStringSubmatch(text)
		if m == nil {
			return ""
		}
		return m[1]
	}
	var all []setting
	for _, part := range parts {
		all = append(all, setting{
			name:     group(`^([a-z-]+)`, part),
			variable: group(`\[(SSE_\w+)\]`, part),
			value:    strings.Trim(group(`\(default (.*)\)`, part), `"`),
		})
	}
	return all
}

func TestDocsNameEachSettingWithItsDefault(t *testing.T) {
	table := read(t, "docs/operations.md")
	for _, s := range settings(t) {
		variable := ""
		if s.variable != "" {
			variable = "`" + s.variable + "`"
		}
		pattern := "(?m)^\\| `-" + s.name + "` \\| " + variable + " *\\| ([^|]*)\\| "
		row := regexp.MustCompile(pattern).FindStringSubmatch(table)
		if row == nil {
			t.Errorf("the table of docs/operations.md lacks -%s with %s", s.name, variable)
			continue
		}
		value := strings.TrimPrefix(s.value, "own ")
		if s.name != "max-streams" && !strings.Contains(row[1], value) { // that is the machine's
			t.Errorf("docs/operations.md says -%s is %s, -h says %s", s.name, row[1], s.value)
		}
	}
}

func TestReadmeSettingsAreThoseOfHelp(t *testing.T) {
	readme := read(t, "README.md")
	pattern := regexp.MustCompile("(?m)^\\| `-([a-z-]+)` \\| `(\\w+)` \\|([^|]*)\\|")
	rows := pattern.FindAllStringSubmatch(readme, -1)
	if len(rows) != 6 {
		t.Errorf("the README has %d settings", len(rows))
	}
	known := map[string]setting{}
	for _, s := range settings(t) {
		known[s.name] = s
	}
	for _, row := range rows {
		s := known[row[1]]
		value := strings.Trim(strings.TrimSpace(row[3]), "`")
		isDefault := value == s.value ||
			strings.HasPrefix(value, "own ") || strings.HasPrefix(value, "port 3000 ")
		if s.variable != row[2] || !isDefault {
			t.Errorf("the README has %q, -h has %q", row[0], s)
		}
	}
}

// Each endpoint stands in the README's table, and each that stands there is served.
func TestReadmeNamesEachEndpoint(t *testing.T) {
	t.Parallel()
	s := startServer(t)
	s.waitForSnapshot(t)
	named := map[string]bool{}
	rows := regexp.MustCompile("(?m)^\\| (`[A-Z].*? (/\\S*)`) \\|")
	for _, row := range rows.FindAllStringSubmatch(read(t, "README.md"), -1) {
		path := row[2]
		for _, method := range regexp.MustCompile("[A-Z]{3,}").FindAllString(row[1], -1) {
			code, _, body := s.request(t, method, path)
			if code == 404 || code == 405 || code >= 500 {
				t.Errorf("%s %s returns %d %q", method, path, code, body)
			}
			named[method+" "+path] = true
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
		heading := regexp.MustCompile(`(?m)^## (GET |POST )?` + path + `$`)
		if !heading.MatchString(read(t, "docs/api.md")) {
			t.Errorf("docs/api.md has no heading for %s", path)
		}
	}
}

// keysNamed returns the words in code in the first column of the tables in a section of
// docs/api.md.
func keysNamed(t testing.TB, heading string) map[string]bool {
	t.Helper()
	section := block(t, "docs/api.md", `(?s)\n## `+heading+`\n(.*?)\n## `)
	named := map[string]bool{}
	rows := regexp.MustCompile("(?m)^\\| (`[^|]*) \\|")
	for _, row := range rows.FindAllStringSubmatch(section, -1) {
		for _, m := range regexp.MustCompile("`(\\w+)[^`]*`").FindAllStringSubmatch(row[1], -1) {
			named[m[1]] = true
		}
	}
	return named
}

func sameKeys(t testing.TB, heading string, served map[string]bool) {
	t.Helper()
	named := keysNamed(t, heading)
	for key := range named {
		if !served[key] {
			t.Errorf("docs/api.md, %s: the server has no %s", heading, key)
		}
	}
	for key := range served {
		if !named[key] {
			t.Errorf("docs/api.md, %s: the table lacks %s", heading, key)
		}
	}
}

func addKeys(keys map[string]bool, value any) {
	for key := range value.(map[string]any) {
		keys[key] = true
	}
}

func TestDocsNameEachKey(t *testing.T) {
	t.Parallel()
	s := startServer(t)
	s.stream(t).event(t)
	object := func(path string) (keys map[string]bool, all map[string]any) {
		_, _, body := s.request(t, "GET", path)
		if err := json.Unmarshal([]byte(body), &all); err != nil {
			t.Fatalf("%s: %v in %s", path, err, body)
		}
		keys = map[string]bool{}
		addKeys(keys, all)
		return keys, all
	}

	debug, all := object("/dashboard/debug")
	addKeys(debug, all["streams"].([]any)[0])
	sameKeys(t, "GET /dashboard/debug", debug)
	history, _ := object("/dashboard/history")
	sameKeys(t, "GET /dashboard/history", history)
	metrics := map[string]bool{}
	for name := range s.metrics(t) {
		name, _, _ = strings.Cut(name, "{")
		metrics[name] = true
	}
	sameKeys(t, "GET /metrics", metrics)
}

func TestDocsShowTheSnapshotAsItIs(t *testing.T) {
	text := block(t, "docs/api.md", "(?s)```json\n(.*?)```")
	if !snapshotPattern.MatchString(strings.ReplaceAll(strings.TrimSpace(text), "\n ", "")) {
		t.Errorf("the snapshot of docs/api.md is not of the server's form: %q", text)
	}
}

// The history of api.md has the keys of a real one, in their order.
func TestDocsShowTheHistoryAsItIs(t *testing.T) {
	t.Parallel()
	shown := block(t, "docs/api.md", "(?s)\n## GET /dashboard/history\n\n```\n(.*?)```")
	s := startServer(t, "-interval", "500ms", "-probe", "http://"+tools.FreeAddr(t)+"/")
	history := ""
	eventually(t, "the history has an alarm and a sample with maxima", func() bool {
		_, _, history = s.request(t, "GET", "/dashboard/history")
		return strings.Contains(history, `"level"`) && strings.Contains(history, `"max"`)
	})
	if got, want := keysInOrder(shown), keysInOrder(history); !slices.Equal(got, want) {
		t.Errorf("docs/api.md has the keys %q, the server %q", got, want)
	}
}

// keysInOrder returns each key of a JSON text where it comes first. The keys in max may be any.
func keysInOrder(text string) (keys []string) {
	text = regexp.MustCompile(`"max":\{[^}]*\}`).ReplaceAllString(text, `"max":0`)
	for _, m := range regexp.MustCompile(`"(\w+)":`).FindAllStringSubmatch(text, -1) {
		if !slices.Contains(keys, m[1]) {
			keys = append(keys, m[1])
		}
	}
	return keys
}

func TestDocsAlertsPassPromtool(t *testing.T) {
	t.Parallel()
	need(t, "promtool")
	rules := block(t, "docs/operations.md", "(?s)```yaml\n(.*?)```")
	file := t.TempDir() + "/rules.yml"
	write(t, file, rules)
	if out, err := exec.Command("promtool", "check", "rules", file).CombinedOutput(); err != nil {
		t.Errorf("promtool check rules: %v\n%s", err, out)
	}
	named := keysNamed(t, "GET /metrics")
	for _, expression := range regexp.MustCompile(`expr: .*`).FindAllString(rules, -1) {
		for _, name := range regexp.MustCompile(`sse_\w+`).FindAllString(expression, -1) {
			if !named[name] {
				t.Errorf("an alert uses %s, which docs/api.md does not have", name)
			}
		}
	}
}

func TestBenchPutReplacesOneSection(t *testing.T) {
	t.Parallel()
	page := t.TempDir() + "/page.md"
	put := func(name, text string) error {
		cmd := exec.Command("bench/put.sh", name)
		cmd.Env = append(os.Environ(), "PAGE="+page)
		cmd.Stdin = strings.NewReader(text)
		return cmd.Run()
	}
	const start = "before\n<!-- a -->\n"
	const end = "<!-- end of a -->\n<!-- b -->\nkept\n<!-- end of b -->\nafter\n"
	write(t, page, start+"old\n"+end)
	if err := put("a", "new\nlines\n"); err != nil {
		t.Error(err)
	}
	want := start + "new\nlines\n" + end
	if got := read(t, page); got != want {
		t.Errorf("the page is %q", got)
	}
	if put("c", "x\n") == nil || put("a", "") == nil || read(t, page) != want {
		t.Errorf("an unknown section or nothing was put: %q", read(t, page))
	}

	for _, name := range []string{"budgets", "compare", "agree"} {
		page = "docs/benchmarks.md"
		if block(t, page, `(?s)\n<!-- `+name+` -->\n(.*)\n<!-- end of `+name+` -->\n`) == "" {
			t.Errorf("%s has no section %s", page, name)
		}
	}
}

func TestReadmeCurlLinesPostAndPut(t *testing.T) {
	t.Parallel()
	need(t, "curl")
	s := startServer(t, "-interval", "1h")
	c := s.stream(t)
	c.event(t)
	run := func(pattern string) {
		t.Helper()
		line := block(t, "README.md", `(?m)^(curl `+pattern+`)$`)
		line = strings.ReplaceAll(line, "localhost:3001", s.addr)
		if out, err := exec.Command("sh", "-c", line).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", line, err, out)
		}
	}

	run(`.*/dashboard/activities .*`)
	if a := c.event(t).activities(t)[1]; a.Message != "Deployed v42" || a.Level != "success" {
		t.Errorf("curl's activity is %+v", a)
	}
	run(`-X PUT .*`)
	if e := c.event(t); !strings.Contains(e.data, `"Shop is open"`) {
		t.Errorf("curl's snapshot is %s", e.data)
	}
	run(`-X DELETE .*`)
	if e := c.event(t); !snapshotPattern.MatchString(e.data) {
		t.Errorf("after DELETE the snapshot is %s", e.data)
	}
}

// The thresholds in api.md are those of main.go.
func TestDocsThresholdsAreThoseOfMain(t *testing.T) {
	source := read(t, "main.go")
	number := regexp.MustCompile(`\d+`)
	for _, c := range []struct{ alarm, row string }{
		{"cpu", "CPU, mean of the last minute"},
		{"memory", "memory, disk"},
		{"disk", "memory, disk"},
	} {
		row := block(t, "docs/api.md", `(?m)^\| `+c.row+` \| (.*) \|$`)
		named := number.FindAllString(row, -1)
		call := regexp.MustCompile(`newAlarm\("` + c.alarm + `", "\w+",\s+(.*)\)\n`)
		m := call.FindStringSubmatch(source)
		if m == nil {
			t.Fatalf("main.go has no alarm %s", c.alarm)
		}
		inForce := number.FindAllString(m[1], -1)
		if len(inForce) != 4 || strings.Join(named, " ") != strings.Join(inForce, " ") {
			t.Errorf("docs/api.md has %q for %s, main.go %q", named, c.alarm, inForce)
		}
	}
}

// The parts in the table of design.md are those of main.go.
func TestDocsNameThePartsOfMain(t *testing.T) {
	section := block(t, "docs/design.md", `(?s)\| part \|(.*?)\n\n`)
	source := read(t, "main.go")
	parts := regexp.MustCompile("(?m)^\\| `(\\w+)` \\|").FindAllStringSubmatch(section, -1)
	if len(parts) < 5 {
		t.Errorf("the table has %d parts", len(parts))
	}
	for _, m := range parts {
		if !strings.Contains(source, "\ntype "+m[1]+" struct") {
			t.Errorf("main.go has no type %s", m[1])
		}
	}
}

// The messages at which operations.md says what to do are the server's.
func TestDocsMessagesAreThoseOfTheServer(t *testing.T) {
	t.Parallel()
	section := block(t, "docs/operations.md", `(?s)\n### It does not start\n(.*?)\n### `)
	taken := startServer(t)
	said := ""
	for _, args := range [][]string{
		{"-addr", taken.addr}, {"-interval", "2"}, {"-max-streams", "99999999"},
	} {
		out, _ := serverCommand(args...).CombinedOutput()
		said += string(out)
	}
	rows := regexp.MustCompile("(?m)^\\| `([^`]*)` \\|").FindAllStringSubmatch(section, -1)
	for _, row := range rows {
		pattern := strings.ReplaceAll(regexp.QuoteMeta(row[1]), "…", `\d+`)
		if !regexp.MustCompile(pattern).MatchString(said) {
			t.Errorf("the server does not say %q, but %s", row[1], said)
		}
	}
	if len(rows) != 3 {
		t.Errorf("the table has %d messages", len(rows))
	}
}

// The messages of rejected requests at which operations.md says what to do are the server's.
func TestDocsRejectionsAreThoseOfTheServer(t *testing.T) {
	t.Parallel()
	section := block(t, "docs/operations.md", `(?s)\n### Requests are rejected\n(.*?)\n### `)
	open := startServer(t)
	cmd := serverCommand("-addr", "127.0.0.1:0")
	cmd.Env = append(cmd.Env, "SSE_TOKEN=s3cret")
	closed := startCommand(t, cmd)

	said := map[string]bool{}
	for _, r := range []struct {
		s            *process
		method       string
		name, header string
	}{
		{open, "GET", "Host", "dashboard.example.com"},
		{open, "GET", "Origin", "https://app.example.com"},
		{open, "PUT", "Origin", "http://localhost:3000"},
		{open, "PUT", "X-Forwarded-For", "192.0.2.1"},
		{closed, "GET", "Accept", "*/*"},
	} {
		_, _, body := r.s.request(t, r.method, "/dashboard/snapshot", r.name, r.header)
		said[strings.TrimSpace(body)] = true
	}

	rows := regexp.MustCompile("(?m)^\\| `([^`]*)` \\|").FindAllStringSubmatch(section, -1)
	for _, row := range rows {
		if !said[row[1]] {
			t.Errorf("the server does not say %q, but %v", row[1], said)
		}
	}
	if len(rows) != len(said) {
		t.Errorf("the table has %d messages, the server %d", len(rows), len(said))
	}
}

// Each line of the log that operations.md shows has the message and the keys of a real one.
func TestDocsShowTheLogAsItIs(t *testing.T) {
	t.Parallel()
	shown := block(t, "docs/operations.md", "(?s)```\n(level=.*?)\n```")
	s := startServer(t, "-heartbeat", "300ms", "-probe", "http://"+tools.FreeAddr(t)+"/")
	c := s.stream(t)
	c.event(t)
	s.trigger(t)
	s.mustLog(t, "msg=heartbeat")
	c.Close()
	s.mustLog(t, "stream closed")
	s.mustLog(t, "metric missing")
	s.stop(t)

	// Values, and the settings that are not at their defaults, differ.
	value := regexp.MustCompile(`=("(?:[^"\\]|\\.)*"|\S+)`)
	keys := func(line string) string {
		message := regexp.MustCompile(`level=\S+ msg=("[^"]*"|\S+)`).FindString(line)
		rest := strings.TrimPrefix(line[strings.Index(line, message):], message)
		if strings.HasSuffix(message, "=listening") {
			rest, _, _ = strings.Cut(rest, " version=")
		}
		return message + value.ReplaceAllString(rest, "")
	}
	logged := map[string]bool{}
	for _, line := range strings.Split(strings.TrimSpace(s.log()), "\n") {
		logged[keys(line)] = true
	}
	for _, line := range strings.Split(shown, "\n") {
		if !logged[keys(line)] {
			t.Errorf("the log has no line like %q:\n%s", line, s.log())
		}
	}
}
