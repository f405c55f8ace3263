package main

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const stuck = 300 * time.Second

// A connection speaks HTTP/1.1 to the server, as docker and containerd do.
type connection struct {
	net.Conn
	reader  *bufio.Reader
	tcp     *net.TCPConn
	headers string // sent with every request
	scratch []byte
}

type response struct {
	status   int
	length   int64
	location string
	chunked  bool
}

func trust(job Job) (*tls.Config, error) {
	if job.CA == "" {
		return nil, nil
	}
	pem, err := os.ReadFile(job.CA)
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	host, _, err := net.SplitHostPort(job.Address)
	return &tls.Config{RootCAs: roots, ServerName: host, NextProtos: []string{"http/1.1"}}, err
}

func headers(job Job) string {
	lines := "Host: " + job.Address + "\r\nUser-Agent: mayfly-benchmarks\r\n" +
		"Accept: application/vnd.oci.image.manifest.v1+json, */*\r\n"
	if job.Authorization != "" {
		lines += "Authorization: " + job.Authorization + "\r\n"
	}
	return lines
}

func dial(job Job, config *tls.Config) (*connection, error) {
	plain, err := net.Dial("tcp", job.Address)
	if err != nil {
		return nil, err
	}
	plain.SetDeadline(time.Now().Add(stuck))
	made := &connection{Conn: plain, tcp: plain.(*net.TCPConn), headers: headers(job)}
	if config != nil {
		made.Conn, made.tcp = tls.Client(plain, config), nil
	}
	made.reader = bufio.NewReaderSize(made.Conn, 64<<10)
	made.scratch = make([]byte, 1<<20)
	return made, nil
}

func (c *connection) cipher() string {
	if over, ok := c.Conn.(*tls.Conn); ok {
		return tls.CipherSuiteName(over.ConnectionState().CipherSuite)
	}
	return ""
}

func (c *connection) request(method, target, extra string) error {
	_, err := io.WriteString(c.Conn, method+" "+target+" HTTP/1.1\r\n"+c.headers+extra+"\r\n")
	return err
}

// response reads a head; the body, if any, is still to be read.
func (c *connection) response() (response, error) {
	var found response
	line, err := c.reader.ReadString('\n')
	if err != nil {
		return found, err
	}
	if len(line) < 12 {
		return found, fmt.Errorf("no HTTP: %q", line)
	}
	if found.status, err = strconv.Atoi(line[9:12]); err != nil {
		return found, err
	}
	for {
		if line, err = c.reader.ReadString('\n'); err != nil {
			return found, err
		}
		name, value, _ := strings.Cut(strings.TrimSpace(line), ":")
		value = strings.TrimSpace(value)
		switch strings.ToLower(name) {
		case "":
			return found, nil
		case "content-length":
			if found.length, err = strconv.ParseInt(value, 10, 64); err != nil {
				return found, err
			}
		case "location":
			found.location = value
		case "transfer-encoding":
			found.chunked = true
		}
	}
}

// expect reads a whole response with a small body that does not matter.
func (c *connection) expect(status int) (response, error) {
	found, err := c.response()
	if err != nil {
		return found, err
	}
	if found.status != status {
		text, _ := c.reader.Peek(min(int(found.length), c.reader.Buffered()))
		return found, fmt.Errorf("answered %d instead of %d: %s", found.status, status, text)
	}
	if found.chunked {
		return found, fmt.Errorf("chunked answer to a small request")
	}
	_, err = c.reader.Discard(int(found.length))
	return found, err
}

// discard reads n bytes of a body; without TLS the kernel throws them away uncopied.
func (c *connection) discard(n int64) error {
	held := min(n, int64(c.reader.Buffered()))
	c.reader.Discard(int(held))
	n -= held
	if c.tcp == nil {
		for n > 0 {
			got, err := c.Conn.Read(c.scratch[:min(n, int64(len(c.scratch)))])
			if err != nil {
				return err
			}
			n -= int64(got)
		}
		return nil
	}
	raw, err := c.tcp.SyscallConn()
	if err != nil {
		return err
	}
	for n > 0 && err == nil {
		var got int
		var failed error
		err = raw.Read(func(fd uintptr) bool {
			part := c.scratch[:min(n, int64(len(c.scratch)))]
			got, _, failed = syscall.Recvfrom(int(fd), part, syscall.MSG_TRUNC)
			return failed != syscall.EAGAIN
		})
		if err == nil {
			err = failed
		}
		if err == nil && got == 0 {
			err = io.ErrUnexpectedEOF
		}
		n -= int64(got)
	}
	return err
}

// path of a Location, which may be absolute, with a digest parameter if one is given.
func path(location, digest string) string {
	if _, after, found := strings.Cut(location, "://"); found {
		location = after[strings.Index(after, "/"):]
	}
	if digest == "" {
		return location
	}
	if strings.Contains(location, "?") {
		return location + "&digest=" + digest
	}
	return location + "?digest=" + digest
}

func endOfHead(buffer []byte) int { return bytes.Index(buffer, []byte("\r\n\r\n")) }
