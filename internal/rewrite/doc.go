// Package rewrite makes a base of a GoMLX model that knows nothing of this library: it
// finds the modules in the graph that the model built, asks a hook for their outputs
// and parameters, and builds everything that depends on what the hook changed again.
//
// It knows the seam (package site) but no adapter method. Like all graph building code
// its functions panic on errors, with a value of type error.
package rewrite
