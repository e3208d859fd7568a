// Package lora is low-rank adaptation (Hu et al. 2021, arXiv:2106.09685): next to
// a frozen weight W a product of two thin matrices is trained,
//
//	y = W x + b + s · B A dropout(x)
//
// with A [r, in], B [out, r] and s = alpha/r, or alpha/sqrt(r) with rank-stabilised
// scaling (Kalajdzievski 2023, arXiv:2312.03732). The file lora.go holds the mathematics
// of that; each option has a file of its own: dora.go, conv.go, bias.go, lorabias.go, and
// pissa.go, olora.go, orthogonal.go, loftq.go, eva.go, corda.go for initialisations.
// Options, names and files are those of Hugging Face's peft.
//
// Its relatives live here too, each in a file of its name: AdaLoRA, VeRA, LoHa, LoKr,
// MiSS, and the orthogonal methods OFT and BOFT; docs/methods.md describes them. Adapters
// of these methods can be combined (combine.go) and turned into LoRAs (convert.go).
//
// Importing the package registers all of them with peft.LoadAdapter.
package lora
