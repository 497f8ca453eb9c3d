# Draws memory.svg and last-stream.svg from results/plot.tsv: gnuplot -e "out = 'bench'" bench/plot.gp
# The background is transparent. Each colour is readable on a white page and on a dark one.
if (!exists("out")) out = "bench"
data = out . "/results/plot.tsv"
grey = "#7a7a7a"
colours = "#2484c6 #dd4b50 #a67210 #3d8f52 #9b5fc0 #7a7a7a"

set terminal svg size 760,420 font "Helvetica,Arial,sans-serif,15" linewidth 1.2
set datafile separator "\t"
set datafile missing "?"
set border 3 linecolor rgb grey
set tics nomirror textcolor rgb grey
set grid linecolor rgb grey linewidth 0.5 dashtype 3
set title textcolor rgb grey
set logscale xy
set xrange [80:50000]
set xtics ("100" 100, "1,000" 1000, "10,000" 10000)
set xlabel "streams" textcolor rgb grey
set key off
set tmargin 3
stats data using 1 nooutput
last = STATS_blocks - 1

# nudge keeps the names of lines that end side by side apart.
set output out . "/memory.svg"
nudge = "0.25 0 0.6 -0.2 0.1 -0.5"
set title "Memory of the server"
set yrange [0.7:3000]
set ytics ("1 MiB" 1, "10 MiB" 10, "100 MiB" 100, "1 GiB" 1024)
plot for [i = 0:last] data index i using 1:2 with linespoints \
		linewidth 2 pointtype 7 pointsize 0.6 linecolor rgb word(colours, i + 1), \
	for [i = 0:last] data index i using 1:2:4 with labels \
		left offset 0.8, word(nudge, i + 1) textcolor rgb word(colours, i + 1)

set output out . "/last-stream.svg"
nudge = "0 0 0.5 0.3 0.8 -0.9"
set title "From the request for an event until the last stream has it"
set yrange [0.5:3000]
set ytics ("1 ms" 1, "10 ms" 10, "100 ms" 100, "1 s" 1000)
plot for [i = 0:last] data index i using 1:3 with linespoints \
		linewidth 2 pointtype 7 pointsize 0.6 linecolor rgb word(colours, i + 1), \
	for [i = 0:last] data index i using 1:3:5 with labels \
		left offset 0.8, word(nudge, i + 1) textcolor rgb word(colours, i + 1)
