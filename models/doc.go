// Package models loads base transformers from Hugging Face folders and builds
// their forward passes as GoMLX graphs.
//
// [Load] reads config.json, the safetensors weights and the tokenizer of a folder
// (or of a hub id) and returns a [Model]: frozen parameters on a device, and the
// functions that build the forward pass. Adapter methods attach to it through
// package site; this package knows none of them.
//
// [LoadClassifier] puts a head that scores labels on an encoder: a [Classifier]. With
// [Options].Quantization the weights of linear layers are held in few bits, as package quant
// says; [Quantise] writes such a folder. A [Blueprint] is a model without parameters, for plans.
//
// A variable's path is the checkpoint's tensor name with "/" for ".", its shape
// the checkpoint's. RoPE angles, norms and softmax are computed in float32
// whatever the compute dtype.
//
// One file per family holds what its config.json means and its forward pass
// (llama.go: Llama, Mistral, Qwen2, Qwen3; encoder.go: what BERT and its like have in
// common); the blocks they share are in blocks.go, rope.go and attention.go.
package models
