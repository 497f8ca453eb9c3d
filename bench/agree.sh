#!/bin/sh
# Compares the metrics in the stream with top, free and df: first on the idle host, then with two busy
# loops, 1 GiB allocated and a large download over loopback. Needs curl, procps and netcat. Takes 30 s.
set -eu
cd "$(dirname "$0")/.."
[ -x ./sse-server ] || ./build.sh >/dev/null
tmp=$(mktemp -d)
jobs=
# shellcheck disable=SC2086 # jobs is a list
trap 'kill $jobs 2>/dev/null || true; rm -rf "$tmp"' EXIT
trap 'exit 1' INT TERM

./sse-server -addr 127.0.0.1:0 2>"$tmp/log" &
jobs=$!
sleep 1
url=$(sed -n 's|.*url=\(http://[^/ ]*\).*|\1/dashboard/stream|p' "$tmp/log")
[ -n "$url" ] || { echo "agree.sh: the server did not start: $(cat "$tmp/log")" >&2 && exit 1; }

# compare LOAD: a row for each metric, from the stream and from the tool, over the same six seconds.
compare() {
	LC_ALL=C top -bn2 -d 6 | sed -n 's/^%Cpu.* \([0-9.]*\) id, *\([0-9.]*\) wa.*/\1 \2/p' >"$tmp/top" &
	top=$!
	curl -sN -m 6.5 "$url" >"$tmp/stream" || true
	wait "$top"
	metric() { sed -n "s/.*\"$1\":\"\([^\"]*\)\".*/\1/p" "$tmp/stream" | tail -n 3 | tr '\n' ' '; }
	printf '| %s | CPU | %s| %s%% (top) |\n' "$1" "$(metric cpu)" "$(tail -n 1 "$tmp/top" | awk '{printf "%.1f", 100-$1-$2}')"
	printf '| | memory | %s| %s%% (free) |\n' "$(metric memory)" "$(free | awk '/^Mem/ {printf "%.1f", 100*($2-$7)/$2}')"
	printf '| | disk | %s| %s (df) |\n' "$(metric disk)" "$(df -P / | awk 'END {print $5}')"
	printf '| | network | %s| %s moved over lo |\n' "$(metric network)" "$(lo)"
}
lo() {
	now=$(awk -F'[: ]+' '$2 == "lo" {print $3}' /proc/net/dev)
	echo "$(((now - before) / 1000000)) MB"
	before=$now
}

before=$(awk -F'[: ]+' '$2 == "lo" {print $3}' /proc/net/dev)
echo '| load | metric | three snapshots | tool |'
echo '| --- | --- | --- | --- |'
compare idle
for _ in 1 2; do
	(while :; do :; done) &
	jobs="$jobs $!"
done
(head -c 1073741824 /dev/zero && sleep 20) | tail -n 1 >/dev/null &
jobs="$jobs $!"
nc -l 127.0.0.1 47990 </dev/zero >/dev/null &
jobs="$jobs $!"
sleep 1
timeout 20 nc -d 127.0.0.1 47990 >/dev/null &
jobs="$jobs $!"
sleep 3
before=$(awk -F'[: ]+' '$2 == "lo" {print $3}' /proc/net/dev)
compare loaded
