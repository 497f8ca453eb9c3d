#!/bin/sh
# Builds ./sse-server and goclient/sse-client. Needs Go 1.21 or later and nothing else.
set -eu
cd "$(dirname "$0")"
command -v go >/dev/null || { echo "build.sh: Go 1.21 or later is needed: https://go.dev/dl" >&2; exit 1; }
version=$(git describe --tags --always --dirty 2>/dev/null) || version=dev
export CGO_ENABLED=0
go build -trimpath -ldflags "-s -w -X main.version=$version" -o sse-server main.go
go build -trimpath -ldflags "-s -w -X main.version=$version" -o goclient/sse-client ./goclient
echo "built ./sse-server ($version): start it and open http://localhost:3001/"
