//go:build !(cgo && !noxla && ((linux && (amd64 || arm64)) || (darwin && arm64) || (windows && amd64)))

package backend

import (
	"errors"

	"github.com/gomlx/compute"
)

const xlaBuiltIn = false

func openPlugin(path, _ string) (compute.Backend, error) {
	return nil, errors.New("backend: built without XLA, cannot open " + path)
}
