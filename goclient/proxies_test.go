package main

import (
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sse-server/e2e/tools"
)

// A realProxy starts a proxy at addr before the server at upstream (both host:port).
type realProxy func(t *testing.T, program, addr, upstream, extra string)

var realProxies = map[string]realProxy{
	"haproxy":  startHAProxy,
	"caddy":    startCaddy,
	"varnishd": startVarnish,
	"lighttpd": startLighttpd,
	"apache2":  startApache,
	"nghttpx":  startNghttpx,
}

// The doctor recognises each real proxy and names the setting that is wrong there.
func TestDoctorNamesCauseInRealProxies(t *testing.T) {
	events := source{}.serve(t)
	rare := source{every: time.Second / 2}.serve(t)
	silent := source{every: time.Hour}.serve(t)
	other := serve(t, func(_ int, w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Server", "nginx/1.2.3")
		begin(w, "retry: 50\n\ndata: a\n\n")
		<-r.Context().Done()
	})

	for _, tt := range []struct {
		program, name, upstream, extra string
		want                           string
	}{
		{"haproxy", "healthy", events, "option http-no-delay", none},
		{"haproxy", "delay", rare, "", "each event comes about .. later than on the direct stream; the " +
			"proxy does it (HAProxy) => HAProxy: option http-no-delay"},
		{"haproxy", "silence, and Server is the upstream's", other, "timeout server 1s",
			"a limit on silence; the proxy does it (HAProxy): .. => HAProxy: timeout server 1h"},
		{"caddy", "healthy", events, "", none},
		{"caddy", "buffer_responses", events, "reverse_proxy|buffer_responses",
			"no headers came in .. the proxy does it (Caddy) => Caddy: .. no buffer_responses"},
		{"caddy", "limit on the response", events, "timeouts|write 1s",
			"a limit on the whole response; the proxy does it (Caddy) => Caddy: no write in the timeouts"},
		{"varnishd", "healthy", events, "send_timeout=600", none},
		{"varnishd", "limit on the response", events, "send_timeout=1",
			"a limit on the whole response; the proxy does it (Varnish) => Varnish: send_timeout 1d"},
		{"lighttpd", "healthy", events, "server.stream-response-body = 2", none},
		{"lighttpd", "default", events, "", "no headers came in .. the proxy does it (lighttpd) => " +
			"lighttpd: server.stream-response-body = 2"},
		{"apache2", "healthy", events, "", none},
		{"apache2", "silence", silent, "timeout=1",
			"a limit on silence; the proxy does it (Apache httpd) => Apache httpd: timeout=3600"},
		{"nghttpx", "silence", silent, "--backend-read-timeout=1s",
			"a limit on silence; the proxy does it (nghttpx) => nghttpx: --backend-read-timeout=1h"},
	} {
		tt := tt
		t.Run(tt.program+" "+tt.name, func(t *testing.T) {
			t.Parallel()
			program, err := exec.LookPath(tt.program)
			if err != nil {
				t.Skip(tt.program + " is not installed")
			}
			addr := tools.FreeAddr(t)
			upstream := mustURL(t, tt.upstream).Host
			realProxies[tt.program](t, program, addr, upstream, tt.extra)

			var want []string
			if tt.want != none {
				want = []string{tt.want}
			}
			expectFindings(t, want, "-url", "http://"+addr+"/stream", "-direct", tt.upstream)
		})
	}
}

func startHAProxy(t *testing.T, program, addr, upstream, extra string) {
	config := fmt.Sprintf(`
defaults
	mode http
	timeout connect 5s
	timeout client 90s
	timeout server 90s
frontend f
	bind %s
	default_backend b
backend b
	%s
	server s %s
`, addr, extra, upstream)
	startProcess(t, addr, exec.Command(program, "-db", "-f", writeFile(t, config)))
}

// startCaddy takes as extra the block and the setting in it.
func startCaddy(t *testing.T, program, addr, upstream, extra string) {
	block, setting, _ := strings.Cut(extra, "|")
	inProxy, inTimeouts := "", ""
	switch block {
	case "reverse_proxy":
		inProxy = setting
	case "timeouts":
		inTimeouts = "servers {\n timeouts {\n " + setting + "\n }\n }"
	}
	config := fmt.Sprintf("{\n admin off\n auto_https off\n %s\n}\n"+
		"http://%s {\n reverse_proxy %s {\n %s\n }\n}\n", inTimeouts, addr, upstream, inProxy)
	cmd := exec.Command(program, "run", "--adapter", "caddyfile", "--config", writeFile(t, config))
	cmd.Env = append(os.Environ(), "HOME="+t.TempDir())
	startProcess(t, addr, cmd)
}

func startVarnish(t *testing.T, program, addr, upstream, extra string) {
	startProcess(t, addr, exec.Command(program, "-F", "-n", t.TempDir(), "-a", addr, "-b", upstream,
		"-s", "malloc,16m", "-p", extra))
}

func startLighttpd(t *testing.T, program, addr, upstream, extra string) {
	host, port, _ := strings.Cut(addr, ":")
	upHost, upPort, _ := strings.Cut(upstream, ":")
	config := fmt.Sprintf("server.modules = (\"mod_proxy\")\nserver.document-root = %q\n"+
		"server.bind = %q\nserver.port = %s\n"+
		"proxy.server = (\"\" => ((\"host\" => %q, \"port\" => %s)))\n%s\n",
		t.TempDir(), host, port, upHost, upPort, extra)
	startProcess(t, addr, exec.Command(program, "-D", "-f", writeFile(t, config)))
}

func startApache(t *testing.T, program, addr, upstream, extra string) {
	dir, modules := t.TempDir(), "/usr/lib/apache2/modules"
	config := fmt.Sprintf("ServerName test\nListen %s\nPidFile %s/pid\nErrorLog %s/error\n"+
		"DefaultRuntimeDir %s\n", addr, dir, dir, dir)
	for _, m := range []string{"mpm_event", "authz_core", "proxy", "proxy_http"} {
		config += fmt.Sprintf("LoadModule %s_module %s\n", m, filepath.Join(modules, "mod_"+m+".so"))
	}
	if os.Getuid() == 0 {
		config += "User www-data\nGroup www-data\n"
	}
	config += fmt.Sprintf("ProxyPass / http://%s/ %s\n", upstream, extra)
	startProcess(t, addr, exec.Command(program, "-DFOREGROUND", "-f", writeFile(t, config)))
}

func startNghttpx(t *testing.T, program, addr, upstream, extra string) {
	comma := func(addr string) string { return strings.Replace(addr, ":", ",", 1) }
	startProcess(t, addr, exec.Command(program, "--conf=/dev/null", "-f"+comma(addr)+";no-tls",
		"-b"+comma(upstream), "--workers=1", extra))
}
