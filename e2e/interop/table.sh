#!/bin/sh
# Measures each client through each way, for about ten minutes, and writes the table of
# docs/interop.md. Run it on a quiet machine. What is not installed is left out by name.
set -eu
cd "$(dirname "$0")"
go test -count=1 -timeout 30m -v -run TableIsWritten . -table ../../docs/interop.md
