// Package base is the folder of the tiny model that examples/pretrain made, as files.
package base

import "embed"

// Files are config.json, model.safetensors and the tokenizer's.
//
//go:embed *.json *.safetensors
var Files embed.FS
