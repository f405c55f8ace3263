package main

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"time"
)

// pull lets every client get every blob; a client's connections share its blobs in order.
func pull(job Job) (Result, error) {
	config, err := trust(job)
	if err != nil {
		return Result{}, err
	}
	all := newCrowd()
	for range job.Clients {
		todo := make(chan Blob, len(job.Blobs)*job.Repeat)
		for range job.Repeat {
			for _, blob := range job.Blobs {
				todo <- blob
			}
		}
		close(todo)
		all.worker(func() error {
			c, err := dial(job, config)
			if err != nil {
				return err
			}
			defer c.Close()
			if err := c.first(job.First); err != nil {
				return err
			}
			for range job.Parallel - 1 {
				all.worker(func() error {
					more, err := dial(job, config)
					if err != nil {
						return err
					}
					defer more.Close()
					return more.each(job, todo, all)
				})
			}
			return c.each(job, todo, all)
		})
	}
	return all.wait()
}

func (c *connection) first(path string) error {
	if path == "" {
		return nil
	}
	if err := c.request("GET", path, ""); err != nil {
		return err
	}
	_, err := c.expect(200)
	return err
}

func (c *connection) each(job Job, todo chan Blob, all *crowd) error {
	for blob := range todo {
		began := time.Now()
		if err := c.get(job, blob); err != nil {
			return fmt.Errorf("pull of %s: %w", blob.Digest, err)
		}
		all.saw(blob.Size, time.Since(began), c.cipher())
	}
	return nil
}

func (c *connection) get(job Job, blob Blob) error {
	target := "/v2/" + job.Repository + "/blobs/" + blob.Digest
	if err := c.request("GET", target, ""); err != nil {
		return err
	}
	found, err := c.response()
	if err != nil {
		return err
	}
	if found.status != 200 || found.length != blob.Size {
		return fmt.Errorf("answered %d with %d bytes", found.status, found.length)
	}
	if !job.Verify {
		return c.discard(blob.Size)
	}
	hash := sha256.New()
	if _, err := io.CopyN(hash, c.reader, blob.Size); err != nil {
		return err
	}
	if digest := "sha256:" + hex.EncodeToString(hash.Sum(nil)); digest != blob.Digest {
		return fmt.Errorf("content has digest %s", digest)
	}
	return nil
}
