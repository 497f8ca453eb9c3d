// Command table prints the tables of docs/benchmarks.md, and writes the raw results and the plots'
// data, from the runs of compare.sh: go run ./bench/table RUNS OUT LOAD.
package main

import (
	"encoding/json"
	"fmt"
	"log"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"sort"
	"strconv"
	"strings"
	"time"
)

// A run has the values of sse-client's summary that the tables show.
type run struct {
	Open     int       `json:"streams_open"`
	Bytes    float64   `json:"bytes_per_delivery"`
	Memory   float64   `json:"rss_per_stream_kib"`
	Resident float64   `json:"rss_after_mib"`
	CPU      float64   `json:"cpu_us_per_delivery"`
	First    quantiles `json:"first_event_ms"`
	Spread   quantiles `json:"spread_ms"`
	Last     quantiles `json:"last_delivery_ms"`
}

type quantiles struct{ P50, Max float64 }

// A row has all runs of one server with one number of streams. A server's last row may be the run
// "most", in which the client opened as many streams as it could and nothing was published.
type row struct {
	server  string
	streams int
	most    bool
	runs    []run
}

// servers lists, in the order of the tables: name in file names, name in tables, description.
var servers = [][3]string{
	{"sse-server", "sse-server", "this one"},
	{"rails", "Rails", "`ActionController::Live` in Puma: [bench/rails](../bench/rails)"},
	{"naive", "naive", "the usual Go server, with a goroutine and a channel for each client: [bench/naive](../bench/naive)"},
	{"nchan", "Nchan", "a module of nginx, one process without Redis: [bench/nchan](../bench/nchan)"},
	{"better-sse", "better-sse", "a package of npm for Node.js: [bench/better-sse](../bench/better-sse)"},
	{"baseline", "baseline", "one thread and one write(2) for each stream, in C: [baseline.c](../bench/baseline.c)"},
}

func main() {
	log.SetFlags(0)
	log.SetPrefix("bench/table: ")
	if len(os.Args) != 4 {
		log.Fatal("usage: go run ./bench/table RUNS OUT LOAD")
	}
	from, to := os.Args[1], os.Args[2]
	var rows []row
	for _, s := range servers {
		rows = append(rows, read(from, to, s[0], s[1])...)
	}
	stops, _ := os.ReadFile(filepath.Join(from, "stops.tsv")) // there is none if no server stopped
	fmt.Print(tables(rows, string(stops), os.Args[3]))
	write(filepath.Join(to, "results", "plot.tsv"), plot(rows))
	if len(rows) == 0 {
		log.Fatal("there are no results")
	}
	for _, r := range rows {
		if !r.most && (r.median(last) == 0 || r.median(cpu) == 0 && r.streams >= 1000) {
			log.Fatalf("there are no results for %s with %d streams", r.server, r.streams)
		}
		if x, y := r.median(size), rows[0].median(size); !r.most && (x > 1.1*y || y > 1.1*x) {
			log.Printf("%s with %d streams: events of %.0f bytes, not %.0f", r.server, r.streams, x, y)
		}
	}
}

// read returns a server's rows, fewest streams first, and writes its raw results to one file.
func read(from, to, file, server string) []row {
	names, err := filepath.Glob(filepath.Join(from, file+"-*-*.json"))
	if err != nil {
		log.Fatal(err)
	}
	rows := map[int]*row{}
	raw := map[string]json.RawMessage{}
	for _, name := range names {
		b, err := os.ReadFile(name)
		if err != nil {
			log.Fatal(err)
		}
		var x run
		if json.Unmarshal(b, &x) != nil {
			log.Printf("%s has no results: %.200s", filepath.Base(name), b)
			continue
		}
		key := strings.TrimSuffix(strings.TrimPrefix(filepath.Base(name), file+"-"), ".json")
		streams, number, _ := strings.Cut(key, "-")
		n, _ := strconv.Atoi(streams)
		if rows[n] == nil {
			rows[n] = &row{server: server, streams: n, most: number == "most"}
		}
		rows[n].runs = append(rows[n].runs, x)
		raw["streams "+streams+", run "+number] = b
	}
	if len(raw) > 0 {
		b, _ := json.MarshalIndent(raw, "", "  ")
		write(filepath.Join(to, "results", file+".json"), string(b)+"\n")
	}
	var all []row
	for _, r := range rows {
		all = append(all, *r)
	}
	sort.Slice(all, func(i, j int) bool { return all[i].streams < all[j].streams })
	return all
}

// tables has what belongs on the page.
func tables(rows []row, stops, load string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "The server ran on one core and sse-client on another, over loopback. There were no "+
		"periodic snapshots:\nsse-client triggered each event. The values are medians of interleaved runs.\n\n%s\n",
		about(load))
	fmt.Fprint(&b, "| server | streams | memory per stream | CPU per delivery | ratio to baseline | first event "+
		"| spread | last stream reached | ratio to baseline | bytes |\n"+
		"| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n")
	for _, r := range rows {
		if r.most {
			continue
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s | %s | %s | %s (%s) | %s | %.0f |\n", r.server,
			thousands(r.streams), kib(r.median(memory)), us(r.median(cpu)), ratio(rows, r, cpu),
			ms(r.median(first)), ms(r.median(spread)), ms(r.median(last)), ms(r.worst()),
			ratio(rows, r, last), r.median(size))
	}
	fmt.Fprint(&b, `
- First event: from the start of connecting to the first event, median of the streams.
- Spread: from the first to the last stream, for one event.
- Last stream reached: from when an event was due until each stream had it. The slowest event is in parentheses.
- Memory is resident memory. It does not include socket buffers, which belong to the kernel.
- CPU is the CPU time of the whole process, divided by the number of deliveries.
- sse-client opened 100 streams at 200 per second, 1,000 at 400, 10,000 at 2,000, and more at 1,000.

`)
	fmt.Fprint(&b, "| server | | most streams | why not more |\n| --- | --- | ---: | --- |\n")
	for _, s := range servers {
		if n, why := atMost(rows, stops, s[0], s[1]); n > 0 {
			fmt.Fprintf(&b, "| %s | %s | %s | %s |\n", s[1], s[2], thousands(n), why)
		}
	}
	return b.String()
}

// about describes the machine, the commit and the versions.
func about(load string) string {
	var b strings.Builder
	cores, model := runtime.NumCPU(), grep("/proc/cpuinfo", `(?m)^model name\s*: (.*)`)
	memory, _ := strconv.Atoi(grep("/proc/meminfo", `MemTotal:\s*(\d+)`))
	kernel := grep("/proc/sys/kernel/osrelease", `^[\d.]+`)
	// The version is the commit of the build. The folder is already changed by the new results.
	version, _ := exec.Command("./sse-server", "-version").Output()
	commit := strings.TrimPrefix(strings.TrimSpace(string(version)), "sse-server ")
	fmt.Fprintf(&b, "- commit %s; %s; %d cores (%s), %d GiB, Linux %s; load before %s\n",
		commit, time.Now().UTC().Format("2006-01-02"), cores, model, (memory+1<<19)>>20, kernel, load)
	fmt.Fprintf(&b, "- Go %s", strings.TrimPrefix(runtime.Version(), "go"))
	for _, c := range [][]string{
		{"ruby", "-e", `require "puma/const"; require "rails/version"
			print "Ruby #{RUBY_VERSION}, Rails #{Rails.version}, Puma #{Puma::Const::VERSION}"`},
		{"sh", "-ec", `nginx=$(nginx -v 2>&1)
			nchan=$(dpkg-query -W -f '${Version}' libnginx-mod-nchan)
			printf 'nginx %s, Nchan %s' "${nginx#*/}" "${nchan#*:}"`},
		{"node", "-p", `"Node.js " + process.versions.node + ", better-sse " +
			require("./bench/better-sse/package.json").dependencies["better-sse"]`},
		{"cc", "--version"},
	} {
		if out, err := exec.Command(c[0], c[1:]...).Output(); err == nil {
			version, _, _ := strings.Cut(string(out), "\n")
			fmt.Fprintf(&b, ", %s", version)
		}
	}
	return b.String() + "\n"
}

// atMost returns the most streams that a server had open in any run, and why there were no more.
func atMost(rows []row, stops, file, server string) (most int, why string) {
	asked := 0
	for _, r := range rows {
		for _, x := range r.runs {
			if r.server == server && x.Open > most {
				most = x.Open
			}
		}
		if r.server == server && r.streams > asked {
			asked = r.streams
		}
	}
	if most == asked {
		why = "the client opened no more"
	}
	for _, line := range strings.Split(stops, "\n") {
		f := strings.SplitN(line, "\t", 3)
		if len(f) < 3 || f[0] != file {
			continue
		}
		n, _ := strconv.Atoi(f[1])
		if n == most {
			return most, "the client can open no more on this machine"
		}
		// The reason is the last quoted value of a line of sse-server's log.
		if m := regexp.MustCompile(`.*="(.*)"`).FindStringSubmatch(f[2]); m != nil {
			f[2] = m[1]
		}
		return most, fmt.Sprintf("asked for %s streams, it logged: %s", thousands(n), f[2])
	}
	return most, why
}

// plot returns a block for each server: streams, resident MiB, ms to the last stream. The last
// point of each line also has the server's name.
func plot(rows []row) string {
	var b strings.Builder
	for i, r := range rows {
		name, end := r.server, i+1 == len(rows) || rows[i+1].server != r.server
		if i == 0 || rows[i-1].server != name {
			fmt.Fprint(&b, "\n\n")
		}
		streams, latency, names := r.streams, "?", "\t"
		if r.most {
			streams = r.runs[0].Open
		} else {
			latency = fmt.Sprintf("%.3f", r.median(last))
		}
		switch {
		case end && r.most:
			names = name + "\t"
		case end:
			names = name + "\t" + name
		case rows[i+1].most:
			names = "\t" + name
		}
		fmt.Fprintf(&b, "%d\t%.2f\t%s\t%s\n", streams, r.median(resident), latency, names)
	}
	return strings.TrimLeft(b.String(), "\n")
}

func cpu(x run) float64      { return x.CPU }
func first(x run) float64    { return x.First.P50 }
func last(x run) float64     { return x.Last.P50 }
func memory(x run) float64   { return x.Memory }
func resident(x run) float64 { return x.Resident }
func size(x run) float64     { return x.Bytes }
func spread(x run) float64   { return x.Spread.P50 }

func (r row) median(of func(run) float64) float64 {
	var all []float64
	for _, x := range r.runs {
		all = append(all, of(x))
	}
	sort.Float64s(all)
	return (all[(len(all)-1)/2] + all[len(all)/2]) / 2
}

func (r row) worst() (max float64) {
	for _, x := range r.runs {
		if x.Last.Max > max {
			max = x.Last.Max
		}
	}
	return max
}

// ratio compares a row with the baseline with as many streams.
func ratio(rows []row, r row, of func(run) float64) string {
	for _, l := range rows {
		if l.server == "baseline" && l.streams == r.streams && l.median(of) > 0 && r.median(of) > 0 {
			return fmt.Sprintf("%.2f", r.median(of)/l.median(of))
		}
	}
	return "–"
}

func ms(x float64) string {
	switch {
	case x >= 10000:
		return fmt.Sprintf("%.1f s", x/1000)
	case x >= 1000:
		return fmt.Sprintf("%.2f s", x/1000)
	case x >= 10:
		return fmt.Sprintf("%.0f ms", x)
	}
	return fmt.Sprintf("%.1f ms", x)
}

// us formats CPU time. Linux counts it in 1/100 s, so a short run may show 0.
func us(x float64) string {
	if x == 0 {
		return "–"
	}
	return fmt.Sprintf("%.1f µs", x)
}

func kib(x float64) string {
	if x < 0.1 {
		return "< 0.1 KiB"
	}
	return fmt.Sprintf("%.1f KiB", x)
}

func thousands(n int) string {
	if n < 1000 {
		return strconv.Itoa(n)
	}
	return fmt.Sprintf("%d,%03d", n/1000, n%1000)
}

// grep returns the match of pattern, or of its group, in a file.
func grep(file, pattern string) string {
	b, _ := os.ReadFile(file) // "" where there is no such file
	m := regexp.MustCompile(pattern).FindStringSubmatch(string(b))
	if m == nil {
		return ""
	}
	return m[len(m)-1]
}

func write(name, text string) {
	if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
		log.Fatal(err)
	}
}
