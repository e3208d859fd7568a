package models

import (
	. "github.com/gomlx/gomlx/core/graph"

	"github.com/gopeft/gopeft/internal/graphx"
)

// activation is an elementwise function named by hidden_act.
type activation func(x *Node) *Node

// act reads the activation named by a field.
func (f *fields) act(name, otherwise string) activation {
	return f.actNamed(name, f.textOr(name, otherwise))
}

// actNamed returns the activation called kind, which the field name asks for.
func (f *fields) actNamed(name, kind string) activation {
	act, ok := graphx.Activation(kind)
	if !ok {
		f.fail("%s %q is not supported; supported are %v", name, kind, graphx.ActivationNames())
	}
	return act
}
