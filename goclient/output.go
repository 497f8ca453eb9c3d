package main

import (
	"bytes"
	"encoding/json"
	"io"
	"os"
	"sort"
	"strconv"
)

// version is stamped by build.sh.
var version = "dev"

func printJSON(w io.Writer, v any) {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	e.Encode(v)
}

func exitStatus(wrong bool) int {
	if wrong {
		return 1
	}
	return 0
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	return keys
}

// word gives b so that it cannot be taken for more than one word.
func word(b []byte) string {
	if bytes.ContainsAny(b, " \"") {
		return strconv.Quote(string(b))
	}
	return printable(b)
}

// printable gives b as it is, or quoted if it would do something to a terminal.
func printable(b []byte) string {
	control := func(r rune) bool { return r < ' ' || r >= 0x7f && r < 0xa0 }
	if bytes.IndexFunc(b, control) >= 0 || len(b) == 0 {
		return strconv.Quote(string(b))
	}
	return string(b)
}
