package main

import (
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"syscall"
	"time"
)

const (
	frame  = 32 << 10 // bytes of a chunk, as docker's io.Copy makes them
	frames = 8        // chunks in one writev
)

// A source is the data file, mapped into memory and open for sendfile.
type source struct {
	file   *os.File
	mapped []byte
}

type sender func(c *connection, from source, blob Blob, repository string) error

// push sends every blob once; the clients share them.
func push(job Job, send sender) (Result, error) {
	config, err := trust(job)
	if err != nil {
		return Result{}, err
	}
	from, err := open(job.Data)
	if err != nil {
		return Result{}, err
	}
	todo := make(chan Blob, len(job.Blobs))
	for _, blob := range job.Blobs {
		todo <- blob
	}
	close(todo)
	all := newCrowd()
	for range job.Clients {
		all.worker(func() error {
			c, err := dial(job, config)
			if err != nil {
				return err
			}
			defer c.Close()
			for blob := range todo {
				began := time.Now()
				if err := send(c, from, blob, job.Repository); err != nil {
					return fmt.Errorf("push of %s: %w", blob.Digest, err)
				}
				all.saw(blob.Size, time.Since(began), c.cipher())
			}
			return nil
		})
	}
	return all.wait()
}

func open(path string) (source, error) {
	file, err := os.Open(path)
	if err != nil {
		return source{}, err
	}
	info, err := file.Stat()
	if err != nil {
		return source{}, err
	}
	flags := syscall.MAP_SHARED | syscall.MAP_POPULATE
	mapped, err := syscall.Mmap(int(file.Fd()), 0, int(info.Size()), syscall.PROT_READ, flags)
	return source{file, mapped}, err
}

func (c *connection) begin(repository string) (string, error) {
	target := "/v2/" + repository + "/blobs/uploads/"
	if err := c.request("POST", target, "Content-Length: 0\r\n"); err != nil {
		return "", err
	}
	begun, err := c.expect(202)
	return begun.location, err
}

// patch is docker's way: POST, one PATCH of unannounced length, PUT without a body.
func (c *connection) patch(from source, blob Blob, repository string) error {
	location, err := c.begin(repository)
	if err != nil {
		return err
	}
	const extra = "Content-Type: application/octet-stream\r\nTransfer-Encoding: chunked\r\n"
	if err := c.request("PATCH", path(location, ""), extra); err != nil {
		return err
	}
	if err := c.chunks(from.mapped[blob.Offset : blob.Offset+blob.Size]); err != nil {
		return err
	}
	sent, err := c.expect(202)
	if err != nil {
		return err
	}
	target := path(sent.location, blob.Digest)
	if err := c.request("PUT", target, "Content-Length: 0\r\n"); err != nil {
		return err
	}
	_, err = c.expect(201)
	return err
}

func (c *connection) chunks(data []byte) error {
	gathered := make([]byte, 0, frames*(frame+16))
	ending := []byte("\r\n")
	for len(data) > 0 {
		var group net.Buffers
		for len(group) < 3*frames && len(data) > 0 {
			size := min(len(data), frame)
			head := strconv.AppendInt(nil, int64(size), 16)
			group = append(group, append(head, '\r', '\n'), data[:size], ending)
			data = data[size:]
		}
		var err error
		if c.tcp != nil {
			_, err = group.WriteTo(c.tcp)
		} else {
			gathered = gathered[:0]
			for _, part := range group {
				gathered = append(gathered, part...)
			}
			_, err = c.Conn.Write(gathered)
		}
		if err != nil {
			return err
		}
	}
	_, err := io.WriteString(c.Conn, "0\r\n\r\n")
	return err
}

// put is the way of containerd and crane: POST, PUT with the whole body and its length.
func (c *connection) put(from source, blob Blob, repository string) error {
	location, err := c.begin(repository)
	if err != nil {
		return err
	}
	extra := "Content-Type: application/octet-stream\r\nContent-Length: " +
		strconv.FormatInt(blob.Size, 10) + "\r\n"
	if err := c.request("PUT", path(location, blob.Digest), extra); err != nil {
		return err
	}
	if err := c.whole(from, blob); err != nil {
		return err
	}
	_, err = c.expect(201)
	return err
}

func (c *connection) whole(from source, blob Blob) error {
	if c.tcp == nil {
		_, err := c.Conn.Write(from.mapped[blob.Offset : blob.Offset+blob.Size])
		return err
	}
	// A descriptor of its own: sendfile goes by the file's position.
	file, err := os.Open(from.file.Name())
	if err != nil {
		return err
	}
	defer file.Close()
	if _, err = file.Seek(blob.Offset, io.SeekStart); err != nil {
		return err
	}
	_, err = c.tcp.ReadFrom(io.LimitReader(file, blob.Size))
	return err
}
