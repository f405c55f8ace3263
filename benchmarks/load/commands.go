package main

import (
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"time"
)

// commands runs programs one after the other and measures them: their time, CPU seconds and largest
// resident memory. A child begins with the memory of its parent in its figures (setmax_mm_hiwater_rss
// in the kernel), and that of this program is small.
func commands(job Job) (Result, error) {
	var cpu time.Duration
	var peak int64
	began := time.Now()
	for _, words := range job.Commands {
		command := exec.Command(words[0], words[1:]...)
		command.Env = append(os.Environ(), job.Environment...)
		if output, err := command.CombinedOutput(); err != nil {
			return Result{}, fmt.Errorf("%q: %w: %s", words, err, output)
		}
		state := command.ProcessState
		cpu += state.UserTime() + state.SystemTime()
		peak = max(peak, state.SysUsage().(*syscall.Rusage).Maxrss)
	}
	return Result{
		Seconds: time.Since(began).Seconds(),
		Count:   len(job.Commands),
		CPU:     cpu.Seconds(),
		Peak:    peak,
	}, nil
}
