package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
)

// serve is a registry that checks and keeps nothing: pushed bytes are dropped, pulled ones come
// from the data file by sendfile. No registry can be faster than this with the same load.
func serve(arguments []string) error {
	flags := flag.NewFlagSet("serve", flag.ExitOnError)
	address := flags.String("address", "127.0.0.1:5000", "where to listen")
	data := flags.String("data", "", "the data file")
	index := flags.String("blobs", "", "a JSON file of its blobs")
	certificate := flags.String("cert", "", "for TLS")
	key := flags.String("key", "", "for TLS")
	flags.Parse(arguments)

	text, err := os.ReadFile(*index)
	if err != nil {
		return err
	}
	var blobs []Blob
	if err := json.Unmarshal(text, &blobs); err != nil {
		return err
	}
	bare := &bare{*data, map[string]Blob{}, []byte(strings.Repeat(" ", 1500))}
	for _, blob := range blobs {
		bare.blobs[blob.Digest] = blob
	}
	// No HTTP/2: the load does not speak it.
	server := &http.Server{Addr: *address, Handler: bare}
	server.Protocols = new(http.Protocols)
	server.Protocols.SetHTTP1(true)
	if *certificate != "" {
		return server.ListenAndServeTLS(*certificate, *key)
	}
	return server.ListenAndServe()
}

type bare struct {
	data     string
	blobs    map[string]Blob
	manifest []byte
}

func (b *bare) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch {
	case r.Method == "POST":
		w.Header().Set("Location", r.URL.Path+"1")
		w.WriteHeader(202)
	case r.Method == "PATCH" || r.Method == "PUT":
		io.CopyBuffer(io.Discard, struct{ io.Reader }{r.Body}, make([]byte, 256<<10))
		w.Header().Set("Location", r.URL.Path)
		if r.Method == "PATCH" {
			w.WriteHeader(202)
		} else {
			w.WriteHeader(201)
		}
	case strings.Contains(r.URL.Path, "/blobs/"):
		b.blob(w, r.URL.Path[strings.LastIndex(r.URL.Path, "/")+1:])
	default:
		w.Header().Set("Content-Length", fmt.Sprint(len(b.manifest)))
		if r.Method == "GET" {
			w.Write(b.manifest)
		}
	}
}

func (b *bare) blob(w http.ResponseWriter, digest string) {
	blob, known := b.blobs[digest]
	file, err := os.Open(b.data)
	if !known || err != nil {
		http.NotFound(w, nil)
		return
	}
	defer file.Close()
	file.Seek(blob.Offset, io.SeekStart)
	w.Header().Set("Content-Length", fmt.Sprint(blob.Size))
	// ReadFrom is sendfile; over TLS it copies in large pieces.
	io.CopyBuffer(w, io.LimitReader(file, blob.Size), make([]byte, 256<<10))
}
