package models

import (
	"context"
	"errors"

	"github.com/gopeft/gopeft/site"
)

func (m *Model) Export(ctx context.Context, dir string, edit func(p site.Parameter, values []float32) (bool, error)) error {
	return errors.New("todo")
}
