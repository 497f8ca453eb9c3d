#!/bin/sh
# The full suite: format, vet, tests, build, and a smoke test of the real binary. Needs Go and
# curl; with a C compiler the tests run under the race detector.
set -eu
cd "$(dirname "$0")"
tmp=$(mktemp -d)
pid=
trap '[ -z "$pid" ] || kill -9 "$pid" 2>/dev/null || true; rm -rf "$tmp"' EXIT
trap 'exit 1' INT TERM
say() { printf '%s\n' "== $*"; }
fail() { printf '%s\n' "FAILED: $*" >&2; exit 1; }
skipped=
command -v curl >/dev/null || fail "curl is needed for the smoke test"

say "gofmt"
unformatted=$("$(go env GOROOT)/bin/gofmt" -l .)
[ -z "$unformatted" ] || fail "gofmt would change: $unformatted"
say "go vet"
go vet ./...

race=-race
if ! printf 'int main(void){return 0;}' | ${CC:-cc} -x c -o "$tmp/cc" - 2>/dev/null; then
	race=
	skipped="$skipped; the race detector (no C compiler)"
fi
say "go test $race"
if ! go test -p 1 $race -v -count=1 -timeout 9m ./... >"$tmp/tests" 2>&1; then
	grep -v -e '^=== ' -e '--- PASS' "$tmp/tests" >&2
	fail "go test"
fi
grep '^ok' "$tmp/tests"
grep -A 1 -e '^ *--- SKIP' "$tmp/tests" | grep -v '^--$' >"$tmp/skips" || true

say "the page in a browser"
if ! command -v chromium >/dev/null && ! command -v chromium-browser >/dev/null && ! command -v google-chrome >/dev/null; then
	skipped="$skipped; the page in a browser (no chromium)"
elif ! (cd e2e/page && go mod download) >/dev/null 2>&1; then
	skipped="$skipped; the page in a browser (its Go modules cannot be had)"
else
	(cd e2e/page && go vet . && go test -v -count=1 -timeout 10m .) >"$tmp/page" 2>&1 || {
		grep -v -e '^=== ' -e '--- PASS' "$tmp/page" >&2
		fail "the page's tests"
	}
	grep '^ok' "$tmp/page"
	grep -A 1 -e '^ *--- SKIP' "$tmp/page" | grep -v '^--$' >>"$tmp/skips" || true
fi

say "build"
./build.sh
say "smoke test of the real binary"
./sse-server -addr 127.0.0.1:0 -heartbeat 1s 2>"$tmp/log" &
pid=$!
url=
for _ in 1 2 3 4 5 6 7 8 9 10; do
	url=$(sed -n 's|.*url=\(http://[^/]*\)/.*|\1|p' "$tmp/log")
	[ -z "$url" ] || break
	sleep 0.2
done
[ -n "$url" ] || fail "the server did not start: $(cat "$tmp/log")"
[ "$(curl -s "$url/health")" = OK ] || fail "/health does not say OK"
curl -sN -m 4 -H "Accept: text/event-stream" "$url/dashboard/stream" >"$tmp/stream" &
reader=$!
sleep 1
curl -s "$url/dashboard/trigger-test" | grep -q '"streams":1' || fail "the trigger did not reach the stream"
curl -s "$url/dashboard/debug" | grep -q '"streams_open":1' || fail "/dashboard/debug does not show the stream"
wait "$reader" || true
for want in '^retry: ' '^id: ' '"system_status"' '"Test broadcast"' '^: heartbeat$'; do
	grep -q "$want" "$tmp/stream" || fail "the stream has no $want: $(cat "$tmp/stream")"
done
(cd goclient && ./sse-client -url "$url/dashboard/stream" -clients 1 -debug -duration 3s) >"$tmp/client" ||
	fail "sse-client found something wrong: $(cat "$tmp/client")"
grep -q heartbeat "$tmp/client" || fail "sse-client saw no heartbeat: $(cat "$tmp/client")"
kill -TERM "$pid"
wait "$pid" || fail "the server ended with status $?: $(cat "$tmp/log")"
pid=
[ ! -s "$tmp/skips" ] || { say "skipped tests, and why"; cat "$tmp/skips"; }
[ -z "$skipped" ] || say "skipped: ${skipped#; }"
say "all passed"
