package e2e

import (
	"net/http"
	"net/http/httptest"
	"os/exec"
	"regexp"
	"strings"
	"testing"

	"sse-server/e2e/tools"
)

// In nginx.conf, the lines for a server with a token let in whom an application lets in.
func TestDeployNginxAsksAnApplication(t *testing.T) {
	t.Parallel()
	need(t, "nginx")
	mayRead := func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/may-read" || r.Header.Get("Cookie") != "user=1" {
			w.WriteHeader(http.StatusUnauthorized)
		}
	}
	application := httptest.NewServer(http.HandlerFunc(mayRead))
	defer application.Close()
	cmd := serverCommand("-addr", "127.0.0.1:0", "-origins", "https://dashboard.example.com")
	cmd.Env = append(cmd.Env, "SSE_TOKEN=the-token")
	s := startCommand(t, cmd)
	commented := regexp.MustCompile(`(?m)^    # ((location|    |}).*)$`)
	file := commented.ReplaceAllString(read(t, "deploy/nginx.conf"), "    $1")
	file = strings.ReplaceAll(file, "http://127.0.0.1:3000", application.URL)
	file = strings.ReplaceAll(file, "http://127.0.0.1:3001", "http://"+s.addr)
	addr := tools.FreeAddr(t)
	file = strings.Replace(file, "listen 443 ssl http2;", "listen "+addr+";", 1)
	file = regexp.MustCompile(`(?m)^ *ssl_.*\n`).ReplaceAllString(file, "")
	dir := proxyDir(t)
	write(t, dir+"/conf", "daemon off; master_process off; pid "+dir+"/pid; error_log stderr;\n"+
		"events {}\nhttp { access_log off; client_body_temp_path "+dir+"/body;\n"+file+"}\n")
	nginx := exec.Command("nginx", "-p", dir, "-c", dir+"/conf", "-e", "stderr")
	startLogged(t, nginx, "nginx")
	eventually(t, "nginx listens", func() bool { return tools.Listens(addr) })

	for _, c := range []struct {
		path, cookie string
		want         int
	}{
		{"/dashboard/stream", "user=1", 200},
		{"/dashboard/stream", "user=2", 401},
		{"/dashboard/stream", "", 401},
		{"/dashboard/debug", "user=1", 401},
		{"/may-read", "user=1", 404},
	} {
		request, err := http.NewRequest("GET", "http://"+addr+c.path, nil)
		if err != nil {
			t.Fatal(err)
		}
		request.Host = "dashboard.example.com"
		request.Header.Set("Cookie", c.cookie)
		request.Header.Set("Authorization", "Bearer wrong")
		resp, err := http.DefaultClient.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close() // it may be a stream
		if resp.StatusCode != c.want {
			t.Errorf("GET %s with %q returns %s, want %d", c.path, c.cookie, resp.Status, c.want)
		}
	}
}
