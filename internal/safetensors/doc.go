// Package safetensors reads and writes the safetensors format, one file or a
// Hugging Face folder of shards, lazily and without copies. The format and
// every check are described in docs/safetensors.md.
//
// nlpodyssey/safetensors is not used: one unknown dtype fails its whole file,
// and it knows no F8, no duplicate keys, no files, no shards and no scalars
// when writing (all of which real checkpoints need).
package safetensors
