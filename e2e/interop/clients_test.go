package interop

import (
	"bufio"
	"errors"
	"net/url"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"sync"
	"testing"

	"sse-server/e2e/proxies"
)

// siteName is the name by which clients reach a proxy.
const siteName = "localhost"

// A client is one that reads the stream with the settings that it comes with.
type client struct {
	name    string
	program string
	args    []string // before the URL
	goName  string   // of a client in goClients

	// prepare makes ready what a run of its own folder needs, and returns more arguments.
	prepare func(k *kit, dir string) (args []string, err error)

	version  []string // prints its version; fails where the client is not installed
	note     func(r *record, lines *bufio.Scanner)
	page     bool   // a browser: it opens testdata/page.html
	npm      bool   // it needs the packages of testdata/node
	returns  bool   // it comes back by itself after an end
	comments bool   // it shows heartbeats
	gzip     bool   // it gets a compressed stream from the server directly
	agent    string // what its User-Agent contains; "none": it sends none
	trusts   string // how it is told of the test's authority
}

const (
	sslCertFile = "`SSL_CERT_FILE`"
	extraCA     = "`NODE_EXTRA_CA_CERTS`"
)

var clients = []client{
	{
		name: "curl", program: "curl", args: []string{"-sSN"}, version: []string{"curl", "--version"},
		note: (*record).noteStream, comments: true, agent: "curl/", trusts: "`CURL_CA_BUNDLE`",
	},
	{
		name: "wget", program: "wget", args: []string{"-nv", "-O", "-"},
		version: []string{"wget", "--version"}, note: (*record).noteStream, comments: true,
		agent: "Wget/", trusts: "`ca_certificate` in `.wgetrc`",
	},
	python("requests", "requests", "python-requests/", "`REQUESTS_CA_BUNDLE`"),
	python("httpx", "httpx", "python-httpx/", sslCertFile),
	python("aiohttp", "aiohttp", "aiohttp/", sslCertFile),
	python("urllib", "urllib.request", "Python-urllib/", sslCertFile),
	{
		name: "Ruby Net::HTTP", program: "ruby", args: []string{"testdata/ruby/net_http.rb"},
		version: []string{"ruby", "-rnet/http", "-e", "puts RUBY_VERSION"}, comments: true,
		agent: "Ruby", trusts: sslCertFile,
	},
	{
		name: "Node fetch", program: "node", args: []string{"testdata/node/fetch.mjs"},
		version: []string{"node", "-p", "fetch && process.version"}, comments: true, gzip: true,
		agent: "node", trusts: extraCA,
	},
	{
		name: "Node http", program: "node", args: []string{"testdata/node/http.mjs"},
		version: []string{"node", "--version"}, comments: true, agent: "none", trusts: extraCA,
	},
	{
		name: "Node EventSource", program: "node",
		args:    []string{"--no-warnings", "--experimental-eventsource", "testdata/node/eventsource.mjs"},
		version: []string{"node", "--experimental-eventsource", "-p", "process.version"},
		returns: true, gzip: true, agent: "node", trusts: extraCA,
	},
	npm("eventsource", client{returns: true, gzip: true, agent: "node"}),
	npm("undici", client{returns: true, gzip: true, agent: "undici"}),
	npm("eventsource-client", client{returns: true, comments: true, gzip: true, agent: "node"}),
	npm("launchdarkly-eventsource", client{returns: true, agent: "none"}),
	{
		name: "Go net/http", goName: "net/http", version: []string{"go", "env", "GOVERSION"},
		comments: true, agent: "Go-http-client/", trusts: sslCertFile,
	},
	goModule("tmaxmax", "tmaxmax/go-sse", "", true),
	goModule("r3labs", "r3labs/sse", "/v2", false),
	goModule("launchdarkly", "launchdarkly/eventsource", "", true),
	{
		name: "JDK HttpClient", program: "java", prepare: trustStore,
		version: []string{"java", "--version"}, comments: true, agent: "Java-http-client/",
		trusts: "`javax.net.ssl.trustStore`",
	},
	{
		name: "PHP curl", program: "php", prepare: phpArgs,
		version:  []string{"php", "-r", `echo PHP_VERSION, " with curl ", curl_version()["version"];`},
		comments: true, agent: "none", trusts: "`curl.cainfo`",
	},
	{
		name: "Perl LWP", program: "perl", args: []string{"testdata/perl/lwp.pl"},
		version: []string{"perl", "-MLWP::UserAgent", "-MLWP::Protocol::https", "-e",
			"print LWP::UserAgent->VERSION"},
		comments: true, agent: "libwww-perl/", trusts: "`PERL_LWP_SSL_CA_FILE`",
	},
	{
		name: "Chromium", program: "chromium", prepare: chromiumProfile, page: true,
		args:    []string{"--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"},
		version: []string{"chromium", "--version"}, returns: true, gzip: true, agent: "Chrome/",
		trusts: "its NSS database",
	},
	{
		name: "Firefox", program: "firefox-esr", prepare: firefoxProfile, page: true,
		args:    []string{"--headless", "--no-remote"},
		version: []string{"firefox-esr", "--version"}, returns: true, gzip: true, agent: "Firefox/",
		trusts: "its profile's NSS database",
	},
	{
		name: "WebKit", program: "sh", page: true,
		args:    []string{"testdata/webkit/minibrowser.sh", "--ignore-tls-errors"},
		version: []string{"sh", "testdata/webkit/minibrowser.sh", "--version"}, returns: true, gzip: true,
		agent: "Version/", trusts: "not at all: `--ignore-tls-errors`",
	},
	{
		name: "sse-client", args: []string{"-debug", "-url"}, note: (*record).noteSSEClient,
		version: []string{"git", "rev-parse", "--short", "HEAD"}, returns: true, comments: true,
		agent: "sse-client/", trusts: sslCertFile,
	},
}

func python(name, module, agent, trusts string) client {
	version := "import sys, " + module + " as m; " +
		"print(getattr(m, '__version__', None) or sys.version.split()[0])"
	return client{
		name: "Python " + name, program: pythonProgram(),
		args:    []string{"testdata/python/read_" + name + ".py"},
		version: []string{pythonProgram(), "-c", version}, comments: true, agent: agent, trusts: trusts,
	}
}

// pythonProgram is the system's Python, which has the packages of the system.
func pythonProgram() string {
	const system = "/usr/bin/python3"
	_, err := os.Stat(system)
	if err != nil {
		return "python3"
	}
	return system
}

func npm(name string, c client) client {
	c.name, c.program, c.npm, c.trusts = "npm "+name, "node", true, extraCA
	c.args = []string{"testdata/node/npm-" + name + ".mjs"}
	c.version = []string{"node", "-p", `require("fs").readFileSync("testdata/node/node_modules/` +
		name + `/package.json").toString().match(/"version": "(.*)"/)[1]`}
	return c
}

func goModule(goName, repository, major string, returns bool) client {
	return client{
		name: repository, goName: goName, returns: returns,
		version: []string{"go", "list", "-m", "-f", "{{.Version}}",
			"github.com/" + repository + major},
		agent: "Go-http-client/", trusts: sslCertFile,
	}
}

func clientNamed(name string) client {
	for _, c := range clients {
		if c.name == name {
			return c
		}
	}
	panic("there is no client " + name)
}

// A kit is what all clients of a test share.
type kit struct {
	dir     string // holds testdata, with Node's packages, and ca.pem
	origin  string // of the page that browsers open
	problem string // why there are no packages of npm; "" if they are there

	mu      sync.Mutex // guards records
	records map[string]*record
}

// newKit copies testdata into a folder of its own and installs Node's packages there.
func newKit(t *testing.T) *kit {
	t.Helper()
	k := &kit{dir: t.TempDir(), records: map[string]*record{}}
	out, err := exec.Command("cp", "-r", "testdata", k.dir).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}

	err = proxies.WriteCertificate(k.dir, siteName)
	if err != nil {
		t.Fatal(err)
	}

	install := exec.Command("npm", "install", "--no-audit", "--no-fund", "--ignore-scripts",
		"--no-package-lock")
	install.Dir = k.dir + "/testdata/node"
	out, err = install.CombinedOutput()
	if err != nil {
		k.problem = strings.TrimSpace(err.Error() + " " + string(out))
	}
	k.serve(t)
	return k
}

var versionNumber = regexp.MustCompile(`\d+(\.\d+)+\w*( with .*)?|^[0-9a-f]{7,}`)

// versionOf returns an error where the client is not installed.
func (k *kit) versionOf(c client) (string, error) {
	if c.npm && k.problem != "" {
		return "", errors.New("npm cannot install it: " + k.problem)
	}
	cmd := exec.Command(c.version[0], c.version[1:]...)
	if c.goName == "" && c.program != "" {
		cmd.Dir = k.dir
	}
	var problem strings.Builder
	cmd.Stderr = &problem
	out, err := cmd.Output()
	if err != nil {
		first, _, _ := strings.Cut(problem.String(), "\n")
		return "", errors.New(strings.TrimSpace(err.Error() + " " + first))
	}
	return versionNumber.FindString(string(out)), nil
}

// command is a run of a client in a folder of its own.
func (k *kit) command(t *testing.T, c client, streamURL string) *exec.Cmd {
	t.Helper()
	dir := t.TempDir()
	args := c.args
	if c.prepare != nil {
		more, err := c.prepare(k, dir)
		if err != nil {
			t.Fatalf("preparing %s: %v", c.name, err)
		}
		args = append(append([]string{}, args...), more...)
	}
	target := streamURL
	if c.page {
		query := url.Values{"client": {c.name}, "url": {streamURL}}
		target = k.origin + "/?" + query.Encode()
	}

	program := c.program
	if c.name == "sse-client" {
		program = sseClientProgram
	}
	cmd := exec.Command(program, append(args, target)...)
	if c.goName != "" {
		cmd = exec.Command(os.Args[0])
	}
	cmd.Dir = k.dir
	cmd.Env = append(os.Environ(), "HOME="+dir, "TEST_GO_CLIENT="+c.goName, "TEST_URL="+target)
	for _, variable := range []string{
		"SSL_CERT_FILE", "CURL_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "NODE_EXTRA_CA_CERTS",
		"PERL_LWP_SSL_CA_FILE",
	} {
		cmd.Env = append(cmd.Env, variable+"="+k.authority())
	}
	if c.name == "wget" {
		os.WriteFile(dir+"/.wgetrc", []byte("ca_certificate = "+k.authority()+"\n"), 0o644)
	}
	return cmd
}

func (k *kit) authority() string { return k.dir + "/ca.pem" }

// trustStore makes a store of the JDK's kind with the authority.
func trustStore(k *kit, dir string) (args []string, err error) {
	store := dir + "/trust.p12"
	args = []string{"-Djavax.net.ssl.trustStore=" + store,
		"-Djavax.net.ssl.trustStorePassword=password", "testdata/java/Read.java"}
	return args, quietly("keytool", "-importcert", "-noprompt", "-alias", "test",
		"-file", k.authority(), "-keystore", store, "-storepass", "password")
}

func phpArgs(k *kit, _ string) (args []string, err error) {
	return []string{"-d", "curl.cainfo=" + k.authority(), "testdata/php/curl.php"}, nil
}

func chromiumProfile(k *kit, dir string) (args []string, err error) {
	return []string{"--user-data-dir=" + dir + "/profile"}, nssDatabase(k, dir+"/.pki/nssdb")
}

func firefoxProfile(k *kit, dir string) (args []string, err error) {
	return []string{"--profile", dir + "/profile"}, nssDatabase(k, dir+"/profile")
}

// nssDatabase makes a database with the authority.
func nssDatabase(k *kit, dir string) error {
	err := os.MkdirAll(dir, 0o755)
	if err != nil {
		return err
	}
	return quietly("certutil", "-A", "-d", "sql:"+dir, "-n", "test", "-t", "C,,",
		"-i", k.authority())
}

func quietly(program string, args ...string) error {
	out, err := exec.Command(program, args...).CombinedOutput()
	if err != nil {
		return errors.New(err.Error() + ": " + string(out))
	}
	return nil
}
