// Package quant stores frozen weights in few bits, in the layout of bitsandbytes to the
// bit: NF4 and FP4 (QLoRA, Dettmers et al. 2023, arXiv:2305.14314) and INT8 by rows
// (LLM.int8(), Dettmers et al. 2022, arXiv:2208.07339).
//
// The four-bit formats divide a weight, row-major [out, in], into blocks of successive
// elements. A block has one float32, absmax, the largest magnitude in it; an element has
// the code of the level nearest to element/absmax. Two codes share a byte, the first
// element in the high half. With double quantisation the absmax values are themselves
// stored as bytes, in blocks of 256 around their mean.
//
// [INT8] rounds weights to float16 and then each row to 255 even levels.
//
// What is computed here equals bitsandbytes 0.50 on a CPU, one thread: codes, absmax,
// nested codes and their statistics. (Its CUDA kernels round the nested codes and the
// mean in another order; files of either load as they are.)
package quant
