// Package adapters holds methods that are no low-rank updates: bottleneck adapters, vectors
// that scale activations (IA3), trained copies of norms, trained rows of embeddings.
package adapters
