"""Prints the tables of budgets.sh: python3 bench/budgets.py RESULTS IDLE_SECONDS NAME=PROGRAM..."""
import glob
import json
import os
import statistics
import subprocess
import sys

results, idle_seconds = sys.argv[1], float(sys.argv[2])
builds = [build.split("=", 1) for build in sys.argv[3:]]


def values(name, key):
    return [json.load(open(path))[key] for path in glob.glob(f"{results}/{name}.*.json")]


def median(name, key):
    return statistics.median(values(name, key))


def last_streams(name):
    """The median of each run, in ms."""
    return [last["p50"] for last in values(name, "last_delivery_ms")]


def ratio(a, b):
    return f"{a / b:.2f}" if b else "–"  # a short run may use no CPU tick


def print_fan_out(name, against):
    """Prints a row; against is the build's row without stalled streams, or None."""
    cpu = median(name, "cpu_us_per_delivery")
    lasts = last_streams(name)
    last = statistics.median(lasts)
    print(
        f"| {name} | {median(name, 'rss_per_stream_kib'):.2f} KiB"
        f" | {cpu:.1f} µs | {ratio(cpu, median('baseline', 'cpu_us_per_delivery'))}"
        f" | {last:.0f} ms ({min(lasts):.0f} to {max(lasts):.0f})"
        f" | {ratio(last, statistics.median(last_streams('baseline')))}"
        f" | {ratio(last, statistics.median(last_streams(against))) if against else ''}"
        f" | {median(name, 'bytes_per_delivery'):.0f} |"
    )


def print_without_streams(name, program):
    version = subprocess.run([program, "-version"], capture_output=True, text=True, check=True)
    ticks = statistics.mean(values(f"{name} idle", "ticks"))  # few: a median would be coarse
    cpu = ticks / os.sysconf("SC_CLK_TCK") / idle_seconds
    print(
        f"| {name} | {version.stdout.split()[-1]} | {os.path.getsize(program) / 1e6:.1f} MB"
        f" | {median(f'{name} idle', 'start_ms'):.0f} ms"
        f" | {cpu:.2%} of a core | {median(f'{name} idle', 'kib') / 1024:.1f} MiB |"
    )


print()
print("| server | memory per stream | CPU per delivery | ratio to baseline "
      "| last stream reached | ratio to baseline | ratio to one-core | bytes per event |")
print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
print_fan_out("baseline", None)
for build, _ in builds:
    print_fan_out(f"{build} one-core", None)
    print_fan_out(f"{build} stalled", f"{build} one-core")
    print_fan_out(f"{build} two-cores", None)

print()
print("| server | version | binary | start to first event | CPU, no streams | memory, no streams |")
print("| --- | --- | ---: | ---: | ---: | ---: |")
for build, path in builds:
    print_without_streams(build, path)

print()
print("- stalled: one stream in ten is never read.")
print("- two-cores: the server shares the second core with the client.")
print("- Last stream reached: from when an event was due until each stream had it.")
