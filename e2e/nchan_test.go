package e2e

import (
	"bufio"
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"sse-server/e2e/tools"
)

func TestNchanCarriesEachSnapshotToEachStream(t *testing.T) {
	n := scale(t, 8000)
	c := startNchan(t)
	c.read(t, n)
	c.mu.Lock()
	c.delays = [3][]time.Duration{}
	usage, start, before := c.usage(), time.Now(), c.newest
	c.mu.Unlock()
	for i := 0; i < 40; i++ {
		c.publish(t)
		c.eventually(t, "each stream has the snapshot", c.allHave)
		time.Sleep(50 * time.Millisecond)
	}
	c.report(t, usage, time.Since(start), c.newest-before)
	if n := c.missed(); n > 0 {
		t.Errorf("%d snapshots did not reach a stream", n)
	}

	late := c.follow(c.nginx[1].addr)
	asked := time.Now()
	c.eventually(t, "a late joiner has the newest snapshot", func() bool {
		return late.last == c.newest
	})
	t.Logf("a late joiner had it after %v", time.Since(asked).Round(100*time.Microsecond))
	if late.first != c.newest {
		t.Errorf("a late joiner began with snapshot %d, the newest is %d", late.first, c.newest)
	}
	c.eventually(t, "each stream has a heartbeat", func() bool {
		return !slices.ContainsFunc(c.streams, func(s *carried) bool { return s.heartbeats == 0 })
	})
}

func TestNchanStreamsGoOnAfterRedisWasKilled(t *testing.T) {
	c := startNchan(t)
	c.read(t, 30)
	c.redis.kill()
	for i := 0; i < 15; i++ { // it is away for three seconds
		c.publish(t)
		time.Sleep(200 * time.Millisecond)
	}
	c.redis.start(t)
	back, first := time.Now(), time.Duration(0)
	for whole := 0; whole < 5; { // each worker of nginx comes back on its own
		c.publish(t)
		time.Sleep(200 * time.Millisecond)
		c.mu.Lock()
		whole++
		if !c.allHave() {
			whole = 0
		} else if first == 0 {
			first = time.Since(back)
		}
		c.mu.Unlock()
		if time.Since(back) > 10*time.Second {
			t.Fatal("snapshots are still missed 10 s after Redis was back")
		}
	}
	c.mu.Lock()
	missed := c.missed()
	c.mu.Unlock()
	t.Logf("the first snapshot came to all %v after Redis was back; each stream missed %d of %d",
		first.Round(time.Millisecond), missed/len(c.streams), c.newest)
	for i := 0; i < 10; i++ {
		c.publish(t)
		c.eventually(t, "each stream has the snapshot after that", c.allHave)
	}
	if n := c.missed(); n > missed {
		t.Errorf("%d snapshots were missed after that", n-missed)
	}
	if n := c.reopened(); n > 0 {
		t.Errorf("%d streams were closed", n)
	}
	late := c.follow(c.nginx[1].addr)
	c.eventually(t, "a late joiner has the newest snapshot", func() bool {
		return late.first == c.newest
	})
}

func TestNchanClientsOfAKilledNginxComeBack(t *testing.T) {
	c := startNchan(t)
	c.read(t, 60)
	c.nginx[1].kill() // nothing is posted to this one
	for i := 0; i < 20; i++ {
		c.publish(t)
		c.eventually(t, "those of the other have the snapshot", func() bool {
			lacks := func(s *carried) bool { return s.opened == 1 && s.last < c.newest }
			return !slices.ContainsFunc(c.streams, lacks)
		})
	}
	c.eventually(t, "each stream has the newest", c.allHave)
	if n := c.reopened(); n != 30 {
		t.Errorf("%d streams were opened again, want 30", n)
	}
	lost := 0
	for _, s := range c.streams {
		if s.opened == 1 && s.missed > 0 {
			t.Errorf("a stream of the other missed %d snapshots", s.missed)
		}
		lost = max(lost, s.missed)
	}
	t.Logf("who had to come back missed %d snapshots at most", lost)
	c.nginx[1].start(t)
	c.mustServe(t, c.nginx[1])
}

func TestNchanIsPublishedToByThisMachineOnly(t *testing.T) {
	t.Parallel()
	c := startNchan(t)
	addr := c.nginx[0].addr
	post := func(addr string, header ...string) int {
		t.Helper()
		code, _, _ := (&server{addr}).send(t, "POST", "/pub/dashboard", `{"n":0}`, header...)
		return code
	}
	if code := post(addr); code != 201 && code != 202 {
		t.Errorf("posting from this machine returns %d", code)
	}
	if code := post(addr, "X-Forwarded-For", "192.0.2.1"); code != 403 {
		t.Errorf("posting through a proxy returns %d", code)
	}
	if code := post(addr, "Origin", "http://evil.example"); code != 403 {
		t.Errorf("posting from another page returns %d", code)
	}
	_, port, _ := net.SplitHostPort(addr)
	addrs, _ := net.InterfaceAddrs()
	for _, a := range addrs {
		ip, ok := a.(*net.IPNet)
		if !ok || ip.IP.To4() == nil || ip.IP.IsLoopback() {
			continue
		}
		if code := post(net.JoinHostPort(ip.IP.String(), port)); code != 403 {
			t.Errorf("posting from %v returns %d", ip.IP, code)
		}
	}
}

func TestNchanServesThePageAndNoStrangePages(t *testing.T) {
	t.Parallel()
	c := startNchan(t)
	s := &server{c.nginx[0].addr}
	for _, path := range []string{"/dashboard/activities", "/dashboard/snapshot"} {
		code, _, _ := s.send(t, "POST", path, `{"message":"x"}`, "Content-Type", jsonType)
		if code < 400 {
			t.Errorf("posting to %s of the upstream returns %d", path, code)
		}
	}
	code, _, _ := s.request(t, "GET", "/dashboard/stream",
		"Accept", "text/event-stream", "Origin", "http://evil.example")
	if code != 403 {
		t.Errorf("to a page of another origin, the stream returns %d", code)
	}
	_, _, page := c.upstream.request(t, "GET", "/")
	if code, _, body := s.request(t, "GET", "/"); code != 200 || body != page {
		t.Errorf("the page returns %d", code)
	}
}

func TestNchanScriptStartsAllAndLeavesNothing(t *testing.T) {
	needNchan(t)
	checkScript(t, "deploy/nchan.sh")
}

// A nchan is an sse-server whose stream two nginx carry, and the streams that are read from them.
type nchan struct {
	upstream *process
	redis    *daemon
	nginx    [2]*daemon // the first is posted to

	mu      sync.Mutex // guards following
	newest  int        // snapshot
	sent    []time.Time
	direct  []string // what the upstream's own stream had, by snapshot
	streams []*carried
	ended   bool
	delays  [3][]time.Duration // of the upstream's own stream, and of each nginx
	wrong   string
}

// A carried stream comes back by itself; its fields are guarded by nchan's mutex.
type carried struct {
	first, last, missed, heartbeats, opened int
}

// startNchan starts all of it with the files of deploy/nchan, but for ports, paths and heartbeat.
func startNchan(t *testing.T) *nchan {
	needNchan(t)
	dir := proxyDir(t)
	c := &nchan{
		upstream: startServer(t, "-interval", "0"),
		sent:     make([]time.Time, 1), direct: make([]string, 1),
	}
	redis := tools.FreeAddr(t)
	_, port, _ := net.SplitHostPort(redis)
	conf := strings.NewReplacer("/var/lib/redis", dir, "port 6379", "port "+port)
	write(t, dir+"/redis.conf", conf.Replace(read(t, "deploy/nchan/redis.conf")))
	c.redis = &daemon{addr: redis, args: []string{"redis-server", dir + "/redis.conf"}}
	c.redis.start(t)
	for i := range c.nginx {
		c.nginx[i] = startNginx(t, fmt.Sprintf("%s/%d", dir, i), c.upstream.addr, redis)
	}
	url := "http://" + c.nginx[0].addr + "/pub/dashboard"
	from := "http://" + c.upstream.addr + "/dashboard/stream"
	forwarder := []string{clientProgram, "-url", from, "-forward", url, "-forward-method", "POST"}
	(&daemon{args: forwarder}).start(t)
	t.Cleanup(func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.ended = true
		if c.wrong != "" {
			t.Error(c.wrong)
		}
	})
	c.publish(t)
	c.mustServe(t, c.nginx[0])
	c.mustServe(t, c.nginx[1])
	go c.readStream(c.upstream.addr, nil, 0)
	c.eventually(t, "the upstream's own stream has a snapshot", func() bool {
		return c.direct[c.newest] != ""
	})
	return c
}

// startNginx starts one of the two nginx in a folder of its own.
func startNginx(t *testing.T, dir, upstream, redis string) *daemon {
	t.Helper()
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	addr := tools.FreeAddr(t)
	_, port, _ := net.SplitHostPort(addr)
	http := "http {"
	for _, kind := range []string{"client_body", "proxy", "fastcgi", "uwsgi", "scgi"} {
		http += fmt.Sprintf(" %s_temp_path %s/%s;", kind, dir, kind)
	}
	write(t, dir+"/conf", strings.NewReplacer(
		"/run/nginx.pid", dir+"/pid", "/var/log/nginx/error.log", "stderr",
		"127.0.0.1:6379", redis, "127.0.0.1:3082", tools.FreeAddr(t), "127.0.0.1:3001", upstream,
		"listen 80;", "listen "+port+";", "ping_interval 30", "ping_interval 1",
		"http {", http,
	).Replace(read(t, "deploy/nchan/nginx.conf")))
	args := []string{"nginx", "-p", dir, "-c", dir + "/conf", "-e", "stderr", "-g", "daemon off;"}
	d := &daemon{addr: addr, args: args}
	d.start(t)
	return d
}

func needNchan(t *testing.T) {
	t.Helper()
	need(t, "redis-server")
	needNchanModule(t)
}

func needNchanModule(t *testing.T) {
	t.Helper()
	need(t, "nginx")
	if _, err := os.Stat("/usr/lib/nginx/modules/ngx_nchan_module.so"); err != nil {
		t.Skip("nginx's Nchan module is not installed")
	}
}

// mustServe waits until a new stream of an nginx begins with the newest snapshot. Nchan connects to
// Redis by itself, and loses what is posted before that.
func (c *nchan) mustServe(t *testing.T, nginx *daemon) {
	t.Helper()
	eventually(t, "a new stream of Nchan has the newest snapshot", func() bool {
		c.mu.Lock()
		want := fmt.Sprintf(`{"n":%d,`, c.newest)
		c.mu.Unlock()
		if strings.HasPrefix(streamData(t, nginx.addr), want) {
			return true
		}
		c.publish(t)
		return false
	})
}

// publish makes a snapshot like no other, of the usual size.
func (c *nchan) publish(t *testing.T) {
	t.Helper()
	c.mu.Lock()
	c.newest++
	data := fmt.Sprintf(`{"n":%d,"system_status":{"status":"online"},"pad":"%01200d"}`,
		c.newest, c.newest)
	c.sent, c.direct = append(c.sent, time.Now()), append(c.direct, "")
	c.mu.Unlock()
	c.upstream.put(t, data)
}

// read opens n streams, half of them at each nginx, and waits until each has a snapshot made after
// that.
func (c *nchan) read(t *testing.T, n int) {
	t.Helper()
	for i := 0; i < n; i++ {
		c.follow(c.nginx[i%2].addr)
		time.Sleep(time.Millisecond)
	}
	c.publish(t)
	c.eventually(t, "each stream has the snapshot", c.allHave)
}

// follow reads a stream from then on, from the other nginx where this one fails.
func (c *nchan) follow(addr string) *carried {
	s := &carried{}
	c.mu.Lock()
	c.streams = append(c.streams, s)
	c.mu.Unlock()
	at := 0
	if addr == c.nginx[1].addr {
		at = 1
	}
	go func() {
		for ; c.readStream(c.nginx[at].addr, s, at+1); at = 1 - at {
			time.Sleep(100 * time.Millisecond)
		}
	}()
	return s
}

// readStream notes what comes on a stream of nginx, or of the upstream where s is nil, until it
// ends.
func (c *nchan) readStream(addr string, s *carried, at int) (again bool) {
	conn := open(addr, eventSourceRequest)
	if conn == nil {
		c.mu.Lock()
		defer c.mu.Unlock()
		return !c.ended
	}
	defer conn.Close()
	conn.SetReadDeadline(time.Time{})
	opened := false
	for lines := bufio.NewScanner(conn); lines.Scan(); {
		data, ok := strings.CutPrefix(lines.Text(), "data: ")
		if !opened && !strings.HasPrefix(lines.Text(), "HTTP/1.1 200") {
			break
		}
		c.mu.Lock()
		switch {
		case ok:
			c.note(s, data, at)
		case !opened:
			opened = true
			if s != nil {
				s.opened++
			}
		case s == nil:
		case strings.HasPrefix(lines.Text(), ":") && strings.Contains(lines.Text(), "heartbeat"):
			s.heartbeats++
		}
		ended := c.ended
		c.mu.Unlock()
		if ended {
			return false
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return !c.ended
}

// note compares the data of a stream with what the upstream's own had.
func (c *nchan) note(s *carried, data string, at int) {
	var n int
	fmt.Sscanf(data, `{"n":%d,`, &n)
	if strings.Contains(data, `"stale"`) { // from the forwarder, as nothing came for 10 s
		return
	}
	if n < 1 || n > c.newest {
		c.wrong = fmt.Sprintf("a stream has %.100q", data)
		return
	}
	c.delays[at] = append(c.delays[at], time.Since(c.sent[n]))
	switch {
	case s == nil:
		c.direct[n] = data
		return
	case c.direct[n] != "" && c.direct[n] != data:
		c.wrong = fmt.Sprintf("snapshot %d is %.100q, the upstream's own stream had %.100q",
			n, data, c.direct[n])
	case n < s.last || n == s.last && s.opened == 1:
		c.wrong = fmt.Sprintf("snapshot %d came after %d", n, s.last)
	case s.first == 0:
		s.first = n
	default:
		s.missed += max(0, n-s.last-1)
	}
	s.last = n
}

// The following need the lock, as what is given to eventually has it.

func (c *nchan) allHave() bool {
	return !slices.ContainsFunc(c.streams, func(s *carried) bool { return s.last < c.newest })
}

func (c *nchan) missed() (n int) {
	for _, s := range c.streams {
		n += s.missed
	}
	return n
}

func (c *nchan) reopened() (n int) {
	for _, s := range c.streams {
		n += min(1, s.opened-1)
	}
	return n
}

func (c *nchan) eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	eventually(t, what, func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		return ok()
	})
}

// usage is that of both nginx and of Redis.
func (c *nchan) usage() (all [3]use) {
	for i, d := range []*daemon{c.nginx[0], c.nginx[1], c.redis} {
		all[i], _ = groupUsage(d.cmd.Process.Pid)
	}
	return all
}

func (c *nchan) report(t *testing.T, before [3]use, took time.Duration, snapshots int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i, name := range []string{"the upstream's own stream", "the first nginx", "the second nginx"} {
		d := c.delays[i]
		slices.Sort(d)
		if len(d) > 0 {
			t.Logf("%s: %d deliveries, p50 %v, p99 %v after the snapshot was put", name, len(d),
				d[len(d)/2].Round(10*time.Microsecond), d[len(d)*99/100].Round(10*time.Microsecond))
		}
	}
	for i, d := range []*daemon{c.nginx[0], c.nginx[1], c.redis} {
		after, n := groupUsage(d.cmd.Process.Pid)
		t.Logf("%s: %d processes, %s with %d streams in all and %.1f snapshots a second", d.args[0], n,
			after.since(before[i]), len(c.streams), float64(snapshots)/took.Seconds())
	}
}

// A daemon is a program with its children, in a process group of its own.
type daemon struct {
	addr string
	args []string
	cmd  *exec.Cmd
	log  bytes.Buffer
}

func (d *daemon) start(t *testing.T) {
	t.Helper()
	d.cmd = exec.Command(d.args[0], d.args[1:]...)
	d.cmd.Stdout, d.cmd.Stderr = &d.log, &d.log
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := d.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	cmd := d.cmd
	t.Cleanup(func() {
		if d.cmd == cmd {
			d.kill()
			if crash := regexp.MustCompile(`.*exited on signal.*`).FindString(d.log.String()); crash != "" {
				t.Error(crash)
			}
			if t.Failed() {
				t.Logf("%s says\n%s", d.args[0], d.log.String())
			}
		}
	})
	if d.addr != "" {
		eventually(t, d.args[0]+" listens", func() bool { return tools.Listens(d.addr) })
	}
}

func (d *daemon) kill() {
	syscall.Kill(-d.cmd.Process.Pid, syscall.SIGKILL)
	d.cmd.Wait()
}

// streamData is the data of a stream's first event, or empty where it does not come in 2 s.
func streamData(t *testing.T, addr string) string {
	conn := open(addr, eventSourceRequest)
	if conn == nil {
		return ""
	}
	defer conn.Close()
	conn.SetReadDeadline(time.Now().Add(2 * time.Second))
	for lines := bufio.NewScanner(conn); lines.Scan(); {
		if data, ok := strings.CutPrefix(lines.Text(), "data: "); ok {
			return data
		} else if strings.HasPrefix(lines.Text(), "HTTP/1.1 503") {
			break // Nchan has no Redis yet
		}
	}
	return ""
}
