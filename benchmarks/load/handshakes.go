package main

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"syscall"
	"time"
)

// handshakes opens connections one after the other in each client, every one with a full
// handshake, since no session is kept, and ends it. The server's end is waited for: only that
// shows that it has taken the client's last message.
func handshakes(job Job) (Result, error) {
	config, err := trust(job)
	if err != nil {
		return Result{}, err
	}
	crowd := newCrowd()
	end := crowd.began.Add(time.Duration(job.Seconds * float64(time.Second)))
	for range job.Clients {
		crowd.worker(func() error {
			for time.Now().Before(end) {
				began := time.Now()
				cipher, err := handshake(job.Address, config)
				if err != nil {
					return err
				}
				crowd.saw(0, time.Since(began), cipher)
			}
			return nil
		})
	}
	return crowd.wait()
}

func handshake(address string, config *tls.Config) (string, error) {
	plain, err := net.Dial("tcp", address)
	if err != nil {
		return "", err
	}
	made := tls.Client(plain, config)
	defer made.Close()
	plain.SetDeadline(time.Now().Add(stuck))
	if err := made.Handshake(); err != nil {
		return "", err
	}
	if err := made.CloseWrite(); err != nil {
		return "", err
	}
	if _, err := io.Copy(io.Discard, made); err != nil && !errors.Is(err, syscall.ECONNRESET) {
		return "", err
	}
	return tls.CipherSuiteName(made.ConnectionState().CipherSuite), nil
}
