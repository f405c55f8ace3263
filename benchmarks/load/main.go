// The load of the benchmarks: one job as JSON on standard input, its result on standard output.
//
// It is written to cost as little as possible, since it shares the machine with the server under
// test: bodies are received without copying them (MSG_TRUNC) and sent by sendfile or writev. Its
// own CPU seconds are part of the result, and "load serve" is a server that keeps nothing, which
// shows how fast this load is by itself.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"
)

// A Blob is a slice of the data file.
type Blob struct {
	Digest string `json:"digest"`
	Offset int64  `json:"offset"`
	Size   int64  `json:"size"`
}

// A Job describes the work; which fields count depends on Kind.
type Job struct {
	Kind          string  `json:"kind"` // push-patch, push-put, pull, requests, handshakes or commands
	Address       string  `json:"address"`
	CA            string  `json:"ca"` // a file; plain HTTP if empty
	Authorization string  `json:"authorization"`
	Repository    string  `json:"repository"`
	Data          string  `json:"data"` // the file that blobs are slices of
	Blobs         []Blob  `json:"blobs"`
	Clients       int     `json:"clients"`
	Parallel      int     `json:"parallel"` // pull: connections of each client
	Repeat        int     `json:"repeat"`   // pull: how often each client pulls every blob
	First         string  `json:"first"`    // pull: a path that each client gets first
	Verify        bool    `json:"verify"`   // pull: check digests
	Method        string  `json:"method"`   // requests
	Path          string  `json:"path"`
	Seconds       float64 `json:"seconds"` // requests, handshakes

	Commands    [][]string `json:"commands"`    // commands: each with its arguments
	Environment []string   `json:"environment"` // commands: NAME=VALUE besides that of this program
}

// A Result has the measurements of the clients.
type Result struct {
	Seconds float64 `json:"seconds"`
	Bytes   int64   `json:"bytes"`
	Count   int     `json:"count"`
	P50     float64 `json:"p50_ms"`
	P99     float64 `json:"p99_ms"`
	CPU     float64 `json:"cpu_seconds"` // of this program; of commands, theirs
	Peak    int64   `json:"peak_kib"`    // of commands, the largest resident memory of one of them
	Cipher  string  `json:"cipher"`
}

func main() {
	if len(os.Args) > 1 && os.Args[1] == "serve" {
		fail(serve(os.Args[2:]))
		return
	}
	var job Job
	fail(json.NewDecoder(os.Stdin).Decode(&job))
	result, err := run(job)
	fail(err)
	if job.Kind != "commands" {
		result.CPU = cpuSeconds()
	}
	fail(json.NewEncoder(os.Stdout).Encode(result))
}

func run(job Job) (Result, error) {
	switch job.Kind {
	case "push-patch":
		return push(job, (*connection).patch)
	case "push-put":
		return push(job, (*connection).put)
	case "pull":
		return pull(job)
	case "requests":
		return requests(job)
	case "handshakes":
		return handshakes(job)
	case "commands":
		return commands(job)
	}
	return Result{}, fmt.Errorf("no such kind of job: %q", job.Kind)
}

func fail(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "load:", err)
		os.Exit(1)
	}
}

func cpuSeconds() float64 {
	var usage syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &usage) != nil {
		return 0
	}
	return float64(usage.Utime.Nano()+usage.Stime.Nano()) / 1e9
}

// A crowd runs workers at once and gathers their results.
type crowd struct {
	group     sync.WaitGroup
	lock      sync.Mutex
	began     time.Time
	bytes     int64
	latencies []time.Duration
	cipher    string
	err       error
}

func newCrowd() *crowd { return &crowd{began: time.Now()} }

func (c *crowd) worker(work func() error) {
	c.group.Add(1)
	go func() {
		defer c.group.Done()
		if err := work(); err != nil {
			c.lock.Lock()
			c.err = errors.Join(c.err, err)
			c.lock.Unlock()
		}
	}()
}

func (c *crowd) saw(bytes int64, took time.Duration, cipher string) {
	c.lock.Lock()
	defer c.lock.Unlock()
	c.bytes += bytes
	c.latencies = append(c.latencies, took)
	c.cipher = cipher
}

func (c *crowd) wait() (Result, error) {
	c.group.Wait()
	result := summary(time.Since(c.began), c.bytes, c.latencies)
	result.Cipher = c.cipher
	return result, c.err
}

func summary(took time.Duration, bytes int64, latencies []time.Duration) Result {
	result := Result{Seconds: took.Seconds(), Bytes: bytes, Count: len(latencies)}
	if len(latencies) > 0 {
		slices.Sort(latencies)
		result.P50 = milliseconds(latencies[len(latencies)/2])
		result.P99 = milliseconds(latencies[len(latencies)*99/100])
	}
	return result
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
