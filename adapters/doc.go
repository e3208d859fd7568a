// Package adapters holds methods that are no low-rank updates: trained copies of norms,
// trained rows of embeddings.
package adapters
