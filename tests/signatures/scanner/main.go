// An SBOM generator for BuildKit, by its protocol (moby/buildkit, docs/attestations/sbom-protocol.md):
// every file of the image with its SHA-256, as SPDX in an in-toto statement.
package main

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

type object map[string]any

func main() {
	source := os.Getenv("BUILDKIT_SCAN_SOURCE")
	name := filepath.Base(source)
	files := []object{}
	check(filepath.WalkDir(source, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.Type().IsRegular() {
			return err
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		sum := sha256.Sum256(data)
		relative, err := filepath.Rel(source, path)
		files = append(files, object{
			"SPDXID":    fmt.Sprintf("SPDXRef-File-%d", len(files)),
			"fileName":  "./" + relative,
			"checksums": []object{{"algorithm": "SHA256", "checksumValue": hex.EncodeToString(sum[:])}},
		})
		return err
	}))
	statement, err := json.Marshal(object{
		"_type":         "https://in-toto.io/Statement/v0.1",
		"predicateType": "https://spdx.dev/Document",
		"predicate": object{
			"spdxVersion":       "SPDX-2.3",
			"dataLicense":       "CC0-1.0",
			"SPDXID":            "SPDXRef-DOCUMENT",
			"name":              name,
			"documentNamespace": "https://example.com/" + name,
			"creationInfo": object{
				"created":  "2026-01-01T00:00:00Z",
				"creators": []string{"Tool: scanner"},
			},
			"files": files,
		},
	})
	check(err)
	target := filepath.Join(os.Getenv("BUILDKIT_SCAN_DESTINATION"), name+".spdx.json")
	check(os.WriteFile(target, statement, 0o644))
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
