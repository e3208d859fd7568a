package safetensors

import (
	"io"
	"testing"
)

func BenchmarkDecode(b *testing.B) {
	const n = 1 << 20
	dst := make([]float32, n)
	for _, d := range []DType{BF16, F16, F32, F64} {
		b.Run(string(d), func(b *testing.B) {
			src := make([]byte, n*d.Bits()/8)
			b.SetBytes(int64(len(src)))
			for b.Loop() {
				if err := DecodeFloat32s(dst, src, d); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkEncode(b *testing.B) {
	const n = 1 << 20
	src := make([]float32, n)
	for _, d := range []DType{BF16, F16, F32} {
		b.Run(string(d), func(b *testing.B) {
			dst := make([]byte, n*d.Bits()/8)
			b.SetBytes(int64(len(dst)))
			for b.Loop() {
				if err := EncodeFloat32s(dst, src, d); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkWrite(b *testing.B) {
	data := make([]byte, 64<<20)
	tensors := []Tensor{{Name: "a", DType: BF16, Shape: []int{32 << 20}, Bytes: data}}
	b.SetBytes(int64(len(data)))
	for b.Loop() {
		if err := Encode(io.Discard, nil, tensors); err != nil {
			b.Fatal(err)
		}
	}
}
