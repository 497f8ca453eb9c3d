# Functions for the scripts that start everything on one machine. They source this file from the
# project's folder and set name to their own name. The logs go to the folder LOGS, or to a new one.
PATH=$PATH:/usr/sbin
fail() { echo "$name: $*" >&2; exit 1; }
ask() { curl -s -m 2 --noproxy '*' -o /dev/null "$1"; } # URL
must_be_free() { # PORT...
	for port in "$@"; do
		! ask "http://127.0.0.1:$port/" || fail "$port is taken: give another first port"
	done
}
must_have() { # PACKAGES, PROGRAM or file...; also builds this project's programs
	packages=$1
	shift
	for need in "$@"; do
		command -v "$need" >/dev/null || [ -e "$need" ] ||
			fail "$need is missing: apt-get install $packages"
	done
	if command -v go >/dev/null; then ./build.sh >&2; fi
	[ -x sse-server ] && [ -x goclient/sse-client ] || fail "sse-server is not built, and Go is missing"
}

dir=$(mktemp -d)
chmod 755 "$dir"
logs=${LOGS:-$(mktemp -d)}
mkdir -p "$logs"
pids=
end() {
	trap '' INT TERM HUP
	for pid in $pids $(cat "$dir"/*.pid 2>/dev/null); do kill "$pid" 2>/dev/null || true; done
	wait
	rm -rf "$dir"
	echo "$name has ended; the logs are in $logs"
}
trap end EXIT
trap 'exit 0' INT TERM HUP
start() { # NAME, URL to wait for or -, COMMAND...
	program=$1 url=$2
	shift 2
	"$@" >"$logs/$program.log" 2>&1 &
	pids="$pids $!"
	until [ "$url" = - ] || ask "$url"; do
		kill -0 $! 2>/dev/null || fail "$program does not start: $(tail -n 3 "$logs/$program.log")"
		sleep 0.1
	done
}
until_true() { # NAME, COMMAND...: waits until COMMAND succeeds, three seconds at most
	program=$1
	shift
	for try in 1 2 3 4 5 6 7 8 9 10; do
		! "$@" || return 0
		sleep 0.3
	done
	fail "$program does not start: $(tail -n 1 "$logs/$program.log")"
}
