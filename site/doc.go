// Package site is the seam between base models and adapter methods, the
// lowest package of the library: it knows no model and no method.
//
// A base model builds its forward pass with a [Pass]. Each time it uses a named
// module it describes the use as a [Site] and asks the pass's [Hook] for the
// output; each time it reads a bare parameter (a norm's scale, a bias) it asks
// the hook for the value. Without a hook the pass builds the base as it is.
// Adapter methods are hooks; they never touch the model.
//
// Module paths and parameter names are the checkpoint's own, in Hugging Face's
// dotted form ("model.layers.0.self_attn.q_proj"); the GoMLX variable of a
// parameter has the same name with "/" for "." (see [VariablePath]).
package site
