import sys
import urllib.request

from show import show, show_line

with urllib.request.urlopen(sys.argv[1]) as answer:
    for line in answer:
        show_line(line.decode())
show("end")
