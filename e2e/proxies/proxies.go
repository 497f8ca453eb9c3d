// Package proxies starts the proxies that tests put before the server: those of deploy/ with the
// files of deploy/, the others with their own defaults and what they cannot do without.
package proxies

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// A Place says where one proxy runs.
type Place struct {
	Dir    string // its own folder, which its own user may enter, with certificate and key in tls.pem
	Addr   string // where it listens
	Inner  string // a second free address, for a proxy that consists of two programs
	Server string // the server's address
	Host   string // the name of the site
	Deploy string // the folder deploy/
}

// A Proxy is one program, or two, before the server.
type Proxy struct {
	Name     string
	Programs []string
	Version  []string // the command that prints its version
	File     string   // its configuration in deploy/; "" if there is none
	Line     string   // the setting that it cannot do without, if there is no File and there is one
	TLS      bool
	HTTP2    bool
	Holds    bool // it holds events back
	conf     func(p Place, file string) (conf string, commands [][]string)
}

// All are the proxies as they should be configured.
var All = []Proxy{
	{
		Name: "nginx", Programs: []string{"nginx"}, Version: []string{"nginx", "-v"},
		File: "nginx.conf", TLS: true, HTTP2: true, conf: nginx,
	},
	{
		Name: "Caddy", Programs: []string{"caddy"}, Version: []string{"caddy", "version"},
		File: "Caddyfile", TLS: true, HTTP2: true, conf: caddy,
	},
	{
		Name: "HAProxy", Programs: []string{"haproxy"}, Version: []string{"haproxy", "-v"},
		File: "haproxy.cfg", TLS: true, HTTP2: true, conf: haproxy,
	},
	{
		Name: "Apache httpd", Programs: []string{"apache2"}, Version: []string{"apache2", "-v"},
		File: "apache.conf", TLS: true, HTTP2: true, conf: apache,
	},
	{
		Name: "Varnish", Programs: []string{"varnishd", "hitch"}, Version: []string{"varnishd", "-V"},
		File: "varnish.vcl", TLS: true, HTTP2: true, conf: varnish,
	},
	{
		Name: "lighttpd", Programs: []string{"lighttpd"}, Version: []string{"lighttpd", "-v"},
		Line: lighttpdLine, TLS: true, HTTP2: true, conf: lighttpd,
	},
	{
		Name: "Squid", Programs: []string{"squid"}, Version: []string{"squid", "-v"},
		TLS: true, conf: squid,
	},
	{
		Name: "nghttpx", Programs: []string{"nghttpx"}, Version: []string{"nghttpx", "-v"},
		TLS: true, HTTP2: true, conf: nghttpx,
	},
}

// Bare are proxies with no more than the server's address: without deploy/'s settings, or without
// the line that they need. They speak plain HTTP.
var Bare = []Proxy{
	{Name: "nginx", Programs: []string{"nginx"}, conf: bareNginx},
	{Name: "Apache httpd", Programs: []string{"apache2"}, conf: bareApache},
	{Name: "Varnish", Programs: []string{"varnishd"}, conf: bareVarnish},
	{Name: "lighttpd", Programs: []string{"lighttpd"}, Holds: true, conf: bareLighttpd},
}

// Missing names a program of the proxy that is not installed, or "".
func (x Proxy) Missing() string {
	for _, program := range x.Programs {
		_, err := exec.LookPath(program)
		if err != nil {
			return program
		}
	}
	return ""
}

// Commands writes the proxy's configuration. It returns the commands that run the proxy in the
// foreground, the one that listens last.
func (x Proxy) Commands(p Place) ([]*exec.Cmd, error) {
	file := ""
	if x.File != "" {
		text, err := os.ReadFile(filepath.Join(p.Deploy, x.File))
		if err != nil {
			return nil, err
		}
		file = string(text)
	}

	conf, lines := x.conf(p, file)
	err := os.WriteFile(p.conf(), []byte(conf), 0o644)
	if err != nil {
		return nil, err
	}

	var commands []*exec.Cmd
	for _, line := range lines {
		cmd := exec.Command(line[0], line[1:]...)
		cmd.Env = append(os.Environ(),
			"HOME="+p.Dir, "XDG_DATA_HOME="+p.Dir, "XDG_CONFIG_HOME="+p.Dir)
		commands = append(commands, cmd)
	}
	return commands, nil
}

func (p Place) conf() string        { return p.Dir + "/conf" }
func (p Place) certificate() string { return p.Dir + "/tls.pem" }

// hostAndPort splits an address that is known to have both.
func hostAndPort(addr string) (host, port string) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		panic(err)
	}
	return host, port
}

func nginx(p Place, file string) (string, [][]string) {
	return nginxAround(p.Dir, strings.NewReplacer(
		"127.0.0.1:3001", p.Server,
		"listen 443", "listen "+p.Addr,
		"dashboard.example.com", p.Host,
		"/etc/ssl/certs/dashboard.pem", p.certificate(),
		"/etc/ssl/private/dashboard.key", p.certificate(),
	).Replace(file))
}

func bareNginx(p Place, _ string) (string, [][]string) {
	return nginxAround(p.Dir, fmt.Sprintf("server {\n\tlisten %s;\n"+
		"\tlocation / { proxy_pass http://%s; }\n}\n", p.Addr, p.Server))
}

// NginxHTTP is an nginx with the text of its http block.
func NginxHTTP(text string) Proxy {
	return Proxy{
		Name: "nginx", Programs: []string{"nginx"},
		conf: func(p Place, _ string) (string, [][]string) { return nginxAround(p.Dir, text) },
	}
}

// nginxAround is a whole configuration around the text of its http block, and nginx's command.
func nginxAround(dir, text string) (conf string, commands [][]string) {
	conf = "daemon off; master_process off; pid " + dir + "/pid; error_log stderr;\n" +
		"events {}\nhttp { access_log off;"
	for _, kind := range []string{"client_body", "proxy", "fastcgi", "uwsgi", "scgi"} {
		conf += " " + kind + "_temp_path " + dir + "/" + kind + ";"
	}
	conf += "\n" + text + "}\n"
	return conf, [][]string{{"nginx", "-p", dir, "-c", dir + "/conf", "-e", "stderr"}}
}

func caddy(p Place, file string) (string, [][]string) {
	_, port := hostAndPort(p.Addr)
	site := fmt.Sprintf("%s:%s {\n\ttls %s %s\n", p.Host, port, p.certificate(), p.certificate())
	file = strings.NewReplacer(
		"127.0.0.1:3001", p.Server,
		"dashboard.example.com {", site,
	).Replace(file)
	return "{\n\tadmin off\n\tauto_https disable_redirects\n}\n" + file,
		[][]string{{"caddy", "run", "--adapter", "caddyfile", "--config", p.conf()}}
}

// HAProxy is a HAProxy with the text of a file of deploy/.
func HAProxy(text string) Proxy {
	return Proxy{
		Name: "HAProxy", Programs: []string{"haproxy"},
		conf: func(p Place, _ string) (string, [][]string) { return haproxy(p, text) },
	}
}

func haproxy(p Place, file string) (string, [][]string) {
	return strings.NewReplacer(
		"127.0.0.1:3001", p.Server,
		"bind :443", "bind "+p.Addr,
		"/etc/haproxy/dashboard.pem", p.certificate(),
	).Replace(file), [][]string{{"haproxy", "-db", "-f", p.conf()}}
}

func apache(p Place, file string) (string, [][]string) {
	return apacheAround(p, strings.NewReplacer(
		"127.0.0.1:3001", p.Server,
		"*:443", p.Addr,
		"dashboard.example.com", p.Host,
		"/etc/ssl/certs/dashboard.pem", p.certificate(),
		"/etc/ssl/private/dashboard.key", p.certificate(),
	).Replace(file))
}

func bareApache(p Place, _ string) (string, [][]string) {
	return apacheAround(p, "ProxyPass / http://"+p.Server+"/\n")
}

// apacheAround is a whole configuration around the text of a site, and Apache's command. The
// modules and the user are Debian's.
func apacheAround(p Place, site string) (string, [][]string) {
	conf := "ServerRoot " + p.Dir + "\nServerName " + p.Host + "\nListen " + p.Addr + "\n" +
		"PidFile " + p.Dir + "/pid\nDefaultRuntimeDir " + p.Dir + "\nErrorLog /dev/stderr\n" +
		"User www-data\nGroup www-data\n"
	for _, name := range []string{
		"mpm_event", "authz_core", "headers", "proxy", "proxy_http", "socache_shmcb", "ssl", "http2",
	} {
		conf += "LoadModule " + name + "_module /usr/lib/apache2/modules/mod_" + name + ".so\n"
	}
	return conf + site, [][]string{{"apache2", "-DFOREGROUND", "-f", p.conf()}}
}

// varnish has hitch before it, for TLS.
func varnish(p Place, file string) (string, [][]string) {
	host, port := hostAndPort(p.Server)
	conf := strings.NewReplacer(
		`.host = "127.0.0.1"`, fmt.Sprintf(".host = %q", host),
		`.port = "3001"`, fmt.Sprintf(".port = %q", port),
	).Replace(file)

	varnishd := varnishCommand(p, p.Inner+",PROXY")
	// The file sets a longer send_timeout than Varnish's own, which is shortened to prove that.
	varnishd = append(varnishd, "-p", "feature=+http2", "-p", "send_timeout=3")
	outerHost, outerPort := hostAndPort(p.Addr)
	innerHost, innerPort := hostAndPort(p.Inner)
	hitch := []string{"hitch", "--quiet", "--write-proxy-v2=on", "--user=nobody",
		"--frontend=[" + outerHost + "]:" + outerPort, "--backend=[" + innerHost + "]:" + innerPort,
		"--alpn-protos=h2,http/1.1", p.certificate()}
	return conf, [][]string{varnishd, hitch}
}

func bareVarnish(p Place, _ string) (string, [][]string) {
	host, port := hostAndPort(p.Server)
	conf := fmt.Sprintf("vcl 4.1;\nbackend default { .host = %q; .port = %q; }\n", host, port)
	return conf, [][]string{varnishCommand(p, p.Addr)}
}

func varnishCommand(p Place, listen string) []string {
	return []string{"varnishd", "-F", "-n", p.Dir + "/varnish", "-a", listen, "-f", p.conf()}
}

// lighttpdLine makes lighttpd pass each part of an answer on when it comes.
const lighttpdLine = "server.stream-response-body = 2"

func lighttpd(p Place, _ string) (string, [][]string) {
	conf, command := bareLighttpd(p, "")
	conf += lighttpdLine + "\n" +
		`server.modules += ( "mod_openssl" )` + "\n" +
		`ssl.engine = "enable"` + "\n" +
		fmt.Sprintf("ssl.pemfile = %q\n", p.certificate())
	return conf, command
}

func bareLighttpd(p Place, _ string) (string, [][]string) {
	host, port := hostAndPort(p.Addr)
	serverHost, serverPort := hostAndPort(p.Server)
	conf := fmt.Sprintf("server.bind = %q\nserver.port = %s\n", host, port) +
		fmt.Sprintf("server.document-root = %q\n", p.Dir) +
		`server.modules = ( "mod_proxy" )` + "\n" +
		fmt.Sprintf("proxy.server = ( \"\" => (( \"host\" => %q, \"port\" => %s )))\n",
			serverHost, serverPort)
	return conf, [][]string{{"lighttpd", "-D", "-f", p.conf()}}
}

func squid(p Place, _ string) (string, [][]string) {
	host, port := hostAndPort(p.Server)
	conf := fmt.Sprintf("https_port %s accel defaultsite=%s tls-cert=%s\n",
		p.Addr, p.Host, p.certificate()) +
		fmt.Sprintf("cache_peer %s parent %s 0 no-query originserver\n", host, port) +
		"http_access allow all\n" +
		"pid_filename " + p.Dir + "/pid\ncoredump_dir " + p.Dir + "\n" +
		"cache_log /dev/null\naccess_log none\nshutdown_lifetime 0 seconds\n"
	_, own := hostAndPort(p.Addr)
	return conf, [][]string{{"squid", "-N", "-n", "test" + own, "-f", p.conf()}}
}

func nghttpx(p Place, _ string) (string, [][]string) {
	host, port := hostAndPort(p.Addr)
	serverHost, serverPort := hostAndPort(p.Server)
	return "", [][]string{{"nghttpx", "--conf=" + p.conf(), "--single-process",
		"--frontend=" + host + "," + port, "--backend=" + serverHost + "," + serverPort,
		p.certificate(), p.certificate()}}
}
