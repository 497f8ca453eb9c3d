// Sse-client opens, checks and measures the streams of any server-sent event server, forwards
// the events of one, and says why events come late. `sse-client -h` is its manual.
//
// Calls run one way: main.go parses the flags and starts a mode (measure.go, forward.go or
// doctor.go). The modes share the files below them:
//   - options.go: the options
//   - stream.go: one stream over its reconnections
//   - conn.go: one connection
//   - parse.go: the parser of event streams
//   - output.go: printing
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	status := dispatch(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(status)
}

// dispatch starts the mode that the flags choose. It returns the exit status.
func dispatch(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	o, err := parseFlags(args, stdout)
	if errors.Is(err, flag.ErrHelp) {
		return 0
	}
	if err != nil {
		fmt.Fprintf(stderr, "sse-client: %v (-h explains)\n", err)
		return 2
	}

	warnOfProxy(o, stderr)

	switch {
	case o.doctor:
		return runDoctor(ctx, o, stdout, stderr)
	case o.forward != "":
		return runForward(ctx, o, stdout, stderr)
	default:
		return runMeasure(ctx, o, stdout, stderr)
	}
}

// parseFlags reads and checks the flags. It returns flag.ErrHelp where it has printed the answer.
func parseFlags(args []string, stdout io.Writer) (*options, error) {
	o := new(options)
	f := flag.NewFlagSet("sse-client", flag.ContinueOnError)
	f.SetOutput(io.Discard)
	f.Usage = func() {}
	o.define(f)

	urls, err := parseArguments(f, args)
	if errors.Is(err, flag.ErrHelp) {
		io.WriteString(stdout, manual)
	}
	if err != nil {
		return nil, err
	}
	if o.showVersion {
		fmt.Fprintln(stdout, "sse-client", version)
		return nil, flag.ErrHelp
	}

	f.Visit(func(set *flag.Flag) { o.given[set.Name] = true })
	if len(urls) > 0 {
		others := urls
		if !o.given["url"] {
			o.url = urls[0]
			o.given["url"] = true
			others = urls[1:]
		}
		if len(others) > 0 {
			return nil, fmt.Errorf("unexpected argument %q: there is one URL", redact(others[0]))
		}
	}
	if err := o.validate(); err != nil {
		return nil, err
	}
	return o, o.prepare()
}

// parseArguments reads flags before and after the other arguments, which it returns.
func parseArguments(f *flag.FlagSet, args []string) (others []string, err error) {
	for {
		err = f.Parse(args)
		if err != nil || f.NArg() == 0 {
			return others, err
		}
		others = append(others, f.Arg(0))
		args = f.Args()[1:]
	}
}

// warnOfProxy says that a proxy of the environment is not used for streams.
func warnOfProxy(o *options, stderr io.Writer) {
	proxy, err := http.ProxyFromEnvironment(&http.Request{URL: o.target.url})
	if proxy == nil && err == nil {
		return
	}
	name := "HTTP_PROXY"
	if o.target.url.Scheme == "https" {
		name = "HTTPS_PROXY"
	}
	fmt.Fprintf(stderr, "sse-client: %s is set, but streams are opened without a proxy\n", name)
}
