#!/bin/sh
# Tests the server and sse-client.
#   ./test.sh        format, vet, unit tests, build and a smoke test: Go and curl, about a minute
#   ./test.sh full   also the tests of the built programs (e2e), of the page in a browser, and of
#                    clients and proxies (e2e/interop)
# With a C compiler the unit tests use the race detector. Skipped tests and the reasons come last.
set -eu
cd "$(dirname "$0")"
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
trap 'exit 1' INT TERM
: >"$tmp/skipped"
say() { printf '%s\n' "== $*"; }
fail() { printf '%s\n' "FAILED: $*" >&2; exit 1; }
skip() { printf '%s\n' "$*" >>"$tmp/skipped"; }
case ${*-} in
'' | full) ;;
*) fail "usage: ./test.sh [full]" ;;
esac

# run NAME, go test's ARGUMENTS...: prints each package's line as it ends, or what has failed.
run() {
	name=$1
	shift
	{ go test -v -count=1 "$@" 2>&1 || echo "$?" >"$tmp/failed"; } | tee "$tmp/log" | grep '^ok' || true
	if [ -e "$tmp/failed" ]; then
		grep -v -e '^=== ' -e '--- PASS' -e '--- SKIP' "$tmp/log" >&2
		fail "$name"
	fi
	# With -v a test's reason stands before its SKIP line, other tests' lines between them.
	awk '/^=== / { test = $3 }
		/^ +[a-z_]+_test\.go:[0-9]+: / { sub(/^ +/, ""); why[test] = $0 }
		/--- SKIP: / { print $3 ": " why[$3] }' "$tmp/log" >>"$tmp/skipped"
}

# module FOLDER TIMEOUT: tests a module of its own.
module() {
	if ! (cd "$1" && go mod download) >"$tmp/modules" 2>&1; then
		skip "$1: its Go modules cannot be downloaded: $(head -n 1 "$tmp/modules")"
		return
	fi
	cd "$1"
	go vet .
	run "$1" -timeout "$2" .
	cd - >/dev/null
}

say "gofmt"
unformatted=$("$(go env GOROOT)/bin/gofmt" -l .)
[ -z "$unformatted" ] || fail "gofmt would change: $unformatted"
say "go vet"
go vet ./...
say "build"
./build.sh

race=-race
if ! printf 'int main(void){return 0;}' | ${CC:-cc} -x c -o "$tmp/cc" - 2>/dev/null; then
	race=
	skip "the race detector: there is no C compiler"
fi
say "unit tests $race"
run "unit tests" $race -p 1 -timeout 5m . ./goclient # one by one: some compare times
say "smoke test"
e2e/smoke.sh

if [ "${1-}" = full ]; then
	say "tests of the built programs"
	export SSE_E2E=1
	run e2e -timeout 15m ./e2e
	say "tests of the page"
	module e2e/page 10m
	say "clients and proxies"
	module e2e/interop 10m
fi
if [ -s "$tmp/skipped" ]; then
	say "skipped, and why"
	cat "$tmp/skipped"
fi
say "all passed"
