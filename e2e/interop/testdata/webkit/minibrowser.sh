#!/bin/sh
# Runs WebKit's small browser on a screen of its own.
set -eu
browser=$(ls /usr/lib/*/webkit2gtk-4.*/MiniBrowser)
dir=$(mktemp -d)
mkfifo "$dir/display"
Xvfb -displayfd 3 3>"$dir/display" -nolisten tcp 2>/dev/null &
trap 'kill $!; rm -r "$dir"' EXIT
read -r display <"$dir/display"
DISPLAY=:$display "$browser" "$@"
