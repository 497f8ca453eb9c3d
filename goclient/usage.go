package main

import (
	"bytes"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
)

// clockTick is the step in which Linux counts CPU time, in seconds. It is the same everywhere.
const clockTick = 0.01

// usage is what a process and its children hold and have used so far.
type usage struct {
	rss int64   // bytes
	cpu float64 // seconds
}

// processUsage reads it from /proc; ok is false where that has no such process.
func processUsage(pid int) (u usage, ok bool) {
	pids := []int{pid}
	for i := 0; i < len(pids); i++ {
		dir := fmt.Sprintf("/proc/%d", pids[i])
		statm, err := os.ReadFile(dir + "/statm")
		stat, err2 := os.ReadFile(dir + "/stat")
		mem := strings.Fields(string(statm))
		cpu := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
		if err != nil || err2 != nil || len(mem) < 2 || len(cpu) < 13 {
			continue
		}
		ok = true
		pages, _ := strconv.ParseInt(mem[1], 10, 64)
		user, _ := strconv.ParseFloat(cpu[11], 64)
		system, _ := strconv.ParseFloat(cpu[12], 64)
		u.rss += pages * int64(os.Getpagesize())
		u.cpu += (user + system) * clockTick
		tasks, _ := os.ReadDir(dir + "/task")
		for _, task := range tasks {
			children, _ := os.ReadFile(dir + "/task/" + task.Name() + "/children")
			for _, f := range strings.Fields(string(children)) {
				child, _ := strconv.Atoi(f)
				pids = append(pids, child)
			}
		}
	}
	return u, ok && runtime.GOOS == "linux"
}
