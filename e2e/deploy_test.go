package e2e

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"sse-server/e2e/proxies"
	"sse-server/e2e/tools"
)

// Each proxy runs with the file of deploy/, but for port, certificate and the server's port.
func TestDeployProxyDeliversEachEventAtOnce(t *testing.T) {
	t.Parallel()
	for _, x := range proxies.All {
		x := x
		if x.File == "" {
			continue
		}
		t.Run(x.Name, func(t *testing.T) {
			t.Parallel()
			needProxy(t, x)
			s := startServer(t, "-interval", "0", "-heartbeat", "400ms",
				"-origins", "https://dashboard.example.com")
			s.waitForSnapshot(t)
			place := proxyPlace(t, s.addr)
			startProxy(t, x, place)
			checkProxy(t, &s.server, place.Addr)
		})
	}
}

// The unit runs under a systemd of its own: it is allowed all that the server needs, and no more.
func TestDeployUnitRestartsTheServer(t *testing.T) {
	addr := tools.FreeAddr(t)
	s := &server{addr: addr}
	startSystemd(t, "sse-server.service", "SSE_ADDR="+addr)
	eventually(t, "the server listens", func() bool { return tools.Listens(addr) })
	first := newestProcess("/usr/local/bin/sse-server")
	if e := s.stream(t).event(t); strings.Contains(e.data, `cpu":"N/A"`) {
		t.Errorf("the CPU cannot be measured: %s", e.data)
	}
	status := read(t, "/proc/"+first+"/status")
	for _, want := range []string{
		`Uid:\t[1-9]`, `NoNewPrivs:\t1`, `Seccomp:\t2`, `CapEff:\t0+\n`, `CapBnd:\t0+\n`,
	} {
		if !regexp.MustCompile(want).MatchString(status) {
			t.Errorf("the process has no %s:\n%s", want, status)
		}
	}
	if err := exec.Command("kill", "-9", first).Run(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the server is there again", func() bool {
		return newestProcess("/usr/local/bin/sse-server") != first && tools.Listens(addr)
	})
}

func TestDeployUnitRestartsTheForwarder(t *testing.T) {
	upstream, edge := startServer(t), startServer(t)
	startSystemd(t, "sse-forward.service",
		"SSE_FORWARD_FROM=http://"+upstream.addr+"/dashboard/stream",
		"SSE_FORWARD_TO=http://"+edge.addr+"/dashboard/snapshot")
	v := follow(t, edge.addr)
	post := func(message string) {
		upstream.post(t, message)
		v.await(t, message)
	}
	post("before")
	first := newestProcess("/usr/local/bin/sse-client")
	if err := exec.Command("kill", "-9", first).Run(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the forwarder is there again", func() bool {
		now := newestProcess("/usr/local/bin/sse-client")
		return now != "" && now != first
	})
	post("after")
}

func newestProcess(program string) string {
	out, _ := exec.Command("pgrep", "-n", "-f", "^"+program).Output()
	return strings.TrimSpace(string(out))
}

// startSystemd runs a unit of deploy/ with settings under a systemd in namespaces of its own until
// the test ends.
func startSystemd(t *testing.T, unit string, settings ...string) {
	t.Helper()
	const systemd = "/lib/systemd/systemd"
	needRoot(t)
	need(t, systemd, "unshare", "pgrep")
	dir := t.TempDir()
	os.Mkdir(dir+"/"+unit+".d", 0o755)
	write(t, dir+"/"+unit+".d/test.conf", "[Unit]\nDefaultDependencies=no\n"+
		"[Service]\nEnvironmentFile=\nEnvironment="+strings.Join(settings, " ")+"\n")
	write(t, dir+"/"+unit, read(t, "deploy/"+unit))
	write(t, dir+"/test.target", "[Unit]\nWants="+unit+"\n")
	cmd := exec.Command("unshare", "--fork", "--kill-child",
		"--pid", "--mount", "--uts", "--ipc", "--cgroup", "sh", "-c",
		`mount --make-rprivate / && mount -t tmpfs tmpfs /usr/local/bin &&
		cp "$0" /usr/local/bin/sse-server && cp "$1" /usr/local/bin/sse-client &&
		mount -t tmpfs tmpfs /run && mount -t proc proc /proc &&
		exec `+systemd+" --system --unit=test.target --log-target=console --show-status=0",
		serverProgram, clientProgram)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "container=lxc", "SYSTEMD_UNIT_PATH="+dir+":")
	var log strings.Builder
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		t.Skip("unshare(1) does not run here: ", err)
	}
	ended := make(chan struct{})
	go func() { cmd.Wait(); close(ended) }()
	t.Cleanup(func() {
		cmd.Process.Kill()
		<-ended
		if t.Failed() {
			t.Logf("systemd says\n%s", log.String())
		}
	})
	select {
	case <-ended:
		t.Skipf("systemd does not start here: %q", log.String())
	case <-time.After(2 * time.Second):
	}
}

// The image holds all that is needed: the server runs in a directory with nothing else, as the
// image's user.
func TestDeployImageHoldsAllThatIsNeeded(t *testing.T) {
	needRoot(t)
	image := buildImage(t)
	s := image.start(t, nil)
	if e := s.stream(t).event(t); !strings.Contains(e.data, `"status":"online"`) {
		t.Errorf("the first event is %s", e.data)
	}
	if d := s.debug(t); d.Version != "image" {
		t.Errorf("the version is %q", d.Version)
	}
}

func TestDeployImageHonoursTZ(t *testing.T) {
	needRoot(t)
	image := buildImage(t)
	s := image.start(t, []string{"TZ=Asia/Tokyo"})
	e := s.stream(t).event(t)
	tokyo := time.Now().In(time.FixedZone("JST", 9*60*60))
	for age := time.Duration(0); age < 20*time.Second; age += time.Second {
		stamp := tokyo.Add(-age).Format(time.TimeOnly)
		if strings.Contains(e.data, `"timestamp":"`+stamp+`"`) {
			return
		}
	}
	t.Errorf("in Tokyo it is %s, the first event is %s", tokyo.Format(time.TimeOnly), e.data)
}

// A probe by https works with a certificate that the image's bundle vouches for, and only so.
func TestDeployImageProbesHTTPS(t *testing.T) {
	needRoot(t)
	image := buildImage(t)
	healthy := http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})
	application := httptest.NewUnstartedServer(healthy)
	application.Config.ErrorLog = log.New(io.Discard, "", 0) // of the second server's probes
	application.StartTLS()
	defer application.Close()

	authority := pem.Block{Type: "CERTIFICATE", Bytes: application.Certificate().Raw}
	bundle := image.dir + image.bundle
	if err := os.MkdirAll(filepath.Dir(bundle), 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, bundle, string(pem.EncodeToMemory(&authority)))
	s := image.start(t, nil, "-probe", application.URL)
	stream := s.stream(t)
	measured := regexp.MustCompile(`"response_time":"\d+ms"`)
	eventually(t, "the probe is measured", func() bool {
		return measured.MatchString(stream.event(t).data)
	})
	if said := s.log(); strings.Contains(said, "source=probe") {
		t.Errorf("the probe failed: %s", said)
	}

	if err := os.Remove(bundle); err != nil {
		t.Fatal(err)
	}
	s = image.start(t, nil, "-probe", application.URL)
	s.mustLog(t, `source=probe.*certificate signed by unknown authority`)
}

// An image is the final directory of the Dockerfile, without what its base images would bring.
type image struct {
	dir     string
	program string // the entry point
	bundle  string // where the certificates belong
	user    uint32
}

// buildImage does what the Dockerfile says, as Docker may not be there.
func buildImage(t *testing.T) image {
	t.Helper()
	text := read(t, "deploy/Dockerfile")
	line := func(pattern string) string {
		t.Helper()
		m := regexp.MustCompile(`(?m)^` + pattern + `$`).FindStringSubmatch(text)
		if m == nil {
			t.Fatalf("the Dockerfile has no line %s", pattern)
		}
		return m[1]
	}
	source, dir := t.TempDir(), proxyDir(t)
	for _, file := range strings.Fields(line(`COPY ([^-].*) \./`)) {
		if out, err := exec.Command("cp", file, source).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	script := strings.Replace(line(`RUN (.*)`), "-o /", "-o "+dir+"/", 1)
	build := exec.Command("sh", "-c", script)
	build.Dir, build.Env = source, append(os.Environ(), "VERSION=image")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	user, _ := strconv.Atoi(line(`USER (\d+):\d+`))
	return image{
		dir:     dir,
		program: line(`ENTRYPOINT \["(.*)"\]`),
		bundle:  line(`COPY --from=build (/etc/ssl/certs/ca-certificates\.crt) /etc/ssl/certs/`),
		user:    uint32(user),
	}
}

// start starts the image's server with nothing in its environment but env.
func (i image) start(t *testing.T, env []string, args ...string) *process {
	t.Helper()
	cmd := exec.Command(i.program, append([]string{"-addr", "127.0.0.1:0"}, args...)...)
	cmd.Env = append([]string{}, env...) // nil would be the test's own
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Chroot:     i.dir,
		Credential: &syscall.Credential{Uid: i.user, Gid: i.user},
	}
	return startCommand(t, cmd)
}

// proxyDir is a directory that a proxy's own user may enter.
func proxyDir(t *testing.T) string {
	dir := t.TempDir()
	os.Chmod(filepath.Dir(dir), 0o755)
	return dir
}

// proxyPlace is where a proxy before the server at addr may run.
func proxyPlace(t *testing.T, server string) proxies.Place {
	t.Helper()
	p := proxies.Place{
		Dir: proxyDir(t), Addr: tools.FreeAddr(t), Inner: tools.FreeAddr(t), Server: server,
		Host: "dashboard.example.com", Deploy: "deploy",
	}
	if err := proxies.WriteCertificate(p.Dir, p.Host); err != nil {
		t.Fatal(err)
	}
	return p
}

func needProxy(t *testing.T, x proxies.Proxy) {
	t.Helper()
	missing := x.Missing()
	if missing != "" {
		t.Skipf("%s is not installed", missing)
	}
}

// startProxy runs a proxy until the test ends. What it says is shown if the test fails.
func startProxy(t *testing.T, x proxies.Proxy, p proxies.Place) (last *exec.Cmd) {
	t.Helper()
	commands, err := x.Commands(p)
	if err != nil {
		t.Fatal(err)
	}
	for _, cmd := range commands {
		cmd := cmd
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		startLogged(t, cmd, cmd.Args[0])
		t.Cleanup(func() { syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }) // with its workers
		last = cmd
	}
	eventually(t, x.Name+" listens", func() bool {
		return tools.Listens(p.Addr) && (len(commands) == 1 || tools.Listens(p.Inner))
	})
	return last
}

// A proxied is the server as a browser sees it: with HTTP/2 and TLS through a proxy at addr.
type proxied struct {
	addr   string
	client http.Client
}

// ask sends a request; the test's end closes the answer's body. header is names and values.
func (p *proxied) ask(t testing.TB, ctx context.Context, method, path string,
	header ...string) *http.Response {
	t.Helper()
	body := strings.NewReader(`{"message":"x"}`)
	r, err := http.NewRequestWithContext(ctx, method, "https://"+p.addr+path, body)
	if err != nil {
		t.Fatal(err)
	}
	r.Host = "dashboard.example.com"
	for i := 0; i < len(header); i += 2 {
		if header[i] == "Host" {
			r.Host = header[i+1]
		} else {
			r.Header.Set(header[i], header[i+1])
		}
	}
	resp, err := p.client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { resp.Body.Close() })
	return resp
}

func checkProxy(t *testing.T, s *server, addr string) {
	transport := &http.Transport{
		ForceAttemptHTTP2: true, DisableCompression: true,
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true, ServerName: "dashboard.example.com"},
	}
	defer transport.CloseIdleConnections()
	p := &proxied{addr: addr, client: http.Client{Transport: transport}}
	for _, prefix := range []string{"", "/machines/a"} {
		checkStreamThrough(t, s, p, prefix)
		checkOthersThrough(t, p, prefix)
		eventually(t, "all streams are gone", func() bool { return s.debug(t).Open == 0 })
	}
}

// checkStreamThrough checks that each event comes at once, and that the server hears of the
// client's disconnect.
func checkStreamThrough(t *testing.T, s *server, p *proxied, prefix string) {
	t.Helper()
	ctx, leave := context.WithCancel(context.Background())
	defer leave()
	direct := s.stream(t)
	direct.event(t)
	resp := p.ask(t, ctx, "GET", prefix+"/dashboard/stream", "Sec-Fetch-Site", "same-origin")
	if resp.StatusCode != 200 || resp.ProtoMajor != 2 ||
		resp.Header.Get("Content-Type") != "text/event-stream" {
		t.Fatalf("the stream's answer is %s %s, %v", resp.Proto, resp.Status, resp.Header)
	}
	events := bufio.NewReader(resp.Body)
	until := func(start string) string {
		t.Helper()
		for {
			line, err := events.ReadString('\n')
			if err != nil {
				t.Fatal(err)
			}
			if strings.HasPrefix(line, start) {
				return line
			}
		}
	}

	until("data: ")
	worst := time.Duration(0)
	for i := 0; i < 10; i++ {
		id := s.trigger(t).ID
		direct.event(t)
		start := time.Now()
		if line := until("id: "); line != fmt.Sprintf("id: %d\n", id) {
			t.Fatalf("%q came through, want %d", line, id)
		}
		worst = max(worst, time.Since(start))
	}
	t.Logf("%s/: each event within %v of the direct stream", prefix, worst)
	if worst > time.Second {
		t.Errorf("an event was delayed by %v", worst)
	}
	until(": heartbeat")
	direct.Close()
	leave()
	eventually(t, "the client's disconnect is passed on", func() bool { return s.debug(t).Open == 0 })
}

// checkOthersThrough checks the page, the compressed stream, and that nothing from outside counts
// as local.
func checkOthersThrough(t *testing.T, p *proxied, prefix string) {
	t.Helper()
	background := context.Background()
	resp := p.ask(t, background, "GET", prefix+"/", "Sec-Fetch-Site", "none")
	if resp.StatusCode != 200 || !strings.HasPrefix(resp.Header.Get("Content-Type"), "text/html") ||
		resp.Header.Get("Content-Security-Policy") == "" {
		t.Errorf("the page's answer is %s, %v", resp.Status, resp.Header)
	}

	ctx, leave := context.WithCancel(background)
	defer leave()
	resp = p.ask(t, ctx, "GET", prefix+"/dashboard/stream",
		"Accept-Encoding", "gzip", "User-Agent", "Mozilla/5.0 (e2e)")
	if resp.Header.Get("Content-Encoding") != "gzip" {
		t.Errorf("the compressed stream's answer is %s, %v", resp.Status, resp.Header)
	}

	for _, header := range [][]string{
		nil,
		{"Host", "localhost"},
		{"Host", "localhost", "X-Forwarded-For", ""},
		{"Host", "127.0.0.1", "Forwarded", "", "X-Forwarded-For", "127.0.0.1"},
	} {
		resp := p.ask(t, background, "POST", prefix+"/dashboard/activities",
			append(header, "Content-Type", jsonType)...)
		if resp.StatusCode == 201 || header == nil && resp.StatusCode != 403 {
			t.Errorf("posting through the proxy with %q returns %s", header, resp.Status)
		}
	}
}
