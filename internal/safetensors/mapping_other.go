//go:build !linux && !darwin

package safetensors

func dontNeed([]byte) {}
