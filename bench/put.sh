#!/bin/sh
# Replaces a section of docs/benchmarks.md by its standard input. The section NAME is the text
# between the lines "<!-- NAME -->" and "<!-- end of NAME -->".
#   usage: bench/agree.sh | bench/put.sh agree
# PAGE is another file to change.
set -eu
cd "$(dirname "$0")/.."
page=${PAGE:-docs/benchmarks.md}
[ $# = 1 ] || { echo "usage: COMMAND | bench/put.sh NAME" >&2 && exit 2; }
begin="<!-- $1 -->" end="<!-- end of $1 -->"
for line in "$begin" "$end"; do
	[ "$(grep -cxF "$line" "$page")" = 1 ] || { echo "put.sh: $page needs one line $line" >&2 && exit 1; }
done
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
cat >"$tmp/section"
[ -s "$tmp/section" ] || { echo "put.sh: there is nothing to put" >&2 && exit 1; }
awk -v begin="$begin" -v end="$end" -v section="$tmp/section" '
	$0 == end { skip = 0 }
	!skip
	$0 == begin {
		while ((getline line <section) > 0) print line
		skip = 1
	}' "$page" >"$tmp/page"
cat "$tmp/page" >"$page"
