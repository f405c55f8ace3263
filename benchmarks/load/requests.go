package main

import (
	"bytes"
	"fmt"
	"net"
	"runtime"
	"strconv"
	"syscall"
	"time"
)

// A line is one connection of a storm of small requests: send one, read its answer, again.
type line struct {
	fd     int
	sent   time.Time
	answer []byte
}

// requests repeats one small request on each connection until the time is over. A loop over epoll
// in one thread: goroutines would cost about as much as a fast server.
func requests(job Job) (Result, error) {
	runtime.LockOSThread()
	text := []byte(job.Method + " " + job.Path + " HTTP/1.1\r\n" + headers(job) + "\r\n")
	poll, err := syscall.EpollCreate1(0)
	if err != nil {
		return Result{}, err
	}
	lines := map[int32]*line{}
	for range job.Clients {
		fd, err := connect(job.Address)
		if err != nil {
			return Result{}, err
		}
		lines[int32(fd)] = &line{fd: fd, answer: make([]byte, 0, 64<<10)}
		event := syscall.EpollEvent{Events: syscall.EPOLLIN, Fd: int32(fd)}
		if err := syscall.EpollCtl(poll, syscall.EPOLL_CTL_ADD, fd, &event); err != nil {
			return Result{}, err
		}
	}
	began := time.Now()
	for _, one := range lines {
		if err := one.ask(text); err != nil {
			return Result{}, err
		}
	}
	end := began.Add(time.Duration(job.Seconds * float64(time.Second)))
	var received int64
	var latencies []time.Duration
	events := make([]syscall.EpollEvent, job.Clients)
	for now := began; now.Before(end); now = time.Now() {
		count, err := syscall.EpollWait(poll, events, 1000)
		if err != nil && err != syscall.EINTR {
			return Result{}, err
		}
		if count == 0 && time.Since(began) > stuck {
			return Result{}, fmt.Errorf("no answer for %s", stuck)
		}
		for _, event := range events[:max(count, 0)] {
			one := lines[event.Fd]
			done, err := one.read(job.Method)
			if err != nil {
				return Result{}, err
			}
			if !done {
				continue
			}
			latencies = append(latencies, time.Since(one.sent))
			received += int64(len(one.answer))
			if err := one.ask(text); err != nil {
				return Result{}, err
			}
		}
	}
	return summary(time.Since(began), received, latencies), nil
}

func connect(address string) (int, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return 0, err
	}
	number, err := strconv.Atoi(port)
	if err != nil {
		return 0, err
	}
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM, 0)
	if err != nil {
		return 0, err
	}
	syscall.SetsockoptInt(fd, syscall.IPPROTO_TCP, syscall.TCP_NODELAY, 1)
	to := &syscall.SockaddrInet4{Port: number, Addr: [4]byte(net.ParseIP(host).To4())}
	return fd, syscall.Connect(fd, to)
}

func (l *line) ask(text []byte) error {
	l.answer = l.answer[:0]
	l.sent = time.Now()
	_, err := syscall.Write(l.fd, text)
	return err
}

// read takes the bytes that have arrived; whether the answer is complete.
func (l *line) read(method string) (bool, error) {
	held := len(l.answer)
	if held == cap(l.answer) {
		return false, fmt.Errorf("answer is larger than %d bytes", held)
	}
	got, err := syscall.Read(l.fd, l.answer[held:cap(l.answer)])
	if err != nil {
		return false, err
	}
	if got == 0 {
		return false, fmt.Errorf("connection was closed")
	}
	l.answer = l.answer[:held+got]
	head := endOfHead(l.answer)
	if head < 0 {
		return false, nil
	}
	if !bytes.HasPrefix(l.answer, []byte("HTTP/1.1 200")) {
		return false, fmt.Errorf("answered %q", l.answer[:min(len(l.answer), 300)])
	}
	if method == "HEAD" {
		return true, nil
	}
	length, err := contentLength(l.answer[:head+2])
	if length < 0 {
		return bytes.HasSuffix(l.answer, []byte("\r\n0\r\n\r\n")), err
	}
	return len(l.answer) >= head+4+length, err
}

// contentLength of a head; -1 if the body is chunked.
func contentLength(head []byte) (int, error) {
	for rest := head; len(rest) > 0; {
		var one []byte
		one, rest, _ = bytes.Cut(rest, []byte("\r\n"))
		name, value, _ := bytes.Cut(one, []byte(":"))
		if len(name) == len("content-length") && bytes.EqualFold(name, []byte("content-length")) {
			return strconv.Atoi(string(bytes.TrimSpace(value)))
		}
	}
	return -1, nil
}
