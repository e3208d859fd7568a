package models

import (
	"context"
	"fmt"
	"os"
	"strings"

	"github.com/gomlx/compute"
	_ "github.com/gomlx/compute/gobackend"
)

func resolve(ctx context.Context, nameOrPath string, options Options) (string, error) {
	if _, err := os.Stat(nameOrPath); err != nil {
		return "", err
	}
	return nameOrPath, nil
}

func openBackend(options Options) (compute.Backend, func(), error) {
	if options.On != nil {
		return options.On, nil, nil
	}
	name := options.Backend
	if name == "" || name == "go" {
		name = "go:ops_sequential"
	}
	b, err := compute.NewWithConfig(name)
	if err != nil {
		return nil, nil, fmt.Errorf("open backend %q: %w", name, err)
	}
	return b, b.Finalize, nil
}

func isCUDA(b compute.Backend) bool {
	return strings.Contains(strings.ToLower(b.Description()), "cuda")
}
